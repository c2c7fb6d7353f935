"""The answer of a classification: the non-empty blocks of a mask as runs along each row of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from ..evaluation.points import Array


class BlockKind(IntEnum):
    """What is known of a block: no pair kept, some kept, every existing pair kept."""

    EMPTY = 0
    PARTIAL = 1
    FULL = 2


@dataclass(frozen=True, slots=True)
class Runs:
    """The non-empty blocks of one (batch, head), as runs along each row of blocks.

    Row `i` has the runs `first[i]` to `first[i + 1]`; run `r` covers kv-blocks `start[r]` to `stop[r]` in `kind[r]`.
    int32 [q_blocks + 1], int32 [runs] twice, uint8 [runs]; runs of a row ascend and do not touch in the same kind.
    """

    first: Array
    start: Array
    stop: Array
    kind: Array

    def dense(self, kv_blocks: int) -> Array:
        """uint8 [q_blocks, kv_blocks] of BlockKind."""
        out = np.zeros((len(self.first) - 1, kv_blocks), np.uint8)
        rows, columns, kinds = self.blocks()
        out[rows, columns] = kinds
        return out

    def blocks(self) -> tuple[Array, Array, Array]:
        """Row, column and kind of every non-empty block, in reading order."""
        size = self.stop - self.start
        rows = np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))
        return np.repeat(rows, size), counting(self.start, size), np.repeat(self.kind, size)

    def counts(self) -> dict[BlockKind, int]:
        """Blocks of the two kinds that are stored."""
        size = (self.stop - self.start).astype(np.int64)
        return {kind: int(size[self.kind == kind].sum()) for kind in (BlockKind.PARTIAL, BlockKind.FULL)}

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.first, self.start, self.stop, self.kind))


Found = tuple[Array, Array, Array, Array]
"""Runs in any order: row of blocks, first kv-block, one past the last, kind."""


def counting(start: Array, size: Array) -> Array:
    """`start[i], start[i] + 1, ...`, `size[i]` numbers for each `i`, one after the other."""
    before = np.cumsum(size) - size
    return np.repeat(start - before, size) + np.arange(int(size.sum()))


def of_boxes(q: tuple[Array, Array], kv: tuple[Array, Array], kind: int) -> Found:
    """Boxes of blocks (first, one past the last on each side) as one run per row of blocks."""
    height = q[1] - q[0]
    kinds = np.full(int(height.sum()), kind, np.uint8)
    return counting(q[0], height), np.repeat(kv[0], height), np.repeat(kv[1], height), kinds


def merged(found: Sequence[Found], q_blocks: int, kv_blocks: int) -> Runs:
    """Runs in order, neighbours of one kind joined."""
    rows, start, stop, kind = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(rows * (kv_blocks + 1) + start, kind="stable")
    rows, start, stop, kind = rows[order], start[order], stop[order], kind[order]
    fresh = np.ones(len(rows), bool)
    fresh[1:] = (rows[1:] != rows[:-1]) | (start[1:] != stop[:-1]) | (kind[1:] != kind[:-1])
    heads = np.flatnonzero(fresh)
    ends = np.append(heads[1:], len(rows)) - 1 if len(rows) else heads
    return _packed(np.bincount(rows[heads], minlength=q_blocks), start[heads], stop[ends], kind[heads])


def of_table(kinds: Array, q_start: Array, kv_start: Array) -> Runs:
    """Runs of a table of kinds, uint8 [rows, columns]; row `i` stands for the rows of blocks `q_start[i]` to
    `q_start[i + 1]`, and so do columns.
    """
    rows, columns = kinds.shape
    fresh = np.ones((rows, columns), bool)
    np.not_equal(kinds[:, 1:], kinds[:, :-1], out=fresh[:, 1:])
    at = np.flatnonzero(fresh)
    kind = kinds.reshape(-1)[at]
    ends = np.append(at[1:], rows * columns)
    kept = np.flatnonzero(kind)
    at, ends, kind = at[kept], ends[kept], kind[kept]
    row = at // columns
    start, stop = kv_start[at - row * columns], kv_start[ends - row * columns]
    counts, height = np.bincount(row, minlength=rows), np.diff(q_start)
    if len(height) < q_start[-1] - q_start[0]:  # a row that stands for several is repeated
        again = counting(np.repeat(np.cumsum(counts) - counts, height), np.repeat(counts, height))
        start, stop, kind, counts = start[again], stop[again], kind[again], np.repeat(counts, height)
    return _packed(counts, start, stop, kind)


def stacked(parts: Sequence[Runs]) -> Runs:
    """The rows of several maps below each other."""
    counts = np.concatenate([np.diff(part.first) for part in parts])
    each = zip(*((part.start, part.stop, part.kind) for part in parts), strict=True)
    return _packed(counts, *(np.concatenate(arrays) for arrays in each))


def _packed(counts: Array, start: Array, stop: Array, kind: Array) -> Runs:
    first = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=first[1:])
    return Runs(first, start.astype(np.int32), stop.astype(np.int32), kind)
