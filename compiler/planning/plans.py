"""A ranked table of plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

from flexspec.order import Order

from .cost import Shape
from .hardware import Hardware

SHOWN = 10
"""Plans that a printed table has."""


@dataclass(frozen=True)
class Plan:
    """An order and a block size, what they cost, and how that compares.

    blocks: that are computed, over all (batch, head) that the mask tells apart, `partial` of them with the mask on each
    pair, `full` without. possible: blocks in all. seconds: of a forward pass by the cost model, moving tokens included
    (`moving`); the counts are exact, the seconds are an estimate. dense_pairs: the pairs of attention without a mask.
    """

    order: Order | None
    block_size: tuple[int, int]
    partial: int
    full: int
    possible: int
    seconds: float
    moving: float
    dense_pairs: int
    dense_seconds: float
    count_kept: Callable[[], int] = field(repr=False, compare=False)

    @property
    def blocks(self) -> int:
        return self.partial + self.full

    @property
    def stays(self) -> bool:
        """Does every token stay where it is?"""
        return self.order is None or str(self.order) == "row_major"

    @property
    def density(self) -> float:
        """The fraction of blocks that are computed."""
        return self.blocks / self.possible

    @property
    def computed_pairs(self) -> int:
        """Pairs in the computed blocks; what a ragged or padded block lacks is computed too."""
        return self.blocks * self.block_size[0] * self.block_size[1]

    @cached_property
    def kept_pairs(self) -> int:
        """Pairs that the mask keeps. Of a mask that is no AND of conditions by axis, partial blocks are evaluated."""
        return self.count_kept()

    @property
    def wasted_pairs(self) -> int:
        """Pairs that are computed and not kept (see `kept_pairs`)."""
        return self.computed_pairs - self.kept_pairs

    @property
    def speedup(self) -> float:
        """Pairs of dense attention over computed pairs: an upper bound for kernels of equal speed on each block."""
        return self.dense_pairs / self.computed_pairs if self.blocks else float("inf")

    @property
    def estimate(self) -> float:
        """Dense attention's seconds over this plan's, both by the cost model."""
        return self.dense_seconds / self.seconds

    def facts(self) -> dict[str, Any]:
        """The plan as plain data."""
        names = ("partial", "full", "blocks", "density", "speedup", "estimate", "seconds")
        order = None if self.order is None else str(self.order)
        return {"order": order, "block_size": list(self.block_size)} | {name: getattr(self, name) for name in names}


@dataclass(frozen=True, eq=False)
class Plans(Sequence[Plan]):
    """Plans, best first. Made by `fs.plan`.

    by_head: for a mask that differs by head, one group for each kind of head, with plans of its own; else empty.
    """

    label: str
    shape: Shape
    hardware: Hardware
    plans: tuple[Plan, ...]
    by_head: tuple[HeadGroup, ...] = ()

    @overload
    def __getitem__(self, index: int) -> Plan: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Plan, ...]: ...
    def __getitem__(self, index: int | slice) -> Plan | tuple[Plan, ...]:
        return self.plans[index]

    def __len__(self) -> int:
        return len(self.plans)

    @property
    def best(self) -> Plan:
        return self.plans[0]

    @property
    def seconds_by_head(self) -> float:
        """Seconds where each group of heads runs its own best plan, one after the other."""
        return sum(group.plans.best.seconds for group in self.by_head) if self.by_head else self.best.seconds

    def facts(self, top: int | None = None) -> dict[str, Any]:
        """The table as plain data, the first `top` plans of it."""
        groups = [{"heads": list(group.heads), "plans": group.plans.facts(top)["plans"]} for group in self.by_head]
        return {
            "pattern": self.label,
            "q_len": self.shape.q_len,
            "kv_len": self.shape.kv_len,
            "heads": self.shape.heads,
            "head_dim": self.shape.head_dim,
            "hardware": self.hardware.name,
            "tried": len(self),
            "plans": [plan.facts() for plan in self.plans[:top]],
        } | ({"by_head": groups, "seconds_by_head": self.seconds_by_head} if groups else {})

    def table(self, top: int = SHOWN) -> str:
        """The first `top` plans as text, and the best that moves no token."""
        titles = ("", "order", "block", "computed", "partial", "density", "bound", "estimate", "ms")
        stays = next((rank for rank, plan in enumerate(self.plans) if plan.stays), 0)
        shown = [*range(len(self.plans[:top])), *([stays] if stays >= top else [])]
        rows = [titles, *(_cells(rank + 1, self.plans[rank]) for rank in shown)]
        return in_columns(rows, left=range(1, 3))

    def __str__(self) -> str:
        return self.describe()

    def describe(self, top: int = SHOWN) -> str:
        """The sizes, the first `top` plans, and the choice of each group of heads, as text."""
        size = f"{self.shape.q_len:,} x {self.shape.kv_len:,} tokens, {self.shape.heads} x {self.shape.head_dim}"
        lines = [f"{self.label}: {size}, {self.hardware.name}, {len(self):,} plans", self.table(top)]
        for group in self.by_head:
            lines.append(f"heads {range_text(group.heads)}: {_name(group.plans.best)}, {group.plans.best.density:.2%}")
        if self.by_head:
            by_group, by_first = (f"{seconds * 1e3:.3g} ms" for seconds in (self.seconds_by_head, self.best.seconds))
            lines.append(f"each group by its own plan: {by_group}; all by the first: {by_first}")
        return "\n".join(lines)


@dataclass(frozen=True)
class HeadGroup:
    """Heads whose masks are the same, and their plans."""

    heads: tuple[int, ...]
    plans: Plans


def _name(plan: Plan) -> str:
    return f"{plan.order or 'as is'} in blocks of {plan.block_size[0]} x {plan.block_size[1]}"


def in_columns(rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Rows of cells as lines; the columns `left` begin below each other, the others end so."""
    columns = []
    for number, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        columns.append([cell.ljust(width) if number in left else cell.rjust(width) for cell in column])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def _cells(number: int, plan: Plan) -> tuple[str, ...]:
    return (
        str(number),
        str(plan.order or "as is"),
        f"{plan.block_size[0]} x {plan.block_size[1]}",
        f"{plan.blocks:,}",
        f"{plan.partial:,}",
        f"{plan.density:.2%}",
        f"{plan.speedup:.3g}x",
        f"{plan.estimate:.3g}x",
        f"{plan.seconds * 1e3:.3g}",
    )


def range_text(numbers: Sequence[int]) -> str:
    """`0-3, 6` for 0, 1, 2, 3, 6."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
