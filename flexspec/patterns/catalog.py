"""The list of all patterns, in reading order: what the gallery shows and what pattern text may name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from . import documents, grid, heads, mixed, scores, segments, sequence, video, weights


@dataclass(frozen=True)
class Entry:
    """A pattern: `make(...)` makes it, `example` is text of it ("" where it needs a tensor or a table)."""

    name: str
    make: Callable[..., Any]
    kind: Literal["mask", "score", "weight"]
    family: str
    example: str
    meaning: str


_VIDEO = "canvas(t=30, h=48, w=80)"
_SIDES = "window={t: 18, h: 24, w: 24}, tile={t: 6, h: 8, w: 8}"
_MASKS: dict[str, list[tuple[Any, str, str]]] = {
    "sequence": [
        (sequence.everything, "everything()", "every pair"),
        (sequence.nothing, "nothing()", "no pair"),
        (sequence.causal, "causal()", "keys up to the query, moved by an offset"),
        (sequence.sliding_window, "sliding_window(512)", "keys at most `window` away on both sides"),
        (sequence.causal_window, "causal_window(1024)", "the last `window` keys, the query's own included"),
        (sequence.sink, "sink(4)", "the first `n` keys"),
        (
            sequence.sink_window,
            "sink_window(sink=4, window=1024)",
            "the first `sink` and the last `window` keys",
        ),
        (
            sequence.dilated_window,
            "dilated_window(window=64, dilation=4)",
            "every `dilation`-th key on both sides",
        ),
        (sequence.global_tokens, "global_tokens(16)", "the first `n` tokens see all and are seen by all"),
        (sequence.prefix_lm, "prefix_lm(256)", "causal, and the prefix in both directions"),
        (sequence.chunked, "chunked(512)", "the query's chunk"),
        (sequence.chunk_causal, "chunk_causal(512)", "the query's chunk and those before"),
        (
            sequence.power_window,
            "power_window(window=256, block=64)",
            "a window and blocks 1, 2, 4, ... back",
        ),
        (sequence.log_sparse, "log_sparse()", "keys 0, 1, 2, 4, 8, ... back"),
        (sequence.strided, "strided(64)", "the last `stride` keys and every `stride`-th before"),
        (sequence.fixed, "fixed(stride=64, summary=8)", "the query's chunk and the last keys of each before"),
        (sequence.hidden_decoding, "hidden_decoding(2)", "repeated tokens; only last copies are seen later"),
    ],
    "heads": [
        (heads.per_head, "", "a mask for each head"),
        (heads.scaled_span, "", "a window for each head that grows with the length"),
        (heads.shifted_groups, "shifted_groups(1024)", "causal groups, shifted by half in half of the heads"),
    ],
    "documents": [
        (documents.document, "document()", "tokens of the same document"),
        (documents.padding, "padding()", "only real tokens"),
        (documents.same_label, "same_label()", "tokens with the same label"),
        (
            documents.token_types,
            "",
            "keys that are seen for ever, up to the next global one, or for a window",
        ),
        (documents.shared_prefix, "", "branches that share a prefix"),
        (documents.tree, "", "a token and its ancestors"),
        (documents.bridge, "", "a window, the last token of each chunk, and memory tokens"),
        (
            documents.block_diffusion,
            "block_diffusion(block=16, n=512)",
            "noisy blocks that see clean ones before",
        ),
        (segments.segments, "", "a mask for each two named segments"),
        (segments.adjacency, "", "the neighbours in a graph"),
    ],
    "grid": [
        (
            grid.neighborhood,
            "neighborhood(canvas(h=64, w=64), window=7)",
            "the nearest positions on each axis",
        ),
        (grid.sliding_tile, f"sliding_tile({_VIDEO}, {_SIDES})", "whole tiles around the query's tile"),
        (grid.windows, "windows(canvas(h=56, w=56), size=7, shift=3)", "the query's window, shifted"),
        (grid.axial, f"axial({_VIDEO}, 't')", "the query's line along one axis"),
        (grid.halo, "halo(canvas(h=64, w=64), block=8, halo=3)", "the query's block and what lies around it"),
        (grid.any_shared, "any_shared(canvas(v=8, t=8, h=16, w=16), 'v t')", "tokens that share a coordinate"),
        (
            grid.block_causal_2d,
            "block_causal_2d(canvas(h=64, w=64), block=16)",
            "the query's block, the left, top and top-left one",
        ),
        (video.first_frame, f"first_frame({_VIDEO})", "the first frame"),
        (
            video.frame_window,
            f"frame_window({_VIDEO}, window=8, sink=1)",
            "the last `window` and the first `sink` frames, whole",
        ),
        (video.spatial_head, f"spatial_head({_VIDEO}, width=7680)", "a band where frame stands after frame"),
        (video.temporal_head, f"temporal_head({_VIDEO}, width=60)", "a band where a place's times stand together"),
        (video.radial, f"radial({_VIDEO}, block=128)", "a window that narrows with the distance of the frames"),
        (video.epipolar, "", "pixels near the query's line in other views"),
        (mixed.reordered, "", "a mask over the places in memory of an order"),
        (mixed.with_text, f"with_text(first_frame({_VIDEO}), text=256)", "a mask on a canvas, and text that sees all"),
    ],
}
_SCORES: list[tuple[Any, str, str]] = [
    (scores.alibi, "alibi()", "minus a slope for each head times the distance"),
    (scores.softcap, "softcap(50.0)", "scores held within -cap and cap"),
    (scores.relative_bias, "", "a bias for each head and distance"),
    (scores.t5_bias, "", "T5's bias by bucket of distance"),
    (scores.swin_bias, "", "a bias for each difference of coordinates"),
    (scores.distance_scale, "", "scores times a function of positions and lengths"),
    (scores.key_gain, "", "keys weighted by a gain"),
]
_WEIGHTS: list[tuple[Any, str]] = [
    (weights.sigmoid_weight, "the sigmoid of score plus bias, not normalised"),
    (weights.relu_weight, "positive scores as they are, not normalised"),
    (weights.squared_relu_weight, "positive scores squared, not normalised"),
    (weights.taylor_weight, "1 + s + s * s / 2, normalised"),
    (weights.signed_weight, "the score's sign times the exponential of its size, normalised"),
    (weights.sink_logit, "the softmax with one more column that has no value"),
    (weights.identity_mix, "the softmax mixed with the query's own value"),
]


def _name(make: Any) -> str:
    predicate = getattr(make, "predicate", None)
    return predicate.name if predicate is not None else make.__name__


def _catalog() -> dict[str, Entry]:
    entries = [
        Entry(_name(make), make, "mask", family, example, meaning)
        for family, rows in _MASKS.items()
        for make, example, meaning in rows
    ]
    entries += [Entry(_name(make), make, "score", "scores", example, meaning) for make, example, meaning in _SCORES]
    entries += [Entry(_name(make), make, "weight", "weights", "", meaning) for make, meaning in _WEIGHTS]
    return {entry.name: entry for entry in entries}


CATALOG: Mapping[str, Entry] = _catalog()
"""Every pattern by name, in reading order."""
