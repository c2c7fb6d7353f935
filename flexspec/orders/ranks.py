"""Orders of a sequence over ranks, in which a causal mask gives every rank the same work."""

from __future__ import annotations

from dataclasses import dataclass

from ..expr import Expr, apply, const
from .base import Order, Place, whole_number


@dataclass(frozen=True, repr=False)
class Striped(Order):
    """Token `i` lives on rank `i % ranks`; each rank's tokens lie together."""

    ranks: int = 1

    def padded(self, length: int) -> int:
        return -(-length // self.ranks) * self.ranks

    def place(self, position: Expr, length: int) -> Place:
        share = const(self.padded(length) // self.ranks)
        inside = apply("mul", apply("mod", position, share), const(self.ranks))
        return _cut(apply("add", inside, apply("floordiv", position, share)), self.padded(length), length)

    def memory(self, position: Expr, length: int) -> Expr:
        share, ranks = const(self.padded(length) // self.ranks), const(self.ranks)
        return apply("add", apply("mul", apply("mod", position, ranks), share), apply("floordiv", position, ranks))

    def __str__(self) -> str:
        return f"striped({self.ranks})"


@dataclass(frozen=True, repr=False)
class Zigzag(Order):
    """Of `2 * ranks` chunks, rank `r` holds chunk `r` and chunk `2 * ranks - 1 - r`."""

    ranks: int = 1

    def padded(self, length: int) -> int:
        return -(-length // (2 * self.ranks)) * 2 * self.ranks

    def place(self, position: Expr, length: int) -> Place:
        size = const(self.padded(length) // (2 * self.ranks))
        slot = apply("floordiv", position, size)
        rank = apply("floordiv", slot, const(2))
        early = apply("eq", apply("mod", slot, const(2)), const(0))
        chunk = apply("where", early, rank, apply("sub", const(2 * self.ranks - 1), rank))
        logical = apply("add", apply("mul", chunk, size), apply("mod", position, size))
        return _cut(logical, self.padded(length), length)

    def memory(self, position: Expr, length: int) -> Expr:
        size = const(self.padded(length) // (2 * self.ranks))
        chunk = apply("floordiv", position, size)
        early, late = apply("mul", chunk, const(2)), apply("sub", const(2 * self.ranks - 1), chunk)
        late = apply("add", apply("mul", late, const(2)), const(1))
        slot = apply("where", apply("lt", chunk, const(self.ranks)), early, late)
        return apply("add", apply("mul", slot, size), apply("mod", position, size))

    def __str__(self) -> str:
        return f"zigzag({self.ranks})"


def _cut(logical: Expr, places: int, length: int) -> Place:
    """A place whose logical position is a token's only below `length`."""
    if places == length:
        return Place(logical, {}, None)
    valid = apply("lt", logical, const(length))
    return Place(apply("min", logical, const(length - 1)), {}, valid)


def striped(ranks: int) -> Order:
    """Token `i` on rank `i % ranks`, ranks one after the other.

    A rank holds `ceil(length / ranks)` places, padded at its end.

    ranks: how many there are.

    Source: Striped Attention. Raises FS033.

    >>> striped(2).permutation(6).tolist()
    [0, 2, 4, 1, 3, 5]
    """
    return Striped(None, whole_number("ranks", ranks))


def zigzag(ranks: int) -> Order:
    """Rank `r` holds the chunks `r` and `2 * ranks - 1 - r` of `2 * ranks` equal ones, ranks one after the other.

    Of a causal mask each rank then has the same pairs, as an early chunk goes with a late one. A length that
    `2 * ranks` does not divide is padded at its end.

    ranks: how many there are.

    Source: zigzag ring attention, as in Llama 3's context parallelism. Raises FS033.

    >>> zigzag(2).permutation(8).tolist()
    [0, 1, 6, 7, 2, 3, 4, 5]
    """
    return Zigzag(None, whole_number("ranks", ranks))
