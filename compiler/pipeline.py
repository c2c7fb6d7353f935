"""The way through: from a predicate to blocks and a kernel. Read this file first.

predicate --trace--> Expr --lower--> Expr over memory --specialise--> one a head --classify--> BlockMap --> kernel

`trace` is `fs.mask` (`flexspec.trace` runs the predicate on symbols). `lower` writes positions by the order, `map_of`
classifies blocks, `Lowered` holds both; the kernel is what a backend makes of a `Lowered` (`backends`), and it is kept
there. A call of a compiled attention (`attend`) is that value, bound numbers, and q, k, v.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from flexspec.attention import Attention
from flexspec.expr import Expr
from flexspec.formula import Formula
from flexspec.inputs import Bound
from flexspec.mask import Mask
from flexspec.order import Order, Rows, in_memory, relocate
from flexspec.weight import Weight

from .blocks.block_map import BlockMap
from .blocks.classify import Trail, classify
from .blocks.defined import check_defined
from .blocks.derived import Derives
from .blocks.grid import BlockSize, Grid, make_grid
from .blocks.integer_range import check_range
from .blocks.on_device import DeviceMap, kinds_on_device
from .blocks.positions import check_positions
from .blocks.tensor_ranges import TensorRanges, ranges_of
from .printers.python import function_of
from .simplify.specialise import specialise_each


@dataclass
class Stages:
    """What each stage of one compilation made, and how long it took in seconds."""

    results: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True, eq=False)
class Lowered(Derives):
    """An attention over memory positions with its block map: all that calls with these sizes and values share.

    mask, score: as the predicates say it; a weight's number is in `weight`. values: numbers and sizes, and the tensors
    that the mask reads or that hold integers, by name, as they were when the map was made: nobody writes to them.
    What a backend makes of it, such as printed functions and lists, is derived from it once.
    """

    attention: Attention
    order: Order | None
    mask: Expr
    score: Expr
    weight: Weight | None
    block_map: BlockMap | DeviceMap
    values: Mapping[str, Any]

    @property
    def grid(self) -> Grid:
        return self.block_map.grid


def map_of(
    mask: Mask,
    bound: Bound,
    block_size: BlockSize,
    order: Order | None,
    device: torch.device,
    stages: Stages,
    *,
    ranges: TensorRanges | None = None,
    exact: bool = True,
) -> BlockMap:
    """The pipeline from a mask and its values to its block map; every stage's result is kept in `stages`.

    ranges: of the same tensors, if a caller keeps them.
    """
    grid = make_grid(bound.sizes, block_size, order)
    with stages.timed("EXPR"):
        expr = in_memory(mask.expr, order, mask.on, bound.sizes.q_len, bound.sizes.kv_len, bound.rows)
    with stages.timed("SIMPLIFIED"):
        ranges = ranges or ranges_of(bound)
        check_positions([mask.expr], bound, ranges.tensors)
        check_range(expr, ranges.tensors)
        check_defined([by_row(mask, bound)], bound, ranges)
        exprs = specialise_each(expr, bound, ranges.tensors)
    with stages.timed("BLOCKS"):
        trail = Trail()
        unique = list(dict.fromkeys(exprs.reshape(-1)))
        maps = [classify(each, grid, ranges, trail, exact=exact) for each in unique]
        index = np.array([unique.index(each) for each in exprs.reshape(-1)]).reshape(exprs.shape)
    stages.results |= {"EXPR": expr, "SIMPLIFIED": unique, "BLOCKS": trail}
    return BlockMap(
        mask.label,
        grid,
        tuple(maps),
        tuple(unique),
        index,
        ranges.tensors,
        order,
        mask_mod_of(expr, bound, device),
        device,
    )


def mask_mod_of(expr: Expr, bound: Bound, device: torch.device) -> Callable[[], Any]:
    """Prints an expression as a FlexAttention mask_mod, when asked."""
    return partial(function_of, expr, {**bound.all_numbers(), **bound.tensors}, kind="mask_mod", device=device)


def map_on_device(
    mask: Mask, bound: Bound, block_size: BlockSize, order: Order | None, device: torch.device
) -> DeviceMap:
    """As `map_of` without waiting for the device: what bounds leave open is PARTIAL. FS024, FS030, FS033."""
    grid = make_grid(bound.sizes, block_size, order)
    expr = in_memory(mask.expr, order, mask.on, bound.sizes.q_len, bound.sizes.kv_len, bound.rows)
    check_defined([by_row(mask, bound)], bound, None)
    kinds, decided = kinds_on_device(expr, grid, bound, device)
    return DeviceMap(grid, kinds, mask_mod_of(expr, bound, device), decided)


def lower(
    attention: Attention,
    bound: Bound,
    block_size: BlockSize,
    order: Order | None,
    device: torch.device,
    stages: Stages,
    *,
    ranges: TensorRanges | None = None,
    exact: bool = True,
) -> Lowered:
    """An attention with the values that its mask reads, as what its calls share.

    exact: False bounds the blocks on the device and waits for nothing. Raises what `map_of` raises, FS026, FS033.
    """
    mask = attention.parts.mask
    block_map: BlockMap | DeviceMap
    if exact:
        ranges = ranges or ranges_of(bound)
        check_positions(attention.parts.own_token, bound, ranges.tensors)
        block_map = map_of(mask, bound, block_size, order, device, stages, ranges=ranges)
    else:
        block_map = map_on_device(mask, bound, block_size, order, device)
    exprs = expressions(attention, order, bound.sizes.q_len, bound.sizes.kv_len, bound.rows)
    values = {**bound.all_numbers(), **bound.tensors}
    return Lowered(attention, order, *exprs, attention.parts.weight, block_map, values)


def by_row(formula: Formula, bound: Bound) -> Expr:
    """A formula over a call's rows as they stand, in no order: where it is asked whether it has a value everywhere."""
    return relocate(formula.expr, None, formula.on, bound.sizes.q_len, bound.sizes.kv_len, bound.rows)


def expressions(
    attention: Attention, order: Order | None, q_len: int, kv_len: int, rows: Rows | None = None
) -> tuple[Expr, Expr]:
    """Mask and score over memory positions (see `in_memory`)."""
    parts = attention.parts
    where = (order, parts.mask.on, q_len, kv_len, rows)
    return in_memory(parts.mask.expr, *where), relocate(parts.score.expr, *where)
