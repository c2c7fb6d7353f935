"""Attention by its definition, in float64, row by row: the answer that every kernel is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from flexspec.attention import as_attention
from flexspec.evaluate import evaluate
from flexspec.expr import Expr
from flexspec.inputs import Bound, make_sizes
from flexspec.order import Order, in_memory
from flexspec.positions import bind_rows, check_heads, given_positions
from flexspec.weight import OWN_TOKEN, Weight

from ..blocks.positions import check_positions
from ..blocks.tensor_ranges import arrays_of
from ..pipeline import expressions
from .base import Backend, Call, Description, Result, accurate, check_qkv, check_weight
from .quantised import PRECISIONS, quantised, restored, rounded
from .weights import printed

LN_2 = math.log(2)
CHUNK = 1 << 20
"""Pairs times heads that are held at once."""


def reference_attention(
    spec: object, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, return_lse: bool = False, **inputs: Any
) -> Any:
    """Attention as the spec defines it: float64 [batch, heads, q_len, v_head_dim], with gradients.

    spec: a Mask, an Attention or a mask_mod.
    q: [batch, heads, q_len, head_dim].
    k, v: [batch, kv_heads, kv_len, head_dim], kv_heads dividing heads.
    return_lse: also the log-sum-exp in nats, [batch, heads, q_len]. A query that keeps nothing has output 0, lse -inf.
    inputs: run-time values by name, and `q_positions` and `kv_positions` as a call of `fs.compile` takes them.

    Raises FS020, FS021, FS022, FS023, FS025 (values), FS024, FS034, FS035 (arithmetic), FS031, FS032 (sizes), FS036
    (positions), FS040 (q, k, v), FS042 (an lse that a weight does not have).

    >>> import flexspec as fs, torch
    >>> q = k = v = torch.eye(3)[None, None]
    >>> fs.reference_attention(fs.causal(), q, k, v)[0, 0, 0].tolist()
    [1.0, 0.0, 0.0]
    """
    attention = as_attention(spec)
    check_qkv(q, k, v)
    sizes = make_sizes(q.shape[2], k.shape[2], q.shape[0], q.shape[1])
    parts = attention.parts
    check_weight(attention, sizes, return_lse, placed=bool(given_positions(inputs)))
    check_heads(inputs, q.shape[1], k.shape[1])
    bound = bind_rows(parts, sizes, inputs)
    if bound.rows:
        check_positions([parts.mask.expr, *parts.own_token], bound, arrays_of(bound.tensors))
    mask, score = expressions(attention, None, sizes.q_len, sizes.kv_len, bound.rows)
    out, lse = by_rows(mask, score, attention.scale, bound, q, k, v, parts.weight)
    return (out, lse) if return_lse else out


def by_rows(
    mask: Expr,
    score: Expr,
    scale: float | None,
    bound: Bound,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    weight: Weight | None = None,
    precision: str | None = None,
    order: Order | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output float64 [batch, heads, q_len, v_head_dim] and lse float64 [batch, heads, q_len], some rows at a time.

    lse: the log of the sum of the weights' sizes, also where the output is not divided by it. precision: in which the
    softmax's weights are rounded; q, k and v are as they shall be. order: in which they lie.
    """
    count = max(1, CHUNK // (q.shape[0] * q.shape[1] * k.shape[2]))
    tensors = {name: tensor.to(q.device) for name, tensor in bound.tensors.items()}
    at = {
        "b": torch.arange(q.shape[0], device=q.device).view(-1, 1, 1, 1),
        "h": torch.arange(q.shape[1], device=q.device).view(1, -1, 1, 1),
        "kv": torch.arange(k.shape[2], device=q.device).view(1, 1, 1, -1),
    }
    factor = q.shape[3] ** -0.5 if scale is None else scale
    k, v = (x.double().repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    same_token = in_memory(OWN_TOKEN, order, None, bound.sizes.q_len, bound.sizes.kv_len, bound.rows)

    def chunk(start: int, rows: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *held: torch.Tensor) -> Any:
        """Output and lse of the queries from `start` on."""
        logits = rows @ k.transpose(-1, -2) * factor
        q_idx = torch.arange(start, start + rows.shape[2], device=q.device).view(1, 1, -1, 1)
        values = {**bound.all_numbers(), **dict(zip(tensors, held, strict=True)), **at, "q": q_idx}
        kept = evaluate(mask, values).expand_as(logits)
        scored = evaluate(score, {**values, "score": logits}, precise=True).double().expand_as(logits)
        if weight is None:
            return _softmax(scored, kept, v, precision)
        own = evaluate(same_token, values).expand_as(logits).double() @ v
        number = evaluate(weight.expr, values, precise=True).double()
        return _weighed(weight, number, scored, kept, v, own, precision)

    out, lse = _Chunked.apply(chunk, count, q.double(), k, v, *tensors.values())
    return out, lse


class _Chunked(torch.autograd.Function):
    """Chunks of queries one after the other, each computed again in the backward pass: nothing holds all pairs.

    Results go into tensors that are there already: small ones between large temporaries would fragment the heap.
    """

    @staticmethod
    def forward(ctx: Any, chunk: Callable[..., Any], count: int, *tensors: torch.Tensor) -> Any:
        q, _, v, *_ = tensors
        ctx.chunk, ctx.count = chunk, count
        ctx.save_for_backward(*tensors)
        out, lse = q.new_empty((*q.shape[:3], v.shape[3])), q.new_empty(q.shape[:3])
        for start in range(0, q.shape[2], count):
            rows = slice(start, start + count)
            out[:, :, rows], lse[:, :, rows] = chunk(start, q[:, :, rows], *tensors[1:])
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: torch.Tensor, dlse: torch.Tensor) -> tuple[Any, ...]:
        q, *others = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        leaves = [x.detach().requires_grad_(wants) for x, wants in zip(others, wanted, strict=True)]
        dq, totals = torch.zeros_like(q), [torch.zeros_like(x) for x in leaves if x.requires_grad]
        for start in range(0, q.shape[2], ctx.count):
            rows = slice(start, start + ctx.count)
            queries = q[:, :, rows].detach().requires_grad_()
            with torch.enable_grad():
                results = ctx.chunk(start, queries, *leaves)
            asked = [queries, *(x for x in leaves if x.requires_grad)]
            given = zip(results, (dout[:, :, rows], dlse[:, :, rows]), strict=True)
            outs, weights = zip(*(each for each in given if each[0].requires_grad), strict=True)
            found = torch.autograd.grad(outs, asked, weights, allow_unused=True, materialize_grads=True)
            dq[:, :, rows] = found[0]
            for total, gradient in zip(totals, found[1:], strict=True):
                total += gradient
        each = iter(totals)
        return None, None, dq, *(next(each) if wants else None for wants in wanted)


def _softmax(
    scores: torch.Tensor, kept: torch.Tensor, v: torch.Tensor, precision: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """precision: weights relative to the maximum, which is rounded up to a whole number in base 2, are rounded before
    they are multiplied by v, and not in their sum.
    """
    logits = torch.where(kept, scores, -torch.inf)
    top = logits.amax(-1, keepdim=True).detach()
    some = top > -torch.inf
    top = torch.where(some, top, 0.0)
    if precision is not None:
        top = torch.ceil(top / LN_2) * LN_2
    weights = torch.exp(logits - top)
    total = weights.sum(-1, keepdim=True)
    if precision is not None:
        weights = rounded(weights, precision)
    out = (weights @ v) / torch.where(some, total, 1.0)
    lse = torch.where(some, torch.log(torch.where(some, total, 1.0)) + top, -torch.inf)
    return out, lse.squeeze(-1)


def _weighed(
    weight: Weight,
    number: torch.Tensor,
    scores: torch.Tensor,
    kept: torch.Tensor,
    v: torch.Tensor,
    own: torch.Tensor,
    precision: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Another weight by its definition; own: the values of the queries' own tokens. precision: of a sink logit."""
    if weight.kind == "identity_mix":
        out, lse = _softmax(scores, kept, v)
        return torch.where((lse > -torch.inf)[..., None], (1 - number) * out + number * own, 0.0), lse
    if weight.kind == "sink_logit":
        column = number.expand(*scores.shape[:-1], 1)
        kept = torch.cat([kept, torch.ones_like(column, dtype=torch.bool)], -1)
        with_sink = torch.cat([v, torch.zeros_like(v[:, :, :1])], 2)
        return _softmax(torch.cat([scores, column], -1), kept, with_sink, precision)
    kept = kept & (scores > -torch.inf)
    s = torch.where(kept, scores, 0.0)
    top = torch.zeros_like(s[..., :1])
    if weight.kind == "signed":
        top = s.abs().amax(-1, keepdim=True).detach()
        sizes = torch.exp(s.abs() - top)
        weights = torch.sign(s) * sizes
    else:
        sizes = weights = DEFINITIONS[weight.kind](s, number)
    weights, sizes = (torch.where(kept, x, 0.0) for x in (weights, sizes))
    total = sizes.sum(-1, keepdim=True)
    out = weights @ v
    if weight.normalised:
        out = out / torch.where(total > 0, total, 1.0)
    return out, (torch.log(total) + top).squeeze(-1)


DEFINITIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "sigmoid": lambda s, bias: torch.sigmoid(s + bias),
    "relu": lambda s, _: torch.relu(s),
    "squared_relu": lambda s, _: torch.relu(s) ** 2,
    "taylor": lambda s, _: 1 + s + s * s / 2,
}
"""What a positive weight makes of a score and the weight's own number."""


def run(call: Call) -> Result:
    """Any call that has a meaning; slow, and right."""
    call = call.plain(torch.float64)
    lowered, scale = call.lowered, call.lowered.attention.scale
    q, k, v = call.q, call.k, call.v
    if call.precision is not None:
        scale = q.shape[3] ** -0.5 if scale is None else scale
        q, k, v = restored(quantised(q, k, v, call.precision), q.shape[2], k.shape[2])
    out, lse = by_rows(
        lowered.mask, lowered.score, scale, call.bound, q, k, v, lowered.weight, call.precision, lowered.order
    )
    return out.to(call.q.dtype), lse.to(accurate(call.q.dtype)) if call.return_lse else None


REFERENCE = Backend(
    "reference",
    lambda call: [],
    run,
    lambda lowered: Description(printed(lowered)),
    paged=True,
    precisions=PRECISIONS,
)
