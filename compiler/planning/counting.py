"""Exact counts of blocks for any mask, order and block size: by boxes where they hold, else from a block map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd, prod
from typing import NamedTuple

import numpy as np
import torch

from flexspec.expr import Expr, apply, const, inputs_of, params_of, substitute, var
from flexspec.inputs import Bound
from flexspec.mask import Mask
from flexspec.order import Order, in_memory

from ..blocks.block_map import BlockMap
from ..blocks.classify import classify
from ..blocks.grid import Grid, make_grid
from ..blocks.integer_range import check_range
from ..blocks.tensor_ranges import TensorRanges, ranges_of
from ..evaluation.points import Array
from ..maps import block_map
from ..simplify.specialise import specialise, specialise_each
from .block_counts import BlockCounts, coarser, of_runs
from .boxes import boxes, count_blocks, permutation, relations
from .candidates import Candidate

DENSE = 1 << 25
"""Blocks at most of a map that is held as a table, to read coarser ones from it."""
SAMPLED_ROWS = 24
"""Rows of blocks in a sample."""

Block = tuple[int, int]
"""Tokens of a block: query, key."""


class Sample(NamedTuple):
    """The counts of a few rows of blocks, for each expression, and how many rows each of these stands for."""

    counts: list[BlockCounts]
    rows_each: int


@dataclass
class Counter:
    """Counts of one mask with its values: each distinct (batch, head) once.

    ranges: of the mask's tensors. exprs: the distinct masks over coordinates, everything but positions filled in.
    index: int64 [batch | 1, heads | 1], the place in `exprs` of each (batch, head).
    """

    mask: Mask
    bound: Bound
    ranges: TensorRanges
    exprs: Sequence[Expr]
    index: Array

    @classmethod
    def of(cls, mask: Mask, bound: Bound) -> Counter:
        ranges = ranges_of(bound)
        check_range(mask.expr, ranges.tensors)
        filled = specialise_each(mask.expr, bound, ranges.tensors)
        distinct = list(dict.fromkeys(filled.flat))
        index = np.array([distinct.index(expr) for expr in filled.flat]).reshape(filled.shape)
        return cls(mask, bound, ranges, distinct, index)

    @cached_property
    def relations(self) -> list[dict[str, Array] | None]:
        """Of each expression, one relation for each axis, where it is such an AND."""
        return [relations(expr, self.mask.canvas, self.ranges.tensors) for expr in self.exprs]

    @cached_property
    def by_boxes(self) -> bool:
        """Is every expression a condition on each axis?"""
        return all(by_axis is not None for by_axis in self.relations)

    def block_map(self, which: int, order: Order | None, block: Block) -> BlockMap:
        """The block map of one of the expressions."""
        mask = alone(self.mask, self.exprs[which], self.bound.tensors)
        return block_map(mask, self.bound.sizes.q_len, self.bound.sizes.kv_len, block_size=block, order=order)

    def kept_pairs(self, which: int, order: Order | None, block: Block) -> int:
        """Pairs that one of the expressions keeps; without conditions by axis, counted in the map of this order."""
        by_axis = self.relations[which]
        if by_axis is not None:  # a kept pair of tokens is a kept pair of coordinates on each axis, chosen freely
            return prod(int(relation.sum()) for relation in by_axis.values())
        return self.block_map(which, order, block).kept_pairs

    def grid(self, order: Order | None, block: Block) -> Grid:
        return make_grid(self.bound.sizes, block, order)

    def finest(self, order: Order | None, blocks: Sequence[Block]) -> Grid:
        """Blocks that all these sizes are multiples of."""
        return self.grid(order, (gcd(*(q for q, _ in blocks)), gcd(*(kv for _, kv in blocks))))

    def block_counts(self, candidate: Candidate) -> dict[Block, list[BlockCounts]]:
        """For every block size of a candidate, the counts by row of each expression."""
        counts: dict[Block, list[BlockCounts]] = {}
        if self.by_boxes:
            counts = self._from_boxes(candidate)
        left = [block for block in candidate.block_sizes if block not in counts]
        if left:
            by_expr = [self._from_map(which, candidate.order, left) for which in range(len(self.exprs))]
            counts |= {block: [by_block[block] for by_block in by_expr] for block in left}
        return counts

    def _from_boxes(self, candidate: Candidate) -> dict[Block, list[BlockCounts]]:
        """The block sizes of a candidate that make boxes of the canvas."""
        assert self.mask.canvas is not None
        canvas, order = self.mask.canvas, candidate.order
        orders = [None if order is None else order.side(side) for side in ("q", "kv")]
        places = {each: permutation(each, canvas.size) for each in orders}
        made = {
            (each, size): boxes(places[each], canvas, size)
            for side, each in enumerate(orders)
            for size in {block[side] for block in candidate.block_sizes}
        }
        counts = {}
        for block in candidate.block_sizes:
            q, kv = (made[each, size] for each, size in zip(orders, block, strict=True))
            if q is not None and kv is not None:
                counts[block] = [count_blocks(by_axis, q, kv) for by_axis in self.relations if by_axis is not None]
        return counts

    def _from_map(self, which: int, order: Order | None, blocks: Sequence[Block]) -> dict[Block, BlockCounts]:
        """One block map in the common parts of the sizes; the others are read from it."""
        grid = self.finest(order, blocks)
        if grid.q_blocks * grid.kv_blocks > DENSE:
            return {block: of_runs(self.block_map(which, order, block).of()) for block in blocks}
        kinds = self.block_map(which, order, (grid.block_q, grid.block_kv)).of().dense(grid.kv_blocks)
        return {block: coarser(kinds, (block[0] // grid.block_q, block[1] // grid.block_kv)) for block in blocks}

    def sample(self, order: Order | None, block: Block) -> Sample:
        """A first look at a few rows of blocks, not a count of all."""
        grid = self.grid(order, block)
        size = min(block[0], grid.q_len)
        whole = grid.q_len // size  # a ragged last row is left out
        step = -(-whole // SAMPLED_ROWS)
        rows = whole // step
        # The middle row of each `step` rows, written as a mask of its own: query `q` of it is the query of the same
        # place in row `q // size * step + step // 2`.
        row = apply("floordiv", var("q"), const(size))
        q_idx = apply("add", apply("mul", row, const(step * size)), apply("mod", var("q"), const(size)))
        sampled = {"q": apply("add", q_idx, const(step // 2 * size))}
        few = Grid(rows * size, grid.kv_len, size, block[1])
        exprs = [specialise(substitute(self._in_memory(expr, order), sampled), {}, {}) for expr in self.exprs]
        return Sample([of_runs(classify(expr, few, self.ranges)) for expr in exprs], step)

    def _in_memory(self, expr: Expr, order: Order | None) -> Expr:
        sizes = self.bound.sizes
        memory = in_memory(expr, order, self.mask.on, sizes.q_len, sizes.kv_len)
        return specialise(memory, {}, self.ranges.tensors)


def alone(mask: Mask, expr: Expr, tensors: Mapping[str, torch.Tensor]) -> Mask:
    """A mask with this expression instead, and of its tensors and parameters those that it reads."""
    held = {name: tensor for name, tensor in tensors.items() if name in inputs_of(expr)}
    parameters = {name: item for name, item in mask.parameters.items() if name in params_of(expr)}
    return replace(mask, expr=expr, tensors=held, parameters=parameters, predicate=None)
