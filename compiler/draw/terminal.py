"""Drawings of block maps as text: half-block characters with colour, ` ░█` without."""

from __future__ import annotations

import os
import sys

import numpy as np

from ..blocks.block_map import BlockMap
from .scale import Cells, Levels, Shade, block_cells, coarse, heads_text, pair_cells, whole

CHARACTERS = {Shade.BLANK: " ", Shade.DROPPED: "·", Shade.MIXED: "░", Shade.KEPT: "▓", Shade.SOLID: "█"}
INKS = {
    Shade.DROPPED: 180,
    Shade.MIXED: 214,
    Shade.KEPT: 166,
    Shade.SOLID: 32,
}  # of the terminal's 256 colours
KIND_OF = np.array([0, 1, 1, 1, 2], np.uint8)
LABEL_EVERY = 4  # rows of text
LEAST_WIDTH = 24


def draw(block_map: BlockMap, *, b: int = 0, h: int = 0, width: int = 72, color: bool | None = None) -> str:
    """Batch `b`, head `h` of the map as lines of at most `width` columns: queries downwards, keys rightwards.

    A map that fits is drawn pair by pair (two columns to a pair), a larger one by blocks, a still larger one
    in coarse cells by the rule of `scale`. color: None asks the terminal and the NO_COLOR variable. Empty is
    the terminal's own background. Raises FS030 for a head that is not there.
    """
    color = wants_color() if color is None else color
    gutter = len(f"{block_map.q_len:,}") + 3
    side = max(LEAST_WIDTH, width) - gutter - 1
    cells = _cells(block_map, b, h, side)
    if 2 * cells.shades.shape[1] <= side and cells.shades.shape[0] <= side // 2:
        rows, per_row = _wide(cells.shades, color), cells.cell_q
    else:
        rows, per_row = _halves(cells.shades, color), 2 * cells.cell_q
    across = 2 * cells.shades.shape[1] if per_row == cells.cell_q else cells.shades.shape[1]
    lines = [shortened(block_map.label, max(LEAST_WIDTH, width)), *_ruler(block_map, gutter, across)]
    for number, row in enumerate(rows):
        label = f"{number * per_row:,}" if number % LABEL_EVERY == 0 else ""
        lines.append(f"{label:>{gutter - 2}} │{row}│")
    lines.append(" " * (gutter - 1) + "└" + "─" * across + "┘")
    return "\n".join([*lines, *_legend(block_map, cells, heads_text(block_map, b, h), color)])


def wants_color() -> bool:
    return not os.environ.get("NO_COLOR") and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _cells(block_map: BlockMap, b: int, h: int, side: int) -> Cells:
    if max(block_map.q_len, block_map.kv_len) <= side // 2:
        return pair_cells(block_map, b, h, whole(block_map), (side // 2, side // 2))
    return block_cells(block_map, b, h, (side, side))


def _wide(shades: Levels, color: bool) -> list[str]:
    """One line to a row of cells, two characters to a cell: about square."""
    return ["".join(_inked(CHARACTERS[Shade(shade)] * 2, shade, color) for shade in row) for row in shades.tolist()]


def _halves(shades: Levels, color: bool) -> list[str]:
    """One line to two rows of cells, one character to a column: two halves of it where there is colour."""
    if not color:
        kinds = coarse(KIND_OF[shades], 2, 1)
        plain = [CHARACTERS[Shade.BLANK], CHARACTERS[Shade.MIXED], CHARACTERS[Shade.SOLID]]
        return ["".join(plain[kind] for kind in row) for row in kinds.tolist()]
    if len(shades) % 2:
        shades = np.vstack([shades, np.zeros_like(shades[:1])])
    pairs = zip(shades[::2].tolist(), shades[1::2].tolist(), strict=True)
    return ["".join(_half(top, bottom) for top, bottom in zip(*rows, strict=True)) for rows in pairs]


def _half(top: int, bottom: int) -> str:
    if top == bottom == Shade.BLANK:
        return " "
    if top == bottom:
        return f"\x1b[38;5;{INKS[Shade(top)]}m█\x1b[0m"
    if Shade.BLANK in (top, bottom):
        character, shade = ("▀", top) if bottom == Shade.BLANK else ("▄", bottom)
        return f"\x1b[38;5;{INKS[Shade(shade)]}m{character}\x1b[0m"
    return f"\x1b[38;5;{INKS[Shade(top)]};48;5;{INKS[Shade(bottom)]}m▀\x1b[0m"


def _inked(text: str, shade: int, color: bool) -> str:
    return f"\x1b[38;5;{INKS[Shade(shade)]}m{text}\x1b[0m" if color and shade else text


def _ruler(block_map: BlockMap, gutter: int, across: int) -> list[str]:
    """The names of both axes, the first and last key, and the upper edge."""
    last = f"{block_map.kv_len - 1:,}"
    names = f"{'q ↓':>{gutter - 1}} kv → 0"
    ends = names + last.rjust(gutter + across - len(names)) if gutter + across - len(names) > len(last) + 1 else names
    return [ends, " " * (gutter - 1) + "┌" + "─" * across + "┐"]


def _legend(block_map: BlockMap, cells: Cells, head: str, color: bool) -> list[str]:
    empty, partial, full = cells.blocks
    mark = {shade: _inked(character, shade, color) for shade, character in CHARACTERS.items()}
    if color and not cells.pairs:
        mark[Shade.MIXED] = _inked("█", Shade.MIXED, color)
    partly = f"{mark[Shade.MIXED]} partial {partial:,}"
    if cells.pairs and partial:
        partly = f"{mark[Shade.DROPPED]} partial {partial:,} ({mark[Shade.KEPT]} pairs kept in them)"
    parts = [f"{mark[Shade.SOLID]} full {full:,}", partly, f"blank: empty {empty:,}"]
    facts = [f"{block_map.q_len:,} queries x {block_map.kv_len:,} keys"]
    facts.append(f"blocks of {block_map.block_q} x {block_map.block_kv}")
    facts.append(f"density {100 * block_map.density:.3g}%")
    if block_map.order is not None:
        facts.append(f"order {block_map.order}")
    step_q, step_kv = cells.cell_q // block_map.block_q, cells.cell_kv // block_map.block_kv
    if not cells.pairs and (step_q, step_kv) != (1, 1):
        facts.append(f"a cell is {step_q} x {step_kv} blocks")
    return ["blocks: " + "   ".join(parts), ", ".join([*facts, head] if head else facts)]


def shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
