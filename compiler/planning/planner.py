"""`fs.plan`: candidates, exact counts, costs, a ranking."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any

from flexspec.attention import Attention, as_attention
from flexspec.canvas import AnyCanvas, Canvas, CanvasPair
from flexspec.errors import FlexSpecError
from flexspec.expr import var
from flexspec.inputs import Bound, Sizes, check_length, make_sizes
from flexspec.mask import Mask
from flexspec.order import Order, OrderLike
from flexspec.user_line import user_caret

from ..blocks.grid import BlockSize, check_orders, make_grid
from .boxes import orders_of
from .candidates import Candidate, candidates, steps_of
from .cost import Shape
from .counting import Block, Counter
from .hardware import Hardware, hardware_of
from .plans import Plans
from .ranking import Ranking

SIDES = (64, 128, 256)
"""Sides of blocks that are tried, for queries and for keys."""


def plan(
    spec: Attention | Mask | Callable[..., Any],
    q_len: int | Canvas | None = None,
    kv_len: int | None = None,
    *,
    hardware: str | Hardware = "h100",
    batch: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int = 128,
    block_sizes: Iterable[BlockSize] | None = None,
    orders: Iterable[OrderLike] | None = None,
    more_orders: Iterable[OrderLike] = (),
    moved: bool = True,
    check: int = 5,
    progress: Callable[[int, int], None] | None = None,
    **inputs: Any,
) -> Plans:
    """The orders and block sizes that a mask could run in, best first: exact counts of blocks, seconds by a roofline.

    spec: a Mask, an Attention or a mask_mod.
    q_len, kv_len: tokens, or a Canvas; a canvas mask's own size where left out, and kv_len defaults to q_len.
    hardware: a100, h100, h200, b200, generic, or a `Hardware`.
    batch, heads, kv_heads, head_dim: of the call; one batch entry and one head where nothing says it.
    block_sizes: tokens, each one number or (query, key); default: all pairs of 64, 128 and 256.
    orders: those to choose from; default: row-major, all orders of the axes, morton, hilbert, residue classes where the
        mask is dilated, tiles whose blocks are boxes, and more_orders; of two canvases, for both or for one of them.
    more_orders: tried beside the default ones, or beside `orders`.
    moved: False where tokens lie in the order already (a model moves them once, at its entrance), so that no plan pays.
    check: so many of the first plans are counted again by their block maps.
    progress: called with how many candidates are done, and how many there are.
    inputs: run-time values by name.

    A mask that differs by head gets a plan for each group of heads too (`by_head`). Where a mask is no AND of
    conditions on single axes and the canvas is large, rows of blocks are sampled first, and the most promising orders
    counted. A canvas beside text (`fs.with_text`) is a plain sequence here: plan the canvas' part alone, and then the
    whole with `orders=[fs.concatenated(order, text), ...]`.

    Raises FS020 (a value is missing), FS021, FS022, FS023, FS025 (one is unknown or does not fit, or the spec is none),
    FS026 (a value has the name of an order's table), FS030, FS031, FS032 (lengths, block sizes, head_dim, batch and
    heads, a canvas), FS033 (an order), FS041 (hardware), FS024 (an index leaves its tensor), FS034 (integers past 64
    bits), FS035 (a division by zero), and what `from_mask_mod` raises for a function.

    Source: the search over orders is GNA's NATTENSim made exact; orders by head are PAROAttention's and Sparse
    VideoGen's.

    >>> import flexspec as fs
    >>> image = fs.Canvas(h=32, w=32)
    >>> plans = fs.plan(fs.neighborhood(image, window=5), block_sizes=[16], moved=False, heads=32)
    >>> str(plans.best.order), plans.best.blocks, plans.best.speedup
    ('tiled(h=8, w=2)', 480, 8.533333333333333)
    """
    attention = as_attention(spec)
    canvas = _canvas(q_len, attention.parts.mask)
    sizes = _block_sizes(block_sizes)
    bound = _bound(attention, make_sizes(*_lengths(q_len, kv_len, canvas), batch, heads), inputs)
    tried = _candidates(attention.parts.mask, bound, canvas, sizes, orders, more_orders)
    shape = _shape(bound, kv_heads, head_dim)
    ranking = Ranking(Counter.of(attention.parts.mask, bound), shape, hardware_of(hardware), moved, attention.label)
    return ranking.plans(tried, check_length("check", check, 0), progress or (lambda done, total: None))


def _bound(attention: Attention, sizes: Sizes, given: Mapping[str, Any]) -> Bound:
    """The values of the mask; what only scores and the weight read is left out, as no block depends on it."""
    mask = attention.parts.mask
    elsewhere = {name for expr in attention.parts.exprs for name in expr.names} - mask.expr.names
    return mask.bind(sizes, {name: value for name, value in given.items() if name not in elsewhere})


def _candidates(
    mask: Mask,
    bound: Bound,
    canvas: AnyCanvas | None,
    block_sizes: tuple[Block, ...],
    orders: Iterable[OrderLike] | None,
    more_orders: Iterable[OrderLike],
) -> list[Candidate]:
    """What is tried, at least one. FS033."""
    more = check_orders(more_orders, "more_orders", by_side=True)
    if orders is None:
        return candidates(
            canvas, block_sizes, _orders(bound, more), steps_of(mask.expr, canvas.side("q") if canvas else None)
        )
    tried = [Candidate(order, block_sizes) for order in _orders(bound, check_orders(orders, by_side=True) + more)]
    if not tried:
        raise FlexSpecError("FS033", "no order is given", fix="leave `orders` out for all", where=user_caret())
    return tried


def _canvas(q_len: object, mask: Mask) -> AnyCanvas | None:
    """What is ordered: the call's canvas, unless the mask has one for each side."""
    return q_len if isinstance(q_len, Canvas) and mask.canvases is None else mask.on


def _lengths(q_len: object, kv_len: int | None, canvas: AnyCanvas | None) -> tuple[int, int | None]:
    """Queries and keys in tokens. FS030."""
    q_canvas = canvas.side("q") if canvas else None
    if isinstance(canvas, CanvasPair) and kv_len is None and canvas.kv is not None:
        kv_len = canvas.kv.size
    if isinstance(q_len, int):
        return q_len, kv_len
    if q_canvas is None or q_len not in (None, q_canvas):
        message, fix = f"q_len is {q_len!r}", "give it in tokens, or a Canvas"
        raise FlexSpecError("FS030", message, fix=fix, where=user_caret())
    return q_canvas.size, kv_len


def _orders(bound: Bound, given: Iterable[Order | None]) -> list[Order | None]:
    """Orders that fit the lengths, each once. FS033."""
    orders = list(dict.fromkeys(given))
    for order in orders:
        make_grid(bound.sizes, 128, order)
        if any({"b", "h"} & each.place(var("m"), bound.sizes.q_len).logical.names for each in orders_of(order)):
            message = f"{order} differs by batch entry or head"
            raise FlexSpecError("FS033", message, fix="plan for one sequence and one head", where=user_caret())
    return orders


def _block_sizes(given: Iterable[BlockSize] | None) -> tuple[Block, ...]:
    """Pairs of tokens, at least one. FS030."""
    sizes = tuple(product(SIDES, SIDES)) if given is None else tuple(given) if isinstance(given, Iterable) else ()
    if not sizes:
        message, fix = f"block_sizes is {given!r}", "give a list: block_sizes=[128, (128, 64)]"
        raise FlexSpecError("FS030", message, fix=fix, where=user_caret())
    grids = [make_grid(make_sizes(1), size, None) for size in sizes]
    return tuple(dict.fromkeys((grid.block_q, grid.block_kv) for grid in grids))


def _shape(bound: Bound, kv_heads: int | None, head_dim: int) -> Shape:
    """The sizes of the call. FS030."""
    sizes, heads = bound.sizes, bound.sizes.heads or 1
    few = heads if kv_heads is None else check_length("kv_heads", kv_heads)
    if heads % few:
        message = f"{few} key heads do not divide {heads} heads"
        raise FlexSpecError("FS030", message, fix="give kv_heads that divides heads", where=user_caret())
    return Shape(sizes.q_len, sizes.kv_len, sizes.batch or 1, heads, few, check_length("head_dim", head_dim))
