"""Bound an expression over many boxes of positions at once.

A side's blocks are its cells; neighbouring blocks in which the expression is the same constant are one cell. A box
spans `2**level` cells of queries and of keys. What depends on neither side is its value. What depends on one side only
is bounded once per row or column of boxes; where it loads from a tensor, by its minimum and maximum there. So is a load
by both sides whose indices depend on one side each. Any other load takes the range of a pyramid over its tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from flexspec.expr import Apply, Const, Expr, Load, Var, walk
from flexspec.ops import Type

from ..evaluation.points import MOST_POSITIONS, Array, evaluate_at, needed, of_no_side, one_sided
from .grid import Grid
from .intervals import Interval, as_interval, bound
from .runs import counting
from .tensor_ranges import TensorRanges, pairs
from .two_sided import TwoSided, axes_by_side, entries_of, flat_index


@dataclass(slots=True)
class Bounds:
    """Bounds of one expression over the boxes of one grid. `expr` holds no parameters, sizes, b or h any more."""

    expr: Expr
    grid: Grid
    tables: TensorRanges
    starts: dict[str, Array] = field(init=False)
    """First block of each cell of `q` and of `kv`, and one past the last block: int64 [cells + 1]."""
    values: dict[Expr, Interval] = field(init=False)
    """What depends on neither side."""
    _order: list[Expr] = field(init=False)
    _side: dict[Expr, str] = field(init=False)
    tabulated: dict[Load, TwoSided] = field(init=False)
    """Loads by both sides, each index by one."""
    _known: dict[tuple[Expr, int], Interval] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._side = one_sided(self.expr)
        self.values = {node: (value, value) for node, value in of_no_side(self.expr, self.tables.tensors).items()}
        self._order = needed(self.expr, self._side.keys() | self.values)
        self._side |= {node: node.name for node in self._order if isinstance(node, Var)}
        blocks = {"q": self.grid.q_blocks, "kv": self.grid.kv_blocks}
        self.starts = {name: np.arange(count + 1) for name, count in blocks.items()}
        for name in blocks:
            self._join_equal_blocks(name)
        loads = {node: self._two_sided(node) for node in self._order if isinstance(node, Load)}
        self.tabulated = {node: table for node, table in loads.items() if table is not None}
        self._order = needed(self.expr, self._side.keys() | self.values | self.tabulated.keys())

    def cells(self, name: str) -> int:
        return len(self.starts[name]) - 1

    def _join_equal_blocks(self, name: str) -> None:
        """Make one cell of neighbouring blocks in which all that is read of this side is the same constant.

        In such blocks the expression is one function of the other side's positions, so that all blocks of a cell have
        one kind, and a bound or a pair of the first holds for the others. Equal least and greatest values are not
        enough: two blocks may hold the same values at other places. A bare position differs from block to block, and
        then nothing is joined.
        """
        mine = [node for node, side in self._side.items() if side == name]
        if any(isinstance(node, Var) for node in mine):
            return
        fresh = np.zeros(self.cells(name), bool)
        fresh[0] = True
        for node in mine:
            lo, hi = self._of_side(node, 0)
            same = (lo[1:] == hi[1:]) & (lo[1:] == lo[:-1]) & (hi[1:] == hi[:-1])
            # 0.0 and -0.0 are equal, and what divides by them is not: a float zero joins nothing.
            fresh[1:] |= ~(same & (lo[1:] != 0)) if node.type > Type.INT else ~same
        first = np.flatnonzero(fresh)
        for node in mine:
            lo, hi = self._known[node, 0]
            self._known[node, 0] = (lo[first], hi[first])
        self.starts[name] = np.append(first, len(fresh))

    def over(self, level: int, q_box: Array, kv_box: Array) -> Interval:
        """The interval of the expression on each box: `q_box`, `kv_box` int64, box numbers at `level`, broadcast."""
        lo, hi = self.all_over(level, q_box, kv_box)[self.expr]
        shape = np.broadcast_shapes(q_box.shape, kv_box.shape)
        return np.broadcast_to(lo, shape), np.broadcast_to(hi, shape)

    def all_over(self, level: int, q_box: Array, kv_box: Array) -> dict[Expr, Interval]:
        """As `over`, for every node that is bounded, in shapes that broadcast."""
        return spread(self._order, self._known_over(level, q_box, kv_box), self.tables.over)

    def _known_over(self, level: int, q_box: Array, kv_box: Array) -> dict[Expr, Interval]:
        """What no other node is needed for: values, parts of one side, tabulated loads."""
        boxes = {"q": q_box, "kv": kv_box}
        known = dict(self.values)
        for node, name in self._side.items():
            lo, hi = self._of_side(node, level)
            known[node] = (lo[boxes[name]], hi[boxes[name]])
        for load, table in self.tabulated.items():
            known[load] = as_interval(table.over(level, q_box, kv_box), load.type)
        return known

    def shown(self, q_cell: Array, kv_cell: Array) -> tuple[Array, Array]:
        """Do bounds show a pair of a cell that is kept, and one that is dropped? bool [cells] each.

        A tabulated load takes its least value at a pair of the cell, and its greatest at one. Where the expression is
        decided by that value, whatever else there is, it is decided at that pair.
        """
        kept, dropped = np.zeros((2, len(q_cell)), bool)
        known = self._known_over(0, q_cell, kv_cell)
        for load in self.tabulated:
            for end in known[load]:
                surely, possibly = spread(self._order, known | {load: (end, end)}, self.tables.over)[self.expr]
                kept |= surely
                dropped |= ~possibly
        return kept, dropped

    def _two_sided(self, node: Load) -> TwoSided | None:
        """The extremes of a load by both sides, cell by cell; None where they are not found by its indices alone."""
        axes = axes_by_side(node)
        if axes is None:
            return None
        tensor, sides = self.tables.tensors[node.input.name], {}
        for name in ("q", "kv"):
            places = self._places([node.index[axis] for axis in axes[name]], name)
            if places is None:
                return None
            indices, first = places
            sides[name] = entries_of(flat_index(indices, [tensor.shape[axis] for axis in axes[name]]), first)
        fixed = {axis: self._value(node.index[axis]) for axis in axes[""]}
        part = tensor[tuple(fixed.get(axis, slice(None)) for axis in range(tensor.ndim))]
        places_of = sorted(axes["q"] + axes["kv"])
        table = part.transpose([places_of.index(axis) for axis in axes["q"] + axes["kv"]])
        rows = int(np.prod(table.shape[: len(axes["q"])]))
        made = TwoSided(table.reshape(rows, -1), sides)
        return made if made.pays() else None

    def _value(self, node: Expr) -> int:
        return int(node.value if isinstance(node, Const) else self.values[node][0].item())

    def _places(self, nodes: list[Expr], name: str) -> tuple[list[Array], Array] | None:
        """Values of one-sided nodes, [n] each, at one place of each cell where that is all, else at all positions of
        its first block; and where each cell's places begin. None where these are too many.
        """
        intervals = [self._of_side(node, 0) for node in nodes]
        if all(np.array_equal(lo, hi) for lo, hi in intervals):
            return [lo for lo, _ in intervals], np.arange(self.cells(name))
        length, block = self.grid.side(name)
        low = self.starts[name][:-1] * block
        size = np.minimum(length - low, block)
        if size.sum() > MOST_POSITIONS:
            return None
        positions = {name: counting(low, size)}
        return [evaluate_at(node, positions, self.tables.tensors) for node in nodes], np.cumsum(size) - size

    def _of_side(self, node: Expr, level: int) -> Interval:
        """The interval of a one-sided expression on every box of a level: exact where it loads from a tensor."""
        if (node, level) in self._known:
            return self._known[node, level]
        name = self._side[node]
        if not any(isinstance(part, Load) for part in walk(node)):
            positions = self._positions(name, level)
            inside = self.values | {part: positions for part in walk(node) if isinstance(part, Var)}
            interval = spread(needed(node, self.values), inside, self.tables.over)[node]
        elif level == 0:
            interval = self.tables.by_block(node, name, *self.grid.side(name))
        else:
            lo, hi = self._of_side(node, level - 1)
            interval = (pairs(np.minimum, lo), pairs(np.maximum, hi))
        self._known[node, level] = interval
        return interval

    def _positions(self, name: str, level: int) -> Interval:
        """First and last position of every box of a side."""
        length, block = self.grid.side(name)
        starts = self.starts[name]
        first = starts[: -1 : 1 << level] * block
        return first, np.append(first[1:], length) - 1


def spread(
    order: Iterable[Expr], known: Mapping[Expr, Interval], load: Callable[[Load, list[Interval]], Interval]
) -> dict[Expr, Interval]:
    """Intervals of the nodes of `order` (children first) from those of its positions and other known nodes."""
    done = dict(known)
    with np.errstate(all="ignore"):
        for node in order:
            if node in known:
                continue
            if isinstance(node, Const):
                value = np.asarray([node.value], dtype=node.type.numpy)
                done[node] = (value, value)
            elif isinstance(node, Load):
                done[node] = load(node, [done[part] for part in node.index])
            elif isinstance(node, Apply):
                types = tuple(arg.type for arg in node.args)
                done[node] = bound(node.op, [done[arg] for arg in node.args], types)
    return done
