"""Has an expression a value at every pair: each index inside its tensor, no integer divided by 0?

Asked before a map or a kernel is made of it. Every part is evaluated for every pair of the call, whatever stands around
it: `where` and `&` choose among values and protect no index, in the reference as in torch. A kernel, which cannot
raise, would clamp the index and go on.

Logical positions are the right place to ask, in any order: a memory position without a token stands for one of the
tokens (see `flexspec.orders.base.Place`), so that it asks nothing which a token does not ask too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from flexspec.errors import FlexSpecError
from flexspec.evaluate import divided_by_zero, leaves_its_tensor
from flexspec.expr import Apply, Const, Expr, Load, Param, Var, apply, const, walk
from flexspec.inputs import Bound
from flexspec.ops import Type
from flexspec.positions import NAMES

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


class Demand(NamedTuple):
    """What a load or an integer division asks of one of its operands."""

    node: Load | Apply
    operand: int

    @property
    def expr(self) -> Expr:
        operand = self.node.children[self.operand]
        return operand if operand.type is Type.INT else apply("int", operand)

    def size(self, bound: Bound) -> int:
        """Entries along the axis that a load's operand counts."""
        assert isinstance(self.node, Load)
        return bound.tensors[self.node.input.name].shape[self.operand]

    def met(self, least: Array, most: Array, bound: Bound) -> bool:
        """Is it met by every integer from `least` to `most`?"""
        if isinstance(self.node, Apply):
            return bool((least > 0) | (most < 0))
        return bool((least >= -self.size(bound)) & (most < self.size(bound)))

    def broken(self, operand: Expr, bound: Bound) -> Expr:
        """The pairs at which it is not met, as a mask."""
        if isinstance(self.node, Apply):
            return apply("eq", operand, const(0))
        size = self.size(bound)
        return apply("or", apply("lt", operand, const(-size)), apply("ge", operand, const(size)))

    def error(self, seen: str, bound: Bound) -> FlexSpecError:
        """FS024 or FS035. seen: where the operand is what, as in "is 8 at q = 3"."""
        if isinstance(self.node, Apply):
            return divided_by_zero(self.node.op, f": the divisor {seen}")
        return leaves_its_tensor(self.node.input.name, self.operand, self.size(bound), seen)


@lru_cache(maxsize=1024)
def demands_of(expr: Expr) -> tuple[Demand, ...]:
    """All demands of an expression, those of an inner part before those of a part that it belongs to."""
    found: list[Demand] = []
    for node in walk(expr):
        if isinstance(node, Load):
            found += [Demand(node, axis) for axis in range(len(node.index))]
        elif isinstance(node, Apply) and node.op in ("floordiv", "mod") and node.type is Type.INT:
            divisor = node.args[1]
            found += [] if isinstance(divisor, Const) and divisor.value else [Demand(node, 1)]
    return tuple(found)


def check_defined(exprs: Iterable[Expr], bound: Bound, tables: TensorRanges | None, *, looked_up: bool = True) -> None:
    """FS024 where an index leaves its tensor for any pair of a call, FS035 where an integer is divided by 0.

    exprs: over logical positions, coordinates written as arithmetic on them. bound: with the tensors, whose shapes
    count. tables: what they hold; None where nothing may be read from a device. Then an index that is computed from a
    tensor must be bounded by its arithmetic alone; but one of one side need not be if it is `looked_up`, as a block map
    is made of its values, and the device has a check of its own.
    """
    for demand in dict.fromkeys(demand for expr in exprs for demand in demands_of(expr)):
        if not _surely_met(demand, bound, tables):
            _check(demand, bound, tables, looked_up)


def check_scores(block_map: Derives, exprs: tuple[Expr, ...], bound: Bound, *, read: bool = True) -> None:
    """`check_defined` of what a call computes beside its mask; kept with the map, so that a repeated call asks nothing.

    exprs: the score, and a weight's own number, over logical positions. read: may tensors be read that an operand is
    computed from? They are told apart as those of a mask are.
    """
    demands, names = _asked(exprs)
    if not demands:
        return
    inner = {name: tensor for name, tensor in bound.tensors.items() if name in names and read}
    numbers = tuple((name, repr(value)) for name, value in bound.all_numbers().items() if name in names)
    shapes = tuple(demand.size(bound) for demand in demands if isinstance(demand.node, Load))
    states = tuple(state_of(tensor) for tensor in inner.values())
    block_map.derive(_checked, exprs, bound.sizes, shapes, numbers, states, read=read, bound=bound, inner=inner)


@lru_cache(maxsize=1024)
def _asked(exprs: tuple[Expr, ...]) -> tuple[list[Demand], frozenset[str]]:
    """The demands of some expressions, and all names that their operands are computed from."""
    demands = [demand for expr in exprs for demand in demands_of(expr)]
    return demands, frozenset().union(*(demand.expr.names for demand in demands))


def _checked(_: Derives, exprs: tuple[Expr, ...], *key: Any, read: bool, bound: Bound, inner: Mapping[str, Any]) -> Any:
    """The tensors that were read: while they live, no other has their identity."""
    tables = TensorRanges({name: as_array(tensor) for name, tensor in inner.items()}) if read else None
    check_defined(exprs, bound, tables, looked_up=False)
    return inner


def _surely_met(demand: Demand, bound: Bound, tables: TensorRanges | None) -> bool:
    """Do the bounds of an operand over all positions, batches and heads at once say so?"""
    sizes = bound.sizes
    lengths = {"q": sizes.q_len, "kv": sizes.kv_len, "b": sizes.batch or 1, "h": sizes.heads or 1}
    ends: dict[str, tuple[Any, Any]] = {name: (0, length - 1) for name, length in lengths.items()}
    ends |= {name: (value, value) for name, value in bound.all_numbers().items()} | {"score": (np.nan, np.nan)}
    nodes = list(walk(demand.expr))
    known: dict[Expr, Interval] = {
        node: (np.array([ends[node.name][0]], node.type.numpy), np.array([ends[node.name][1]], node.type.numpy))
        for node in nodes
        if isinstance(node, (Var, Param))
    }

    def load(node: Load, _: list[Interval]) -> Interval:
        name = node.input.name
        return _anything(bound.tensors[name], name) if tables is None else _extremes(tables.tensors[name], node.type)

    try:
        least, most = spread(nodes, known, load)[demand.expr]
    except FlexSpecError:  # an end past 64 bits, which no pair may reach
        return False
    return demand.met(least, most, bound)


def _extremes(tensor: Array, kind: Type) -> Interval:
    return tensor.min().astype(kind.numpy).reshape(1), tensor.max().astype(kind.numpy).reshape(1)


def _anything(tensor: torch.Tensor, name: str) -> Interval:
    """What a tensor may hold that is not read. Positions are below 2**31 (see `check_positions`)."""
    kind = Type.of_dtype(tensor.dtype)
    ends: tuple[Any, Any] = (False, True) if kind is Type.BOOL else (np.nan, np.nan)
    if kind is Type.INT:
        held = torch.iinfo(torch.int32 if name in NAMES.values() else tensor.dtype)
        ends = max(held.min, -FAR), min(held.max, FAR)
    return np.array([ends[0]], kind.numpy), np.array([ends[1]], kind.numpy)


def _check(demand: Demand, bound: Bound, tables: TensorRanges | None, looked_up: bool) -> None:
    """Exactly, for each (batch, head): the pairs at which a demand is not met are a mask, and it must be empty."""
    expr, sizes = demand.expr, bound.sizes
    if "score" in expr.names:
        raise demand.error("is computed from the score and bounded by nothing", bound)
    if tables is None:
        if expr.names & bound.tensors.keys():
            if isinstance(demand.node, Load) and not (looked_up and len(expr.names & {"q", "kv"}) < 2):
                raise demand.error("is computed from a tensor that is not read back, and bounded by nothing", bound)
            return
        tables = TensorRanges({})
    seen: set[Expr] = set()
    for (b, h), each in np.ndenumerate(specialise_each(expr, bound, tables.tensors)):
        if each not in seen:
            seen.add(each)
            lengths = {side: n for side, n in (("q", sizes.q_len), ("kv", sizes.kv_len)) if side in each.names}
            broken = _broken(demand, each, lengths, bound, tables)
            if broken:
                raise demand.error(broken + (_at({"b": b, "h": h}) if expr.names & {"b", "h"} else ""), bound)


def _broken(demand: Demand, operand: Expr, lengths: Mapping[str, int], bound: Bound, tables: TensorRanges) -> str:
    """What is seen of an operand that breaks its demand somewhere, else nothing. lengths: of the sides in it."""
    grid = Grid(lengths.get("q", 1), lengths.get("kv", 1), BLOCK, BLOCK)
    bad = simplify(demand.broken(operand, bound))
    runs = classify(bad, grid, tables)
    if not len(runs.start):
        return ""
    if len(lengths) < 2 and isinstance(demand.node, Load):
        side, length = next(iter(lengths.items()), ("q", 1))
        each = [evaluate_at(operand, {side: np.arange(length)[part]}, tables.tensors) for part in chunks(length, 1)]
        return f"goes from {min(part.min() for part in each)} to {max(part.max() for part in each)}"
    row, column = int(np.searchsorted(runs.first, 0, side="right")) - 1, int(runs.start[0])
    q, kv = (
        np.arange(block * BLOCK, min((block + 1) * BLOCK, length))
        for block, length in ((row, grid.q_len), (column, grid.kv_len))
    )
    where, shape = {"q": q[:, None], "kv": kv[None]}, (len(q), len(kv))
    i, j = np.argwhere(np.broadcast_to(evaluate_at(bad, where, tables.tensors), shape))[0]
    value = np.broadcast_to(evaluate_at(operand, where, tables.tensors), shape)[i, j]
    return f"is {value}{_at({side: at for side, at in (('q', q[i]), ('kv', kv[j])) if side in lengths})}"


def _at(places: Mapping[str, int]) -> str:
    return f" at {', '.join(f'{name} = {place}' for name, place in places.items())}" if places else ""
