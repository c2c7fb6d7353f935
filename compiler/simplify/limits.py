"""Ends of integer expressions that hold whatever the positions: remainders are small, positions are not negative."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from flexspec.expr import Apply, Const, Expr, Var
from flexspec.ops import Type

Ends = tuple[float, float]
ANY: Ends = (-math.inf, math.inf)
FAR = 2**61
"""From here on a sum of two integers may wrap."""


def limits(node: Expr, depth: int = 8) -> Ends:
    """Ends of an integer expression whatever the positions; those are not negative."""
    if node.type > Type.INT:
        return ANY
    if isinstance(node, Const):
        return node.value, node.value
    if node.type is Type.BOOL:
        return 0, 1
    if isinstance(node, Var):
        return 0, math.inf
    if isinstance(node, Apply) and depth:
        ends = [limits(arg, depth - 1) for arg in node.args]
        found = _LIMITS[node.op](*ends) if node.op in _LIMITS else ANY
        if not any(math.isnan(end) for end in found):
            return found
    return ANY


@lru_cache(maxsize=4096)
def endless(node: Expr) -> bool:
    """May an integer below `node` be any at all, so that a sum with it may start again past 64 bits?

    A shifted bit and a cast float may, and a constant that is large itself. Positions are small, and a product of them
    that is not is an error, as is a sum of what a tensor holds there (see `blocks.integer_range`).
    """
    if isinstance(node, Const):
        return node.type is Type.INT and abs(node.value) >= FAR
    if isinstance(node, Apply):
        if node.op == "lshift" and not _small(node.args[1]):
            return True
        if node.op == "int" and node.args[0].type > Type.INT:
            return True
    return any(endless(part) for part in node.children)


def _small(shift: Expr) -> bool:
    return isinstance(shift, Const) and 0 <= shift.value < 32


def _times(a: Ends, b: Ends) -> Ends:
    """Of a product with a constant."""
    if a[0] == a[1]:
        a, b = b, a
    if b[0] != b[1]:
        return ANY
    ends = [end * b[0] if b[0] else 0.0 for end in a]
    return min(ends), max(ends)


def _quotient(a: Ends, b: Ends) -> Ends:
    if b[0] != b[1] or b[0] <= 0:
        return ANY
    low, high = (end if math.isinf(end) else end // b[0] for end in a)
    return low, high


def _remainder(a: Ends, b: Ends) -> Ends:
    return (0, b[1] - 1) if b[0] > 0 else ANY


_LIMITS: dict[str, Callable[..., Ends]] = {
    "add": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "sub": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "neg": lambda a: (-a[1], -a[0]),
    "mul": _times,
    "floordiv": _quotient,
    "mod": _remainder,
    "min": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "max": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "int": lambda a: a,
}
