"""Shorten a conjunction by what its own parts say: `x & ~(x & y)` is `x & ~y`, and `q >= kv` rules out `kv > q`.

Most proofs about a mask end here, before any box is bounded: the parts of `a & ~b` contradict each other.
"""

from __future__ import annotations

from collections.abc import Sequence

from flexspec.expr import Apply, Const, Expr, apply, const, transform, walk
from flexspec.ops import NEGATED, Type

from ..simplify.linear import linear
from ..simplify.rules import simplify

MOST_PARTS = 32
"""A longer conjunction is left as it is: each part is read once for each other that changes."""
_END = 2**63
Terms = frozenset[tuple[Expr, int]]
Limits = tuple[int, int]
_EVERYTHING: Limits = (-_END, _END)


def reduced(expr: Expr) -> Expr:
    """An expression that keeps the same places; False where its parts contradict each other.

    expr: boolean, and simplified as `specialise` leaves it.
    """
    done: list[Expr] = []
    left = conjuncts(expr)
    if len(left) > MOST_PARTS:
        return expr
    while left:
        part, *left = left
        new = conjuncts(_under(part, done + left))
        if any(isinstance(each, Const) for each in new):
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


def _comparison(node: Expr) -> tuple[Expr, str, int] | None:
    """A comparison of an integer sum with a constant: the sum, the operator, the constant."""
    if not isinstance(node, Apply) or node.op not in NEGATED:
        return None
    left, right = node.args
    if left.type is not Type.INT or not isinstance(right, Const) or right.type > Type.INT or _may_wrap(left):
        return None
    return left, node.op, int(right.value)


def _may_wrap(node: Expr) -> bool:
    """Can it be the one integer that has no negative: a shifted bit, a cast float?"""
    applied = [part for part in walk(node) if isinstance(part, Apply)]
    return any(part.op == "lshift" or (part.op == "int" and part.args[0].type > Type.INT) for part in applied)


def _inside(op: str, right: int) -> Limits:
    low = {"gt": right + 1, "ge": right, "eq": right}.get(op, -_END)
    return low, {"lt": right - 1, "le": right, "eq": right}.get(op, _END)


def _learn(fact: Expr, ranges: dict[Terms, Limits]) -> None:
    """Narrow the ranges of sums by a comparison that is true; `abs(x) < c` bounds `x` too."""
    found = _comparison(fact)
    if found is None or found[1] == "ne":
        return
    total, op, right = found
    low, high = _inside(op, right)
    _narrow(total, low, high, ranges)
    if isinstance(total, Apply) and total.op == "abs" and high < _END:
        _narrow(total.args[0], -high, high, ranges)


def _narrow(total: Expr, low: int, high: int, ranges: dict[Terms, Limits]) -> None:
    terms, constant = linear(total)
    if constant:
        return
    for sign, ends in ((1, (low, high)), (-1, (-high, -low))):
        key = frozenset((term, sign * count) for term, count in terms.items())
        old = ranges.get(key, _EVERYTHING)
        ranges[key] = max(old[0], ends[0]), min(old[1], ends[1])


def _decided(node: Expr, ranges: dict[Terms, Limits]) -> bool | None:
    """What the ranges make of a comparison."""
    found = _comparison(node)
    if found is None:
        return None
    total, op, right = found
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
    return low, high
