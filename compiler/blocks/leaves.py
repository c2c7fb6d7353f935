"""Settle single blocks that bounds leave open: by witnesses, then by boxes inside the block, last pair by pair.

The answer is exact, because only two things are believed: a pair that was evaluated, and a box that bounds decide.
PARTIAL needs one pair kept and one dropped, and both are shown. FULL needs that nothing is dropped: every pair of the
block then lay in a box that is surely kept, or was evaluated and kept; and EMPTY likewise. Witnesses and the order in
which boxes are taken save work, and cannot change the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flexspec.expr import Expr, Var

from ..evaluation.points import Array, Columns, along, evaluate_at, needed, one_sided
from .alike import Alike
from .bounds import Bounds, spread
from .runs import BlockKind
from .tensor_ranges import pairs

CHUNK = 1 << 17
"""Pairs or boxes that are worked on at once: their arrays stay in the processor's cache."""
_LEAF = 8
"""Side of the boxes inside a block that are evaluated pair by pair."""
_APART = 11
"""Of so many undecided boxes inside a block one is evaluated before the others."""
_BLOCKS = 1024
_FEW = 64
"""From so many open blocks on it pays to look for blocks that are alike."""
_ROUNDS = 3
_STEPS = (0.7548776662466927, 0.5698402909980532)
"""Multiples of these, modulo 1, spread evenly over a square (the R2 sequence, Martin Roberts 2018)."""


@dataclass(slots=True)
class Settled:
    """What is known of some blocks: does one pair of it stay, does one go?"""

    kept: Array
    dropped: Array

    def kinds(self) -> Array:
        """uint8 of BlockKind, once every block is known."""
        some = np.where(self.dropped, np.uint8(BlockKind.PARTIAL), np.uint8(BlockKind.FULL))
        return np.where(self.kept, some, np.uint8(BlockKind.EMPTY))

    def open(self) -> Array:
        return ~(self.kept & self.dropped)


class Leaves:
    """Single cells of one expression on one grid: the first block of a cell stands for all."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds, self.expr, self.grid, self.tables = bounds, bounds.expr, bounds.grid, bounds.tables
        self._columns: Columns = {}

    def settle(self, q_cell: Array, kv_cell: Array) -> tuple[Array, int]:
        """The kinds of cells, uint8 [n], and how many of them needed more than witnesses."""
        q_block, kv_block = self.bounds.starts["q"][q_cell], self.bounds.starts["kv"][kv_cell]
        seen = Settled(*np.zeros((2, len(q_block)), bool))
        columns = self._known_columns(len(q_block))
        for chunk in chunks(len(q_block), 1) if self.bounds.tabulated else ():
            seen.kept[chunk], seen.dropped[chunk] = self.bounds.shown(q_cell[chunk], kv_cell[chunk])
        left = np.flatnonzero(seen.open())
        for places in _witnesses():
            for chunk in chunks(len(left), places.shape[1]):
                some = left[chunk]
                blocks = {"q": q_block[some], "kv": kv_block[some]}
                positions = {name: self._at(name, blocks[name], places[side]) for side, name in enumerate(blocks)}
                stays = _evaluate(self.expr, self.tables.tensors, positions, columns)
                seen.kept[some] |= stays.any(0)
                seen.dropped[some] |= ~stays.all(0)
            left = left[seen.open()[left]]
        first, class_of = self._alike(q_cell[left], kv_cell[left])
        chosen = left[first]
        for chunk in chunks(len(chosen), CHUNK // _BLOCKS):
            some = chosen[chunk]
            settled = _Inside(self.bounds, q_block[some], kv_block[some]).settle()
            seen.kept[some], seen.dropped[some] = settled.kept, settled.dropped
        seen.kept[left], seen.dropped[left] = seen.kept[chosen[class_of]], seen.dropped[chosen[class_of]]
        return seen.kinds(), len(chosen)

    def _alike(self, q_cell: Array, kv_cell: Array) -> tuple[Array, Array]:
        """The first cell of each class of cells that are alike, and the class of each cell."""
        if len(q_cell) < _FEW:
            return np.arange(len(q_cell)), np.arange(len(q_cell))
        corner, sizes = {}, []
        for name, cell in (("q", q_cell), ("kv", kv_cell)):
            length, size = self.grid.side(name)
            corner[name] = self.bounds.starts[name][cell] * size
            sizes.append(np.minimum(length - corner[name], size))
        classes = Alike(corner, self.bounds.all_over(0, q_cell, kv_cell)).classes(self.expr, sizes)
        _, first, class_of = np.unique(classes, return_index=True, return_inverse=True)
        return first, class_of

    def _known_columns(self, blocks: int) -> Columns:
        """One side's values at every position beforehand, once so many blocks are looked at that it pays."""
        grid = self.grid
        if not self._columns and blocks * 8 > grid.q_len + grid.kv_len:
            for node, side in one_sided(self.expr).items():
                values = along(node, side, grid.side(side)[0], self.tables.tensors)
                self._columns[node] = (side, _small(values))
        return self._columns

    def _at(self, name: str, block: Array, places: Array) -> Array:
        """Positions [places, blocks]."""
        length, size = self.grid.side(name)
        low = block * size
        last = np.minimum(low + size, length) - 1
        return low + np.rint(places[:, None] * (last - low)).astype(np.int64)


def _small(values: Array) -> Array:
    """Integers in the least type that holds them: they are picked at random places, from the cache if they fit."""
    if values.dtype != np.int64:
        return values
    least, most = values.min(), values.max()
    fits = (
        kind for kind in (np.int8, np.int16, np.int32) if np.iinfo(kind).min <= least and most <= np.iinfo(kind).max
    )
    return values.astype(next(fits, np.int64), copy=False)


def _witnesses() -> list[Array]:
    """Places inside a block as fractions, [2, places] a round: corners and centre, then an even scatter."""
    corners = np.array([[0.0, 0.0, 1.0, 1.0, 0.5], [0.0, 1.0, 0.0, 1.0, 0.5]])
    scatter = np.outer(_STEPS, np.arange(1, 1 + 6 * (_ROUNDS - 1))) % 1
    return [corners, *np.split(scatter, _ROUNDS - 1, axis=1)]


def _evaluate(expr: Expr, tensors: Mapping[str, Array], positions: Mapping[str, Array], columns: Columns) -> Array:
    kept = evaluate_at(expr, positions, tensors, columns)
    return np.broadcast_to(kept, np.broadcast_shapes(*(side.shape for side in positions.values())))


def chunks(count: int, size: int) -> list[slice]:
    step = max(1, CHUNK // size)
    return [slice(start, start + step) for start in range(0, count, step)]


class _Extremes(NamedTuple):
    """The least and greatest value of a one-sided node in every box of one level."""

    node: Expr
    side: str
    least: Array
    greatest: Array


class _Inside:
    """The boxes inside some blocks, each halved on both sides from level to level, down to `_LEAF`.

    What depends on one side only is known at every position there, and so are its least and greatest values in
    every box. A block's positions are stretched to a power of two by repeating its last one: pairs are asked for
    twice, and none is added or left out.
    """

    def __init__(self, bounds: Bounds, q_block: Array, kv_block: Array) -> None:
        self.expr, self.tables, self.values = bounds.expr, bounds.tables, bounds.values
        self.side = one_sided(self.expr)
        self.order = needed(self.expr, self.side.keys() | self.values)
        self.side |= {node: node.name for node in self.order if isinstance(node, Var)}
        self.block, self.leaf, self.halvings = {}, {}, {}
        positions = {}
        for name, blocks in (("q", q_block), ("kv", kv_block)):
            length, size = bounds.grid.side(name)
            stretched = 1 << (size - 1).bit_length()
            self.leaf[name] = min(_LEAF, stretched)
            self.halvings[name] = (stretched // self.leaf[name]).bit_length() - 1
            unique, self.block[name] = np.unique(blocks, return_inverse=True)
            inside = np.minimum(np.arange(stretched), size - 1)
            positions[name] = {name: np.minimum(unique[:, None] * size + inside, length - 1).reshape(-1)}
        self.columns: Columns = {
            node: (name, evaluate_at(node, positions[name], self.tables.tensors)) for node, name in self.side.items()
        }

    def settle(self) -> Settled:
        top = max(self.halvings.values())
        extremes = self._extremes(top)
        box, owner = self.block, np.arange(len(self.block["q"]))
        seen = Settled(*np.zeros((2, len(owner)), bool))
        for level in range(top, -1, -1):
            known = {node: (lo[box[side]], hi[box[side]]) for node, side, lo, hi in extremes[level]}
            ends = spread(self.order, self.values | known, self.tables.over)[self.expr]
            surely, possibly = (np.broadcast_to(end, owner.shape) for end in ends)
            seen.kept[owner[surely]] = True
            seen.dropped[owner[~possibly]] = True
            left = np.flatnonzero(possibly & ~surely & seen.open()[owner])
            if level:
                self._middles(level, {name: boxes[left] for name, boxes in box.items()}, owner[left], seen)
                left = left[seen.open()[owner[left]]]
            box, owner = {name: boxes[left] for name, boxes in box.items()}, owner[left]
            if level:
                box, owner = self._halves(level, box, owner)
        self._pair_by_pair(box, owner, seen)
        return seen

    def _middles(self, level: int, box: dict[str, Array], owner: Array, seen: Settled) -> None:
        """One pair of each box, which is cheaper than its bounds: of a partial block some soon disagree."""
        sides = {name: self.leaf[name] << min(level, self.halvings[name]) for name in box}
        places = {name: boxes * sides[name] + sides[name] // 2 for name, boxes in box.items()}
        stays = _evaluate(self.expr, self.tables.tensors, places, self.columns)
        seen.kept[owner[stays]] = True
        seen.dropped[owner[~stays]] = True

    def _extremes(self, top: int) -> list[list[_Extremes]]:
        """Of each one-sided node at each level, finest first."""
        levels: list[list[_Extremes]] = [[] for _ in range(top + 1)]
        for node, (name, values) in self.columns.items():
            parts = values.reshape(-1, self.leaf[name])
            lo, hi = parts.min(1), parts.max(1)
            for level in range(top + 1):
                if 0 < level <= self.halvings[name]:
                    lo, hi = pairs(np.minimum, lo), pairs(np.maximum, hi)
                levels[level].append(_Extremes(node, name, lo, hi))
        return levels

    def _halves(self, level: int, box: dict[str, Array], owner: Array) -> tuple[dict[str, Array], Array]:
        for name, halvings in self.halvings.items():
            if level <= halvings:
                other = "kv" if name == "q" else "q"
                halved = (2 * box[name][:, None] + np.arange(2)).reshape(-1)
                box, owner = {name: halved, other: np.repeat(box[other], 2)}, np.repeat(owner, 2)
        return box, owner

    def _pair_by_pair(self, box: dict[str, Array], owner: Array, seen: Settled) -> None:
        """Every pair of the boxes left; a few boxes of each block first, as these often show that it is partial."""
        number = np.arange(len(owner)) - np.searchsorted(owner, owner)  # of a box among its block's
        for now in (number % _APART == 0, number % _APART != 0):
            left = np.flatnonzero(now & seen.open()[owner])
            for chunk in chunks(len(left), self.leaf["q"] * self.leaf["kv"]):
                some = left[chunk]
                q, kv = (
                    box[name][some] * self.leaf[name] + np.arange(self.leaf[name])[:, None] for name in ("q", "kv")
                )
                stays = _evaluate(self.expr, self.tables.tensors, {"q": q[:, None], "kv": kv[None]}, self.columns)
                seen.kept[owner[some[stays.any((0, 1))]]] = True
                seen.dropped[owner[some[~stays.all((0, 1))]]] = True
