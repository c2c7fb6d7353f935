"""A block map as torch's BlockMask: index lists of the kv side and of the q side.

Compact lists have the columns that the fullest row needs, and come straight from the runs. Dense ones have a column for
every block, as torch makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from flexspec.errors import FlexSpecError
from flexspec.user_line import user_caret

from ..evaluation.points import Array
from .grid import Grid
from .leaves import chunks
from .runs import BlockKind, Runs

Lists = list[torch.Tensor | None]
"""Counts and columns of partial, then of full blocks, of the kv side, then of the q side; None: no full blocks."""


class Listed(Protocol):
    """What gives index lists: a BlockMap or a DeviceMap."""

    @property
    def grid(self) -> Grid: ...

    def flex_lists(self, batch: int | None, heads: int | None, *, compact: bool, separate_full_blocks: bool) -> Lists:
        """The lists, kept; batch, heads: expand dense ones to these sizes."""
        ...


class OfRuns(Protocol):
    """What holds the runs of each (batch, head)."""

    @property
    def grid(self) -> Grid: ...

    @property
    def maps(self) -> Sequence[Runs]: ...


def to_flex(
    block_map: Listed,
    mask_mod: Any,
    batch: int | None = None,
    heads: int | None = None,
    *,
    compact: bool = False,
    separate_full_blocks: bool = True,
    compute_dq_write_order: bool = False,
    dq_kv_order: bool = True,
) -> Any:
    """torch's BlockMask: field by field as `create_block_mask` makes it, or the same lists in compact form.

    A ragged last block is partial even when all its positions are kept: torch's kernel tests only lengths that 128
    divides, and reads past the end of a full block otherwise. batch, heads: expand dense lists to these sizes. FS042
    where this torch has no dq write order.
    """
    from torch.nn.attention import flex_attention  # slow to import, and only needed here

    lists = block_map.flex_lists(batch, heads, compact=compact, separate_full_blocks=separate_full_blocks)
    grid = block_map.grid
    sizes, lengths = (grid.block_q, grid.block_kv), (grid.q_len, grid.kv_len)
    block_mask = flex_attention.BlockMask(lengths, *lists, BLOCK_SIZE=sizes, mask_mod=mask_mod)
    if compute_dq_write_order:
        compute = getattr(flex_attention, "_compute_dq_write_order_from_block_mask", None)
        if compute is None:
            raise FlexSpecError("FS042", f"torch {torch.__version__} has no dq write order", where=user_caret())
        block_mask.dq_write_order, block_mask.dq_write_order_full = compute(block_mask, dq_kv_order=dq_kv_order)
        block_mask.dq_kv_order, block_mask.dq_kv_order_spt = None, dq_kv_order
    return block_mask


def dense_lists(
    kinds: torch.Tensor,
    grid: Grid,
    batch: int | None,
    heads: int | None,
    separate_full_blocks: bool,
    *,
    decided: bool = False,
) -> Lists:
    """The lists of kinds uint8 [batch, heads, q_blocks, kv_blocks], which are overwritten. decided: none is PARTIAL."""
    if grid.q_len % grid.block_q:
        kinds[:, :, -1].clamp_(max=int(BlockKind.PARTIAL))
    if grid.kv_len % grid.block_kv:
        kinds[..., -1].clamp_(max=int(BlockKind.PARTIAL))
    decided &= not (grid.q_len % grid.block_q or grid.kv_len % grid.block_kv)
    kinds = kinds.expand(batch or kinds.shape[0], heads or kinds.shape[1], -1, -1)
    if not separate_full_blocks:
        some = kinds != BlockKind.EMPTY
        return [*_lists(some), None, None, *_lists(some.mT), None, None]
    full, of_partial = kinds == BlockKind.FULL, _no_lists if decided else _lists
    partial = full if decided else kinds == BlockKind.PARTIAL
    return [*of_partial(partial), *_lists(full), *of_partial(partial.mT), *_lists(full.mT)]


def _lists(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts per row, and columns: the chosen ones ascending, then the others ascending. int32, contiguous.

    All rows of all heads at once on a device; on a CPU as many as its cache holds.
    """
    columns = torch.arange(chosen.shape[-1], dtype=torch.int32, device=chosen.device)
    count, indices = columns.new_empty(chosen.shape[:-1]), columns.new_empty(chosen.shape)
    rows, counts, places = chosen.flatten(0, -2), count.view(-1, 1), indices.view(-1, len(columns))
    for part in chunks(len(rows), len(columns)) if rows.device.type == "cpu" else [slice(None)]:
        before = rows[part].cumsum(-1, dtype=torch.int32)
        counts[part] = before[:, -1:]
        place = torch.where(rows[part], before - 1, columns + before[:, -1:] - before)
        places[part].scatter_(-1, place.long(), columns.expand_as(place))
    return count, indices


def _no_lists(like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_lists` of no chosen column; on a CPU all rows are one in memory."""
    columns = torch.arange(like.shape[-1], dtype=torch.int32, device=like.device)
    indices = columns.expand(like.shape)
    return columns.new_zeros(like.shape[:-1]), indices if like.device.type == "cpu" else indices.contiguous()


class KindRuns(NamedTuple):
    """Runs of one kind: row, start and stop of each, in reading order."""

    row: Array
    start: Array
    stop: Array

    def blocks(self) -> tuple[Array, Array]:
        """Row and column of every block, int32, in reading order."""
        size = self.stop - self.start
        before = np.cumsum(size) - size
        columns = np.repeat((self.start - before).astype(np.int32), size) + np.arange(size.sum(), dtype=np.int32)
        return np.repeat(self.row, size), columns


def compact_lists(maps: Sequence[Runs], index: Array, grid: Grid, device: torch.device) -> Lists:
    """As `dense_lists`, with as few columns as the fullest row of either kind needs: one width for each side.

    index: int64 [batch, heads], which of `maps` each has. Heads that share a map have copies of its lists: a kernel
    reads them by plain strides.
    """
    of_rows = [[rows.blocks() for rows in by_kind(runs, grid)] for runs in maps]
    of_columns = [[transposed(*blocks, grid) for blocks in kinds] for kinds in of_rows]
    kv_side = _side(of_rows, index, grid.q_blocks, grid.kv_blocks, device)
    return [*kv_side, *_side(of_columns, index, grid.kv_blocks, grid.q_blocks, device)]


def by_kind(runs: Runs, grid: Grid) -> list[KindRuns]:
    """The runs of partial and of full blocks; a ragged last row or column of blocks is partial."""
    row = np.repeat(np.arange(grid.q_blocks, dtype=np.int32), np.diff(runs.first))
    start, stop, kind = runs.start, runs.stop.copy(), runs.kind.copy()
    if grid.q_len % grid.block_q:
        kind[row == grid.q_blocks - 1] = BlockKind.PARTIAL
    if grid.kv_len % grid.block_kv:
        last = np.flatnonzero((kind == BlockKind.FULL) & (stop == grid.kv_blocks))
        stop[last] -= 1
        row, start = np.insert(row, last + 1, row[last]), np.insert(start, last + 1, grid.kv_blocks - 1)
        stop, kind = np.insert(stop, last + 1, grid.kv_blocks), np.insert(kind, last + 1, BlockKind.PARTIAL)
    kinds = (kind == BlockKind.PARTIAL, kind == BlockKind.FULL)
    return [KindRuns(row[chosen], start[chosen], stop[chosen]) for chosen in kinds]


def contiguous_lists(block_map: OfRuns) -> dict[str, bool]:
    """What FlexAttention's CUDA kernels may take as true of these lists, by the names of their options.

    Forward (lists of a row) and backward (lists of a column): is each list of partial and of full blocks one run? A
    ragged last block counts as partial, as it is listed.
    """
    facts = {"fwd_BLOCKS_ARE_CONTIGUOUS": True, "bwd_BLOCKS_ARE_CONTIGUOUS": True}
    for runs in block_map.maps:
        for rows in by_kind(runs, block_map.grid):
            gaps = (rows.row[1:] == rows.row[:-1]) & (rows.start[1:] != rows.stop[:-1])
            column, row = transposed(*rows.blocks(), block_map.grid)
            below = (column[1:] == column[:-1]) & (row[1:] != row[:-1] + 1)
            facts["fwd_BLOCKS_ARE_CONTIGUOUS"] &= not gaps.any()
            facts["bwd_BLOCKS_ARE_CONTIGUOUS"] &= not below.any()
    return {name: True for name, holds in facts.items() if holds}


def transposed(rows: Array, columns: Array, grid: Grid) -> tuple[Array, Array]:
    """Blocks in order of their columns. Numbers of 16 bits are sorted by counting."""
    order = np.argsort(columns.astype(np.min_scalar_type(grid.kv_blocks)), kind="stable")
    return columns[order], rows[order]


def _side(
    of_maps: list[list[tuple[Array, Array]]], index: Array, rows: int, columns: int, device: torch.device
) -> list[torch.Tensor]:
    """Counts and indices of partial, then of full blocks. of_maps: of each map and kind, row and column of its blocks.

    torch's CPU kernel wants as many columns as there are blocks, and reads no further than the counts: there the
    indices are a view of that shape, whose rows overlap in memory.
    """
    batch, heads = index.shape
    counts = [[np.bincount(row, minlength=rows) for row, _ in kinds] for kinds in of_maps]
    width = max(1, *(int(count.max()) for kinds in counts for count in kinds))
    shown = columns if device.type == "cpu" else width
    lists = []
    for kind in range(2):
        storage = np.zeros(batch * heads * rows * width + shown - width, np.int32)
        for pair, which in enumerate(index.flat):  # of batch and head
            count, (row, column) = counts[which][kind], of_maps[which][kind]
            shift = (pair * rows + np.arange(rows)) * width - (np.cumsum(count) - count)
            storage[np.repeat(shift, count) + np.arange(len(row))] = column
        count = np.stack([of_kinds[kind] for of_kinds in counts])[index].astype(np.int32)
        strides = (heads * rows * width, rows * width, width, 1)
        indices = torch.from_numpy(storage).as_strided((batch, heads, rows, shown), strides)
        lists += [torch.from_numpy(count).to(device), indices.to(device)]
    return lists
