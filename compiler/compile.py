"""`fs.compile`: a spec made callable, in an order and a block size that are given or planned."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from flexspec.attention import Attention, as_attention
from flexspec.mask import Mask
from flexspec.order import Order

from .backends.base import Backend
from .backends.registry import chosen
from .blocks.grid import BlockSize
from .compiled import CompiledAttention
from .planned import AUTO, PlannedAttention


def compile(  # noqa: A001 - the field's word, as in torch.compile
    spec: Attention | Mask | Callable[..., Any],
    *,
    order: Order | str | None = None,
    block_size: BlockSize | str = 128,
    backend: str | Backend = "auto",
    exact: bool = True,
    autotune: bool = False,
    deterministic: bool | None = None,
) -> CompiledAttention:
    """Attention with this spec, callable on `q, k, v`; kernels are compiled at the first call.

    spec: a Mask, an Attention, or a FlexAttention mask_mod.
    order: where tokens lie in memory while the kernel runs.
    block_size: tokens, one number or (query, key). "auto" for order or block_size is `fs.plan`'s choice at the first
        call of a size: a `PlannedAttention`.
    backend: auto (the first that can run a call), flex, flash, blocks, triton, reference, or a `Backend` of your own.
    exact: with False block lists are made on the device from bounds, without waiting: documents that change at each
        step cost no synchronisation, and undecided blocks evaluate the mask.
    autotune: time the tiles of each Triton kernel at its first call and keep the best in the cache folder.
    deterministic: True: gradients are the same bits at each call, those of tensors that scores read too, which Triton
        then leaves to slower torch operations. False: Triton may take its one-pass backward, whose sums have no fixed
        order, where that is expected to be faster. None: True under `torch.use_deterministic_algorithms`; else only the
        gradients of tensors that scores read may differ in their last bits, and no others.

    Raises FS023 (no spec), FS030 (block size), FS033 (order), FS041 (backend), FS042 (nothing to tune).

    >>> import flexspec as fs, torch
    >>> attend = fs.compile(fs.causal(), backend="reference")
    >>> attend(*[torch.eye(3)[None, None]] * 3)[0, 0, 0].tolist()
    [1.0, 0.0, 0.0]
    """
    chosen(backend)
    how: dict[str, Any] = {"exact": exact, "autotune": autotune, "deterministic": deterministic}
    attending: Any = partial(CompiledAttention, backend=backend, **how)
    planned: Any = partial(PlannedAttention, make=attending) if AUTO in (order, block_size) else attending
    return planned(as_attention(spec), order, block_size)
