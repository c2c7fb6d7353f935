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
from .block_counts import BlockCounts

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
        # Pairs that are kept on every axis are those that the AND keeps, as each part speaks of one axis. A part of
        # none is true or false for all pairs alike, so any axis may have it.
        axes = {name.partition(".")[2] for name in part.names & _coordinates(canvas)}
        if len(axes) > 1 or part.names - tensors.keys() - {f"{s}.{a}" for s in ("q", "kv") for a in axes}:
            return None
        axis = next(iter(axes), canvas.names[0])
        of_axis[axis] = apply("and", of_axis[axis], part)
    tables = {}
    for axis, length in canvas.axes:
        coordinates = {f"q.{axis}": np.arange(length)[:, None], f"kv.{axis}": np.arange(length)[None, :]}
        tables[axis] = np.broadcast_to(evaluate_at(of_axis[axis], coordinates, tensors), (length, length))
    return tables


def _coordinates(canvas: Canvas) -> set[str]:
    return {f"{side}.{name}" for side in ("q", "kv") for name in canvas.names}


def _conjuncts(expr: Expr) -> list[Expr]:
    if isinstance(expr, Apply) and expr.op == "and":
        return [part for arg in expr.args for part in _conjuncts(arg)]
    return [] if isinstance(expr, Const) and expr.value is True else [expr]


@dataclass(frozen=True)
class Boxes:
    """The blocks of an order, each a product of sets of coordinates.

    sets: of each axis, bool [sets, length]. set_of: int64 [blocks, axes], a block's set on each axis. whole: bool
    [blocks], no padding inside.
    """

    sets: tuple[Array, ...]
    set_of: Array
    whole: Array


def boxes(place: Array, canvas: Canvas, block: int) -> Boxes | None:
    """The blocks of `block` memory positions as boxes; None where one of them is no box.

    place: int64 [places], the logical position of each memory position, -1 for padding.
    """
    taken = np.flatnonzero(place >= 0)
    in_block, blocks = taken // block, -(-len(place) // block)
    tokens = np.bincount(in_block, minlength=blocks)
    volume = np.ones(blocks, np.int64)
    sets, set_of = [], []
    lengths = tuple(canvas.lengths.values())
    for coordinate, length in zip(np.unravel_index(place[taken], lengths), lengths, strict=True):
        occupied = np.zeros((blocks, length), bool)
        occupied[in_block, coordinate] = True
        volume *= occupied.sum(1)
        packed = np.packbits(occupied, axis=1)
        _, first, index = np.unique(packed.view(f"V{packed.shape[1]}"), return_index=True, return_inverse=True)
        sets.append(occupied[first])
        set_of.append(index.reshape(-1))
    # A block's tokens, each of them once, lie in the product of the coordinates that they have on each axis. Where they
    # are as many as that product has points, they are all of it.
    if not (volume == tokens).all():
        return None
    places = np.minimum(block, len(place) - np.arange(blocks) * block)
    return Boxes(tuple(sets), np.stack(set_of, 1), tokens == places)


def is_arithmetic(order: Order | None, length: int) -> bool:
    """Are the order's formulas those of memory positions alone, with no table to load from?"""
    return all(each.place(var("m"), length).logical.names <= {"m"} for each in orders_of(order))


def orders_of(order: Order | None) -> list[Order]:
    """An order, or those of its sides."""
    sides = [] if order is None else [order.side("q"), order.side("kv")]
    return list(dict.fromkeys(side for side in sides if side is not None))


def permutation(order: Order | None, length: int) -> Array:
    """The logical position of each memory position, -1 for padding: `Order.permutation` in numpy, which is quicker."""
    if order is None:
        return np.arange(length)
    formula = order.place(var("m"), length)
    parts = [formula.logical] if formula.valid is None else [formula.logical, formula.valid]
    if not is_arithmetic(order, length):
        return np.asarray(order.permutation(length))
    places = order.padded(length)
    logical, *valid = (np.broadcast_to(evaluate_at(part, {"m": np.arange(places)}, {}), places) for part in parts)
    return np.where(valid[0], logical, -1) if valid else logical


def count_blocks(relations: Mapping[str, Array], q: Boxes, kv: Boxes) -> BlockCounts:
    """The rows of blocks of a mask, q-blocks by kv-blocks."""
    # In a product of sets the coordinates of different axes are chosen independently. So a pair of tokens that is kept
    # on every axis exists if each axis has a kept pair of coordinates, and all pairs of tokens are kept if each axis
    # keeps all of its own. Numbers of pairs are far below 2**53, so float64 counts them exactly.
    some, every = [], []
    for relation, q_sets, kv_sets in zip(relations.values(), q.sets, kv.sets, strict=True):
        kept = q_sets.astype(np.float64) @ relation @ kv_sets.T
        some.append(kept > 0)
        every.append(kept == q_sets.sum(1)[:, None] * kv_sets.sum(1))
    return BlockCounts(_rows(some, q, kv, None), np.where(q.whole, _rows(every, q, kv, kv.whole), 0))


def _rows(related: list[Array], q: Boxes, kv: Boxes, chosen: Array | None) -> Array:
    """How many of the kv-blocks (the chosen ones) each q-block is related to on all axes: int64 [q_blocks].

    related: of each axis, bool [sets of q, sets of kv].
    """
    shape = tuple(map(len, kv.sets))
    if prod(shape) > CELLS:
        return _rows_by_pairs(related, q.set_of, kv.set_of if chosen is None else kv.set_of[chosen])
    # Blocks of the same sets count the same, so first the kv-blocks of each combination of sets are counted. The sum
    # over combinations of this count times one factor for each axis then goes axis by axis, as a product of matrices.
    combination = np.ravel_multi_index(tuple(kv.set_of.T), shape)
    counts = np.bincount(combination, chosen, prod(shape)).reshape(shape).astype(np.float64)
    totals = reduce(lambda table, axis: np.tensordot(table, axis, ((0,), (1,))), related, counts)
    return np.rint(totals[tuple(q.set_of.T)]).astype(np.int64)


def _rows_by_pairs(related: list[Array], q_set_of: Array, kv_set_of: Array) -> Array:
    rows = []
    for start in range(0, len(q_set_of), ROWS):
        sides = zip(related, q_set_of[start : start + ROWS].T, kv_set_of.T, strict=True)
        rows.append(reduce(np.logical_and, (axis[q_set][:, kv_set] for axis, q_set, kv_set in sides)).sum(1))
    return np.concatenate(rows)
