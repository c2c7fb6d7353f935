"""Kept keys on a canvas as text: the frames that keep any, side by side as far as the width allows."""

from __future__ import annotations

from collections.abc import Iterator

from ..kept_keys import KeptKeys
from .frames import Frame, cells_of, facts_of, groups_of
from .scale import EMPTY, FULL, PARTIAL
from .terminal import LEAST_WIDTH, shortened, wants_color

CHARACTERS = {EMPTY: "·", PARTIAL: "▒", FULL: "█"}
IN_ROW = 3  # frames beside each other, at the least, where there are as many
INKS = {"·": 245, "▒": 110, "█": 32, "Q": 214, "q": 214}  # of the terminal's 256 colours
LEGEND = (
    ("█", "kept"),
    ("▒", "some kept"),
    ("·", "not kept"),
    ("Q", "the query"),
    ("q", "the query, which does not keep itself"),
)


def draw(keys: KeptKeys, *, width: int = 72, color: bool | None = None) -> str:
    """The frames as lines of at most `width` columns. color: None asks the terminal and the NO_COLOR variable."""
    color = wants_color() if color is None else color
    width = max(LEAST_WIDTH, width)
    groups = groups_of(keys)
    lines = [shortened(keys.label, width)]
    for group in groups:
        shown = [frame for frame in group.frames if frame.kept.any() or frame.own is not None]
        lines += [group.name] if group.name else []
        most = (width + 2) // max(1, min(len(shown), IN_ROW)) - 2
        lines += _in_rows([_drawn(frame, most) for frame in shown], width)
        if left_out := len(group.frames) - len(shown):
            lines.append(f"nothing is kept in {left_out} other frame{'s' if left_out > 1 else ''}")
    used = {character for line in lines if line.startswith("│") for character in line}
    lines = [_inked(line) if color and line.startswith("│") else line for line in lines]
    lines.append("   ".join(f"{_inked(mark) if color else mark} {text}" for mark, text in LEGEND if mark in used))
    return "\n".join([*lines, ", ".join(facts_of(keys, groups))])


def _drawn(frame: Frame, width: int) -> list[str]:
    """One frame in a box, all lines of one length, its name above."""
    rows, columns = frame.kept.shape
    step = -(-columns // (width - 2))
    per_cell = 2 if step == 1 and 2 * columns <= width - 2 else 1
    cells = [[CHARACTERS[cell] for cell in row] for row in cells_of(frame, step).tolist()]
    if frame.own is not None:
        cells[frame.own[0] // step][frame.own[1] // step] = "Q" if frame.kept[frame.own] else "q"
    edge = "─" * (per_cell * len(cells[0]))
    inside = ["│" + "".join(character * per_cell for character in row) + "│" for row in cells]
    lines = [*([frame.name] if frame.name else []), f"┌{edge}┐", *inside, f"└{edge}┘"]
    wide = max(len(line) for line in lines)
    return [line.ljust(wide) for line in lines]


def _in_rows(boxes: list[list[str]], width: int) -> Iterator[str]:
    in_row = max(1, (width + 2) // (len(boxes[0][0]) + 2)) if boxes else 1
    for start in range(0, len(boxes), in_row):
        yield from ("  ".join(parts).rstrip() for parts in zip(*boxes[start : start + in_row], strict=True))


def _inked(line: str) -> str:
    return "".join(f"\x1b[38;5;{INKS[mark]}m{mark}\x1b[0m" if mark in INKS else mark for mark in line)
