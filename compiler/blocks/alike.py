"""Which blocks are alike: the same function of the places inside the block, hence of one kind.

Say that a block's first positions are its corner, and that a pair lies at a place inside the block. Every node is read
as `f(place) + c`, where `f` is one function for all blocks that agree in the features noted so far, and `c` is a number
of the block:

    q                  the place, plus the corner
    a + b, a - b       f's and c's added; so are -a and a * constant
    a // n             with r = c % n:  (f + c) // n = (f + r) // n + c // n,  so r is noted and c // n is left
    a % n              (f + c) % n = (f + r) % n,  so r is noted and nothing is left
    a < b              only the difference of the two c's decides: it is noted, and nothing is left
    any other          every operand's c is noted, and nothing is left

`(q - kv) % 1000 == 0` depends on the block by the remainder of its corner alone, so that a million blocks of a strided
mask are a few hundred kinds of block. A condition that bounds decide in a block is a constant there: it is noted, and
nothing below it counts. What may pass 64 bits starts again there, which no `f + c` follows: then every operand's own
number is noted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from flexspec.expr import Apply, Const, Expr, Var
from flexspec.ops import NEGATED, Type

from ..evaluation.points import Array
from ..simplify.limits import endless
from .intervals import Interval


@dataclass(slots=True)
class Alike:
    """Features of blocks: blocks that agree in all of them hold the same pairs at the same places.

    corner: first position of each block by side, int64 [n]. intervals: of the nodes over each block.
    """

    corner: Mapping[str, Array]
    intervals: Mapping[Expr, Interval]
    features: list[Array] = field(default_factory=list)

    def classes(self, root: Expr, sizes: list[Array]) -> Array:
        """A number for each block, equal for blocks that are alike. sizes: what else tells them apart."""
        count = len(self.corner["q"])
        self.features.extend(sizes)
        self._read(root, np.ones(count, bool))
        numbers = np.zeros(count, np.int64)
        for feature in self.features:
            if feature.min() != feature.max():
                value = np.unique(feature, return_inverse=True)[1]
                numbers = np.unique(numbers * (value.max() + 1) + value, return_inverse=True)[1]
        return numbers

    def _read(self, node: Expr, undecided: Array) -> Array | int:
        """Note the features of a node where it is undecided; what is returned is its number `c` of each block."""
        if node.type is Type.BOOL and node in self.intervals:
            lo, hi = self.intervals[node]
            self._note(1 + lo, undecided & (lo == hi))
            undecided = undecided & (lo != hi)
        if isinstance(node, Const) or not undecided.any():
            return 0
        if isinstance(node, Var):
            return self.corner[node.name]
        parts = [self._read(part, undecided) for part in node.children]
        sums = isinstance(node, Apply) and not endless(node)
        if isinstance(node, Apply) and sums and node.type is Type.INT:
            if node.op in ("add", "sub"):
                return parts[0] + parts[1] if node.op == "add" else parts[0] - parts[1]
            if node.op == "neg":
                return -parts[0]
            right = node.args[-1]
            if isinstance(right, Const) and node.op == "mul":
                return parts[0] * int(right.value)
            if isinstance(right, Const) and right.value > 0 and node.op in ("floordiv", "mod"):
                self._note(parts[0] % int(right.value), undecided)
                return parts[0] // int(right.value) if node.op == "floordiv" else 0
        if isinstance(node, Apply) and sums and node.op in NEGATED and max(part.type for part in node.args) <= Type.INT:
            parts = [parts[0] - parts[1]]  # a comparison of integers: their difference
        for part in parts:
            self._note(part, undecided)
        return 0

    def _note(self, feature: Array | int, where: Array) -> None:
        if not isinstance(feature, int):
            self.features.append(np.where(where, feature, 0))
