"""Exact counts of blocks without a block map, for masks that are a condition on each axis and blocks that are boxes.

Where a mask is an AND over axes and the tokens of every block are a product of coordinates, so is the answer: a pair of
blocks keeps some pair if it does on every axis, and every pair if it does on every axis. Both premises are checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from math import prod

import numpy as np

from flexspec.canvas import Canvas
from flexspec.expr import Apply, Const, Expr, apply, const, var
from flexspec.order import Order

from ..evaluation.points import Array, evaluate_at
from .block_counts import Tally

LONGEST = 4096
"""Positions on an axis at most: the relation of an axis is held pair by pair."""
CELLS = 1 << 16
"""Combinations of the axes' sets up to which sums go axis by axis, and past which they go pair by pair of blocks."""
ROWS = 256
"""Rows of blocks that are summed at once."""


def relations(expr: Expr, canvas: Canvas | None, tensors: Mapping[str, Array]) -> dict[str, Array] | None:
    """The mask as one relation for each axis, bool [length, length] of query and key; None where it is no such AND.

    expr: over coordinates, with everything else filled in.
    """
    if canvas is None or max(canvas.lengths.values()) > LONGEST:
        return None
    of_axis: dict[str, Expr] = dict.fromkeys(canvas.names, const(True))
    for part in _conjuncts(expr):
        axes = {name.partition(".")[2] for name in part.names & _coordinates(canvas)}
        if len(axes) > 1 or part.names - tensors.keys() - {f"{s}.{a}" for s in ("q", "kv") for a in axes}:
            return None
        axis = next(iter(axes), canvas.names[0])
        of_axis[axis] = apply("and", of_axis[axis], part)
    found = {}
    for axis, length in canvas.axes:
        at = {f"q.{axis}": np.arange(length)[:, None], f"kv.{axis}": np.arange(length)[None, :]}
        found[axis] = np.broadcast_to(evaluate_at(of_axis[axis], at, tensors), (length, length))
    return found


def _coordinates(canvas: Canvas) -> set[str]:
    return {f"{side}.{name}" for side in ("q", "kv") for name in canvas.names}


def _conjuncts(expr: Expr) -> list[Expr]:
    if isinstance(expr, Apply) and expr.op == "and":
        return [part for arg in expr.args for part in _conjuncts(arg)]
    return [] if isinstance(expr, Const) and expr.value is True else [expr]


@dataclass(frozen=True)
class Boxes:
    """The blocks of an order, each a product of sets of coordinates.

    sets: of each axis, bool [sets, length]. which: int64 [blocks, axes], a block's set on each axis. whole: bool
    [blocks], no padding inside.
    """

    sets: tuple[Array, ...]
    which: Array
    whole: Array


def boxes(place: Array, canvas: Canvas, block: int) -> Boxes | None:
    """The blocks of `block` memory positions as boxes; None where one of them is no box.

    place: int64 [places], the logical position of each memory position, -1 for padding.
    """
    at = np.flatnonzero(place >= 0)
    in_block, blocks = at // block, -(-len(place) // block)
    tokens = np.bincount(in_block, minlength=blocks)
    volume = np.ones(blocks, np.int64)
    sets, which = [], []
    lengths = tuple(canvas.lengths.values())
    for coordinate, length in zip(np.unravel_index(place[at], lengths), lengths, strict=True):
        seen = np.zeros((blocks, length), bool)
        seen[in_block, coordinate] = True
        volume *= seen.sum(1)
        packed = np.packbits(seen, axis=1)
        _, first, index = np.unique(packed.view(f"V{packed.shape[1]}"), return_index=True, return_inverse=True)
        sets.append(seen[first])
        which.append(index.reshape(-1))
    if not (volume == tokens).all():
        return None
    places = np.minimum(block, len(place) - np.arange(blocks) * block)
    return Boxes(tuple(sets), np.stack(which, 1), tokens == places)


def is_arithmetic(order: Order | None, length: int) -> bool:
    """Is the order's formula one of memory positions alone, with no table to load from?"""
    return order is None or order.place(var("m"), length).logical.names <= {"m"}


def permutation(order: Order | None, length: int) -> Array:
    """The logical position of each memory position, -1 for padding: `Order.permutation` in numpy, which is quicker."""
    if order is None:
        return np.arange(length)
    found = order.place(var("m"), length)
    parts = [found.logical] if found.valid is None else [found.logical, found.valid]
    if not is_arithmetic(order, length):
        return np.asarray(order.permutation(length))
    places = order.padded(length)
    logical, *valid = (np.broadcast_to(evaluate_at(part, {"m": np.arange(places)}, {}), places) for part in parts)
    return np.where(valid[0], logical, -1) if valid else logical


def tally(relations: Mapping[str, Array], q: Boxes, kv: Boxes) -> Tally:
    """The rows of blocks of a mask, q-blocks by kv-blocks."""
    some, every = [], []
    for relation, mine, theirs in zip(relations.values(), q.sets, kv.sets, strict=True):
        kept = mine.astype(np.float64) @ relation @ theirs.T
        some.append(kept > 0)
        every.append(kept == mine.sum(1)[:, None] * theirs.sum(1))
    return Tally(_rows(some, q, kv, None), np.where(q.whole, _rows(every, q, kv, kv.whole), 0))


def _rows(related: list[Array], q: Boxes, kv: Boxes, chosen: Array | None) -> Array:
    """How many of the kv-blocks (the chosen ones) each q-block is related to on all axes: int64 [q_blocks]."""
    shape = tuple(map(len, kv.sets))
    if prod(shape) > CELLS:
        return _rows_by_pairs(related, q.which, kv.which if chosen is None else kv.which[chosen])
    at = np.ravel_multi_index(tuple(kv.which.T), shape)
    counts = np.bincount(at, chosen, prod(shape)).reshape(shape).astype(np.float64)
    total = reduce(lambda table, each: np.tensordot(table, each, ((0,), (1,))), related, counts)
    return np.rint(total[tuple(q.which.T)]).astype(np.int64)


def _rows_by_pairs(related: list[Array], q: Array, kv: Array) -> Array:
    found = []
    for start in range(0, len(q), ROWS):
        sides = zip(related, q[start : start + ROWS].T, kv.T, strict=True)
        found.append(reduce(np.logical_and, (each[mine][:, theirs] for each, mine, theirs in sides)).sum(1))
    return np.concatenate(found)
