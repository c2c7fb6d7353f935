"""The orders that a plan chooses from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from math import prod

from flexspec.canvas import Canvas
from flexspec.expr import Apply, Const, Expr, walk
from flexspec.order import Order, axes, dilated, hilbert, morton, tiled

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
    canvas: Canvas | None,
    block_sizes: Sequence[tuple[int, int]],
    more: Iterable[Order | None] = (),
    steps: Mapping[str, int] | None = None,
) -> list[Candidate]:
    """Every permutation of the axes, curves, `more` orders, tiles, and residue classes by `steps` of each axis.

    Without a canvas there is nothing to choose from but `more`.

    The sides of a tile are divisors of the axis or powers of two. It is tried with block sizes that make boxes of it:
    one of the two is its volume, or it lies between them.

    >>> [str(candidate.order) for candidate in candidates(Canvas(h=4, w=6), [(4, 4)])]
    ['row_major', 'axes(w, h)', 'morton', 'hilbert', 'tiled(h=2, w=2)', 'tiled(h=4, w=1)']
    """
    sizes = tuple(block_sizes)
    given = [Candidate(order, sizes) for order in more]
    if canvas is None:
        return [Candidate(None, sizes), *given]
    names = list(permutations(canvas.names)) if len(canvas.names) <= AXES else [canvas.names]
    orders = [axes(canvas, *permuted) for permuted in names]
    if len(canvas.names) > 1:
        orders += [morton(canvas), hilbert(canvas)]
    if steps:
        orders.append(dilated(canvas, {name: steps.get(name, 1) for name in canvas.names}))
    fitting = [order for order in orders if order.padded(canvas.size) <= PADDING * canvas.size]
    return [*(Candidate(order, sizes) for order in fitting), *given, *_tilings(canvas, sizes)]


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
    if len(canvas.names) == 1:
        return []  # tiles of a line are the line
    largest = max(max(pair) for pair in block_sizes)
    tilings = []
    for tile in product(*(_sides(length) for length in canvas.lengths.values())):
        counts = [-(-length // side) for length, side in zip(canvas.lengths.values(), tile, strict=True)]
        places = prod(counts) * prod(tile)
        if prod(tile) > largest or places > PADDING * canvas.size:
            continue
        fitting = tuple(pair for pair in block_sizes if _fits(pair, counts, tile))
        if fitting and prod(tile) > 1:
            tilings.append(Candidate(tiled(canvas, dict(zip(canvas.names, tile, strict=True))), fitting))
    return tilings


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
