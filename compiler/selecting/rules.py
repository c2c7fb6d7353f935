"""Which blocks a rule chooses by their scores."""

from __future__ import annotations

import torch
from torch import Tensor

from flexspec.selection import Rule

_OVER = {"row": 1, "head": 2, "batch": 3}
"""Of [batch, heads, q_blocks, kv_blocks], the dims that are ranked together, counted from the end."""


def chosen(rule: Rule, scores: Tensor, candidates: Tensor, forced: Tensor | None = None) -> Tensor:
    """Which candidates a rule chooses, of equal scores the first: bool [batch, heads, q_blocks, kv_blocks].

    scores: float of that shape; a NaN is no candidate. forced: chosen before all others, and counted.
    """
    candidates = candidates & ~scores.isnan()
    first = torch.zeros_like(candidates) if forced is None else forced
    if rule.kind == "threshold":
        return candidates & (scores >= rule.amount) | first
    dims = _OVER[rule.over]
    flat = [x.expand(scores.shape).flatten(-dims) for x in (scores, candidates, first)]
    return _ranked(rule, *flat).view(scores.shape)


def _ranked(rule: Rule, scores: Tensor, candidates: Tensor, first: Tensor) -> Tensor:
    """As `chosen`, over the last dim."""
    least = torch.finfo(scores.dtype).min
    key = scores.clamp(min=least).masked_fill(~candidates, -torch.inf).masked_fill(first, torch.inf)
    if rule.kind == "top_k":
        return _largest(key, int(rule.amount)) & candidates | first
    place = key.argsort(dim=-1, descending=True, stable=True)
    rank = torch.arange(scores.shape[-1], device=scores.device)
    if rule.kind == "share":
        count = (candidates | first).sum(-1, keepdim=True)
        taken = rank < torch.ceil(count.double() * rule.amount - 1e-9)
    else:
        weights = scores.masked_fill(~(candidates | first), 0.0).nan_to_num(nan=0.0).gather(-1, place).double()
        sums = weights.cumsum(-1)
        enough = sums[..., -1:] * rule.amount
        taken = sums - weights < enough if rule.crossing else (sums <= enough) | (rank == 0)
    return torch.zeros_like(candidates).scatter_(-1, place, taken) & candidates | first


def _largest(key: Tensor, k: int) -> Tensor:
    """Which are the k largest of a row, of equal ones the first; a sort of whole rows would take much longer."""
    k = min(k, key.shape[-1])
    least = key.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, equal = key > least, key == least
    return above | equal & (equal.cumsum(-1) <= k - above.sum(-1, keepdim=True))
