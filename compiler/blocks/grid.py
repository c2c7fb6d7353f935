"""The grid of blocks over memory positions, and what is checked when one is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flexspec.canvas import MOST_TOKENS
from flexspec.errors import FlexSpecError
from flexspec.inputs import Sizes, check_length
from flexspec.orders.base import Order
from flexspec.orders.sides import as_order
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
MAX_BLOCK = 1 << 24
"""Most tokens on a side of a block: an undecided block is looked at with an array for each of its sides."""


def make_grid(sizes: Sizes, block_size: BlockSize, order: Order | None) -> Grid:
    """The grid of blocks over memory positions, padding included. FS030, FS033."""
    pair = block_size if isinstance(block_size, tuple) else (block_size, block_size)
    if len(pair) != 2:
        raise FlexSpecError("FS030", f"block_size is {block_size!r}", fix="give 128 or (128, 64)", where=user_caret())
    block_q, block_kv = (check_length("block_size", side) for side in pair)
    if max(pair) > MAX_BLOCK:
        message = f"block_size is {block_size}; a side has at most {MAX_BLOCK:,} tokens"
        raise FlexSpecError("FS030", message, fix="give a smaller block_size", where=user_caret())
    lengths = [sizes.q_len, sizes.kv_len]
    if order is not None:
        check_orders([order])
        order.check(*lengths)
        sided = order.side("q"), order.side("kv")
        for side, length in enumerate(lengths):
            lengths[side] = length if (own := sided[side]) is None else own.padded(length)
            if lengths[side] > MOST_TOKENS:
                message = f"{order} pads {length:,} tokens to more than 2**62 places"
                raise FlexSpecError("FS033", message, fix="give smaller tiles", where=user_caret())
    grid = Grid(lengths[0], lengths[1], block_q, block_kv)
    check_blocks(max(grid.q_blocks, grid.kv_blocks), "give a larger block_size")
    return grid


def check_blocks(count: int, fix: str) -> None:
    """FS030 where a side has more than `MAX_BLOCKS` blocks."""
    if count > MAX_BLOCKS:
        message = f"{count:,} blocks on a side are more than {MAX_BLOCKS:,}"
        raise FlexSpecError("FS030", message, fix=fix, where=user_caret())


def check_orders(given: object, name: str = "orders", *, by_side: bool = False) -> list[Order | None]:
    """A list of orders, None for tokens as they are. FS033. by_side: a pair is an order for each side."""
    if isinstance(given, (Order, str)) or not isinstance(given, Iterable):
        fix = f"give a list: {name}=[fs.tiled(...), fs.hilbert(...)]"
        raise FlexSpecError("FS033", f"{name} is {given!r}", fix=fix, where=user_caret())
    orders = [as_order(order) if by_side and isinstance(order, tuple) else order for order in given]
    for order in orders:
        if order is not None and not isinstance(order, Order):
            fix = "give fs.tiled(...), fs.hilbert(...), fs.striped(...) or another order"
            raise FlexSpecError("FS033", f"order is {order!r}", fix=fix, where=user_caret())
    return orders
