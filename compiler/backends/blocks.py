"""Block-sparse attention in plain torch operations: any device and floating dtype, gradients, lse, nothing compiled.

Rows of blocks run in batches (`row_batches`), each with all of its keys at once, so a row needs one softmax and no
merging. The backward pass computes the weights again from the lse. Scores, as float32 or float64, exist for one batch
at a time: memory grows with the lengths, never with the pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import log
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexspec.evaluate import evaluate
from flexspec.expr import inputs_of, var

from ..pipeline import Lowered
from .base import Backend, Call, Description, Result, accurate
from .row_batches import Part, RowBatch, Span, parts_of
from .weights import by_softmax, printed


def run(call: Call) -> Result:
    return by_softmax(call, _softmax)


def _softmax(call: Call) -> Result:
    if call.wants_gradients:
        read = [call.bound.tensors[name] for name in call.trained]
        out, lse = Attend.apply(call, call.trained, call.q, call.k, call.v, *read)
    else:
        out, lse = forward(call)
    return out, lse if call.return_lse else None


class Attend(torch.autograd.Function):
    """One call, in memory order."""

    @staticmethod
    def forward(ctx: Any, call: Call, names: tuple[str, ...], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = forward(call)
        ctx.call, ctx.names = call, names
        others = [call.bound.tensors[name] for name in inputs_of(call.score) if name not in names]
        others = [tensor for tensor in others if not tensor.is_inference()]
        ctx.save_for_backward(out, lse, *tensors, *others)  # torch tells if anyone writes to them in between
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
        out, lse, _, _, _, *read = ctx.saved_tensors
        dout = torch.zeros_like(out) if dout is None else dout
        return None, None, *backward(ctx.call, out, lse, dout, dlse, dict(zip(ctx.names, read, strict=False)))


@dataclass(frozen=True)
class Tile:
    """One batch of rows of some heads of a part, whose scores are [heads * rows, group * queries, keys].

    heads: which of the part's.
    """

    call: Call
    part: Part
    batch: RowBatch
    heads: slice
    dropped: list[Tensor]

    def of_queries(self, tensor: Tensor) -> Tensor:
        """From [heads, group, q_len, dim]: [heads * rows, group * queries, dim]."""
        rows = _gathered(tensor[self.heads], self.batch.q, 2).to(accurate(tensor.dtype))
        rows = rows.unflatten(2, (self.batch.rows, self.batch.queries)).transpose(1, 2)
        return rows.reshape(-1, self.part.group * self.batch.queries, tensor.shape[-1])

    def of_keys(self, tensor: Tensor) -> Tensor:
        """From [heads, kv_len, dim]: [heads * rows, keys, dim], a view where the keys are one run of one row."""
        keys = _gathered(tensor[self.heads], self.batch.kv, 1).to(accurate(tensor.dtype))
        return keys if self.batch.rows == 1 else keys.reshape(-1, self.batch.keys, tensor.shape[-1])

    def to_queries(self, target: Tensor, rows: Tensor) -> None:
        """What `of_queries` took, put back."""
        sizes = (-1, self.batch.rows, self.part.group, self.batch.queries, target.shape[-1])
        rows = rows.view(sizes).transpose(1, 2).flatten(2, 3)
        done = 0
        for start, stop in self.batch.q:
            target[self.heads, :, start:stop] = rows[:, :, done : done + stop - start]
            done += stop - start

    def add_to_keys(self, target: Tensor, queries: Tensor, pairs: Tensor) -> None:
        """Add `queries.mT @ pairs`, as [dim, keys], to [heads, dim, kv_len]: transposed, it is a quicker product."""
        if self.batch.rows == len(self.batch.kv) == 1:
            target[self.heads, :, slice(*self.batch.kv[0])].baddbmm_(queries.mT, pairs)
            return
        keys = torch.bmm(queries.mT, pairs).unflatten(0, (-1, self.batch.rows)).transpose(1, 2).flatten(2)
        done = 0
        for start, stop in self.batch.kv:
            target[self.heads, :, start:stop] += keys[..., done : done + stop - start]
            done += stop - start

    def by_row(self, scores: Tensor) -> Tensor:
        """The scores as [heads, rows, group, queries, keys]."""
        return scores.view(-1, self.batch.rows, self.part.group, self.batch.queries, self.batch.keys)

    def positions(self) -> dict[str, Tensor]:
        """b, h, q and kv of the pairs, which broadcast as `by_row`."""
        q, kv = self.batch.positions(self.part.b.device)
        return {"b": self.part.b[self.heads], "h": self.part.h[self.heads], "q": q, "kv": kv}

    def drop(self, scores: Tensor, value: float) -> None:
        """Write `value` where the mask drops a pair, whatever is there: as bits, which torch writes in a tenth of
        `masked_fill_`'s time.
        """
        integers = torch.int64 if scores.dtype == torch.float64 else torch.int32
        pairs, bits = self.by_row(scores).view(integers), int(torch.tensor(value, dtype=scores.dtype).view(integers))
        for (start, stop), dropped in zip(self.batch.masked, self.dropped, strict=True):
            kept = dropped.to(integers).sub_(1)  # all ones, else 0
            pairs[..., start:stop].bitwise_and_(kept)
            if bits:
                pairs[..., start:stop].bitwise_or_(kept.bitwise_not_().bitwise_and_(bits))

    def scores(self, q: Tensor, k: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """The scores, -inf where the mask drops a pair; tensors: what the score expression reads."""
        scores = torch.bmm(self.of_queries(q) * _scale(self.call), self.of_keys(k).mT)
        scores = scores if self.call.score is var("score") else self.scored(scores, tensors)
        self.drop(scores, -torch.inf)
        return scores

    def scored(self, logits: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """What the score expression makes of q . k * scale."""
        values = {**self.call.bound.all_numbers(), **tensors, **self.positions(), "score": self.by_row(logits)}
        score = evaluate(self.call.score, values, precise=logits.dtype == torch.float64, checked=False)
        return score.to(logits.dtype).expand_as(self.by_row(logits)).reshape(logits.shape)


def tiles(call: Call, part: Part) -> Iterator[Tile]:
    count = part.b.shape[0]
    for number, batch in enumerate(part.batches):
        dropped = part.dropped(call.lowered, number)
        for first in range(0, count, batch.heads):
            yield Tile(call, part, batch, slice(first, min(first + batch.heads, count)), dropped)


def parts(call: Call) -> list[Part]:
    return call.lowered.derive(parts_of, *call.q.shape[:2], call.k.shape[1], call.q.device)


def score_tensors(call: Call) -> dict[str, Tensor]:
    """What the score reads, where q is; autograd keeps no inference tensors."""
    tensors = {name: call.bound.tensors[name].detach().to(call.q.device) for name in inputs_of(call.score)}
    return {name: x.clone() if x.is_inference() else x for name, x in tensors.items()}


def _scale(call: Call) -> float:
    scale = call.lowered.attention.scale
    return call.q.shape[3] ** -0.5 if scale is None else scale


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """Output in q's dtype and lse in `accurate(q.dtype)`, without a graph."""
    q, k, v = (tensor.detach() for tensor in (call.q, call.k, call.v))
    out = q.new_zeros((*q.shape[:3], v.shape[3]))
    lse = q.new_full((*q.shape[:3], 1), -torch.inf, dtype=accurate(q.dtype))
    tensors = score_tensors(call)
    with torch.no_grad():
        for part in parts(call):
            q_part, out_part, lse_part = (by_group(x, part)[part.heads] for x in (q, out, lse))
            k_part, v_part = (x.reshape(-1, *x.shape[2:])[part.kv_heads] for x in (k, v))
            for tile in tiles(call, part):
                scores = tile.scores(q_part, k_part, tensors)
                top = scores.amax(-1, keepdim=True)
                top.masked_fill_(top == -torch.inf, 0.0)  # a query that keeps nothing: all its weights are 0
                weights = exp_(scores.sub_(top))
                total = weights.sum(-1, keepdim=True)
                rows = torch.bmm(weights, tile.of_keys(v_part))
                tile.to_queries(out_part, rows.div_(torch.where(total > 0, total, 1.0)))
                tile.to_queries(lse_part, total.log_().add_(top))
            put(by_group(out, part), part.heads, out_part)
            put(by_group(lse, part), part.heads, lse_part)
    return out, lse.squeeze(-1)


class Statistics(NamedTuple):
    """Of each query, [batch, heads, q_len, 1] in the working dtype: the lse, inf where it keeps nothing, so that its
    weights are 0, and the sum of do * out less the gradient of the lse.
    """

    shift: Tensor
    delta: Tensor


def _statistics(call: Call, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None) -> Statistics:
    work = accurate(call.q.dtype)
    delta = torch.linalg.vecdot(out.to(work), dout.to(work)).unsqueeze(-1)
    if dlse is not None:
        delta -= dlse.unsqueeze(-1)
    some = (lse > -torch.inf).unsqueeze(-1)
    return Statistics(torch.where(some, lse.unsqueeze(-1), torch.inf), torch.where(some, delta, 0.0))


class Sums:
    """The gradients of the tensors that the scores read, added up batch by batch."""

    def __init__(self, call: Call, read: Mapping[str, Tensor]) -> None:
        work, device = accurate(call.q.dtype), call.q.device
        self.read, self.deterministic = read, call.deterministic
        self.leaves = {name: _leaf(tensor, work, device) for name, tensor in read.items()}
        self.tensors = {**score_tensors(call), **self.leaves}
        self.sums = [torch.zeros_like(tensor) for tensor in self.leaves.values()]

    def add(self, score: Tensor, logits: Tensor, dscores: Tensor) -> Tensor:
        """Add one tile's share; the gradient of its logits."""
        if not score.requires_grad:
            return torch.zeros_like(dscores)  # scores that are constants
        wanted = [logits, *self.leaves.values()]
        with fixed_order(self.deterministic):
            dlogits, *found = torch.autograd.grad(score, wanted, dscores, allow_unused=True, materialize_grads=True)
        for total, gradient in zip(self.sums, found, strict=True):
            total += gradient
        return dlogits

    def found(self) -> list[Tensor]:
        return [total.to(tensor.dtype) for total, tensor in zip(self.sums, self.read.values(), strict=True)]


@contextmanager
def fixed_order(asked: bool | None) -> Iterator[None]:
    """Inside, torch adds up what is scattered in one order, if asked to."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error" if asked else before)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def backward(
    call: Call, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None, read: Mapping[str, Tensor]
) -> list[Tensor]:
    """Gradients of q, k, v and of the tensors `read` by the scores, of a call without a weight."""
    work = accurate(call.q.dtype)
    q, k, v = (tensor.detach() for tensor in (call.q, call.k, call.v))
    stats, sums = _statistics(call, out, lse, dout, dlse), Sums(call, read)
    dq = torch.zeros_like(q, memory_format=torch.contiguous_format)
    dk, dv = (x.new_zeros(x.mT.shape, dtype=work) for x in (k, v))
    with torch.no_grad():
        for part in parts(call):
            dq_part, *of_queries = (by_group(x, part)[part.heads] for x in (dq, q, dout, *stats))
            of_keys = [x.reshape(-1, *x.shape[2:])[part.kv_heads] for x in (k, v)]
            totals = [_target(x.view(-1, *x.shape[2:]), part.kv_heads) for x in (dk, dv)]
            for tile in tiles(call, part):
                _backward_tile(tile, dq_part, of_queries, of_keys, totals, sums)
            put(by_group(dq, part), part.heads, dq_part)
            with fixed_order(call.deterministic):
                for whole, total in zip((dk, dv), totals, strict=True):
                    if isinstance(part.kv_heads, Tensor):
                        whole.view(-1, *whole.shape[2:]).index_add_(0, part.kv_heads, total)
    dk, dv = (_turned(each) for each in (dk, dv))
    return [dq, dk.to(k.dtype), dv.to(v.dtype), *sums.found()]


def _backward_tile(
    tile: Tile,
    dq: Tensor,
    of_queries: Sequence[Tensor],
    of_keys: Sequence[Tensor],
    totals: Sequence[Tensor],
    sums: Sums,
) -> None:
    """Add one tile's share of all gradients; totals: of k and v."""
    slopes = _slopes(tile, of_queries, of_keys, sums)
    tile.add_to_keys(totals[1], slopes.douts, slopes.weights)
    tile.add_to_keys(totals[0], slopes.queries, slopes.dlogits)
    tile.to_queries(dq, torch.bmm(slopes.dlogits, slopes.keys).mul_(_scale(tile.call)))


def score_gradients(
    call: Call, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None, read: Mapping[str, Tensor]
) -> list[Tensor]:
    """What `backward` gives for the tensors `read`, alone."""
    stats, sums = _statistics(call, out, lse, dout, dlse), Sums(call, read)
    with torch.no_grad():
        for part in parts(call):
            of_queries = [by_group(x, part)[part.heads] for x in (call.q.detach(), dout, *stats)]
            of_keys = [x.detach().reshape(-1, *x.shape[2:])[part.kv_heads] for x in (call.k, call.v)]
            for tile in tiles(call, part):
                _slopes(tile, of_queries, of_keys, sums)
    return sums.found()


class Slopes(NamedTuple):
    """Of one tile: the scaled queries, do, the keys, the weights, and the gradients of q . k * scale."""

    queries: Tensor
    douts: Tensor
    keys: Tensor
    weights: Tensor
    dlogits: Tensor


def _slopes(tile: Tile, of_queries: Sequence[Tensor], of_keys: Sequence[Tensor], sums: Sums) -> Slopes:
    """of_queries: q, dout, shift, delta; of_keys: k, v. Adds to `sums`."""
    q, dout, shift, delta = (tile.of_queries(x) for x in of_queries)
    queries, keys = q * _scale(tile.call), tile.of_keys(of_keys[0])
    logits = torch.bmm(queries, keys.mT)
    plain = tile.call.score is var("score")
    if plain:
        weights = logits
    else:
        with torch.enable_grad():
            score = tile.scored(logits.requires_grad_(), sums.tensors)
        weights = score.detach().clone()
    weights = exp_(weights.sub_(shift))
    tile.drop(weights, 0.0)
    dscores = torch.bmm(dout, tile.of_keys(of_keys[1]).mT).sub_(delta).mul_(weights)
    dlogits = dscores if plain else sums.add(score, logits, dscores)
    return Slopes(queries, dout, keys, weights, dlogits)


def _turned(total: Tensor) -> Tensor:
    """[batch, heads, dim, kv_len] as [batch, heads, kv_len, dim] in its own memory, head by head."""
    turned = total.view(total.mT.shape)
    for head, target in zip(total.flatten(0, 1), turned.flatten(0, 1), strict=True):
        target.copy_(head.mT.clone())
    return turned


def exp_(logits: Tensor) -> Tensor:
    """`logits.exp_()`, which on a CPU torch computes slower than powers of two, and slower still at -inf."""
    return logits.mul_(1 / log(2)).exp2_()


def _gathered(tensor: Tensor, spans: list[Span], dim: int) -> Tensor:
    """The tokens of the spans along `dim`, one after the other; one span is a view."""
    runs = [tensor.narrow(dim, start, stop - start) for start, stop in spans]
    return runs[0] if len(runs) == 1 else torch.cat(runs, dim)


def by_group(tensor: Tensor, part: Part) -> Tensor:
    """[batch, heads, q_len, dim] as [batch * heads / group, group, q_len, dim]."""
    return tensor.reshape(-1, part.group, *tensor.shape[2:])


def put(whole: Tensor, heads: slice | Tensor, part: Tensor) -> None:
    """Write chosen heads back, unless they are a view."""
    if isinstance(heads, Tensor):
        whole[heads] = part


def _target(whole: Tensor, heads: slice | Tensor) -> Tensor:
    """Where a part adds up: the heads themselves, or zeros where they are no slice."""
    return whole[heads] if isinstance(heads, slice) else whole.new_zeros((len(heads), *whole.shape[1:]))


def _leaf(tensor: Tensor, work: torch.dtype, device: torch.device) -> Tensor:
    """A tensor whose gradient is summed in the working dtype."""
    return tensor.detach().to(device, torch.promote_types(tensor.dtype, work)).requires_grad_()


def describe(lowered: Lowered) -> Description:
    return Description(printed(lowered))


BLOCKS = Backend("blocks", lambda call: [], run, describe, backward=backward)
