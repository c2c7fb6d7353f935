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
from flexspec.inputs import Bound, make_sizes
from flexspec.mask import Mask, from_mask_mod
from flexspec.order import Order, OrderLike, Rows, as_order, in_memory, relocate
from flexspec.positions import bind_call
from flexspec.weight import Weight

from .blocks.block_map import BlockMap
from .blocks.classify import Trail, classify
from .blocks.defined import check_defined
from .blocks.derived import Derives
from .blocks.flex_lists import to_flex
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


def block_map(
    mask: Mask | Callable[..., Any],
    q_len: int,
    kv_len: int | None = None,
    *,
    batch: int | None = None,
    heads: int | None = None,
    block_size: BlockSize = 128,
    order: OrderLike = None,
    device: torch.device | str = "cpu",
    exact: bool = True,
    **inputs: Any,
) -> BlockMap:
    """Which blocks of a mask are empty, partial or full: exact, derived from the expression.

    mask: a `Mask`, or a FlexAttention mask_mod as it is.
    q_len, kv_len: tokens; kv_len defaults to q_len.
    batch, heads: how many, needed where the mask depends on them and no input says it.
    block_size: tokens, one number or (query, key).
    order: where tokens lie in memory; the map is over memory positions, padding included. A pair is one for each side,
        a list one for each head.
    device: of the tensors that the map gives.
    exact: False leaves a block PARTIAL that bounds alone do not decide, which is correct and may be quicker.
    inputs: run-time values by name, and `q_positions` and `kv_positions` as a call of `fs.compile` takes them.

    Raises FS020 (a value is missing), FS021 (an unknown name), FS022 (a tensor of another shape, an order of another
    batch), FS023 (a value of another type), FS024 (an index leaves its tensor), FS025 (a number that its annotation
    refuses), FS026 (a value has the name of the order's table), FS030 (lengths, counts, block_size), FS031 (batch or
    heads are needed), FS032 (a canvas of another length), FS033 (an order that is none, or of another length), FS034
    (integers past 64 bits), FS035 (a division by zero, at a pair that is evaluated), FS036 (positions), and for a
    mask_mod what `from_mask_mod` raises.

    >>> import flexspec as fs
    >>> fs.block_map(fs.causal_window(256), 1_000_000).counts()
    {<BlockKind.EMPTY: 0>: 61019533, <BlockKind.PARTIAL: 1>: 15624, <BlockKind.FULL: 2>: 7812}
    """
    mask, order = from_mask_mod(mask), as_order(order)
    sizes = make_sizes(q_len, kv_len, batch, heads)
    bound = bind_call(Attention(mask).parts, sizes, inputs, order, device)
    return map_of(mask, bound, block_size, order, torch.device(device), Stages(), exact=exact)


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
        check_positions(mask.expr, bound, ranges.tensors)
        check_range(expr, ranges.tensors)
        check_defined([expr if bound.rows else mask.flat], bound, ranges)
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
    check_defined([expr if bound.rows else mask.flat], bound, None)
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
        block_map = map_of(mask, bound, block_size, order, device, stages, ranges=ranges)
    else:
        block_map = map_on_device(mask, bound, block_size, order, device)
    exprs = expressions(attention, order, bound.sizes.q_len, bound.sizes.kv_len, bound.rows)
    values = {**bound.all_numbers(), **bound.tensors}
    return Lowered(attention, order, *exprs, attention.parts.weight, block_map, values)


def expressions(
    attention: Attention, order: Order | None, q_len: int, kv_len: int, rows: Rows | None = None
) -> tuple[Expr, Expr]:
    """Mask and score over memory positions (see `in_memory`)."""
    parts = attention.parts
    where = (order, parts.mask.on, q_len, kv_len, rows)
    return in_memory(parts.mask.expr, *where), relocate(parts.score.expr, *where)


def create_block_mask(
    mask_mod: Callable[..., Any],
    B: int | None,
    H: int | None,
    Q_LEN: int,
    KV_LEN: int,
    device: torch.device | str | None = None,
    BLOCK_SIZE: BlockSize = 128,
    _compile: bool = False,
    separate_full_blocks: bool = True,
    *,
    exact: bool = True,
    **write_order: bool,
) -> Any:
    """Drop-in for torch's `create_block_mask`: the same arguments, the same lists, derived and not evaluated.

    mask_mod: as torch takes it, or a `Mask`.
    B, H: batch and heads. A mask that depends on one that is None is an error: torch takes index 0 silently.
    Q_LEN, KV_LEN: tokens.
    device: of the lists; None: the accelerator, or the CPU where there is none.
    BLOCK_SIZE: tokens, one number or (query, key).
    _compile: torch's own; nothing here is compiled.
    separate_full_blocks: False lists full blocks with the partial ones.
    exact: with False nothing waits for the device, even where the mask reads tensors there; blocks that their bounds
        leave open are listed as partial.
    write_order: compute_dq_write_order and dq_kv_order, where this torch has them.

    Raises FS042 (this torch has no dq write order), and what `block_map` raises; of a mask_mod, which has no values to
    give, mostly FS024 (an index leaves its tensor), FS030 (a size) and FS031 (B or H is needed).
    """
    mask = from_mask_mod(mask_mod)
    target = torch.device(device or torch.accelerator.current_accelerator() or "cpu")
    blocks: BlockMap | DeviceMap
    if exact:
        blocks = block_map(mask, Q_LEN, KV_LEN, batch=B, heads=H, block_size=BLOCK_SIZE, device=target)
    else:
        blocks = map_on_device(mask, mask.bind(make_sizes(Q_LEN, KV_LEN, B, H), {}), BLOCK_SIZE, None, target)
    own = blocks.mask_mod if isinstance(mask_mod, Mask) else mask_mod
    return to_flex(blocks, own, B or 1, H or 1, separate_full_blocks=separate_full_blocks, **write_order)
