"""True positions of a call's rows: where its queries and keys stand in the whole sequence.

A ring buffer, a half-filled cache, keys that survived an eviction or were gathered are the same: rows of q and k that
stand elsewhere than their index says. Each side's position is an expression that loads from the given tensor, and
`in_memory` writes it in the place of `q` and `kv`, as it writes an order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from .attention import Parts
from .errors import FlexSpecError
from .expr import Apply, Expr, Var, apply, const, input_, load, var, walk
from .inputs import Bound, Sizes
from .order import Order, bound_in_memory
from .user_line import user_caret

GIVEN = {"q": "q_positions", "kv": "kv_positions"}
"""The arguments of a call, by side."""
NAMES = {side: f"positions.{side}" for side in GIVEN}
"""Under which an expression loads them: with a dot, so that no value of a pattern has the name."""
MOST = 2**31
"""Positions are below this where no tensor and no canvas says how long the whole sequence is."""


def given_positions(values: Mapping[str, Any]) -> dict[str, Any]:
    """The positions among a call's values, by side."""
    return {side: values[name] for side, name in GIVEN.items() if values.get(name) is not None}


def bind_rows(parts: Parts, sizes: Sizes, values: Mapping[str, Any]) -> Bound:
    """The values of a call whose rows may stand at positions of their own (see `Parts.bind`).

    sizes: of the call. values: by name, with `q_positions` and `kv_positions` among them.

    With positions, tensors of the pattern are indexed by true positions, so their lengths are those of the whole
    sequence; `q_len` and `kv_len` in an expression are too. `Bound.sizes` are the call's.

    Raises FS022, FS023 (positions), FS031 (a length of the whole sequence that nothing says), and what `Parts.bind`
    raises.
    """
    given = given_positions(values)
    others = {name: value for name, value in values.items() if name not in GIVEN.values()}
    if not given:
        return parts.bind(sizes, others)
    rows, tensors = {}, {}
    for side, tensor in given.items():
        sizes = _checked(side, tensor, sizes)
        rows[side], tensors[NAMES[side]] = _row(side, tensor, sizes)
    lengths = _whole_lengths(parts, given, others)
    bound = parts.bind(replace(sizes, **lengths), others)
    _check_lengths_known(parts.exprs, given.keys() - {name.removesuffix("_len") for name in lengths})
    sizes = replace(sizes, batch=bound.sizes.batch, heads=bound.sizes.heads)
    return Bound({**bound.tensors, **tensors}, {**bound.numbers, **lengths}, sizes, rows)


def bind_call(
    parts: Parts, sizes: Sizes, values: Mapping[str, Any], order: Order | None, device: torch.device | str
) -> Bound:
    """The values of a call in memory: with positions (see `bind_rows`) and the tables of its order."""
    return bound_in_memory(bind_rows(parts, sizes, values), order, device)


def _checked(side: str, tensor: Any, sizes: Sizes) -> Sizes:
    """The sizes of the call, with the batch and heads that positions may tell. FS022, FS023."""
    name, length = GIVEN[side], sizes.q_len if side == "q" else sizes.kv_len
    if not isinstance(tensor, torch.Tensor) or tensor.dtype not in (torch.int32, torch.int64):
        seen = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        fix = "give an int32 or int64 tensor"
        raise FlexSpecError("FS023", f"{name} is {seen}", fix=fix, where=user_caret())
    shape = tuple(tensor.shape)
    fits = len(shape) in (2, 3) and 0 not in shape and shape[-1] == length
    fits = fits and shape[0] in (1, sizes.batch or shape[0])
    fits = fits and (len(shape) == 2 or (sizes.heads or shape[1]) % shape[1] == 0)
    if not fits:
        seen = f"batch {sizes.batch or 'any'}, {sizes.heads or 'any'} heads and {length:,} rows"
        message = f"{name} has shape {shape}; the call has {seen}"
        fix = "give [batch | 1, length] or [batch | 1, heads | kv_heads | 1, length]"
        raise FlexSpecError("FS022", message, fix=fix, where=user_caret())
    batch = sizes.batch or (shape[0] if shape[0] > 1 else None)
    heads = sizes.heads or (shape[1] if len(shape) == 3 and shape[1] > 1 else None)
    return replace(sizes, batch=batch, heads=heads)


def check_heads(values: Mapping[str, Any], heads: int, kv_heads: int) -> None:
    """FS022 where positions are of another number of heads than the queries, the keys or one."""
    for side, tensor in given_positions(values).items():
        if isinstance(tensor, torch.Tensor) and tensor.dim() == 3 and tensor.shape[1] not in (1, heads, kv_heads):
            message = f"{GIVEN[side]} is of {tensor.shape[1]} heads; q has {heads} and k {kv_heads}"
            raise FlexSpecError("FS022", message, fix="give positions for each of them, or 1", where=user_caret())


def _row(side: str, tensor: torch.Tensor, sizes: Sizes) -> tuple[Expr, torch.Tensor]:
    """The position of a row as an expression, and the tensor that it loads from, without dims of size 1."""
    index: list[Expr] = [var(side)]
    dims = [f"{side}_len"]
    if tensor.dim() == 3:
        few = tensor.shape[1]
        if few > 1:
            group = (sizes.heads or few) // few
            index.insert(0, var("h") if group == 1 else apply("floordiv", var("h"), const(group)))
            dims.insert(0, "heads" if group == 1 else "kv_heads")
        else:
            tensor = tensor[:, 0]
    if tensor.shape[0] > 1:
        index.insert(0, var("b"))
        dims.insert(0, "batch")
    else:
        tensor = tensor[0]
    return load(input_(NAMES[side], tuple(dims)), tuple(index)), tensor


def _whole_lengths(parts: Parts, sides: Iterable[str], values: Mapping[str, Any]) -> dict[str, int]:
    """`q_len` and `kv_len` of the whole sequence for sides with positions, where a canvas or a tensor says them."""
    named: dict[str, int] = {}
    for name, node in parts.inputs.items():
        tensor = values.get(name, parts.tensors.get(name))
        if isinstance(tensor, torch.Tensor) and tensor.dim() == len(node.dims):
            named |= dict(zip(node.dims, tensor.shape, strict=True))
    canvases = {side: parts.mask.on.side(side) if parts.mask.on else None for side in sides}
    sizes = {side: canvas.size for side, canvas in canvases.items() if canvas}
    found = {f"{side}_len": sizes.get(side) or named.get(f"{side}_len") or named.get("sequence") for side in sides}
    return {name: length for name, length in found.items() if length is not None}


def _check_lengths_known(exprs: Iterable[Expr], unknown: Iterable[str]) -> None:
    for side in unknown:
        if any(isinstance(node, Var) and node.name == f"{side}_len" for expr in exprs for node in walk(expr)):
            message = f"the pattern reads `{side}_len`, and {GIVEN[side]} do not say how long the whole sequence is"
            fix = "make it a parameter of the pattern, as in `*, length=4096`"
            raise FlexSpecError("FS031", message, fix=fix, where=user_caret())


def compares(expr: Expr, side: str) -> bool:
    """Does an expression compute with the positions of a side, beyond looking them up in tensors?"""
    own = (side, f"{side}.")
    return any(
        isinstance(part, Var) and (part.name == own[0] or part.name.startswith(own[1]))
        for node in walk(expr)
        if isinstance(node, Apply)
        for part in node.children
    )
