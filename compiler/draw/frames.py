"""Pictures of kept keys on a canvas: the last two axes are an image, the others count frames; one axis is a strip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kept_keys import KeptKeys
from . import picture
from .scale import EMPTY, FULL, PARTIAL, Levels, coarse, ticks

COLORS = {EMPTY: "#E9ECEF", PARTIAL: "#7FA3C4", FULL: "#0B4272"}
OWN = "#E69F00"
MOST_FRAMES = 36  # of one query; of more, those around the query's own are drawn
MOST_QUERIES = 6  # of a canvas with frames; the first ones are drawn
DPI, LEAST_DPI, MOST_DPI = 150, 130, 200
BOX = 6.2, 4.6  # inches that the frames of one query may fill
SIDE_GAP, TOP_GAP = 0.12, 0.26  # inches beside a frame, and above it for its name
CHARACTER = 0.068  # inches of a character of a frame's name
THINNEST = 0.06  # of the longer side: what a strip is stretched to
CLEAR = 0.06  # inches of a token's side from which it is drawn with an edge
MARGIN = {"left": 0.55, "right": 0.25, "below": 0.36, "legend": 0.42, "group": 0.3}


@dataclass(frozen=True)
class Frame:
    """One image of the canvas. kept: bool [rows, columns]. own: the query's row and column, where it lies here."""

    name: str
    kept: NDArray[np.bool_]
    own: tuple[int, ...] | None


@dataclass(frozen=True)
class Group:
    """The frames of one query, or of several where each has one frame. note: what of the canvas is not drawn."""

    name: str
    frames: list[Frame]
    columns: int | None = None
    note: str = ""


def frames_of(keys: KeptKeys, number: int) -> list[Frame]:
    """Every frame of the canvas, with the keys that query `number` keeps there."""
    outer = list(keys.canvas.axes[:-2])
    kept = keys.kept[number].numpy()
    images = kept.reshape(prod(length for _, length in outer), -1, kept.shape[-1])
    place = keys.place(number)
    frames = []
    for image, index_of_frame in zip(images, np.ndindex(*(length for _, length in outer)), strict=True):
        name = ", ".join(f"{axis}={index}" for (axis, _), index in zip(outer, index_of_frame, strict=True))
        own = (0, *place)[-2:] if place and index_of_frame == place[:-2] else None
        frames.append(Frame(name, image, own))
    return frames


def groups_of(keys: KeptKeys) -> list[Group]:
    """The frames in the order in which they are drawn."""
    of_queries = [frames_of(keys, number) for number in range(len(keys.queries))]
    names = [f"{keys.named(i)} keeps {count:,}" for i, count in enumerate(keys.counts)]
    alone = len(of_queries) == 1
    if len(keys.canvas.axes) <= 2:
        only = zip(names, of_queries, strict=True)
        shown = [Frame("" if alone else name, frame.kept, frame.own) for name, (frame,) in only]
        note = f"the first {MOST_FRAMES} of {len(of_queries):,} queries" if len(of_queries) > MOST_FRAMES else ""
        return [Group("", shown[:MOST_FRAMES], note=note)]
    sides = list(keys.canvas.lengths.values())[:-2]
    groups = []
    for name, frames in zip(names[:MOST_QUERIES], of_queries, strict=False):
        shown = _around_own(frames)
        columns = sides[-1] if len(sides) > 1 and len(shown) == len(frames) else None
        note = _left_out(frames, shown)
        named = Group(f"{name}{note and '; '}{note}", shown, columns)
        groups.append(Group("", shown, columns, note) if alone else named)
    if len(of_queries) > MOST_QUERIES:
        note = f"the first {MOST_QUERIES} of {len(of_queries):,} queries"
        groups[-1] = replace(groups[-1], note=note)
    return groups


def _left_out(frames: list[Frame], shown: list[Frame]) -> str:
    if len(shown) == len(frames):
        return ""
    others = sum(int(frame.kept.sum()) for frame in frames) - sum(int(frame.kept.sum()) for frame in shown)
    return f"{len(shown)} of {len(frames)} frames, {others:,} keys in the others"


def _around_own(frames: list[Frame]) -> list[Frame]:
    own = next((index for index, frame in enumerate(frames) if frame.own is not None), 0)
    start = max(0, min(own - MOST_FRAMES // 2, len(frames) - MOST_FRAMES))
    return frames[start : start + MOST_FRAMES]


def cells_of(frame: Frame, step: int) -> Levels:
    """EMPTY, PARTIAL or FULL, with `step` x `step` tokens to a cell."""
    return coarse(frame.kept.astype(np.uint8) * np.uint8(FULL), step, step)


def save(keys: KeptKeys, path: str | Path) -> Path:
    """Draw kept keys into a .png, .svg or .pdf file; returns its path. FS054."""
    path = picture.writable(path)
    return picture.write(figure(keys), path)


def figure(keys: KeptKeys) -> Any:
    """What `save` writes, as a matplotlib `Figure` that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = groups_of(keys)
    size = _fitted(groups[0])
    width = BOX[0] + MARGIN["left"] + MARGIN["right"]
    title = picture.titled(keys.label, columns=int(width * 9.5))
    notes = picture.wrapped(facts_of(keys, groups), columns=int(width * 15))
    header = 0.28 + 0.235 * len(title) + picture.MARGIN["line"] * len(notes)
    down = size.rows * (size.down + size.gap) + MARGIN["below"] + (MARGIN["group"] if len(groups) > 1 else 0)
    height = header + len(groups) * down + MARGIN["legend"]

    fig = Figure(figsize=(width, height), dpi=size.dpi)
    FigureCanvasAgg(fig)
    picture.write_header(fig, title, notes)
    for number, group in enumerate(groups):
        top = height - header - number * down
        if len(groups) > 1:
            fig.text(0.5, (top - 0.16) / height, group.name, fontsize=9, weight="bold", ha="center", va="center")
            top -= MARGIN["group"]
        _draw_group(fig, keys, group, size, top)
    _legend(fig, groups, size)
    return fig


@dataclass(frozen=True)
class Size:
    """How the frames of a query are laid out: rows and columns of frames, and inches of each.

    gap: above a frame. pitch: from one frame to the next in a row, at least its name's. step: tokens along a cell's
    side. clear: tokens are large enough for edges between them.
    """

    rows: int
    columns: int
    across: float
    down: float
    gap: float
    pitch: float
    dpi: float
    step: int
    clear: bool


def _fitted(group: Group) -> Size:
    """Frames as large as the box allows, at the resolution where a token (or cell) is a whole number of dots."""
    rows, columns = group.frames[0].kept.shape
    ratio = min(max(rows / columns, THINNEST), 1 / THINNEST)
    count, gap = len(group.frames), TOP_GAP if group.frames[0].name else 0.06
    named = max(len(frame.name) for frame in group.frames) * CHARACTER
    most = min(count, max(1, int((BOX[0] + SIDE_GAP) / (named + SIDE_GAP))))

    def across(in_row: int) -> float:
        fits = (BOX[0] + SIDE_GAP) / in_row - SIDE_GAP, (BOX[1] / ceil(count / in_row) - gap) / ratio
        return max(0.1, min(fits))

    chosen = [group.columns] if group.columns and group.columns <= most else range(1, most + 1)
    in_row = max(chosen, key=lambda n: (round(across(n), 3), -(-count // n * n)))
    wide = across(in_row)
    longer, side = (columns, wide) if columns >= rows else (rows, wide * ratio)
    step = max(1, ceil(longer / (side * MOST_DPI) - 1e-6))
    cells = ceil(longer / step)
    dots = max(1, round(DPI * side / cells))
    dots += dots * cells / side < LEAST_DPI
    clear = min(wide / columns, wide * ratio / rows) >= CLEAR
    pitch = max(wide, named) + SIDE_GAP
    return Size(ceil(count / in_row), in_row, wide, wide * ratio, gap, pitch, dots * cells / side, step, clear)


def _draw_group(fig: Any, keys: KeptKeys, group: Group, size: Size, top: float) -> None:
    width, height = fig.get_size_inches()
    left = MARGIN["left"] + (BOX[0] + size.pitch - size.across - size.columns * size.pitch) / 2
    several = len(keys.canvas.axes) > 2
    counted = several and all(len(frame.name) + 7 <= size.across * 14 for frame in group.frames)
    for number, frame in enumerate(group.frames):
        row, column = divmod(number, size.columns)
        corner = left + column * size.pitch, top - (row + 1) * (size.down + size.gap)
        start, foot = (round(inches * size.dpi) / size.dpi for inches in corner)  # at a whole dot
        axes = fig.add_axes((start / width, foot / height, size.across / width, size.down / height))
        _fill(axes, frame, size)
        above = (foot + size.down + 0.045) / height
        weight = "bold" if several and frame.own is not None else "normal"
        if counted:
            fig.text(start / width, above, frame.name, fontsize=8, weight=weight)
            count = f"{int(frame.kept.sum()):,}"
            fig.text((start + size.across) / width, above, count, fontsize=8, color="#555555", ha="right")
        else:
            fig.text((start + size.across / 2) / width, above, frame.name, fontsize=8, weight=weight, ha="center")
        _label(axes, keys, at_corner=number == (len(group.frames) - 1) // size.columns * size.columns)


def _fill(axes: Any, frame: Frame, size: Size) -> None:
    from matplotlib.colors import to_rgb

    rows, columns = frame.kept.shape
    palette = (np.array([to_rgb(COLORS[kind]) for kind in (EMPTY, PARTIAL, FULL)]) * 255).round().astype(np.uint8)
    cells = cells_of(frame, size.step)
    extent = (0, cells.shape[1] * size.step, cells.shape[0] * size.step, 0)
    axes.imshow(palette[cells], extent=extent, interpolation="none", aspect="auto")
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    if size.clear:
        for line, count in ((axes.axvline, columns), (axes.axhline, rows)):
            for position in range(1, count):
                line(position, color="#FFFFFF", linewidth=0.7)
    if frame.own is not None:
        _mark(axes, frame, size.clear)
    for spine in axes.spines.values():
        spine.set(color="#666666", linewidth=0.6)
        spine.set_position(("outward", 0.4))  # beside the tokens at the border


def _mark(axes: Any, frame: Frame, clear: bool) -> None:
    """The query's token: filled where it keeps itself, else an outline; a ring where tokens are too small."""
    from matplotlib.patches import Rectangle

    assert frame.own is not None
    row, column = frame.own
    if clear:
        axes.add_patch(Rectangle((column, row), 1, 1, linewidth=1.1, zorder=3, **_own_style(frame.kept[frame.own])))
        return
    for color, width in (("#FFFFFF", 2.8), (OWN, 1.6)):
        axes.plot(column + 0.5, row + 0.5, "o", markersize=7, markerfacecolor="none", markeredgecolor=color,
                  markeredgewidth=width, clip_on=False, zorder=3)  # fmt: skip


def _own_style(itself: bool) -> dict[str, Any]:
    return {"facecolor": OWN, "edgecolor": "#000000"} if itself else {"facecolor": COLORS[EMPTY], "edgecolor": OWN}


def _label(axes: Any, keys: KeptKeys, *, at_corner: bool) -> None:
    """The names of the image's axes and a few positions, at the frame in the lower left corner."""
    axes.set_xticks([])
    axes.set_yticks([])
    if not at_corner:
        return
    size = axes.get_window_extent()
    names = keys.canvas.names[-2:]
    sides = [(axes.xaxis, names[-1], size.width)] + ([(axes.yaxis, names[0], size.height)] if len(names) > 1 else [])
    for side, name, dots in sides:
        length = keys.canvas.lengths[name]
        most = round(dots / axes.figure.dpi * 1.6)
        few = sorted({0, length - 1}) if dots > 0.3 * axes.figure.dpi else [0]
        positions = list(ticks(0, length, 1, most)) if most > 2 else few
        side.set_ticks([position + 0.5 for position in positions], [f"{position:,}" for position in positions])
    axes.set_xlabel(f"{names[-1]} →", fontsize=8, labelpad=1)
    if len(names) > 1:
        axes.set_ylabel(f"← {names[0]}", fontsize=8, labelpad=2)
    axes.tick_params(labelsize=7, length=2, pad=1.5, color="#666666")


def facts_of(keys: KeptKeys, groups: Sequence[Group]) -> list[str]:
    """Sizes and counts in words."""
    sides = " × ".join(f"{length:,}" for length in keys.canvas.lengths.values())
    names = " × ".join(keys.canvas.names)
    facts = [f"{keys.length:,} tokens" + (f", {names} = {sides}" if len(keys.canvas.axes) > 1 else "")]
    if keys.length > keys.canvas.size:
        facts[0] += f" from token {keys.start:,}"
    if len(keys.queries) == 1:
        (count,) = keys.counts
        off = count - int(keys.kept.sum())
        share = picture.percent(count / keys.length) + (f", {off:,} of them off the canvas" if off else "")
        facts.append(f"{keys.named(0)} keeps {count:,} keys ({share})")
    facts += [group.note for group in groups if group.note] + ([keys.head] if keys.head else [])
    return facts


def _legend(fig: Any, groups: Sequence[Group], size: Size) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    some = [(COLORS[PARTIAL], "some kept")] if size.step > 1 else []
    handles = picture.patches([(COLORS[FULL], "kept"), *some, (COLORS[EMPTY], "not kept")])
    own = {bool(frame.kept[frame.own]) for group in groups for frame in group.frames if frame.own is not None}
    for itself in sorted(own, reverse=True):
        text = "the query" if itself else "the query, which does not keep itself"
        if size.clear:
            handles.append(Patch(linewidth=1.1, label=text, **_own_style(itself)))
        else:
            ring: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": OWN, "markeredgewidth": 1.6}
            handles.append(Line2D([], [], marker="o", linestyle="", markersize=7, label=text, **ring))
    picture.legend(fig, handles)
