"""`fs.recall`: the share of an attention's mass that a mask keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexspec.attention import Attention, as_attention
from flexspec.errors import FlexSpecError
from flexspec.mask import Mask, from_mask_mod
from flexspec.order import OrderLike
from flexspec.user_line import user_caret

from ..blocks.grid import BlockSize
from .measure import mean_by_head
from .weights import asked, own_values


@dataclass(frozen=True, eq=False, repr=False)
class Recall:
    """The share of each query's mass that a mask keeps. Made by `fs.recall`.

    mask, within: the names of the mask and of the wider attention.
    share: [batch, heads, q_len], from 0 to 1; 1 where the wider attention keeps nothing, of which nothing is lost.
    lse: of the wider attention, [batch, heads, q_len], to be given when another mask is compared with it.
    """

    mask: str
    within: str
    share: Tensor
    lse: Tensor

    def by_head(self) -> Tensor:
        """[heads]: the mean over batch and queries; queries for which there is nothing to keep do not count."""
        return mean_by_head(self.share, self.lse)

    def __repr__(self) -> str:
        heads = ", ".join(f"{share:.1%}" for share in self.by_head()[:8].tolist())
        more = ", ..." if self.share.shape[1] > 8 else ""
        return f"Recall({self.mask} within {self.within}: {heads}{more} by head)"

    def show(self, path: str | Path) -> Path:
        """Draw the share by head and query; the file's path. FS054."""
        from ..draw import measures as drawing

        return drawing.save_recall(self, path)


def recall(
    mask: Mask | Callable[..., Any],
    q: Tensor,
    k: Tensor,
    *,
    within: Attention | Mask | Callable[..., Any] | None = None,
    lse: Tensor | None = None,
    order: OrderLike = None,
    block_size: BlockSize = 128,
    **values: Any,
) -> Recall:
    """The share of the softmax mass of a wider attention that a mask keeps, query by query: exp(lse_mask - lse_within).

    mask: a Mask or a mask_mod. Of the pairs that it keeps, those count that `within` keeps too.
    q: [batch, heads, q_len, head_dim].
    k: [batch, kv_heads, kv_len, head_dim], kv_heads dividing heads.
    within: the wider attention, with its scores and scale; None is full attention.
    lse: of `within` over the same q and k, [batch, heads, q_len], where it is known: from a call with
        `return_lse=True`, or of an earlier recall. It costs the pass over all its pairs.
    order: where tokens lie in memory meanwhile; results are in logical order.
    block_size: tokens, one number or (query, key).
    values: run-time values by name, of the mask and of `within`.

    Raises what `fs.measure` raises, and FS040 for an lse that is no tensor of that shape.

    >>> import flexspec as fs, torch
    >>> q = k = torch.zeros(1, 1, 4, 8)
    >>> share = fs.recall(fs.causal_window(2), q, k, within=fs.causal()).share
    >>> [round(each, 3) for each in share[0, 0].tolist()]
    [1.0, 1.0, 0.667, 0.5]
    """
    wide = Attention() if within is None else as_attention(within)
    mask = from_mask_mod(mask)
    both = Attention(mask if within is None else mask & wide.mask, wide.scores, wide.scale, wide.weight)
    kept, full = (asked(each, order, block_size) for each in (both, wide))
    own, theirs = own_values([kept.names, full.names], values)
    found = kept.lse(q, k, own)
    if lse is None:
        lse = full.lse(q, k, theirs)
    elif not isinstance(lse, Tensor) or lse.shape != found.shape:
        seen = list(lse.shape) if isinstance(lse, Tensor) else type(lse).__name__
        message = f"lse is {seen}; of these q and k it is {list(found.shape)}"
        raise FlexSpecError("FS040", message, fix="give the lse of `within` over the same q and k", where=user_caret())
    lse = lse.to(found)
    share = torch.where(lse > -torch.inf, (found - lse).exp_().clamp_(max=1.0), 1.0)
    return Recall(mask.label, "full attention" if within is None else wide.label, share, lse)
