"""What stands for a block of tokens, and the scores of pairs of blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flexspec.selection import Selection

Scores = Callable[[slice, Tensor], Tensor]
"""From rows of blocks and the candidates [batch | 1, heads | 1, rows, kv_blocks] of those: float [batch, heads, rows,
kv_blocks]."""


@dataclass(frozen=True)
class Side:
    """Queries or keys in memory.

    x: [batch, heads, tokens, head_dim] in the working dtype. there: bool [batch | 1, heads | 1, tokens], false where
    memory holds no token.
    """

    x: Tensor
    there: Tensor
    block: int

    def by_block(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """[batch, heads, tokens, ...] as [batch, heads, blocks, block, ...]; `fill` where there is no token."""
        more = -x.shape[2] % self.block
        there = self.there.view(*self.there.shape, *[1] * (x.dim() - 3))
        x = torch.where(there, x, fill)
        if more:
            x = torch.cat([x, x.new_full((*x.shape[:2], more, *x.shape[3:]), fill)], 2)
        return x.unflatten(2, (-1, self.block))

    @property
    def counts(self) -> Tensor:
        """Tokens of each block, at least 1: [batch | 1, heads | 1, blocks, 1]."""
        return self.by_block(self.there.to(self.x.dtype)).sum(3).clamp(min=1).unsqueeze(-1)

    def means(self) -> Tensor:
        if self.block == 1:
            return torch.where(self.there.unsqueeze(-1), self.x, 0.0)
        return self.by_block(self.x).sum(3) / self.counts

    def largest(self) -> Tensor:
        return _finite(self.by_block(self.x, -torch.inf).amax(3))

    def smallest(self) -> Tensor:
        return _finite(self.by_block(self.x, torch.inf).amin(3))

    def similarity(self) -> Tensor:
        """The mean cosine similarity of two tokens of a block, a token and itself included: [batch, heads, blocks]."""
        directions = torch.nn.functional.normalize(self.x, dim=-1)
        return (self.by_block(directions).sum(3) / self.counts).square().sum(-1)

    def joined(self, stride: int, backwards: bool) -> Tensor:
        """Each `stride` tokens as one: [batch, heads, groups, stride * head_dim]; groups fill whole blocks."""
        groups = self.by_block(self.x).flatten(2, 3).unflatten(2, (-1, stride))
        return (groups.flip(3) if backwards else groups).flatten(3)


def _finite(x: Tensor) -> Tensor:
    """0 in the place of infinities, as of blocks without a token."""
    return torch.where(x.isinf(), 0.0, x)


def product(q: Tensor, k: Tensor) -> Tensor:
    """[batch, heads, rows, kv_blocks] of [batch, heads, rows, dim] and [batch, kv_heads, kv_blocks, dim]."""
    grouped = q.unflatten(1, (k.shape[1], -1))
    return (grouped @ k.unsqueeze(2).mT).flatten(1, 2)


def scores_of(selection: Selection, q: Side, k: Side, scale: float) -> Scores:
    """The scores of a selection, without the softmax, but of antidiagonals, whose softmax comes before their sums."""
    if selection.summary == "min_max":
        mean, low, high = q.means(), k.smallest(), k.largest()
        above, below = mean.clamp(min=0), mean.clamp(max=0)
        return lambda rows, _: (product(above[:, :, rows], high) + product(below[:, :, rows], low)) * scale
    if selection.summary == "max":
        tops = q.largest(), k.largest()
        return lambda rows, _: product(tops[0][:, :, rows], tops[1]) * scale
    means = q.means(), k.means()
    return lambda rows, _: product(means[0][:, :, rows], means[1]) * scale


def antidiagonals(selection: Selection, q: Side, k: Side, scale: float) -> Scores:
    """The scores of pairs of blocks by their antidiagonals; candidates are of groups of `stride` tokens here."""
    stride = selection.stride or 1
    joined = q.joined(stride, True), k.joined(stride, False)
    groups = q.block // stride, k.block // stride

    def scores(rows: slice, candidates: Tensor) -> Tensor:
        inside = slice(rows.start * groups[0], rows.stop * groups[0])
        weights = softmax(product(joined[0][:, :, inside], joined[1]) * (scale / stride), candidates)
        return weights.unflatten(3, (-1, groups[1])).sum(4).unflatten(2, (-1, groups[0])).sum(3)

    return scores


def softmax(scores: Tensor, candidates: Tensor) -> Tensor:
    """Over the candidates of a row; 0 elsewhere, and in rows without any. A NaN takes no part."""
    some = candidates & ~scores.isnan()
    top = scores.masked_fill(~some, -torch.inf).amax(-1, keepdim=True)
    weights = torch.where(some, scores - torch.where(top.isinf(), 0.0, top), -torch.inf).exp()
    return torch.where(candidates, weights / weights.sum(-1, keepdim=True).clamp(min=1e-30), 0.0).masked_fill(
        candidates & ~some, torch.nan
    )
