"""Where two masks differ: exact counts of pairs, the first pair each way, and rectangles of blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from flexspec.expr import Expr, apply, const
from flexspec.inputs import Bound
from flexspec.mask import Mask, from_mask_mod
from flexspec.order import flatten

from ..blocks.block_map import BlockMap
from ..blocks.grid import BlockSize
from ..blocks.runs import BlockKind, Runs
from ..evaluation.points import Array
from ..pipeline import Stages, map_of
from ..simplify.specialise import specialise
from .assume import reduced
from .proof import MaskLike, never, paired, without
from .search import PAIRS

MOST_REGIONS = 8
Place = tuple[int, int, int, int]
"""(b, h, q, kv)."""


class Rectangles(NamedTuple):
    """Sides of rectangles in tokens, each int64 [rectangles]."""

    q_start: Array
    q_stop: Array
    kv_start: Array
    kv_stop: Array


class Region(NamedTuple):
    """A rectangle of blocks in all of which `only` ("a" or "b") keeps pairs that the other drops, in tokens."""

    only: str
    b: int
    h: int
    q_start: int
    q_stop: int
    kv_start: int
    kv_stop: int

    @property
    def area(self) -> int:
        return (self.q_stop - self.q_start) * (self.kv_stop - self.kv_start)

    def __str__(self) -> str:
        q, kv = f"{self.q_start:,} to {self.q_stop - 1:,}", f"{self.kv_start:,} to {self.kv_stop - 1:,}"
        return f"only {self.only}: b {self.b}, h {self.h}, q {q}, kv {kv}"


@dataclass(frozen=True, eq=False, repr=False)
class Diff:
    """Where two masks differ; true when they do, as a list of differences is. Made by `fs.diff`.

    only_a, only_b: pairs that only one keeps, in all batches if the masks depend on b, in all heads if on h. first_a,
    first_b: the first such (b, h, q, kv) in reading order, or None. regions: rectangles of blocks that hold all of
    them, the largest first; at most 8 of `region_count`. blocks_a, blocks_b: the block maps of `a - b` and `b - a`.
    """

    a: Mask
    b: Mask
    only_a: int
    only_b: int
    first_a: Place | None
    first_b: Place | None
    regions: tuple[Region, ...]
    region_count: int
    blocks_a: BlockMap
    blocks_b: BlockMap
    _shared: tuple[Mask, Bound, BlockSize] = field(repr=False)

    def __bool__(self) -> bool:
        return bool(self.only_a or self.only_b)

    def __repr__(self) -> str:
        return f"Diff(only_a={self.only_a}, only_b={self.only_b}, first_a={self.first_a}, first_b={self.first_b})"

    def __str__(self) -> str:
        size = f"{self.blocks_a.q_len:,} queries x {self.blocks_a.kv_len:,} keys"
        if not self:
            return f"no difference on {size}\n  a  {self.a.label}\n  b  {self.b.label}"
        lines = [f"different on {size}"]
        for name, mask, count, first in (
            ("a", self.a, self.only_a, self.first_a),
            ("b", self.b, self.only_b, self.first_b),
        ):
            place = dict(zip(("b", "h", "q", "kv"), first or (), strict=bool(first)))
            where = ", the first at " + ", ".join(f"{key}={value:,}" for key, value in place.items()) if place else ""
            lines += [f"  {name}  {mask.label}", f"     only here: {counted(count)}{where}"]
        lines += [f"  {region}" for region in self.regions]
        more = self.region_count - len(self.regions)
        return "\n".join(lines + ([f"  ... and {more:,} smaller regions"] if more else []))

    @cached_property
    def blocks_both(self) -> BlockMap:
        """The block map of `a & b`, made when it is first asked for."""
        mask, bound, block_size = self._shared
        return map_of(mask, bound, block_size, None, torch.device("cpu"), Stages())

    def show(
        self,
        path: str | Path | None = None,
        *,
        b: int = 0,
        h: int = 0,
        region: tuple[int, int, int, int] | None = None,
    ) -> Path | str:
        """Draw where both keep, only a, only b: to a picture file (its path is returned), or in the terminal.

        b, h: which batch and head. region: (q_start, q_stop, kv_start, kv_stop) draws the pairs themselves there.
        Raises FS030, FS054.
        """
        from ..draw import diff as drawing

        if path is not None:
            return drawing.save(self, path, b=b, h=h, region=region)
        drawn = drawing.draw(self, b=b, h=h, region=region)
        print(drawn)
        return drawn


def diff(
    a: MaskLike,
    b: MaskLike,
    length: int | None = None,
    kv_len: int | None = None,
    *,
    block_size: BlockSize = 128,
    **given: Any,
) -> Diff:
    """Where two masks differ: a `Diff`, which is true when they do.

    a, b: masks, or FlexAttention mask_mods.
    length: tokens (or q_len); a canvas' own size where left out.
    kv_len: tokens; default: length.
    block_size: of the regions and drawings, tokens, one number or (query, key).
    given: batch and heads, where a mask depends on them, and run-time values by name.

    Counts are exact: blocks in which only some pairs differ are evaluated.

    Raises FS020 (a value or the length is missing), FS021, FS022, FS023, FS025 (a value is unknown or does not fit),
    FS026 (names of the two masks disagree), FS030, FS031, FS032 (lengths, the block size, batch and heads, canvases),
    FS024 (an index leaves its tensor), FS034 (integers past 64 bits), FS035 (a division by zero), and what
    `from_mask_mod` raises for a function.

    >>> import flexspec as fs
    >>> print(fs.diff(fs.causal_window(4), fs.causal() & fs.sliding_window(4), 300))
    different on 300 queries x 300 keys
      a  causal_window(window=4)
         only here: 0 pairs
      b  causal() & sliding_window(window=4)
         only here: 296 pairs, the first at b=0, h=0, q=4, kv=0
      only b: b 0, h 0, q 128 to 255, kv 0 to 255
      only b: b 0, h 0, q 0 to 127, kv 0 to 127
      only b: b 0, h 0, q 256 to 299, kv 128 to 299
    """
    a, b = from_mask_mod(a), from_mask_mod(b)
    pair, of_call, values = paired(a, b, length, kv_len, given)
    left, right = pair.expr.children
    bound = pair.bind(of_call, values)
    sides = [without(left, right), without(right, left)]
    first_a, first_b = (cast(Place | None, never(pair, side, bound).counterexample) for side in sides)
    maps = [
        _blocks_of(pair, side if first else const(False), bound, block_size)
        for side, first in zip(sides, (first_a, first_b), strict=True)
    ]
    sizes = (("b", bound.sizes.batch or 1), ("h", bound.sizes.heads or 1))
    copies = prod(size for name, size in sizes if name in pair.expr.names)
    # A side may depend on fewer of batch and head than the pair does: then each of its maps stands for several.
    only_a, only_b = (pairs_in(block_map) * (copies // block_map.index.size) for block_map in maps)
    parts = [part for name, block_map in zip("ab", maps, strict=True) for part in _regions(name, block_map)]
    both = replace(pair, expr=apply("and", left, right), label=f"{a.label} and {b.label}")
    total = sum(part.total for part in parts)
    largest = sorted((region for part in parts for region in part.largest), key=lambda region: -region.area)
    regions = tuple(largest[:MOST_REGIONS])
    shared = (both, bound, block_size)
    return Diff(a, b, only_a, only_b, first_a, first_b, regions, total, maps[0], maps[1], shared)


def counted(pairs: int) -> str:
    return f"{pairs:,} pair{'' if pairs == 1 else 's'}"


def _blocks_of(pair: Mask, expr: Expr, bound: Bound, block_size: BlockSize) -> BlockMap:
    """The block map of a side: values are filled in first, and what its own parts rule out is left out."""
    filled = specialise(flatten(expr, pair.on), bound.all_numbers(), {})
    side = replace(pair, expr=reduced(filled), canvas=None, canvases=None, predicate=None)
    return map_of(side, bound, block_size, None, torch.device("cpu"), Stages())


def pairs_in(block_map: BlockMap) -> int:
    """Pairs that a map keeps, over its (batch, head): full runs by their size, partial blocks evaluated."""
    pairs = [
        _full_pairs(runs, block_map) + _partial_pairs(which, block_map) for which, runs in enumerate(block_map.maps)
    ]
    return sum(pairs[which] for which in block_map.index.flat)


def _full_pairs(runs: Runs, block_map: BlockMap) -> int:
    rows = np.repeat(np.arange(block_map.q_blocks), np.diff(runs.first))
    full = runs.kind == BlockKind.FULL
    row, start, stop = (of_run[full].astype(np.int64) for of_run in (rows, runs.start, runs.stop))
    height = np.minimum((row + 1) * block_map.block_q, block_map.q_len) - row * block_map.block_q
    width = np.minimum(stop * block_map.block_kv, block_map.kv_len) - start * block_map.block_kv
    return int((height * width).sum())


def _partial_pairs(which: int, block_map: BlockMap) -> int:
    runs = block_map.maps[which]
    partial = np.flatnonzero(runs.kind == BlockKind.PARTIAL)
    rows = np.repeat(np.arange(block_map.q_blocks), np.diff(runs.first))[partial]
    total, at_once = 0, max(1, PAIRS // (block_map.block_q * block_map.block_kv))
    for row, column in _blocks(rows, runs.start[partial], runs.stop[partial], at_once):
        q = np.stack([row * block_map.block_q, np.minimum((row + 1) * block_map.block_q, block_map.q_len)], 1)
        kv_stop = np.minimum((column + 1) * block_map.block_kv, block_map.kv_len)
        total += int(block_map.pairs(which, q, np.stack([column * block_map.block_kv, kv_stop], 1)).sum())
    return total


def _blocks(rows: Array, start: Array, stop: Array, at_once: int) -> Iterator[tuple[Array, Array]]:
    """Row and column of the blocks of runs, at most `at_once` of them at a time."""
    ends = np.cumsum((stop - start).astype(np.int64))
    for first in range(0, int(ends[-1]) if len(ends) else 0, at_once):
        number = np.arange(first, min(first + at_once, int(ends[-1])))
        run = np.searchsorted(ends, number, side="right")
        yield rows[run], stop[run] - (ends[run] - number)


class Regions(NamedTuple):
    """The largest regions of one (batch, head), and how many there are."""

    largest: list[Region]
    total: int


def _regions(name: str, block_map: BlockMap) -> Iterator[Regions]:
    """Of each (batch, head)."""
    rectangles = [_rectangles(runs, block_map) for runs in block_map.maps]
    for (b, h), which in np.ndenumerate(block_map.index):
        sides = rectangles[which]
        area = (sides.q_stop - sides.q_start) * (sides.kv_stop - sides.kv_start)
        largest = np.argsort(-area, kind="stable")[:MOST_REGIONS]
        places = np.stack(sides, 1)[largest].tolist()
        yield Regions([Region(name, b, h, *place) for place in places], len(area))


def _rectangles(runs: Runs, block_map: BlockMap) -> Rectangles:
    """Runs of blocks that are not empty, equal ones of neighbouring rows as one: sides in tokens, from the top."""
    rows = np.repeat(np.arange(block_map.q_blocks), np.diff(runs.first))
    start, stop = runs.start.astype(np.int64), runs.stop.astype(np.int64)
    fresh = np.ones(len(rows), bool)
    fresh[1:] = (rows[1:] != rows[:-1]) | (start[1:] != stop[:-1])  # a full run beside a partial one is one run
    head = np.flatnonzero(fresh)
    last = np.append(head[1:], len(rows)) - 1 if len(rows) else head
    rows, start, stop = rows[head], start[head], stop[last]
    order = np.lexsort((rows, stop, start))  # equal runs next to each other, from the top
    rows, start, stop = rows[order], start[order], stop[order]
    fresh = np.ones(len(rows), bool)
    fresh[1:] = (start[1:] != start[:-1]) | (stop[1:] != stop[:-1]) | (rows[1:] != rows[:-1] + 1)
    top = np.flatnonzero(fresh)
    bottom = np.append(top[1:], len(rows)) - 1 if len(rows) else top
    order = np.lexsort((start[top], rows[top]))  # in reading order again
    top, bottom = top[order], bottom[order]
    q_stop = np.minimum((rows[bottom] + 1) * block_map.block_q, block_map.q_len)
    kv_stop = np.minimum(stop[top] * block_map.block_kv, block_map.kv_len)
    return Rectangles(rows[top] * block_map.block_q, q_stop, start[top] * block_map.block_kv, kv_stop)
