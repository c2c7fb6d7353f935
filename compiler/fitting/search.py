"""The search behind `fs.fit`: how large each family may be at a budget, and how much weight its masks keep."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from flexspec.mask import Mask
from flexspec.order import Order

from ..blocks.block_map import BlockMap
from ..blocks.runs import BlockKind
from ..evaluation.points import Array
from ..maps import block_map
from .families import Family
from .observed import Observed

STEPS = 4
"""Sizes of a family that are measured: the largest within the budget, and its half, quarter and eighth."""
WIDTH = 128
"""Keys in a block while weights are summed."""
LIMIT = 1 << 22
"""Most pairs of masks that are held as float64 at once."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What densities are measured against: lengths in tokens, the blocks, the budget and what it counts."""

    q_len: int
    kv_len: int
    heads: int
    block_size: tuple[int, int]
    budget: float
    by: str

    def map(self, mask: Mask, order: Order | None = None) -> BlockMap:
        """The block map of a mask that may depend on the head."""
        size = self.block_size
        return block_map(mask, self.q_len, self.kv_len, batch=1, heads=self.heads, block_size=size, order=order)

    def density(self, mask: Mask, order: Order | None, by: str | None = None) -> list[float]:
        """The share of a dense map that each head computes (in blocks) or keeps (in pairs)."""
        block_map = self.map(mask, order)
        if (by or self.by) == "pairs":
            shares = [block_map.kept(which) / (self.q_len * self.kv_len) for which in range(len(block_map.maps))]
        else:
            dense = -(-self.q_len // self.block_size[0]) * -(-self.kv_len // self.block_size[1])
            shares = [sum(runs.counts().values()) / dense for runs in block_map.maps]
        return [shares[which] for which in np.broadcast_to(block_map.index, (1, self.heads))[0]]


@dataclass(frozen=True, eq=False)
class Trial:
    """A mask of a family under an order, and its density on each head."""

    family: Family
    mask: Mask
    order: Order | None
    density: Sequence[float]


def sized(family: Family, problem: Problem) -> list[Trial]:
    """The largest mask of a family within the budget, under the order that lets it be largest, and smaller ones."""
    measured: dict[tuple[int, Order | None], Trial] = {}

    def trial_of(index: int, order: Order | None) -> Trial:
        if (index, order) not in measured:
            mask = family.make(family.sizes[index])
            measured[index, order] = Trial(family, mask, order, problem.density(mask, order))
        return measured[index, order]

    def worst_of(order: Order | None, index: int) -> float:
        return max(trial_of(index, order).density)

    best: Trial | None = None
    largest = -1
    for order in family.orders:
        index = _largest(partial(worst_of, order), largest, len(family.sizes), problem.budget)
        if index < 0:
            continue
        trial = trial_of(index, order)
        if best is None or index > largest or max(trial.density) < max(best.density):
            best, largest = trial, index
    if best is None:
        return []
    halves = [family.sizes[largest] // 2**step for step in range(1, STEPS)]
    smaller = {bisect_right(family.sizes, size) - 1 for size in halves} - {-1, largest}
    halved = [trial_of(index, best.order) for index in sorted(smaller, reverse=True)]
    return [best, *(trial for trial in halved if max(trial.density) <= problem.budget)]  # not all families grow


def _largest(density: Callable[[int], float], least: int, count: int, budget: float) -> int:
    """The largest index from `least` on (or 0) whose density is within the budget, else -1; density grows with it."""
    low, high = max(least, 0), count
    if low >= count or density(low) > budget:
        return -1
    if low + 1 < count and density(low + 1) > budget:
        return low
    above = 1.0
    while high - low > 1:
        # Densities are close to linear: go where the line crosses the budget, and halve in between.
        guess = low + int((high - low) * (budget - density(low)) / max(above - density(low), 1e-12))
        for middle in (guess, (low + high) // 2):
            middle = min(max(middle, low + 1), high - 1)
            if middle <= low or middle >= high:
                continue
            share = density(middle)
            if share <= budget:
                low = middle
            else:
                high, above = middle, share
    return low


def masses(trials: Sequence[Trial], observed: Observed, problem: Problem) -> list[Array]:
    """The weight that each trial's mask keeps of each head, float64 [heads] for each trial; equal masks are met once.

    A trial of one head has the others at 0. Of a row of blocks, full runs are differences of running sums, partial
    ones are evaluated; where most of it is partial, several masks are one matrix product with all heads.
    """
    jobs: dict[tuple[Mask, int | None], _Kept] = {}
    for trial in trials:
        key = trial.mask, trial.family.head
        if key not in jobs:
            jobs[key] = _Kept(*key, observed, problem)
    for rows, weights, _ in observed.chunks():
        until = torch.nn.functional.pad(weights.sum(1).cumsum(-1), (1, 0))
        left = [item for job in jobs.values() for item in job.by_runs(rows, weights, until)]
        step = max(1, LIMIT // weights[0].numel())
        for start in range(0, len(left), step):
            _whole_rows(left[start : start + step], rows, weights)
    return [jobs[trial.mask, trial.family.head].sums.numpy() for trial in trials]


class _Kept:
    """What a mask keeps of an observed map so far: `sums` [heads], of one head where that is given."""

    def __init__(self, mask: Mask, head: int | None, observed: Observed, problem: Problem) -> None:
        self.pooled = observed.pooled
        self.map = (problem if self.pooled else replace(problem, block_size=(observed.step, WIDTH))).map(mask)
        self.sums = torch.zeros(observed.heads, dtype=torch.float64)
        index = np.broadcast_to(self.map.index, (1, problem.heads))[0]
        heads = np.arange(problem.heads) if head is None else np.array([head])
        self.groups = [heads[index[heads] == which] for which in np.unique(index[heads])]
        """Heads that share a map."""

    def by_runs(self, rows: slice, weights: torch.Tensor, until: torch.Tensor) -> list[_Left]:
        """Add the rows where they are mostly empty or full; what is left, to be evaluated as a whole.

        until: float64 [heads, columns + 1], the weight of all keys before each, so that a run is a difference of two.
        """
        if self.pooled:
            return [_Left(self, heads) for heads in self.groups]
        left = []
        for heads in self.groups:
            runs = self.map.runs(rows.start // self.map.block_q, h=int(heads[0]))
            spans = [(first * WIDTH, min(stop * WIDTH, self.map.kv_len), kind) for first, stop, kind in runs]
            if 2 * sum(stop - start for start, stop, kind in spans if kind is BlockKind.PARTIAL) > self.map.kv_len:
                left.append(_Left(self, heads))
                continue
            chosen = heads if 1 < len(heads) < len(weights) else slice(int(heads[0]), int(heads[-1]) + 1)
            for start, stop, kind in spans:
                if kind is BlockKind.FULL:
                    self.sums[chosen] += until[chosen, stop] - until[chosen, start]
                else:
                    kept = self.map.tokens(rows.start, rows.stop, start, stop, h=int(heads[0])).numpy()
                    part = weights[chosen, :, start:stop].numpy()
                    added = np.einsum("hqk,qk->h", part, kept.astype(np.float64))  # too small for threads
                    self.sums[chosen] += torch.from_numpy(added)
        return left

    def entries(self, rows: slice, head: int) -> torch.Tensor:
        """bool [rows, columns]: which entries are kept."""
        if self.pooled:
            return torch.from_numpy(self.map.of(0, head).dense(self.map.kv_blocks)[rows] != 0)
        return self.map.tokens(rows.start, rows.stop, 0, self.map.kv_len, h=head)


class _Left(NamedTuple):
    """Heads of a job, of one map, whose rows are still to be added."""

    job: _Kept
    heads: Array


def _whole_rows(left: Sequence[_Left], rows: slice, weights: torch.Tensor) -> None:
    kept = torch.empty(len(left), *weights.shape[1:], dtype=torch.float64)
    for entries, (job, heads) in zip(kept, left, strict=True):
        entries.copy_(job.entries(rows, int(heads[0])))
    # Masks of one head need that head's weights only; those of several are one product with the weights of all heads.
    several = [len(heads) > 1 for _, heads in left]
    sums = iter(kept[several].flatten(1) @ weights.flatten(1).T if any(several) else kept[:0])
    for (job, heads), entries in zip(left, kept, strict=True):
        if len(heads) > 1:
            job.sums[heads] += next(sums)[heads]
        else:
            job.sums[heads] += weights[int(heads[0])].flatten() @ entries.flatten()
