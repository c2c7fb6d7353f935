"""Bring an expression to the form in which its bounds are tight: values filled in, constants folded, and
integer comparisons as `sum of terms < constant` with each term once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce

from flexspec.errors import FlexSpecError
from flexspec.expr import Apply, Const, Expr, Load, apply, const, transform, walk
from flexspec.ops import NEGATED, OPS, SWAPPED, Type

from ..evaluation.points import evaluate_at
from .limits import endless, limits
from .linear import Linear, added, cast, from_linear, linear

Rule = Callable[[Apply], Expr | None]


def simplify(expr: Expr) -> Expr:
    """An expression with the same value everywhere, bounded more tightly. Integers are taken as unbounded."""
    return transform(expr, rewritten)


def rewritten(node: Expr) -> Expr:
    while isinstance(node, Apply):
        new = next((new for rule in RULES if (new := rule(node)) is not None and new is not node), None)
        if new is None:
            return node
        node = new
    return node


def fold(node: Apply) -> Expr | None:
    """Constants only: the constant result. Doubles stay, as a constant is printed without its type."""
    if node.type is Type.DOUBLE or not all(isinstance(arg, Const) for arg in node.args):
        return None
    try:
        value = evaluate_at(node, {}, {}).item()
    except FlexSpecError:  # a division by zero belongs to whoever evaluates that pair
        return None
    return const(value)


def logic(node: Apply) -> Expr | None:
    """Boolean identities: `x & True`, `x | x`, `~~x`, `~(a < b)`."""
    if node.type is not Type.BOOL:
        return None
    if node.op == "not":
        (x,) = node.args
        if isinstance(x, Apply) and x.op == "not":
            return x.args[0]
        if isinstance(x, Apply) and x.op in NEGATED and max(arg.type for arg in x.args) <= Type.INT:
            return apply(NEGATED[x.op], *x.args)
        return None
    if node.op in ("and", "or", "xor"):
        a, b = node.args
        if isinstance(a, Const):
            a, b = b, a
        if a is b:
            return const(False) if node.op == "xor" else a
        if isinstance(b, Const):
            keep = {"and": True, "or": False, "xor": False}[node.op]
            return a if b.value == keep else apply("not", a) if node.op == "xor" else b
    return None


def choose(node: Apply) -> Expr | None:
    """`where` with a known condition or equal branches."""
    if node.op != "where":
        return None
    condition, yes, no = node.args
    if isinstance(condition, Const):
        return cast(yes if condition.value else no, node.type)
    return cast(yes, node.type) if yes is no else None


def casts(node: Apply) -> Expr | None:
    """A cast to the type that is there; the truth of a number."""
    if node.op == node.type.text and node.args[0].type is node.type:
        return node.args[0]
    if node.op == "bool" and node.args[0].type is Type.INT:
        return apply("ne", node.args[0], const(0))
    return None


def arithmetic(node: Apply) -> Expr | None:
    """`x // 1`, `x % 1`, `min(x, x)`, nested `//` and `%` by positive constants."""
    if node.type is not Type.INT or len(node.args) != 2:
        return None
    x, c = node.args
    if node.op in ("min", "max") and x is c:
        return cast(x, Type.INT)
    if not isinstance(c, Const) or c.value <= 0:
        return None
    if node.op == "floordiv":
        if c.value == 1:
            return cast(x, Type.INT)
        inner = _by_constant(x, "floordiv")
        return apply("floordiv", inner[0], const(inner[1] * int(c.value))) if inner else None
    if node.op == "mod":
        if c.value == 1:
            return const(0)
        inner = _by_constant(x, "mod")
        return apply("mod", inner[0], c) if inner and inner[1] % c.value == 0 else None
    return None


def digits(node: Apply) -> Expr | None:
    """`(6 * a + b) // 6` and `(6 * a + b) % 6`: multiples of the divisor leave, and `b` goes where it fits below it."""
    if node.type is not Type.INT or node.op not in ("floordiv", "mod"):
        return None
    x, c = node.args
    if not isinstance(c, Const) or c.value <= 0 or endless(x):
        return None
    divisor = int(c.value)
    terms, constant = linear(x)
    whole = {term: count // divisor for term, count in terms.items() if count % divisor == 0}
    rest = {term: count for term, count in terms.items() if count % divisor}
    left = from_linear(rest, constant % divisor)
    lo, hi = limits(left)
    fits = lo >= 0 and hi < divisor
    if not (fits or whole or constant // divisor) or not _fits(terms, constant):
        return None
    if node.op == "mod":
        return left if fits else apply("mod", left, c)
    if not fits:
        whole[rewritten(apply("floordiv", left, c))] = 1
    return from_linear(whole, constant // divisor)


def _by_constant(x: Expr, op: str) -> tuple[Expr, int] | None:
    if isinstance(x, Apply) and x.op == op and x.type is Type.INT:
        a, c = x.args
        if isinstance(c, Const) and c.value > 0:
            return a, int(c.value)
    return None


def _fits(terms: Mapping[Expr, int], constant: int) -> bool:
    """Is a sum of positions like this far from 64 bits? Others stay, so that bounds see the product and refuse it."""
    return all(abs(count) < 2**31 for count in terms.values()) and abs(constant) < 2**62


def _count_terms(node: Expr) -> int:
    if isinstance(node, Apply) and node.type is Type.INT and node.op in ("add", "sub", "neg", "mul"):
        return sum(_count_terms(arg) for arg in node.args)
    return 1


def sums(node: Apply) -> Expr | None:
    """A sum in which a term or a constant occurs twice: each once; digits that follow each other: one."""
    if node.type is not Type.INT or node.op not in ("add", "sub", "neg", "mul"):
        return None
    found = linear(node)
    terms, constant = joined = _joined_digits(found)
    if not _fits(terms, constant):
        return None
    new = from_linear(terms, constant)
    return new if joined is not found or _count_terms(new) < _count_terms(node) else None


def _joined_digits(sum_: Linear) -> Linear:
    """`x // 30 * 30 + x % 30` is `x`, and so with any two digits of one number that follow each other."""
    terms, constant = sum_
    digits = [(*found, term, count) for term, count in terms.items() if (found := _digit(term))]
    for low, (x, below, stride, small, times) in enumerate(digits):
        for high, (y, above, step, large, count) in enumerate(digits):
            if low == high or y is not x or step != below or step % stride or count != times * (step // stride):
                continue
            if above is None or above % step == 0:
                whole = x if above is None else apply("mod", x, const(above))
                whole = whole if stride == 1 else apply("floordiv", whole, const(stride))
                left = {term: count for term, count in terms.items() if term not in (small, large)}
                return _joined_digits(added((left, constant), linear(whole), times))
    return sum_


def _digit(term: Expr) -> tuple[Expr, int | None, int] | None:
    """A term that is `x % modulus // stride`: `x`, modulus (None: no remainder is taken), stride."""
    inner, stride = _by_constant(term, "floordiv") or (term, 1)
    x, modulus = _by_constant(inner, "mod") or (inner, None)
    if modulus and stride == 1 and (deeper := _by_constant(x, "floordiv")):
        return deeper[0], modulus * deeper[1], deeper[1]  # `x // 5 % 7` is `x % 35 // 5`
    return None if x is term else (x, modulus, stride)


def may_wrap(comparison: Apply) -> bool:
    """Would a difference of the two sides wrap at 64 bits, where the comparison does not?

    A tensor may hold any integer, too (in a sum it may not: see `integer_range.check_range`).
    """
    if endless(comparison):
        return True
    ordered = comparison.op not in ("eq", "ne") and not any(isinstance(side, Const) for side in comparison.args)
    return ordered and any(
        isinstance(node, Load) and _count_terms(side) == 1 for side in comparison.args for node in walk(side)
    )


def compare(node: Apply) -> Expr | None:
    """An integer comparison as `terms < constant`, divided by the terms' common factor."""
    if node.op not in NEGATED or max(arg.type for arg in node.args) > Type.INT:
        return None
    if all(arg.type is Type.BOOL for arg in node.args):
        same = apply("xor", *node.args)
        return {"ne": same, "eq": apply("not", same)}.get(node.op)
    terms, constant = added(linear(node.args[0]), linear(node.args[1]), -1)
    if not _fits(terms, constant):
        return None
    op, right = node.op, -constant
    if may_wrap(node):
        return None
    if not terms:
        return const(bool(OPS[op].numpy(0, right)))
    if all(count < 0 for count in terms.values()):
        terms, right, op = {term: -count for term, count in terms.items()}, -right, SWAPPED[op]
    factor = reduce(math.gcd, terms.values())
    if factor > 1:
        terms = {term: count // factor for term, count in terms.items()}
        if op in ("eq", "ne") and right % factor:
            return const(op == "ne")
        right = -(-right // factor) if op in ("lt", "ge") else right // factor
    return apply(op, from_linear(terms, 0), const(right))


RULES: tuple[Rule, ...] = (fold, casts, logic, choose, arithmetic, digits, sums, compare)
