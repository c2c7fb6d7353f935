"""Block maps: which blocks of a mask are empty, partial or full, as runs per row of blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from flexspec.errors import FlexSpecError
from flexspec.expr import Expr, apply, const, substitute, var
from flexspec.order import Order
from flexspec.user_line import user_caret

from ..evaluation.points import Array, evaluate_at
from .derived import Derives
from .flex_lists import Lists, compact_lists, dense_lists, to_flex
from .grid import Grid
from .leaves import CHUNK
from .runs import BlockKind, Runs
from .slices import checked_part, cut_runs, shifted


class BSR(NamedTuple):
    """Block sparse rows of one (batch, head): int32 [q_blocks + 1], int32 [blocks], uint8 [blocks] of BlockKind."""

    row_ptr: torch.Tensor
    columns: torch.Tensor
    kinds: torch.Tensor


@dataclass(frozen=True, eq=False)
class BlockMap(Derives):
    """The blocks of a mask at given lengths. Made by `fs.block_map`.

    A block is FULL when every pair of existing positions is kept. Under an order, positions are memory positions and
    padding is never kept.

    label: the mask's name.
    grid: lengths and block sizes, in tokens.
    maps: the runs of each distinct mask.
    exprs: those masks, over `q` and `kv` alone.
    index: int64 [batch, heads], which of `maps` each (batch, head) has; both sizes are 1 where the mask does not
        depend on them.
    tensors: what the masks read, by name.
    order: where tokens lie in memory; None as they are.
    print_mask_mod: makes `mask_mod`.
    device: of the tensors that the map gives.
    """

    label: str
    grid: Grid
    maps: tuple[Runs, ...]
    exprs: tuple[Expr, ...]
    index: Array
    tensors: Mapping[str, Array]
    order: Order | None
    print_mask_mod: Callable[[], Any]
    device: torch.device

    @cached_property
    def mask_mod(self) -> Any:
        """The mask as a FlexAttention mask_mod over memory positions."""
        return self.print_mask_mod()

    @property
    def q_len(self) -> int:
        return self.grid.q_len

    @property
    def kv_len(self) -> int:
        return self.grid.kv_len

    @property
    def block_q(self) -> int:
        return self.grid.block_q

    @property
    def block_kv(self) -> int:
        return self.grid.block_kv

    @property
    def q_blocks(self) -> int:
        return self.grid.q_blocks

    @property
    def kv_blocks(self) -> int:
        return self.grid.kv_blocks

    @property
    def batch(self) -> int:
        return int(self.index.shape[0])

    @property
    def heads(self) -> int:
        return int(self.index.shape[1])

    def __repr__(self) -> str:
        empty, partial, full = self.counts().values()
        shape = f"{self.q_len:,} x {self.kv_len:,} in blocks of {self.block_q} x {self.block_kv}"
        kinds = f"{full:,} full, {partial:,} partial, {empty:,} empty"
        return f"BlockMap({self.label}: {shape}, {kinds}, density {self.density:.2%})"

    def of(self, b: int = 0, h: int = 0) -> Runs:
        """The runs of one (batch, head); a size of 1 serves every index.

        b, h: which batch and head.

        Raises FS030 (a batch or head that is not there).
        """
        return self.maps[self._which(b, h)]

    def _which(self, b: int, h: int) -> int:
        rows, columns = self.index.shape
        for name, value, size in (("b", b, rows), ("h", h, columns)):
            if not 0 <= value < size and size > 1:
                message = f"{name} is {value}; the map has {size}"
                raise FlexSpecError("FS030", message, where=user_caret())
        return int(self.index[b if rows > 1 else 0, h if columns > 1 else 0])

    def runs(self, q_block: int, *, b: int = 0, h: int = 0) -> list[tuple[int, int, BlockKind]]:
        """The runs of one row of blocks: (first kv-block, one past the last, kind), ascending.

        q_block: the row, from 0.
        b, h: which batch and head.

        Raises FS030 (a row, batch or head that is not there).
        """
        if not 0 <= q_block < self.q_blocks:
            message = f"there is no row {q_block} of blocks; the map has {self.q_blocks:,}"
            raise FlexSpecError("FS030", message, fix=f"give 0 to {self.q_blocks - 1:,}", where=user_caret())
        runs = self.of(b, h)
        of_row = slice(int(runs.first[q_block]), int(runs.first[q_block + 1]))
        fields = zip(runs.start[of_row], runs.stop[of_row], runs.kind[of_row], strict=True)
        return [(int(start), int(stop), BlockKind(kind)) for start, stop, kind in fields]

    def kinds(self) -> torch.Tensor:
        """uint8 [batch, heads, q_blocks, kv_blocks] of `BlockKind`."""
        dense = np.stack([runs.dense(self.kv_blocks) for runs in self.maps])
        return torch.from_numpy(dense[self.index]).to(self.device)

    def counts(self) -> dict[BlockKind, int]:
        """Blocks of each kind over all (batch, head) of the map."""
        of_maps = [runs.counts() for runs in self.maps]
        stored = (BlockKind.PARTIAL, BlockKind.FULL)
        total = {kind: sum(of_maps[which][kind] for which in self.index.flat) for kind in stored}
        empty = self.index.size * self.q_blocks * self.kv_blocks - sum(total.values())
        return {BlockKind.EMPTY: empty, **total}

    @property
    def density(self) -> float:
        """The fraction of blocks that are not empty: the work that is left of dense attention."""
        counts = self.counts()
        return 1 - counts[BlockKind.EMPTY] / sum(counts.values())

    @property
    def nbytes(self) -> int:
        """Bytes that the map holds."""
        return sum(runs.nbytes for runs in self.maps) + self.index.nbytes

    @cached_property
    def kept_pairs(self) -> int:
        """Pairs that the mask keeps, over all (batch, head) of the map; partial blocks are evaluated."""
        of_maps = [self.kept(which) for which in range(len(self.maps))]
        return sum(of_maps[which] for which in self.index.flat)

    @property
    def token_density(self) -> float:
        """The fraction of pairs that are kept."""
        return self.kept_pairs / (self.index.size * self.q_len * self.kv_len)

    def kept(self, which: int) -> int:
        """Pairs that one of `maps`, the one at index `which`, keeps."""
        total = 0
        for kind, q, kv in self.blocks(which):
            if kind is BlockKind.FULL:
                total += int(((q[:, 1] - q[:, 0]) * (kv[:, 1] - kv[:, 0])).sum())
            else:
                total += int(self.pairs(which, q, kv).sum())
        return total

    def blocks(self, which: int) -> Iterator[tuple[BlockKind, Array, Array]]:
        """The non-empty blocks of one map, in chunks of one kind: the kind, their q and kv ranges, int64 [n, 2] each.

        which: index of the map in `maps`.
        """
        rows, columns, kinds = self.maps[which].blocks()
        for kind in (BlockKind.FULL, BlockKind.PARTIAL):
            chosen = np.flatnonzero(kinds == kind)
            for chunk in self.chunks(len(chosen)):
                row, column = rows[chosen[chunk]], columns[chosen[chunk]]
                yield kind, *self._ranges(row, column)

    def chunks(self, count: int) -> Iterator[slice]:
        """Slices of `count` blocks, each of so many that their pairs fit at once."""
        step = max(1, CHUNK // (self.block_q * self.block_kv))
        return (slice(start, start + step) for start in range(0, count, step))

    def pairs(self, which: int, q: Array, kv: Array) -> Array:
        """Which pairs of some blocks are kept: bool [n, block_q, block_kv], False past a block's end.

        which: index of the map in `maps`.
        q, kv: the blocks' first position and the one past their last, int64 [n, 2].
        """
        q_idx = q[:, :1] + np.arange(self.block_q)
        kv_idx = kv[:, :1] + np.arange(self.block_kv)
        inside = (q_idx < q[:, 1:])[:, :, None] & (kv_idx < kv[:, 1:])[:, None, :]
        positions = {"q": np.minimum(q_idx, self.q_len - 1)[:, :, None]}
        positions["kv"] = np.minimum(kv_idx, self.kv_len - 1)[:, None, :]
        return evaluate_at(self.exprs[which], positions, self.tensors) & inside

    def kinds_of(self, which: int, row: Array, column: Array) -> Array:
        """The kinds of single blocks of one map, uint8 [n] of `BlockKind`, by their pairs.

        which: index of the map in `maps`.
        row, column: of each block, int64 [n].
        """
        q, kv = self._ranges(row, column)
        kinds = np.empty(len(row), np.uint8)
        for chunk in self.chunks(len(row)):
            kept = self.pairs(which, q[chunk], kv[chunk]).sum((1, 2))
            every = kept == (q[chunk, 1] - q[chunk, 0]) * (kv[chunk, 1] - kv[chunk, 0])
            kinds[chunk] = np.where(every, BlockKind.FULL, np.where(kept > 0, BlockKind.PARTIAL, BlockKind.EMPTY))
        return kinds

    def _ranges(self, row: Array, column: Array) -> tuple[Array, Array]:
        """First position, and one past the last, of blocks on the q and on the kv side: int64 [n, 2] each."""
        sides = ((row, self.block_q, self.q_len), (column, self.block_kv, self.kv_len))
        q, kv = (np.stack([block * size, np.minimum((block + 1) * size, length)], 1) for block, size, length in sides)
        return q, kv

    def tokens(self, q_start: int, q_stop: int, kv_start: int, kv_stop: int, *, b: int = 0, h: int = 0) -> torch.Tensor:
        """The pairs of a region themselves: bool [q, kv].

        q_start, q_stop, kv_start, kv_stop: positions, the stops left out.
        b, h: which batch and head.

        Raises FS030 (a region that is empty or not inside the lengths, a batch or head that is not there).
        """
        sides = ((q_start, q_stop, self.q_len), (kv_start, kv_stop, self.kv_len))
        if not all(0 <= start < stop <= length for start, stop, length in sides):
            message = f"the region {q_start}:{q_stop}, {kv_start}:{kv_stop} is not inside {self.q_len} x {self.kv_len}"
            raise FlexSpecError("FS030", message, where=user_caret())
        positions = {"q": np.arange(q_start, q_stop)[:, None], "kv": np.arange(kv_start, kv_stop)[None, :]}
        kept = evaluate_at(self.exprs[self._which(b, h)], positions, self.tensors)
        return torch.from_numpy(np.broadcast_to(kept, (q_stop - q_start, kv_stop - kv_start)).copy())

    def slice(self, q: tuple[int, int] | None = None, *, kv_len: int | None = None) -> BlockMap:
        """Part of this map, for decoding and chunked prefill: made once at the longest length, and never rebuilt.

        The result is the map of these queries, counted from 0, against these keys: exact, its `mask_mod` shifted by a
        captured tensor, so that the next chunk compiles no new kernel. Sizes that the mask itself reads (`q_len`,
        `kv_len`) stay those of this map. Under an order, q and kv_len count memory positions.

        q: (start, stop) in tokens, all queries where left out; start is a multiple of `block_q`, or all of them are in
            one block of queries.
        kv_len: how many keys there are so far, all where left out.

        Raises FS030 (queries or keys that the map has not, a start inside a block that the queries leave).

        >>> import flexspec as fs
        >>> whole = fs.block_map(fs.causal_window(256), 131_072)
        >>> token = whole.slice(q=(1000, 1001), kv_len=1001)
        >>> token.runs(0), token.kept_pairs
        ([(5, 6, <BlockKind.PARTIAL: 1>), (6, 8, <BlockKind.FULL: 2>)], 256)
        """
        start, stop, keys = checked_part(self.grid, q, kv_len)
        grid = Grid(stop - start, keys, self.block_q, self.block_kv)
        shift = {"q": apply("add", var("q"), const(start))} if start else {}
        part = replace(
            self,
            label=f"{self.label}[{start}:{stop}, :{keys}]",
            grid=grid,
            exprs=tuple(substitute(expr, shift) for expr in self.exprs),
            print_mask_mod=partial(shifted, partial(attrgetter("mask_mod"), self), start, self.device),
        )
        kinds = [partial(part.kinds_of, which) for which in range(len(self.maps))]
        maps = [
            cut_runs(runs, kinds_of, self.grid, grid, start) for runs, kinds_of in zip(self.maps, kinds, strict=True)
        ]
        return replace(part, maps=tuple(maps))

    def to_bsr(self, *, b: int = 0, h: int = 0) -> BSR:
        """Block sparse rows of one (batch, head), as kernels take them.

        b, h: which batch and head.

        Raises FS030 (a batch or head that is not there).
        """
        rows, columns, kinds = self.of(b, h).blocks()
        counts = np.bincount(rows, minlength=self.q_blocks)
        row_ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        arrays = (row_ptr, columns.astype(np.int32), kinds)
        return BSR(*(torch.from_numpy(array).to(self.device) for array in arrays))

    def to_flex(self, mask_mod: Any = None, *, compact: bool = True) -> Any:
        """torch's `BlockMask` for `torch.compile(flex_attention)`, kv and q sides made straight from the runs.

        mask_mod: what its partial blocks evaluate; default: the mask's own.
        compact: index lists as wide as the fullest row needs, int32 [batch, heads, rows, width], where torch has a
            column for every block. On the CPU they are views with torch's shape whose rows overlap in memory. The
            result's `to_dense`, `str` and slices take only lists as torch makes them, which `compact=False` gives:
            field by field those of `create_block_mask`. A new width compiles a kernel again, up to a few times in all;
            with `compact=False` a new mask of the same lengths does not.

        >>> import flexspec as fs
        >>> lists = fs.block_map(fs.causal_window(1024), 65_536).to_flex()
        >>> lists.kv_indices.shape[-1], lists.kv_indices.stride(), lists.kv_indices.untyped_storage().nbytes()
        (512, (3584, 3584, 7, 1), 16356)
        """
        return to_flex(self, mask_mod or self.mask_mod, compact=compact)

    def flex_lists(self, batch: int | None, heads: int | None, *, compact: bool, separate_full_blocks: bool) -> Lists:
        """torch's index lists, kept (see `flex_lists.to_flex`).

        batch, heads: expand dense lists to these sizes.
        compact: as `to_flex` takes it.
        separate_full_blocks: False lists full blocks with the partial ones, in dense lists.
        """
        if compact:
            return self.derive(_compact_lists)
        return self.derive(_dense_lists, batch, heads, separate_full_blocks)

    def show(
        self,
        path: str | Path | None = None,
        *,
        b: int = 0,
        h: int = 0,
        region: tuple[int, int, int, int] | None = None,
    ) -> Path | str:
        """Draw the map: to a picture file (its path is returned), or without a path in the terminal.

        path: a .png, .svg or .pdf file, or None.
        b, h: which batch and head.
        region: (q_start, q_stop, kv_start, kv_stop) draws the pairs themselves there, in a file only.

        Raises FS020 (a region without a path), FS030 (a batch or head that is not there, a region outside the map or
        of more than 4,096 positions on a side), FS054 (another suffix, or a file that cannot be written).
        """
        from ..draw import picture, terminal

        if path is not None:
            return picture.save(self, path, b=b, h=h, region=region)
        if region is not None:
            fix = "give a path, e.g. show('region.png', region=...)"
            raise FlexSpecError("FS020", "a region is drawn to a file", fix=fix, where=user_caret())
        text = terminal.draw(self, b=b, h=h)
        print(text)
        return text


def _compact_lists(block_map: BlockMap) -> Lists:
    return compact_lists(block_map.maps, block_map.index, block_map.grid, block_map.device)


def _dense_lists(block_map: BlockMap, batch: int | None, heads: int | None, separate_full_blocks: bool) -> Lists:
    return dense_lists(block_map.kinds(), block_map.grid, batch, heads, separate_full_blocks)
