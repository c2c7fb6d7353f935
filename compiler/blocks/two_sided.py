"""Loads that depend on both sides through indices of one side each, such as `table[b, h, q // 64, kv // 64]`.

Over a block such a load takes the values at {indices of the block's queries} x {indices of its keys}, and no other. So
its least and greatest values there are those of the table's rows, block by block, and then of the columns: exact, each
taken at a pair of the block, and found in time proportional to the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from flexspec.expr import Load

from ..evaluation.points import Array
from .intervals import Interval

WORK, FEW = 4, 1 << 22
"""Extremes of a table are looked for where that reads at most so many times its entries, and so many more."""


def axes_by_side(node: Load) -> dict[str, list[int]] | None:
    """The axes whose index depends on neither side (""), on `q` and on `kv`; None unless each depends on one at most,
    and some on each of the two.
    """
    axes: dict[str, list[int]] = {"": [], "q": [], "kv": []}
    for axis, part in enumerate(node.index):
        sides = part.names & {"q", "kv"}
        if len(sides) > 1:
            return None
        axes["".join(sides)].append(axis)
    return axes if axes["q"] and axes["kv"] else None


class Entries(NamedTuple):
    """Which entries along an axis the cells of a side read. Neighbouring cells that read the same one are a group.

    at: int64 [entries], distinct within a group, one group after the other. begin: int64 [groups], where each begins.
    group: int64 [cells]. most: entries of a group at most.
    """

    at: Array
    begin: Array
    group: Array
    most: int

    @property
    def ids(self) -> Array:
        """int64 [groups, most]: the entries of each group, its last one repeated."""
        last = np.append(self.begin[1:], len(self.at))[:, None] - 1
        return self.at[np.minimum(self.begin[:, None] + np.arange(self.most), last)]

    @property
    def work(self) -> int:
        return len(self.begin) * self.most

    def in_turn(self, count: int) -> bool:
        """Are they all entries of an axis, one after the other?"""
        return len(self.at) == count and bool((self.at == np.arange(count)).all())


def entries_of(at: Array, first: Array) -> Entries:
    """at: int64 [n], the entry that is read at each place. first: int64 [cells], where each cell's places begin."""
    cell = np.zeros(len(at), np.int64)
    cell[first[1:]] = 1
    count = int(at.max()) + 1
    keys = np.cumsum(cell) * count + at
    keys = keys[_changes(keys)]
    if (keys[1:] < keys[:-1]).any():
        keys = np.unique(keys)
    cell, at = np.divmod(keys, count)
    begin = np.flatnonzero(_changes(cell))
    several = np.diff(begin, append=len(at)) > 1
    fresh = _changes(at[begin]) | several
    fresh[1:] |= several[:-1]
    kept = ~np.isin(np.arange(len(at)), begin[~fresh])
    begin = np.cumsum(kept)[begin[fresh]] - 1
    return Entries(at[kept], begin, np.cumsum(fresh) - 1, int(np.diff(begin, append=int(kept.sum())).max()))


def _changes(values: Array) -> Array:
    """Where a value differs from the one before it; the first does."""
    fresh = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=fresh[1:])
    return fresh


def flat_index(parts: Sequence[Array], sizes: Sequence[int]) -> Array:
    """One index into several axes that are taken as one. An index below 0 counts from the back."""
    flat = np.zeros(1, np.int64)
    for part, size in zip(parts, sizes, strict=True):
        flat = flat * size + part.astype(np.int64) + size * (part < 0)
    return flat


class Level(NamedTuple):
    """Extremes by groups of boxes, [q groups, kv groups] each, and the group of each box of the two sides."""

    least: Array
    greatest: Array
    q: Array
    kv: Array


@dataclass(slots=True)
class TwoSided:
    """The extremes of one load over boxes of `2**level` cells.

    table: its tensor as [entries by q, entries by kv]. sides: which of them each cell reads.
    """

    table: Array
    sides: Mapping[str, Entries]
    levels: list[Level] = field(default_factory=list)

    def pays(self) -> bool:
        """Is its work proportional to the table?"""
        q, kv = self.sides["q"], self.sides["kv"]
        rows, columns = self.table.shape
        return min(_work(q, kv, columns), _work(kv, q, rows)) <= WORK * self.table.size + FEW

    def over(self, level: int, q_box: Array, kv_box: Array) -> Interval:
        """The interval on pairs of boxes, as they broadcast. One array twice where each is one value."""
        while len(self.levels) <= level:
            self.levels.append(self._next())
        least, greatest, q, kv = self.levels[level]
        lo = _picked(least, q, kv, q_box, kv_box)
        return lo, lo if greatest is least else _picked(greatest, q, kv, q_box, kv_box)

    def _next(self) -> Level:
        if not self.levels:
            return _level(self.table, self.table, self.sides)
        least, greatest, *groups = self.levels[-1]
        pairs = [entries_of(group, np.arange(0, len(group), 2)) for group in groups]
        return _level(least, greatest, dict(zip(("q", "kv"), pairs, strict=True)))


def _level(least: Array, greatest: Array, sides: Mapping[str, Entries]) -> Level:
    q, kv = sides["q"], sides["kv"]
    axes = (0, 1) if _work(q, kv, least.shape[1]) <= _work(kv, q, least.shape[0]) else (1, 0)
    for axis in axes:
        each = (q, kv)[axis]
        if least is greatest and each.most == 1:
            least = greatest = _along(np.minimum, least, each, axis)
        else:
            least, greatest = _along(np.minimum, least, each, axis), _along(np.maximum, greatest, each, axis)
    return Level(least, greatest, q.group, kv.group)


def _work(first: Entries, second: Entries, across: int) -> int:
    """Entries that are read where one side is reduced first. across: entries along the other."""
    return first.work * across + len(first.begin) * second.work


def _along(function: np.ufunc, table: Array, entries: Entries, axis: int) -> Array:
    """`function` of the entries of each group along an axis."""
    in_turn = entries.in_turn(table.shape[axis])
    if entries.most == 1:
        return table if in_turn else table.take(entries.at, axis)
    several = range(entries.most)
    if in_turn and entries.work == len(entries.at):
        every = [slice(start, None, entries.most) for start in several]
        parts = (table[:, each] if axis else table[each] for each in every)
    elif axis:
        return function.reduceat(table if in_turn else table.take(entries.at, 1), entries.begin, 1)
    else:  # reduceat along rows takes fifty times as long
        parts = (table[each] for each in entries.ids.T)
    result = next(parts).copy()
    for part in parts:
        function(result, part, out=result)
    return result


def _picked(table: Array, q: Array, kv: Array, q_box: Array, kv_box: Array) -> Array:
    if q_box.ndim == 2 and q_box.shape[1] == 1 and kv_box.ndim == 2 and kv_box.shape[0] == 1:  # rows by columns
        rows, columns = table[q[q_box[:, 0]]], kv[kv_box[0]]
        whole = len(columns) == table.shape[1] and bool((columns[1:] > columns[:-1]).all())
        return rows if whole else rows.take(columns, 1)
    picked: Array = table.reshape(-1)[q[q_box] * table.shape[1] + kv[kv_box]]
    return picked
