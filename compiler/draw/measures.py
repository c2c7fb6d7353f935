"""Pictures of measured attention: strips of heads, or of layers, along the positions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..measuring.measure import Measures
from ..measuring.recall import Recall
from ..measuring.rollout import Rollout
from .picture import writable, write
from .scale import ticks

WIDTH, LEFT, RIGHT, TOP, GAP = 8.6, 0.95, 1.15, 0.75, 0.85  # inches
STRIP, LEAST, MOST = 0.16, 0.9, 2.6  # inches of a row, and of a panel
QUERIES, KEYS = 512, 160  # most cells along a strip; a single key is to be seen
MOST_TOKENS = 6


class Panel(NamedTuple):
    """One measure.

    cells: [heads or layers, cells], nan where there is nothing. length: positions. share: its scale goes from 0 to 1.
    gamma: the power by which it is shaded.
    """

    title: str
    cells: Any
    length: int
    down: str
    across: str
    share: bool = False
    gamma: float = 1.0


def save_measures(found: Measures, path: str | Path) -> Path:
    """Draw each measure by head and query and each key's importance, the batch averaged. FS054.

    Where many positions share a cell, it has the mean of its queries, or the largest of its keys. Grey: queries that
    keep nothing, and keys that none keeps.
    """
    some = found.lse > -torch.inf
    panels = []
    for name, each in found.by_query.items():
        unit = {"entropy": " (nats)", "distance": " (tokens)"}.get(name, "")
        cells = binned(_mean(each, some), QUERIES)
        panels.append(Panel(name + unit, cells, each.shape[2], "head", "query position", share=name.startswith("mass")))
    importance = _mean(found.importance, found.column_counts > 0)
    title = "importance: mean weight from the queries that keep a key"
    panels.append(Panel(title, binned(importance, KEYS, "largest"), importance.shape[1], "head", "key position", True))
    return _save(found.label, panels, path)


def save_recall(found: Recall, path: str | Path) -> Path:
    """Draw the share of the mass that is kept, by head and query, the batch averaged. FS054."""
    share = _mean(found.share, found.lse > -torch.inf)
    panel = Panel("mass kept", binned(share, QUERIES), share.shape[1], "head", "query position", share=True)
    return _save(f"{found.mask} within {found.within}", [panel], path)


def save_rollout(found: Rollout, path: str | Path) -> Path:
    """Draw the flow to each of the first 6 tokens, the batch averaged. FS054.

    Above, the input of the first layer; at the bottom, the token itself after the last. A cell has the sum of its
    tokens, shaded by the cube root.
    """
    panels = []
    for token, rows in zip(found.tokens[:MOST_TOKENS], found.flow.mean(1).unbind(1), strict=False):
        cells = binned(rows.cpu().double().numpy(), KEYS, "sum")
        title = f"what token {token:,} gets"
        panels.append(Panel(title, cells, rows.shape[1], "after layer", "token", share=True, gamma=1 / 3))
    return _save(found.label, panels, path)


def _mean(each: torch.Tensor, some: torch.Tensor) -> Any:
    """[heads, positions]: the mean over the batch of what there is, nan where there is nothing."""
    total = torch.where(some, each, 0.0).sum(0) / some.sum(0)
    return total.cpu().double().numpy()


def binned(rows: Any, most: int, how: str = "mean") -> Any:
    """[rows, positions] in at most `most` columns: the mean, the largest or the sum of what is no nan in each."""
    edges = np.arange(0, rows.shape[1], -(-rows.shape[1] // most))
    some = ~np.isnan(rows)
    add = np.maximum if how == "largest" else np.add
    found = add.reduceat(np.where(some, rows, 0.0), edges, axis=1)
    count = np.add.reduceat(some, edges, axis=1, dtype=np.int64)
    return np.where(count > 0, found / np.maximum(count, 1) if how == "mean" else found, np.nan)


def _save(label: str, panels: Sequence[Panel], path: str | Path) -> Path:
    path = writable(path)
    return write(figure(label, panels), path)


def figure(label: str, panels: Sequence[Panel]) -> Any:
    """The panels below each other, as a matplotlib `Figure` that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [min(MOST, max(LEAST, STRIP * len(panel.cells))) for panel in panels]
    height = TOP + sum(heights) + GAP * len(panels) - 0.3
    fig = Figure(figsize=(WIDTH, height), dpi=150)
    FigureCanvasAgg(fig)
    style: dict[str, Any] = {"ha": "center", "va": "top", "parse_math": False}
    title = label if len(label) <= 100 else label[:98] + " …"
    fig.text(0.5, 1 - 0.13 / height, title, fontsize=11.5, weight="bold", **style)
    top, across = height - TOP, WIDTH - LEFT - RIGHT
    for panel, down in zip(panels, heights, strict=True):
        top -= down
        axes = fig.add_axes((LEFT / WIDTH, top / height, across / WIDTH, down / height))
        bar = fig.add_axes(((LEFT + across + 0.12) / WIDTH, top / height, 0.12 / WIDTH, down / height))
        _panel(axes, bar, panel)
        top -= GAP
    return fig


def _panel(axes: Any, bar: Any, panel: Panel) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    count, cells = panel.cells.shape
    end = cells * -(-panel.length // cells)  # a last cell of fewer positions is cut off, not squeezed
    style: dict[str, Any] = {"cmap": colormaps["viridis"].with_extremes(bad="#BFBFBF"), "interpolation": "none"}
    norm = PowerNorm(panel.gamma, vmin=0.0, vmax=1.0 if panel.share else None)
    extent = (0, end, count - 0.5, -0.5)
    picture = axes.imshow(np.ma.masked_invalid(panel.cells), norm=norm, extent=extent, aspect="auto", **style)
    axes.set_xlim(0, panel.length)
    axes.set_title(panel.title, fontsize=9, parse_math=False)
    axes.set_xlabel(panel.across, fontsize=8.5, labelpad=2)
    axes.set_ylabel(panel.down, fontsize=8.5)
    positions = list(ticks(0, panel.length, 1, 8))
    axes.xaxis.set_ticks(positions, [f"{position:,}" for position in positions])
    axes.yaxis.set_ticks(range(0, count, -(-count // 8)))
    axes.figure.colorbar(picture, cax=bar, ticks=None if panel.gamma == 1 else (0, 0.01, 0.1, 0.3, 1))
    for each in (axes, bar):
        each.tick_params(labelsize=7.5, length=3, color="#666666")
        for spine in each.spines.values():
            spine.set(color="#666666", linewidth=0.8)
