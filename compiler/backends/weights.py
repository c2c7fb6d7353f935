"""Weights other than softmax from fused softmax calls, by exact identities.

A softmax over `log w(s)` and its lse give `sum_kv w(s) * v = out * exp(lse)` for every positive weight `w`. A weight
with a sign is the difference of two positive ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch

from flexspec.evaluate import evaluate
from flexspec.expr import Expr, substitute, var
from flexspec.order import standing
from flexspec.syntax import parse
from flexspec.weight import Weight

from ..pipeline import Lowered
from ..printers.python import source_of
from .base import Call, Result, accurate

# log w(s), and log of the negative part's size where there is one; -inf drops a pair. A score of 0 has the signed
# weight 0 and counts one in the sum: half of it on each side.
LOG_WEIGHTS: dict[str, tuple[str, ...]] = {
    "sigmoid": ("number: float; min(score + number, 0.0) - log(1.0 + exp(-abs(score + number)))",),
    "relu": ("where(score > 0, log(where(score > 0, score, 1.0)), -inf)",),
    "squared_relu": ("where(score > 0, 2.0 * log(where(score > 0, score, 1.0)), -inf)",),
    "taylor": (
        "where(score > -inf, log(1.0 + max(score, -1e18) + max(score, -1e18) * max(score, -1e18) / 2.0), -inf)",
    ),
    "signed": (
        "where(score > 0, score, where(score == 0, -0.6931471805599453, -inf))",
        "where((score < 0) & (score > -inf), -score, where(score == 0, -0.6931471805599453, -inf))",
    ),
}


def softmax_scores(weight: Weight | None, score: Expr) -> tuple[Expr, ...]:
    """The scores of the softmax calls that compute a weight of `score`."""
    if weight is None or weight.kind not in LOG_WEIGHTS:
        return (score,)
    return tuple(
        substitute(_parsed(text), {"score": score, "number": weight.expr}) for text in LOG_WEIGHTS[weight.kind]
    )


_parsed = lru_cache(parse)


def _scores(lowered: Lowered) -> tuple[Expr, ...]:
    return softmax_scores(lowered.weight, lowered.score)


def printed(lowered: Lowered) -> list[str]:
    """The mask_mod, and the score_mods of the softmax calls, as lines."""
    lines = source_of(lowered.mask, kind="mask_mod").splitlines()
    for score in softmax_scores(lowered.weight, lowered.score):
        lines += [] if score is var("score") else source_of(score, kind="score_mod").splitlines()
    return lines


def number_of(call: Call) -> torch.Tensor:
    """The weight's own number, [1, heads, 1] in float32, or in float64 of a float64 call."""
    weight = call.lowered.weight
    assert weight is not None
    heads = torch.arange(call.q.shape[1], device=call.q.device).view(1, -1, 1)
    tensors = {name: tensor.to(call.q.device) for name, tensor in call.bound.tensors.items()}
    work = accurate(call.q.dtype)
    values = {**call.bound.all_numbers(), **tensors, "h": heads}
    return evaluate(weight.expr, values, precise=work == torch.float64).to(work).expand_as(heads)


def by_softmax(call: Call, softmax: Callable[[Call], Result]) -> Result:
    """Run a call whose weight may be another than the softmax, with `softmax`, which takes it for one."""
    weight = call.lowered.weight
    scores = call.lowered.derive(_scores)
    if weight is None or weight.kind == "taylor":  # one normalised weight is a softmax itself
        return softmax(call if weight is None else replace(call, score=scores[0]))
    parts = [softmax(replace(call, score=score, return_lse=True)) for score in scores]
    outs = [out.to(accurate(out.dtype)) for out, _ in parts]
    lses = [lse for _, lse in parts if lse is not None]
    if weight.kind == "sink_logit":
        out, lse = _with_sink(outs[0], lses[0], number_of(call))
    elif weight.kind == "identity_mix":
        out, lse = _mixed(outs[0], lses[0], call.plain()), lses[0]
    else:
        lse = torch.logsumexp(torch.stack(lses), 0)
        shift = lse if weight.normalised else torch.zeros_like(lse)
        sums = [out * torch.exp(part - _finite(shift))[..., None] for out, part in zip(outs, lses, strict=True)]
        out = sums[0] if len(sums) == 1 else sums[0] - sums[1]
    return out.to(call.q.dtype), lse if call.return_lse else None


def _with_sink(out: torch.Tensor, lse: torch.Tensor, logit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return out * torch.sigmoid(_finite(lse) - logit)[..., None], torch.logaddexp(lse, logit)


def _mixed(out: torch.Tensor, lse: torch.Tensor, call: Call) -> torch.Tensor:
    share = number_of(call)[..., None]
    own = call.v.to(out.dtype).repeat_interleave(call.q.shape[1] // call.v.shape[1], 1)
    order = call.lowered.order
    if call.bound.rows or (order is not None and order.side("q") != order.side("kv")):
        key, found = _own_keys(call)
        own = torch.take_along_dim(own, key[..., None], 2) * found[..., None]
    return torch.where((lse > -torch.inf)[..., None], (1 - share) * out + share * own, 0.0)


def _own_keys(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """The key at each query's own position, int64 [batch, heads, q_len], and whether there is one. It is searched."""
    sizes, grid, device = call.bound.sizes, call.lowered.grid, call.q.device
    values = {**call.bound.all_numbers(), **{name: x.to(device) for name, x in call.bound.tensors.items()}}
    lengths = {"b": call.q.shape[0], "h": call.q.shape[1], "q": grid.q_len, "kv": grid.kv_len}
    for axis, (name, length) in zip((0, 1, 2, 2), lengths.items(), strict=True):
        shape = [1, 1, 1]
        shape[axis] = length
        values[name] = torch.arange(length, device=device).view(shape)
    at = standing(call.lowered.order, sizes.q_len, sizes.kv_len, call.bound.rows)
    q_at, kv_at = (evaluate(at[side], values).expand(*call.q.shape[:2], -1) for side in ("q", "kv"))
    ordered, index = kv_at.sort(-1)
    place = torch.searchsorted(ordered, q_at.contiguous()).clamp(max=grid.kv_len - 1)
    return index.gather(-1, place), ordered.gather(-1, place) == q_at


def _finite(lse: torch.Tensor) -> torch.Tensor:
    """0 for a query that keeps nothing, whose output is 0 already."""
    return torch.where(lse > -torch.inf, lse, 0.0)
