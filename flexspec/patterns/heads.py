"""Masks that differ from head to head."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from pydantic import PositiveInt

from ..errors import FlexSpecError
from ..inputs import Input
from ..mask import Mask, from_mask_mod, mask
from ..user_line import user_caret
from .about import pattern
from .checks import Text, as_tensor, whole

__all__: list[str] = ["per_head", "scaled_span", "shifted_groups"]


@pattern("", "a mask for each head", picture="fs.per_head([fs.causal_window(64), fs.causal()])")
def per_head(table: Sequence[Mask]) -> Mask:
    """Head `h` keeps what `table[h]` keeps.

    table: one mask (or mask_mod) for each head; heads with equal masks share one part of the formula. A table of one
        mask serves all heads.

    Source: MSWA, MoA (windows that differ by head). Raises FS023 (no masks), and FS022 in a call with other heads.

    >>> from flexspec import causal, sliding_window
    >>> per_head([causal(), sliding_window(0)]).dense(3, heads=2).int()[0].tolist()
    [[[1, 0, 0], [1, 1, 0], [1, 1, 1]], [[1, 0, 0], [0, 1, 0], [0, 0, 1]]]
    """
    if isinstance(table, Mask) or not isinstance(table, Sequence) or not table:
        message = f"the table is {table!r}"
        fix = "give one mask for each head: per_head([causal_window(128), causal()])"
        raise FlexSpecError("FS023", message, fix=fix, where=user_caret())
    groups: dict[Mask, list[int]] = {}
    for head, item in enumerate(table):
        if not isinstance(item, Mask) and not callable(item):
            message = f"entry {head} of the table is a {type(item).__name__}"
            raise FlexSpecError("FS023", message, fix="give a mask", where=user_caret())
        groups.setdefault(from_mask_mod(item), []).append(head)
    numbers = {head: number for number, heads in enumerate(groups.values()) for head in heads}
    held = {"head_kind": torch.tensor([numbers[head] for head in range(len(table))])}
    kinds = Input("head_kind", ("heads",))
    parts = [mask(partial(_on_heads, kinds, number))(**held) & item for number, item in enumerate(groups)]
    shown = ", ".join(f"{_runs_text(heads)}: {item.label}" for item, heads in groups.items())
    return united(parts).named("per_head", table=Text(f"[{shown}]"))


def united(parts: Sequence[Mask]) -> Mask:
    """The union of masks, paired up so that the expression stays shallow."""
    left = list(parts)
    while len(left) > 1:
        pairs = [a | b for a, b in zip(left[::2], left[1::2], strict=False)]
        left = pairs + ([left[-1]] if len(left) % 2 else [])
    return left[0]


def _runs(heads: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of consecutive heads, as (first, last)."""
    runs: list[tuple[int, int]] = []
    for head in heads:
        if runs and head == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], head)
        else:
            runs.append((head, head))
    return runs


def _runs_text(heads: Sequence[int]) -> str:
    return "+".join(str(a) if a == b else f"{a}-{b}" for a, b in _runs(heads))


def _on_heads(kinds: Input, number: int, h: Any) -> Any:
    return kinds[h] == number


@pattern(
    "",
    "a window for each head that grows with the length",
    picture="fs.scaled_span([16, 64], [0.125, 0.0], sink=4)",
)
def scaled_span(alpha: Any, beta: Any, sink: int = 0) -> Mask:
    """Causal: head `h` keeps the last `alpha[h] + beta[h] * kv_len` keys, and the first `sink` keys.

    An interior query keeps `ceil(alpha[h] + beta[h] * kv_len) + sink` keys; the span is computed in float64 and
    not rounded.

    alpha: float [heads], tokens; a tensor or a list of numbers.
    beta: float [heads], tokens per token of the sequence.
    sink: keys, at least 0.

    Source: MoA, which also rounds spans up to its block size. Raises FS022 (alpha, beta: shapes), FS023 (their types),
    FS025 (sink).

    >>> scaled_span([1, 0], [0.0, 0.5]).dense(4).int()[0, :, 3].tolist()
    [[0, 0, 0, 1], [0, 0, 1, 1]]
    """
    given = {"alpha": alpha, "beta": beta}
    held = {name: as_tensor(name, value, [1], float, torch.float64) for name, value in given.items()}
    if len(held["alpha"]) != len(held["beta"]):
        message = f"alpha is of {len(held['alpha'])} heads, beta of {len(held['beta'])}"
        raise FlexSpecError("FS022", message, fix="give one value a head", where=user_caret())
    whole("sink", sink, 0)
    tokens, growth = (Input(name, ("heads",), "double") for name in held)

    def span(h: Any, q: Any, kv: Any, kv_len: Any) -> Any:
        return (q >= kv) & ((q - kv < tokens[h] + growth[h] * kv_len) | (kv < sink))

    spans = mask(span)(**{name: tensor.to(torch.float64) for name, tensor in held.items()})
    return spans.named("scaled_span", alpha=held["alpha"], beta=held["beta"], sink=sink)


@mask
@pattern(
    "shifted_groups(1024)",
    "causal groups, shifted by half in half of the heads",
    picture="fs.shifted_groups(128)",
)
def shifted_groups(h: Any, q: Any, kv: Any, heads: Any, kv_len: Any, *, group: PositiveInt) -> Any:
    """Causal inside groups of `group` tokens; in the second half of the heads the groups are shifted by half
    a group.

    A query keeps up to `group` keys. The shift is a roll of the sequence by `-(group // 2)`, so that the last
    group wraps around to the start: its late tokens see the first ones. For self-attention (q_len = kv_len).

    group: tokens, at least 1.

    Source: LongLoRA's S2-Attn and SinkLoRA; their masks are causal in the rolled order, in which the first
    tokens see the last ones, the future. Here true causality is kept. Raises FS025 (group), FS031 (where it runs
    without a head count).

    >>> shifted_groups(2).dense(4, heads=2).int()[0, 1].tolist()
    [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]]
    """
    half = torch.where(h < heads // 2, 0, group // 2)
    return (q >= kv) & (((q - half) % kv_len) // group == ((kv - half) % kv_len) // group)
