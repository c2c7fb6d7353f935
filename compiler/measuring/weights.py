"""One pass over the softmax weights of a call, in the batches of the portable backend: what every measure sums up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexspec.attention import as_attention
from flexspec.canvas import AnyCanvas
from flexspec.errors import FlexSpecError
from flexspec.evaluate import evaluate
from flexspec.expr import Expr
from flexspec.inputs import Bound
from flexspec.order import Order, OrderLike, relocate
from flexspec.positions import GIVEN
from flexspec.user_line import user_caret

from ..attend import Attending
from ..backends.base import Call, accurate, check_qkv
from ..backends.blocks import Tile, by_group, exp_, parts, put, score_tensors, tiles
from ..blocks.grid import BlockSize

NOTHING = -1e4
"""A score below the largest whose weight is 0 in every dtype, and whose product with 0 is 0."""


@dataclass(frozen=True)
class Mean:
    """A number or a boolean of each pair, whose mean under the weights is wanted.

    expr: over memory positions. values: what it reads, by name, on q's device.
    """

    expr: Expr
    values: Mapping[str, Any]

    def of(self, tile: Tile, weights: Tensor) -> Tensor:
        """Its sum with the weights of a tile, [heads * rows, group * queries]."""
        each = evaluate(self.expr, {**self.values, **tile.positions()}).to(weights.dtype)
        return (tile.by_row(weights) * each).sum(-1).view(weights.shape[:2])


def mean_over(expr: Expr, canvas: AnyCanvas | None, bound: Bound, order: Order | None, device: torch.device) -> Mean:
    """The mean of an expression over logical positions, with the bound values of a call in memory."""
    tensors = {name: tensor.detach().to(device) for name, tensor in bound.tensors.items()}
    expr = relocate(expr, order, canvas, bound.sizes.q_len, bound.sizes.kv_len, bound.rows)
    return Mean(expr, {**bound.all_numbers(), **tensors})


class Sums(NamedTuple):
    """What a pass gives, in memory order, float32, or float64 of float64.

    lse, entropy: [batch, heads, q_len]; means: [batch, heads, q_len, means]. Of a query that keeps nothing the lse is
    -inf, and entropy and means are 0. products: [batch, heads, columns, kv_len]. counts: [batch, heads, kv_len], the
    queries that keep each key.
    """

    lse: Tensor
    entropy: Tensor
    means: Tensor
    products: Tensor
    counts: Tensor


@torch.no_grad()
def sums(call: Call, means: Sequence[Mean] = (), vectors: Tensor | None = None) -> Sums:
    """Entropies and means of each query, and the products of vectors over queries with the weights.

    vectors: [batch, heads, q_len, columns]; None is one column of ones, whose product is each key's column sum.
    """
    q, k, work = call.q.detach(), call.k.detach(), accurate(call.q.dtype)
    batch, heads, q_len, _ = q.shape
    vectors = q.new_ones((batch, heads, q_len, 1), dtype=work) if vectors is None else vectors.to(work)
    of_queries = q.new_zeros((batch, heads, q_len, 2 + len(means)), dtype=work)
    of_queries[..., 0] = -torch.inf
    of_keys = q.new_zeros((batch, heads, vectors.shape[3] + 1, k.shape[2]), dtype=work)
    tensors = score_tensors(call)
    for part in parts(call):
        q_part, given, found, columns = (by_group(x, part)[part.heads] for x in (q, vectors, of_queries, of_keys))
        k_part = k.reshape(-1, *k.shape[2:])[part.kv_heads]
        for tile in tiles(call, part):
            scores = tile.scores(q_part, k_part, tensors)
            top = scores.amax(-1, keepdim=True)
            top.masked_fill_(top == -torch.inf, 0.0)
            weights = exp_(scores.sub_(top).clamp_(min=NOTHING).clone())
            total = weights.sum(-1)
            shares = torch.where(total > 0, total, 1.0).reciprocal_()
            each = [torch.linalg.vecdot(weights, scores), *(mean.of(tile, weights) for mean in means)]
            each = [x * shares for x in each]
            each[0] = torch.where(total > 0, total, 1.0).log_() - each[0]
            tile.to_queries(found, torch.stack([total.log_() + top[..., 0], *each], -1))
            _add_columns(tile, columns, weights, tile.of_queries(given) * shares[..., None])
        put(by_group(of_queries, part), part.heads, found)
        put(by_group(of_keys, part), part.heads, columns)
    lse, entropy, *_ = of_queries.unbind(-1)
    return Sums(lse, entropy, of_queries[..., 2:], of_keys[:, :, :-1], of_keys[:, :, -1])


def _add_columns(tile: Tile, columns: Tensor, weights: Tensor, vectors: Tensor) -> None:
    """Add the products of vectors [heads * rows, group * queries, columns], and how many queries keep each key."""
    sizes = (-1, tile.batch.rows, tile.part.group, tile.batch.queries)
    products = vectors.unflatten(1, sizes[2:]).mT @ weights.unflatten(1, sizes[2:])
    products = products.unflatten(0, sizes[:2]).permute(0, 2, 3, 1, 4).flatten(3)
    counts = weights.new_full((tile.batch.rows, tile.batch.keys), tile.batch.queries)
    for (start, stop), dropped in zip(tile.batch.masked, tile.dropped, strict=True):
        counts[:, start:stop] -= dropped.sum((1, 2))
    whole, done = columns[tile.heads], 0
    for start, stop in tile.batch.kv:
        span = slice(done, done := done + stop - start)
        whole[:, :, :-1, start:stop] += products[..., span]
        whole[:, :, -1, start:stop] += counts.view(-1)[span]


@dataclass(frozen=True)
class Asked:
    """One attention that is measured: called with q and k, it gives the call in memory order."""

    attend: Attending

    @property
    def names(self) -> Set[str]:
        """The values that a call may give."""
        parts = self.attend.spec.parts
        return parts.names - parts.tensors.keys()

    def __call__(self, q: Tensor, k: Tensor, values: Mapping[str, Any]) -> Call:
        check_qkv(q, k, k)
        return self.attend.call_of(q.detach(), k.detach(), k.detach()[..., :1], True, "logical", dict(values))

    def in_logical_order(self, found: Sums, q_len: int, kv_len: int) -> Sums:
        """What a pass gave, at the places where q and k came from."""
        back = self.attend.moved_back
        lse, entropy = (back(each, "logical", q_len, -1) for each in (found.lse, found.entropy))
        means = back(found.means, "logical", q_len)
        products = back(found.products.mT, "logical", kv_len, side="kv").mT
        return Sums(lse, entropy, means, products, back(found.counts, "logical", kv_len, -1, "kv"))

    def lse(self, q: Tensor, k: Tensor, values: Mapping[str, Any]) -> Tensor:
        """[batch, heads, q_len], in logical order."""
        with torch.no_grad():
            return self.attend.run(self(q, k, values), q.shape[2], "logical")[1]


def asked(spec: object, order: OrderLike, block_size: BlockSize) -> Asked:
    """What is measured of a Mask, an Attention or a mask_mod. FS042 where its weight is not the softmax."""
    attention = as_attention(spec)
    if attention.weight is not None:
        message = f"the measures are those of softmax weights; this attention has {attention.weight}"
        fix = "measure fs.Attention(mask, scores) without the weight"
        raise FlexSpecError("FS042", message, fix=fix, where=user_caret())
    return Asked(Attending(attention, order, block_size, "blocks"))


def own_values(known: Sequence[Set[str]], values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The values for each of several formulas, by the names that it takes; one that none knows goes to the first, and
    positions to all.
    """
    everywhere = set().union(*known, GIVEN.values())
    own = [{name: x for name, x in values.items() if name in names | set(GIVEN.values())} for names in known]
    return [own[0] | {name: x for name, x in values.items() if name not in everywhere}, *own[1:]]
