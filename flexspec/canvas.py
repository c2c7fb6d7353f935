"""Canvases: sequences whose tokens are points with named axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from .errors import FlexSpecError, choices
from .expr import Expr, apply, const
from .user_line import user_caret

MOST_TOKENS = 1 << 62
"""Most tokens of a sequence or a block: a length that is rounded up to whole blocks still fits 64 bits."""


@dataclass(frozen=True)
class Canvas:
    """Named axes with their lengths, outermost first: `Canvas(t=30, h=48, w=80)`.

    A token's logical position is its row-major index; `q.t` in a predicate is its coordinate. Where it lies in memory
    is an order's choice. Raises FS032 on bad names or lengths, and past 2**62 tokens.

    >>> Canvas(h=2, w=3).size
    6
    """

    axes: tuple[tuple[str, int], ...]

    def __init__(self, **axes: int) -> None:
        if not axes:
            raise FlexSpecError("FS032", "a canvas needs at least one axis", fix="Canvas(h=48, w=80)")
        for name, length in axes.items():
            if name == "memory":
                message = "an axis cannot be called `memory`: `q.memory` is the place of a query in memory"
                raise FlexSpecError("FS032", message, fix="take another name", where=user_caret())
            if isinstance(length, bool) or not isinstance(length, int) or length < 1:
                message = f"axis `{name}` has length {length!r}"
                raise FlexSpecError("FS032", message, fix="give an integer of at least 1", where=user_caret())
        object.__setattr__(self, "axes", tuple(axes.items()))
        if self.size > MOST_TOKENS:
            message = f"a canvas of the axes {', '.join(axes)} has more than 2**62 tokens"
            raise FlexSpecError("FS032", message, fix="give shorter axes", where=user_caret())

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.axes)

    @cached_property
    def lengths(self) -> dict[str, int]:
        return dict(self.axes)

    @cached_property
    def size(self) -> int:
        """Tokens on the canvas."""
        return prod(length for _, length in self.axes)

    def side(self, side: str) -> Canvas | None:
        """The canvas of the queries ("q") or the keys ("kv")."""
        return self

    def per_axis(self, value: Any, what: str, default: Any = None) -> dict[str, Any]:
        """What is given for the axes, as a dict over all of them.

        value: one for all axes, or a mapping by axis name.
        what: its name in an error.
        default: for axes that a mapping leaves out; None: it may leave out none.

        Raises FS011 (a sequence, an unknown axis, a missing one).
        """
        if isinstance(value, (tuple, list)):
            fix = f"give one value for all axes, or by name: dict({', '.join(f'{name}=...' for name in self.names)})"
            raise FlexSpecError("FS011", f"{what} is {value!r}", fix=fix, where=user_caret())
        if not isinstance(value, Mapping):
            return dict.fromkeys(self.names, value)
        unknown = [name for name in value if name not in self.lengths]
        missing = [name for name in self.names if name not in value]
        if unknown or (missing and default is None):
            message = f"{what} names {', '.join(map(str, value))}; the canvas has the axes {', '.join(self.names)}"
            missed = f"give {what} for {', '.join(missing)} too" if missing and default is None else ""
            fix = "; ".join(filter(None, [f"there is no {choices(unknown)}" if unknown else "", missed]))
            raise FlexSpecError("FS011", message, fix=fix, where=user_caret())
        return {name: value.get(name, default) for name in self.names}

    def coordinates(self, position: Expr) -> dict[str, Expr]:
        """Each axis' coordinate of a row-major position."""
        by_axis, stride = {}, self.size
        for name, length in self.axes:
            outer, stride = stride, stride // length
            inside = position if outer == self.size else apply("mod", position, const(outer))
            by_axis[name] = inside if stride == 1 else apply("floordiv", inside, const(stride))
        return by_axis

    def position(self, coordinates: Mapping[str, Expr]) -> Expr:
        """The row-major position of a point."""
        total: Expr | None = None
        stride = self.size
        for name, length in self.axes:
            stride //= length
            term = coordinates[name]
            term = term if stride == 1 else apply("mul", term, const(stride))
            total = term if total is None else apply("add", total, term)
        assert total is not None
        return total

    def __str__(self) -> str:
        return f"canvas({', '.join(f'{name}={length}' for name, length in self.axes)})"

    __repr__ = __str__


@dataclass(frozen=True)
class CanvasPair:
    """A canvas for each side, None where its tokens have no axes: one new frame over a cache of frames."""

    q: Canvas | None
    kv: Canvas | None

    def side(self, side: str) -> Canvas | None:
        return self.q if side == "q" else self.kv

    @property
    def lengths(self) -> dict[str, dict[str, int]]:
        """Axes and their lengths, of the sides that have any."""
        sides = {"q": self.q, "kv": self.kv}
        return {side: canvas.lengths for side, canvas in sides.items() if canvas is not None}

    def __str__(self) -> str:
        return f"{self.q or 'no canvas'} over {self.kv or 'no canvas'}"

    __repr__ = __str__


AnyCanvas = Canvas | CanvasPair


def placed(on: AnyCanvas | None) -> dict[str, Any]:
    """`canvas` and `canvases` as a `Formula` takes them."""
    pair = isinstance(on, CanvasPair)
    return {"canvas": None if pair else on, "canvases": on if pair else None}


def canvas_or_pair(canvas: Any, q_canvas: Any, kv_canvas: Any) -> AnyCanvas | None:
    """The canvas that a definition is given, for both sides or for each. FS032."""
    for name, given in (("canvas", canvas), ("q_canvas", q_canvas), ("kv_canvas", kv_canvas)):
        if given is not None and not isinstance(given, Canvas):
            message = f"{name} is a {type(given).__name__}"
            raise FlexSpecError("FS032", message, fix="give fs.Canvas(h=48, w=80)", where=user_caret())
    if canvas is not None and (q_canvas is not None or kv_canvas is not None):
        message = "canvas is for both sides, and one for a side is given too"
        raise FlexSpecError("FS032", message, fix="give q_canvas and kv_canvas", where=user_caret())
    if q_canvas == kv_canvas:
        return canvas or q_canvas
    return CanvasPair(q_canvas, kv_canvas)
