"""The grid of blocks over memory positions, and what is checked when one is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flexspec.errors import FlexSpecError
from flexspec.inputs import Sizes, check_length
from flexspec.orders.base import Order
from flexspec.user_line import user_caret


@dataclass(frozen=True, slots=True)
class Grid:
    """The blocks of one (batch, head): `q_len` by `kv_len` positions in blocks of `block_q` by `block_kv`."""

    q_len: int
    kv_len: int
    block_q: int
    block_kv: int

    @property
    def q_blocks(self) -> int:
        return -(-self.q_len // self.block_q)

    @property
    def kv_blocks(self) -> int:
        return -(-self.kv_len // self.block_kv)

    def side(self, name: str) -> tuple[int, int]:
        """Length and block size of the side `q` or `kv`."""
        return (self.q_len, self.block_q) if name == "q" else (self.kv_len, self.block_kv)


BlockSize = int | tuple[int, int]


MAX_BLOCKS = 1 << 23
"""Most blocks on a side: a thousand million tokens in blocks of 128."""


def make_grid(sizes: Sizes, block_size: BlockSize, order: Order | None) -> Grid:
    """The grid of blocks over memory positions. FS030, FS033."""
    pair = block_size if isinstance(block_size, tuple) else (block_size, block_size)
    if len(pair) != 2:
        raise FlexSpecError("FS030", f"block_size is {block_size!r}", fix="give 128 or (128, 64)", where=user_caret())
    block_q, block_kv = (check_length("block_size", side) for side in pair)
    rows = max(sizes.q_len // block_q, sizes.kv_len // block_kv)
    if rows > MAX_BLOCKS:
        message = f"{rows:,} blocks on a side are more than {MAX_BLOCKS:,}"
        raise FlexSpecError("FS030", message, fix="give a larger block_size", where=user_caret())
    if order is None:
        return Grid(sizes.q_len, sizes.kv_len, block_q, block_kv)
    check_orders([order])
    order.check(sizes.q_len, sizes.kv_len)
    return Grid(order.padded(sizes.q_len), order.padded(sizes.kv_len), block_q, block_kv)


def check_orders(given: object, name: str = "orders") -> list[Order | None]:
    """A list of orders, None for tokens as they are. FS033."""
    if isinstance(given, (Order, str)) or not isinstance(given, Iterable):
        fix = f"give a list: {name}=[fs.tiled(...), fs.hilbert(...)]"
        raise FlexSpecError("FS033", f"{name} is {given!r}", fix=fix, where=user_caret())
    orders = list(given)
    for order in orders:
        if order is not None and not isinstance(order, Order):
            fix = "give fs.tiled(...), fs.hilbert(...), fs.striped(...) or another order"
            raise FlexSpecError("FS033", f"order is {order!r}", fix=fix, where=user_caret())
    return orders
