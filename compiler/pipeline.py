"""The way through: spec, expression, simplified expression, blocks, kernel. Read this file first.

predicate --trace--> Expr --in_memory--> Expr --specialise--> Expr --classify--> BlockMap --lower--> kernel
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from flexspec.errors import FlexSpecError, choices
from flexspec.expr import Apply, Expr, Load, Param, Var, walk
from flexspec.inputs import Bound, Sizes, check_length, make_sizes
from flexspec.mask import Mask, from_mask_mod
from flexspec.ops import Type
from flexspec.order import Order, bound_in_memory, in_memory
from flexspec.source import user_caret

from .backends.torch_source import function_of
from .blocks.block_map import BlockMap
from .blocks.bounds import Grid, spread
from .blocks.classify import Trail, classify
from .blocks.intervals import FAR
from .blocks.points import Array, evaluate_at
from .blocks.tables import Tables
from .simplify import as_array, simplify, specialise

BlockSize = int | tuple[int, int]
MAX_BLOCKS = 1 << 23
"""Most blocks on a side: a thousand million tokens in blocks of 128."""


@dataclass
class Stages:
    """What each stage of one compilation made, and how long it took in seconds."""

    results: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Any:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def block_map(
    mask: Mask | Callable[..., Any],
    q_len: int,
    kv_len: int | None = None,
    *,
    batch: int | None = None,
    heads: int | None = None,
    block_size: BlockSize = 128,
    order: Order | None = None,
    device: torch.device | str = "cpu",
    exact: bool = True,
    **inputs: Any,
) -> BlockMap:
    """Which blocks of a mask are empty, partial or full: exact, derived from the expression.

    q_len, kv_len: tokens (kv_len defaults to q_len). batch, heads: needed where the mask depends on them and no input
    says it. block_size: tokens, one number or (query, key). order: where tokens lie in memory; the map is over
    memory positions, padding included. device: of the tensors that the map gives. exact: False leaves a block PARTIAL
    that bounds alone do not decide, which is correct and may be quicker. inputs: run-time values by name.
    Raises FS020 to FS035.

    >>> import flexspec as fs
    >>> fs.block_map(fs.causal_window(256), 1_000_000).counts()
    {<BlockKind.EMPTY: 0>: 61019533, <BlockKind.PARTIAL: 1>: 15624, <BlockKind.FULL: 2>: 7812}
    """
    mask = from_mask_mod(mask)
    sizes = make_sizes(q_len, kv_len, batch, heads)
    bound = bound_in_memory(mask.bind(sizes, inputs), order, device)
    return map_of(mask, bound, block_size, order, torch.device(device), Stages(), exact=exact)


def map_of(
    mask: Mask,
    bound: Bound,
    block_size: BlockSize,
    order: Order | None,
    device: torch.device,
    stages: Stages,
    *,
    tables: Tables | None = None,
    exact: bool = True,
) -> BlockMap:
    """The pipeline from a mask and its values to its block map; every stage's result is kept in `stages`.

    tables: of the same tensors, if a caller keeps them.
    """
    grid = make_grid(bound.sizes, block_size, order)
    with stages.timed("EXPR"):
        expr = in_memory(mask.expr, order, mask.canvas, bound.sizes.q_len, bound.sizes.kv_len)
    with stages.timed("SIMPLIFIED"):
        tables = tables or tables_of(bound)
        check_range(expr, tables.tensors)
        exprs = specialise_each(expr, bound, tables.tensors)
    with stages.timed("BLOCKS"):
        trail = Trail()
        unique = list(dict.fromkeys(exprs.reshape(-1)))
        maps = [classify(each, grid, tables, trail, exact=exact) for each in unique]
        index = np.array([unique.index(each) for each in exprs.reshape(-1)]).reshape(exprs.shape)
    stages.results |= {"EXPR": expr, "SIMPLIFIED": unique, "BLOCKS": trail}
    return BlockMap(
        mask.label,
        grid,
        tuple(maps),
        tuple(unique),
        index,
        tables.tensors,
        order,
        mask_mod_of(expr, bound, device),
        device,
    )


def mask_mod_of(expr: Expr, bound: Bound, device: torch.device) -> Callable[[], Any]:
    """Prints an expression as a FlexAttention mask_mod, when asked."""
    return partial(function_of, expr, {**bound.all_numbers(), **bound.tensors}, kind="mask_mod", device=device)


def by_content(tensor: torch.Tensor) -> bool:
    """Is a tensor known by what it holds? On the CPU anyone may write to its memory unseen by torch."""
    return tensor.device.type == "cpu" or tensor.is_inference()


def tables_of(bound: Bound) -> Tables:
    """The tensors of a binding as arrays, with tables of what they hold."""
    return Tables({name: as_array(tensor) for name, tensor in bound.tensors.items()})


def make_grid(sizes: Sizes, block_size: BlockSize, order: Order | None) -> Grid:
    """The grid of blocks over memory positions. FS030, FS033."""
    pair = block_size if isinstance(block_size, tuple) else (block_size, block_size)
    if len(pair) != 2:
        raise FlexSpecError("FS030", f"block_size is {block_size!r}", fix="give 128 or (128, 64)", where=user_caret())
    block_q, block_kv = (check_length("block_size", side) for side in pair)
    rows = max(sizes.q_len // block_q, sizes.kv_len // block_kv)
    if rows > MAX_BLOCKS:
        message = f"{rows:,} blocks on a side are more than {MAX_BLOCKS:,}"
        raise FlexSpecError("FS030", message, fix="give a larger block_size", where=user_caret())
    if order is None:
        return Grid(sizes.q_len, sizes.kv_len, block_q, block_kv)
    check_orders([order])
    order.check(sizes.q_len)
    order.check(sizes.kv_len)
    return Grid(order.padded(sizes.q_len), order.padded(sizes.kv_len), block_q, block_kv)


def check_orders(given: object, name: str = "orders") -> list[Order | None]:
    """A list of orders, None for tokens as they are. FS033."""
    if isinstance(given, (Order, str)) or not isinstance(given, Iterable):
        fix = f"give a list: {name}=[fs.tiled(...), fs.hilbert(...)]"
        raise FlexSpecError("FS033", f"{name} is {given!r}", fix=fix, where=user_caret())
    orders = list(given)
    for order in orders:
        if order is not None and not isinstance(order, Order):
            fix = "give fs.tiled(...), fs.hilbert(...), fs.striped(...) or another order"
            raise FlexSpecError("FS033", f"order is {order!r}", fix=fix, where=user_caret())
    return orders


def specialise_each(expr: Expr, bound: Bound, tensors: Mapping[str, Array]) -> Any:
    """The expression of each (batch, head), an object array [batch | 1, heads | 1]; equal ones are one object."""
    whole = specialise(expr, bound.all_numbers(), {})
    batch = (bound.sizes.batch or 1) if "b" in whole.names else 1
    heads = (bound.sizes.heads or 1) if "h" in whole.names else 1
    exprs = np.empty((batch, heads), object)
    made: dict[tuple[Any, ...], Expr] = {}
    for (b, h), told in _told_apart(whole, batch, heads, tensors):
        if told not in made:
            places = {name: at for name, at in (("b", b), ("h", h)) if name in whole.names}
            made[told] = specialise(whole, places, tensors)
        exprs[b, h] = made[told]
    for axis in (0, 1):
        if (exprs == exprs.take([0], axis)).all():
            exprs = exprs.take([0], axis)
    return exprs


def _told_apart(
    expr: Expr, batch: int, heads: int, tensors: Mapping[str, Array]
) -> Iterator[tuple[tuple[int, int], tuple[Any, ...]]]:
    """Each (b, h), and the values of all parts that depend on these alone: where they agree, so does the expression."""
    parts, stack = [], [expr]
    while stack:
        node = stack.pop()
        if {"q", "kv", "score"} & {name.partition(".")[0] for name in node.names}:  # q.h is of a query too
            stack.extend(node.children)
        elif node.names & {"b", "h"}:
            parts.append(node)
    at = {"b": np.arange(batch)[:, None], "h": np.arange(heads)[None, :]}
    values = [np.broadcast_to(evaluate_at(part, at, tensors), (batch, heads)) for part in dict.fromkeys(parts)]
    for b, h in np.ndindex(batch, heads):
        yield (b, h), tuple(repr(value[b, h]) for value in values)


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
            if node.op in _WRAPPING:
                message = f"`{node}` computes with integers of {choices(large & node.names)} past {FAR:.3g}"
                fix = "compare them as they are, or store smaller numbers"
                raise FlexSpecError("FS034", message, fix=fix, where=user_caret())
            if node.op not in ("mod", "sign"):
                reached.add(node)


_WRAPPING = {"add", "sub", "mul", "neg", "abs", "lshift", "floordiv"}


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
    found = spread(walk(expr), known, tables_of(bound).over)
    integers = [end for node, both in found.items() if node.type is Type.INT for end in both]
    return any(bool(((end <= -(2**31)) | (end >= 2**31)).any()) for end in integers)


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

    A mask that depends on the batch or the head and is given none is an error (FS031): torch takes index 0 silently.
    exact: with False nothing waits for the device, even where the mask reads tensors there; blocks that their bounds
    leave open are listed as partial. write_order: compute_dq_write_order and dq_kv_order, where this torch has them.
    Raises what `from_mask_mod` and `block_map` raise.
    """
    from .blocks.flex_lists import to_flex  # torch's flex_attention is slow to import and only needed from here on
    from .blocks.on_device import DeviceMap, map_on_device

    mask = from_mask_mod(mask_mod)
    target = torch.device(device or torch.accelerator.current_accelerator() or "cpu")
    made: BlockMap | DeviceMap
    if exact:
        made = block_map(mask, Q_LEN, KV_LEN, batch=B, heads=H, block_size=BLOCK_SIZE, device=target)
    else:
        made = map_on_device(mask, mask.bind(make_sizes(Q_LEN, KV_LEN, B, H), {}), BLOCK_SIZE, None, target)
    own = made.mask_mod if isinstance(mask_mod, Mask) else mask_mod
    return to_flex(made, own, B or 1, H or 1, separate_full_blocks=separate_full_blocks, **write_order)
