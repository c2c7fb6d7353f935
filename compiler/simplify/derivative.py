"""Symbolic derivatives of a score expression: what the backward pass multiplies with.

One rule for each operator, in a table under the operators' names. A zero derivative is None until the end, so that no
`0 * x` or `x + 0` is ever built; floats are not rearranged otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from flexspec.expr import Apply, Expr, Load, apply, const, walk
from flexspec.ops import NEGATED, Type

from .linear import cast
from .rules import simplify

Slope = Expr | None
"""A derivative; None where it is zero everywhere."""
Rule = Callable[..., Slope]
"""From a node, its operands' derivatives and its operands to its derivative."""

ONE = const(1.0)
ZERO = const(0.0)
LN_2 = const(math.log(2))
TWO_OVER_ROOT_PI = const(2 / math.sqrt(math.pi))


def derivative(expr: Expr, of: Expr) -> Expr:
    """The derivative of `expr` with respect to a node in it, `var("score")` or a float Load: a float expression.

    Where a function has no derivative (a step, a tie of `min`) it is what torch's autograd takes; `//`, which torch
    refuses, is a step. A Load counts alone: what other loads read of the same tensor is held fixed (see `loads_of`).

    >>> from flexspec.syntax import parse
    >>> derivative(parse("4.0 * tanh(score / 4.0)"), parse("score"))
    4.0 * ((1.0 - tanh(score / 4.0) * tanh(score / 4.0)) * 0.25)
    """
    slopes: dict[Expr, Slope] = {}
    for node in walk(expr):
        slopes[node] = ONE if node is of else None
        if isinstance(node, Apply) and node is not of and node.type > Type.INT:
            found = [slopes[arg] for arg in node.args]
            if any(slope is not None for slope in found):
                slopes[node] = DERIVATIVES[node.op](node, *found, *node.args)
    return simplify(slopes[expr] or ZERO)


def loads_of(expr: Expr, name: str) -> list[Load]:
    """The places of `expr` that read the tensor `name`, each once, in reading order."""
    return [node for node in walk(expr) if isinstance(node, Load) and node.input.name == name]


def times(slope: Slope, factor: Expr) -> Slope:
    """`factor * slope`, a float."""
    if slope is None:
        return None
    return cast(factor, max(factor.type, Type.FLOAT)) if slope is ONE else apply("mul", factor, slope)


def plus(a: Slope, b: Slope, op: str = "add") -> Slope:
    if b is None:
        return a
    if a is None:
        return b if op == "add" else apply("neg", b)
    return apply(op, a, b)


def over(slope: Slope, divisor: Expr) -> Slope:
    return None if slope is None else apply("div", slope, divisor)


def either(condition: Expr, yes: Slope, no: Slope) -> Slope:
    return None if yes is no is None else apply("where", condition, yes or ZERO, no or ZERO)


def outer(of_result: Callable[[Expr, Expr], Expr]) -> Rule:
    """The chain rule: a function of the node and its operand, times the operand's slope."""
    return lambda node, slope, x: times(slope, of_result(node, x))


def _zero(node: Expr, *rest: Slope) -> Slope:
    return None


def _extreme(sign: str) -> Rule:
    """`min` and `max`: the chosen operand's slope; a tie takes half of both."""

    def rule(node: Expr, da: Slope, db: Slope, a: Expr, b: Expr) -> Slope:
        half = times(plus(da, db), const(0.5))
        return either(apply("eq", a, b), half, either(apply(sign, a, b), da, db))

    return rule


def _power(node: Expr, da: Slope, db: Slope, a: Expr, b: Expr) -> Slope:
    flat = apply("eq", b, ZERO)
    of_base = either(flat, None, times(da, apply("mul", b, apply("pow", a, apply("sub", b, ONE)))))
    nothing = apply("and", apply("eq", a, ZERO), apply("ge", b, ZERO))
    return plus(of_base, either(nothing, None, times(db, apply("mul", node, apply("log", a)))))


DERIVATIVES: dict[str, Rule] = {
    **dict.fromkeys((*NEGATED, "or", "xor", "and", "not", "lshift", "rshift", "bool", "int"), _zero),
    **dict.fromkeys(("floordiv", "floor", "ceil", "round", "trunc", "sign"), _zero),
    "float": lambda node, slope, x: slope,
    "double": lambda node, slope, x: slope,
    "add": lambda node, da, db, a, b: plus(da, db),
    "sub": lambda node, da, db, a, b: plus(da, db, "sub"),
    "mul": lambda node, da, db, a, b: plus(times(da, b), times(db, a)),
    "div": lambda node, da, db, a, b: plus(over(da, b), over(times(db, node), b), "sub"),
    "mod": lambda node, da, db, a, b: plus(da, times(db, apply("floordiv", a, b)), "sub"),
    "neg": lambda node, slope, x: plus(None, slope, "sub"),
    "abs": outer(lambda y, x: apply("sign", x)),
    "min": _extreme("lt"),
    "max": _extreme("gt"),
    "where": lambda node, _, da, db, condition, a, b: either(condition, da, db),
    "sqrt": lambda node, slope, x: over(slope, apply("mul", const(2.0), node)),
    "exp": outer(lambda y, x: y),
    "exp2": outer(lambda y, x: apply("mul", y, LN_2)),
    "log": lambda node, slope, x: over(slope, x),
    "log2": lambda node, slope, x: over(slope, apply("mul", x, LN_2)),
    "sin": outer(lambda y, x: apply("cos", x)),
    "cos": outer(lambda y, x: apply("neg", apply("sin", x))),
    "tanh": outer(lambda y, x: apply("sub", ONE, apply("mul", y, y))),
    "sigmoid": outer(lambda y, x: apply("mul", y, apply("sub", ONE, y))),
    "erf": outer(lambda y, x: apply("mul", TWO_OVER_ROOT_PI, apply("exp", apply("neg", apply("mul", x, x))))),
    "pow": _power,
}
