"""Evaluate an expression at many positions at once, in numpy: for leaves of the classification and for tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from flexspec.errors import FlexSpecError
from flexspec.evaluate import divided_by_zero, leaves_its_tensor
from flexspec.expr import Apply, Const, Expr, Load, Var
from flexspec.ops import OPS, Type
from flexspec.user_line import user_caret

Array = np.ndarray[Any, Any]


Columns = dict[Expr, tuple[str, Array]]
"""One-sided expressions by value: the side, and the value at each of its positions."""


def evaluate_at(
    expr: Expr, positions: Mapping[str, Array], tensors: Mapping[str, Array], columns: Columns | None = None
) -> Array:
    """Values of `expr` at `positions` (int64 arrays by name that broadcast together).

    Parameters and sizes are constants by now. columns: values that are known at every position. Raises FS024 and FS035
    as the reference evaluator does.
    """
    columns = columns or {}
    done: dict[Expr, Array] = {}

    def convert(node: Expr, kind: Type) -> Array:
        value = np.asarray(node.value) if isinstance(node, Const) else done[node]
        return value.astype(kind.numpy, copy=False)

    with np.errstate(all="ignore"):
        for node in needed(expr, columns):
            if node in columns:
                side, values = columns[node]
                done[node] = values[positions[side]]
            elif isinstance(node, Var):
                done[node] = positions[node.name]
            elif isinstance(node, Load):
                index = tuple(convert(part, Type.INT) for part in node.index)
                done[node] = _load(node, tensors[node.input.name], index)
            elif isinstance(node, Apply):
                kinds, _ = OPS[node.op].signature(tuple(arg.type for arg in node.args))
                args = [convert(arg, kind) for arg, kind in zip(node.args, kinds, strict=True)]
                if node.op in ("floordiv", "mod") and kinds[1] <= Type.INT and not args[1].all():
                    raise divided_by_zero(node.op)
                done[node] = OPS[node.op].numpy(*args)
        return convert(expr, expr.type)


MOST_POSITIONS = 1 << 28
"""Most positions of a side at which a part that reads a tensor is evaluated all at once."""


def along(node: Expr, side: str, length: int, tensors: Mapping[str, Array]) -> Array:
    """Values of a one-sided expression at every position of its side."""
    if isinstance(node, Load) and [getattr(part, "name", None) for part in node.index] == [side]:
        tensor = tensors[node.input.name]
        if len(tensor) >= length:
            return tensor[:length].astype(node.type.numpy, copy=False)
    if length > MOST_POSITIONS:
        message = f"the mask reads a tensor at {length:,} positions of {side}, more than {MOST_POSITIONS:,}"
        raise FlexSpecError("FS030", message, fix="give a shorter length", where=user_caret())
    return evaluate_at(node, {side: np.arange(length)}, tensors)


def _load(node: Load, tensor: Array, index: tuple[Array, ...]) -> Array:
    for axis, part in enumerate(index):
        size = tensor.shape[axis]
        if part.size and (part.min() < -size or part.max() >= size):
            raise leaves_its_tensor(node.input.name, axis, size, f"goes from {part.min()} to {part.max()}")
    return tensor[index]


def one_sided(root: Expr) -> dict[Expr, str]:
    """The largest parts of `root` that depend on one of `q` and `kv` only, with that side; bare positions left out."""
    side_of: dict[Expr, str] = {}
    stack, seen = [root], set()
    while stack:
        node = stack.pop()
        if node in seen or isinstance(node, Var):
            continue
        seen.add(node)
        sides = node.names & {"q", "kv"}
        if len(sides) == 1:
            side_of[node] = next(iter(sides))
        else:
            stack.extend(node.children)
    return side_of


def of_no_side(root: Expr, tensors: Mapping[str, Array]) -> dict[Expr, Array]:
    """The largest parts of `root` that depend on neither `q` nor `kv`, with their one value, [1]. Constants left out.

    Bounds may leave such a part undecided, and no split of a box ever decides it; its value is at hand.
    """
    values: dict[Expr, Array] = {}
    stack, seen = [root], set()
    while stack:
        node = stack.pop()
        if node in seen or isinstance(node, (Const, Var)):
            continue
        seen.add(node)
        if node.names & {"q", "kv"}:
            stack.extend(node.children)
        else:
            values[node] = evaluate_at(node, {}, tensors).reshape(1)
    return values


def needed(root: Expr, tabulated: Collection[Expr]) -> list[Expr]:
    """The nodes below `root`, children first, without what stands below a tabulated one."""
    order: list[Expr] = []
    seen: set[Expr] = set()
    stack: list[tuple[Expr, bool]] = [(root, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            if node not in tabulated:
                stack.extend((child, False) for child in node.children)
    return order


def as_array(value: object) -> Array:
    """A bound tensor as a numpy array of its type (bfloat16 becomes float32); integers keep their own width."""
    import torch

    assert isinstance(value, torch.Tensor)
    kind = Type.of_dtype(value.dtype)
    return np.asarray(value.detach().to("cpu", None if kind is Type.INT else kind.torch).numpy())
