"""Where tokens lie in memory: the orders, and masks rewritten to memory positions.

An order changes which blocks a mask fills, never what it means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce

import torch

from .canvas import AnyCanvas
from .errors import FlexSpecError
from .expr import Expr, apply, const, renamed_inputs, substitute, var
from .inputs import Bound, Sizes
from .orders.base import Order, Place
from .orders.digits import Dilated, Tiled, axes, dilated, row_major, tiled
from .orders.lookup import TOKEN_AT, ByLabel, Concatenated, Curve, Table, by_label, concatenated, hilbert, morton
from .orders.ranks import Striped, Zigzag, striped, zigzag
from .orders.sides import ByHead, BySide, OrderLike, as_order
from .user_line import user_caret

__all__ = [
    "TOKEN_AT",
    "ByHead",
    "ByLabel",
    "BySide",
    "Concatenated",
    "Curve",
    "Dilated",
    "Order",
    "OrderLike",
    "Place",
    "Rows",
    "Striped",
    "Table",
    "Tiled",
    "Zigzag",
    "as_order",
    "axes",
    "bound_in_memory",
    "by_label",
    "concatenated",
    "dilated",
    "flatten",
    "hilbert",
    "in_memory",
    "morton",
    "relocate",
    "row_major",
    "standing",
    "striped",
    "tiled",
    "zigzag",
]


MEMORY = {"q.memory": var("q"), "kv.memory": var("kv")}
"""Positions in memory, whatever the order."""
Rows = Mapping[str, Expr]
"""The true position of a row as an expression, by side; negative where there is nothing (see `positions`)."""


def in_memory(
    expr: Expr, order: Order | None, canvas: AnyCanvas | None, q_len: int, kv_len: int, rows: Rows | None = None
) -> Expr:
    """A mask's expression over memory positions; padding is not kept.

    expr: over logical positions and the canvas' coordinates.
    order: None leaves positions as they are.
    canvas: the mask's own, or those of its sides, or None.
    q_len, kv_len: tokens, without padding.
    rows: of sides whose rows stand at positions of their own.

    Raises what `relocate` raises.
    """
    places = _places(order, q_len, kv_len, rows or {}).values()
    parts = [place.valid for place in places if place.valid is not None]
    return reduce(lambda a, b: apply("and", a, b), [*parts, relocate(expr, order, canvas, q_len, kv_len, rows)])


def _places(order: Order | None, q_len: int, kv_len: int, rows: Rows) -> dict[str, Place]:
    """What stands at a memory position, by side; a side that stays as it is is missing. An empty row stands for 0."""
    found = {}
    for side, length in (("q", q_len), ("kv", kv_len)):
        own = None if order is None else order.side(side)
        place = None if own is None else _own_place(own, side, length, _table_name(order, side))
        if side in rows:
            row = rows[side] if place is None else substitute(rows[side], {side: place.logical})
            there = apply("ge", row, const(0))
            if place is not None and place.valid is not None:
                there = apply("and", place.valid, there)
            place = Place(apply("max", row, const(0)), {}, there)
        if place is not None:
            found[side] = place
    return found


def standing(order: Order | None, q_len: int, kv_len: int, rows: Rows | None = None) -> dict[str, Expr]:
    """The true position of what lies at a memory position, by side; negative where nothing does (see `in_memory`)."""
    found: dict[str, Expr] = {"q": var("q"), "kv": var("kv")}
    for side, place in _places(order, q_len, kv_len, rows or {}).items():
        there = place.valid
        found[side] = place.logical if there is None else apply("where", there, place.logical, const(-1))
    return found


def _own_place(order: Order, side: str, length: int, name: str) -> Place:
    """What an order says of the positions of a side, its table under `name`."""
    place = order.place(var(side), length)
    coordinates = {axis: _loading(x, name) for axis, x in place.coordinates.items()}
    valid = None if place.valid is None else _loading(place.valid, name)
    return Place(_loading(place.logical, name), coordinates, valid)


def _table_name(order: Order | None, side: str) -> str:
    """The name of a side's table: another for the keys where their order is another."""
    both = order is None or order.side("q") is order.side("kv")
    return TOKEN_AT if both or side == "q" else f"{TOKEN_AT}.{side}"


def _loading(expr: Expr, name: str) -> Expr:
    """The expression with an order's table under another name."""
    if name == TOKEN_AT or TOKEN_AT not in expr.names:
        return expr
    return renamed_inputs(expr, {TOKEN_AT: name})


def relocate(
    expr: Expr, order: Order | None, canvas: AnyCanvas | None, q_len: int, kv_len: int, rows: Rows | None = None
) -> Expr:
    """An expression over memory positions: logical positions and coordinates written by the order (see `in_memory`).

    Raises FS026 (a value of the pattern has the name of the order's table) and FS033 (an order of another length).
    """
    if order is None and not rows:
        return flatten(expr, canvas)
    tables = order is not None and any(isinstance(order.side(side), Table) for side in ("q", "kv"))
    if tables and TOKEN_AT in expr.names:
        message = f"`{TOKEN_AT}` is a value of the pattern, and the table of {order}"
        raise FlexSpecError("FS026", message, fix="rename the pattern's", where=user_caret())
    values: dict[str, Expr] = dict(MEMORY)
    if order is not None:
        order.check(q_len, kv_len)
    for side, place in _places(order, q_len, kv_len, rows or {}).items():
        own, on = None if order is None else order.side(side), canvas.side(side) if canvas else None
        coordinates = place.coordinates if own is not None and on == own.canvas else {}
        if on and not coordinates:
            coordinates = on.coordinates(place.logical)
        values |= {side: place.logical} | {f"{side}.{name}": part for name, part in coordinates.items()}
    return flatten(substitute(expr, values), canvas)


def flatten(expr: Expr, canvas: AnyCanvas | None) -> Expr:
    """`expr` with coordinates written as arithmetic on row-major positions, which are those in memory too."""
    expr = substitute(expr, MEMORY) if expr.names & MEMORY.keys() else expr
    sides = {side: on for side in ("q", "kv") if canvas and (on := canvas.side(side)) is not None}
    if not sides:
        return expr
    values = {f"{side}.{name}": x for side, on in sides.items() for name, x in on.coordinates(var(side)).items()}
    return substitute(expr, values)


def bound_in_memory(bound: Bound, order: Order | None, device: torch.device | str) -> Bound:
    """The values of a mask together with the tables that it loads from in memory, if the order has any.

    Raises FS022 where the order is of another number of sequences than the call, FS033 where it is of other heads.
    """
    for side in ("q", "kv"):
        own = None if order is None else order.side(side)
        tables = {} if own is None else own.tensors(device)
        if own is not None and TOKEN_AT in tables:
            tensors = {**bound.tensors, _table_name(order, side): tables[TOKEN_AT]}
            bound = replace(bound, tensors=tensors, sizes=told_sizes(own, bound.sizes))
    return bound


def told_sizes(order: Order, sizes: Sizes) -> Sizes:
    """The sizes of a call with the batch and the heads of an order that differs by them."""
    if order.batch is not None and sizes.batch not in (None, order.batch):
        message = f"{order} is of {order.batch} sequences, the call has batch {sizes.batch}"
        raise FlexSpecError("FS022", message, where=user_caret())
    if order.heads is not None and sizes.heads not in (None, order.heads):
        message = f"{order} is of {order.heads} heads, the call has {sizes.heads}"
        raise FlexSpecError("FS033", message, fix="give an order for each head", where=user_caret())
    return replace(sizes, batch=order.batch or sizes.batch, heads=order.heads or sizes.heads)
