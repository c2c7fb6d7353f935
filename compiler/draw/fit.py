"""A picture of a fit: for each head its observed map, the fitted pattern, and the mass kept against density."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..blocks.block_map import BlockMap
from ..fitting.fit import Fit, Fits
from .picture import COLORS, writable, write
from .scale import Shade, block_cells, ticks

PANEL, GAP, TOP = 2.2, 0.55, 0.5  # inches
CURVE, LEGEND = 3.4, 2.0
MOST_HEADS, MOST_FAMILIES, CELLS = 8, 6, 192
LINES = ("#0B4272", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def save(fits: Fits, path: str | Path) -> Path:
    """Draw the fits of the first 8 heads into a .png, .svg or .pdf file; returns its path. FS054.

    From left to right: the observed map, darker where heavier (by the cube root); the fitted pattern in logical order;
    its blocks in memory, under its order; and what each of the best families keeps of the head's mass, against its
    density. Dark blue is full, orange partial.
    """
    path = writable(path)
    return write(figure(fits), path)


def figure(fits: Fits) -> Any:
    """What `save` writes, as a matplotlib `Figure` that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown, problem = list(fits)[:MOST_HEADS], fits.problem
    width = 1.2 * GAP + 3 * (PANEL + GAP) + CURVE + LEGEND
    height = TOP + len(shown) * (PANEL + 1.5 * GAP) + 0.2
    fig = Figure(figsize=(width, height), dpi=120)
    FigureCanvasAgg(fig)
    title = f"{problem.q_len:,} x {problem.kv_len:,} tokens, budget {problem.budget:.3g} of the {problem.by}"
    fig.text(0.5, 1 - 0.12 / height, title, ha="center", va="top", fontsize=10.5, weight="bold")
    for row, fit in enumerate(shown):
        bottom = height - TOP - row * (PANEL + 1.5 * GAP) - 0.35 - PANEL
        lefts = [1.2 * GAP + column * (PANEL + GAP) for column in range(4)]
        sizes = zip(lefts, (PANEL, PANEL, PANEL, CURVE), strict=True)
        panels = [
            fig.add_axes((left / width, bottom / height, across / width, PANEL / height)) for left, across in sizes
        ]
        _observed(panels[0], fits, fit.head)
        _pattern(panels[1], fit)
        _blocks(panels[2], fit)
        _curve(panels[3], fits, fit)
    return fig


def _observed(axes: Any, fits: Fits, head: int) -> None:
    picture = np.cbrt(fits.picture[head].numpy())
    _map(axes, picture, fits.problem.q_len, fits.problem.kv_len, cmap="Greys", vmin=0)
    axes.set_title(f"head {head}: observed", fontsize=8.5)
    axes.set_ylabel("query", fontsize=8.5)


def _pattern(axes: Any, fit: Fit) -> None:
    fine = -(-fit.problem.q_len // CELLS), -(-fit.problem.kv_len // CELLS)
    _shaded(axes, replace(fit.problem, block_size=fine).map(fit.mask), fit.head)
    axes.set_title(textwrap.fill(fit.label, 44), fontsize=7.5, parse_math=False)


def _blocks(axes: Any, fit: Fit) -> None:
    _shaded(axes, fit.problem.map(fit.mask, fit.order), fit.head)
    axes.set_title("in memory" if fit.order is None else f"in memory: {fit.order}", fontsize=7.5, parse_math=False)


def _shaded(axes: Any, block_map: BlockMap, head: int) -> None:
    from matplotlib.colors import ListedColormap

    cells = block_cells(block_map, 0, head if block_map.heads > 1 else 0, (256, 256))
    colors = ListedColormap([COLORS[shade] for shade in Shade])
    ends = cells.shades.shape[0] * cells.cell_q, cells.shades.shape[1] * cells.cell_kv
    _map(axes, cells.shades, *ends, cmap=colors, vmin=0, vmax=len(Shade) - 1)
    axes.set_xlim(0, block_map.kv_len)
    axes.set_ylim(block_map.q_len, 0)
    axes.set_yticklabels([])


def _map(axes: Any, values: Any, q_len: int, kv_len: int, **style: Any) -> None:
    axes.imshow(values, extent=(0, kv_len, q_len, 0), interpolation="none", aspect="auto", **style)
    for side, length in ((axes.xaxis, kv_len), (axes.yaxis, q_len)):
        positions = list(ticks(0, length, 1, 4))
        side.set_ticks(positions, [f"{position:,}" for position in positions])
    _quiet(axes)


def _curve(axes: Any, fits: Fits, fit: Fit) -> None:
    curves = list(fits.curve(fit.head).items())[:MOST_FAMILIES]
    for color, (name, points) in zip(LINES, curves, strict=False):
        density, mass = np.array(list(dict(points).items())).T  # of one density, the last and largest mass
        axes.plot(density, mass, color=color, marker="o", markersize=3, linewidth=1.2, label=name)
    axes.plot(fit.density, fit.mass, marker="o", markersize=8, markerfacecolor="none", markeredgecolor="black")
    axes.axvline(fits.problem.budget, color="#8C8C8C", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, fits.problem.budget * 1.05)
    axes.set_ylim(0, 1.03)
    axes.set_title(f"mass kept: {fit.mass:.1%} at density {fit.density:.1%}", fontsize=8.5)
    axes.set_xlabel(f"density in {fits.problem.by}", fontsize=7.5, labelpad=1)
    axes.grid(color="#E6E6E6", linewidth=0.6)
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.03))
    _quiet(axes)


def _quiet(axes: Any) -> None:
    axes.tick_params(labelsize=7, length=3, color="#666666")
    for spine in axes.spines.values():
        spine.set(color="#666666", linewidth=0.8)
