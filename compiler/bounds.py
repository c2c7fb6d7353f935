"""Bound an expression over many boxes of positions at once.

A box is a block of a grid level: at level `n` it spans `2**n` blocks of queries and of keys. What depends on one side
only is bounded once per row or column of boxes; where it loads from a tensor, by its minimum and maximum there. Any
other load takes the range of a pyramid over its tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from flexspec.expr import Apply, Const, Expr, Load, Var, walk
from flexspec.ops import Type

from .intervals import Interval, bound
from .points import Array, evaluate_at, needed, one_sided


@dataclass(frozen=True, slots=True)
class Grid:
    """The blocks of one (batch, head): `q_len` by `kv_len` positions in blocks of `block_q` by `block_kv`."""

    q_len: int
    kv_len: int
    block_q: int
    block_kv: int

    @property
    def q_blocks(self) -> int:
        return -(-self.q_len // self.block_q)

    @property
    def kv_blocks(self) -> int:
        return -(-self.kv_len // self.block_kv)

    def side(self, name: str) -> tuple[int, int]:
        """Length and block size of the side `q` or `kv`."""
        return (self.q_len, self.block_q) if name == "q" else (self.kv_len, self.block_kv)


@dataclass(slots=True)
class Bounds:
    """Bounds of one expression over the boxes of one grid. `expr` holds no parameters, sizes, b or h any more."""

    expr: Expr
    grid: Grid
    tensors: Mapping[str, Array]
    _side: dict[Expr, str] = field(init=False)
    _order: list[Expr] = field(init=False)
    _cells: dict[tuple[Expr, int], Interval] = field(default_factory=dict)
    _pyramids: dict[str, list[Interval]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._side = one_sided(self.expr)
        self._order = needed(self.expr, self._side)

    def over(self, level: int, q_box: Array, kv_box: Array) -> Interval:
        """The interval of the expression on each box: `q_box`, `kv_box` int64 [n], box numbers at `level`."""
        lo, hi = self.all_over(level, q_box, kv_box)[self.expr]
        return np.broadcast_to(lo, q_box.shape), np.broadcast_to(hi, q_box.shape)

    def largest(self) -> int:
        """An upper limit of the size of any integer that the expression computes on the whole grid."""
        level = max(self.grid.q_blocks - 1, self.grid.kv_blocks - 1).bit_length()
        whole = replace(self)
        whole._side = {}  # also what stands below a tabulated node
        whole._order = list(walk(self.expr))
        found = whole.all_over(level, np.zeros(1, np.int64), np.zeros(1, np.int64))
        ends = [end for node, ends in found.items() if node.type is Type.INT for end in ends]
        return max((int(np.abs(end).max()) for end in ends), default=0)

    def all_over(self, level: int, q_box: Array, kv_box: Array) -> dict[Expr, Interval]:
        """As `over`, for every node that is bounded."""
        return self._run(self._order, level, {"q": q_box, "kv": kv_box}, self._side)

    def _run(
        self, order: list[Expr], level: int, boxes: Mapping[str, Array], tabulated: Mapping[Expr, str]
    ) -> dict[Expr, Interval]:
        done: dict[Expr, Interval] = {}
        with np.errstate(all="ignore"):
            for node in order:
                if isinstance(node, Const):
                    value = np.asarray([node.value], dtype=node.type.numpy)
                    done[node] = (value, value)
                elif isinstance(node, Var):
                    length, block = self.grid.side(node.name)
                    low = boxes[node.name] * (block << level)
                    done[node] = (low, np.minimum(low + (block << level), length) - 1)
                elif node in tabulated:
                    lo, hi = self._table(node, level)
                    box = boxes[tabulated[node]]
                    done[node] = (lo[box], hi[box])
                elif isinstance(node, Load):
                    done[node] = self._range(node, [done[part] for part in node.index])
                elif isinstance(node, Apply):
                    types = tuple(arg.type for arg in node.args)
                    done[node] = bound(node.op, [done[arg] for arg in node.args], types)
        return done

    def _table(self, node: Expr, level: int) -> Interval:
        """The interval of a one-sided expression on every box of a level: exact where it loads from a tensor."""
        if (node, level) in self._cells:
            return self._cells[node, level]
        name = self._side[node]
        length, block = self.grid.side(name)
        if not any(isinstance(part, Load) for part in walk(node)):
            boxes = np.arange(-(-length // (block << level)))
            lo, hi = self._run(needed(node, {}), level, {name: boxes}, {})[node]
            found = (np.broadcast_to(lo, boxes.shape), np.broadcast_to(hi, boxes.shape))
        elif level == 0:
            values = evaluate_at(node, {name: np.arange(length)}, self.tensors)
            starts = np.arange(0, length, block)
            found = (np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts))
        else:
            lo, hi = self._table(node, level - 1)
            found = (_pairs(np.minimum, lo, 0), _pairs(np.maximum, hi, 0))
        self._cells[node, level] = found
        return found

    def _range(self, node: Load, index: list[Interval]) -> Interval:
        """Minimum and maximum of a tensor over a box of indices, from a pyramid of its aligned cells."""
        tensor = self.tensors[node.input.name]
        if node.input.name not in self._pyramids:
            levels = [(tensor, tensor)]
            while max(levels[-1][0].shape, default=1) > 1:
                lo, hi = levels[-1]
                for axis in range(tensor.ndim):
                    lo, hi = _pairs(np.minimum, lo, axis), _pairs(np.maximum, hi, axis)
                levels.append((lo, hi))
            self._pyramids[node.input.name] = levels
        levels = self._pyramids[node.input.name]
        ends = [_within(part, size) for part, size in zip(index, tensor.shape, strict=True)]
        shape = np.broadcast_shapes(*(end.shape for pair in ends for end in pair))
        widest = np.max([np.broadcast_to(hi - lo, shape) for lo, hi in ends], axis=0)
        level_of = np.minimum(np.ceil(np.log2(widest + 1)).astype(np.int64), len(levels) - 1)
        low = np.empty(shape, tensor.dtype)
        high = np.empty(shape, tensor.dtype)
        for level in np.unique(level_of):
            at = level_of == level
            cells = [[np.broadcast_to(end, shape)[at] >> level for end in pair] for pair in ends]
            low[at], high[at] = _extremes(levels[level], cells)
        return low.astype(node.type.numpy), high.astype(node.type.numpy)


def _pairs(function: np.ufunc, values: Array, axis: int) -> Array:
    if values.shape[axis] == 1:
        return values
    result: Array = function.reduceat(values, np.arange(0, values.shape[axis], 2), axis=axis)
    return result


def _within(index: Interval, size: int) -> Interval:
    """An index range inside the tensor: negative ends count from the back, as torch's do; others are cut off."""
    lo, hi = (np.asarray(end, dtype=np.int64) for end in index)
    wraps = lo < 0
    low, high = np.where(wraps, 0, lo), np.where(wraps, size - 1, hi)
    return np.clip(low, 0, size - 1), np.clip(high, 0, size - 1)


def _extremes(level: Interval, cells: list[list[Array]]) -> Interval:
    """Minimum and maximum over the at most two cells that each axis' range touches."""
    lo, hi = level
    lows, highs = [], []
    for corner in range(2 ** len(cells)):
        where = tuple(cell[corner >> axis & 1] for axis, cell in enumerate(cells))
        lows.append(lo[where])
        highs.append(hi[where])
    return np.minimum.reduce(lows), np.maximum.reduce(highs)
