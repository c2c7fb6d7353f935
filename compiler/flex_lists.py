"""A block map as torch's BlockMask: index lists of the kv side and of the q side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import BlockMask

from flexspec.errors import FlexSpecError
from flexspec.source import user_caret

from .runs import BlockKind

if TYPE_CHECKING:
    from .block_map import BlockMap


def to_flex(
    block_map: BlockMap,
    mask_mod: Any,
    batch: int | None = None,
    heads: int | None = None,
    *,
    separate_full_blocks: bool = True,
    compute_dq_write_order: bool = False,
    dq_kv_order: bool = True,
) -> BlockMask:
    """torch's BlockMask, field by field as `create_block_mask` makes it.

    A ragged last block is partial even when all its positions are kept: torch's kernel tests only lengths that 128
    divides, and reads past the end of a full block otherwise. batch, heads: expand the lists to these sizes.
    """
    key = (batch, heads, separate_full_blocks)
    if key not in block_map.lists:
        block_map.lists[key] = _all_lists(block_map, *key)
    sizes = (block_map.block_q, block_map.block_kv)
    lengths = (block_map.q_len, block_map.kv_len)
    made = BlockMask(lengths, *block_map.lists[key], BLOCK_SIZE=sizes, mask_mod=mask_mod)
    if compute_dq_write_order:
        compute = getattr(flex_attention, "_compute_dq_write_order_from_block_mask", None)
        if compute is None:
            raise FlexSpecError("FS042", f"torch {torch.__version__} has no dq write order", where=user_caret())
        made.dq_write_order, made.dq_write_order_full = compute(made, dq_kv_order=dq_kv_order)
        made.dq_kv_order, made.dq_kv_order_spt = None, dq_kv_order
    return made


def _all_lists(
    block_map: BlockMap, batch: int | None, heads: int | None, separate_full_blocks: bool
) -> list[torch.Tensor | None]:
    """Counts and columns of partial and full blocks of the kv side, then of the q side."""
    kinds = block_map.kinds()
    if block_map.q_len % block_map.block_q:
        kinds[:, :, -1].clamp_(max=int(BlockKind.PARTIAL))
    if block_map.kv_len % block_map.block_kv:
        kinds[..., -1].clamp_(max=int(BlockKind.PARTIAL))
    kinds = kinds.expand(batch or kinds.shape[0], heads or kinds.shape[1], -1, -1)
    partial, full = kinds == BlockKind.PARTIAL, kinds == BlockKind.FULL
    if separate_full_blocks:
        return [*_lists(partial), *_lists(full), *_lists(partial.mT), *_lists(full.mT)]
    some = partial | full
    return [*_lists(some), None, None, *_lists(some.mT), None, None]


def _lists(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts per row, and columns: the chosen ones ascending, then the others ascending. int32, contiguous."""
    count = chosen.sum(-1, keepdim=True)
    place = torch.where(chosen, chosen.cumsum(-1), count + (~chosen).cumsum(-1)) - 1
    columns = torch.arange(chosen.shape[-1], dtype=torch.int32, device=chosen.device).expand_as(place)
    indices = torch.empty(place.shape, dtype=torch.int32, device=chosen.device).scatter_(-1, place, columns)
    return count.squeeze(-1).to(torch.int32), indices
