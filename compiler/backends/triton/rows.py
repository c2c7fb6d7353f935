"""A block map as the kernels read it: runs of full and of partial blocks of each row or column, on the device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ...blocks.block_map import BlockMap
from ...blocks.flex_lists import KindRuns, by_kind, transposed
from ...evaluation.points import Array

Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Rows(NamedTuple):
    """Runs by rows of blocks of one side.

    index: int32 [batch | 1, heads | 1], which map a (batch, head) has; the rows of map `i` start at `i * blocks`.
    full, partial: int32 `first` [maps * blocks + 1], `start` and `stop` [runs + 1] of the other side's blocks. A
    ragged last block is partial, so that full blocks need no check of the length. schedule: int32 [tiles], tiles in the
    order in which they start, those with most blocks first.
    """

    index: torch.Tensor
    full: Arrays
    partial: Arrays
    schedule: torch.Tensor

    def strides(self) -> tuple[int, int]:
        """Steps of `index` along batch and head; 0 where one serves all."""
        batch, heads = self.index.shape
        return (heads if batch > 1 else 0, 1 if heads > 1 else 0)


def rows_of(block_map: BlockMap, side: str, tiles_per_block: int) -> Rows:
    """The runs along kv of each row of queries ("q"), or along q of each column of keys ("kv"); kept."""
    return block_map.derive(_rows, side, tiles_per_block)


def _rows(block_map: BlockMap, side: str, tiles_per_block: int) -> Rows:
    grid = block_map.grid
    kinds = [by_kind(runs, grid) for runs in block_map.maps]
    blocks = grid.q_blocks
    if side == "kv":
        blocks = grid.kv_blocks
        kinds = [[_runs(*transposed(*each.blocks(), grid)) for each in pair] for pair in kinds]
    partial, full = ([pair[at] for pair in kinds] for at in (0, 1))
    cost = sum(_blocks_in(each, blocks) for each in (*partial, *full))
    order = np.argsort(-cost, kind="stable")
    schedule = (order[:, None] * tiles_per_block + np.arange(tiles_per_block)).reshape(-1)

    def sent(values: Array) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int32)).to(block_map.device)

    def arrays(each: list[KindRuns]) -> Arrays:
        counts = [np.bincount(runs.row, minlength=blocks) for runs in each]
        first = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        ends = (np.concatenate([*(getattr(runs, end) for runs in each), [0]]) for end in ("start", "stop"))
        start, stop = ends
        return sent(first), sent(start), sent(stop)

    return Rows(sent(block_map.index), arrays(full), arrays(partial), sent(schedule))


def _runs(row: Array, column: Array) -> KindRuns:
    """Blocks in reading order as runs."""
    fresh = np.ones(len(row), bool)
    fresh[1:] = (row[1:] != row[:-1]) | (column[1:] != column[:-1] + 1)
    head = np.flatnonzero(fresh)
    last = np.append(head[1:], len(row)) - 1 if len(row) else head
    return KindRuns(row[head], column[head], column[last] + 1)


def _blocks_in(runs: KindRuns, blocks: int) -> Array:
    return np.bincount(runs.row, runs.stop - runs.start, minlength=blocks)
