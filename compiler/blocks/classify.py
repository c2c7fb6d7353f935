"""Decide every block of a mask: EMPTY, PARTIAL or FULL, exactly, coarse to fine.

Whole regions are decided by bounds; only undecided boxes are split. Where most of them stay undecided, all cells are
bounded at once, row by row. A block that bounds leave open is settled in `leaves`. Nothing of size `q_len * kv_len` is
ever allocated.

The answer is exact, because bounds enclose: where the least value over a box is True, every pair of it is kept, so
every block in it is FULL, and where the greatest is False, every one is EMPTY. The parts of a split box hold its blocks
and no others, so each block is decided by one box that holds it, or settled alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from flexspec.expr import Expr

from ..evaluation.points import Array
from .bounds import Bounds
from .grid import Grid
from .leaves import Leaves, chunks
from .runs import BlockKind, LooseRuns, Runs, merged, of_boxes, of_table, stacked
from .tensor_ranges import TensorRanges

_FINER = 3
"""Levels from one to the next: a box is split in 8 by 8."""
_FIRST = 32
"""Boxes on a side at most when the search begins."""


@dataclass(slots=True)
class Trail:
    """How the answer was found: boxes bounded per level, blocks settled by witnesses and by evaluation."""

    boxes: list[int] = field(default_factory=list)
    witnessed: int = 0
    evaluated: int = 0


def classify(expr: Expr, grid: Grid, tables: TensorRanges, trail: Trail | None = None, *, exact: bool = True) -> Runs:
    """The runs of a boolean expression over `q` and `kv` (everything else filled in).

    exact=False leaves a block PARTIAL that bounds do not decide.
    """
    return _Search(Bounds(expr, grid, tables), trail or Trail(), exact).runs()


class _Search:
    def __init__(self, bounds: Bounds, trail: Trail, exact: bool) -> None:
        self.bounds, self.trail, self.exact = bounds, trail, exact
        self.leaves = Leaves(bounds)
        self.starts = bounds.starts
        self.size = {name: len(starts) - 1 for name, starts in self.starts.items()}
        self.decided: list[LooseRuns] = []

    def runs(self) -> Runs:
        """Coarse to fine; or all cells at once, as soon as most boxes of a level stay undecided."""
        level = (-(-max(self.size.values()) // _FIRST) - 1).bit_length()
        q_box, kv_box = self._split(level, *(np.arange(self._boxes(name, level))[:, None] for name in ("q", "kv")))
        while level:
            if 2 * len(q_box) > self._boxes("q", level) * self._boxes("kv", level):
                return self._all_cells()
            finer = min(level, _FINER)
            level -= finer
            inside = np.arange(1 << finer)[:, None]
            parts = [
                self._split(level, (q_box[chunk] << finer) + inside, (kv_box[chunk] << finer) + inside)
                for chunk in chunks(len(q_box), 1 << 2 * finer)
            ]
            q_box, kv_box = (np.concatenate([part[side] for part in parts] or [q_box]) for side in (0, 1))
        kinds = self._settle(q_box, kv_box)
        for kind in (BlockKind.PARTIAL, BlockKind.FULL):
            chosen = kinds == kind
            self._decide(0, q_box[chosen], kv_box[chosen], kv_box[chosen], kind)
        return merged(self.decided, self.bounds.grid.q_blocks, self.bounds.grid.kv_blocks)

    def _boxes(self, name: str, level: int) -> int:
        return -(-self.size[name] >> level)

    def _split(self, level: int, q_box: Array, kv_box: Array) -> tuple[Array, Array]:
        """Bound every box `q_box` [m, n] with every box `kv_box` [k, n] of its column: those that stay undecided."""
        q_count, kv_count = (self._boxes(name, level) for name in ("q", "kv"))
        q, kv = np.minimum(q_box, q_count - 1)[:, None], np.minimum(kv_box, kv_count - 1)[None]
        surely, possibly = self.bounds.over(level, q, kv)
        # Boxes past the last one stand for it, and count for nothing.
        exists = (q_box < q_count)[:, None] & (kv_box < kv_count)[None]
        self.trail.boxes.append(int(exists.sum()))
        self._decide(level, *_joined(q, kv, surely & exists), BlockKind.FULL)
        return _chosen(q, kv, possibly & ~surely & exists)

    def _decide(self, level: int, q_box: Array, kv_first: Array, kv_last: Array, kind: BlockKind) -> None:
        """Note boxes of one kind, each from `kv_first` to `kv_last`, in blocks."""
        ends = ((q_box, q_box, "q"), (kv_first, kv_last, "kv"))
        q, kv = (
            (self.starts[name][first << level], self.starts[name][np.minimum((last + 1) << level, self.size[name])])
            for first, last, name in ends
        )
        self.decided.append(of_boxes(q, kv, kind))

    def _settle(self, q_cell: Array, kv_cell: Array) -> Array:
        """The kinds of undecided cells: the same for all blocks of one."""
        if not self.exact or not len(q_cell):
            return np.full(len(q_cell), BlockKind.PARTIAL, np.uint8)
        kinds, evaluated = self.leaves.settle(q_cell, kv_cell)
        self.trail.witnessed += len(kinds) - evaluated
        self.trail.evaluated += evaluated
        return kinds

    def _all_cells(self) -> Runs:
        """Every cell by itself; what a level before this has decided is bounded again, and found to be the same."""
        kv = np.arange(self.size["kv"])[None]
        parts = []
        for rows in chunks(self.size["q"], self.size["kv"]):
            q = np.arange(self.size["q"])[rows, None]
            surely, possibly = self.bounds.over(0, q, kv)
            kinds = surely * np.uint8(BlockKind.FULL)
            undecided = possibly & ~surely
            kinds[undecided] = self._settle(*_chosen(q, kv, undecided))
            self.trail.boxes.append(kinds.size)
            parts.append(of_table(kinds, self.starts["q"][rows.start : rows.stop + 1], self.starts["kv"]))
        return stacked(parts)


def _chosen(q: Array, kv: Array, chosen: Array) -> tuple[Array, Array]:
    return np.broadcast_to(q, chosen.shape)[chosen], np.broadcast_to(kv, chosen.shape)[chosen]


def _joined(q: Array, kv: Array, chosen: Array) -> tuple[Array, Array, Array]:
    """Chosen boxes, neighbours along kv joined: q box, first and last kv box."""
    first, last = chosen.copy(), chosen.copy()
    first[:, 1:] &= ~chosen[:, :-1]
    last[:, :-1] &= ~chosen[:, 1:]
    along = (0, 2, 1)  # with kv last, the ends come in pairs
    q, kv, first, last = (np.broadcast_to(part, chosen.shape).transpose(along) for part in (q, kv, first, last))
    return q[first], kv[first], kv[last]
