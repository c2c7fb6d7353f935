"""The search behind `fs.fit`: how large each family may be at a budget, and how much weight its masks keep."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from flexspec.errors import FlexSpecError
from flexspec.mask import Mask
from flexspec.order import Order
from flexspec.source import user_caret

from ..blocks.block_map import BlockMap
from ..blocks.points import Array
from ..pipeline import block_map
from .families import Family
from .observed import Observed

STEPS = 4
"""Sizes of a family that are measured: the largest within the budget, and its half, quarter and eighth."""
LIMIT = 1 << 20
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
        found = self.map(mask, order)
        if (by or self.by) == "pairs":
            each = [found.kept(which) / (self.q_len * self.kv_len) for which in range(len(found.maps))]
        else:
            dense = -(-self.q_len // self.block_size[0]) * -(-self.kv_len // self.block_size[1])
            each = [sum(runs.counts().values()) / dense for runs in found.maps]
        return [each[which] for which in np.broadcast_to(found.index, (1, self.heads))[0]]


@dataclass(frozen=True, eq=False)
class Trial:
    """A mask of a family under an order, and its density on each head."""

    family: Family
    mask: Mask
    order: Order | None
    density: Sequence[float]


def sized(family: Family, problem: Problem) -> list[Trial]:
    """The largest mask of a family within the budget, under the order that lets it be largest, and smaller ones."""
    seen: dict[tuple[int, Order | None], Trial] = {}

    def at(index: int, order: Order | None) -> Trial:
        if (index, order) not in seen:
            mask = family.make(family.sizes[index])
            seen[index, order] = Trial(family, mask, order, problem.density(mask, order))
        return seen[index, order]

    def worst_of(order: Order | None, index: int) -> float:
        return max(at(index, order).density)

    best: Trial | None = None
    largest = -1
    for order in family.orders:
        index = _largest(partial(worst_of, order), largest, len(family.sizes), problem.budget)
        if index < 0:
            continue
        found = at(index, order)
        if best is None or index > largest or max(found.density) < max(best.density):
            best, largest = found, index
    if best is None:
        return []
    halves = [family.sizes[largest] // 2**step for step in range(1, STEPS)]
    smaller = {bisect_right(family.sizes, size) - 1 for size in halves} - {-1, largest}
    return [best, *(at(index, best.order) for index in sorted(smaller, reverse=True))]


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
            found = density(middle)
            if found <= budget:
                low = middle
            else:
                high, above = middle, found
    return low


def masses(trials: Sequence[Trial], observed: Observed, problem: Problem) -> list[Array]:
    """The weight that each trial's mask keeps of each head, float64 [heads] for each trial; equal masks are met once.

    A trial of one head has the others at 0.
    """
    places: dict[tuple[Mask, int | None], int] = {}
    for trial in trials:
        places.setdefault((trial.mask, trial.family.head), len(places))
    common = [_Rows(mask, head, observed, problem) for mask, head in places if head is None]
    own = [_Rows(mask, head, observed, problem) for mask, head in places if head is not None]
    heads = torch.arange(observed.heads)
    found = {id(job): torch.zeros(observed.heads, dtype=torch.float64) for job in (*common, *own)}
    for some, part, _ in observed.chunks():
        flat = part.flatten(1)
        step = max(1, LIMIT // flat.shape[1])
        for start in range(0, len(common), step):
            jobs = common[start : start + step]
            counts = [len(job.firsts) for job in jobs]
            kept = torch.empty(sum(counts), *part.shape[1:], dtype=torch.float64)
            for place, rows in zip(kept, (rows for job in jobs for rows in job.kept(some)), strict=True):
                place.copy_(rows)
            for job, sums in zip(jobs, (kept.flatten(1) @ flat.T).split(counts), strict=True):
                found[id(job)] += sums[job.which, heads]
        for job in own:
            found[id(job)][job.head] += flat[job.head] @ job.kept(some)[0].flatten().to(torch.float64)
    jobs_of = dict(zip([key for key in places if key[1] is None], common, strict=True))
    jobs_of |= dict(zip([key for key in places if key[1] is not None], own, strict=True))
    return [found[id(jobs_of[trial.mask, trial.family.head])].numpy() for trial in trials]


class _Rows:
    """What a mask keeps of an observed map's entries, some rows at a time."""

    def __init__(self, mask: Mask, head: int | None, observed: Observed, problem: Problem) -> None:
        self.map = problem.map(mask)
        self.head = head
        index = np.broadcast_to(self.map.index, (1, problem.heads))[0]
        chosen = index if head is None else index[head : head + 1]
        firsts, which = np.unique(chosen, return_index=True, return_inverse=True)[1:]
        self.firsts = [int(first) for first in firsts] if head is None else [head]
        """A head for each of the mask's different maps."""
        self.which = torch.from_numpy(which)
        blocks = self.map.kv_blocks
        self.blocks = [self.map.of(0, h).dense(blocks) != 0 for h in self.firsts] if observed.pooled else []

    def kept(self, some: slice) -> list[torch.Tensor]:
        """bool [rows, columns] for each of `firsts`."""
        if self.blocks:
            return [torch.from_numpy(blocks[some]) for blocks in self.blocks]
        return [self.map.tokens(some.start, some.stop, 0, self.map.kv_len, h=h) for h in self.firsts]


def nothing_fits(tried: Sequence[Family], problem: Problem) -> FlexSpecError:
    """The error where no candidate has a mask within the budget, with the least density there is."""
    least = min(
        (max(problem.density(family.make(family.sizes[0]), order)), family.name)
        for family in tried
        for order in family.orders
    )
    message = f"no candidate is within a budget of {problem.budget:.3g} of the {problem.by}"
    fix = f"the smallest, {least[1]}, has density {least[0]:.3g}: raise the budget, or take smaller blocks"
    return FlexSpecError("FS025", message, fix=fix, where=user_caret())
