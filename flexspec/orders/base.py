"""What every order is: where a token lies in memory, as an expression and as index tensors that move tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ..canvas import MOST_TOKENS, Canvas
from ..errors import FlexSpecError
from ..evaluate import evaluate
from ..expr import Expr, var
from ..user_line import user_caret

KEPT = 16
"""Lengths and devices whose index tensors an order keeps."""
MOST_PLACES = 1 << 27
"""Most memory positions of which an order makes index tensors: 134 million, one gibibyte for each of them.

Orders that are arithmetic make none for a block map or a kernel.
"""


@dataclass(frozen=True)
class Place:
    """What an order says of a memory position: the logical position, its coordinates, and whether a token is there.

    `valid` is None where every position holds a token. Where it is false, the others are in range but meaningless.
    """

    logical: Expr
    coordinates: dict[str, Expr]
    valid: Expr | None


@dataclass(frozen=True)
class Moves:
    """An order as index tensors on one device, with a leading batch dim where it differs by batch, and with two, [batch
    | 1, heads], where it differs by head.

    token_at: int64 [places], the token of each place, any token where there is none. place_of: int64 [tokens].
    empty: bool [places], or None where every place holds a token.
    """

    token_at: torch.Tensor
    place_of: torch.Tensor
    empty: torch.Tensor | None


@dataclass(frozen=True, repr=False)
class Order:
    """A bijection between logical positions and memory positions, with padding where sides do not divide.

    `place` (memory to logical) and `memory` (logical to memory) are the order as expressions, `permutation` is the
    order as a tensor; `apply` and `undo` move a tensor's tokens, once at a model's entrance and once at its exit.
    """

    canvas: Canvas | None = None
    tokens: int | None = field(init=False, compare=False)
    """How many tokens it orders; None: any number."""
    _kept: dict[Any, Any] = field(default_factory=dict, init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", self._count())

    def __repr__(self) -> str:
        return str(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": {}}

    def _count(self) -> int | None:
        return self.canvas.size if self.canvas else None

    @property
    def batch(self) -> int | None:
        """How many sequences it orders differently; None: all alike."""
        return None

    @property
    def heads(self) -> int | None:
        """How many heads it orders differently; None: all alike."""
        return None

    def side(self, side: str) -> Order | None:
        """The order of the queries ("q") or the keys ("kv"); None: as they are."""
        return self

    def padded(self, length: int) -> int:
        """Memory positions that `length` tokens take."""
        raise NotImplementedError

    def place(self, position: Expr, length: int) -> Place:
        """The token at a memory position, of `length` tokens."""
        raise NotImplementedError

    def memory(self, position: Expr, length: int) -> Expr:
        """The memory position of a logical position, of `length` tokens: the inverse of `place`."""
        raise NotImplementedError

    def tensors(self, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """What the two expressions load from, by name; nothing where they are arithmetic."""
        return {}

    def check(self, length: int, kv_len: int | None = None) -> None:
        """FS033 where the order is of another number of tokens; `length` is q_len where a kv_len is given."""
        if self.tokens is not None and kv_len is not None and length != kv_len:
            message = f"{self} orders {self.tokens:,} tokens, both q and kv; q_len is {length:,} and kv_len {kv_len:,}"
            fix = f"give q and k of {self.tokens:,} tokens, or an order for each side: order=(q_order, kv_order)"
            raise FlexSpecError("FS033", message, fix=fix, where=user_caret())
        if self.tokens is not None and self.tokens != length:
            what = self.canvas or self
            message = f"the order is of {what} with {self.tokens:,} tokens; the length is {length:,}"
            fix = f"give an order of {length:,} tokens; for text beside a canvas see fs.concatenated"
            raise FlexSpecError("FS033", message, fix=fix, where=user_caret())

    def _check_places(self, length: int) -> None:
        places = self.padded(length) * (self.batch or 1) * (self.heads or 1)
        if places > MOST_PLACES:
            message = f"{self} of {length:,} tokens has {places:,} places; index tensors have at most {MOST_PLACES:,}"
            raise FlexSpecError("FS033", message, fix="order a shorter sequence", where=user_caret())

    def permutation(self, length: int) -> torch.Tensor:
        """int64 [padded]: the logical position of each memory position, -1 where there is padding. FS033.

        Where the order differs by batch, [batch, padded]; by head, [batch | 1, heads, padded].
        """
        moves = self.moves(length, torch.device("cpu"))
        return moves.token_at.clone() if moves.empty is None else moves.token_at.masked_fill(moves.empty, -1)

    def inverse(self, length: int) -> torch.Tensor:
        """int64 [length]: the memory position of each logical position. FS033. [batch, length] where it differs."""
        return self.moves(length, torch.device("cpu")).place_of.clone()

    def apply(self, x: torch.Tensor, dim: int = -2) -> torch.Tensor:
        """Tokens of `x` along `dim` in memory order, padding zero. Differentiable; any dtype. FS022, FS033.

        Its index tensors are kept for each length and device, so that nothing waits for the device. A compiled model
        takes them as constants; it needs a length that is static, or an order of a fixed number of tokens.

        >>> import flexspec as fs, torch
        >>> fs.tiled(fs.Canvas(h=2, w=4), h=2, w=2).apply(torch.arange(8), dim=0).tolist()
        [0, 1, 4, 5, 2, 3, 6, 7]
        """
        self.check(x.shape[dim])
        moves = self._moves_of(x, x.shape[dim] if self.tokens is None else None)
        return moved(x, moves.token_at, moves.empty, moves.place_of, None, dim % x.dim())

    def undo(self, x: torch.Tensor, length: int | None = None, dim: int = -2) -> torch.Tensor:
        """The inverse of `apply`: `x` along `dim` back in logical order, padding dropped. FS022, FS033.

        `length`: tokens without padding; it may be left out where the order is of a fixed number or pads nothing.
        """
        length = length or self.tokens or x.shape[dim]
        self.check(length)
        moves = self._moves_of(x, length if self.tokens is None else None)
        places = moves.token_at.size(-1)  # unlike shape, torch.compile knows it where sizes are dynamic
        if places != x.shape[dim]:
            message = f"{length:,} tokens take {places:,} places in this order, dim {dim} has {x.shape[dim]:,}"
            fix = f"give x of {places:,} places, as order.apply returns it, or length=<its tokens>"
            raise FlexSpecError("FS033", message, fix=fix, where=user_caret())
        return moved(x, moves.place_of, None, moves.token_at, moves.empty, dim % x.dim())

    def _moves_of(self, x: torch.Tensor, length: int | None) -> Moves:
        return self.moves(length, x.device)

    def moves(self, length: int | None, device: torch.device) -> Moves:
        """The order's index tensors on `device`, made once. length: None for an order of a fixed number. FS033."""
        length = self.tokens if length is None else length
        assert length is not None
        key = (length, device)
        kept: Moves | None = self._kept.get(key)
        if kept is None:
            self.check(length)
            self._check_places(length)
            with torch.inference_mode(False), torch.no_grad():
                kept = self._make_moves(length, device)
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[key] = kept
        return kept

    # torch.compiler.assume_constant_result sets this too, but imports the whole compiler
    moves._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _make_moves(self, length: int, device: torch.device) -> Moves:
        table = self._table(length).to(device)
        places = table.shape[-1]
        empty = table < 0 if places > length else None
        # An empty place is written past the end, and cut off.
        slots = table if empty is None else table.masked_fill(empty, length)
        place_of = table.new_empty((*table.shape[:-1], length + (empty is not None)))
        place = torch.arange(places, device=device).expand_as(table)
        return Moves(table.clamp(min=0), place_of.scatter_(-1, slots, place)[..., :length].contiguous(), empty)

    def _table(self, length: int) -> torch.Tensor:
        """int64 [places]: the token of each place, -1 where there is none."""
        place = self.place(var("m"), length)
        positions = {"m": torch.arange(self.padded(length))}
        logical = evaluate(place.logical, positions).expand(self.padded(length))
        return logical if place.valid is None else torch.where(evaluate(place.valid, positions), logical, -1)


def moved(
    x: torch.Tensor,
    index: torch.Tensor,
    empty: torch.Tensor | None,
    back: torch.Tensor,
    back_empty: torch.Tensor | None,
    dim: int,
) -> torch.Tensor:
    """`x` at `index` along `dim`, zero where `empty`. back, back_empty: the same for the gradient."""
    if index.dim() == 2 and (dim == 0 or x.size(0) != index.size(0)):
        message = f"the order is of {index.size(0)} sequences; dim 0 of {list(x.shape)} is not their batch"
        raise FlexSpecError("FS022", message, fix="give a tensor [batch, ...] of as many", where=user_caret())
    if index.dim() == 3 and (dim < 2 or x.size(1) != index.size(1) or index.size(0) not in (1, x.size(0))):
        of = f"{index.size(1)} heads" + (f" of {index.size(0)} sequences" if index.size(0) > 1 else "")
        message = f"the order is of {of}; the first dims of {list(x.shape)} are not theirs"
        raise FlexSpecError("FS022", message, fix="give a tensor [batch, heads, ...] of as many", where=user_caret())
    result: torch.Tensor = _Moved.apply(x, index, empty, back, back_empty, dim)
    return result


class _Moved(torch.autograd.Function):
    """Tokens at other places. An index meets each token once, so the gradient is gathered too, and never summed."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, index: Any, empty: Any, back: Any, back_empty: Any, dim: int) -> torch.Tensor:
        alike = index.dim() == 1
        picked = x.index_select(dim, index) if alike else torch.take_along_dim(x, _along(index, x, dim), dim)
        return picked if empty is None else picked.masked_fill(_along(empty, x, dim), 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _, index, empty, back, back_empty, ctx.dim = inputs
        ctx.save_for_backward(index, empty, back, back_empty)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        index, empty, back, back_empty = ctx.saved_tensors
        return moved(gradients[0], back, back_empty, index, empty, ctx.dim), None, None, None, None, None


def _along(index: torch.Tensor, x: torch.Tensor, dim: int) -> torch.Tensor:
    """An index [places], [batch, places] or [batch, heads, places] in a shape that broadcasts along `dim` of `x`."""
    shape = [1] * x.dim()
    shape[dim] = -1
    for axis in range(index.dim() - 1):
        shape[axis] = index.size(axis)
    return index.view(shape)


def whole_number(what: str, value: object, least: int = 1) -> int:
    """An integer from `least` to 2**62, else FS033."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        fix = f"give an integer of at least {least}"
        raise FlexSpecError("FS033", f"{what} is {value!r}", fix=fix, where=user_caret())
    if value > MOST_TOKENS:
        raise FlexSpecError("FS033", f"{what} is more than 2**62", fix="give a smaller one", where=user_caret())
    return value


def canvas_of(canvas: object, what: str) -> Canvas:
    """A canvas, else FS033."""
    if not isinstance(canvas, Canvas):
        message = f"{what} needs a canvas, got {type(canvas).__name__}"
        raise FlexSpecError("FS033", message, fix=f"{what}(fs.Canvas(h=48, w=80), ...)", where=user_caret())
    return canvas
