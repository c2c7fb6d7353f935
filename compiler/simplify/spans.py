"""Masks as spans along one side: `first <= kv < end` for each query, and what must be asked of each pair.

The ends are expressions without that side, so a kernel computes them once for a tile and not for every pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, reduce
from typing import NamedTuple

from flexspec.expr import Apply, Expr, apply, const, var
from flexspec.ops import Type

from .linear import NOTHING, Linear, added, from_linear, linear
from .rules import may_wrap, simplify

MOST = 2**31 - 1
"""More than any position."""


class Span(NamedTuple):
    """A mask is `first <= position` and `position < end` and `rest`, without the positions of a hole: `hole_first <=
    position < hole_end`. None: it does not limit.
    """

    first: Expr | None
    end: Expr | None
    rest: Expr | None
    hole_first: Expr | None = None
    hole_end: Expr | None = None


class Limit(NamedTuple):
    """One end of a span: `end` is "first" or "end", as the fields of `Span`."""

    end: str
    value: Expr


@lru_cache(maxsize=512)
def span_of(mask: Expr, side: str) -> Span:
    """A boolean expression as a span along `side`, "q" or "kv", of positions that are not negative.

    Parts of the conjunction that are linear in the side, with the factor 1 or -1, become ends, and so do those without
    it; one that is the union of what ends and of what begins has a hole between them; the others are the rest.

    >>> from flexspec.syntax import parse
    >>> span_of(parse("(q - kv >= 0) & (abs(q - kv) < 8) & (kv % 3 == 0)"), "kv")
    Span(first=q - 7, end=min(q + 1, q + 8), rest=kv % 3 == 0, hole_first=None, hole_end=None)
    """
    firsts: list[Expr] = []
    ends: list[Expr] = []
    rest: list[Expr] = []
    hole: dict[str, Expr] = {}
    for part in parts_of(simplify(mask)):
        if side not in part.names:
            if part is not const(True):  # without it nothing is kept: no position lies before 0
                ends.append(apply("where", part, const(MOST), const(0)))
            continue
        limits = _limits(part, side)
        for limit in limits:
            (firsts if limit.end == "first" else ends).append(limit.value)
        if limits:
            continue
        union = _union(part, side)
        if len(union) == 2 and not hole:  # two holes are rare, and cost as much as the rest does
            hole = {name: simplify(value) for name, value in union.items()}
        else:
            rest.append(part)
    spans = _joined("max", firsts), _joined("min", ends), _joined("and", rest)
    return Span(*spans, hole.get("end"), hole.get("first"))


def _joined(op: str, parts: list[Expr]) -> Expr | None:
    return simplify(reduce(lambda a, b: apply(op, a, b), dict.fromkeys(parts))) if parts else None


def parts_of(mask: Expr) -> Iterator[Expr]:
    """What a mask is the conjunction of."""
    return _operands(mask, "and")


def _operands(mask: Expr, op: str) -> Iterator[Expr]:
    """What is joined by "and", or by "or"."""
    if isinstance(mask, Apply) and mask.op == op and mask.type is Type.BOOL:
        for arg in mask.args:
            yield from _operands(arg, op)
    else:
        yield mask


def _limits(part: Expr, side: str) -> list[Limit]:
    """The ends that a part is the same as; none where it is no span.

    Every comparison is brought to sums that are at most 0: of integers, `a < b` is `a - b + 1 <= 0`, and `a == b` is
    both `a - b <= 0` and `b - a <= 0`.
    """
    if not isinstance(part, Apply):
        return []
    if part.op == "or":
        union = _union(part, side)
        return [Limit(*limit) for limit in union.items()] if len(union) == 1 else []
    if part.op not in ("lt", "le", "gt", "ge", "eq") or any(arg.type is not Type.INT for arg in part.args):
        return []
    less = added(linear(part.args[0]), linear(part.args[1]), -1)
    more = added(NOTHING, less, -1)
    strict = int(part.op in ("lt", "gt"))
    sums = {"lt": [less], "le": [less], "gt": [more], "ge": [more], "eq": [less, more]}[part.op]
    plain = [total for terms, constant in sums for total in _signs(Linear(terms, constant + strict))]
    solved = [_solved(total, side, may_wrap(part)) for total in plain]
    return [limit for limit in solved if limit] if all(solved) else []


def _union(part: Expr, side: str) -> dict[str, Expr]:
    """A disjunction as the limits that it is the union of, by their `end`: `kv < a | kv < b` is `kv < max(a, b)`.

    One limit is a span. Two leave out the positions from "end" to "first". Nothing: it is neither.
    """
    union: dict[str, Expr] = {}
    whole: list[Expr] = []
    for each in _operands(part, "or"):
        if side not in each.names:
            whole.append(each)
            continue
        limits = _limits(each, side)
        if len(limits) != 1:
            return {}
        end, value = limits[0]
        wider = "max" if end == "end" else "min"
        union[end] = apply(wider, union[end], value) if end in union else value
    for each in whole:  # where it is true, every position is kept
        end, everything = ("end", MOST) if "end" in union else ("first", 0)
        union[end] = apply("where", each, const(everything), union[end])
    return union


def _signs(total: Linear) -> Iterator[Linear]:
    """Sums that are all at most 0 where `total` is, without `abs`.

    `abs(a)` is the greater of `a` and `-a`, so `abs(a) + b <= 0` where both `a + b` and `b - a` are. Of `b - abs(a)`
    one of two would do, which is no conjunction: it stays.
    """
    size = next((term for term, count in total.terms.items() if _is_abs(term) and count == 1), None)
    if size is None:
        yield total
        return
    others = {term: count for term, count in total.terms.items() if term is not size}
    for sign in (1, -1):
        yield from _signs(added(Linear(others, total.constant), linear(size.children[0]), sign))


def _is_abs(term: Expr) -> bool:
    return isinstance(term, Apply) and term.op == "abs"


def _solved(total: Linear, side: str, wraps: bool) -> Limit | None:
    """`total <= 0` for the position; None where it is not alone, or is multiplied.

    `rest - kv <= 0` is `kv >= rest`; `rest + kv <= 0` is `kv < 1 - rest`.
    """
    position = var(side)
    factor = total.terms.get(position, 0)
    others = {term: count for term, count in total.terms.items() if term is not position}
    if factor not in (1, -1) or any(side in term.names for term in others):
        return None
    if wraps:
        # A tensor's number of any size, compared: one more or less may start again past 64 bits. Cut off to -2 and to
        # MOST - 1, it lies on the same side of every position, and one more or less does too.
        if len(others) != 1 or abs(total.constant) > 1:
            return None
        ((number, count),) = others.items()
        if count != -factor:
            return None
        others = {apply("max", const(-2), apply("min", number, const(MOST - 1))): count}
    if factor == -1:
        return Limit("first", from_linear(others, total.constant))
    return Limit("end", from_linear({term: -count for term, count in others.items()}, 1 - total.constant))
