"""What a backend is given, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from flexspec.attention import Attention
from flexspec.errors import FlexSpecError
from flexspec.expr import Expr
from flexspec.inputs import Bound, Sizes
from flexspec.user_line import user_caret

from ..blocks.block_map import BlockMap
from ..blocks.on_device import DeviceMap
from .pages import gathered


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


def check_weight(attention: Attention, sizes: Sizes, return_lse: bool) -> None:
    """FS040 where an identity mix finds no own value; FS042 where a weight without a sum is asked for its lse."""
    weight = attention.weight
    if weight is None:
        return
    if weight.kind == "identity_mix" and sizes.q_len != sizes.kv_len:
        message = (
            f"q_len is {sizes.q_len} and kv_len {sizes.kv_len}; {weight} mixes in the value of the query's own token"
        )
        raise FlexSpecError("FS040", message, fix="give as many queries as keys", where=user_caret())
    if return_lse and not weight.normalised:
        message = f"{weight} is not divided by a sum, so there is no lse"
        raise FlexSpecError(
            "FS042", message, fix="leave return_lse out; parts over keys simply add", where=user_caret()
        )


@dataclass(frozen=True)
class Call:
    """One attention call, in memory order.

    q: [batch, heads, q_len, head_dim]; k, v: [batch, kv_heads, kv_len, head_dim], or [pages, page_size, kv_heads,
    head_dim] with a `page_table` [batch, pages of a sequence].

    `mask` and `score` are over memory positions; `values` holds their parameters, sizes and tensors by name.
    """

    attention: Attention
    bound: Bound
    mask: Expr
    score: Expr
    block_map: BlockMap | DeviceMap
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    return_lse: bool
    page_table: torch.Tensor | None = None
    autotune: bool = False

    def unpaged(self) -> Call:
        """The same call with keys and values copied out of their pages, if they are in pages."""
        if self.page_table is None:
            return self
        k, v = (gathered(x, self.page_table, self.block_map.grid.kv_len) for x in (self.k, self.v))
        return replace(self, k=k, v=v, page_table=None)

    @property
    def wants_gradients(self) -> bool:
        tensors = (self.q, self.k, self.v, *self.bound.tensors.values())
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class Backend(Protocol):
    """A way to run a call."""

    name: str

    def reasons_against(self, call: Call) -> list[str]:
        """Why this backend cannot run the call; empty when it can."""
        ...

    def run(self, call: Call) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The output [batch, heads, q_len, v_head_dim] in q's dtype, and the lse [batch, heads, q_len] if asked for."""
        ...
