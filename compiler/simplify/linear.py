"""Integer sums with each term once: `{term: coefficient}, constant`, and back to an expression.

Regrouping changes no value, not even past 64 bits: there integers are added and multiplied modulo 2**64, where the same
laws hold. What division, remainder or comparison makes of a sum is another matter, and theirs to ask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from flexspec.expr import Apply, Const, Expr, apply, const
from flexspec.ops import Type


class Linear(NamedTuple):
    """The sum of `coefficient * term` over all terms, no coefficient being 0, and of the constant."""

    terms: dict[Expr, int]
    constant: int


NOTHING = Linear({}, 0)


def linear(node: Expr) -> Linear:
    """An integer expression as `{term: coefficient}, constant`; a term is anything that is not a sum."""
    if isinstance(node, Const):
        return Linear({}, int(node.value))
    if isinstance(node, Apply) and node.type is Type.INT:
        if node.op in ("add", "sub"):
            return added(linear(node.args[0]), linear(node.args[1]), 1 if node.op == "add" else -1)
        if node.op == "neg":
            return added(NOTHING, linear(node.args[0]), -1)
        if node.op == "mul":
            for operand, factor in (node.args, node.args[::-1]):
                if isinstance(factor, Const):
                    return added(NOTHING, linear(operand), int(factor.value))
    return Linear({node: 1}, 0)


def added(a: Linear, b: Linear, times: int) -> Linear:
    """`a + times * b`; terms that cancel are left out."""
    terms = dict(a.terms)
    for term, count in b.terms.items():
        terms[term] = terms.get(term, 0) + times * count
    kept = {term: count for term, count in terms.items() if count}
    return Linear(kept, a.constant + times * b.constant)


def from_linear(terms: Mapping[Expr, int], constant: int) -> Expr:
    """The sum as an expression: positive terms, negative terms, the constant."""
    parts = sorted(terms.items(), key=lambda item: item[1] < 0)
    total: Expr | None = None
    for term, count in parts:
        size = abs(count)
        piece = term if size == 1 else apply("mul", term, const(size))
        if total is None:
            total = piece if count > 0 else apply("neg", piece)
        else:
            total = apply("add" if count > 0 else "sub", total, piece)
    if total is None:
        return const(constant)
    if constant == 0:
        return cast(total, Type.INT)
    return apply("add" if constant > 0 else "sub", total, const(abs(constant)))


def cast(node: Expr, to: Type) -> Expr:
    return node if node.type is to else apply(to.text, node)
