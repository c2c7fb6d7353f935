"""Decide every block of a mask: EMPTY, PARTIAL or FULL, exactly, coarse to fine.

Whole regions are decided by bounds; only undecided boxes are split. A single block that stays undecided is settled by
sampled witnesses, and last by evaluating it alone. Nothing of size `q_len * kv_len` is ever allocated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import torch

from flexspec.expr import Expr

from .bounds import Bounds, Grid
from .points import Array, Columns, evaluate_at, one_sided

CHUNK = 1 << 22
"""Pairs that are evaluated at once."""
_WITNESSES = 24


class BlockKind(IntEnum):
    """What is known of a block: no pair kept, some kept, every existing pair kept."""

    EMPTY = 0
    PARTIAL = 1
    FULL = 2


@dataclass(frozen=True, slots=True)
class Runs:
    """The non-empty blocks of one (batch, head), as runs along each row of blocks.

    Row `i` has the runs `first[i]` to `first[i + 1]`; run `r` covers kv-blocks `start[r]` to `stop[r]` in `kind[r]`.
    int32 [q_blocks + 1], int32 [runs] twice, uint8 [runs]; runs of a row ascend and do not touch in the same kind.
    """

    first: Array
    start: Array
    stop: Array
    kind: Array

    def dense(self, kv_blocks: int) -> Array:
        """uint8 [q_blocks, kv_blocks] of BlockKind."""
        out = np.zeros((len(self.first) - 1, kv_blocks), np.uint8)
        rows, columns, kinds = self.blocks()
        out[rows, columns] = kinds
        return out

    def blocks(self) -> tuple[Array, Array, Array]:
        """Row, column and kind of every non-empty block, in reading order."""
        size = self.stop - self.start
        rows = np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))
        before = np.repeat(np.cumsum(size) - size, size)
        columns = np.repeat(self.start, size) + (np.arange(int(size.sum())) - before)
        return np.repeat(rows, size), columns, np.repeat(self.kind, size)

    def counts(self) -> dict[BlockKind, int]:
        """Blocks of the two kinds that are stored."""
        size = (self.stop - self.start).astype(np.int64)
        return {kind: int(size[self.kind == kind].sum()) for kind in (BlockKind.PARTIAL, BlockKind.FULL)}

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.first, self.start, self.stop, self.kind))


@dataclass(slots=True)
class Trail:
    """How the answer was found: boxes bounded per level, blocks settled by witnesses and by evaluation."""

    boxes: list[int] = field(default_factory=list)
    witnessed: int = 0
    evaluated: int = 0


def classify(expr: Expr, grid: Grid, tensors: Mapping[str, Array], trail: Trail | None = None) -> Runs:
    """The runs of a boolean expression over `q` and `kv` (everything else filled in)."""
    trail = trail or Trail()
    bounds = Bounds(expr, grid, tensors)
    level = max(grid.q_blocks - 1, grid.kv_blocks - 1).bit_length()
    q_box = kv_box = np.zeros(1, np.int64)
    found: list[tuple[Array, Array, Array, Array]] = []
    while True:
        trail.boxes.append(len(q_box))
        surely, possibly = bounds.over(level, q_box, kv_box)
        found.append(_rows(grid, level, q_box[surely], kv_box[surely], BlockKind.FULL))
        open_ = possibly & ~surely
        q_box, kv_box = q_box[open_], kv_box[open_]
        if level == 0 or not len(q_box):
            break
        level -= 1
        q_box, kv_box = _children(grid, level, q_box, kv_box)
    if len(q_box):
        kinds = _settle(expr, grid, tensors, q_box, kv_box, trail)
        for kind in (BlockKind.PARTIAL, BlockKind.FULL):
            found.append(_rows(grid, 0, q_box[kinds == kind], kv_box[kinds == kind], kind))
    return _merge(grid, found)


def _children(grid: Grid, level: int, q_box: Array, kv_box: Array) -> tuple[Array, Array]:
    q = (2 * q_box[:, None] + np.array([0, 0, 1, 1])).reshape(-1)
    kv = (2 * kv_box[:, None] + np.array([0, 1, 0, 1])).reshape(-1)
    inside = (q << level < grid.q_blocks) & (kv << level < grid.kv_blocks)
    return q[inside], kv[inside]


def _rows(
    grid: Grid, level: int, q_box: Array, kv_box: Array, kind: BlockKind
) -> tuple[Array, Array, Array, Array]:
    """Boxes as one run per row of blocks: row, start, stop, kind."""
    top = q_box << level
    height = np.minimum(top + (1 << level), grid.q_blocks) - top
    left = kv_box << level
    right = np.minimum(left + (1 << level), grid.kv_blocks)
    before = np.repeat(np.cumsum(height) - height, height)
    rows = np.repeat(top, height) + (np.arange(int(height.sum())) - before)
    return rows, np.repeat(left, height), np.repeat(right, height), np.full(len(rows), kind, np.uint8)


def _merge(grid: Grid, found: list[tuple[Array, Array, Array, Array]]) -> Runs:
    """Runs in order, neighbours of one kind joined."""
    rows, start, stop, kind = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(rows * (grid.kv_blocks + 1) + start, kind="stable")
    rows, start, stop, kind = rows[order], start[order], stop[order], kind[order]
    fresh = np.ones(len(rows), bool)
    fresh[1:] = (rows[1:] != rows[:-1]) | (start[1:] != stop[:-1]) | (kind[1:] != kind[:-1])
    heads = np.flatnonzero(fresh)
    ends = np.append(heads[1:], len(rows)) - 1 if len(rows) else heads
    counts = np.bincount(rows[heads], minlength=grid.q_blocks)
    first = np.concatenate([[0], np.cumsum(counts)])
    as_int = np.int32
    return Runs(first.astype(as_int), start[heads].astype(as_int), stop[ends].astype(as_int), kind[heads])


def _settle(
    expr: Expr, grid: Grid, tensors: Mapping[str, Array], q_box: Array, kv_box: Array, trail: Trail
) -> Array:
    """The kinds of single blocks that bounds leave open, uint8 [n]: a kept and a dropped witness make PARTIAL."""
    kinds = np.full(len(q_box), BlockKind.PARTIAL, np.uint8)
    places = _witness_places()
    columns: Columns = {}
    if len(q_box) * len(places[0]) > grid.q_len + grid.kv_len:  # then it pays to know one side's values beforehand
        for node, side in one_sided(expr).items():
            columns[node] = (side, evaluate_at(node, {side: np.arange(grid.side(side)[0])}, tensors))
    left = []
    for at in _chunks(len(q_box), len(places[0])):
        where = {"q": _at(grid, "q", q_box[at], places[0]), "kv": _at(grid, "kv", kv_box[at], places[1])}
        kept = _evaluate(expr, tensors, where, columns)
        left.append(np.flatnonzero(kept.all(1) | ~kept.any(1)) + at.start)
    remaining = np.concatenate(left)
    trail.witnessed += len(q_box) - len(remaining)
    trail.evaluated += len(remaining)
    for at in _chunks(len(remaining), grid.block_q * grid.block_kv):
        some = remaining[at]
        kinds[some] = _exact(expr, grid, tensors, q_box[some], kv_box[some], columns)
    return kinds


def _exact(
    expr: Expr, grid: Grid, tensors: Mapping[str, Array], q_box: Array, kv_box: Array, columns: Columns
) -> Array:
    """Kinds by evaluating every pair of each block; positions past the end repeat the last one."""
    q = np.minimum(q_box[:, None] * grid.block_q + np.arange(grid.block_q), grid.q_len - 1)
    kv = np.minimum(kv_box[:, None] * grid.block_kv + np.arange(grid.block_kv), grid.kv_len - 1)
    kept = _evaluate(expr, tensors, {"q": q[:, :, None], "kv": kv[:, None, :]}, columns)
    every, some = kept.all((1, 2)), kept.any((1, 2))
    return np.where(every, BlockKind.FULL, np.where(some, BlockKind.PARTIAL, BlockKind.EMPTY)).astype(np.uint8)


def _evaluate(
    expr: Expr, tensors: Mapping[str, Array], positions: Mapping[str, Array], columns: Columns
) -> Array:
    kept = evaluate_at(expr, positions, tensors, columns)
    return np.broadcast_to(kept, np.broadcast_shapes(*(at.shape for at in positions.values())))


def _witness_places() -> tuple[Array, Array]:
    """Places inside a block as fractions: the corners, the centre, and a fixed random scatter."""
    scatter = np.random.default_rng(0).random((2, _WITNESSES))
    corners = np.array([[0.0, 0.0, 1.0, 1.0, 0.5], [0.0, 1.0, 0.0, 1.0, 0.5]])
    q, kv = np.concatenate([corners, scatter], 1)
    return q, kv


def _at(grid: Grid, name: str, box: Array, places: Array) -> Array:
    length, block = grid.side(name)
    low = box * block
    last = np.minimum(low + block, length) - 1
    return low[:, None] + np.rint(places * (last - low)[:, None]).astype(np.int64)


def _chunks(count: int, size: int) -> list[slice]:
    step = max(1, CHUNK // size)
    return [slice(start, start + step) for start in range(0, count, step)]


def contiguous_lists(kinds: torch.Tensor) -> dict[str, bool]:
    """What FlexAttention's CUDA kernels may take as true of these kinds, by the names of their options.

    Forward (lists of a row) and backward (lists of a column): is each list of partial and of full blocks one run?
    """
    facts = {}
    for prefix, seen in (("fwd", kinds), ("bwd", kinds.mT)):
        if all(_one_run(seen == kind) for kind in (BlockKind.PARTIAL, BlockKind.FULL)):
            facts[f"{prefix}_BLOCKS_ARE_CONTIGUOUS"] = True
    return facts


def _one_run(chosen: torch.Tensor) -> bool:
    starts = chosen.clone()
    starts[..., 1:] &= ~chosen[..., :-1]
    return bool((starts.sum(-1) <= 1).all())
