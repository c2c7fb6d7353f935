"""Exact counts of blocks by row, for many block sizes at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np

from ..blocks.runs import BlockKind, Runs
from ..evaluation.points import Array


class Totals(NamedTuple):
    """Blocks of a whole map that are computed, by their kind."""

    partial: int
    full: int


@dataclass(frozen=True)
class BlockCounts:
    """How many blocks each row of blocks has.

    kept: int64 [q_blocks], those that are not empty. full: int64 [q_blocks], of these the full ones.
    """

    kept: Array
    full: Array

    @property
    def totals(self) -> Totals:
        """Over all rows."""
        full = int(self.full.sum())
        return Totals(int(self.kept.sum()) - full, full)


def of_runs(runs: Runs) -> BlockCounts:
    """The rows of a classification, whose runs are not empty."""
    blocks = (runs.stop - runs.start).astype(np.int64)
    q_blocks = len(runs.first) - 1
    row = np.repeat(np.arange(q_blocks), np.diff(runs.first))
    full = runs.kind == BlockKind.FULL
    return BlockCounts(_by_row(row, blocks, q_blocks), _by_row(row[full], blocks[full], q_blocks))


def _by_row(row: Array, blocks: Array, q_blocks: int) -> Array:
    return np.bincount(row, blocks, q_blocks).astype(np.int64)


def coarser(kinds: Array, times: tuple[int, int]) -> BlockCounts:
    """The rows of the same mask in blocks that are `times` as long, from its kinds, uint8 [q_blocks, kv_blocks].

    A block is empty where all its parts are, and full where all are.
    """
    # EMPTY, PARTIAL and FULL ascend, so the largest kind says whether any part is kept, and the least whether all are
    # full. What pads a ragged edge is neutral: EMPTY (0) for the largest, FULL for the least.
    padding = [(0, -size % step) for size, step in zip(kinds.shape, times, strict=True)]
    largest = _joined(np.pad(kinds, padding), times, np.maximum)
    least = _joined(np.pad(kinds, padding, constant_values=BlockKind.FULL), times, np.minimum)
    return BlockCounts((largest > BlockKind.EMPTY).sum(1), (least == BlockKind.FULL).sum(1))


def _joined(kinds: Array, times: tuple[int, int], function: np.ufunc) -> Array:
    """`function` over the kinds in each `times[0]` x `times[1]` blocks."""
    by_column: Array = reduce(function, (kinds[:, offset :: times[1]] for offset in range(times[1])))
    joined: Array = reduce(function, (by_column[offset :: times[0]] for offset in range(times[0])))
    return joined
