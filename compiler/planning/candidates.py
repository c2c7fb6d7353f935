"""The orders that a plan chooses from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations, product
from math import prod

from flexspec.canvas import AnyCanvas, Canvas, CanvasPair
from flexspec.expr import Apply, Const, Expr, walk
from flexspec.order import Order, as_order, axes, dilated, hilbert, morton, tiled

PADDING = 1.25
"""Memory positions at most, of the canvas' tokens: tiles that do not divide a side are padded."""
AXES = 4
"""A canvas of more axes keeps them in place: its permutations are too many."""


@dataclass(frozen=True)
class Candidate:
    """An order with the block sizes, (query, key) in tokens, that are tried in it."""

    order: Order | None
    block_sizes: tuple[tuple[int, int], ...]


def candidates(
    canvas: AnyCanvas | None,
    block_sizes: Sequence[tuple[int, int]],
    more: Iterable[Order | None] = (),
    steps: Mapping[str, int] | None = None,
) -> list[Candidate]:
    """Every permutation of the axes, curves, `more` orders, tiles, and residue classes by `steps` of each axis.

    Without a canvas there is nothing to choose from but `more`. Of a canvas for each side, both are permuted, tiled and
    so on alike, each by the axes that it has, or one of them stays as it is.

    The sides of a tile are divisors of the axis or powers of two. It is tried with block sizes that make boxes of it:
    one of the two is its volume, or it lies between them.

    >>> [str(candidate.order) for candidate in candidates(Canvas(h=4, w=6), [(4, 4)])]
    ['row_major', 'axes(w, h)', 'morton', 'hilbert', 'tiled(h=2, w=2)', 'tiled(h=4, w=1)']
    """
    sizes = tuple(block_sizes)
    given = [Candidate(order, sizes) for order in more]
    if canvas is None:
        return [Candidate(None, sizes), *given]
    if isinstance(canvas, CanvasPair):
        return [*(Candidate(order, sizes) for order in _pairs(canvas, steps)), *given, *_pair_tilings(canvas, sizes)]
    fitting = [order for make in _families(canvas.names, steps) if (order := _fitting(make, canvas))]
    return [*(Candidate(order, sizes) for order in fitting), *given, *_tilings(canvas, sizes)]


def _families(names: Sequence[str], steps: Mapping[str, int] | None) -> list[Callable[[Canvas], Order | None]]:
    """What makes an order of a canvas, by the axes that it has of `names`."""

    def permuted(canvas: Canvas, names: Sequence[str]) -> Order:
        return axes(canvas, *(name for name in names if name in canvas.names))

    makers: list[Callable[[Canvas], Order | None]] = [
        partial(permuted, names=each) for each in (permutations(names) if len(names) <= AXES else [names])
    ]
    if len(names) > 1:
        makers += [morton, hilbert]
    if steps:
        makers.append(lambda canvas: dilated(canvas, {name: steps.get(name, 1) for name in canvas.names}))
    return makers


def _fitting(make: Callable[[Canvas], Order | None], canvas: Canvas | None) -> Order | None:
    """The order of a canvas, if there is one that pads little."""
    order = make(canvas) if canvas else None
    return order if canvas and order and order.padded(canvas.size) <= PADDING * canvas.size else None


def _pairs(canvases: CanvasPair, steps: Mapping[str, int] | None) -> list[Order | None]:
    """Orders for each side, None first."""
    found: dict[Order | None, None] = {None: None}
    for make in _families(_axes_of(canvases), steps):
        q, kv = (_moving(_fitting(make, canvases.side(side))) for side in ("q", "kv"))
        found |= dict.fromkeys(as_order(pair) for pair in ((q, kv), (q, None), (None, kv)))
    return list(found)


def _moving(order: Order | None) -> Order | None:
    """The order, None if it is the sequence as it stands."""
    return None if str(order) == "row_major" else order


def _axes_of(canvases: CanvasPair) -> tuple[str, ...]:
    """The axes of both sides, each once."""
    sides = canvases.lengths.values()
    return tuple(dict.fromkeys(name for lengths in sides for name in lengths))


def steps_of(expr: Expr, canvas: Canvas | None) -> dict[str, int]:
    """By axis, the largest number that a query's coordinate is divided by for its remainder: a mask's dilation."""
    steps: dict[str, int] = {}
    for node in walk(expr) if canvas else ():
        if canvas and isinstance(node, Apply) and node.op == "mod" and isinstance(node.args[1], Const):
            axis, step = str(node.args[0]).removeprefix("q."), int(node.args[1].value)
            if 1 < step < canvas.lengths.get(axis, 0):
                steps[axis] = max(step, steps.get(axis, 1))
    return steps


def _tilings(canvas: Canvas, block_sizes: tuple[tuple[int, int], ...]) -> list[Candidate]:
    tilings = []
    for tile in _tiles(canvas, max(max(pair) for pair in block_sizes)):
        counts = [-(-length // tile[name]) for name, length in canvas.axes]
        fitting = tuple(pair for pair in block_sizes if _fits(pair, counts, tuple(tile.values())))
        if fitting and prod(tile.values()) > 1:
            tilings.append(Candidate(tiled(canvas, tile), fitting))
    return tilings


def _tiles(canvas: Canvas, largest: int) -> Iterator[dict[str, int]]:
    """Tiles of at most `largest` tokens that pad little, by axis."""
    if len(canvas.names) == 1:
        return  # tiles of a line are the line
    for sides in product(*(_sides(length) for length in canvas.lengths.values())):
        places = prod(-(-length // side) * side for length, side in zip(canvas.lengths.values(), sides, strict=True))
        if prod(sides) <= largest and places <= PADDING * canvas.size:
            yield dict(zip(canvas.names, sides, strict=True))


def _pair_tilings(canvases: CanvasPair, block_sizes: tuple[tuple[int, int], ...]) -> list[Candidate]:
    """Tiles on both sides, one block each; on the axes that both have, one is made of whole ones of the other."""
    found: dict[Order | None, list[tuple[int, int]]] = {}
    for pair in block_sizes:
        each = [_blocks_as_tiles(canvases.side(side), block) for side, block in zip(("q", "kv"), pair, strict=True)]
        for (q_tile, q_order), (kv_tile, kv_order) in product(*each):
            sides = [(q_tile[name], kv_tile[name]) for name in q_tile.keys() & kv_tile.keys()]
            if not any(q % kv for q, kv in sides) or not any(kv % q for q, kv in sides):
                found.setdefault(as_order((q_order, kv_order)), []).append(pair)
    return [Candidate(order, tuple(sizes)) for order, sizes in found.items() if order is not None]


def _blocks_as_tiles(canvas: Canvas | None, block: int) -> list[tuple[dict[str, int], Order | None]]:
    """The tiles of a side that are one block, with their orders; a line stays as it is."""
    if canvas is None or len(canvas.names) == 1:
        return [({}, None)]
    return [(tile, tiled(canvas, tile)) for tile in _tiles(canvas, block) if prod(tile.values()) == block]


def _fits(pair: tuple[int, int], counts: Sequence[int], tile: Sequence[int]) -> bool:
    """Is the tile's volume between the two blocks, which are boxes? Tiles of other volumes make the same boxes."""
    return min(pair) <= prod(tile) <= max(pair) and all(cut_evenly((*counts, *tile), block) for block in pair)


def _sides(length: int) -> list[int]:
    powers = {1 << power for power in range(length.bit_length())}
    return sorted(powers | {side for side in range(1, length + 1) if length % side == 0})


def cut_evenly(digits: Sequence[int], block: int) -> bool:
    """Is each run of `block` positions a box, where positions are numbers with these digits, the last the fastest?"""
    # A run fills the fastest digits whole as long as each divides what is left of it. At the first that does not, the
    # run must divide the digit, so that every run is a range of this digit under fixed slower ones.
    if block >= prod(digits):
        return True
    for place in reversed(range(len(digits))):
        if block % digits[place]:  # a range of the leading digit may be ragged at its end
            return digits[place] % block == 0 or prod(digits[:place]) == 1
        block //= digits[place]
    return True
