"""How large integers may become: past 64 bits is an error, past 32 bits a kernel computes in 64."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from flexspec.errors import FlexSpecError, choices
from flexspec.expr import Apply, Expr, Load, Param, Var, walk
from flexspec.ops import OPS, Type
from flexspec.user_line import user_caret

from ..evaluation.points import Array
from ..simplify.rules import simplify
from .bounds import spread
from .grid import Grid
from .intervals import FAR, Interval
from .tensor_ranges import TensorRanges, arrays_of


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


def needs_64_bits(expr: Expr, values: Mapping[str, Any], grid: Grid) -> bool:
    """May the expression compute an integer past 32 bits, which are a kernel's own?

    values: numbers, sizes and tensors by name; a float tensor may be missing, and is any float. A kernel is given them
    when it runs: a sum is as large as with them, though they may leave it once they are known. So the simplified
    expression is bounded as it stands, every node of it.
    """
    intervals = _intervals(_simplified(expr), values, grid)
    integers = [end for node, both in intervals.items() if node.type is Type.INT for end in both]
    return any(bool(((end <= -(2**31)) | (end >= 2**31)).any()) for end in integers)


def remainders_of_negatives(expr: Expr, values: Mapping[str, Any], grid: Grid) -> bool:
    """May a remainder of the simplified expression have a negative operand, or one that is no integer?

    There `%` of C and Python's differ. values: as `needs_64_bits` takes them.
    """
    expr = _simplified(expr)
    operands = {arg for node in walk(expr) if isinstance(node, Apply) and node.op == "mod" for arg in node.args}
    if not operands:
        return False
    intervals = _intervals(expr, values, grid)
    return any(node.type > Type.INT or not bool((intervals[node][0] >= 0).all()) for node in operands)


_simplified = lru_cache(maxsize=512)(simplify)
"""A decoding loop asks for the same expressions at each step."""


def _intervals(expr: Expr, values: Mapping[str, Any], grid: Grid) -> dict[Expr, Interval]:
    """The interval of every node over the whole grid."""
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    lengths = {"q": grid.q_len, "kv": grid.kv_len, "b": values.get("batch", 1), "h": values.get("heads", 1)}
    ends = {name: (value, value) for name, value in values.items() if name not in tensors}
    ends |= {name: (0, length - 1) for name, length in lengths.items()}
    ends["score"] = (np.nan, np.nan)  # any float
    known: dict[Expr, Any] = {
        node: tuple(np.array([end], node.type.numpy) for end in ends[node.name])
        for node in walk(expr)
        if isinstance(node, (Var, Param))
    }
    ranges = TensorRanges(arrays_of(tensors))

    def load(node: Load, index: list[Interval]) -> Interval:
        if node.type <= Type.INT:
            return ranges.over(node, index)
        unknown = np.array([np.nan], node.type.numpy)
        return unknown, unknown

    return spread(walk(expr), known, load)
