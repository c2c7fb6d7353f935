"""A picture of a receptive field: the layer that first reaches each block, and the growth of the last query's reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..proofs.reach import Reach
from .picture import MOST_CELLS, SIDE, writable, write
from .scale import ticks

WIDTH, HEIGHT = 2 * SIDE + 2.6, SIDE + 1.15  # inches
LINE, BAND = "#0B4272", "#E69F00"


def save(reach: Reach, path: str | Path) -> Path:
    """Draw a reach into a .png, .svg or .pdf file; returns its path. FS054.

    Left, the first layer after which a key block may influence a query block: darker is earlier, white is not within
    the layers. Right, the keys that influence the last query after each layer, between the two bounds.
    """
    path = writable(path)
    return write(figure(reach), path)


def figure(reach: Reach) -> Any:
    """What `save` writes, as a matplotlib `Figure` that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(WIDTH, HEIGHT), dpi=150)
    FigureCanvasAgg(fig)
    down, bottom = 0.93 * SIDE / HEIGHT, 0.5 / HEIGHT
    field = fig.add_axes((0.85 / WIDTH, bottom, SIDE / WIDTH, down))
    scale = fig.add_axes(((SIDE + 1.0) / WIDTH, bottom, 0.14 / WIDTH, down))
    growth = fig.add_axes(((SIDE + 2.45) / WIDTH, bottom, (SIDE - 0.2) / WIDTH, down))
    _field(field, scale, reach)
    _growth(growth, reach)
    style: dict[str, Any] = {"ha": "center", "va": "top", "parse_math": False}
    fig.text(0.5, 1 - 0.13 / HEIGHT, _short(reach.label), fontsize=11.5, weight="bold", **style)
    facts = f"{reach.length:,} tokens  ·  blocks of {reach.block_size}  ·  {reach.full_text()}"
    fig.text(0.5, 1 - 0.4 / HEIGHT, facts, fontsize=8.5, color="#444444", **style)
    return fig


def _short(label: str) -> str:
    return label if len(label) <= 110 else label[:108] + " …"


def earliest(first: Any, most: int) -> Any:
    """`first` [blocks, blocks] in at most `most` cells a side: a cell has the earliest layer of its blocks."""
    edges = np.arange(0, len(first), -(-len(first) // most))
    return np.minimum.reduceat(np.minimum.reduceat(first, edges, axis=0), edges, axis=1)


def _field(axes: Any, scale: Any, reach: Reach) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    first = earliest(reach.possible, MOST_CELLS)
    per_cell = -(-len(reach.possible) // MOST_CELLS) * reach.block_size
    end = len(first) * per_cell  # a last cell of fewer tokens is cut off, not squeezed
    norm = BoundaryNorm(np.arange(reach.layers + 2) - 0.5, 256)
    shown = np.ma.masked_greater(first, reach.layers)
    axes.imshow(shown, norm=norm, cmap="viridis", extent=(0, end, end, 0), interpolation="none", aspect="auto")
    axes.set_xlim(0, reach.length)
    axes.set_ylim(reach.length, 0)
    axes.xaxis.set_ticks_position("top")
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("key position", fontsize=9.5, labelpad=6)
    axes.set_ylabel("query position", fontsize=9.5, labelpad=6)
    for side in (axes.xaxis, axes.yaxis):
        positions = list(ticks(0, reach.length, reach.block_size if reach.length > reach.block_size else 1, 7))
        side.set_ticks(positions, [f"{position:,}" for position in positions])
    _quiet(axes)
    step = -(-(reach.layers + 1) // 12)
    bar = axes.figure.colorbar(ScalarMappable(norm, colormaps["viridis"]), cax=scale)
    bar.set_ticks(np.arange(0, reach.layers + 1, step))
    bar.minorticks_off()
    bar.set_label("first layer that may reach it (white: none of these)", fontsize=8.5)
    _quiet(scale)


def _growth(axes: Any, reach: Reach) -> None:
    layers = range(reach.layers + 1)
    least, most = np.array([reach.last_query(layer) for layer in layers]).T
    if (least == most).all():
        axes.plot(layers, most, color=LINE, marker="o", markersize=3.5, label="keys")
    else:
        axes.fill_between(layers, least, most, color=BAND, alpha=0.35, linewidth=0)
        axes.plot(layers, most, color=LINE, marker="o", markersize=3.5, label="at most")
        axes.plot(layers, least, color=BAND, marker="o", markersize=3.5, label="at least")
    axes.axhline(reach.length, color="#8C8C8C", linewidth=0.8, linestyle=":")
    axes.set_yscale("log", base=2)
    axes.set_ylim(0.8, 1.5 * reach.length)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("layers", fontsize=9.5)
    axes.set_ylabel("keys that influence the last query", fontsize=9.5)
    axes.grid(color="#E6E6E6", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8.5, loc="lower right")
    _quiet(axes)


def _quiet(axes: Any) -> None:
    axes.tick_params(labelsize=8, length=3, color="#666666")
    for spine in axes.spines.values():
        spine.set(color="#666666", linewidth=0.8)
