"""Orders of a canvas by digits: axes permuted, tiles, tiles of tiles, residue classes.

Each coordinate is written in digits, `x = tile * side + inside` or `x = step * dilation + residue`; memory runs through
all digits of all axes, the last one fastest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any, NamedTuple

from ..canvas import Canvas
from ..errors import FlexSpecError
from ..expr import Expr, apply, const
from ..user_line import user_caret
from .base import Order, Place, canvas_of, whole_number


class Digit(NamedTuple):
    """A digit of one axis' coordinate: `x // stride % base`."""

    axis: str
    stride: int
    base: int


@dataclass(frozen=True, repr=False)
class Digits(Order):
    """An order that runs through digits of the coordinates, as a counter does. Sides that do not divide are padded."""

    @property
    def digits(self) -> list[Digit]:
        """Slowest first."""
        raise NotImplementedError

    @property
    def permutes(self) -> bool:
        """Does it differ from row-major?"""
        raise NotImplementedError

    @property
    def _canvas(self) -> Canvas:
        assert self.canvas is not None
        return self.canvas

    def padded(self, length: int) -> int:
        return prod(digit.base for digit in self.digits) if self.permutes else length

    def place(self, position: Expr, length: int) -> Place:
        if not self.permutes:
            return Place(position, self._canvas.coordinates(position), None)
        total = stride = self.padded(length)
        parts: dict[str, list[Expr]] = {name: [] for name in self._canvas.names}
        for digit in self.digits:
            outer, stride = stride, stride // digit.base
            if digit.base == 1:
                continue
            value = position if outer == total else apply("mod", position, const(outer))
            value = value if stride == 1 else apply("floordiv", value, const(stride))
            parts[digit.axis].append(_times(value, digit.stride))
        coordinates, valid = {}, []
        for name, side in self._canvas.lengths.items():
            coordinate = _sum(parts[name])
            if self._room(name) > side:
                valid.append(apply("lt", coordinate, const(side)))
                coordinate = apply("min", coordinate, const(side - 1))
            coordinates[name] = coordinate
        every = reduce(lambda a, b: apply("and", a, b), valid) if valid else None
        return Place(self._canvas.position(coordinates), coordinates, every)

    def memory(self, position: Expr, length: int) -> Expr:
        if not self.permutes:
            return position
        coordinates = self._canvas.coordinates(position)
        parts, stride = [], self.padded(length)
        for digit in self.digits:
            stride //= digit.base
            if digit.base == 1:
                continue
            value = coordinates[digit.axis]
            value = value if digit.stride == 1 else apply("floordiv", value, const(digit.stride))
            if digit.stride * digit.base < self._room(digit.axis):
                value = apply("mod", value, const(digit.base))
            parts.append(_times(value, stride))
        return _sum(parts)

    def _room(self, axis: str) -> int:
        """Coordinates that the digits of an axis can write."""
        return prod(digit.base for digit in self.digits if digit.axis == axis)


def _times(value: Expr, factor: int) -> Expr:
    return value if factor == 1 else apply("mul", value, const(factor))


def _sum(parts: list[Expr]) -> Expr:
    return reduce(lambda a, b: apply("add", a, b), parts) if parts else const(0)


@dataclass(frozen=True, repr=False)
class Tiled(Digits):
    """Tiles in row-major order of `axes`, tokens row-major inside a tile, edge tiles padded.

    `tile`: sides of the (outermost) tiles in the order of `axes`; `inner`: those of the tiles inside, outermost first.
    """

    axes: tuple[str, ...] = ()
    tile: tuple[int, ...] = ()
    inner: tuple[tuple[int, ...], ...] = ()

    @property
    def digits(self) -> list[Digit]:
        room = [-(-self._canvas.lengths[name] // side) * side for name, side in zip(self.axes, self.tile, strict=True)]
        ones = (1,) * len(self.axes)
        return [
            Digit(name, side, whole // side)
            for outer, sides in zip((room, self.tile, *self.inner), (self.tile, *self.inner, ones), strict=True)
            for name, whole, side in zip(self.axes, outer, sides, strict=True)
        ]

    @property
    def permutes(self) -> bool:
        return self.axes != self._canvas.names or (len(self.axes) > 1 and any(side > 1 for side in self.tile))

    def __str__(self) -> str:
        if all(side == 1 for side in self.tile):
            same = self.axes == getattr(self.canvas, "names", None)
            return "row_major" if same else f"axes({', '.join(self.axes)})"
        if not self.inner:
            return f"tiled({_sides(self.axes, self.tile, '=')})"
        tiles = (f"{{{_sides(self.axes, each, ': ')}}}" for each in (self.tile, *self.inner))
        return f"tiled({', '.join(tiles)})"


@dataclass(frozen=True, repr=False)
class Dilated(Digits):
    """Residue classes by `dilation` together, row-major among them and inside each."""

    dilation: tuple[int, ...] = ()

    @property
    def digits(self) -> list[Digit]:
        sides = self._canvas.axes
        each = [(name, length, min(step, length)) for (name, length), step in zip(sides, self.dilation, strict=True)]
        residues = [Digit(name, 1, step) for name, _, step in each]
        return residues + [Digit(name, step, -(-length // step)) for name, length, step in each]

    @property
    def permutes(self) -> bool:
        return any(1 < step < length for step, (_, length) in zip(self.dilation, self._canvas.axes, strict=True))

    def __str__(self) -> str:
        names = self.canvas.names if self.canvas else ()
        return f"dilated({_sides(names, self.dilation, '=')})"


def _sides(names: tuple[str, ...], values: tuple[int, ...], equals: str) -> str:
    return ", ".join(f"{name}{equals}{value}" for name, value in zip(names, values, strict=True))


def row_major(canvas: Canvas) -> Order:
    """Tokens in the canvas' own axis order, the last axis fastest: memory is logical order.

    canvas: the canvas.

    Raises FS033 (no canvas).
    """
    names = canvas_of(canvas, "row_major").names
    return Tiled(canvas, names, (1,) * len(names))


def axes(canvas: Canvas, *names: str) -> Order:
    """Tokens row-major after permuting the axes, e.g. `axes(video, "h", "w", "t")`.

    canvas: the canvas.
    names: each of its axes once, slowest first.

    Source: PAROAttention. Raises FS033.
    """
    if sorted(names) != sorted(canvas_of(canvas, "axes").names):
        message = f"axes are {', '.join(map(str, names)) or 'not given'}; the canvas has {', '.join(canvas.names)}"
        some = ", ".join(f'"{name}"' for name in reversed(canvas.names))
        raise FlexSpecError("FS033", message, fix=f"name each axis once: axes(canvas, {some})", where=user_caret())
    return Tiled(canvas, tuple(names), (1,) * len(names))


def tiled(canvas: Canvas, *tiles: Any, **sides: int) -> Order:
    """Tiles in row-major order, tokens row-major inside a tile: `tiled(video, t=6, h=8, w=8)`.

    canvas: the canvas.
    tiles: instead of sides by name, one number for all axes, or a dict by axis name; several are tiles of tiles,
        outermost first, where the inner sides divide the outer ones.
    sides: tokens of a tile along each axis, one where an axis is not named. They need not divide the canvas: edge
        tiles are padded, and padding attends to nothing.

    Source: Sliding Tile Attention; tiles of tiles: a kernel's tile inside a larger one for its cache. Raises FS011,
    FS033.

    >>> tiled(Canvas(h=2, w=4), h=2, w=2).permutation(8).tolist()
    [0, 1, 4, 5, 2, 3, 6, 7]
    >>> tiled(Canvas(h=4, w=4), 4, dict(h=2, w=2)).permutation(16).tolist()
    [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    """
    canvas = canvas_of(canvas, "tiled")
    if tiles and sides:
        fix = "give tiles as dicts, or one by name"
        raise FlexSpecError("FS033", "tiles are given twice", fix=fix, where=user_caret())
    levels = [_per_axis(canvas, tile, "tile", "the tile's side") for tile in tiles or (sides,)]
    for outer, inner in zip(levels, levels[1:], strict=False):
        for name, whole, side in zip(canvas.names, outer, inner, strict=True):
            if whole % side:
                message = f"the inner tile's side on `{name}` is {side}, the outer one's {whole}"
                raise FlexSpecError("FS033", message, fix="give one that divides it", where=user_caret())
    return Tiled(canvas, canvas.names, levels[0], tuple(levels[1:]))


def dilated(canvas: Canvas, dilation: Any = None, **steps: int) -> Order:
    """Tokens of one residue class together: `dilated(video, 2)`, or by axis, `dilated(video, h=2, w=3)`.

    Coordinates `x` of an axis with equal `x % dilation` are a class; classes stand in row-major order, and so do the
    tokens inside one. A neighborhood with this dilation is then a dense one in each class. Sides that do not divide are
    padded.

    canvas: the canvas.
    dilation: instead of steps by name, one number for all axes, or a dict by axis name.
    steps: classes of each axis, one where an axis is not named.

    Source: DiNA; of a plain sequence, see `striped`. Raises FS011, FS033.

    >>> dilated(Canvas(w=7), 3).permutation(7).tolist()
    [0, 3, 6, 1, 4, -1, 2, 5, -1]
    """
    canvas = canvas_of(canvas, "dilated")
    given: Any = steps if dilation is None else dilation
    if steps and dilation is not None:
        raise FlexSpecError("FS033", "the dilation is given twice", fix="give one number or axes", where=user_caret())
    return Dilated(canvas, _per_axis(canvas, given, "dilation", "the dilation"))


def _per_axis(canvas: Canvas, given: Any, name: str, what: str) -> tuple[int, ...]:
    """An integer of at least 1 for each axis, 1 where a mapping leaves one out. FS011, FS033."""
    chosen = canvas.per_axis(given, name, default=1)
    return tuple(whole_number(f"{what} on `{axis}`", value) for axis, value in chosen.items())
