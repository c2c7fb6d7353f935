"""Where tokens lie in memory: the orders, and masks rewritten to memory positions.

An order changes which blocks a mask fills, never what it means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce

import torch

from .canvas import Canvas
from .errors import FlexSpecError
from .expr import Expr, apply, const, substitute, var
from .inputs import Bound
from .orders.base import Order, Place
from .orders.digits import Dilated, Tiled, axes, dilated, row_major, tiled
from .orders.lookup import TOKEN_AT, ByLabel, Concatenated, Curve, Table, by_label, concatenated, hilbert, morton
from .orders.ranks import Striped, Zigzag, striped, zigzag
from .user_line import user_caret

__all__ = [
    "TOKEN_AT",
    "ByLabel",
    "Concatenated",
    "Curve",
    "Dilated",
    "Order",
    "Place",
    "Rows",
    "Striped",
    "Table",
    "Tiled",
    "Zigzag",
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
    "striped",
    "tiled",
    "zigzag",
]


Rows = Mapping[str, Expr]
"""The true position of a row as an expression, by side; negative where there is nothing (see `positions`)."""


def in_memory(
    expr: Expr, order: Order | None, canvas: Canvas | None, q_len: int, kv_len: int, rows: Rows | None = None
) -> Expr:
    """A mask's expression over memory positions; padding is not kept.

    expr: over logical positions and the canvas' coordinates.
    order: None leaves positions as they are.
    canvas: the mask's own, or None.
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
        if side in rows:
            found[side] = Place(apply("max", rows[side], const(0)), {}, apply("ge", rows[side], const(0)))
        elif order is not None:
            found[side] = order.place(var(side), length)
    return found


def relocate(
    expr: Expr, order: Order | None, canvas: Canvas | None, q_len: int, kv_len: int, rows: Rows | None = None
) -> Expr:
    """An expression over memory positions: logical positions and coordinates written by the order (see `in_memory`).

    Raises FS026 (a value of the pattern has the name of the order's table) and FS033 (an order of another length).
    """
    if order is None and not rows:
        return flatten(expr, canvas)
    if isinstance(order, Table) and TOKEN_AT in expr.names:
        message = f"`{TOKEN_AT}` is a value of the pattern, and the table of {order}"
        raise FlexSpecError("FS026", message, fix="rename the pattern's", where=user_caret())
    values: dict[str, Expr] = {}
    if order is not None:
        order.check(q_len, kv_len)
    for side, place in _places(order, q_len, kv_len, rows or {}).items():
        coordinates = place.coordinates if order is not None and canvas == order.canvas else {}
        if canvas and not coordinates:
            coordinates = canvas.coordinates(place.logical)
        values |= {side: place.logical} | {f"{side}.{name}": part for name, part in coordinates.items()}
    return flatten(substitute(expr, values), canvas)


def flatten(expr: Expr, canvas: Canvas | None) -> Expr:
    """`expr` with coordinates written as arithmetic on row-major positions."""
    if canvas is None:
        return expr
    values = {f"{side}.{name}": part for side in ("q", "kv") for name, part in canvas.coordinates(var(side)).items()}
    return substitute(expr, values)


def bound_in_memory(bound: Bound, order: Order | None, device: torch.device | str) -> Bound:
    """The values of a mask together with the table that it loads from in memory, if the order has one.

    Raises FS022 where the order is of another number of sequences than the call.
    """
    tables = {} if order is None else order.tensors(device)
    if TOKEN_AT not in tables:
        return bound
    table, sizes = tables[TOKEN_AT], bound.sizes
    if table.dim() == 2 and sizes.batch not in (None, len(table)):
        message = f"{order} is of {len(table)} sequences, the call has batch {sizes.batch}"
        raise FlexSpecError("FS022", message, where=user_caret())
    sizes = replace(sizes, batch=len(table)) if table.dim() == 2 else sizes
    return replace(bound, tensors={**bound.tensors, TOKEN_AT: table}, sizes=sizes)
