"""Drawings of where two masks differ: both keep, only a, only b, each in turn; as a picture or as text."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from ..blocks.block_map import BlockMap
from ..proofs.diff import Diff
from . import picture, terminal
from .scale import Cells, Region, Shade, block_cells, check_region, index_of, pair_cells, whole


class Side(IntEnum):
    """What a cell shows: a difference in it counts more than what both keep."""

    NEITHER = 0
    BOTH = 1
    ONLY_A = 2
    ONLY_B = 3
    EACH = 4  # some pairs only a, some only b


COLORS = {
    Side.NEITHER: "#FFFFFF",
    Side.BOTH: "#D5D9DE",
    Side.ONLY_A: "#E69F00",
    Side.ONLY_B: "#0B4272",
    Side.EACH: "#A3246E",
}
CHARACTERS = {Side.NEITHER: " ", Side.BOTH: "·", Side.ONLY_A: "a", Side.ONLY_B: "b", Side.EACH: "x"}
INKS = {Side.BOTH: 245, Side.ONLY_A: 214, Side.ONLY_B: 32, Side.EACH: 162}  # of the terminal's 256 colours
TEXTS = {Side.BOTH: "both keep", Side.ONLY_A: "only a", Side.ONLY_B: "only b", Side.EACH: "each some"}
RING = 0.04  # of the picture's side: a smaller region gets a ring around it


def save(diff: Diff, path: str | Path, *, b: int = 0, h: int = 0, region: Region | None = None) -> Path:
    """Draw a difference into a .png, .svg or .pdf file; returns its path. Small regions are ringed. FS030, FS054."""
    path = picture.writable(path)
    return picture.write(figure(diff, b=b, h=h, region=region), path)


def figure(diff: Diff, *, b: int = 0, h: int = 0, region: Region | None = None) -> Any:
    """What `save` writes, as a matplotlib `Figure`. FS030."""
    block_map = diff.blocks_a
    cells = cells_of(diff, b, h, region, picture.MOST_CELLS, picture.SMALL)
    facts = [f"{block_map.q_len:,} queries × {block_map.kv_len:,} keys"]
    facts.append(f"blocks of {block_map.block_q} × {block_map.block_kv}")
    if cells.region != whole(block_map):
        facts.append("region q {:,}–{:,}, kv {:,}–{:,}".format(*cells.region))
    facts += [f"only a {diff.only_a:,}", f"only b {diff.only_b:,} pairs", *_head(diff, b, h)]
    label = f"a: {diff.a.label}   b: {diff.b.label}"
    entries = [(COLORS[side], text) for side, text in TEXTS.items()]
    fig = picture.laid_out(block_map, cells, label, facts, [COLORS[side] for side in Side], entries)
    _ring(fig.axes[0], diff, cells, b, h)
    return fig


def _head(diff: Diff, b: int, h: int) -> list[str]:
    sizes = np.broadcast_shapes(diff.blocks_a.index.shape, diff.blocks_b.index.shape)
    names = (("batch", b, sizes[0]), ("head", h, sizes[1]))
    return [f"{name} {index} of {size}" for name, index, size in names if size > 1]


def _ring(axes: Any, diff: Diff, cells: Cells, b: int, h: int) -> None:
    """Circles around regions that are too small to be seen."""
    q_start, q_stop, kv_start, kv_stop = cells.region
    q_side, kv_side = q_stop - q_start, kv_stop - kv_start
    for part in diff.regions:
        height, width = part.q_stop - part.q_start, part.kv_stop - part.kv_start
        middle = (part.kv_start + part.kv_stop) / 2, (part.q_start + part.q_stop) / 2
        here = _shown(diff, part.only, b, h) == (part.b, part.h)
        inside = kv_start <= middle[0] < kv_stop and q_start <= middle[1] < q_stop
        if here and inside and height < RING / 2 * q_side and width < RING / 2 * kv_side:
            color = COLORS[Side.ONLY_A if part.only == "a" else Side.ONLY_B]
            axes.plot(*middle, "o", markersize=14, markerfacecolor="none", markeredgecolor=color, markeredgewidth=1.4)


def _shown(diff: Diff, only: str, b: int, h: int) -> tuple[int, int]:
    return index_of(diff.blocks_a if only == "a" else diff.blocks_b, b, h)


def cells_of(diff: Diff, b: int, h: int, region: Region | None, most: int, small: int) -> Cells:
    """The difference in at most `most` x `most` cells, with values of `Side`; by pairs in a region or where `small`."""
    block_map = diff.blocks_a
    if region is None and max(block_map.q_len, block_map.kv_len) <= small:
        region = whole(block_map)
    maps = (diff.blocks_both, diff.blocks_a, diff.blocks_b)
    kept = [_kept(block_map, b, h, region, most) for block_map in maps]
    both, only_a, only_b = (cells.shades != Shade.BLANK for cells in kept)
    sides = np.select([only_a & only_b, only_a, only_b, both], [Side.EACH, Side.ONLY_A, Side.ONLY_B, Side.BOTH])
    cells = kept[0]
    return Cells(sides.astype(np.uint8), cells.region, cells.cell_q, cells.cell_kv, cells.blocks, cells.pairs)


def _kept(block_map: BlockMap, b: int, h: int, region: Region | None, most: int) -> Cells:
    """Cells in which something is kept, BLANK elsewhere."""
    if region is None:
        return block_cells(block_map, b, h, (most, most))
    cells = pair_cells(block_map, b, h, check_region(block_map, region), (most, most))
    shades = np.where(cells.shades == Shade.DROPPED, Shade.BLANK, cells.shades).astype(np.uint8)
    return Cells(shades, cells.region, cells.cell_q, cells.cell_kv, cells.blocks, cells.pairs)


def draw(
    diff: Diff,
    *,
    b: int = 0,
    h: int = 0,
    region: Region | None = None,
    width: int = 72,
    color: bool | None = None,
) -> str:
    """The difference as lines of at most `width` columns, one character `· a b x` to a column. FS030."""
    color = terminal.wants_color() if color is None else color
    block_map = diff.blocks_a
    gutter = len(f"{block_map.q_len:,}") + 3
    side = (max(terminal.LEAST_WIDTH, width) - gutter - 1) // 2
    cells = cells_of(diff, b, h, region, side, side)
    rows = [_row(row, color) for row in cells.shades.tolist()]
    across = 2 * cells.shades.shape[1]
    q_start, _, kv_start, kv_stop = cells.region
    ends = f"{'q ↓':>{gutter - 1}} kv → {kv_start:,}", f"{kv_stop - 1:,}"
    lines = [ends[0] + ends[1].rjust(max(len(ends[1]) + 2, gutter + across - len(ends[0])))]
    lines.append(" " * (gutter - 1) + "┌" + "─" * across + "┐")
    for number, row in enumerate(rows):
        label = f"{q_start + number * cells.cell_q:,}" if number % terminal.LABEL_EVERY == 0 else ""
        lines.append(f"{label:>{gutter - 2}} │{row}│")
    lines.append(" " * (gutter - 1) + "└" + "─" * across + "┘")
    marks = [f"{_inked(side, CHARACTERS[side], color)} {text}" for side, text in TEXTS.items()]
    return "\n".join([*lines, "   ".join([*marks, *_head(diff, b, h)])])


def _row(row: list[int], color: bool) -> str:
    return "".join(_inked(Side(cell), 2 * CHARACTERS[Side(cell)], color) for cell in row)


def _inked(side: Side, text: str, color: bool) -> str:
    return f"\x1b[38;5;{INKS[side]}m{text}\x1b[0m" if color and side else text
