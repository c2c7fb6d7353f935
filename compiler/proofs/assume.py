"""Shorten a conjunction by what its own parts say: `x & ~(x & y)` is `x & ~y`, and `q >= kv` rules out `kv > q`.

Most proofs about a mask end here, before any box is bounded: the parts of `a & ~b` contradict each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flexspec.expr import Apply, Const, Expr, apply, const, transform, walk
from flexspec.ops import NEGATED, Type

from ..simplify.linear import linear
from ..simplify.rules import simplify

MOST_PARTS = 32
"""A longer conjunction is left as it is: each part is read once for each other that changes."""
_END = 2**63
Terms = frozenset[tuple[Expr, int]]
"""An integer sum without its constant: each term with its factor."""


class Limits(NamedTuple):
    """The least and the largest value of an integer, both included."""

    low: int
    high: int


_EVERYTHING = Limits(-_END, _END)


class Comparison(NamedTuple):
    """An integer sum compared with a constant by the operator `op`."""

    total: Expr
    op: str
    right: int


def reduced(expr: Expr) -> Expr:
    """An expression that keeps the same places; False where its parts contradict each other.

    expr: boolean, and simplified as `specialise` leaves it.
    """
    # Where the whole is true, all of its parts are. So a part may be replaced by anything that equals it wherever the
    # others hold: where one of them fails, both wholes are false. Each step does this to one part, with the others as
    # they are by then, so that no two parts vouch for each other.
    done: list[Expr] = []
    left = conjuncts(expr)
    if len(left) > MOST_PARTS:
        return expr
    while left:
        part, *left = left
        new = conjuncts(_under(part, done + left))
        if any(isinstance(conjunct, Const) for conjunct in new):
            return const(False)
        if new == [part]:
            done.append(part)
        else:  # shorter than before, so this ends; what was done may now say more
            done, left = [], list(dict.fromkeys([*done, *new, *left]))
    if not done:
        return const(True)
    whole = done[0]
    for part in done[1:]:
        whole = apply("and", whole, part)
    return whole


def conjuncts(expr: Expr, holds: bool = True) -> list[Expr]:
    """The parts of `expr` (of `~expr` where it does not hold) that must all be true."""
    if isinstance(expr, Apply) and expr.op == "not":
        return conjuncts(expr.args[0], not holds)
    if isinstance(expr, Apply) and expr.op == ("and" if holds else "or"):
        return list(dict.fromkeys(part for arg in expr.args for part in conjuncts(arg, holds)))
    part = expr if holds else simplify(apply("not", expr))
    return [] if isinstance(part, Const) and part.value else [part]


def _under(part: Expr, others: Sequence[Expr]) -> Expr:
    """`part` where all of `others` are true."""
    known = dict.fromkeys(others, True)
    known |= {other.args[0]: False for other in others if isinstance(other, Apply) and other.op == "not"}
    ranges: dict[Terms, Limits] = {}
    for other in others:
        _learn(other, ranges)
    if any(low > high for low, high in ranges.values()):
        return const(False)

    def visit(node: Expr) -> Expr:
        value = known.get(node)
        if value is None:
            value = _decided(node, ranges)
        return node if value is None else const(value)

    return simplify(transform(part, visit))


def _comparison(node: Expr) -> Comparison | None:
    """The node as a comparison of an integer sum with a constant, where it is one."""
    if not isinstance(node, Apply) or node.op not in NEGATED:
        return None
    left, right = node.args
    if left.type is not Type.INT or not isinstance(right, Const) or right.type > Type.INT or _may_wrap(left):
        return None
    return Comparison(left, node.op, int(right.value))


def _may_wrap(node: Expr) -> bool:
    """Can it be the one integer that has no negative: a shifted bit, a cast float?"""
    applied = [part for part in walk(node) if isinstance(part, Apply)]
    return any(part.op == "lshift" or (part.op == "int" and part.args[0].type > Type.INT) for part in applied)


def _inside(op: str, right: int) -> Limits:
    """The values that `op` keeps, of "eq" or an inequality."""
    low = {"gt": right + 1, "ge": right, "eq": right}.get(op, -_END)
    return Limits(low, {"lt": right - 1, "le": right, "eq": right}.get(op, _END))


def _learn(fact: Expr, ranges: dict[Terms, Limits]) -> None:
    """Narrow the ranges of sums by a comparison that is true; `abs(x) < c` bounds `x` too."""
    comparison = _comparison(fact)
    if comparison is None or comparison.op == "ne":
        return
    total = comparison.total
    low, high = _inside(comparison.op, comparison.right)
    _narrow(total, low, high, ranges)
    if isinstance(total, Apply) and total.op == "abs" and high < _END:
        _narrow(total.args[0], -high, high, ranges)


def _narrow(total: Expr, low: int, high: int, ranges: dict[Terms, Limits]) -> None:
    terms, constant = linear(total)
    if constant:
        return
    for sign, limits in ((1, Limits(low, high)), (-1, Limits(-high, -low))):  # `kv - q` is known with `q - kv`
        key = frozenset((term, sign * factor) for term, factor in terms.items())
        known = ranges.get(key, _EVERYTHING)
        ranges[key] = Limits(max(known.low, limits.low), min(known.high, limits.high))


def _decided(node: Expr, ranges: dict[Terms, Limits]) -> bool | None:
    """What the ranges make of a comparison."""
    comparison = _comparison(node)
    if comparison is None:
        return None
    total, op, right = comparison
    low, high = _range(total, ranges)
    first, last = _inside("eq" if op == "ne" else op, right)
    value = True if first <= low and high <= last else False if high < first or last < low else None
    return value if value is None or op != "ne" else not value


def _range(total: Expr, ranges: dict[Terms, Limits]) -> Limits:
    terms, constant = linear(total)
    low, high = ranges.get(frozenset(terms.items()), _EVERYTHING) if not constant else _EVERYTHING
    if isinstance(total, Apply) and total.op == "abs":
        inner_low, inner_high = _range(total.args[0], ranges)
        low, high = max(low, 0, inner_low, -inner_high), min(high, max(-inner_low, inner_high))
    return Limits(low, high)
