"""`fs.measure`: entropies, mass on sets of keys, distances and column sums of real attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from flexspec.attention import Attention
from flexspec.canvas import Canvas
from flexspec.errors import FlexSpecError
from flexspec.expr import Expr, apply, inputs_of, params_of, var
from flexspec.formula import Formula
from flexspec.inputs import Input, make_sizes
from flexspec.mask import Mask, from_mask_mod, mask
from flexspec.order import OrderLike
from flexspec.positions import bind_call
from flexspec.user_line import user_caret

from ..blocks.grid import BlockSize
from .weights import asked, mean_over, own_values, sums

Keys: TypeAlias = Mask | Callable[..., Any] | Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Measures:
    """What an attention's weights do, without a map of all pairs. Made by `fs.measure`.

    label: the attention's name.
    entropy: [batch, heads, q_len] in nats: 0 where one key has all the weight, the log of the keys' number where all
        have the same.
    distance: [batch, heads, q_len], the mean of |q - kv| in tokens.
    axis_distance: the same along each axis of the canvas.
    mass: by name, [batch, heads, q_len], the share of a query's weight on a set of keys.
    column_sums: [batch, heads, kv_len], the weight that a key gets from all queries.
    column_counts: int64 [batch, heads, kv_len], how many queries keep a key.
    lse: [batch, heads, q_len] in nats, -inf where a query keeps nothing; its other measures are 0.

    All in float32, or in float64 of float64, in logical order.
    """

    label: str
    entropy: Tensor
    distance: Tensor
    axis_distance: Mapping[str, Tensor]
    mass: Mapping[str, Tensor]
    column_sums: Tensor
    column_counts: Tensor
    lse: Tensor

    @property
    def importance(self) -> Tensor:
        """[batch, heads, kv_len]: the mean weight that a key gets from the queries that keep it (arXiv:2410.10781)."""
        return self.column_sums / self.column_counts.clamp(min=1)

    def sinks(self, threshold: float = 0.3) -> Tensor:
        """bool [batch, heads, kv_len]: is a key an attention sink, of an importance above the threshold?

        The definition and the threshold are those of When Attention Sink Emerges (arXiv:2410.10781).
        """
        return self.importance > threshold

    @property
    def by_query(self) -> dict[str, Tensor]:
        """All measures of queries by name, as pictures show them: [batch, heads, q_len]."""
        along = {f"distance along {name}": each for name, each in self.axis_distance.items()}
        on = {f"mass on {name}": each for name, each in self.mass.items()}
        return {"entropy": self.entropy, "distance": self.distance, **along, **on}

    def by_head(self) -> dict[str, Tensor]:
        """The mean of each measure over batch and queries, [heads]; queries that keep nothing do not count."""
        return {name: mean_by_head(each, self.lse) for name, each in self.by_query.items()}

    def __repr__(self) -> str:
        batch, heads, q_len = self.lse.shape
        sizes = f"{batch} x {heads} heads, {q_len:,} queries, {self.column_sums.shape[2]:,} keys"
        means = ", ".join(f"{name} {each.mean():.3g}" for name, each in self.by_head().items())
        return f"Measures({self.label}: {sizes}; {means})"

    def show(self, path: str | Path) -> Path:
        """Draw each measure by head and position, and each key's importance; the file's path. FS054."""
        from ..draw import measures as drawing

        return drawing.save_measures(self, path)


def mean_by_head(each: Tensor, lse: Tensor) -> Tensor:
    """[heads]: the mean of [batch, heads, q_len] over the queries that keep a key; 0 where none does."""
    some = lse > -torch.inf
    return torch.where(some, each, 0.0).sum((0, 2)) / some.sum((0, 2)).clamp(min=1)


def measure(
    spec: Attention | Mask | Callable[..., Any],
    q: Tensor,
    k: Tensor,
    *,
    mass: Mapping[str, Keys] = MappingProxyType({}),
    canvas: Canvas | None = None,
    order: OrderLike = None,
    block_size: BlockSize = 128,
    **values: Any,
) -> Measures:
    """What the softmax weights of q and k do under a mask, query by query and key by key, in O(n) memory.

    One pass over the kept blocks in plain torch operations, on any device; nothing of size q_len x kv_len is held, and
    no gradients flow.

    spec: a Mask, an Attention or a mask_mod; `fs.everything()` is full attention.
    q: [batch, heads, q_len, head_dim].
    k: [batch, kv_heads, kv_len, head_dim], kv_heads dividing heads.
    mass: sets of keys by name: a bool tensor [kv_len], [batch, kv_len] or [batch, heads, kv_len] (one head serves all),
        or a mask, by which the set may depend on the query, such as the keys of its own frame.
    canvas: whose axes distances are measured along; the spec's own where it is left out.
    order: where tokens lie in memory meanwhile; results are in logical order.
    block_size: tokens, one number or (query, key).
    values: run-time values by name, of the spec and of the masks of `mass`; `q_positions` and `kv_positions` too.

    Distances are those of true positions, which count from 0 on both sides where none are given.

    Raises FS020 to FS026 and FS030 to FS035 (values, sizes, arithmetic, as `fs.compile`'s attention), FS040 (q and k),
    FS042 (a weight that is not the softmax).

    >>> import flexspec as fs, torch
    >>> q = k = torch.zeros(1, 1, 4, 8)
    >>> found = fs.measure(fs.causal(), q, k, mass={"sink": fs.sink(1)})
    >>> [round(each, 3) for each in found.mass["sink"][0, 0].tolist()]
    [1.0, 0.5, 0.333, 0.25]
    >>> found.distance[0, 0].tolist(), round(found.entropy[0, 0, 3].exp().item(), 3)
    ([0.0, 0.5, 1.0, 1.5], 4.0)
    """
    attention = asked(spec, order, block_size)
    masks = {name: _keys(name, each) for name, each in mass.items()}
    own, *theirs = own_values([attention.names, *(_open_names(each) for each in masks.values())], values)
    call = attention(q, k, own)
    axes, placed = canvas or attention.attend.spec.parts.canvas, attention.attend.order
    distances = [_distance(axis) for axis in ("", *(f".{name}" for name in (axes.names if axes else ())))]
    means = [mean_over(each, axes, call.bound, placed, q.device) for each in distances]
    sizes = make_sizes(q.shape[2], k.shape[2], q.shape[0], q.shape[1])
    if not call.bound.rows:
        Formula(distances[0], "distance", canvas=axes).bind(sizes, {})  # tells of a canvas of another length
    for keys, given in zip(masks.values(), theirs, strict=True):
        bound = bind_call(Attention(keys).parts, sizes, given, placed, q.device)
        means.append(mean_over(keys.expr, keys.on, bound, placed, q.device))
    found = attention.in_logical_order(sums(call, means), q.shape[2], k.shape[2])
    distance, *along = found.means[..., : len(distances)].unbind(-1)
    by_axis = dict(zip(axes.names if axes else (), along, strict=True))
    on = dict(zip(masks, found.means[..., len(distances) :].unbind(-1), strict=True))
    columns = found.products[:, :, 0], found.counts.long()
    return Measures(attention.attend.spec.label, found.entropy, distance, by_axis, on, *columns, found.lse)


def _distance(axis: str) -> Expr:
    """|q - kv| in tokens, or along an axis such as ".t"."""
    return apply("abs", apply("sub", var(f"q{axis}"), var(f"kv{axis}")))


_CHOSEN = {
    1: mask(lambda kv: Input("keys", ("kv_len",), "bool")[kv]),
    2: mask(lambda b, kv: Input("keys", ("batch", "kv_len"), "bool")[b, kv]),
    3: mask(lambda b, h, kv: Input("keys", ("batch", "heads", "kv_len"), "bool")[b, h, kv]),
}
"""The keys where a tensor of so many dims is true."""


def _keys(name: str, keys: Keys) -> Mask:
    """A set of keys as a mask. FS022, FS023."""
    if not isinstance(keys, Tensor):
        return from_mask_mod(keys)
    if keys.dtype != torch.bool or keys.dim() not in _CHOSEN:
        message = f"the keys of {name!r} are {str(keys.dtype).removeprefix('torch.')}{list(keys.shape)}"
        fix = "give a bool tensor [kv_len], [batch, kv_len] or [batch, heads, kv_len], or a mask"
        raise FlexSpecError("FS022" if keys.dtype == torch.bool else "FS023", message, fix=fix, where=user_caret())
    return _CHOSEN[keys.dim()](keys=keys)


def _open_names(formula: Formula) -> Set[str]:
    """The values that a formula takes when it runs."""
    return {*inputs_of(formula.expr), *params_of(formula.expr), *formula.defaults} - formula.tensors.keys()
