"""What a backend is given, and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from flexspec.attention import Attention
from flexspec.errors import FlexSpecError
from flexspec.expr import Expr, inputs_of
from flexspec.inputs import Bound, Sizes
from flexspec.user_line import user_caret

from ..pipeline import Lowered
from .pages import gathered
from .stored import Stored, as_floats

Result = tuple[torch.Tensor, torch.Tensor | None]
"""The output [batch, heads, q_len, v_head_dim] in q's dtype, and the lse [batch, heads, q_len] in `accurate(q.dtype)`
if asked for."""


def accurate(dtype: torch.dtype) -> torch.dtype:
    """What sums of a dtype are kept in: float64 of float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True, eq=False)
class Call:
    """One attention call, in memory order.

    lowered: what all calls with these sizes and values of the mask share. score: the scores that the softmax takes;
    `lowered.score`, or what a weight makes of it. bound: this call's own values, with their gradients.
    q: [batch, heads, q_len, head_dim]; k, v: [batch, kv_heads, kv_len, head_dim], or [pages, page_size, kv_heads,
    head_dim] with a `page_table` [batch, pages of a sequence]. deterministic: gradients are the same bits at each call;
    False: they need not be; None: nobody said.
    """

    lowered: Lowered
    score: Expr
    bound: Bound
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    return_lse: bool
    page_table: torch.Tensor | None = None
    autotune: bool = False
    precision: str | None = None
    """"int8" or "fp8": q, k and v are rounded as `quantised` has it."""
    skip: float | None = None
    """Nats: tiles of keys whose scores lie so far below the maximum of each of their rows may be left out."""
    deterministic: bool | None = None
    stored: Stored | None = None
    """Keys and values in 8 bits; k and v are their numbers then."""

    def plain(self, dtype: torch.dtype | None = None, kv_len: int | None = None) -> Call:
        """The same call with keys and values copied out of their pages, and out of 8 bits, where they are in those.

        dtype: where they were in 8 bits; else q's. kv_len: their tokens, if it is not that of the block map.
        """
        kv_len = self.lowered.grid.kv_len if kv_len is None else kv_len
        if self.stored is not None:
            k, v = as_floats(self.stored, dtype or self.q.dtype, self.page_table, kv_len)
        elif self.page_table is not None:
            k, v = (gathered(pages, self.page_table, kv_len) for pages in (self.k, self.v))
        else:
            return self
        return replace(self, k=k, v=v, page_table=None, stored=None)

    @property
    def seen(self) -> Call:
        """The call as backends that know nothing of 8 bits may be asked about it."""
        if self.stored is None:
            return self
        k, v = (x.seen(self.q.dtype) for x in self.stored)
        return replace(self, k=k, v=v, stored=None)

    @property
    def wants_gradients(self) -> bool:
        if not torch.is_grad_enabled():
            return False
        tensors = (self.q, self.k, self.v, *self.bound.tensors.values())
        return any(tensor.requires_grad for tensor in tensors)

    @property
    def trained(self) -> tuple[str, ...]:
        """The tensors that the scores read and that want a gradient."""
        return tuple(name for name in inputs_of(self.score) if self.bound.tensors[name].requires_grad)


class BackendFailed(Exception):
    """A backend could not run a call that it had no reason against: `auto` takes the next one."""


@dataclass(frozen=True)
class Description:
    """What a backend makes of a spec, as `explain` shows it.

    source: the functions of the mask and the scores, as lines. options: what kernels are told. proofs: why they may be.
    relied_on: the same as data; taken wrongly, results would be wrong.
    """

    source: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    proofs: list[str] = field(default_factory=list)
    relied_on: dict[str, bool] = field(default_factory=dict)


def _nothing(lowered: Lowered) -> Description:
    return Description()


@dataclass(frozen=True, eq=False)
class Backend:
    """A way to run calls, as one value: `fs.compile(spec, backend=mine)`.

    name: as `repr`, warnings and errors show it.
    reasons_against: why it cannot run a call; empty when it can.
    run: the output [batch, heads, q_len, v_head_dim] in q's dtype, and the lse [batch, heads, q_len] in float32, or in
        float64 of float64, where `call.return_lse` asks for it. A query that keeps nothing has output 0 and lse -inf.
    describe: what it makes of a spec, for `explain`.
    backward: the gradients of q, k, v, then of the tensors `read` by name, from the call, output, lse and their
        gradients. A backend that has it is one operator inside `torch.compile`, else it is a graph break.
    build: its kernels compiled for a GPU that need not be there (`attend.aot`).
    paged: it takes keys and values in pages, and in 8 bits (`Call.stored`); else they are copied out of them first.
    tunes: it times configurations where `autotune` asks for it.
    precisions: those below the tensors' own that it has, such as "int8".
    """

    name: str
    reasons_against: Callable[[Call], list[str]]
    run: Callable[[Call], Result]
    describe: Callable[[Lowered], Description] = _nothing
    backward: Callable[..., list[torch.Tensor]] | None = None
    build: Callable[[Call, str, bool], Any] | None = None
    paged: bool = False
    tunes: bool = False
    precisions: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return self.name

    def against(self, call: Call) -> list[str]:
        """`reasons_against`, and the precision of the call where the backend does not have it."""
        if call.precision is not None and call.precision not in self.precisions:
            return [f"{self.name} has no precision={call.precision!r}"]
        return self.reasons_against(call.seen)


def able(backends: Sequence[Backend], call: Call) -> list[str]:
    """The names of those that can run a call."""
    return [backend.name for backend in backends if not backend.against(call)]


def check_qkv(q: Any, k: Any, v: Any) -> None:
    """FS040 where q, k and v do not fit each other; FS023 where they are not floating tensors."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            seen = f"dtype {tensor.dtype}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise FlexSpecError("FS023", f"{name} is no floating tensor: {seen}", where=user_caret())
    problem = _misfit(q, k, v)
    if problem:
        shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
        raise FlexSpecError("FS040", f"{shapes}: {problem}", where=user_caret())


def _misfit(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> str | None:
    of_q, of_k, of_v = q.shape, k.shape, v.shape
    if not len(of_q) == len(of_k) == len(of_v) == 4:
        return "they are [batch, heads, length, head_dim]"
    if 0 in of_q or 0 in of_k or 0 in of_v:
        return "a size is 0"
    if not of_q[0] == of_k[0] == of_v[0]:
        return "their batch sizes differ"
    if of_k[1:3] != of_v[1:3]:
        return "k and v differ in heads or length"
    if of_q[1] % of_k[1]:
        return f"{of_q[1]} query heads are no multiple of {of_k[1]} key heads"
    if of_q[3] != of_k[3]:
        return "q and k differ in head_dim"
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        return "their dtypes or devices differ"
    return None


def check_weight(attention: Attention, sizes: Sizes, return_lse: bool, placed: bool = False) -> None:
    """FS040 where an identity mix finds no own value; FS042 where a weight without a sum is asked for its lse.

    placed: are there positions, which say what a query's own token is?
    """
    weight = attention.weight
    if weight is None:
        return
    if weight.kind == "identity_mix" and sizes.q_len != sizes.kv_len and not placed:
        lengths = f"q_len is {sizes.q_len} and kv_len {sizes.kv_len}"
        message = f"{lengths}; {weight} mixes in the value of the query's own token"
        fix = "give as many queries as keys, or q_positions and kv_positions"
        raise FlexSpecError("FS040", message, fix=fix, where=user_caret())
    if return_lse and not weight.normalised:
        message = f"{weight} is not divided by a sum, so there is no lse"
        fix = "leave return_lse out; parts over keys simply add"
        raise FlexSpecError("FS042", message, fix=fix, where=user_caret())
