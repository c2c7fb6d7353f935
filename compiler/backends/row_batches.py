"""Which rows of blocks run as one batch: rows with as many queries and keys each, and the runs of keys they read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flexspec.evaluate import evaluate

from ..blocks.block_map import BlockMap
from ..blocks.classify import classify
from ..blocks.grid import Grid
from ..blocks.runs import BlockKind, Runs, of_table
from ..blocks.tensor_ranges import TensorRanges
from ..pipeline import Lowered

PAIRS = 1 << 20
"""Pairs times heads of one batch: memory does not grow with a row."""
JOINED = 1 << 18
"""The same where several rows make a batch: their keys are copied, and larger scores leave a processor's cache."""
FINE = 64
"""Tokens of a half row, at least: products of fewer queries are slow."""
SAVED = 0.1
"""The share of a row's pairs that its halves must save."""
MASK_BYTES = 256
"""Bytes of masks for each query that a map keeps from call to call; more than that is evaluated at each call."""

Span = tuple[int, int]
"""The first place, and the one past the last."""


class RowBatch(NamedTuple):
    """Rows of blocks that run as one batch.

    rows: how many. queries, keys: of each row. q, kv: the tokens of all rows one after the other, as spans.
    masked: the columns in which the mask is asked; all other pairs are kept. heads: key heads taken at a time.
    """

    rows: int
    queries: int
    keys: int
    q: list[Span]
    kv: list[Span]
    masked: list[Span]
    heads: int

    def positions(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The queries [rows, 1, queries, 1] and the keys [rows, 1, 1, keys]."""
        q, kv = (torch.cat([torch.arange(*span, device=device) for span in spans]) for spans in (self.q, self.kv))
        return q.view(self.rows, 1, self.queries, 1), kv.view(self.rows, 1, 1, self.keys)


@dataclass(eq=False)
class Part:
    """The heads that share one map, and its batches.

    heads: which of q, seen as [heads / group, group, ...]; kv_heads: which of k, seen as [batch * kv_heads, ...].
    group: query heads of a key head that run as one. b, h: their indices, [heads, 1, 1, 1, 1] and [heads, 1, group, 1,
    1]. kept: the masks of the batches from an earlier call, None where they are too many to keep.
    """

    heads: slice | Tensor
    kv_heads: slice | Tensor
    group: int
    b: Tensor
    h: Tensor
    batches: list[RowBatch]
    kept: dict[int, list[Tensor]] | None = field(repr=False)

    def dropped(self, lowered: Lowered, number: int) -> list[Tensor]:
        """Pairs that the mask drops in the masked columns of a batch: bool [rows, 1, queries, columns] for each."""
        if self.kept is not None and number in self.kept:
            return self.kept[number]
        batch = self.batches[number]
        q, kv = batch.positions(self.b.device)
        values = {**lowered.values, "q": q, "b": int(self.b.flatten()[0]), "h": int(self.h.flatten()[0])}
        masks = []
        for start, stop in batch.masked:
            columns = kv[..., start:stop]
            keep = evaluate(lowered.mask, {**values, "kv": columns}, checked=False)
            masks.append(~keep.expand(batch.rows, 1, batch.queries, stop - start))
        if self.kept is not None:
            self.kept[number] = masks
        return masks


def parts_of(lowered: Lowered, batch: int, heads: int, kv_heads: int, device: torch.device) -> list[Part]:
    """The parts of calls with so many heads."""
    with torch.inference_mode(False):  # what is kept serves calls with gradients too
        return [
            _part(rows, members, lowered.grid.q_len, heads, heads // kv_heads, device)
            for rows, members in _members(lowered, batch, heads)
        ]


def _members(lowered: Lowered, batch: int, heads: int) -> Iterator[tuple[list[_Row], np.ndarray]]:
    """The rows of each map, and which of the batch * heads query heads have it, ascending."""
    block_map, grid = lowered.block_map, lowered.grid
    if isinstance(block_map, BlockMap):
        rows, index = finer_rows(block_map), block_map.index
    else:
        names = lowered.mask.names  # kinds that are equal do not say that masks are: what is open is PARTIAL in all
        sizes = (batch if "b" in names else 1, heads if "h" in names else 1)
        kinds = block_map.kinds().expand(*sizes, -1, -1).cpu().numpy()
        sides = (np.arange(grid.q_blocks + 1), np.arange(grid.kv_blocks + 1))
        rows = [_rows(of_table(each, *sides), grid) for each in kinds.reshape(-1, grid.q_blocks, grid.kv_blocks)]
        index = np.arange(len(rows)).reshape(kinds.shape[:2])
    index = np.broadcast_to(index, (batch, heads)).reshape(-1)
    return ((each, np.flatnonzero(index == which)) for which, each in enumerate(rows))


def finer_rows(block_map: BlockMap) -> list[list[_Row]]:
    """The rows of each mask of a map: a row of blocks as it is, or in halves where those read fewer keys."""
    grid = block_map.grid
    whole = [_rows(runs, grid) for runs in block_map.maps]
    if grid.q_blocks == 1 or grid.block_q % (2 * FINE) or grid.block_kv % 2:
        return whole
    halved = replace(grid, block_q=grid.block_q // 2, block_kv=grid.block_kv // 2)
    tables = TensorRanges(block_map.tensors)
    halves = [_rows(classify(expr, halved, tables, exact=False), halved) for expr in block_map.exprs]
    return [
        [row for i, one in enumerate(rows) for row in _cheaper(one, of_halves[2 * i : 2 * i + 2])]
        for rows, of_halves in zip(whole, halves, strict=True)
    ]


def _cheaper(row: _Row, halves: list[_Row]) -> list[_Row]:
    return halves if sum(half.pairs for half in halves) < (1 - SAVED) * row.pairs else [row]


def _part(
    rows: list[_Row], members: np.ndarray, q_len: int, heads: int, group: int, device: torch.device
) -> Part:
    """The part of the query heads `members`: a group of them runs as one where all of it is there."""
    groups = members // group
    whole = np.array_equal(members, (groups[::group, None] * group + np.arange(group)).reshape(-1))
    group, chosen = (group, groups[::group]) if whole else (1, members)
    batches = list(row_batches(rows, len(chosen), group))
    bytes_of_masks = sum(each.rows * each.queries * (stop - start) for each in batches for start, stop in each.masked)
    query_heads = torch.from_numpy(members).to(device).view(-1, 1, group, 1, 1)
    return Part(
        _chosen(chosen, device),
        _chosen(chosen if whole else groups, device),
        group,
        query_heads[:, :, :1] // heads,
        query_heads % heads,
        batches,
        {} if bytes_of_masks <= MASK_BYTES * max(q_len, 1024) else None,
    )


def _chosen(indices: np.ndarray, device: torch.device) -> slice | Tensor:
    """The indices, as a slice where they are one run: a slice copies nothing."""
    if np.array_equal(indices, np.arange(indices[0], indices[0] + len(indices))):
        return slice(int(indices[0]), int(indices[-1]) + 1)
    return torch.from_numpy(indices).to(device)


class _Row(NamedTuple):
    """Queries and the runs of keys that they attend to, in tokens."""

    q: Span
    partial: list[Span]
    full: list[Span]

    @property
    def queries(self) -> int:
        return self.q[1] - self.q[0]

    @property
    def keys(self) -> int:
        return _length(self.partial) + _length(self.full)

    @property
    def pairs(self) -> int:
        return self.queries * self.keys


def row_batches(rows: list[_Row], heads: int, group: int) -> Iterator[RowBatch]:
    """The batches of one map for `heads` key heads with `group` query heads each. A row without keys is in none."""
    alike: dict[tuple[int, int], list[_Row]] = {}
    for row in rows:
        if row.keys:
            alike.setdefault((row.queries, row.keys), []).append(row)
    for (queries, keys), some in alike.items():
        count = min(JOINED, PAIRS) // (heads * group * queries * keys)
        if count > 1:
            yield from (_batch(some[first : first + count], heads) for first in range(0, len(some), count))
            continue
        step = min(queries, max(1, PAIRS // (group * keys)))
        taken = min(heads, max(1, PAIRS // (group * step * keys)))
        for row in some:
            for start in range(*row.q, step):
                yield _batch([row._replace(q=(start, min(start + step, row.q[1])))], taken)


def _rows(runs: Runs, grid: Grid) -> list[_Row]:
    """A row for each row of blocks."""
    rows = []
    first, start, stop, kind = (part.tolist() for part in (runs.first, runs.start, runs.stop, runs.kind))
    for block in range(grid.q_blocks):
        spans: tuple[list[Span], list[Span]] = ([], [])
        for run in range(first[block], first[block + 1]):
            span = start[run] * grid.block_kv, min(stop[run] * grid.block_kv, grid.kv_len)
            spans[kind[run] == BlockKind.FULL].append(span)
        rows.append(_Row((block * grid.block_q, min((block + 1) * grid.block_q, grid.q_len)), *spans))
    return rows


def _batch(rows: list[_Row], heads: int) -> RowBatch:
    """Rows with as many queries and keys each as one batch.

    The keys of a single row stay in their order, so that neighbouring runs are one slice of k. Of several rows each has
    its partial blocks first: the mask is asked in as many columns as the row with most of them needs.
    """
    if len(rows) == 1:
        kv = sorted([*rows[0].partial, *rows[0].full])
        ends = np.cumsum([stop - start for start, stop in kv]).tolist()
        partial = {*rows[0].partial}
        masked = [(end - (span[1] - span[0]), end) for span, end in zip(kv, ends, strict=True) if span in partial]
    else:
        kv = [span for row in rows for span in (*row.partial, *row.full)]
        masked = [(0, most)] if (most := max(_length(row.partial) for row in rows)) else []
    q = [row.q for row in rows]
    return RowBatch(len(rows), rows[0].queries, rows[0].keys, _joined(q), _joined(kv), _joined(masked), heads)


def _joined(spans: Iterable[Span]) -> list[Span]:
    """Spans that touch as one."""
    joined: list[Span] = []
    for start, stop in spans:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    return joined


def _length(spans: list[Span]) -> int:
    return sum(stop - start for start, stop in spans)
