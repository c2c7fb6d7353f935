"""Pictures of block maps as image files: queries downwards, keys rightwards, both in tokens."""

from __future__ import annotations

import textwrap
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flexspec.errors import FlexSpecError, choices

from ..blocks.block_map import BlockMap
from .scale import Cells, Region, Shade, block_cells, heads_text, pair_cells, ticks, whole

SUFFIXES = (".png", ".svg", ".pdf")

# Orange and blue stay apart for colour-blind readers; each shade is darker than the one before, so that they
# also survive a black-and-white printer.
COLORS = {
    Shade.BLANK: "#FFFFFF",
    Shade.DROPPED: "#FBE6BF",
    Shade.MIXED: "#E69F00",
    Shade.KEPT: "#B55A00",
    Shade.SOLID: "#0B4272",
}
TILES = "#A3246E"  # lines where tiles of an order begin
MOST_TILES = 32  # on a side, of which borders are drawn
MOST_CELLS = 640  # per side: about as many as a page can show
SMALL = 64  # tokens per side up to which a whole map is drawn pair by pair, and lines are drawn between tokens
SIDE = 5.4  # inches of the longer axis
THINNEST = 0.2  # of the longer axis: what a single query's row is stretched to
MARGIN = {"left": 1.0, "right": 0.35, "axis": 0.58, "legend": 0.5, "line": 0.2}  # inches


def save(block_map: BlockMap, path: str | Path, *, b: int = 0, h: int = 0, region: Region | None = None) -> Path:
    """Draw batch `b`, head `h` of the map into a .png, .svg or .pdf file; returns its path.

    Without a region the whole map is drawn by blocks (by pairs where it has at most 64 x 64 tokens).
    region: (q_start, q_stop, kv_start, kv_stop) in tokens, at most 4,096 on a side, drawn pair by pair with
    the blocks' boundaries. Where there are more cells than a page shows, a cell has the kind that one block
    of its size would have: empty or full where all of it is, else partial. Raises FS030 (head, region),
    FS054 (the file).

    >>> save(block_map, "mask.png", region=(0, 512, 0, 512))  # doctest: +SKIP
    PosixPath('mask.png')
    """
    path = writable(path)
    return write(figure(block_map, b=b, h=h, region=region), path)


def writable(path: str | Path) -> Path:
    """The path, if its suffix is one that a picture is written as. FS054."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        message = f"a picture cannot be written as {path.suffix or 'a file without a suffix'}: {path}"
        raise FlexSpecError("FS054", message, fix=f"end its name in {choices(SUFFIXES)}")
    return path


def write(fig: Any, path: Path) -> Path:
    """A figure into a file that says nothing of when or by what it was written; its path. FS054."""
    stamp = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(path, metadata=stamp[path.suffix.lower()])
    except OSError as error:
        raise FlexSpecError("FS054", f"{path} cannot be written: {error.strerror or error}") from None
    return path


def figure(block_map: BlockMap, *, b: int = 0, h: int = 0, region: Region | None = None) -> Any:
    """What `save` writes, as a matplotlib `Figure` that belongs to no window. Raises FS030."""
    cells = cells_of(block_map, b, h, region)
    facts = _facts(block_map, cells, heads_text(block_map, b, h))
    return laid_out(block_map, cells, block_map.label, facts, [COLORS[shade] for shade in Shade], _entries(cells))


def cells_of(block_map: BlockMap, b: int, h: int, region: Region | None = None) -> Cells:
    """A map by blocks; a region, or a map of at most 64 x 64 tokens, by pairs. FS030."""
    if region is None and max(block_map.q_len, block_map.kv_len) <= SMALL:
        region = whole(block_map)
    most = (MOST_CELLS, MOST_CELLS)
    return pair_cells(block_map, b, h, region, most) if region else block_cells(block_map, b, h, most)


def laid_out(
    block_map: BlockMap, cells: Cells, label: str, facts: list[str], colors: list[str], entries: list[tuple[str, str]]
) -> Any:
    """Cells in `colors` under a label and facts, over a legend of (color, text).

    The figure with its parts placed in inches, so that text has one size at every shape of map."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across, down, dpi = axes_size(cells)
    width = max(across + MARGIN["left"] + MARGIN["right"], 6.4)
    title = titled(label, columns=int(width * 10.5))
    notes = wrapped(facts, columns=int(width * 15.5))
    header = 0.16 + 0.235 * len(title) + MARGIN["line"] * len(notes) + MARGIN["axis"]
    height = header + down + MARGIN["legend"]

    fig = Figure(figsize=(width, height), dpi=dpi)
    FigureCanvasAgg(fig)
    left = MARGIN["left"] + max(0.0, width - across - MARGIN["left"] - MARGIN["right"]) / 2
    axes = fig.add_axes((left / width, MARGIN["legend"] / height, across / width, down / height))
    fill(axes, block_map, cells, colors)
    write_header(fig, title, notes)
    legend(fig, patches(entries))
    return fig


def write_header(fig: Any, title: list[str], notes: list[str]) -> None:
    """The title's and the notes' lines at the top of a figure."""
    height = fig.get_size_inches()[1]
    style: dict[str, Any] = {"ha": "center", "va": "top", "parse_math": False}
    fig.text(0.5, 1 - 0.13 / height, "\n".join(title), fontsize=11.5, weight="bold", linespacing=1.25, **style)
    below = 0.16 + 0.235 * len(title)
    fig.text(0.5, 1 - below / height, "\n".join(notes), fontsize=8.5, color="#444444", linespacing=1.4, **style)


class AxesSize(NamedTuple):
    """Inches of a drawn map, and the dots per inch of its figure."""

    across: float
    down: float
    dpi: float


def axes_size(cells: Cells, side: float = SIDE, dpi: float | None = None) -> AxesSize:
    """The size at which each cell is a whole number of dots.

    side: inches of the longer axis. dpi: where it is chosen already."""
    q_start, q_stop, kv_start, kv_stop = cells.region
    rows, columns = (q_stop - q_start) / cells.cell_q, (kv_stop - kv_start) / cells.cell_kv
    ratio = (q_stop - q_start) / (kv_stop - kv_start)
    down, across = side * min(1.0, max(ratio, THINNEST)), side * min(1.0, max(1 / ratio, THINNEST))
    longer = max((columns, across), (rows, down), key=lambda side: side[1])
    dpi = dpi or max(1, round(200 * longer[1] / longer[0])) * longer[0] / longer[1]
    across_dots = max(1, round(across * dpi / columns)) * columns
    down_dots = max(1, round(down * dpi / rows)) * rows
    return AxesSize(across_dots / dpi, down_dots / dpi, dpi)


def fill(axes: Any, block_map: BlockMap, cells: Cells, colors: list[str], *, labels: bool = True) -> None:
    """Cells with lines and ticks; with labels of both axes."""
    from matplotlib.colors import to_rgb

    q_start, q_stop, kv_start, kv_stop = cells.region
    palette = (np.array([to_rgb(color) for color in colors]) * 255).round().astype(np.uint8)
    rows, columns = cells.shades.shape
    # A last cell that covers fewer tokens is cut off at the map's edge, not squeezed.
    right, bottom = kv_start + columns * cells.cell_kv, q_start + rows * cells.cell_q
    axes.imshow(palette[cells.shades], extent=(kv_start, right, bottom, q_start), interpolation="none", aspect="auto")
    axes.set_xlim(kv_start, kv_stop)
    axes.set_ylim(q_stop, q_start)
    _lines(axes, block_map, cells)
    _tile_lines(axes, block_map, cells)
    axes.xaxis.set_ticks_position("top")
    axes.xaxis.set_label_position("top")
    if labels:
        axes.set_xlabel(_axis_label("key position", block_map), fontsize=9.5, labelpad=6)
        axes.set_ylabel(_axis_label("query position", block_map), fontsize=9.5, labelpad=6)
    size = axes.get_window_extent()
    for side, start, stop, block, most in (
        (
            axes.xaxis,
            kv_start,
            kv_stop,
            block_map.block_kv,
            max(2, round(7 * size.width / axes.figure.dpi / SIDE)),
        ),
        (
            axes.yaxis,
            q_start,
            q_stop,
            block_map.block_q,
            max(2, round(9 * size.height / axes.figure.dpi / SIDE)),
        ),
    ):
        positions = list(ticks(start, stop, block if stop - start > block else 1, most))
        side.set_ticks(positions, [f"{position:,}" for position in positions])
    axes.tick_params(labelsize=8, length=3, color="#666666")
    for spine in axes.spines.values():
        spine.set(color="#666666", linewidth=0.8)
        spine.set_position(("outward", 0.5))  # beside the cells, not over a column of one dot


def _axis_label(name: str, block_map: BlockMap) -> str:
    return f"{name} in memory order" if block_map.order is not None else name


def _lines(axes: Any, block_map: BlockMap, cells: Cells) -> None:
    """Lines between tokens and between blocks, each where they are few enough to help."""
    q_start, q_stop, kv_start, kv_stop = cells.region
    sides = (
        (axes.axhline, q_start, q_stop, block_map.block_q),
        (axes.axvline, kv_start, kv_stop, block_map.block_kv),
    )
    if cells.pairs and max(q_stop - q_start, kv_stop - kv_start) <= SMALL:
        for line, start, stop, _ in sides:
            for position in range(start + 1, stop):
                line(position, color="#FFFFFF", linewidth=1.1)
                line(position, color="#D9D9D9", linewidth=0.35)
    if max((stop - start) / block for _, start, stop, block in sides) > SMALL:
        return
    many = max((stop - start) / block for _, start, stop, block in sides) > SMALL / 4
    color, width = ("#8C8C8C", 0.35) if many else ("#555555", 0.7)
    if not cells.pairs:
        color, width = "#BDBDBD", 0.45
    for line, start, stop, block in sides:
        if block > 1 or not cells.pairs:
            for position in starts(start, stop, block):
                line(position, color=color, linewidth=width)


def starts(start: int, stop: int, step: int) -> range:
    """Multiples of `step` inside a side, its own edges left out."""
    return range(-(-(start + 1) // step) * step, stop, step)


def tile_of(block_map: BlockMap) -> int:
    """Memory positions of a tile of the map's order; 1 where it has no tiles."""
    return prod(getattr(block_map.order, "tile", ()))


def tile_starts(block_map: BlockMap, region: Region) -> tuple[range, range]:
    """Where tiles of the map's order begin in a region, on both sides: none where there are too many to see, or where
    a tile is a block.

    A map that was sliced counts its queries from the cut, so that tiles are known on the side of the keys only.
    """
    order, tile, none = block_map.order, tile_of(block_map), range(0)
    q_start, q_stop, kv_start, kv_stop = region
    many = max(q_stop - q_start, kv_stop - kv_start) > MOST_TILES * tile
    if order is None or order.canvas is None or tile == 1 or many:
        return none, none
    on_q = block_map.q_len == order.padded(order.canvas.size) and tile != block_map.block_q
    on_kv = tile != block_map.block_kv
    return starts(q_start, q_stop, tile) if on_q else none, starts(kv_start, kv_stop, tile) if on_kv else none


def tile_note(block_map: BlockMap, region: Region) -> list[str]:
    """What a picture says of its tiles."""
    if any(tile_starts(block_map, region)):
        return [f"purple: tiles of {tile_of(block_map):,}"]
    return ["a tile is a block"] if tile_of(block_map) == block_map.block_q == block_map.block_kv > 1 else []


def _tile_lines(axes: Any, block_map: BlockMap, cells: Cells) -> None:
    for line, positions in zip((axes.axhline, axes.axvline), tile_starts(block_map, cells.region), strict=True):
        width = 1.3 if cells.pairs else 0.8 if len(positions) <= MOST_TILES / 2 else 0.4
        for position in positions:
            line(position, color=TILES, linewidth=width)


def titled(label: str, columns: int) -> list[str]:
    lines = textwrap.wrap(label, columns, break_long_words=True) or [""]
    return lines if len(lines) <= 3 else [*lines[:2], textwrap.shorten(" ".join(lines[2:]), columns, placeholder=" …")]


def _facts(block_map: BlockMap, cells: Cells, head: str) -> list[str]:
    q_start, q_stop, kv_start, kv_stop = cells.region
    facts = [f"{block_map.q_len:,} queries × {block_map.kv_len:,} keys"]
    if cells.region != whole(block_map):
        facts.append(f"region q {q_start:,}–{q_stop:,}, kv {kv_start:,}–{kv_stop:,}")
    facts.append(f"blocks of {block_map.block_q} × {block_map.block_kv}")
    if block_map.order is not None:
        facts.append(f"order {block_map.order}")
    facts += tile_note(block_map, cells.region)
    if head:
        facts.append(head)
    facts.append(f"density {percent(block_map.density)}")
    step = (cells.cell_q, cells.cell_kv)
    if not cells.pairs:
        step = (step[0] // block_map.block_q, step[1] // block_map.block_kv)
    if step != (1, 1):
        facts.append(f"a dot is {step[0]} × {step[1]} {'pairs' if cells.pairs else 'blocks'}")
    return facts


def wrapped(facts: list[str], columns: int) -> list[str]:
    lines = [facts[0]]
    for fact in facts[1:]:
        joined = f"{lines[-1]}  ·  {fact}"
        lines = [*lines[:-1], joined] if len(joined) <= columns else [*lines, fact]
    return lines


def percent(share: float) -> str:
    """A share in three digits."""
    return f"{100 * share:.3g}%"


def _entries(cells: Cells) -> list[tuple[str, str]]:
    empty, partial, full = cells.blocks
    entries = [(COLORS[Shade.BLANK], f"empty blocks: {empty:,}")]
    entries.append((COLORS[Shade.DROPPED if cells.pairs else Shade.MIXED], f"partial blocks: {partial:,}"))
    if cells.pairs and partial:
        entries.append((COLORS[Shade.KEPT], "pairs kept in them"))
    if cells.pairs and bool((cells.shades == Shade.MIXED).any()):
        entries.append((COLORS[Shade.MIXED], "some kept"))
    return [*entries, (COLORS[Shade.SOLID], f"full blocks: {full:,}")]


def patches(entries: list[tuple[str, str]]) -> list[Any]:
    """A legend's squares of (color, text)."""
    from matplotlib.patches import Patch

    return [Patch(facecolor=color, edgecolor="#666666", linewidth=0.6, label=text) for color, text in entries]


def legend(fig: Any, handles: list[Any]) -> None:
    """One line at the foot of a figure."""
    fig.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.0), ncols=len(handles), frameon=False,
        fontsize=8.5, handlelength=1.1, handleheight=1.1, columnspacing=1.4, handletextpad=0.5,
    )  # fmt: skip
