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
from ..expr import SIZES, fixed_size
from ..inputs import Input
from ..ops import Type
from ..traced import Traced, TracedTensor
from ..user_line import user_caret

_TYPES = {int: (Type.INT,), bool: (Type.BOOL,), float: (Type.FLOAT, Type.DOUBLE)}


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
        dtype = Type.of_dtype(tensor.dtype)
    except TypeError:
        raise FlexSpecError("FS023", f"{name} has dtype {tensor.dtype}", where=user_caret()) from None
    if dtype not in _TYPES[kind]:
        message = f"{name} has dtype {tensor.dtype}; the pattern reads {kind.__name__}"
        raise FlexSpecError("FS023", message, fix="convert it first", where=user_caret())
    if tensor.dim() not in dims or tensor.numel() == 0:
        fix = f"give {choices(dims)} dims, none of them empty"
        raise FlexSpecError("FS022", f"{name} has shape {tuple(tensor.shape)}", fix=fix, where=user_caret())
    return tensor


@dataclass(frozen=True)
class Given:
    """A tensor that a pattern holds under the name of an input, or that is given under it when the pattern runs."""

    source: Input
    tensor: torch.Tensor | None = None

    @property
    def held(self) -> dict[str, torch.Tensor]:
        """What the pattern holds, by the input's name."""
        return {} if self.tensor is None else {self.source.source.name: self.tensor}

    @property
    def shown(self) -> Any:
        """The argument as a repr shows it."""
        return Traced(self.source.source) if self.tensor is None else self.tensor

    def read(self, **positions: Any) -> Any:
        """The entry at a position for each dim, by the dim's name."""
        return self.source[tuple(positions[dim] for dim in self.source.source.dims)]

    def size(self, axis: int) -> int:
        """How many entries a dim has; an input must say it. FS022."""
        if self.tensor is not None:
            return self.tensor.shape[axis]
        dims = self.source.source.dims
        size = fixed_size(dims[axis])
        if size is None:
            message = f"`{self.source.source.name}` does not say the size of its dim {axis}, `{dims[axis]}`"
            sized = ", ".join("257" if i == axis else f'"{dim}"' for i, dim in enumerate(dims))
            fix = f'give the number: fs.Input("{self.source.source.name}", ({sized}), float)'
            raise FlexSpecError("FS022", message, fix=fix, where=user_caret())
        return size


def held_or_given(
    argument: str, value: Any, name: str, forms: Sequence[tuple[str, ...]], kind: type = int, listed: Any = None
) -> Given:
    """The argument of a pattern that is a tensor, or an `fs.Input` that is given when the pattern runs.

    argument: what the pattern calls it. name: the input's name where a tensor is held. forms: the legal dims, first
    those that a tensor may have, told by how many they are; in them `_` is a dim of any other name. Raises FS022 (other
    dims), FS023 (another type).
    """
    if not isinstance(value, TracedTensor):
        by_count = {len(form): form for form in reversed(forms)}
        tensor = as_tensor(argument, value, list(by_count), kind, listed)
        return Given(Input(name, by_count[tensor.dim()], {int: "int", bool: "bool", float: "float"}[kind]), tensor)
    dims = value.source.dims
    legal = choices(dict.fromkeys(f"({', '.join(form)})" for form in forms))
    if not isinstance(value, Input) or not any(_has_form(dims, form) for form in forms):
        message = f"{argument} is an input with dims ({', '.join(dims)})"
        raise FlexSpecError("FS022", message, fix=f"give it the dims {legal}", where=user_caret())
    if value.source.type not in _TYPES[kind]:
        message = f"{argument} is an input of {value.source.type.text}; the pattern reads {kind.__name__}"
        fix = f'fs.Input("{value.source.name}", {dims}, {kind.__name__})'
        raise FlexSpecError("FS023", message, fix=fix, where=user_caret())
    return Given(value)


def _has_form(dims: Sequence[str], form: Sequence[str]) -> bool:
    free = [
        dim not in SIZES and dim != "sequence" if wanted == "_" else dim == wanted
        for dim, wanted in zip(dims, form, strict=False)
    ]
    return len(dims) == len(form) and all(free)


@dataclass(frozen=True)
class PerToken:
    """A value for each token, of a tensor that is held or given: `read(b, h, token)` is it in a predicate.

    A held tensor with one batch entry or one head serves all, and then the mask does not depend on which it is.
    """

    given: Given
    shown: Any

    @property
    def held(self) -> dict[str, torch.Tensor]:
        """What the pattern holds, by the input's name."""
        return self.given.held

    def read(self, b: Any, h: Any, token: Any) -> Any:
        """The value of a token."""
        return self.given.read(batch=b, heads=h, sequence=token)


def per_token(argument: str, value: Any, name: str, kind: type = int, heads: bool = False) -> PerToken:
    """The reader of a tensor or an `fs.Input`: [sequence], [batch, sequence], with `heads` [batch, heads, sequence].

    Where the value is None it is the run-time input `name` [batch, sequence]. Raises FS022, FS023.
    """
    forms: list[tuple[str, ...]] = [("sequence",), ("batch", "sequence")]
    if heads:
        forms += [("batch", "heads", "sequence"), ("heads", "sequence")]
    if value is None:
        return PerToken(Given(Input(name, forms[1], kind)), None)
    given = held_or_given(argument, value, name, forms, kind)
    if given.tensor is None:
        return PerToken(given, given.shown)
    tensor, dims = given.tensor, given.source.source.dims
    for axis in reversed(range(len(dims) - 1)):
        if tensor.shape[axis] == 1:
            tensor, dims = tensor.select(axis, 0), dims[:axis] + dims[axis + 1 :]
    return PerToken(Given(Input(name, dims, kind), tensor), given.shown)


@dataclass(frozen=True)
class PerHead:
    """A number for all heads, or one for each: `read(h)` is it in a score mod, `shown` what a repr shows."""

    read: Callable[[Any], Any]
    held: dict[str, torch.Tensor]
    shown: Any


def per_head_number(argument: str, value: Any, name: str) -> PerHead:
    """A plain number, an `fs.Param`, float [heads], or an `fs.Input` with the dim heads. FS022, FS023.

    name: the input's name where a tensor is held.
    """
    if isinstance(value, Traced):
        return PerHead(lambda h: value, {}, value)
    if isinstance(value, (bool, int, float)):
        if isinstance(value, bool) or value != value:
            raise FlexSpecError("FS023", f"{argument} is {value!r}; it must be a number", where=user_caret())
        return PerHead(lambda h: float(value), {}, value)
    given = held_or_given(argument, value, name, [(), ("heads",)], float, torch.float32)
    return PerHead(lambda h: given.read(heads=h), given.held, given.shown)


def names_of_axes(canvas: Canvas, pattern: str, value: Any, keyword: str) -> list[str]:
    """Names of axes, as text with spaces or as a sequence. FS011 on another name, FS023 on no names."""
    names = value.split() if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not names:
        fix = f'give names: {keyword}="{" ".join(canvas.names[:2])}"'
        raise FlexSpecError("FS023", f"{keyword} is {value!r}", fix=fix, where=user_caret())
    return [on_axis(canvas, pattern, name, keyword) for name in names]


def every(conditions: Sequence[Any]) -> Any:
    """All of the conditions; True where there are none."""
    return reduce(and_, conditions) if conditions else True
