"""Bring an expression to the form in which its bounds are tight: values filled in, constants folded, and
integer comparisons as `sum of terms < constant` with each term once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from typing import NamedTuple

from flexspec.errors import FlexSpecError
from flexspec.expr import Apply, Const, Expr, Load, apply, const, transform, walk
from flexspec.ops import NEGATED, OPS, SWAPPED, Type

from ..evaluation.points import evaluate_at
from .limits import FAR, endless, limits
from .linear import Linear, added, cast, from_linear, linear

Rewrite = Callable[[Apply], Expr | None]
"""A node with the same value everywhere, or None where there is nothing to do."""


def simplify(expr: Expr) -> Expr:
    """An expression with the same value everywhere, bounded more tightly. Integers are taken as unbounded."""
    return transform(expr, rewritten)


def rewritten(node: Expr) -> Expr:
    """A node whose operands are simplified already, rewritten until no rewrite applies."""
    while isinstance(node, Apply):
        new = next((new for rewrite in REWRITES if (new := rewrite(node)) is not None and new is not node), None)
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
        (operand,) = node.args
        if isinstance(operand, Apply) and operand.op == "not":
            return operand.args[0]
        # Of integers only: of a NaN both `a < b` and `a >= b` are false.
        if isinstance(operand, Apply) and operand.op in NEGATED and max(arg.type for arg in operand.args) <= Type.INT:
            return apply(NEGATED[operand.op], *operand.args)
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
    """`x // 1`, `x % 1`, `min(x, x)`, nested `//` and `%` by positive constants.

    `x // m // n` is `x // (m * n)`: both count the multiples of `m * n` that `x` has passed, as floors are taken
    downwards each time. `x % m % n` is `x % n` where `n` divides `m`: what `% m` takes away are multiples of `n` too.
    """
    if node.type is not Type.INT or len(node.args) != 2:
        return None
    left, right = node.args
    if node.op in ("min", "max") and left is right:
        return cast(left, Type.INT)
    if not isinstance(right, Const) or right.value <= 0:
        return None
    if node.op == "floordiv":
        if right.value == 1:
            return cast(left, Type.INT)
        inner = _by_constant(left, "floordiv")
        if inner is None or inner.constant * int(right.value) >= FAR:  # the product has to fit 64 bits itself
            return None
        return apply("floordiv", inner.operand, const(inner.constant * int(right.value)))
    if node.op == "mod":
        if right.value == 1:
            return const(0)
        inner = _by_constant(left, "mod")
        return apply("mod", inner.operand, right) if inner and inner.constant % right.value == 0 else None
    return None


def digits(node: Apply) -> Expr | None:
    """`(6 * a + b) // 6` and `(6 * a + b) % 6`: multiples of the divisor leave, and `b` goes where it fits below it.

    Division rounds down, so for all integers, negative ones too, `(n * a + b) // n` is `a + b // n` and
    `(n * a + b) % n` is `b % n`; with `0 <= b < n` these are `a` and `b`. A sum that starts again past 64 bits has lost
    a multiple of 2**64, which few divisors divide: where one may (`endless`), nothing leaves.
    """
    if node.type is not Type.INT or node.op not in ("floordiv", "mod"):
        return None
    dividend, right = node.args
    if not isinstance(right, Const) or right.value <= 0 or endless(dividend):
        return None
    divisor = int(right.value)
    terms, constant = linear(dividend)
    whole = {term: count // divisor for term, count in terms.items() if count % divisor == 0}
    others = {term: count for term, count in terms.items() if count % divisor}
    rest = from_linear(others, constant % divisor)
    least, most = limits(rest)
    below = least >= 0 and most < divisor
    if not (below or whole or constant // divisor) or not _fits(terms, constant):
        return None
    if node.op == "mod":
        return rest if below else apply("mod", rest, right)
    if not below:
        whole[rewritten(apply("floordiv", rest, right))] = 1
    return from_linear(whole, constant // divisor)


class ByConstant(NamedTuple):
    """A division or remainder by a positive constant."""

    operand: Expr
    constant: int


def _by_constant(node: Expr, op: str) -> ByConstant | None:
    if isinstance(node, Apply) and node.op == op and node.type is Type.INT:
        operand, right = node.args
        if isinstance(right, Const) and right.value > 0:
            return ByConstant(operand, int(right.value))
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
    plain = linear(node)
    joined = _joined_digits(plain)
    if not _fits(*joined):
        return None
    new = from_linear(*joined)
    return new if joined is not plain or _count_terms(new) < _count_terms(node) else None


class Digit(NamedTuple):
    """A term that is `number % modulus // stride`; modulus None: no remainder is taken."""

    number: Expr
    modulus: int | None
    stride: int


def _joined_digits(total: Linear) -> Linear:
    """`x // 30 * 30 + x % 30` is `x`, and so with any two digits of one number that follow each other.

    Let `y = x % above`, and `step` divide `above`: then `x % step` is `y % step`. Let `stride` divide `step`: then
    `y // step * step` is a multiple of it, and what is left of `y`, its `y % step`, is divided alone:
    `y // stride = y // step * (step // stride) + y % step // stride`.
    """
    digits = [(term, digit, count) for term, count in total.terms.items() if (digit := _digit(term))]
    for small, (number, step, stride), times in digits:
        for large, high, count in digits:
            if small is large or high.number is not number or high.stride != step or step % stride:
                continue
            if count == times * (step // stride) and (high.modulus is None or high.modulus % step == 0):
                whole = number if high.modulus is None else apply("mod", number, const(high.modulus))
                whole = whole if stride == 1 else apply("floordiv", whole, const(stride))
                others = {term: count for term, count in total.terms.items() if term not in (small, large)}
                return _joined_digits(added(Linear(others, total.constant), linear(whole), times))
    return total


def _digit(term: Expr) -> Digit | None:
    inner, stride = _by_constant(term, "floordiv") or (term, 1)
    number, modulus = _by_constant(inner, "mod") or (inner, None)
    quotient = _by_constant(number, "floordiv")
    if modulus and stride == 1 and quotient and modulus * quotient.constant < FAR:
        # `x // 5 % 7` is `x % 35 // 5`: the sevenfold of 5 that `%` takes away are 35 of x.
        return Digit(quotient.operand, modulus * quotient.constant, quotient.constant)
    return None if number is term else Digit(number, modulus, stride)


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
    """An integer comparison as `terms < constant`, divided by the terms' common factor.

    The terms are a multiple of the factor `g`, and their quotient `s` is an integer. So `g * s < c` is `s < c / g`, and
    as nothing lies between integers, `s < ceil(c / g)`; `>=` likewise. `g * s <= c` is `s <= floor(c / g)`, as is `>`.
    Where `g` does not divide `c`, no `g * s` equals it.
    """
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


REWRITES: tuple[Rewrite, ...] = (fold, casts, logic, choose, arithmetic, digits, sums, compare)
