"""A spec made callable: checks, order, what was lowered from the cache, backend."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from flexspec.attention import Attention
from flexspec.errors import FlexSpecError, FlexSpecWarning, choices
from flexspec.expr import Expr
from flexspec.inputs import Bound, Sizes, make_sizes
from flexspec.order import Order, OrderLike, Table, as_order, told_sizes
from flexspec.positions import GIVEN, check_heads, given_positions
from flexspec.user_line import user_caret, user_level

from . import operator
from .backends.base import Backend, BackendFailed, Call, Result, able, check_qkv, check_weight
from .backends.pages import as_seen, check_pages, gathered
from .backends.registry import BACKENDS, check_precision, check_tuning, chosen, ranked
from .backends.stored import QuantisedTensor, apart, as_floats, check_mean, stored_of
from .blocks.defined import check_scores
from .blocks.grid import BlockSize, make_grid
from .map_cache import MapCache
from .pipeline import Lowered, by_row
from .selecting.choices import Choices

OWN = {"self", "q", "k", "v", "return_lse", "inputs", "page_table", "kv_len", *GIVEN.values()}
"""Names of a call's own arguments."""


class Attending:
    """`attend(q, k, v, **values)`: attention with one spec."""

    def __init__(
        self,
        spec: Attention,
        order: OrderLike,
        block_size: BlockSize,
        backend: str | Backend = "auto",
        exact: bool = True,
        autotune: bool = False,
        precision: str | None = None,
        skip: float | None = None,
        deterministic: bool | None = None,
    ) -> None:
        self.spec, self.block_size, self.exact, self.autotune = spec, block_size, exact, autotune
        self.order = as_order(order)
        self.backend, self.precision, self.skip, self.deterministic = backend, precision, skip, deterministic
        self.backends = chosen(backend, precision)
        check_precision(spec, precision, skip)
        check_tuning(self.backends, autotune)
        make_grid(Sizes(1, 1), block_size, None)
        self._cache = MapCache(spec, self.order, block_size, exact)
        self._warned: set[str] = set()
        parts = spec.parts
        self._choices = Choices(parts.mask, self.order, parts.names)
        chosen_by = {name for each in parts.mask.selections.values() for name in each.reads}
        check_names((parts.names | chosen_by) - parts.tensors.keys() - parts.defaults.keys())
        self._beside = (parts.score.flat, *([parts.weight.flat] if parts.weight else []))
        self.held = {name: tensor for name, tensor in parts.tensors.items() if name in parts.inputs}
        self._number = operator.enroll(self) if self.backward or precision else None

    def __repr__(self) -> str:
        order = f", order={self.order}" if self.order else ""
        beside = {"backend": self.backend, "precision": self.precision, "skip": self.skip}
        options = "".join(f", {name}={value!r}" for name, value in beside.items() if value is not None)
        return f"compile({self.spec.label}{order}{options})"

    def __reduce__(self) -> tuple[Any, ...]:
        options = self.exact, self.autotune, self.precision, self.skip, self.deterministic
        return type(self), (self.spec, self.order, self.block_size, self.backend, *options)

    @cached_property
    def backward(self) -> Callable[..., list[torch.Tensor]] | None:
        """The gradients of the one backend, if there is but one. With them, or with a precision, which has none,
        this is one operator in `torch.compile`.
        """
        return self.backends[0].backward if len(self.backends) == 1 and self.precision is None else None

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor | QuantisedTensor,
        v: torch.Tensor | QuantisedTensor,
        *,
        return_lse: bool = False,
        inputs: str = "logical",
        page_table: torch.Tensor | None = None,
        kv_len: int | None = None,
        q_positions: torch.Tensor | None = None,
        kv_positions: torch.Tensor | None = None,
        **values: Any,
    ) -> Any:
        """Attention output [batch, heads, q_len, v_head_dim] in q's dtype. A query that keeps nothing has output 0.

        q: [batch, heads, q_len, head_dim].
        k, v: [batch, kv_heads, kv_len, head_dim], kv_heads dividing heads. Values of masked keys are multiplied by 0:
            they must be finite. Or both in 8 bits, as `fs.quantise` makes them: no precision rounds them again.
        return_lse: also the log-sum-exp in nats, float32 (of float64 inputs float64) [batch, heads, q_len], -inf where
            a query keeps nothing; of another weight, the log of the sum that it is divided by (FS042 where there is
            none).
        inputs: "logical" (an order moves tokens in and out) or "ordered" (q, k, v lie in the order already, padding
            included, and so does the output).
        page_table: int32 [batch, pages of a sequence], the page of each page_size tokens; k, v are then [pages,
            page_size, kv_heads, head_dim], of any page_size. Entries are not checked; those past kv_len are not read.
        kv_len: keys of a sequence in pages; a mask tells shorter ones apart.
        q_positions, kv_positions: where each row truly stands, int32 or int64 [batch | 1, length] or [batch | 1,
            heads | kv_heads | 1, length]. The mask and the scores speak of these positions; their tensors and lengths
            are those of the whole sequence. Negative: nothing is there. With exact=False the values are not checked.
        values: run-time parameters and tensors by name.

        Raises FS020, FS021, FS022, FS023, FS024, FS025 (values), FS031, FS032, FS033 (lengths), FS034, FS035
        (arithmetic of the mask), FS036 (positions), FS040 (q, k, v), FS042 (no backend can).

        >>> import flexspec as fs, torch
        >>> attend = fs.compile(fs.causal, backend="reference")
        >>> token, pages = torch.zeros(1, 1, 1, 4), torch.eye(4).view(2, 2, 1, 4)
        >>> out = attend(token, pages, pages, page_table=torch.tensor([[1, 0]]), kv_len=3, offset=2)
        >>> (3 * out).round()[0, 0, 0].tolist()
        [1.0, 0.0, 1.0, 1.0]
        """
        given = {"q": q_positions, "kv": kv_positions}
        values |= {GIVEN[side]: tensor for side, tensor in given.items() if tensor is not None}
        compiling = torch.compiler.is_compiling()
        if compiling and self._number is not None and self._fits_operator(q, k, v, page_table, kv_len, values):
            k, v, beside = apart(k, v)
            out, lse = operator.operate(self._number, self.held, q, k, v, inputs, {**values, **beside})
            return (out, lse) if return_lse else out
        call = self._apart if compiling or "torch._dynamo" in sys.modules else self._called  # which is slow to import
        return call(q, k, v, return_lse, inputs, values, page_table, kv_len)

    def _fits_operator(self, q: Any, k: Any, v: Any, page_table: Any, kv_len: Any, values: dict[str, Any]) -> bool:
        if self.backward is None or isinstance(k, QuantisedTensor):
            plain = not operator.wants_gradients((q, k, v, *self.held.values(), *values.values()))
        else:
            plain = self.spec.weight is None
        return page_table is None and kv_len is None and plain and operator.fits(values)

    @property
    def mapped(self) -> tuple[str, ...]:
        """The tensors on which the block map, or the width of a kernel's integers, depends."""
        return self._cache.counting

    @cached_property
    def _apart(self) -> Any:
        """The call kept from the compiler of a model: it compiles itself, and is a graph break there."""
        return torch.compiler.disable(self._called)

    def _called(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, return_lse: bool, inputs: str, *rest: Any
    ) -> Any:
        out, lse = self.run(self.call_of(q, k, v, return_lse, inputs, *rest), q.shape[2], inputs)
        return (out, lse) if return_lse else out

    def call_of(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        return_lse: bool,
        inputs: str,
        values: dict[str, Any],
        page_table: torch.Tensor | None = None,
        kv_len: int | None = None,
    ) -> Call:
        """The call in memory order, checked, with what it shares with calls alike."""
        stored = stored_of(k, v)
        seen_k, seen_v = (k, v) if stored is None else (x.seen(q.dtype) for x in stored)
        seen_k, seen_v = self._seen(seen_k, seen_v, page_table, kv_len)
        check_qkv(q, seen_k, seen_v)
        if stored is not None:
            check_mean(stored[0], q.shape[0], seen_k.shape[1], q.shape[3])
            k, v = (x.numbers for x in stored)
        if inputs not in ("logical", "ordered"):
            fix = "choose logical or ordered"
            raise FlexSpecError("FS021", f"inputs is {inputs!r}", fix=fix, where=user_caret())
        q_len, kv_len = (self._tokens(x.shape[2], inputs, side) for x, side in ((q, "q"), (seen_k, "kv")))
        sizes = make_sizes(q_len, kv_len, q.shape[0], q.shape[1])
        check_weight(self.spec, sizes, return_lse, placed=bool(given_positions(values)))
        check_heads(values, q.shape[1], seen_k.shape[1])
        for own in filter(None, map(self._order_of, ("q", "kv"))):
            told_sizes(own, sizes)
        copies = self.copies_of_keys(q.shape[1], seen_k.shape[1], inputs, q.device)
        eight, tokens = stored is not None, seen_k.shape[2]
        if self.order is not None and inputs == "logical":
            k, v = _in_floats(k, v, stored, q.dtype, page_table, tokens)
            stored = page_table = None
            k, v = (x.repeat_interleave(copies, 1) if copies > 1 else x for x in (k, v))
            q, k, v = (self.moved(x, inputs, side=side) for x, side in ((q, "q"), (k, "kv"), (v, "kv")))
        if self._choices:
            keys, _ = _in_floats(k, v, stored, q.dtype, page_table, tokens)
            values = self._choices.values(q, keys, sizes, values, seen_k.shape[1])
        bound, lowered = self._cache.of(sizes, values, q.device)
        beside = (lowered.derive(_score_by_row, bound=bound), *self._beside[1:]) if bound.rows else self._beside
        check_scores(lowered, beside, bound, read=self.exact)
        call = Call(lowered, lowered.score, bound, q, k, v, return_lse, page_table, *self.options())
        return replace(call, stored=stored, precision=None, skip=None) if eight else call

    def copies_of_keys(self, heads: int, kv_heads: int, inputs: str, device: torch.device) -> int:
        """How often a key head lies in memory: once, or for each of its query heads if their orders differ.

        FS033 where keys lie in memory already, and only once.
        """
        order = self._order_of("kv")
        if not isinstance(order, Table) or order.shared(kv_heads, device):
            return 1
        if inputs == "ordered":
            order.moves_of_keys(kv_heads, device)  # says so
        return heads // kv_heads

    def options(self) -> tuple[Any, ...]:
        """The end of a `Call`. Whether gradients are deterministic: asked of `fs.compile`, or of torch, or None."""
        deterministic = self.deterministic
        if deterministic is None and torch.are_deterministic_algorithms_enabled():
            deterministic = True
        return self.autotune, self.precision, self.skip, deterministic

    def run(self, call: Call, q_len: int, inputs: str) -> tuple[Any, Any]:
        """Output and lse of a call, at the places where its inputs came from."""
        out, lse = self._run(call)
        lse = None if lse is None else self.moved_back(lse, inputs, q_len, dim=-1)
        return self.moved_back(out, inputs, q_len), lse

    def moved(self, tensor: torch.Tensor, inputs: str, dim: int = -2, side: str = "q") -> torch.Tensor:
        order = self._order_of(side)
        return order.apply(tensor, dim) if order is not None and inputs == "logical" else tensor

    def moved_back(
        self, tensor: torch.Tensor, inputs: str, length: int, dim: int = -2, side: str = "q"
    ) -> torch.Tensor:
        order = self._order_of(side)
        return order.undo(tensor, length, dim) if order is not None and inputs == "logical" else tensor

    def _order_of(self, side: str) -> Order | None:
        return None if self.order is None else self.order.side(side)

    def _seen(self, k: Any, v: Any, page_table: Any, kv_len: Any) -> tuple[Any, Any]:
        """Keys and values as [batch, kv_heads, kv_len, head_dim], of pages their shape alone."""
        if page_table is None and kv_len is None:
            return k, v
        check_pages(k, v, page_table, kv_len)
        return as_seen(k, page_table, kv_len), as_seen(v, page_table, kv_len)

    def _tokens(self, length: int, inputs: str, side: str) -> int:
        """Logical tokens of a tensor with `length` places."""
        order, on = self._order_of(side), self.spec.parts.mask.on
        if order is None or inputs == "logical":
            return length
        canvas = on.side(side) if on else None
        tokens = order.tokens or (canvas.size if canvas else length)
        if order.padded(tokens) != length:
            what = "q, k, v have" if self.order is order else f"the {side} side has"
            message = f"{order} has {order.padded(tokens):,} places; {what} {length:,}"
            raise FlexSpecError("FS033", message, fix='move them with order.apply, or inputs="logical"')
        return tokens

    def _run(self, call: Call) -> Result:
        """The first of the backends that can run a call runs it; FS042 with the reasons and one that works."""
        if call.precision is not None and call.wants_gradients:
            message = f"precision={call.precision!r} has no gradients"
            fix = "call it under torch.no_grad(), or compile without precision"
            raise FlexSpecError("FS042", message, fix=fix, where=user_caret())
        against: list[str] = []
        for backend in ranked(self.backends, call.seen):
            reasons = backend.against(call)
            if not reasons:
                if against:
                    self._warn(f"{backend.name} runs this, because {'; '.join(against)}")
                try:
                    return backend.run(call if backend.paged else call.plain())
                except BackendFailed as failed:
                    reasons = [str(failed)]
            against += reasons
        names = choices(map(repr, able(tuple(each for each in BACKENDS if each not in self.backends), call)))
        message = f"{self.backends[0].name} cannot run this: {'; '.join(against)}"
        raise FlexSpecError("FS042", message, fix=f"backend={names} can", where=user_caret())

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, FlexSpecWarning, stacklevel=user_level())


def _score_by_row(lowered: Lowered, bound: Bound) -> Expr:
    return by_row(lowered.attention.parts.score, bound)


def _in_floats(
    k: Any, v: Any, stored: Any, dtype: torch.dtype, page_table: torch.Tensor | None, tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values out of their pages, and out of 8 bits."""
    if stored is not None:
        k, v = as_floats(stored, dtype, page_table, tokens)
    elif page_table is not None:
        k, v = (gathered(pages, page_table, tokens) for pages in (k, v))
    return k, v


def check_names(open_names: frozenset[str]) -> None:
    """FS021 where a value that only the call can give has the name of an argument of the call."""
    clash = sorted(open_names & OWN)
    if clash:
        message = f"`{clash[0]}` is a value of the pattern, and an argument of the call"
        fix = f"bind it before, as in pattern({clash[0]}=...), or rename it"
        raise FlexSpecError("FS021", message, fix=fix, where=user_caret())
