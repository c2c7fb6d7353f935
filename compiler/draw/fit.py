"""A picture of a fit: for each head its observed map, the fitted pattern, and the mass kept against density."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .picture import COLORS, writable, write
from .scale import Shade, block_cells, ticks

if TYPE_CHECKING:
    from ..planning.fit import Fit, Fits

PANEL, GAP, TOP = 2.3, 0.55, 0.75  # inches
MOST_HEADS, MOST_FAMILIES = 8, 6
LINES = ("#0B4272", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def save(fits: Fits, path: str | Path) -> Path:
    """Draw the fits of the first 8 heads into a .png, .svg or .pdf file; returns its path. FS054.

    Left, the observed map: darker is heavier, by the cube root. Middle, the fitted pattern in logical order, by blocks:
    dark is full, orange partial. Right, what each of the best families keeps of the head's mass, against its density.
    """
    path = writable(path)
    return write(figure(fits), path)


def figure(fits: Fits) -> Any:
    """What `save` writes, as a matplotlib `Figure` that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = list(fits)[:MOST_HEADS]
    width, height = 4 * PANEL + 5.2 * GAP + 0.4, TOP + len(shown) * (PANEL + GAP)
    made = Figure(figsize=(width, height), dpi=130)
    FigureCanvasAgg(made)
    measured = {"blocks": "blocks computed", "pairs": "pairs kept"}[fits.problem.by]
    problem = fits.problem
    title = f"{problem.q_len:,} x {problem.kv_len:,} tokens, budget {problem.budget:.3g} of the {problem.by}"
    made.text(0.5, 1 - 0.12 / height, title, ha="center", va="top", fontsize=10.5, weight="bold")
    for row, fit in enumerate(shown):
        bottom = (height - TOP - (row + 1) * (PANEL + GAP) + 1.1 * GAP) / height
        places = [(1.4 * GAP + column * (PANEL + GAP)) / width for column in range(2)]
        panels = [made.add_axes((left, bottom, PANEL / width, PANEL / height)) for left in places]
        left = (1.4 * GAP + 2 * (PANEL + GAP) + 0.5 * GAP) / width
        curve = made.add_axes((left, bottom, 1.95 * PANEL / width, PANEL / height))
        _observed(panels[0], fits, fit.head)
        _pattern(panels[1], fit)
        _curve(curve, fits, fit)
        if fit is shown[-1]:
            curve.set_xlabel(f"density: {measured}", fontsize=8.5)
    return made


def _observed(axes: Any, fits: Fits, head: int) -> None:
    picture = np.cbrt(fits.picture[head].numpy())
    _map(axes, picture, fits.problem.q_len, fits.problem.kv_len, cmap="Greys")
    axes.set_title(f"head {head}: observed", fontsize=8.5)
    axes.set_ylabel("query", fontsize=8.5)


def _pattern(axes: Any, fit: Fit) -> None:
    from matplotlib.colors import ListedColormap

    problem = fit.problem
    cells = block_cells(problem.map(fit.mask), 0, fit.head, (256, 256))
    colors = ListedColormap([COLORS[shade] for shade in Shade])
    ends = cells.shades.shape[0] * cells.cell_q, cells.shades.shape[1] * cells.cell_kv
    _map(axes, cells.shades, *ends, cmap=colors, vmin=0, vmax=len(Shade) - 1)
    axes.set_xlim(0, problem.kv_len)
    axes.set_ylim(problem.q_len, 0)
    axes.set_yticklabels([])
    order = "" if fit.order is None else f"order {fit.order}"
    axes.set_title(textwrap.fill(fit.label, 46), fontsize=7.5, parse_math=False)
    axes.set_xlabel(order, fontsize=7.5)


def _map(axes: Any, values: Any, q_len: int, kv_len: int, **style: Any) -> None:
    axes.imshow(values, extent=(0, kv_len, q_len, 0), interpolation="none", aspect="auto", **style)
    for side, length in ((axes.xaxis, kv_len), (axes.yaxis, q_len)):
        at = list(ticks(0, length, 1, 4))
        side.set_ticks(at, [f"{value:,}" for value in at])
    _quiet(axes)


def _curve(axes: Any, fits: Fits, fit: Fit) -> None:
    curves = list(fits.curve(fit.head).items())[:MOST_FAMILIES]
    for color, (name, points) in zip(LINES, curves, strict=False):
        density, mass = np.array(points).T
        axes.plot(density, mass, color=color, marker="o", markersize=3, linewidth=1.2, label=name)
    axes.plot(fit.density, fit.mass, marker="o", markersize=8, markerfacecolor="none", markeredgecolor="black")
    axes.axvline(fits.problem.budget, color="#8C8C8C", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, fits.problem.budget * 1.05)
    axes.set_ylim(0, 1.03)
    axes.set_title(f"mass kept: {fit.mass:.1%} at density {fit.density:.1%}", fontsize=8.5)
    axes.grid(color="#E6E6E6", linewidth=0.6)
    axes.legend(frameon=False, fontsize=7, loc="lower right")
    _quiet(axes)


def _quiet(axes: Any) -> None:
    axes.tick_params(labelsize=7, length=3, color="#666666")
    for spine in axes.spines.values():
        spine.set(color="#666666", linewidth=0.8)
