"""The answer of a classification: the non-empty blocks of a mask as runs along each row of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

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


class LooseRuns(NamedTuple):
    """Runs in any order: row of blocks, first kv-block, one past the last, kind; [runs] each."""

    row: Array
    start: Array
    stop: Array
    kind: Array


def counting(start: Array, size: Array) -> Array:
    """`start[i], start[i] + 1, ...`, `size[i]` numbers for each `i`, one after the other."""
    before = np.cumsum(size) - size
    return np.repeat(start - before, size) + np.arange(int(size.sum()))


def of_boxes(q: tuple[Array, Array], kv: tuple[Array, Array], kind: int) -> LooseRuns:
    """Boxes of blocks (first, one past the last on each side) as one run per row of blocks."""
    height = q[1] - q[0]
    kinds = np.full(int(height.sum()), kind, np.uint8)
    return LooseRuns(counting(q[0], height), np.repeat(kv[0], height), np.repeat(kv[1], height), kinds)


def merged(loose: Sequence[LooseRuns], q_blocks: int, kv_blocks: int) -> Runs:
    """Runs that do not overlap, in reading order, neighbours of one kind joined."""
    rows, start, stop, kind = (np.concatenate(parts) for parts in zip(*loose, strict=True))
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
    first = np.flatnonzero(fresh)  # places in reading order: a row begins afresh, so no run goes over its end
    kind = kinds.reshape(-1)[first]
    end = np.append(first[1:], rows * columns)
    kept = np.flatnonzero(kind)
    first, end, kind = first[kept], end[kept], kind[kept]
    row = first // columns
    start, stop = kv_start[first - row * columns], kv_start[end - row * columns]
    counts, height = np.bincount(row, minlength=rows), np.diff(q_start)
    if len(height) < q_start[-1] - q_start[0]:  # a row that stands for several is repeated
        again = counting(np.repeat(np.cumsum(counts) - counts, height), np.repeat(counts, height))
        start, stop, kind, counts = start[again], stop[again], kind[again], np.repeat(counts, height)
    return _packed(counts, start, stop, kind)


def stacked(parts: Sequence[Runs]) -> Runs:
    """The rows of several maps below each other."""
    counts = np.concatenate([np.diff(part.first) for part in parts])
    fields = zip(*((part.start, part.stop, part.kind) for part in parts), strict=True)
    return _packed(counts, *(np.concatenate(arrays) for arrays in fields))


def _packed(counts: Array, start: Array, stop: Array, kind: Array) -> Runs:
    """Runs in reading order; counts: how many each row has."""
    first = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=first[1:])
    return Runs(first, start.astype(np.int32), stop.astype(np.int32), kind)
