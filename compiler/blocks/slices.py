"""Part of a block map without a rebuild: some queries, and the first keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flexspec.errors import FlexSpecError
from flexspec.expr import apply, const, substitute, var
from flexspec.inputs import check_length
from flexspec.user_line import user_caret

from ..evaluation.points import Array
from .grid import Grid
from .runs import BlockKind, Runs

if TYPE_CHECKING:
    from .block_map import BlockMap


def slice_map(whole: BlockMap, q: tuple[int, int] | None, kv_len: int | None) -> BlockMap:
    """See `BlockMap.slice`."""
    start, stop = _checked(whole, q)
    keys = whole.kv_len if kv_len is None else check_length("kv_len", kv_len)
    if keys > whole.kv_len:
        message = f"kv_len is {keys:,}; the map has {whole.kv_len:,} keys"
        raise FlexSpecError("FS030", message, fix="make the map at the longest length", where=user_caret())
    grid = Grid(stop - start, keys, whole.block_q, whole.block_kv)
    shift = {"q": apply("add", var("q"), const(start))} if start else {}
    part = replace(
        whole,
        label=f"{whole.label}[{start}:{stop}, :{keys}]",
        grid=grid,
        exprs=tuple(substitute(expr, shift) for expr in whole.exprs),
        print_mask_mod=partial(_shifted, whole, start),
        lists={},
    )
    cut_q = start % whole.block_q > 0 or (stop % whole.block_q > 0 and stop < whole.q_len)
    cut_kv = keys % whole.block_kv > 0 and keys < whole.kv_len
    maps = [_cut(part, which, start // whole.block_q, cut_q, cut_kv) for which in range(len(whole.maps))]
    return replace(part, maps=tuple(maps))


def _checked(whole: BlockMap, q: tuple[int, int] | None) -> tuple[int, int]:
    """The first query and the one past the last; a start inside a block only where that block holds them all. FS030."""
    if q is None:
        return 0, whole.q_len
    if not isinstance(q, tuple) or len(q) != 2:
        raise FlexSpecError("FS030", f"q is {q!r}", fix="give (start, stop)", where=user_caret())
    start, stop = check_length("the start of q", q[0], 0), check_length("the stop of q", q[1])
    if not start < stop <= whole.q_len:
        message = f"the queries {start:,} to {stop:,} are not inside the map's {whole.q_len:,}"
        raise FlexSpecError("FS030", message, where=user_caret())
    first = start // whole.block_q * whole.block_q
    if start != first and stop > first + whole.block_q:
        message = f"the queries {start:,} to {stop:,} start inside a block of {whole.block_q} and leave it"
        fix = f"start at {first:,}, stop at {first + whole.block_q:,}, or make the map with a smaller block_q"
        raise FlexSpecError("FS030", message, fix=fix, where=user_caret())
    return start, stop


def _shifted(whole: BlockMap, first: int) -> Callable[..., Any]:
    """The mask_mod from query `first` on; a captured tensor, unlike a number, compiles nothing when it changes."""
    mask_mod, start = whole.mask_mod, torch.tensor(first, device=whole.device)
    if not first:
        return mask_mod

    def shifted(b: Any, h: Any, q: Any, kv: Any) -> Any:
        return mask_mod(b, h, q + start, kv)

    return shifted


def _cut(part: BlockMap, which: int, first_row: int, cut_q: bool, cut_kv: bool) -> Runs:
    """The runs of the part. Full and empty blocks stay so; partial ones that lost pairs are looked at."""
    grid, old = part.grid, part.maps[which]
    first = old.first[first_row : first_row + grid.q_blocks + 1]
    span = slice(int(first[0]), int(first[-1]))
    row = np.repeat(np.arange(grid.q_blocks), np.diff(first))
    start, stop, kind = old.start[span], np.minimum(old.stop[span], grid.kv_blocks), old.kind[span]
    partial = kind == BlockKind.PARTIAL
    edge = partial & (stop == grid.kv_blocks) & (start < stop) & cut_kv
    stop = stop - edge
    bottom = partial & (row == grid.q_blocks - 1) & cut_q
    size = np.maximum(stop - start, 0) * bottom
    column = np.repeat(start - np.cumsum(size) + size, size) + np.arange(size.sum())
    column = np.concatenate([column, np.full(edge.sum(), grid.kv_blocks - 1)])
    row_of = np.concatenate([np.repeat(row, size), row[edge]])
    single = _kinds(part, which, row_of, column)
    kept = ~bottom & (start < stop)
    return _joined(
        np.concatenate([row[kept], row_of]),
        np.concatenate([start[kept], column]),
        np.concatenate([stop[kept], column + 1]),
        np.concatenate([kind[kept], single]),
        grid.q_blocks,
    )


def _kinds(part: BlockMap, which: int, row: Array, column: Array) -> Array:
    """The kinds of single blocks by their pairs, uint8 [n]."""
    sides = ((row, part.block_q, part.q_len), (column, part.block_kv, part.kv_len))
    q, kv = (np.stack([at * size, np.minimum((at + 1) * size, length)], 1) for at, size, length in sides)
    kinds = np.empty(len(row), np.uint8)
    for some in part.chunks(len(row)):
        kept = part.pairs(which, q[some], kv[some]).sum((1, 2))
        every = kept == (q[some, 1] - q[some, 0]) * (kv[some, 1] - kv[some, 0])
        kinds[some] = np.where(every, BlockKind.FULL, np.where(kept > 0, BlockKind.PARTIAL, BlockKind.EMPTY))
    return kinds


def _joined(row: Array, start: Array, stop: Array, kind: Array, rows: int) -> Runs:
    """Runs in reading order without empty ones, neighbours of one kind as one."""
    order = np.lexsort((start, row))
    order = order[kind[order] != BlockKind.EMPTY]
    row, start, stop, kind = row[order], start[order], stop[order], kind[order]
    same = (row[1:] == row[:-1]) & (start[1:] == stop[:-1]) & (kind[1:] == kind[:-1])
    fresh, last = np.append([True], ~same)[: len(row)], np.append(~same, [True])[: len(row)]
    first = np.concatenate([[0], np.cumsum(np.bincount(row[fresh], minlength=rows))])
    return Runs(first.astype(np.int32), start[fresh].astype(np.int32), stop[last].astype(np.int32), kind[fresh])
