"""What `flexspec show` draws: block maps, and the keys that queries keep; each as data, and as text when asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flexspec as fs

from ..blocks.block_map import BlockMap
from ..draw import frames, frames_text, orders, terminal
from ..draw.scale import Region, index_of
from .values import terminal_width

Drawn = tuple[dict[str, Any], Callable[[], str]]


def of_queries(
    mask: fs.Mask, places: Sequence[Any], length: int, head: int, output: Path | None, given: Mapping[str, Any]
) -> Drawn:
    """The keys that queries keep, on the mask's canvas, or on a strip of `length` tokens."""
    canvas = None if mask.canvas and mask.canvas.size == length else length
    keys = fs.kept_keys(mask, list(places), canvas=canvas, h=head, **given)
    path = frames.save(keys, output) if output else None
    queries = [dict(zip(keys.canvas.names, keys.place(i) or (), strict=True)) for i in range(len(places))]
    kept = [{"query": query, "kept": count} for query, count in zip(queries, keys.counts, strict=True)]
    facts = {"pattern": keys.label, "canvas": keys.canvas.lengths, "queries": kept}
    return _with(path, facts, lambda: frames_text.draw(keys, width=terminal_width()))


def of_maps(maps: Sequence[BlockMap], head: int, output: Path | None, region: Region | None) -> Drawn:
    """One block map, or several side by side."""
    for block_map in maps:
        index_of(block_map, 0, head)
    path = None
    if output:
        path = maps[0].show(output, h=head, region=region) if len(maps) == 1 else orders.save(maps, output, h=head)
    each = [facts_of(block_map) for block_map in maps]
    return _with(
        path,
        each[0] if len(maps) == 1 else {"orders": each},
        lambda: "\n\n".join(terminal.draw(block_map, h=head, width=terminal_width()) for block_map in maps),
    )


def _with(path: Path | str | None, facts: dict[str, Any], draw: Callable[[], str]) -> Drawn:
    """The picture's name, or a drawing where there is none."""
    return (facts | {"picture": str(path)}, lambda: str(path)) if path else (facts, draw)


def facts_of(block_map: BlockMap) -> dict[str, Any]:
    """A block map as JSON-able data."""
    return {
        "pattern": block_map.label,
        "q_len": block_map.q_len,
        "kv_len": block_map.kv_len,
        "block_size": [block_map.block_q, block_map.block_kv],
        "order": None if block_map.order is None else str(block_map.order),
        "batch": block_map.batch,
        "heads": block_map.heads,
        "blocks": {kind.name.lower(): count for kind, count in block_map.counts().items()},
        "density": block_map.density,
    }
