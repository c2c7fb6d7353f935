"""Orders: where a token lies in memory. An order changes which blocks a mask fills, never what it means."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import torch

from .canvas import Canvas
from .errors import FlexSpecError, choices
from .evaluate import evaluate
from .expr import Expr, apply, const, substitute, var
from .source import user_caret


@dataclass(frozen=True)
class Place:
    """What an order says of a memory position: the logical position, its coordinates, and whether a token is there.

    `valid` is None where every position holds a token. Where it is false, the others are in range but meaningless.
    """

    logical: Expr
    coordinates: dict[str, Expr]
    valid: Expr | None


@dataclass(frozen=True)
class Order:
    """A bijection between logical positions and memory positions, with padding where sides do not divide.

    `place` is the order as an expression, `permutation` as a tensor; `apply` and `undo` move a tensor's tokens.
    """

    canvas: Canvas | None = None

    def padded(self, length: int) -> int:
        """Memory positions that `length` tokens take."""
        raise NotImplementedError

    def place(self, position: Expr, length: int) -> Place:
        """The token at a memory position, of `length` tokens."""
        raise NotImplementedError

    def check(self, length: int) -> None:
        """FS033 where the order is of a canvas of another size."""
        if self.canvas is not None and self.canvas.size != length:
            message = f"the order is of {self.canvas} with {self.canvas.size:,} tokens; the length is {length:,}"
            raise FlexSpecError("FS033", message, where=user_caret())

    def permutation(self, length: int) -> torch.Tensor:
        """int64 [padded]: the logical position of each memory position, -1 where there is padding."""
        self.check(length)
        at = {"m": torch.arange(self.padded(length))}
        found = self.place(var("m"), length)
        logical = evaluate(found.logical, at).expand(self.padded(length))
        if found.valid is None:
            return logical.clone()
        return torch.where(evaluate(found.valid, at), logical, -1)

    def apply(self, x: torch.Tensor, dim: int = -2) -> torch.Tensor:
        """Tokens of `x` along `dim` in memory order, padding zero. Differentiable."""
        source = self.permutation(x.shape[dim]).to(x.device)
        moved = x.index_select(dim, source.clamp(min=0))
        shape = [1] * x.dim()
        shape[dim] = -1
        return moved if bool((source >= 0).all()) else moved * (source >= 0).view(shape).to(x.dtype)

    def undo(self, x: torch.Tensor, length: int | None = None, dim: int = -2) -> torch.Tensor:
        """The inverse of `apply`: `x` along `dim` back in logical order, padding dropped.

        `length`: tokens without padding; it may be left out where the order has a canvas or pads nothing.
        """
        length = length or (self.canvas.size if self.canvas else x.shape[dim])
        source = self.permutation(length).to(x.device)
        if len(source) != x.shape[dim]:
            message = f"{length:,} tokens take {len(source):,} places in this order, dim {dim} has {x.shape[dim]:,}"
            raise FlexSpecError("FS033", message, where=user_caret())
        target = torch.empty(length, dtype=torch.int64, device=x.device)
        kept = source >= 0
        target[source[kept]] = torch.arange(len(source), device=x.device)[kept]
        return x.index_select(dim, target)


@dataclass(frozen=True)
class Tiled(Order):
    """Tiles in row-major order of `axes`, tokens row-major inside a tile, edge tiles padded."""

    axes: tuple[str, ...] = ()
    tile: tuple[int, ...] = ()

    def _counts(self) -> list[int]:
        assert self.canvas is not None
        return [-(-self.canvas.lengths[name] // side) for name, side in zip(self.axes, self.tile, strict=True)]

    def padded(self, length: int) -> int:
        return prod(self._counts()) * prod(self.tile) if self.permutes else length

    def place(self, position: Expr, length: int) -> Place:
        assert self.canvas is not None
        if not self.permutes:
            return Place(position, self.canvas.coordinates(position), None)
        volume = prod(self.tile)
        outer = Canvas(**dict(zip(self.axes, self._counts(), strict=True)))
        inner = Canvas(**dict(zip(self.axes, self.tile, strict=True)))
        tiles = outer.coordinates(apply("floordiv", position, const(volume)) if volume > 1 else position)
        inside = inner.coordinates(apply("mod", position, const(volume)))
        found, valid = {}, []
        for name, side in zip(self.axes, self.tile, strict=True):
            at = tiles[name]
            if side > 1:
                at = apply("add", apply("mul", at, const(side)), inside[name])
            length = self.canvas.lengths[name]
            if length % side:
                valid.append(apply("lt", at, const(length)))
                at = apply("min", at, const(length - 1))
            found[name] = at
        every = reduce(lambda a, b: apply("and", a, b), valid) if valid else None
        return Place(self.canvas.position(found), found, every)

    @property
    def permutes(self) -> bool:
        """Does it differ from row-major?"""
        assert self.canvas is not None
        return self.axes != self.canvas.names or (len(self.axes) > 1 and any(side > 1 for side in self.tile))

    def __str__(self) -> str:
        if all(side == 1 for side in self.tile):
            same = self.axes == getattr(self.canvas, "names", None)
            return "row_major" if same else f"axes({', '.join(self.axes)})"
        sides = zip(self.axes, self.tile, strict=True)
        return f"tiled({', '.join(f'{name}={side}' for name, side in sides)})"


@dataclass(frozen=True)
class Striped(Order):
    """Token `i` lives on rank `i % ranks`; each rank's tokens lie together."""

    ranks: int = 1

    def padded(self, length: int) -> int:
        return -(-length // self.ranks) * self.ranks

    def place(self, position: Expr, length: int) -> Place:
        share = const(self.padded(length) // self.ranks)
        inside = apply("mul", apply("mod", position, share), const(self.ranks))
        logical: Expr = apply("add", inside, apply("floordiv", position, share))
        valid = None
        if length % self.ranks:
            valid = apply("lt", logical, const(length))
            logical = apply("min", logical, const(length - 1))
        return Place(logical, {}, valid)

    def __str__(self) -> str:
        return f"striped({self.ranks})"


def _canvas(canvas: object, what: str) -> Canvas:
    if not isinstance(canvas, Canvas):
        message = f"{what} needs a canvas, got {type(canvas).__name__}"
        raise FlexSpecError("FS033", message, fix=f"{what}(fs.Canvas(h=48, w=80), ...)", where=user_caret())
    return canvas


def row_major(canvas: Canvas) -> Order:
    """Tokens in the canvas' own axis order, the last axis fastest: memory is logical order."""
    names = _canvas(canvas, "row_major").names
    return Tiled(canvas, names, (1,) * len(names))


def axes(canvas: Canvas, *names: str) -> Order:
    """Tokens row-major after permuting the axes, e.g. `axes(video, "h", "w", "t")`. Source: PAROAttention."""
    if sorted(names) != sorted(_canvas(canvas, "axes").names):
        message = f"axes are {choices(names)}; the canvas has {choices(canvas.names)}"
        raise FlexSpecError("FS033", message, fix="name each axis once", where=user_caret())
    return Tiled(canvas, tuple(names), (1,) * len(names))


def tiled(canvas: Canvas, tile: Any = None, **sides: int) -> Order:
    """Tiles in row-major order, tokens row-major inside a tile: `tiled(video, t=6, h=8, w=8)`.

    Axes not named have tiles of one token. Sides need not divide the canvas: edge tiles are padded, and padding
    attends to nothing. Source: Sliding Tile Attention.
    """
    canvas = _canvas(canvas, "tiled")
    given = canvas.per_axis(tile, "tile") if tile is not None else sides
    chosen = canvas.per_axis(given, "tile", default=1)
    for name, side in chosen.items():
        if isinstance(side, bool) or not isinstance(side, int) or side < 1:
            message = f"the tile's side on `{name}` is {side!r}"
            raise FlexSpecError("FS033", message, fix="give an integer of at least 1", where=user_caret())
    return Tiled(canvas, canvas.names, tuple(chosen.values()))


def striped(ranks: int) -> Order:
    """Token `i` on rank `i % ranks`, ranks one after the other. Source: Striped Attention."""
    if isinstance(ranks, bool) or not isinstance(ranks, int) or ranks < 1:
        message = f"ranks is {ranks!r}"
        raise FlexSpecError("FS033", message, fix="give an integer of at least 1", where=user_caret())
    return Striped(None, ranks)


def in_memory(expr: Expr, order: Order | None, canvas: Canvas | None, q_len: int, kv_len: int) -> Expr:
    """A mask's expression over memory positions; padding is not kept."""
    valid = [] if order is None else [order.place(var(s), n).valid for s, n in (("q", q_len), ("kv", kv_len))]
    parts = [*(part for part in valid if part is not None), relocate(expr, order, canvas, q_len, kv_len)]
    return reduce(lambda a, b: apply("and", a, b), parts)


def relocate(expr: Expr, order: Order | None, canvas: Canvas | None, q_len: int, kv_len: int) -> Expr:
    """An expression over memory positions: logical positions and coordinates written by the order. FS033."""
    if order is None:
        return flatten(expr, canvas)
    values: dict[str, Expr] = {}
    for side, length in (("q", q_len), ("kv", kv_len)):
        order.check(length)
        found = order.place(var(side), length)
        at = found.coordinates if canvas == order.canvas else {}
        if canvas and not at:
            at = canvas.coordinates(found.logical)
        values |= {side: found.logical} | {f"{side}.{name}": part for name, part in at.items()}
    return substitute(expr, values)


def flatten(expr: Expr, canvas: Canvas | None) -> Expr:
    """`expr` with coordinates written as arithmetic on row-major positions."""
    if canvas is None:
        return expr
    values = {f"{side}.{name}": part for side in ("q", "kv") for name, part in canvas.coordinates(var(side)).items()}
    return substitute(expr, values)
