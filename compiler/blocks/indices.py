"""Does every load stay inside its tensor? Asked before a map or a kernel is made of an expression.

A load is evaluated for every pair of the call, whatever stands around it: `where` and `&` choose among values and
protect no index, in the reference as in torch. A kernel, which cannot raise, would clamp the index and go on.

Logical positions are the right place to ask, in any order: a memory position without a token stands for one of the
tokens (see `flexspec.orders.base.Place`), so that it loads nothing which a token does not load too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from flexspec.errors import FlexSpecError
from flexspec.evaluate import leaves_its_tensor
from flexspec.expr import Expr, Load, Param, Var, apply, const, walk
from flexspec.inputs import Bound
from flexspec.ops import Type
from flexspec.user_line import user_caret

from ..evaluation.points import Array, as_array, evaluate_at
from ..simplify.rules import simplify
from ..simplify.specialise import specialise_each
from .bounds import spread
from .classify import classify
from .derived import Derives
from .grid import Grid
from .intervals import FAR, Interval
from .leaves import chunks
from .tensor_ranges import TensorRanges, state_of

BLOCK = 128


class Index(NamedTuple):
    """What a load asks along one axis of its tensor."""

    load: Load
    axis: int

    @property
    def expr(self) -> Expr:
        index = self.load.index[self.axis]
        return index if index.type is Type.INT else apply("int", index)


@lru_cache(maxsize=1024)
def indices_of(expr: Expr) -> tuple[Index, ...]:
    """The indices of all loads of an expression; those of an inner load come before the index that it is part of."""
    loads = (node for node in walk(expr) if isinstance(node, Load))
    return tuple(Index(load, axis) for load in loads for axis in range(len(load.index)))


def check_indices(exprs: Iterable[Expr], bound: Bound, tables: TensorRanges | None) -> None:
    """FS024 where an index leaves its tensor for any pair of a call; FS035 where one divides by zero.

    exprs: over logical positions, coordinates written as arithmetic on them. bound: with the tensors, whose shapes
    count. tables: what they hold; None where nothing may be read from a device. Then an index that is computed from a
    tensor is only checked as far as its arithmetic alone bounds it: the device's own check is left for the others.
    """
    for index in dict.fromkeys(index for expr in exprs for index in indices_of(expr)):
        if not _surely_inside(index, bound, tables):
            _check(index, bound, tables)


def check_scores(block_map: Derives, exprs: tuple[Expr, ...], bound: Bound, *, read: bool = True) -> None:
    """`check_indices` of what a call computes beside its mask; kept with the map, so that a repeated call asks nothing.

    exprs: the score, and a weight's own number, over logical positions. read: may tensors be read that an index is
    computed from? They are told apart as those of a mask are.
    """
    indices, names = _asked(exprs)
    if not indices:
        return
    inner = {name: tensor for name, tensor in bound.tensors.items() if name in names and read}
    numbers = tuple((name, repr(value)) for name, value in bound.all_numbers().items() if name in names)
    shapes = tuple(bound.tensors[index.load.input.name].shape for index in indices)
    states = tuple(state_of(tensor) for tensor in inner.values())
    block_map.derive(_checked, exprs, bound.sizes, shapes, numbers, states, read=read, bound=bound, inner=inner)


@lru_cache(maxsize=1024)
def _asked(exprs: tuple[Expr, ...]) -> tuple[list[Index], frozenset[str]]:
    """The indices of some expressions, and all names that they are computed from."""
    indices = [index for expr in exprs for index in indices_of(expr)]
    return indices, frozenset().union(*(index.expr.names for index in indices))


def _checked(_: Derives, exprs: tuple[Expr, ...], *key: Any, read: bool, bound: Bound, inner: Mapping[str, Any]) -> Any:
    """The tensors that were read: while they live, no other has their identity."""
    tables = TensorRanges({name: as_array(tensor) for name, tensor in inner.items()}) if read else None
    check_indices(exprs, bound, tables)
    return inner


def _surely_inside(index: Index, bound: Bound, tables: TensorRanges | None) -> bool:
    """Do the bounds of an index over all positions, batches and heads at once lie inside?"""
    size, sizes = bound.tensors[index.load.input.name].shape[index.axis], bound.sizes
    lengths = {"q": sizes.q_len, "kv": sizes.kv_len, "b": sizes.batch or 1, "h": sizes.heads or 1}
    ends: dict[str, tuple[Any, Any]] = {name: (0, length - 1) for name, length in lengths.items()}
    ends |= {name: (value, value) for name, value in bound.all_numbers().items()} | {"score": (np.nan, np.nan)}
    nodes = list(walk(index.expr))
    known: dict[Expr, Interval] = {
        node: (np.array([ends[node.name][0]], node.type.numpy), np.array([ends[node.name][1]], node.type.numpy))
        for node in nodes
        if isinstance(node, (Var, Param))
    }

    def load(node: Load, _: list[Interval]) -> Interval:
        return _anything(node.type) if tables is None else _extremes(tables.tensors[node.input.name], node.type)

    try:
        least, most = spread(nodes, known, load)[index.expr]
    except FlexSpecError:  # an end past 64 bits, which no pair may reach
        return False
    return bool(least >= -size and most < size)


def _extremes(tensor: Array, kind: Type) -> Interval:
    return tensor.min().astype(kind.numpy).reshape(1), tensor.max().astype(kind.numpy).reshape(1)


def _anything(kind: Type) -> Interval:
    ends = {Type.BOOL: (False, True), Type.INT: (-FAR, FAR)}.get(kind, (np.nan, np.nan))
    return np.array([ends[0]], kind.numpy), np.array([ends[1]], kind.numpy)


def _check(index: Index, bound: Bound, tables: TensorRanges | None) -> None:
    """Exactly, for each (batch, head): the pairs at which an index is outside are a mask, and it must be empty."""
    name, expr = index.load.input.name, index.expr
    if "score" in expr.names:
        message = f"index {index.axis} of `{name}` is computed from the score, and nothing bounds it"
        raise FlexSpecError("FS024", message, fix="clamp the index", where=user_caret())
    if tables is None:
        if expr.names & bound.tensors.keys():
            return
        tables = TensorRanges({})
    size = bound.tensors[name].shape[index.axis]
    lengths = {"q": bound.sizes.q_len, "kv": bound.sizes.kv_len}
    seen: set[Expr] = set()
    for (b, h), of_head in np.ndenumerate(specialise_each(expr, bound, tables.tensors)):
        if of_head not in seen:
            seen.add(of_head)
            read = {side: length for side, length in lengths.items() if side in of_head.names}
            outside = _outside(of_head, size, read, tables)
            if outside:
                place = _at({"b": b, "h": h}) if expr.names & {"b", "h"} else ""
                raise leaves_its_tensor(name, index.axis, size, outside + place)


def _outside(index: Expr, size: int, lengths: Mapping[str, int], tables: TensorRanges) -> str:
    """What is seen of an index that leaves a tensor of `size` somewhere, else nothing."""
    grid = Grid(lengths.get("q", 1), lengths.get("kv", 1), BLOCK, BLOCK)
    leaves = simplify(apply("or", apply("lt", index, const(-size)), apply("ge", index, const(size))))
    runs = classify(leaves, grid, tables)
    if not len(runs.start):
        return ""
    if len(lengths) < 2:
        side, length = next(iter(lengths.items()), ("q", 1))
        values = [evaluate_at(index, {side: np.arange(length)[part]}, tables.tensors) for part in chunks(length, 1)]
        return f"goes from {min(part.min() for part in values)} to {max(part.max() for part in values)}"
    first_block = {"q": np.searchsorted(runs.first, 0, side="right") - 1, "kv": runs.start[0]}
    starts = {side: block * BLOCK for side, block in first_block.items()}
    q, kv = (np.arange(start, min(start + BLOCK, lengths[side])) for side, start in starts.items())
    positions = {"q": q[:, None], "kv": kv[None]}
    first = np.argwhere(evaluate_at(leaves, positions, tables.tensors))[0]
    value = evaluate_at(index, positions, tables.tensors)[tuple(first)]
    return f"is {value}{_at({'q': q[first[0]], 'kv': kv[first[1]]})}"


def _at(places: Mapping[str, int]) -> str:
    return f" at {', '.join(f'{name} = {place}' for name, place in places.items())}" if places else ""
