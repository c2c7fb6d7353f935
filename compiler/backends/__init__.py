"""The ways to run a spec, best first. `auto` takes the first that can."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import torch

from flexspec.attention import Attention
from flexspec.errors import FlexSpecError, choices
from flexspec.expr import Expr
from flexspec.inputs import Bound
from flexspec.source import user_caret

from ..blocks.block_map import BlockMap
from ..pages import gathered

if TYPE_CHECKING:
    from ..blocks.on_device import DeviceMap  # which needs the pipeline, and that needs this package


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


@lru_cache(1)
def backends() -> dict[str, Backend]:
    """All backends by name, best first."""
    from .flex import FlexBackend  # each backend's library loads when one is needed, not with the package
    from .plain import ReferenceBackend
    from .triton import TritonBackend

    found: list[Backend] = [FlexBackend(), ReferenceBackend(), TritonBackend()]
    return {backend.name: backend for backend in found}


NAMES = ("auto", "flex", "triton", "reference")


def check_backend(name: str) -> str:
    """FS041 for a name that is no backend."""
    if name not in NAMES:
        message = f"there is no backend {name!r}"
        raise FlexSpecError("FS041", message, fix=f"choose {choices(NAMES)}", where=user_caret())
    return name
