"""What the pattern families share: checks of numbers, canvases and tensors, and how a tensor is held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import Any

import torch

from ..canvas import Canvas
from ..errors import FlexSpecError, choices
from ..inputs import Input
from ..ops import Type
from ..traced import Traced
from ..user_line import user_caret


class Text(str):
    """Text that a repr shows without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def whole(name: str, value: Any, least: int | None = 1) -> Any:
    """An integer of at least `least` (or a run-time parameter, as it is), else FS025."""
    if isinstance(value, Traced):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        fix = "give an integer" if least is None else f"give an integer of at least {least}"
        raise FlexSpecError("FS025", f"{name} is {value!r}", fix=fix, where=user_caret())
    return value


def on_canvas(canvas: Any, pattern: str) -> Canvas:
    """The canvas, else FS032."""
    if not isinstance(canvas, Canvas):
        message = f"{pattern} needs a canvas, got {type(canvas).__name__}"
        fix = f"{pattern}(fs.Canvas(h=48, w=80), ...)"
        raise FlexSpecError("FS032", message, fix=fix, where=user_caret())
    return canvas


def on_axis(canvas: Any, pattern: str, axis: Any, keyword: str = "axis") -> str:
    """The name of an axis that the canvas has, else FS011; `keyword` is what the pattern calls it."""
    if axis not in on_canvas(canvas, pattern).names:
        fix = f'it has {choices(canvas.names)}: {keyword}="{canvas.names[0]}"'
        raise FlexSpecError("FS011", f"the canvas has no axis {axis!r}", fix=fix, where=user_caret())
    return str(axis)


def per_axis(canvas: Canvas, what: str, value: Any, least: int | None = 1, default: Any = None) -> dict[str, int]:
    """One integer for each axis: FS011 on wrong axes, FS025 on wrong values."""
    values = canvas.per_axis(value, what, default)
    for name, item in values.items():
        if isinstance(item, Traced):
            message = f"{what} on `{name}` is a run-time parameter"
            raise FlexSpecError("FS025", message, fix="patterns on a canvas take plain integers", where=user_caret())
        whole(f"{what} on `{name}`", item, least)
    return values


def as_tensor(
    name: str, value: Any, dims: Sequence[int], kind: type = int, listed: torch.dtype | None = None
) -> torch.Tensor:
    """A tensor of ints, bools or floats, its dim count one of `dims`. FS022, FS023.

    Lists are converted, to the dtype `listed` where it is given; a tensor stays the object that it is.
    """
    try:
        tensor = value if isinstance(value, torch.Tensor) else torch.as_tensor(value, dtype=listed)
    except (TypeError, ValueError, RuntimeError):
        message = f"{name} is a {type(value).__name__}"
        raise FlexSpecError("FS023", message, fix="give a torch.Tensor", where=user_caret()) from None
    try:
        found = Type.of_dtype(tensor.dtype)
    except TypeError:
        raise FlexSpecError("FS023", f"{name} has dtype {tensor.dtype}", where=user_caret()) from None
    wanted = {int: (Type.INT,), bool: (Type.BOOL,), float: (Type.FLOAT, Type.DOUBLE)}[kind]
    if found not in wanted:
        message = f"{name} has dtype {tensor.dtype}; the pattern reads {kind.__name__}"
        raise FlexSpecError("FS023", message, fix="convert it first", where=user_caret())
    if tensor.dim() not in dims or tensor.numel() == 0:
        fix = f"give {choices(dims)} dims, none of them empty"
        raise FlexSpecError("FS022", f"{name} has shape {tuple(tensor.shape)}", fix=fix, where=user_caret())
    return tensor


@dataclass(frozen=True)
class PerToken:
    """A named tensor with a value for each token: [sequence], [batch, sequence] or [batch, heads, sequence].

    `read(b, h, token)` is its value in a predicate. A batch of one serves all, and then the mask does not
    depend on the batch.
    """

    name: str
    tensor: torch.Tensor | None
    read: Callable[[Any, Any, Any], Any]

    @property
    def held(self) -> dict[str, torch.Tensor]:
        """What the pattern holds, by the input's name."""
        return {} if self.tensor is None else {self.name: self.tensor}


def per_token(name: str, tensor: torch.Tensor | None, kind: type = int, length: str = "sequence") -> PerToken:
    """The reader of a checked tensor; without one, of the run-time input `name` [batch, sequence]."""
    if tensor is not None and tensor.dim() == 2 and tensor.shape[0] == 1:
        tensor = tensor[0]
    dims = 2 if tensor is None else tensor.dim()
    names = {1: (length,), 2: ("batch", length), 3: ("batch", "heads", length)}[dims]
    source = Input(name, names, kind.__name__)
    readers: dict[int, Callable[[Any, Any, Any], Any]] = {
        1: lambda b, h, token: source[token],
        2: lambda b, h, token: source[b, token],
        3: lambda b, h, token: source[b, h, token],
    }
    return PerToken(name, tensor, readers[dims])


def every(conditions: Sequence[Any]) -> Any:
    """All of the conditions; True where there are none."""
    return reduce(and_, conditions) if conditions else True
