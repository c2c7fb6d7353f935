"""One mask under several orders, side by side: what an order changes is which blocks the mask fills."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flexspec.errors import FlexSpecError
from flexspec.mask import Mask, from_mask_mod
from flexspec.order import Order
from flexspec.user_line import user_caret

from ..blocks.block_map import BlockMap
from ..blocks.grid import BlockSize, check_orders
from ..blocks.runs import BlockKind
from ..maps import block_map
from . import picture, terminal
from .scale import Cells, heads_text, whole

IN_ROW = {1: 1, 2: 2, 4: 2}  # maps in a row, by how many there are; else 3
SIDES = {1: 5.4, 2: 3.2, 3: 2.6}  # inches of a map's longer axis, by maps in a row
GAP, ABOVE, LEFT, RIGHT = 0.3, 0.9, 0.75, 0.2  # inches beside and above a map, and at the figure's sides


def show_orders(
    mask: Mask | Callable[..., Any],
    orders: Sequence[Order | None],
    path: str | Path | None = None,
    *,
    length: int | None = None,
    block_size: BlockSize = 128,
    b: int = 0,
    h: int = 0,
    batch: int | None = None,
    heads: int | None = None,
    **inputs: Any,
) -> Path | str:
    """Draw the block maps of one mask under several orders: side by side into a picture file, whose path is returned,
    or without a path below each other in the terminal.

    mask: a `Mask`, or a FlexAttention mask_mod as it is.
    orders: at least one; None is the order of logical positions.
    path: a .png, .svg or .pdf file, or None.
    length: tokens; the canvas' own where left out.
    block_size: tokens, one number or (query, key).
    b, h: which batch and head.
    batch, heads: how many there are, where the mask depends on them and no input says it.
    inputs: run-time values by name.

    Raises FS020 (no order, no length), FS030 (a batch or head that is not there), FS033 (what is no list of orders),
    FS054 (another suffix, or a file that cannot be written), and what `fs.block_map` raises.

    >>> import flexspec as fs
    >>> image = fs.Canvas(h=16, w=32)
    >>> near = fs.neighborhood(image, window=7)
    >>> fs.show_orders(near, [None, fs.tiled(image, h=4, w=4)], "orders.png", block_size=16)  # doctest: +SKIP
    PosixPath('orders.png')
    """
    mask, orders = from_mask_mod(mask), check_orders(orders)
    if not orders:
        raise FlexSpecError("FS020", "no order is given", fix="give one or more, or None", where=user_caret())
    tokens = mask.canvas.size if length is None and mask.canvas else length
    if tokens is None:
        raise FlexSpecError("FS020", "the length is not given", fix="give length=4096", where=user_caret())
    shared: dict[str, Any] = {"batch": batch, "heads": heads, "block_size": block_size, **inputs}
    maps = [block_map(mask, tokens, order=order, **shared) for order in orders]
    if path is not None:
        return save(maps, path, b=b, h=h)
    text = "\n\n".join(terminal.draw(blocks, b=b, h=h) for blocks in maps)
    print(text)
    return text


def save(maps: Sequence[BlockMap], path: str | Path, *, b: int = 0, h: int = 0) -> Path:
    """Draw block maps of one mask side by side into a .png, .svg or .pdf file; returns its path. FS030, FS054."""
    path = picture.writable(path)
    return picture.write(figure(maps, b=b, h=h), path)


def title_of(blocks: BlockMap, b: int = 0, h: int = 0) -> list[str]:
    """The order, and what it costs: blocks that are not empty, of how many, and how many of them are full."""
    counts = blocks.of(b, h).counts()
    partial, full, every = counts[BlockKind.PARTIAL], counts[BlockKind.FULL], blocks.q_blocks * blocks.kv_blocks
    name = "logical order" if blocks.order is None else str(blocks.order)
    share = picture.percent((partial + full) / every)
    note = picture.tile_note(blocks, whole(blocks))
    return [name, f"{partial + full:,} of {every:,} blocks, {share}", "; ".join([f"{full:,} of them full", *note])]


def figure(maps: Sequence[BlockMap], *, b: int = 0, h: int = 0) -> Any:
    """What `show_orders` writes, as a matplotlib `Figure` that belongs to no window. FS030."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [picture.cells_of(blocks, b, h) for blocks in maps]
    in_row = IN_ROW.get(len(maps), 3)
    dpi = picture.axes_size(drawn[0], SIDES[in_row]).dpi
    sizes = [picture.axes_size(cells, SIDES[in_row], dpi) for cells in drawn]
    across, down = max(size.across for size in sizes), max(size.down for size in sizes)
    width = max(LEFT + RIGHT + in_row * across + (in_row - 1) * (GAP + LEFT / 2), 6.4)
    title = picture.titled(maps[0].label, columns=int(width * 9.5))
    notes = picture.wrapped(_facts(maps[0], heads_text(maps[0], b, h)), columns=int(width * 15))
    header = 0.28 + 0.235 * len(title) + picture.MARGIN["line"] * len(notes)
    height = header + -(-len(maps) // in_row) * (ABOVE + down) + 0.5
    fig = Figure(figsize=(width, height), dpi=dpi)
    FigureCanvasAgg(fig)
    picture.write_header(fig, title, notes)
    used = in_row * across + (in_row - 1) * (GAP + LEFT / 2)
    start = LEFT + (width - LEFT - RIGHT - used) / 2
    for number, (blocks, cells, size) in enumerate(zip(maps, drawn, sizes, strict=True)):
        row, column = divmod(number, in_row)
        left = start + column * (across + GAP + LEFT / 2)
        top = height - header - row * (ABOVE + down) - ABOVE
        axes = fig.add_axes((left / width, (top - size.down) / height, size.across / width, size.down / height))
        picture.fill(axes, blocks, cells, [picture.COLORS[shade] for shade in picture.Shade], labels=False)
        name, *rest = title_of(blocks, b, h)
        style: dict[str, Any] = {"ha": "center", "parse_math": False}
        middle = (left + size.across / 2) / width
        fig.text(middle, (top + 0.62) / height, name, fontsize=9, weight="bold", **style)
        fig.text(middle, (top + 0.28) / height, "\n".join(rest), fontsize=8.5, color="#444444", **style)
    picture.legend(fig, picture.patches(_entries(drawn)))
    return fig


def _facts(blocks: BlockMap, head: str) -> list[str]:
    tokens = blocks.q_len if blocks.order is None or blocks.order.canvas is None else blocks.order.canvas.size
    facts = [
        f"{tokens:,} tokens",
        f"blocks of {blocks.block_q} × {blocks.block_kv}",
        "queries downwards, keys rightwards",
    ]
    return [*facts, head] if head else facts


def _entries(drawn: Sequence[Cells]) -> list[tuple[str, str]]:
    shades = picture.Shade
    pairs = any(cells.pairs for cells in drawn)
    entries = [(shades.BLANK, "empty blocks"), (shades.DROPPED if pairs else shades.MIXED, "partial blocks")]
    entries += [(shades.KEPT, "pairs kept in them")] if pairs else []
    return [(picture.COLORS[shade], text) for shade, text in [*entries, (shades.SOLID, "full blocks")]]
