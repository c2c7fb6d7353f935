"""Equalities of a query's value and a key's value as intervals: documents whose tokens stand side by side.

`ids[b, q] == ids[b, kv]` keeps, of a query, the tokens of its document. Where the tokens of each document are one run,
as where ids ascend, these keys are an interval, and two tables (its first key, one past its last) stand for the
equality: a kernel asks no pair for it. Whether they are one run is read from the map's own tensors; if they are not,
the equality stays. Tables are values: other documents run the same kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch

from flexspec.expr import Apply, Expr, apply, input_, inputs_of, load, var
from flexspec.ops import Type

from ...blocks.block_map import BlockMap
from ...evaluation.points import Array, evaluate_at
from ...simplify.linear import added, from_linear, linear
from ...simplify.rules import simplify
from ...simplify.spans import parts_of
from ...simplify.specialise import specialise

MOST_ENTRIES = 1 << 25
"""Of a table: values that depend on the head may have more, and stay as they are."""


class SidedMask(NamedTuple):
    """A mask for the kernels that go along one side, and the values that it reads, by name."""

    mask: Expr
    values: Mapping[str, Any]


class Equality(NamedTuple):
    """`own == other`: for each position of the own side, the interval of positions of the other side is sought."""

    own: Expr
    other: Expr
    own_side: str
    other_side: str

    @property
    def inputs(self) -> set[str]:
        return {*inputs_of(self.own), *inputs_of(self.other)}

    @property
    def pairs(self) -> tuple[str, ...]:
        """On which of batch and head it depends."""
        return tuple(name for name in ("b", "h") if name in self.own.names | self.other.names)


class ValueRuns(NamedTuple):
    """Runs of equal values in the rows of a table, in reading order; int64 [runs], positions in the row."""

    row: Array
    start: Array
    stop: Array
    value: Array


def with_intervals(block_map: BlockMap, mask: Expr, side: str, values: Mapping[str, Any]) -> SidedMask:
    """The mask, with an interval along `side` ("q" or "kv") for each equality that is one; else it stays.

    block_map: of the mask, with the tensors that it reads. values: numbers, sizes and tensors by name.
    """
    parts = list(parts_of(simplify(mask)))
    values = dict(values)
    for count, part in enumerate(tuple(parts)):
        equality = equality_of(part, side)
        if equality is None:
            continue
        conditions = [each for each in parts if _belongs(each, equality)]
        tables = _tables(block_map, values, equality, conditions)
        if tables is None:
            continue
        names = [f"{end}.{count}" for end in ("first", "end")]
        values |= zip(names, tables, strict=True)
        index = tuple(var(name) for name in (*equality.pairs, equality.own_side))
        first, end = (load(input_(name, ("_",) * len(index)), index) for name in names)
        interval = apply("and", apply("ge", var(side), first), apply("lt", var(side), end))
        parts = [interval if each is part else each for each in parts if each not in conditions]
    return SidedMask(reduce(lambda a, b: apply("and", a, b), parts), values)


def equality_of(part: Expr, side: str) -> Equality | None:
    """A part as an equality of what loads on one side and what loads on the other; None where it is none.

    Integers are equal where their difference is 0, and terms may change sides even past 64 bits (see `linear`).
    """
    if not isinstance(part, Apply) or part.op != "eq" or any(arg.type is not Type.INT for arg in part.args):
        return None
    own_side = "q" if side == "kv" else "kv"
    terms, constant = added(linear(part.args[0]), linear(part.args[1]), -1)
    other = {term: count for term, count in terms.items() if side in term.names}
    own = {term: -count for term, count in terms.items() if side not in term.names}
    if any(own_side in term.names for term in other):
        return None
    equality = Equality(from_linear(own, -constant), from_linear(other, 0), own_side, side)
    loads = own_side in equality.own.names and inputs_of(equality.own) and inputs_of(equality.other)
    return equality if loads else None


def _belongs(part: Expr, equality: Equality) -> bool:
    """Is a part a condition on one side alone that reads what the equality reads, as `ids[q] >= 0`?"""
    names = part.names
    inputs = {*inputs_of(part)}
    one_sided = len(names & {"q", "kv"}) == 1
    return one_sided and bool(inputs) and inputs <= equality.inputs and names & {"b", "h"} <= {*equality.pairs}


def _tables(
    block_map: BlockMap, values: Mapping[str, Any], equality: Equality, conditions: list[Expr]
) -> list[torch.Tensor] | None:
    """First and one past the last position of the other side, int32 [batch, heads, own length], without a dim on which
    the equality does not depend; None where the positions of some value are no interval.
    """
    lengths = {"q": block_map.q_len, "kv": block_map.kv_len}
    counts = [int(values[{"b": "batch", "h": "heads"}[name]]) for name in equality.pairs]
    if prod(counts) * max(lengths.values()) > MOST_ENTRIES:
        return None
    numbers = {name: value for name, value in values.items() if not isinstance(value, torch.Tensor)}

    def evaluated(expr: Expr, along: str) -> Array:
        """Its value at all positions of a side, [batch * heads, length]."""
        shape = (*counts, lengths[along])
        positions = dict(zip((*equality.pairs, along), np.indices(shape, sparse=True), strict=True))
        known = evaluate_at(specialise(expr, numbers, {}), positions, block_map.tensors)
        return np.broadcast_to(known, shape).reshape(prod(counts), -1)

    def where(along: str) -> Array:
        met = [evaluated(each, along) for each in conditions if along in each.names]
        return np.logical_and.reduce([np.ones((prod(counts), lengths[along]), bool), *met])

    own, other = equality.own_side, equality.other_side
    ends = first_and_end(evaluated(equality.own, own), where(own), evaluated(equality.other, other), where(other))
    return None if ends is None else [torch.from_numpy(end).reshape(*counts, lengths[own]) for end in ends]


def first_and_end(own: Array, own_met: Array, other: Array, other_met: Array) -> tuple[Array, Array] | None:
    """Where in its row of `other` each value of `own` stands, as first and one past the last position, int32 of own's
    shape; 0 and 0 where it stands nowhere. None where it stands in several runs.

    own: [rows, own length], other: [rows, other length], and bool of the same shapes, what takes part.
    """
    mine, others = runs_of(own, own_met), runs_of(other, other_met)
    distinct, rank = np.unique(others.value, return_inverse=True)
    key = others.row * len(distinct) + rank
    order = np.argsort(key, kind="stable")
    place = np.searchsorted(distinct, mine.value)
    known = np.append(distinct, 0)[place] == mine.value
    known &= place < len(distinct)
    wanted = mine.row * len(distinct) + place
    left, right = (np.searchsorted(key[order], wanted, side) for side in ("left", "right"))
    count = np.where(known, right - left, 0)
    if (count > 1).any():
        return None
    run = np.append(order, 0)[np.where(count, left, -1)]
    first, end = np.zeros(own.shape, np.int32), np.zeros(own.shape, np.int32)
    for table, positions in ((first, others.start), (end, others.stop)):
        of_run = np.where(count, np.append(positions, 0)[run], 0)
        table[own_met] = np.repeat(of_run, mine.stop - mine.start)  # reading order, as the runs
    return first, end


def runs_of(values: Array, met: Array) -> ValueRuns:
    """The runs of equal values in each row of [rows, length], of positions that take part."""
    fresh = np.ones(values.shape, bool)
    fresh[:, 1:] = (values[:, 1:] != values[:, :-1]) | (met[:, 1:] != met[:, :-1])
    start = np.flatnonzero(fresh)
    stop = np.append(start[1:], values.size)
    taking_part = met.reshape(-1)[start]
    start, stop = start[taking_part], stop[taking_part]
    row = start // values.shape[1]
    return ValueRuns(row, start % values.shape[1], stop - row * values.shape[1], values.reshape(-1)[start])
