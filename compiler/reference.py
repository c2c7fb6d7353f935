"""Attention by its definition, in float64, row by row: the answer that every kernel is compared with."""

from __future__ import annotations

from typing import Any

import torch

from flexspec.attention import as_attention
from flexspec.errors import FlexSpecError
from flexspec.evaluate import evaluate
from flexspec.expr import Apply, Expr
from flexspec.inputs import Bound, make_sizes
from flexspec.order import flatten
from flexspec.source import user_caret

CHUNK = 1 << 22
"""Pairs times heads that are held at once."""


def check_qkv(q: Any, k: Any, v: Any) -> None:
    """FS040 where q, k and v do not fit each other; FS023 where they are not floating tensors."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            seen = f"dtype {x.dtype}" if isinstance(x, torch.Tensor) else type(x).__name__
            raise FlexSpecError("FS023", f"{name} is no floating tensor: {seen}", where=user_caret())
    shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    problem = None
    if not q.dim() == k.dim() == v.dim() == 4:
        problem = "they are [batch, heads, length, head_dim]"
    elif 0 in (*q.shape, *k.shape, *v.shape):
        problem = "a size is 0"
    elif not q.shape[0] == k.shape[0] == v.shape[0]:
        problem = "their batch sizes differ"
    elif k.shape[1:3] != v.shape[1:3]:
        problem = "k and v differ in heads or length"
    elif q.shape[1] % k.shape[1]:
        problem = f"{q.shape[1]} query heads are no multiple of {k.shape[1]} key heads"
    elif q.shape[3] != k.shape[3]:
        problem = "q and k differ in head_dim"
    elif not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        problem = "their dtypes or devices differ"
    if problem:
        raise FlexSpecError("FS040", f"{shapes}: {problem}", where=user_caret())


def reference_attention(
    spec: object, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, return_lse: bool = False, **inputs: Any
) -> Any:
    """Attention as the spec defines it: float64 [batch, heads, q_len, v_head_dim], with gradients.

    spec: a Mask, an Attention or a mask_mod. q: [batch, heads, q_len, head_dim]; k, v: [batch, kv_heads, kv_len,
    head_dim], kv_heads dividing heads. return_lse: also the log-sum-exp in nats, [batch, heads, q_len]. A query that
    keeps nothing has output 0 and lse -inf. inputs: run-time values by name. Raises FS020 to FS035, FS040.

    >>> import flexspec as fs, torch
    >>> q = k = v = torch.eye(3)[None, None]
    >>> fs.reference_attention(fs.causal(), q, k, v)[0, 0, 0].tolist()
    [1.0, 0.0, 0.0]
    """
    attention = as_attention(spec)
    check_qkv(q, k, v)
    sizes = make_sizes(q.shape[2], k.shape[2], q.shape[0], q.shape[1])
    bound = attention.formula.bind(sizes, inputs)
    whole = attention.formula
    assert isinstance(whole.expr, Apply)
    mask, score = (flatten(part, whole.canvas) for part in whole.expr.args[:2])
    out, lse = by_rows(mask, score, attention.scale, bound, q, k, v)
    return (out, lse) if return_lse else out


def by_rows(
    mask: Expr, score: Expr, scale: float | None, bound: Bound, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output float64 [batch, heads, q_len, v_head_dim] and lse float64 [batch, heads, q_len], some rows at a time."""
    count = max(1, CHUNK // (q.shape[0] * q.shape[1] * k.shape[2]))
    tensors = {name: tensor.to(q.device) for name, tensor in bound.tensors.items()}
    at = {
        "b": torch.arange(q.shape[0], device=q.device).view(-1, 1, 1, 1),
        "h": torch.arange(q.shape[1], device=q.device).view(1, -1, 1, 1),
        "kv": torch.arange(k.shape[2], device=q.device).view(1, 1, 1, -1),
    }
    factor = q.shape[3] ** -0.5 if scale is None else scale
    k, v = (x.double().repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    parts = []
    for start in range(0, q.shape[2], count):
        rows = q[:, :, start : start + count].double()
        logits = rows @ k.transpose(-1, -2) * factor
        at["q"] = torch.arange(start, start + rows.shape[2], device=q.device).view(1, 1, -1, 1)
        values = {**bound.all_numbers(), **tensors, **at}
        kept = evaluate(mask, values).expand_as(logits)
        scored = evaluate(score, {**values, "score": logits}, precise=True).double().expand_as(logits)
        parts.append(_softmax(scored, kept, v))
    out, lse = (torch.cat(part, 2) for part in zip(*parts, strict=True))
    return out, lse


def _softmax(scores: torch.Tensor, kept: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.where(kept, scores, -torch.inf)
    top = logits.amax(-1, keepdim=True).detach()
    some = top > -torch.inf
    top = torch.where(some, top, 0.0)
    weights = torch.exp(logits - top)
    total = weights.sum(-1, keepdim=True)
    out = (weights @ v) / torch.where(some, total, 1.0)
    lse = torch.where(some, torch.log(torch.where(some, total, 1.0)) + top, -torch.inf)
    return out, lse.squeeze(-1)
