"""Exact counts of blocks by row, for many block sizes at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np

from ..blocks.runs import BlockKind, Runs
from ..evaluation.points import Array


@dataclass(frozen=True)
class Tally:
    """How many blocks each row of blocks has: int64 [q_blocks] that are not empty, and of these the full ones."""

    found: Array
    full: Array

    @property
    def counts(self) -> tuple[int, int]:
        """Partial and full blocks in all."""
        full = int(self.full.sum())
        return int(self.found.sum()) - full, full


def of_runs(runs: Runs) -> Tally:
    """The rows of a classification."""
    size = (runs.stop - runs.start).astype(np.int64)
    rows = len(runs.first) - 1
    row = np.repeat(np.arange(rows), np.diff(runs.first))
    full = runs.kind == BlockKind.FULL
    return Tally(*(np.bincount(row[at], size[at], rows).astype(np.int64) for at in (slice(None), full)))


def coarser(kinds: Array, times: tuple[int, int]) -> Tally:
    """The rows of the same mask in blocks that are `times` as long, from its kinds, uint8 [q_blocks, kv_blocks].

    A block is empty where all its parts are, and full where all are.
    """
    padding = [(0, -size % step) for size, step in zip(kinds.shape, times, strict=True)]
    most = _joined(np.pad(kinds, padding), times, np.maximum)
    least = _joined(np.pad(kinds, padding, constant_values=BlockKind.FULL), times, np.minimum)
    return Tally((most > 0).sum(1), (least == BlockKind.FULL).sum(1))


def _joined(kinds: Array, times: tuple[int, int], function: np.ufunc) -> Array:
    columns: Array = reduce(function, (kinds[:, at :: times[1]] for at in range(times[1])))
    rows: Array = reduce(function, (columns[at :: times[0]] for at in range(times[0])))
    return rows
