"""Part of a block map without a rebuild: some queries, and the first keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from flexspec.errors import FlexSpecError
from flexspec.inputs import check_length
from flexspec.user_line import user_caret

from ..evaluation.points import Array
from .grid import Grid
from .runs import BlockKind, LooseRuns, Runs, counting, merged

Kinds = Callable[[Array, Array], Array]
"""The kinds of blocks of the part, uint8 [n], from their rows and columns."""


class Part(NamedTuple):
    """The queries `start` to `stop` of a map, and its first `kv_len` keys."""

    start: int
    stop: int
    kv_len: int


def checked_part(whole: Grid, q: tuple[int, int] | None, kv_len: int | None) -> Part:
    """The part that is asked for, if it can be cut out. FS030.

    A start inside a block is only legal where that block holds all the queries.
    """
    keys = whole.kv_len if kv_len is None else check_length("kv_len", kv_len)
    if keys > whole.kv_len:
        message = f"kv_len is {keys:,}; the map has {whole.kv_len:,} keys"
        raise FlexSpecError("FS030", message, fix="make the map at the longest length", where=user_caret())
    if q is None:
        return Part(0, whole.q_len, keys)
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
    return Part(start, stop, keys)


def shifted(print_mask_mod: Callable[[], Any], first: int, device: torch.device) -> Callable[..., Any]:
    """The mask_mod from query `first` on; a captured tensor, unlike a number, compiles nothing when it changes."""
    mask_mod, start = print_mask_mod(), torch.tensor(first, device=device)
    if not first:
        return mask_mod

    def from_first(b: Any, h: Any, q: Any, kv: Any) -> Any:
        return mask_mod(b, h, q + start, kv)

    return from_first


def cut_runs(runs: Runs, kinds: Kinds, whole: Grid, part: Grid, start: int) -> Runs:
    """The runs of the queries from `start` on and the first keys, as many as `part` has.

    A partial block that lost pairs is asked for its kind: those of the last row, where
    the cut goes through it, and of the last column. A start inside a block cuts that block alone, so its row is the
    last one too.

    Full and empty blocks are kept as they are, because what is true of all their pairs is true of those that are left.
    """
    stop_query = start + part.q_len
    cut_q = start % whole.block_q > 0 or (stop_query % whole.block_q > 0 and stop_query < whole.q_len)
    cut_kv = part.kv_len % whole.block_kv > 0 and part.kv_len < whole.kv_len
    first_row = start // whole.block_q
    first = runs.first[first_row : first_row + part.q_blocks + 1]
    chosen = slice(int(first[0]), int(first[-1]))
    row = np.repeat(np.arange(part.q_blocks), np.diff(first))
    begin, end, kind = runs.start[chosen], np.minimum(runs.stop[chosen], part.kv_blocks), runs.kind[chosen]
    partial = kind == BlockKind.PARTIAL
    edge = partial & (end == part.kv_blocks) & (begin < end) & cut_kv
    end = end - edge
    bottom = partial & (row == part.q_blocks - 1) & cut_q
    size = np.maximum(end - begin, 0) * bottom
    column = np.concatenate([counting(begin, size), np.full(edge.sum(), part.kv_blocks - 1)])
    row_of = np.concatenate([np.repeat(row, size), row[edge]])
    kind_of = kinds(row_of, column)
    some = kind_of != BlockKind.EMPTY
    kept = ~bottom & (begin < end)
    uncut = LooseRuns(row[kept], begin[kept], end[kept], kind[kept])
    cut = LooseRuns(row_of[some], column[some], column[some] + 1, kind_of[some])
    return merged([uncut, cut], part.q_blocks, part.kv_blocks)
