"""A formula as LaTeX, by sympy."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import sympy

from flexspec.expr import Apply, Const, Expr, Load, Param, Var, walk
from flexspec.ops import OPS, Type

_OF_TRUTHS = ("And", "Or", "Xor", "Not")
"""sympy's functions of truth values; its others take none."""


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
    form = OPS[node.op].sympy
    function = getattr(sympy, form) if isinstance(form, str) else form
    truths = [arg.type is Type.BOOL for arg in node.args]
    if function is not None and (all(truths) if form in _OF_TRUTHS else not any(truths)):
        with suppress(TypeError):  # sympy is stricter than torch about truth values in arithmetic
            return function(*args)
    return sympy.Function(node.op)(*args)
