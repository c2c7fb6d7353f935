"""A formula as LaTeX, by sympy."""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any

import sympy

from flexspec.expr import Apply, Const, Expr, Load, Param, Var, walk
from flexspec.ops import Type

_BINARY = {
    "lt": sympy.StrictLessThan,
    "le": sympy.LessThan,
    "gt": sympy.StrictGreaterThan,
    "ge": sympy.GreaterThan,
    "eq": sympy.Equality,
    "ne": sympy.Unequality,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "floordiv": lambda a, b: sympy.floor(a / b),
    "mod": sympy.Mod,
    "min": sympy.Min,
    "max": sympy.Max,
    "pow": operator.pow,
}
_LOGIC = {"and": sympy.And, "or": sympy.Or, "xor": sympy.Xor, "not": sympy.Not}
_UNARY = {
    "neg": operator.neg,
    "abs": sympy.Abs,
    "floor": sympy.floor,
    "ceil": sympy.ceiling,
    "sign": sympy.sign,
    "sqrt": sympy.sqrt,
    "exp": sympy.exp,
    "log": sympy.log,
    "sin": sympy.sin,
    "cos": sympy.cos,
    "tanh": sympy.tanh,
}


def to_latex(expr: Expr) -> str:
    """LaTeX of an expression; positions as `q`, `kv`, `q.t`, tensors as functions of their indices."""
    done: dict[Expr, Any] = {}
    for node in walk(expr):
        done[node] = _one(node, [done[child] for child in node.children])
    text: str = sympy.latex(done[expr])
    return text


def _symbol(node: Expr, name: str) -> Any:
    return sympy.Symbol(name, real=True) if node.type is not Type.BOOL else sympy.Symbol(name)


def _one(node: Expr, args: list[Any]) -> Any:
    if isinstance(node, Const):
        return sympy.sympify(node.value)
    if isinstance(node, (Var, Param)):
        return _symbol(node, node.name)  # with the dot of `q.t`, as a parameter may be called q_t
    if isinstance(node, Load):
        return sympy.Function(node.input.name)(*args)
    assert isinstance(node, Apply)
    truths = [arg.type is Type.BOOL for arg in node.args]
    try:
        if node.op in _LOGIC and all(truths):
            return _LOGIC[node.op](*args)
        if node.op in _BINARY and not any(truths):
            return reduce(_BINARY[node.op], args)
        if node.op in _UNARY and not any(truths):
            return _UNARY[node.op](*args)
    except TypeError:  # sympy is stricter than torch about truth values in arithmetic
        pass
    return sympy.Function(node.op)(*args)
