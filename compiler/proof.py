"""Questions about masks, answered exactly for given lengths: holds, or a counterexample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flexspec.inputs import Bound, make_sizes
from flexspec.mask import Mask, from_mask_mod

from .block_map import BlockMap
from .leaves import CHUNK
from .pipeline import Stages, map_of
from .runs import BlockKind


@dataclass(frozen=True, slots=True)
class Proof:
    """The answer to a question about a mask; true when it holds.

    counterexample: the first (b, h, q, kv) in reading order where it does not hold; kv is None where the whole query is
    meant. boxes: how many boxes of positions were bounded to know it.
    """

    holds: bool
    counterexample: tuple[int, int, int, int | None] | None
    boxes: int

    def __bool__(self) -> bool:
        return self.holds


def equals(
    a: Mask | Callable[..., Any],
    b: Mask | Callable[..., Any],
    q_len: int,
    kv_len: int | None = None,
    *,
    batch: int | None = None,
    heads: int | None = None,
    **inputs: Any,
) -> Proof:
    """Do two masks keep the same pairs at these lengths?

    >>> import flexspec as fs
    >>> fs.equals(fs.causal_window(4), fs.causal() & fs.sliding_window(4), 1_000_000).counterexample
    (0, 0, 4, 0)
    """
    return never(from_mask_mod(a) ^ from_mask_mod(b), make_sizes(q_len, kv_len, batch, heads), inputs)


def never(mask: Mask, sizes: Any, inputs: dict[str, Any]) -> Proof:
    """Does the mask keep nothing at all?"""
    return never_bound(mask, mask.bind(sizes, inputs))


def never_bound(mask: Mask, bound: Bound) -> Proof:
    """`never`, with values that are bound already."""
    stages = Stages()
    found = map_of(mask, bound, 128, None, torch.device("cpu"), stages)
    boxes = sum(stages.results["BLOCKS"].boxes)
    first = first_kept(found)
    return Proof(first is None, first, boxes)


def first_kept(block_map: BlockMap) -> tuple[int, int, int, int] | None:
    """The first kept (b, h, q, kv) in reading order, or None."""
    for (b, h), which in np.ndenumerate(block_map.index):
        rows = np.flatnonzero(np.diff(block_map.maps[which].first))
        if len(rows):
            q, kv = _first_in_row(block_map, int(which), int(rows[0]))
            return b, h, q, kv
    return None


def _first_in_row(block_map: BlockMap, which: int, row: int) -> tuple[int, int]:
    runs = block_map.maps[which]
    best: tuple[int, int] | None = None
    for run in range(int(runs.first[row]), int(runs.first[row + 1])):
        q = np.array([[row * block_map.block_q, min((row + 1) * block_map.block_q, block_map.q_len)]])
        if runs.kind[run] == BlockKind.FULL:
            at = int(q[0, 0]), int(runs.start[run]) * block_map.block_kv
            best = min(best or at, at)
            continue
        for column in range(int(runs.start[run]), int(runs.stop[run])):
            if best is not None and best[0] == q[0, 0]:
                break  # the first query is settled: blocks further right cannot come before
            left = column * block_map.block_kv
            kv = np.array([[left, min(left + block_map.block_kv, block_map.kv_len)]])
            found = np.argwhere(block_map.pairs(which, q, kv)[0])
            if len(found):
                at = int(q[0, 0] + found[0, 0]), int(left + found[0, 1])
                best = min(best or at, at)
    assert best is not None
    return best


def is_causal(mask: Mask, bound: Bound) -> Proof:
    """Does no query see a later key?"""
    return never_bound(mask & _later, bound)


def _later(b: Any, h: Any, q: Any, kv: Any) -> Any:
    return kv > q


def every_query_attends(block_map: BlockMap) -> Proof:
    """Does every query keep at least one key?"""
    for (b, h), which in np.ndenumerate(block_map.index):
        missing = _first_without(block_map, int(which))
        if missing is not None:
            return Proof(False, (b, h, missing, None), 0)
    return Proof(True, None, 0)


def _first_without(block_map: BlockMap, which: int) -> int | None:
    served = np.zeros((block_map.q_blocks, block_map.block_q), bool)
    rows, columns, kinds = block_map.maps[which].blocks()
    served[rows[kinds == BlockKind.FULL]] = True
    left = (kinds == BlockKind.PARTIAL) & ~served[rows, 0]
    rows, columns = rows[left], columns[left]
    step = max(1, CHUNK // (block_map.block_q * block_map.block_kv))
    for start in range(0, len(rows), step):
        row, column = rows[start : start + step], columns[start : start + step]
        q = np.stack([row * block_map.block_q, np.minimum((row + 1) * block_map.block_q, block_map.q_len)], 1)
        kv_end = np.minimum((column + 1) * block_map.block_kv, block_map.kv_len)
        kept = block_map.pairs(which, q, np.stack([column * block_map.block_kv, kv_end], 1)).any(2)
        np.logical_or.at(served, row, kept)
    missing = np.flatnonzero(~served.reshape(-1)[: block_map.q_len])
    return int(missing[0]) if len(missing) else None
