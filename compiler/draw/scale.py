"""What a drawing shows in each of its cells: blocks or pairs, made coarse where there are too many to see.

One rule holds at every scale: **a coarse cell has the kind that one block of its size would have**. It is
EMPTY only where everything in it is empty and FULL only where everything in it is full; every mixture is
PARTIAL. So a diagonal one block wide is drawn at any length, and nothing is drawn full that is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from flexspec.errors import FlexSpecError

from ..blocks.block_map import BlockMap
from ..blocks.runs import Runs

Levels = NDArray[np.uint8]
Region = tuple[int, int, int, int]

EMPTY, PARTIAL, FULL = 0, 1, 2  # the values of block_map.BlockKind
MOST_TOKENS = 4096  # per side of a region, whose pairs are all evaluated


class Shade(IntEnum):
    """What a cell shows, from the lightest to the darkest.

    A drawing of blocks has BLANK (empty), MIXED (partial) and SOLID (full); one of pairs has all five.
    """

    BLANK = 0  # in empty blocks
    DROPPED = 1  # in a block that is computed, no pair kept
    MIXED = 2  # some of it kept
    KEPT = 3  # every pair kept, by a block that is masked pair by pair
    SOLID = 4  # every pair kept, by full blocks


@dataclass(frozen=True)
class Cells:
    """A part of a map as it is drawn.

    shades: uint8 [rows, columns], values of `Shade`. region: (q_start, q_stop, kv_start, kv_stop) in tokens.
    cell_q, cell_kv: tokens that a cell covers; the last row and column may cover fewer. blocks: how many
    blocks of the region are EMPTY, PARTIAL and FULL. pairs: cells were made of single pairs, not of blocks.
    """

    shades: Levels
    region: Region
    cell_q: int
    cell_kv: int
    blocks: tuple[int, int, int]
    pairs: bool


def coarse(kinds: Levels, rows: int, columns: int) -> Levels:
    """`kinds` [q, kv] with `rows` x `columns` of them to a cell, by the rule above; tails are smaller."""
    if rows == columns == 1:
        return kinds
    low = np.minimum.reduceat(kinds, np.arange(0, kinds.shape[0], rows), axis=0)
    high = np.maximum.reduceat(kinds, np.arange(0, kinds.shape[0], rows), axis=0)
    low = np.minimum.reduceat(low, np.arange(0, kinds.shape[1], columns), axis=1)
    high = np.maximum.reduceat(high, np.arange(0, kinds.shape[1], columns), axis=1)
    return np.where(low == high, low, np.uint8(PARTIAL))


def coarse_runs(runs: Runs, window: Region, rows: int, columns: int) -> Levels:
    """`coarse` of the blocks in a window (rows from, to, columns from, to), read off the runs.

    Its cost follows the rows and the runs; the blocks are never laid out side by side.
    """
    top, bottom, left, right = window
    edges = np.arange(0, right - left, columns)
    widths = np.diff(np.append(edges, right - left))
    out = np.empty((-(-(bottom - top) // rows), len(edges)), np.uint8)
    for number, row in enumerate(range(top, bottom, rows)):
        height = min(rows, bottom - row)
        of_rows = slice(int(runs.first[row]), int(runs.first[row + height]))
        start, stop = (np.clip(side[of_rows] - left, 0, right - left) for side in (runs.start, runs.stop))
        full = runs.kind[of_rows] == FULL
        kept = _covered(start, stop, edges, right - left)
        filled = _covered(start[full], stop[full], edges, right - left)
        out[number] = np.where(kept == 0, EMPTY, np.where(filled == height * widths, FULL, PARTIAL))
    return out


def _covered(start: Levels, stop: Levels, edges: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """How many blocks of the runs [start, stop) lie from each edge to the next."""
    steps = np.bincount(start, minlength=length + 1) - np.bincount(stop, minlength=length + 1)
    return np.add.reduceat(np.cumsum(steps)[:length], edges)


def block_cells(block_map: BlockMap, b: int, h: int, most: tuple[int, int]) -> Cells:
    """The whole map by blocks, in at most `most` = (rows, columns) cells. FS030 for a wrong head."""
    runs = block_map.of(*index_of(block_map, b, h))
    size = block_map.q_blocks, block_map.kv_blocks
    rows, columns = _per_cell(size[0], most[0]), _per_cell(size[1], most[1])
    kinds = coarse_runs(runs, (0, size[0], 0, size[1]), rows, columns)
    shades = np.array([Shade.BLANK, Shade.MIXED, Shade.SOLID], np.uint8)[kinds]
    cell_q, cell_kv = rows * block_map.block_q, columns * block_map.block_kv
    partial, full = (count for _, count in sorted(runs.counts().items()))
    blocks = (size[0] * size[1] - partial - full, partial, full)
    return Cells(shades, whole(block_map), cell_q, cell_kv, blocks, pairs=False)


def pair_cells(block_map: BlockMap, b: int, h: int, region: Region, most: tuple[int, int]) -> Cells:
    """A region by pairs, in at most `most` = (rows, columns) cells.

    FS030 for a head that is not there, or a region that is empty, outside the map, or over 4,096 tokens on a
    side.
    """
    q_start, q_stop, kv_start, kv_stop = check_region(block_map, region)
    b, h = index_of(block_map, b, h)
    q_block = np.arange(q_start, q_stop) // block_map.block_q
    kv_block = np.arange(kv_start, kv_stop) // block_map.block_kv
    window = int(q_block[0]), int(q_block[-1]) + 1, int(kv_block[0]), int(kv_block[-1]) + 1
    inside = coarse_runs(block_map.of(b, h), window, 1, 1)
    by_pair = inside[q_block - q_block[0]][:, kv_block - kv_block[0]]
    kept = block_map.tokens(q_start, q_stop, kv_start, kv_stop, b=b, h=h).cpu().numpy().astype(np.uint8) * FULL

    rows, columns = _per_cell(q_stop - q_start, most[0]), _per_cell(kv_stop - kv_start, most[1])
    pairs, blocks = coarse(kept, rows, columns), coarse(by_pair, rows, columns)
    shades = np.array([Shade.DROPPED, Shade.MIXED, Shade.KEPT], np.uint8)[pairs]
    shades[blocks == EMPTY] = Shade.BLANK
    shades[blocks == FULL] = Shade.SOLID
    return Cells(shades, region, rows, columns, _count(inside), pairs=True)


def whole(block_map: BlockMap) -> Region:
    """Everything in the map, as a region in tokens."""
    return 0, block_map.q_len, 0, block_map.kv_len


def check_region(block_map: BlockMap, region: Region) -> Region:
    """The region if it can be drawn pair by pair, else FS030."""
    q_start, q_stop, kv_start, kv_stop = region
    for side, start, stop, length in (
        ("q", q_start, q_stop, block_map.q_len),
        ("kv", kv_start, kv_stop, block_map.kv_len),
    ):
        if not 0 <= start < stop <= length:
            message = f"the region has {side} from {start:,} to {stop:,}; the map has {length:,} positions there"
            raise FlexSpecError("FS030", message, fix="give (q_start, q_stop, kv_start, kv_stop) inside the map")
        if stop - start > MOST_TOKENS:
            message = f"the region has {stop - start:,} {side} positions; at most {MOST_TOKENS:,} are drawn"
            raise FlexSpecError("FS030", message, fix="give a smaller region, or none to draw all blocks")
    return region


def ticks(start: int, stop: int, block: int, most: int) -> Iterator[int]:
    """At most about `most` positions in [start, stop): multiples of a block times a power of two."""
    step = block
    while (stop - start) / step > most:
        step *= 2
    first = -(-start // step) * step
    return iter(range(first, stop, step)) if first < stop else iter((start,))


def heads_text(block_map: BlockMap, b: int, h: int) -> str:
    """Which batch and head are shown, where the map has several; else empty."""
    batch = f"batch {b} of {block_map.batch}" if block_map.batch > 1 else ""
    head = f"head {h} of {block_map.heads}" if block_map.heads > 1 else ""
    return ", ".join(part for part in (batch, head) if part)


def index_of(block_map: BlockMap, b: int, h: int) -> tuple[int, int]:
    """`b` and `h` as indices of the map; 0 where it does not depend on them. FS030."""
    for name, index, count in (("batch", b, block_map.batch), ("head", h, block_map.heads)):
        if index < 0 or (count > 1 and index >= count):
            legal = f"from 0 to {count - 1}" if count > 1 else "0: the mask is the same for all"
            raise FlexSpecError("FS030", f"there is no {name} {index} in the map", fix=f"give {legal}")
    return b if block_map.batch > 1 else 0, h if block_map.heads > 1 else 0


def _per_cell(count: int, most: int) -> int:
    return max(1, -(-count // max(1, most)))


def _count(kinds: Levels) -> tuple[int, int, int]:
    counts = np.bincount(kinds.reshape(-1), minlength=3)
    return int(counts[EMPTY]), int(counts[PARTIAL]), int(counts[FULL])
