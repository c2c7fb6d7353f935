"""Integer sums with each term once: `{term: coefficient}, constant`, and back to an expression."""

from __future__ import annotations

from collections.abc import Mapping

from flexspec.expr import Apply, Const, Expr, apply, const
from flexspec.ops import Type

Linear = tuple[dict[Expr, int], int]


def linear(node: Expr) -> Linear:
    """An integer expression as `{term: coefficient}, constant`; a term is anything that is not a sum."""
    if isinstance(node, Const):
        return {}, int(node.value)
    if isinstance(node, Apply) and node.type is Type.INT:
        if node.op in ("add", "sub"):
            return added(linear(node.args[0]), linear(node.args[1]), 1 if node.op == "add" else -1)
        if node.op == "neg":
            return added(({}, 0), linear(node.args[0]), -1)
        if node.op == "mul":
            for a, b in (node.args, node.args[::-1]):
                if isinstance(b, Const):
                    return added(({}, 0), linear(a), int(b.value))
        if node.op == "int" and node.args[0].type is Type.BOOL:
            return {node: 1}, 0
    return {node: 1}, 0


def added(a: Linear, b: Linear, times: int) -> Linear:
    terms = dict(a[0])
    for term, count in b[0].items():
        terms[term] = terms.get(term, 0) + times * count
    return {term: count for term, count in terms.items() if count}, a[1] + times * b[1]


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


def cast(x: Expr, to: Type) -> Expr:
    return x if x.type is to else apply(to.text, x)
