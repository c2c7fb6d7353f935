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

WIDTH, LEFT, RIGHT, TOP, GAP = 8.6, 0.95, 1.15, 0.95, 0.85  # inches
STRIP, LEAST, MOST = 0.16, 0.9, 2.6  # inches of a row, and of a panel
CELLS, MOST_TOKENS = 512, 6


class Panel(NamedTuple):
    """One measure. rows: [heads or layers, positions], nan where there is none; share: its scale goes from 0 to 1."""

    title: str
    rows: Any
    down: str
    across: str
    share: bool = False


def save_measures(found: Measures, path: str | Path) -> Path:
    """Draw each measure by head and query and each key's importance, the batch averaged. FS054.

    Many positions share a cell, which has their mean. Grey: queries that keep nothing, and keys that none keeps.
    """
    some = found.lse > -torch.inf
    panels = []
    for name, each in found.by_query.items():
        unit = UNITS.get(name.split()[0], "")
        panels.append(Panel(name + unit, _mean(each, some), "head", "query position", share=not unit))
    importance = _mean(found.importance, found.column_counts > 0)
    panels.append(Panel("importance: mean weight from the queries that keep a key", importance, "head", "key position"))
    return _save(found.label, panels, path)


UNITS = {"entropy": " (nats)", "distance": " (tokens)"}


def save_recall(found: Recall, path: str | Path) -> Path:
    """Draw the share of the mass that is kept, by head and query, the batch averaged. FS054."""
    panel = Panel("mass kept", _mean(found.share, found.lse > -torch.inf), "head", "query position", share=True)
    return _save(f"{found.mask} within {found.within}", [panel], path)


def save_rollout(found: Rollout, path: str | Path) -> Path:
    """Draw the flow to each of the first 6 tokens, the batch averaged, by the cube root: above, before the first
    layer; at the bottom, the token itself after the last. FS054."""
    shown = zip(found.tokens[:MOST_TOKENS], found.flow.mean(1).unbind(1), strict=False)
    panels = [
        Panel(f"what token {token:,} gets (cube root)", np.cbrt(rows.cpu().numpy()), "after layer", "token", share=True)
        for token, rows in shown
    ]
    return _save(found.label, panels, path)


def _mean(each: torch.Tensor, some: torch.Tensor) -> Any:
    """[heads, positions]: the mean over the batch of what there is, nan where there is nothing."""
    total = torch.where(some, each, 0.0).sum(0) / some.sum(0)
    return total.cpu().double().numpy()


def _save(label: str, panels: Sequence[Panel], path: str | Path) -> Path:
    path = writable(path)
    return write(figure(label, panels), path)


def figure(label: str, panels: Sequence[Panel]) -> Any:
    """The panels below each other, as a matplotlib `Figure` that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [min(MOST, max(LEAST, STRIP * len(panel.rows))) for panel in panels]
    height = TOP + sum(heights) + GAP * len(panels)
    fig = Figure(figsize=(WIDTH, height), dpi=150)
    FigureCanvasAgg(fig)
    style: dict[str, Any] = {"ha": "center", "va": "top", "parse_math": False}
    title = label if len(label) <= 100 else label[:98] + " …"
    fig.text(0.5, 1 - 0.13 / height, title, fontsize=11.5, weight="bold", **style)
    top = height - TOP + 0.25
    for panel, down in zip(panels, heights, strict=True):
        top -= down
        across = WIDTH - LEFT - RIGHT
        axes = fig.add_axes((LEFT / WIDTH, top / height, across / WIDTH, down / height))
        bar = fig.add_axes(((LEFT + across + 0.12) / WIDTH, top / height, 0.12 / WIDTH, down / height))
        _panel(axes, bar, panel)
        top -= GAP
    return fig


def binned(rows: Any, most: int) -> Any:
    """[rows, positions] in at most `most` columns: the mean of what is no nan in each."""
    edges = np.arange(0, rows.shape[1], -(-rows.shape[1] // most))
    some = ~np.isnan(rows)
    total = np.add.reduceat(np.where(some, rows, 0.0), edges, axis=1)
    count = np.add.reduceat(some, edges, axis=1, dtype=np.int64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _panel(axes: Any, bar: Any, panel: Panel) -> None:
    from matplotlib import colormaps

    count, length = panel.rows.shape
    cells = binned(panel.rows, CELLS)
    end = cells.shape[1] * -(-length // CELLS)  # a last cell of fewer positions is cut off, not squeezed
    colors = colormaps["viridis"].with_extremes(bad="#BFBFBF")
    limits: dict[str, Any] = {"vmin": 0.0, "vmax": 1.0 if panel.share else None}
    picture = axes.imshow(
        np.ma.masked_invalid(cells), cmap=colors, extent=(0, end, count - 0.5, -0.5), aspect="auto",
        interpolation="none", **limits,
    )  # fmt: skip
    axes.set_xlim(0, length)
    axes.set_title(panel.title, fontsize=9, parse_math=False)
    axes.set_xlabel(panel.across, fontsize=8.5, labelpad=2)
    axes.set_ylabel(panel.down, fontsize=8.5)
    positions = list(ticks(0, length, 1, 8))
    axes.xaxis.set_ticks(positions, [f"{position:,}" for position in positions])
    axes.yaxis.set_ticks(range(0, count, -(-count // 8)))
    axes.figure.colorbar(picture, cax=bar)
    for each in (axes, bar):
        each.tick_params(labelsize=7.5, length=3, color="#666666")
        for spine in each.spines.values():
            spine.set(color="#666666", linewidth=0.8)
