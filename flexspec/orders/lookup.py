"""Orders that no arithmetic gives: curves, a sort by labels, segments one after the other. They load from a table.

What a mask reads of one side is tabulated by block, so that its bounds are as tight as those of arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import torch

from ..canvas import Canvas
from ..errors import FlexSpecError
from ..expr import Expr, apply, const, input_, load, var
from ..ops import Type
from ..user_line import user_caret
from .base import Moves, Order, Place, canvas_of, whole_number
from .curves import hilbert_rank, morton_rank

TOKEN_AT, PLACE_OF = "memory_order", "memory_place"
"""The names under which a mask in memory loads from an order's tables."""


@dataclass(frozen=True, repr=False)
class Table(Order):
    """An order that is held as a tensor: int32, the token of each place, -1 where there is none."""

    @property
    def places(self) -> int:
        """Memory positions that its tokens take."""
        assert self.tokens is not None
        return self.tokens

    def padded(self, length: int) -> int:
        return self.places

    def place(self, position: Expr, length: int) -> Place:
        logical: Expr = self._load(TOKEN_AT, position)
        valid = None
        if self.places > length:
            valid = apply("ge", logical, const(0))
            logical = apply("max", logical, const(0))
        return Place(logical, self.canvas.coordinates(logical) if self.canvas else {}, valid)

    def memory(self, position: Expr, length: int) -> Expr:
        return self._load(PLACE_OF, position)

    def _load(self, name: str, position: Expr) -> Expr:
        index, dims = [position], ["places"]
        for count, place, dim in ((self.heads, "h", "heads"), (self.batch, "b", "batch")):
            if count is not None:
                index.insert(0, var(place))
                dims.insert(0, dim)
        return load(input_(name, tuple(dims)), tuple(index))

    def tensors(self, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        assert self.tokens is not None
        moves, key = self.moves(self.tokens, torch.device(device)), ("tensors", torch.device(device))
        if key not in self._kept:
            with torch.inference_mode(False):
                token_at = moves.token_at if moves.empty is None else moves.token_at.masked_fill(moves.empty, -1)
                tables = {TOKEN_AT: token_at.to(torch.int32), PLACE_OF: moves.place_of.to(torch.int32)}
                own = self.heads is not None and self.batch is None  # then their first dim is 1
                self._kept[key] = {name: table[0] if own else table for name, table in tables.items()}
        tensors: dict[str, torch.Tensor] = self._kept[key]
        return tensors

    def _moves_of(self, x: torch.Tensor, length: int | None) -> Moves:
        if self.heads is None or x.dim() < 3 or x.size(1) == self.heads or self.heads % x.size(1):
            return self.moves(length, x.device)
        return self.moves_of_keys(x.size(1), x.device)

    def shared(self, kv_heads: int, device: torch.device) -> bool:
        """Are the query heads of each of `kv_heads` key heads in one order? The first time, it waits for the device."""
        if self.heads is None or self.heads == kv_heads:
            return True
        assert self.tokens is not None
        moves, key = self.moves(self.tokens, device), ("shared", kv_heads, device)
        if key not in self._kept:
            each = moves.token_at.unflatten(1, (kv_heads, -1))
            self._kept[key] = torch.equal(each, each[:, :, :1].expand_as(each))
        shared: bool = self._kept[key]
        return shared

    def moves_of_keys(self, kv_heads: int, device: torch.device) -> Moves:
        """The index tensors of key heads that serve several query heads each. FS033 where those are not in one order.

        The first time, it waits for the device.
        """
        assert self.tokens is not None and self.heads is not None
        if not self.shared(kv_heads, device):
            message = f"query heads of one of the {kv_heads} key heads are in different orders: {self}"
            fix = "repeat k and v for each query head, or give the heads of a key head one order"
            raise FlexSpecError("FS033", message, fix=fix, where=user_caret())
        moves, key = self.moves(self.tokens, device), ("keys", kv_heads, device)
        if key not in self._kept:
            step = self.heads // kv_heads
            empty = None if moves.empty is None else moves.empty[:, ::step]
            self._kept[key] = Moves(moves.token_at[:, ::step], moves.place_of[:, ::step], empty)
        kept: Moves = self._kept[key]
        return kept

    moves_of_keys._dynamo_marked_constant = True  # type: ignore[attr-defined]


@dataclass(frozen=True, repr=False)
class Curve(Table):
    """The tokens of a canvas in the order in which a curve through a larger cube meets them."""

    name: str = "morton"

    def _table(self, length: int) -> torch.Tensor:
        assert self.canvas is not None
        sides = [side for side in self.canvas.lengths.values() if side > 1] or [1]
        points = torch.cartesian_prod(*(torch.arange(side) for side in sides)).reshape(-1, len(sides))
        rank = {"morton": morton_rank, "hilbert": hilbert_rank}[self.name]
        return torch.argsort(rank(points, sides))

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, repr=False, eq=False)
class ByLabel(Table):
    """Tokens sorted by `labels`, int [tokens], [batch, tokens] or [batch, heads, tokens]; equal ones stay in order."""

    labels: torch.Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def _count(self) -> int:
        return self.labels.shape[-1]

    @property
    def batch(self) -> int | None:
        return self.labels.shape[0] if self.labels.dim() > 1 and self.labels.shape[0] > 1 else None

    @property
    def heads(self) -> int | None:
        return self.labels.shape[1] if self.labels.dim() == 3 else None

    def _table(self, length: int) -> torch.Tensor:
        return torch.argsort(self.labels, dim=-1, stable=True)

    def __str__(self) -> str:
        return f"by_label(<{str(self.labels.dtype).removeprefix('torch.')}{list(self.labels.shape)}>)"


@dataclass(frozen=True, repr=False)
class Concatenated(Table):
    """Segments one after the other, each in an order of its own; a number is a segment as it stands."""

    parts: tuple[int | Order, ...] = ()

    def _count(self) -> int:
        return sum(map(_tokens, self.parts))

    @property
    def places(self) -> int:
        return sum(part if isinstance(part, int) else part.padded(_tokens(part)) for part in self.parts)

    @property
    def batch(self) -> int | None:
        batches = (part.batch for part in self.parts if isinstance(part, Table))
        return next((batch for batch in batches if batch is not None), None)

    def _table(self, length: int) -> torch.Tensor:
        segments = []
        for start, part in zip(accumulate(map(_tokens, self.parts), initial=0), self.parts, strict=False):
            own = torch.arange(part) if isinstance(part, int) else part.permutation(_tokens(part))
            own = torch.where(own < 0, -1, own + start)
            segments.append(own if self.batch is None else own.expand(self.batch, -1))
        return torch.cat(segments, -1)

    def __str__(self) -> str:
        return f"concatenated({', '.join(map(str, self.parts))})"


def _tokens(part: int | Order) -> int:
    tokens = part if isinstance(part, int) else part.tokens
    assert tokens is not None
    return tokens


def morton(canvas: Canvas) -> Order:
    """Tokens by the interleaved bits of their coordinates, the first axis' bit before the others'.

    Any sides: points outside of the canvas are left out and nothing is padded. Where all sides are powers of two it is
    tiles of tiles of side 2, 4, 8, ... The order is a table, from which a mask in memory loads.

    canvas: the canvas, of at most 2**27 tokens.

    Source: Morton (1966). Raises FS033, of a larger canvas where the table is made.

    >>> morton(Canvas(h=2, w=4)).permutation(8).tolist()
    [0, 1, 4, 5, 2, 3, 6, 7]
    """
    return Curve(canvas_of(canvas, "morton"), "morton")


def hilbert(canvas: Canvas) -> Order:
    """Tokens along the Hilbert curve of the smallest cube of side `2**n` that holds the canvas, in any number of axes.

    Points outside of the canvas are left out and nothing is padded. In a cube of side `2**n` each token is a neighbour
    of the one before. The order is a table, from which a mask in memory loads.

    canvas: the canvas, of at most 2**27 tokens.

    Source: Hilbert (1891), by Skilling's bit operations (2004). Raises FS033, of a larger canvas where the table is
    made.

    >>> hilbert(Canvas(h=2, w=2)).permutation(4).tolist()
    [0, 1, 3, 2]
    """
    wide = [side for side in canvas_of(canvas, "hilbert").lengths.values() if side > 1]
    if len(wide) * max(wide, default=1).bit_length() > 63:
        message = f"the cube around {canvas} has more than 2**63 points"
        raise FlexSpecError("FS033", message, fix="use morton", where=user_caret())
    return Curve(canvas, "hilbert")


def by_label(labels: torch.Tensor) -> Order:
    """Tokens with equal labels together, labels ascending, a stable sort: of clusters, flow paths, documents.

    The sort stays on the labels' device. The kernels of a compiled pattern do not depend on the labels' values: compile
    with a new order for new labels.

    labels: an integer tensor [tokens], [batch, tokens] or [batch, heads, tokens], which moves each head by its own; a
        batch of 1 serves all. At most 2**27 in all.

    Source: Routing Transformer, FLATTEN. Raises FS022, FS023; FS033 of more labels, where they are sorted.

    >>> by_label(torch.tensor([2, 0, 2, 1])).permutation(4).tolist()
    [1, 3, 0, 2]
    """
    if not isinstance(labels, torch.Tensor) or labels.dtype == torch.bool or Type.of_dtype(labels.dtype) != Type.INT:
        seen = labels.dtype if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise FlexSpecError("FS023", f"the labels are {seen}", fix="give an integer tensor", where=user_caret())
    if labels.dim() not in (1, 2, 3) or 0 in labels.shape:
        message = f"the labels have shape {list(labels.shape)}"
        fix = "give [tokens], [batch, tokens] or [batch, heads, tokens]"
        raise FlexSpecError("FS022", message, fix=fix, where=user_caret())
    labels = labels.detach().clone()  # an order does not change with the caller's tensor
    return ByLabel(None, labels[0] if labels.dim() == 2 and labels.shape[0] == 1 else labels)


def concatenated(*parts: int | Order) -> Order:
    """Segments one after the other, each in its own order: `concatenated(77, tiled(video, t=6, h=8, w=8))`.

    For masks over text and video, as `segments` makes them. The order is a table, from which a mask in memory loads.

    parts: a number of tokens, which stay as they stand, or an order of a canvas, of labels, or concatenated itself; at
        most 2**27 places in all.

    Raises FS022, FS033; of more places where the table is made.

    >>> from flexspec import tiled
    >>> concatenated(2, tiled(Canvas(h=2, w=3), h=2, w=2)).permutation(8).tolist()
    [0, 1, 2, 3, 5, 6, 4, -1, 7, -1]
    """
    if not parts:
        raise FlexSpecError("FS033", "no segments are given", fix="concatenated(77, order)", where=user_caret())
    for part in parts:
        if not isinstance(part, Order):
            whole_number("a segment", part)
        elif part.tokens is None or part.heads is not None:
            fix = "give an order of a canvas, or a number of tokens"
            if part.heads is not None:
                raise FlexSpecError("FS033", f"{part} differs by head", fix=fix, where=user_caret())
            raise FlexSpecError("FS033", f"{part} is of any number of tokens", fix=fix, where=user_caret())
    batches = {part.batch for part in parts if isinstance(part, Table)} - {None}
    if len(batches) > 1:
        raise FlexSpecError("FS022", f"labels are of {sorted(batches)} sequences", where=user_caret())  # type: ignore[type-var]
    return Concatenated(None, tuple(parts))
