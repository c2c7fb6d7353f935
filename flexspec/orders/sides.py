"""Orders made of others: queries in one and keys in another, or each head in its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch

from ..errors import FlexSpecError
from ..expr import Expr
from ..user_line import user_caret
from .base import Moves, Order, Place
from .lookup import Table


@dataclass(frozen=True, repr=False)
class BySide(Order):
    """Queries in one order and keys in another; None leaves a side as it is."""

    q: Order | None = None
    kv: Order | None = None

    def side(self, side: str) -> Order | None:
        return self.q if side == "q" else self.kv

    def check(self, length: int, kv_len: int | None = None) -> None:
        for order, tokens in ((self.q, length), (self.kv, length if kv_len is None else kv_len)):
            if order is not None:
                order.check(tokens)

    def padded(self, length: int) -> int:
        self._refuse()

    def place(self, position: Expr, length: int) -> Place:
        self._refuse()

    def memory(self, position: Expr, length: int) -> Expr:
        self._refuse()

    def moves(self, length: int | None, device: torch.device) -> Moves:
        self._refuse()

    def _refuse(self) -> NoReturn:
        message = f"{self} is an order for each side, and one for both is needed here"
        raise FlexSpecError("FS033", message, fix="give the order of one side", where=user_caret())

    def __str__(self) -> str:
        return f"({self.q}, {self.kv})"


@dataclass(frozen=True, repr=False)
class ByHead(Table):
    """Each head in an order of its own, all of the same tokens; None leaves a head as it is."""

    orders: tuple[Order | None, ...] = ()

    @property
    def heads(self) -> int:
        return len(self.orders)

    def _count(self) -> int:
        return next(order.tokens for order in self.orders if order is not None and order.tokens is not None)

    @property
    def places(self) -> int:
        tokens = self._count()
        return max(tokens if order is None else order.padded(tokens) for order in self.orders)

    def _table(self, length: int) -> torch.Tensor:
        rows = [torch.arange(length) if each is None else each.permutation(length) for each in self.orders]
        padded = [torch.nn.functional.pad(row, (0, self.places - len(row)), value=-1) for row in rows]
        return torch.stack(padded)[None]

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.orders))}]"


OrderLike = Order | tuple[Order | None, Order | None] | Sequence[Order | None] | None
"""An order for all, a pair (q_order, kv_order), or a list with one for each head."""


def as_order(given: object) -> Order | None:
    """The order that is meant: a pair is one for each side, a list one for each head. FS033."""
    if given is None or isinstance(given, Order):
        return given
    if isinstance(given, tuple) and len(given) == 2:
        q, kv = map(as_order, given)
        if not isinstance(q, BySide) and not isinstance(kv, BySide):
            return None if q is kv is None else BySide(None, q, kv)
    if isinstance(given, list) and given and all(each is None or isinstance(each, Order) for each in given):
        return _by_head(given)
    fix = "give an order such as fs.tiled(...), a pair (q_order, kv_order), or a list with an order for each head"
    raise FlexSpecError("FS033", f"order is {given!r}", fix=fix, where=user_caret())


def _by_head(orders: list[Order | None]) -> Order | None:
    if all(order is None for order in orders):
        return None
    tokens = {order.tokens for order in orders if order is not None} - {None}
    alike = all(order is None or not (isinstance(order, BySide) or order.batch or order.heads) for order in orders)
    if len(tokens) != 1 or not alike:
        seen = f"are of {len(tokens)} numbers of tokens" if alike else "differ by side, batch or head themselves"
        message = f"the orders of the heads {seen}: {', '.join(map(str, orders))}"
        fix = "give orders of one canvas; fs.by_label(labels) takes [batch, heads, tokens]"
        raise FlexSpecError("FS033", message, fix=fix, where=user_caret())
    return ByHead(None, tuple(orders))
