"""From candidates to a ranked table: count, cost, sort, and look at the first again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from flexspec.expr import var
from flexspec.order import Order, Table

from ..blocks.runs import BlockKind
from ..evaluation.points import Array
from .block_counts import BlockCounts, Totals
from .boxes import is_arithmetic, orders_of
from .candidates import Candidate
from .cost import Shape, attention_seconds, permutation_seconds
from .counting import Block, Counter
from .hardware import Hardware
from .plans import HeadGroup, Plan, Plans

EXHAUSTIVE = 1 << 22
"""Blocks in all candidates' maps up to which each is made; past that, a sample of rows decides which are."""
AFTER_SAMPLE = 8
"""Orders that get a map after a sample."""
DENSE_BLOCK = (128, 128)
"""Blocks of dense attention, which plans are compared with."""

Progress = Callable[[int, int], None]


class Counted(NamedTuple):
    """An order with a block size, and for each expression its counts of blocks by row."""

    order: Order | None
    block_size: Block
    counts: list[BlockCounts]


@dataclass(frozen=True)
class Ranking:
    """How the candidates of one mask compare on one device."""

    counter: Counter
    shape: Shape
    hardware: Hardware
    moved: bool
    label: str

    def plans(self, tried: Sequence[Candidate], check: int, progress: Progress) -> Plans:
        """The plans of all candidates, and where the mask differs by head, those of each kind of head."""
        many, sampled = len(tried) > AFTER_SAMPLE and self._cells(tried) > EXHAUSTIVE, 0
        if many and not self.counter.by_boxes:
            sampled = len(tried)
            tried = self._promising(tried, progress)
        counted: list[Counted] = []
        for done, candidate in enumerate(tried, sampled):
            progress(done, sampled + len(tried))
            by_block = self.counter.block_counts(candidate)
            counted += [Counted(candidate.order, block, counts) for block, counts in by_block.items()]
        progress(sampled + len(tried), sampled + len(tried))
        index = self.counter.index
        whole = self._ranked(counted, index, self.shape, check)
        if index.shape[1] == 1:
            return whole
        groups = []
        for heads in heads_by_mask(index):
            own = replace(self.shape, heads=len(heads), kv_heads=len({self._key_head(head) for head in heads}))
            groups.append(HeadGroup(heads, self._ranked(counted, index[:, heads], own, min(check, 1))))
        return replace(whole, by_head=tuple(groups))

    def _key_head(self, head: int) -> int:
        return head * self.shape.kv_heads // self.shape.heads

    def _cells(self, tried: Sequence[Candidate]) -> int:
        """Blocks in the maps of all candidates."""
        grids = [self.counter.finest(candidate.order, candidate.block_sizes) for candidate in tried]
        return sum(grid.q_blocks * grid.kv_blocks for grid in grids) * len(self.counter.exprs)

    def _promising(self, tried: Sequence[Candidate], progress: Progress) -> list[Candidate]:
        """The first candidate, those that are best in a sample of rows of blocks, and orders that are no arithmetic."""
        kept, guesses = {0}, []
        for number, candidate in enumerate(tried):
            progress(number, len(tried) + AFTER_SAMPLE)
            if not is_arithmetic(candidate.order, self.shape.q_len):
                kept.add(number)
                continue
            block = min(candidate.block_sizes, key=lambda pair: abs(pair[0] - 128) + abs(pair[1] - 128))
            sample = self.counter.sample(candidate.order, block)
            repeat = sample.rows_each * self.shape.batch * self.shape.heads
            guesses.append((self._seconds(candidate.order, block, sample.counts, repeat), number))
        kept |= {number for _, number in sorted(guesses)[:AFTER_SAMPLE]}
        return [candidate for number, candidate in enumerate(tried) if number in kept]

    def _seconds(self, order: Order | None, block: Block, counts: list[BlockCounts], repeat: int) -> float:
        return attention_seconds(counts, repeat, block, self.shape, self.hardware) + self._moving(order, self.shape)

    def _moving(self, order: Order | None, shape: Shape) -> float:
        """Seconds to move tokens in and out, of the sides where the order moves any."""
        if not self.moved:
            return 0.0
        sides = [side for side in ("q", "kv") if moves(None if order is None else order.side(side), shape.length(side))]
        return permutation_seconds(shape, self.hardware, sides)

    def _ranked(self, counted: Sequence[Counted], index: Array, shape: Shape, check: int) -> Plans:
        """Plans for the (batch, head) of `index`, the first of them counted again by their block maps."""
        row = np.full(-(-shape.q_len // DENSE_BLOCK[0]), -(-shape.kv_len // DENSE_BLOCK[1]))
        heads = shape.batch * shape.heads
        dense = attention_seconds([BlockCounts(row, row)], heads, DENSE_BLOCK, shape, self.hardware)
        pairs = shape.q_len * shape.kv_len * index.size
        plans = []
        for order, block, by_expr in counted:
            counts, grid = [by_expr[which] for which in index.flat], self.counter.grid(order, block)
            moving = self._moving(order, shape)
            seconds = moving + attention_seconds(counts, heads // index.size, block, shape, self.hardware)
            totals = Totals(*np.sum([count.totals for count in counts], axis=0).tolist())
            possible = index.size * grid.q_blocks * grid.kv_blocks
            kept = partial(self._kept, index, order, block)
            plans.append(Plan(order, block, *totals, possible, seconds, moving, pairs, dense, kept))
        plans.sort(key=_rank)
        checked = [self._checked(plan, index) for plan in plans[:check]]
        return Plans(self.label, shape, self.hardware, (*checked, *plans[check:]))

    def _checked(self, plan: Plan, index: Array) -> Plan:
        """The plan with the counts of its block map."""
        maps = [self.counter.block_map(which, plan.order, plan.block_size) for which in index.flat]
        counts = [block_map.counts() for block_map in maps]
        computed, full = (sum(count[kind] for count in counts) for kind in (BlockKind.PARTIAL, BlockKind.FULL))
        return replace(plan, partial=computed, full=full)

    def _kept(self, index: Array, order: Order | None, block: Block) -> int:
        pairs = {which: self.counter.kept_pairs(which, order, block) for which in {*index.flat}}
        return sum(pairs[which] for which in index.flat)


def _rank(plan: Plan) -> tuple[object, ...]:
    """Quickest first; of equal ones those that compute less, in fewer blocks, move nothing, or need no table."""
    loads = any(isinstance(each, Table) for each in orders_of(plan.order))
    size = plan.computed_pairs, plan.blocks, plan.partial
    return plan.seconds, *size, not plan.stays, loads, str(plan.order), plan.block_size


def heads_by_mask(index: Array) -> list[tuple[int, ...]]:
    """Heads by their column of `index`, int64 [batch, heads]: those with the same masks together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for head, column in enumerate(index.T.tolist()):
        groups.setdefault(tuple(column), []).append(head)
    return [tuple(heads) for heads in groups.values()]


def moves(order: Order | None, length: int) -> bool:
    """Does the order put any token elsewhere?"""
    places = [each.place(var("m"), length) for each in orders_of(order)]
    return any(place.logical is not var("m") or place.valid is not None for place in places)
