"""Tables that are read by both sides, on the device: the extremes of `two_sided` in torch, with no value read back.

Which entries a block reads is found on the host where arithmetic says it. Where tensors say it, each position of the
block is looked up: no shape depends on what they hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch

from flexspec.expr import Expr

from ..evaluation.points import evaluate_at
from .intervals import Interval
from .two_sided import FEW, WORK, Entries, entries_of, flat_index


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """The entries along an axis that the blocks of a side read, in groups of blocks that read the same.

    groups, most: how many groups there are, and entries of each. ids: int64 [batch | 1, heads | 1, groups * most], or
    None for all entries in turn. group: int64 [blocks], or None where each block is one.
    """

    groups: int
    most: int
    ids: torch.Tensor | None = None
    group: torch.Tensor | None = None

    @property
    def by_head(self) -> bool:
        return self.ids is not None and self.ids.shape[:2] != (1, 1)

    @property
    def work(self) -> int:
        return self.groups * self.most


@lru_cache(maxsize=256)
def entries_by_arithmetic(
    parts: tuple[Expr, ...], sizes: tuple[int, ...], side: str, length: int, block: int
) -> Entries:
    """The entries that indices of one side, which load from no tensor, read in each block."""
    at = [np.broadcast_to(evaluate_at(part, {side: np.arange(length)}, {}), length) for part in parts]
    return entries_of(flat_index(at, sizes), np.arange(0, length, block))


def read_of(entries: Entries, count: int, sent: Callable[[torch.Tensor], torch.Tensor]) -> Read:
    """As tensors on a device. count: entries of the axis."""
    groups, cells = len(entries.begin), len(entries.group)
    in_turn = entries.work == count and entries.in_turn(count)
    ids = None if in_turn else sent(torch.from_numpy(entries.ids.reshape(1, 1, -1)))
    group = None if groups == cells else sent(torch.from_numpy(entries.group))
    return Read(groups, entries.most, ids, group)


def extremes(table: torch.Tensor, reads: dict[str, Read]) -> Interval:
    """The least and greatest entries of a table [..., entries by q, entries by kv]: [..., q blocks | 1, kv blocks | 1].

    reads: which entries each side reads. One that would read many times the table is taken to read all of them.
    """
    most = WORK * table.shape[-2] * table.shape[-1] + FEW
    dims = [(-2, reads["q"]), (-1, reads["kv"])]
    if _work(table, *dims) > _work(table, *dims[::-1]):
        dims = dims[::-1]
    ends: Interval = (table, table)
    for dim, read in dims:
        across = ends[0].shape[-1 if dim == -2 else -2]
        ends = _of_blocks(ends, read if read.work * across <= most else None, dim)
    return ends


def _work(table: torch.Tensor, first: tuple[int, Read], second: tuple[int, Read]) -> int:
    """Entries that are read where `first` is reduced first."""
    return first[1].work * table.shape[second[0]] + first[1].groups * second[1].work


def _of_blocks(ends: Interval, read: Read | None, dim: int) -> Interval:
    """The extremes along `dim` of what each block reads there. One tensor twice where it reads one entry of such."""
    if read is None:
        return _reduced(ends, dim, keepdim=True)
    if read.ids is not None:
        ends = each(ends, partial(_taken, ids=read.ids, dim=dim))
    if read.most > 1:
        ends = each(ends, lambda end: end.unflatten(dim, (read.groups, read.most)))
        ends = _reduced(ends, dim)
    return ends if read.group is None else each(ends, lambda end: end.index_select(dim, read.group))


def each(ends: Interval, do: Callable[[torch.Tensor], torch.Tensor]) -> Interval:
    """Both ends done; one tensor twice stays one."""
    low = do(ends[0])
    return low, low if ends[1] is ends[0] else do(ends[1])


def _reduced(ends: Interval, dim: int, keepdim: bool = False) -> Interval:
    if ends[0].dtype is torch.bool:
        return ends[0].all(dim, keepdim=keepdim), ends[1].any(dim, keepdim=keepdim)
    return ends[0].amin(dim, keepdim=keepdim), ends[1].amax(dim, keepdim=keepdim)


def _taken(end: torch.Tensor, ids: torch.Tensor, dim: int) -> torch.Tensor:
    """Entries [batch | 1, heads | 1, n] along `dim`."""
    if ids.shape[:2] == (1, 1):
        return end.index_select(dim, ids.flatten())
    pairs = torch.broadcast_shapes(end.shape[:2], ids.shape[:2])
    places = ids[..., None] if dim == -2 else ids[..., None, :]
    end = end.expand(*pairs, -1, -1)
    sizes = list(end.shape)
    sizes[dim] = ids.shape[-1]
    return end.gather(dim, places.expand(sizes))
