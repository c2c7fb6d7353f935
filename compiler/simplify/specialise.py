"""Values filled in: an expression for each (batch, head), equal ones being one object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from flexspec.errors import FlexSpecError
from flexspec.expr import Const, Expr, Load, const, params_of, substitute, transform, walk
from flexspec.inputs import Bound
from flexspec.ops import Type
from flexspec.user_line import user_caret

from ..evaluation.points import Array, evaluate_at
from .rules import rewritten, simplify


def specialise(expr: Expr, values: Mapping[str, int | float | bool], tensors: Mapping[str, Array]) -> Expr:
    """`expr` with parameters, sizes or positions fixed to `values`, loads at fixed places read, and simplified."""
    read = tuple((name, value, repr(value)) for name, value in values.items() if name in expr.names)
    filled = _filled(expr, read)

    def fixed(node: Expr) -> bool:
        known = isinstance(node, Load) and node.input.name in tensors
        return known and all(isinstance(part, Const) for part in node.children)

    def visit(node: Expr) -> Expr:
        return _constant(evaluate_at(node, {}, tensors).item(), node.type) if fixed(node) else rewritten(node)

    return transform(filled, visit) if any(map(fixed, walk(filled))) else filled


@lru_cache(512)
def _filled(expr: Expr, values: tuple[tuple[str, int | float | bool, str], ...]) -> Expr:
    """`expr` with these values, simplified. Kept, as a mask meets new lengths more often than new numbers.

    The third of each value is its text: 1, 1.0 and True are equal keys, and so are 0.0 and -0.0.
    """
    kinds = {name: node.type for name, node in params_of(expr).items()}
    return simplify(substitute(expr, {name: _constant(value, kinds.get(name)) for name, value, _ in values}))


def _constant(value: bool | int | float, kind: Type | None) -> Const:
    """A value as it is at run time: a float parameter has 32 bits, and a double keeps its own."""
    return const(float(np.float32(value)) if kind is Type.FLOAT else value, kind)


MOST_MASKS = 1 << 22
"""Most pairs of batch and head of which each has its own expression."""


def specialise_each(expr: Expr, bound: Bound, tensors: Mapping[str, Array]) -> Any:
    """The expression of each (batch, head), an object array [batch | 1, heads | 1]; equal ones are one object.

    A (b, h) enters an expression only through the parts that depend on `b` and `h` alone and through what stands above
    them. Where all of these parts have equal values, the expressions are equal, and are simplified once.
    """
    whole = specialise(expr, bound.all_numbers(), {})
    batch = (bound.sizes.batch or 1) if "b" in whole.names else 1
    heads = (bound.sizes.heads or 1) if "h" in whole.names else 1
    if batch * heads > MOST_MASKS:
        message = f"the pattern depends on the batch or the head, and {batch * heads:,} of them are to be told apart"
        raise FlexSpecError("FS030", message, fix=f"give at most {MOST_MASKS:,}", where=user_caret())
    exprs = np.empty((batch, heads), object)
    by_values: dict[tuple[Any, ...], Expr] = {}
    for (b, h), values in _told_apart(whole, batch, heads, tensors):
        if values not in by_values:
            indices = {name: index for name, index in (("b", b), ("h", h)) if name in whole.names}
            by_values[values] = specialise(whole, indices, tensors)
        exprs[b, h] = by_values[values]
    for axis in (0, 1):
        if (exprs == exprs.take([0], axis)).all():
            exprs = exprs.take([0], axis)
    return exprs


def _told_apart(
    expr: Expr, batch: int, heads: int, tensors: Mapping[str, Array]
) -> Iterator[tuple[tuple[int, int], tuple[Any, ...]]]:
    """Each (b, h), and the values of all parts that depend on these alone: where they agree, so does the expression."""
    parts, stack = [], [expr]
    while stack:
        node = stack.pop()
        if {"q", "kv", "score"} & {name.partition(".")[0] for name in node.names}:  # q.h is of a query too
            stack.extend(node.children)
        elif node.names & {"b", "h"}:
            parts.append(node)
    indices = {"b": np.arange(batch)[:, None], "h": np.arange(heads)[None, :]}
    values = [np.broadcast_to(evaluate_at(part, indices, tensors), (batch, heads)) for part in dict.fromkeys(parts)]
    for b, h in np.ndindex(batch, heads):
        yield (b, h), tuple(repr(value[b, h]) for value in values)
