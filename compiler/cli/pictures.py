"""What `flexspec show` draws: block maps, and the keys that queries keep; each as data, and as text when asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flexspec as fs

from ..draw import frames, frames_text, orders, terminal
from ..draw.scale import index_of
from .values import terminal_width

if TYPE_CHECKING:
    from ..blocks.block_map import BlockMap
    from ..draw.scale import Region

Drawn = tuple[dict[str, Any], Callable[[], str]]


def of_queries(
    mask: fs.Mask, places: Sequence[Any], length: int, head: int, output: Path | None, given: Mapping[str, Any]
) -> Drawn:
    """The keys that queries keep, on the mask's canvas, or on a strip of `length` tokens."""
    canvas = None if mask.canvas and mask.canvas.size == length else length
    found = fs.kept_keys(mask, list(places), canvas=canvas, h=head, **given)
    path = frames.save(found, output) if output else None
    queries = [dict(zip(found.canvas.names, found.place(i) or (), strict=True)) for i in range(len(places))]
    kept = [{"query": query, "kept": count} for query, count in zip(queries, found.counts, strict=True)]
    facts = {"pattern": found.label, "canvas": found.canvas.lengths, "queries": kept}
    return _with(path, facts, lambda: frames_text.draw(found, width=terminal_width()))


def of_maps(maps: Sequence[BlockMap], head: int, output: Path | None, region: Region | None) -> Drawn:
    """One block map, or several side by side."""
    for made in maps:
        index_of(made, 0, head)
    path = None
    if output:
        path = maps[0].show(output, h=head, region=region) if len(maps) == 1 else orders.save(maps, output, h=head)
    each = [facts_of(made) for made in maps]
    return _with(
        path,
        each[0] if len(maps) == 1 else {"orders": each},
        lambda: "\n\n".join(terminal.draw(made, h=head, width=terminal_width()) for made in maps),
    )


def _with(path: Path | str | None, facts: dict[str, Any], draw: Callable[[], str]) -> Drawn:
    """The picture's name, or a drawing where there is none."""
    return (facts | {"picture": str(path)}, lambda: str(path)) if path else (facts, draw)


def facts_of(made: BlockMap) -> dict[str, Any]:
    """A block map as JSON-able data."""
    return {
        "pattern": made.label,
        "q_len": made.q_len,
        "kv_len": made.kv_len,
        "block_size": [made.block_q, made.block_kv],
        "order": None if made.order is None else str(made.order),
        "batch": made.batch,
        "heads": made.heads,
        "blocks": {kind.name.lower(): count for kind, count in made.counts().items()},
        "density": made.density,
    }
