"""`fs.rollout`: how much of each input token reaches chosen tokens through several layers, by products with vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexspec.attention import Attention
from flexspec.errors import FlexSpecError
from flexspec.mask import Mask
from flexspec.order import OrderLike
from flexspec.user_line import user_caret

from ..backends.base import accurate, check_qkv
from ..blocks.grid import BlockSize
from .weights import Asked, asked, own_values, sums

Spec = Attention | Mask | Callable[..., Any]


@dataclass(frozen=True, eq=False, repr=False)
class Rollout:
    """How much chosen tokens get from each token, layer by layer. Made by `fs.rollout`.

    label: the attentions' names.
    tokens: the chosen ones.
    flow: [layers + 1, batch, tokens, length]: what a token gets after the last layer from each token before layer i.
        Rows sum to 1; `flow[layers]` is the token itself.
    """

    label: str
    tokens: tuple[int, ...]
    flow: Tensor

    @property
    def shares(self) -> Tensor:
        """[batch, tokens, length]: what each chosen token gets from each token of the input."""
        return self.flow[0]

    def __repr__(self) -> str:
        layers, batch, tokens, length = self.flow.shape
        sizes = f"{layers - 1} layers, batch {batch}, {tokens} of {length:,} tokens"
        first = zip(self.tokens[:4], self.shares[0].argmax(-1).tolist(), strict=False)
        most = [f"token {at:,} has most from {key:,}" for at, key in first]
        return f"Rollout({self.label}: {sizes}; {', '.join(most)}{', ...' if tokens > 4 else ''})"

    def show(self, path: str | Path) -> Path:
        """Draw the flow of each chosen token, layer by layer; the file's path. FS054."""
        from ..draw import measures as drawing

        return drawing.save_rollout(self, path)


def rollout(
    spec: Spec | Sequence[Spec],
    layers: Sequence[tuple[Tensor, Tensor]],
    tokens: int | Sequence[int],
    *,
    residual: float = 0.5,
    order: OrderLike = None,
    block_size: BlockSize = 128,
    **values: Any,
) -> Rollout:
    """Attention rollout for chosen tokens: how much of each input token reaches them through all layers.

    Each layer is `residual * I + (1 - residual) * A`, with A the mean of its heads, and the layers are multiplied
    (Abnar and Zuidema, Quantifying Attention Flow in Transformers, arXiv:2005.00928). Only the chosen rows of the
    product are computed, from the last layer down: vectors times matrices, so memory grows with
    layers * tokens * length. A token that keeps nothing in a head passes itself on there.

    spec: one Mask, Attention or mask_mod for every layer, or a list: layer i uses `spec[i % len(spec)]`.
    layers: (q, k) of each, the first layer first: q [batch, heads, length, head_dim], k [batch, kv_heads, length,
        head_dim].
    tokens: positions, one or several.
    residual: the share of the residual stream, from 0 to 1.
    order: where tokens lie in memory meanwhile; results are in logical order.
    block_size: tokens, one number or (query, key).
    values: run-time values by name, for the specs that take them.

    Raises FS025 (residual), FS030 (a token that is not there, no layers, no specs), FS040 (layers of different sizes),
    and what `fs.measure` raises.

    >>> import flexspec as fs, torch
    >>> q = k = torch.zeros(1, 1, 4, 8)
    >>> fs.rollout(fs.causal_window(2), [(q, k), (q, k)], 3).shares[0, 0].tolist()
    [0.0, 0.0625, 0.375, 0.5625]
    """
    specs = list(spec) if isinstance(spec, Sequence) else [spec]
    tokens = [tokens] if isinstance(tokens, int) else list(tokens)
    _check(specs, layers, tokens, residual)
    attentions = [asked(each, order, block_size) for each in specs]
    given = own_values([each.names for each in attentions], values)
    q = layers[0][0]
    batch, _, length, _ = q.shape
    flow = q.new_zeros((len(layers) + 1, batch, len(tokens), length), dtype=accurate(q.dtype))
    flow[-1, :, range(len(tokens)), tokens] = 1.0
    for layer in reversed(range(len(layers))):
        which = layer % len(specs)
        below = _through(attentions[which], *layers[layer], given[which], flow[layer + 1])
        flow[layer] = residual * flow[layer + 1] + (1 - residual) * below
    return Rollout(", ".join(each.attend.spec.label for each in attentions), tuple(tokens), flow)


def _through(attention: Asked, q: Tensor, k: Tensor, values: dict[str, Any], rows: Tensor) -> Tensor:
    """Vectors [batch, tokens, length] times the mean of the heads' weights."""
    heads, length = q.shape[1], q.shape[2]
    vectors = attention.attend.moved(rows.mT[:, None].expand(-1, heads, -1, -1), "logical")
    found = attention.in_logical_order(sums(attention(q, k, values), vectors=vectors), length, length)
    alone = (found.lse == -torch.inf).to(rows).mean(1)
    return found.products.mean(1) + rows * alone[:, None]


def _check(specs: Sequence[Any], layers: Sequence[Any], tokens: Sequence[Any], residual: Any) -> None:
    """FS023, FS025, FS030, FS040."""
    if isinstance(residual, bool) or not isinstance(residual, (int, float)) or not 0 <= residual <= 1:
        message = f"residual is {residual!r}"
        raise FlexSpecError("FS025", message, fix="give a share from 0 to 1", where=user_caret())
    for what, given in (("specs", specs), ("layers", layers), ("tokens", tokens)):
        if not given:
            raise FlexSpecError("FS030", f"there are no {what}", fix="give at least one", where=user_caret())
    for q, k in layers:
        check_qkv(q, k, k)
    sizes = [(q.shape[0], q.shape[2], k.shape[2]) for q, k in layers]
    batch, length, _ = sizes[0]
    for layer, size in enumerate(sizes):
        if size != (batch, length, length):
            message = f"layer {layer} has batch {size[0]}, {size[1]:,} queries and {size[2]:,} keys"
            fix = f"give batch {batch} and {length:,} of both, as layer 0 has queries"
            raise FlexSpecError("FS040", message, fix=fix, where=user_caret())
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < length:
            fix = f"give integers from 0 to {length - 1:,}"
            raise FlexSpecError("FS030", f"there is no token {token!r}", fix=fix, where=user_caret())
