"""`fs.compile`: a spec made callable, in an order and a block size that are given or planned."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from flexspec.attention import Attention, as_attention
from flexspec.mask import Mask
from flexspec.order import OrderLike, as_order

from .backends.base import Backend
from .backends.registry import chosen
from .blocks.grid import BlockSize
from .compiled import CompiledAttention
from .planned import AUTO, PlannedAttention


def compile(  # noqa: A001 - the field's word, as in torch.compile
    spec: Attention | Mask | Callable[..., Any],
    *,
    order: OrderLike | str = None,
    block_size: BlockSize | str = 128,
    backend: str | Backend = "auto",
    exact: bool = True,
    autotune: bool = False,
    precision: str | None = None,
    skip: float | None = None,
    deterministic: bool | None = None,
) -> CompiledAttention:
    """Attention with this spec, callable on `q, k, v`; kernels are compiled at the first call.

    spec: a Mask, an Attention, or a FlexAttention mask_mod.
    order: where tokens lie in memory while the kernel runs; a pair (q_order, kv_order) for the sides, a list for heads.
    block_size: tokens, one number or (query, key). "auto" for order or block_size is `fs.plan`'s choice at the first
        call of a size: a `PlannedAttention`.
    backend: auto (the first that can run a call), flex, flash, blocks, triton, reference, or a `Backend` of your own.
    exact: with False block lists are made on the device from bounds, without waiting: documents that change at each
        step cost no synchronisation, and undecided blocks evaluate the mask.
    autotune: time the tiles of each Triton kernel at its first call and keep the best in the cache folder.
    precision: "int8" or "fp8", without gradients: products of q and k in 8 bits, each query and each 64 keys with a
        scale, after the mean of the keys is taken out; weights and values in float16 (of "fp8" in e4m3); sums in
        float32. By Triton on a GPU, and by the reference, which rounds alike. Each call quantises all of q, k and v: it
        is meant for many queries, as `fs.quantise` is for few.
    skip: with a precision, nats: a kernel may leave out a tile of keys whose scores all lie more than this below the
        maximum so far of their row. What it leaves out of a row has at most `d = keys * exp(-skip)` of its weight, so
        the output is off by at most `2 * d * max(abs(v))` and the lse by `-log(1 - d)`.
    deterministic: True: gradients are the same bits at each call, those of tensors that scores read too, which Triton
        then leaves to slower torch operations. False: Triton may take its one-pass backward, whose sums have no fixed
        order. None: True under `torch.use_deterministic_algorithms`; else only the gradients of tensors that scores
        read may differ in their last bits.

    Raises FS023 (no spec), FS025 (skip), FS030 (block size), FS033 (order), FS041 (backend, precision), FS042 (nothing
    to tune, or a weight without a low precision).

    >>> import flexspec as fs, torch
    >>> attend = fs.compile(fs.causal(), backend="reference")
    >>> attend(*[torch.eye(3)[None, None]] * 3)[0, 0, 0].tolist()
    [1.0, 0.0, 0.0]
    """
    chosen(backend)
    options: dict[str, Any] = {"exact": exact, "autotune": autotune, "precision": precision, "skip": skip}
    options["deterministic"] = deterministic
    attending: Any = partial(CompiledAttention, backend=backend, **options)
    planned: Any = partial(PlannedAttention, make=attending) if AUTO in (order, block_size) else attending
    return planned(as_attention(spec), order if order == AUTO else as_order(order), block_size)
