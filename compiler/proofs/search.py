"""Look for the first pair that one (batch, head) keeps, or for its first query without a key.

Both go down the rows in parts that grow, so that an early answer is found early and a late one costs little more than
one classification.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from flexspec.expr import Apply, Const, Expr, apply, const, substitute, var, walk

from ..blocks.classify import Trail, classify
from ..blocks.grid import Grid, check_blocks
from ..blocks.runs import BlockKind, Runs
from ..blocks.tensor_ranges import TensorRanges
from ..evaluation.points import Array, evaluate_at
from ..simplify.rules import simplify
from .assume import reduced

BLOCK = 128
PAIRS = 1 << 22
"""Pairs that are evaluated at once."""
Tensors = Mapping[str, Array]


class Part(NamedTuple):
    """Some rows of a mask: the query that they start at, their grid, and the mask with queries counted from there."""

    start: int
    grid: Grid
    expr: Expr


def first_pair(expr: Expr, q_len: int, kv_len: int, ranges: TensorRanges, trail: Trail) -> tuple[int, int] | None:
    """The first (q, kv) in reading order at which `expr` is true, or None."""
    expr = reduced(expr)
    if isinstance(expr, Const) and not expr.value:
        return None
    for start, grid, part in _parts(expr, 0, q_len, kv_len):
        runs = classify(part, grid, ranges, trail)
        rows = np.flatnonzero(np.diff(runs.first))
        if len(rows):
            # Blocks that are not empty keep a pair, so the first row of blocks that has one holds the first pair.
            q, kv = _first_in_row(part, grid, ranges.tensors, runs, int(rows[0]))
            return start + q, kv
    return None


def first_difference(expr: Expr, q_len: int, kv_len: int, ranges: TensorRanges, trail: Trail) -> tuple[int, int] | None:
    """`first_pair` of `a ^ b`: of `a & ~b` and of `b & ~a`, where their parts say that these are simpler."""
    if isinstance(expr, Apply) and expr.op == "xor":
        a, b = expr.args
        sides = [simplify(apply("and", kept, apply("not", dropped))) for kept, dropped in ((a, b), (b, a))]
        if any(_size(reduced(side)) < _size(side) for side in sides):
            firsts = [first_pair(side, q_len, kv_len, ranges, trail) for side in sides]
            return min((pair for pair in firsts if pair is not None), default=None)
    return first_pair(expr, q_len, kv_len, ranges, trail)


def _size(expr: Expr) -> int:
    return sum(1 for _ in walk(expr))


def _parts(expr: Expr, start: int, q_len: int, kv_len: int) -> Iterator[Part]:
    """Rows from `start` on, more and more at once."""
    check_blocks(max(q_len, kv_len) // BLOCK, "give a shorter length")
    rows = BLOCK
    while start < q_len:
        stop = min(q_len, start + rows)
        moved = substitute(expr, {"q": apply("add", var("q"), const(start))}) if start else expr
        yield Part(start, Grid(stop - start, kv_len, BLOCK, BLOCK), simplify(moved))
        start, rows = stop, 8 * rows


def _first_in_row(expr: Expr, grid: Grid, tensors: Tensors, runs: Runs, row: int) -> tuple[int, int]:
    """The first kept pair in a row of blocks that is not empty: blocks from the left, more and more at once."""
    q = np.arange(row * BLOCK, min((row + 1) * BLOCK, grid.q_len))
    best = grid.q_len, 0
    for run in range(int(runs.first[row]), int(runs.first[row + 1])):
        start, stop = int(runs.start[run]), int(runs.stop[run])
        if runs.kind[run] == BlockKind.FULL:
            return min(best, (int(q[0]), start * BLOCK))
        step = 1
        while start < stop and len(q):
            kv = np.arange(start * BLOCK, min(min(stop, start + step) * BLOCK, grid.kv_len))
            kept = _evaluate(expr, q[:, None], kv[None, :], tensors)
            keeping = np.flatnonzero(kept.any(1))
            if len(keeping):
                best = min(best, (int(q[keeping[0]]), int(kv[kept[keeping[0]].argmax()])))
                q = q[: keeping[0]]  # blocks further right come first only with an earlier query
            start, step = start + step, min(2 * step, PAIRS // BLOCK**2)
        if not len(q):
            break
    return best


def _evaluate(expr: Expr, q: Array, kv: Array, tensors: Tensors) -> Array:
    return np.broadcast_to(evaluate_at(expr, {"q": q, "kv": kv}, tensors), np.broadcast_shapes(q.shape, kv.shape))


def first_lonely(expr: Expr, q_len: int, kv_len: int, ranges: TensorRanges, trail: Trail) -> int | None:
    """The first query that keeps no key, or None.

    Likely keys come first: its own, its neighbours', the first, the last. Blocks are asked about the queries left.
    """
    queries = np.arange(q_len)
    for key in (queries, queries - 1, queries + 1, 0 * queries, 0 * queries + kv_len - 1):
        kv_idx = np.clip(key[queries], 0, kv_len - 1)
        queries = queries[~_evaluate(expr, queries, kv_idx, ranges.tensors)]
    if not len(queries):
        return None
    for start, grid, part in _parts(expr, int(queries[0]) // BLOCK * BLOCK, q_len, kv_len):
        inside = queries[(queries >= start) & (queries < start + grid.q_len)] - start
        if len(inside):
            lonely = _lonely_in(part, grid, ranges.tensors, classify(part, grid, ranges, trail), inside)
            if lonely is not None:
                return start + lonely
    return None


def _lonely_in(expr: Expr, grid: Grid, tensors: Tensors, runs: Runs, queries: Array) -> int | None:
    """The first of `queries` that no block serves."""
    row = np.repeat(np.arange(grid.q_blocks), np.diff(runs.first))
    served = np.zeros(grid.q_blocks, bool)
    served[row[runs.kind == BlockKind.FULL]] = True
    queries = queries[~served[queries // BLOCK]]
    # A query in a row of blocks that are all empty has no key; only earlier ones may come before it.
    without = np.flatnonzero(np.diff(runs.first)[queries // BLOCK] == 0)
    first_without = int(queries[without[0]]) if len(without) else None
    queries = queries[: without[0]] if len(without) else queries
    for run_of_row, block_of_run in ((runs.first[:-1], runs.start), (runs.first[1:] - 1, runs.stop - 1)):
        for place in (None, 0, BLOCK - 1):  # in its first and last block: the diagonal, the first key, the last key
            corner = block_of_run[run_of_row[queries // BLOCK]].astype(np.int64) * BLOCK
            kv_idx = corner + (queries % BLOCK if place is None else place)
            queries = queries[~_evaluate(expr, queries, np.minimum(kv_idx, grid.kv_len - 1), tensors)]
    for q_block in np.unique(queries // BLOCK):
        left = queries[queries // BLOCK == q_block]
        for run in range(int(runs.first[q_block]), int(runs.first[q_block + 1])):
            left = _unserved(expr, grid, tensors, left, int(runs.start[run]), int(runs.stop[run]))
        if len(left):
            return int(left[0])
    return first_without


def _unserved(expr: Expr, grid: Grid, tensors: Tensors, queries: Array, start: int, stop: int) -> Array:
    """Those of `queries` that keep no key in a run of blocks."""
    step = PAIRS // BLOCK**2
    for block in range(start, stop, step):
        kv = np.arange(block * BLOCK, min(min(stop, block + step) * BLOCK, grid.kv_len))
        if len(queries):
            queries = queries[~_evaluate(expr, queries[:, None], kv[None, :], tensors).any(1)]
    return queries
