"""A block map as the kernels read it: the full and the partial blocks of each row or column, on the device, as runs of
blocks or as lists of tiles.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ...blocks.block_map import BlockMap
from ...blocks.flex_lists import KindRuns, by_kind, transposed
from ...blocks.grid import Grid
from ...evaluation.points import Array
from .configs import BY_KEYS

Arrays = tuple[torch.Tensor, ...]
KEYS_PER_FILL = 8 * 128
"""A run fills the pipeline of loads anew: 850 to 1350 cycles, in which little is multiplied. A list costs its loop 2 to
7 percent more instructions, 85 to 370 cycles for a block of 128 x 128. Between 3 and 13 blocks they are even."""
BACKWARD_PER_FILL = 3 * 128
"""Keys or queries: of the backward kernels' loops a list costs 0 to 17 percent, up to 500 cycles for such a block."""
MOST_LISTED_KEYS = 2**31
"""Of all rows; their tiles are numbers of 32 bits, at most half a gigabyte for tiles of 16 keys."""


class Rows(NamedTuple):
    """Blocks by rows of one side.

    index: int32 [batch | 1, heads | 1], which map a (batch, head) has; the rows of map `i` start at `i * blocks`.
    full, partial: int32 `first` [maps * blocks + 1], then of the other side `start` and `stop` [runs + 1] of blocks, or
    `number` [tiles + 1] of tiles. A ragged last block is partial, so that full blocks need no check of the length.
    schedule: int32 [tiles], tiles in the order in which they start, those with most blocks first.
    """

    index: torch.Tensor
    full: Arrays
    partial: Arrays
    schedule: torch.Tensor

    def strides(self) -> tuple[int, int]:
        """Steps of `index` along batch and head; 0 where one serves all."""
        batch, heads = self.index.shape
        return (heads if batch > 1 else 0, 1 if heads > 1 else 0)


def rows_of(block_map: BlockMap, side: str, tiles_per_block: int, listed: int = 0) -> Rows:
    """The blocks along kv of each row of queries ("q"), or along q of each column of keys ("kv"); kept. As runs, or as
    lists where `listed`, so many tiles a block of the other side.
    """
    return block_map.derive(_rows, side, tiles_per_block, listed)


def takes_lists(block_map: BlockMap, kernel: str = "forward") -> bool:
    """Is a kernel faster over lists than over runs? By the exact counts of all (batch, head); kept."""
    side, other = ("kv", "q") if kernel in BY_KEYS else ("q", "kv")
    return block_map.derive(
        _takes_lists, side, other, BACKWARD_PER_FILL if kernel.startswith("backward") else KEYS_PER_FILL
    )


def _takes_lists(block_map: BlockMap, side: str, other: str, per_fill: int) -> bool:
    """A list saves the fills of all runs in a row and kind but the first."""
    uses = np.bincount(block_map.index.reshape(-1), minlength=len(block_map.maps)).tolist()
    block = getattr(block_map.grid, f"block_{other}")
    listed = tokens = fills = 0
    for kinds, times in zip(block_map.derive(_kinds, side), uses, strict=True):
        for each in kinds:
            size = int((each.stop - each.start).sum(dtype=np.int64)) * block
            listed += size
            tokens += times * size
            fills += times * int(np.count_nonzero(each.row[1:] == each.row[:-1]))
    return listed < MOST_LISTED_KEYS and tokens < fills * per_fill


def _kinds(block_map: BlockMap, side: str) -> list[list[KindRuns]]:
    """The partial and the full runs of each map, along the rows of a side."""
    grid = block_map.grid
    kinds = [by_kind(runs, grid) for runs in block_map.maps]
    return kinds if side == "q" else [[_turned(runs, grid) for runs in each] for each in kinds]


def _rows(block_map: BlockMap, side: str, tiles_per_block: int, listed: int) -> Rows:
    grid = block_map.grid
    kinds = block_map.derive(_kinds, side)
    blocks = grid.q_blocks if side == "q" else grid.kv_blocks
    partial, full = ([pair[at] for pair in kinds] for at in (0, 1))
    cost = sum(_blocks_in(each, blocks) for each in (*partial, *full))
    order = np.argsort(-cost, kind="stable")
    schedule = (order[:, None] * tiles_per_block + np.arange(tiles_per_block)).reshape(-1)

    def sent(values: Array) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int32)).to(block_map.device)

    def arrays(each: list[KindRuns]) -> Arrays:
        rows, *parts = zip(*(_tiles(runs, listed) if listed else runs for runs in each), strict=True)
        counts = np.concatenate([np.bincount(row, minlength=blocks) for row in rows])
        first = np.concatenate([[0], np.cumsum(counts)])
        return sent(first), *(sent(np.concatenate([*part, [0]])) for part in parts)

    return Rows(sent(block_map.index), arrays(full), arrays(partial), sent(schedule))


def _tiles(runs: KindRuns, per_block: int) -> tuple[Array, Array]:
    """Row and number of the tiles of all blocks, in reading order."""
    rows, columns = runs.blocks()
    numbers = columns[:, None] * per_block + np.arange(per_block, dtype=np.int32)
    return np.repeat(rows, per_block), numbers.reshape(-1)


def _turned(runs: KindRuns, grid: Grid) -> KindRuns:
    """The runs of the columns."""
    row, column = transposed(*runs.blocks(), grid)
    fresh = np.ones(len(row), bool)
    fresh[1:] = (row[1:] != row[:-1]) | (column[1:] != column[:-1] + 1)
    head = np.flatnonzero(fresh)
    last = np.append(head[1:], len(row)) - 1 if len(row) else head
    return KindRuns(row[head], column[head], column[last] + 1)


def _blocks_in(runs: KindRuns, blocks: int) -> Array:
    return np.bincount(runs.row, runs.stop - runs.start, minlength=blocks)
