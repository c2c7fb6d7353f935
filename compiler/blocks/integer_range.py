"""How large integers may become: past 64 bits is an error, past 32 bits a kernel computes in 64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flexspec.errors import FlexSpecError, choices
from flexspec.expr import Apply, Expr, Load, Param, Var, walk
from flexspec.inputs import Bound
from flexspec.ops import OPS, Type
from flexspec.user_line import user_caret

from ..evaluation.points import Array
from ..simplify.rules import simplify
from .bounds import spread
from .grid import Grid
from .intervals import FAR
from .tensor_ranges import ranges_of


def check_range(expr: Expr, tensors: Mapping[str, Array]) -> None:
    """FS034 where a tensor's integers are so large that arithmetic on them wraps; comparisons of them are exact."""
    large = {name for name, x in tensors.items() if x.dtype == np.int64 and (x.min() <= -FAR or x.max() >= FAR)}
    if not large & expr.names:
        return
    reached: set[Expr] = set()
    for node in walk(expr):
        if isinstance(node, Load) and node.input.name in large:
            reached.add(node)
        elif isinstance(node, Apply) and node.type is Type.INT and reached & {*node.args}:
            if OPS[node.op].wraps:
                message = f"`{node}` computes with integers of {choices(large & node.names)} past {FAR:.3g}"
                fix = "compare them as they are, or store smaller numbers"
                raise FlexSpecError("FS034", message, fix=fix, where=user_caret())
            if node.op != "sign" and (node.op != "mod" or node.args[1] in reached):  # a remainder is below its divisor
                reached.add(node)


def needs_64_bits(expr: Expr, bound: Bound, grid: Grid) -> bool:
    """May the expression compute an integer past 32 bits, which are a kernel's own? A kernel is given values: a sum is
    as large as with them, though they may leave it once they are known.
    """
    expr, sizes = simplify(expr), bound.sizes
    sides = {"q": grid.q_len, "kv": grid.kv_len, "b": sizes.batch or 1, "h": sizes.heads or 1}
    ends = {name: (value, value) for name, value in bound.all_numbers().items()}
    ends |= {name: (0, length - 1) for name, length in sides.items()}
    known: dict[Expr, Any] = {
        node: (np.array([ends[node.name][0]], node.type.numpy), np.array([ends[node.name][1]], node.type.numpy))
        for node in walk(expr)
        if isinstance(node, (Var, Param))
    }
    found = spread(walk(expr), known, ranges_of(bound).over)
    integers = [end for node, both in found.items() if node.type is Type.INT for end in both]
    return any(bool(((end <= -(2**31)) | (end >= 2**31)).any()) for end in integers)
