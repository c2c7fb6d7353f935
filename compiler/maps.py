"""Block maps of masks by themselves, without a call: `fs.block_map`, and the drop-in for `create_block_mask`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from flexspec.attention import Attention
from flexspec.inputs import make_sizes
from flexspec.mask import Mask, from_mask_mod
from flexspec.order import OrderLike, as_order
from flexspec.positions import bind_call

from .blocks.block_map import BlockMap
from .blocks.flex_lists import to_flex
from .blocks.grid import BlockSize
from .blocks.on_device import DeviceMap
from .pipeline import Stages, map_of, map_on_device
from .selecting.choices import resolved


def block_map(
    mask: Mask | Callable[..., Any],
    q_len: int,
    kv_len: int | None = None,
    *,
    batch: int | None = None,
    heads: int | None = None,
    block_size: BlockSize = 128,
    order: OrderLike = None,
    device: torch.device | str = "cpu",
    exact: bool = True,
    **inputs: Any,
) -> BlockMap:
    """Which blocks of a mask are empty, partial or full: exact, derived from the expression.

    mask: a `Mask`, or a FlexAttention mask_mod as it is.
    q_len, kv_len: tokens; kv_len defaults to q_len.
    batch, heads: how many, needed where the mask depends on them and no input says it.
    block_size: tokens, one number or (query, key).
    order: where tokens lie in memory; the map is over memory positions, padding included. A pair is one for each side,
        a list one for each head.
    device: of the tensors that the map gives.
    exact: False leaves a block PARTIAL that bounds alone do not decide, which is correct and may be quicker.
    inputs: run-time values by name, and `q_positions` and `kv_positions` as a call of `fs.compile` takes them; `q` and
        `k` of the call where the mask chooses blocks by them.

    Raises FS020 (a value is missing), FS021 (an unknown name), FS022 (a tensor of another shape, an order of another
    batch), FS023 (a value of another type), FS024 (an index leaves its tensor), FS025 (a number that its annotation
    refuses), FS026 (a value has the name of the order's table), FS030 (lengths, counts, block_size), FS031 (batch or
    heads are needed), FS032 (a canvas of another length), FS033 (an order that is none, or of another length), FS034
    (integers past 64 bits), FS035 (a division by zero, at a pair that is evaluated), FS036 (positions), and for a
    mask_mod what `from_mask_mod` raises.

    >>> import flexspec as fs
    >>> fs.block_map(fs.causal_window(256), 1_000_000).counts()
    {<BlockKind.EMPTY: 0>: 61019533, <BlockKind.PARTIAL: 1>: 15624, <BlockKind.FULL: 2>: 7812}
    """
    mask, order = from_mask_mod(mask), as_order(order)
    sizes, inputs = resolved(mask, order, make_sizes(q_len, kv_len, batch, heads), inputs)
    bound = bind_call(Attention(mask).parts, sizes, inputs, order, device)
    return map_of(mask, bound, block_size, order, torch.device(device), Stages(), exact=exact)


def create_block_mask(
    mask_mod: Callable[..., Any],
    B: int | None,
    H: int | None,
    Q_LEN: int,
    KV_LEN: int,
    device: torch.device | str | None = None,
    BLOCK_SIZE: BlockSize = 128,
    _compile: bool = False,
    separate_full_blocks: bool = True,
    *,
    exact: bool = True,
    **write_order: bool,
) -> Any:
    """Drop-in for torch's `create_block_mask`: the same arguments, the same lists, derived and not evaluated.

    mask_mod: as torch takes it, or a `Mask`.
    B, H: batch and heads. A mask that depends on one that is None is an error: torch takes index 0 silently.
    Q_LEN, KV_LEN: tokens.
    device: of the lists; None: the accelerator, or the CPU where there is none.
    BLOCK_SIZE: tokens, one number or (query, key).
    _compile: torch's own; nothing here is compiled.
    separate_full_blocks: False lists full blocks with the partial ones.
    exact: with False nothing waits for the device, even where the mask reads tensors there; blocks that their bounds
        leave open are listed as partial.
    write_order: compute_dq_write_order and dq_kv_order, where this torch has them.

    Raises FS042 (this torch has no dq write order), and what `block_map` raises; of a mask_mod, which has no values to
    give, mostly FS024 (an index leaves its tensor), FS030 (a size) and FS031 (B or H is needed).
    """
    mask = from_mask_mod(mask_mod)
    target = torch.device(device or torch.accelerator.current_accelerator() or "cpu")
    blocks: BlockMap | DeviceMap
    if exact:
        blocks = block_map(mask, Q_LEN, KV_LEN, batch=B, heads=H, block_size=BLOCK_SIZE, device=target)
    else:
        blocks = map_on_device(mask, mask.bind(make_sizes(Q_LEN, KV_LEN, B, H), {}), BLOCK_SIZE, None, target)
    own = blocks.mask_mod if isinstance(mask_mod, Mask) else mask_mod
    return to_flex(blocks, own, B or 1, H or 1, separate_full_blocks=separate_full_blocks, **write_order)
