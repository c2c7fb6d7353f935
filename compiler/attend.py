"""A spec made callable: checks, order, block map from the cache, backend."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flexspec.attention import Attention, as_attention
from flexspec.errors import FlexSpecError, FlexSpecWarning, choices
from flexspec.expr import Apply, Expr, inputs_of
from flexspec.inputs import Sizes, check_length, make_sizes
from flexspec.mask import Mask
from flexspec.order import Order, in_memory, relocate
from flexspec.user_line import user_caret, user_level

from .backends.base import Backend, Call, check_qkv, check_weight
from .backends.pages import as_seen, check_pages, gathered
from .backends.registry import backends, check_backend
from .backends.triton import operator
from .blocks.block_map import BlockMap
from .blocks.grid import BlockSize, make_grid
from .explain import Report, explain
from .map_cache import Maps
from .pipeline import Stages
from .planning.planned import AUTO, PlannedAttention
from .printers.python import function_of

if TYPE_CHECKING:
    from .backends.triton.report import AotReport


def compile(  # noqa: A001 - the field's word, as in torch.compile
    spec: Attention | Mask | Callable[..., Any],
    *,
    order: Order | str | None = None,
    block_size: BlockSize | str = 128,
    backend: str = "auto",
    exact: bool = True,
    autotune: bool = False,
) -> CompiledAttention:
    """Attention with this spec, callable on `q, k, v`; kernels are compiled at the first call.

    spec: a Mask, an Attention, or a FlexAttention mask_mod. order: where tokens lie in memory while the kernel runs.
    block_size: tokens, one number or (query, key). "auto" for either is `fs.plan`'s choice at the first call of a size:
    a `PlannedAttention`. backend: auto, flex, triton or reference. exact: with False block lists are made on the device
    from bounds, without waiting: documents that change at each step cost no synchronisation, and undecided blocks
    evaluate the mask. autotune: time the tiles of each Triton kernel at its first call and keep the best in the cache
    folder. Raises FS023, FS030, FS033, FS041, FS042.

    >>> import flexspec as fs, torch
    >>> attend = fs.compile(fs.causal(), backend="reference")
    >>> attend(*[torch.eye(3)[None, None]] * 3)[0, 0, 0].tolist()
    [1.0, 0.0, 0.0]
    """
    make: Any = partial(CompiledAttention, backend=check_backend(backend), exact=exact, autotune=autotune)
    chosen: Any = partial(PlannedAttention, make=make) if AUTO in (order, block_size) else make
    return chosen(as_attention(spec), order, block_size)


class CompiledAttention:
    """`attend(q, k, v, **values)`: attention with one spec. Made by `fs.compile`."""

    def __init__(
        self,
        spec: Attention,
        order: Order | None,
        block_size: BlockSize,
        backend: str,
        exact: bool = True,
        autotune: bool = False,
    ) -> None:
        self.spec, self.order, self.block_size, self.exact, self.autotune = spec, order, block_size, exact, autotune
        self.backend = check_backend(backend)
        if autotune and backend != "triton":
            message = f"autotune times Triton kernels, and the backend is {backend!r}"
            raise FlexSpecError("FS042", message, fix='give backend="triton"', where=user_caret())
        make_grid(Sizes(1, 1), block_size, None if isinstance(order, Order) else order)
        self._maps = Maps(spec, order, block_size)
        self._warned: set[str] = set()
        scores = inputs_of(spec.formula.expr)
        self.held = {name: x for name, x in spec.formula.tensors.items() if name in scores and x.is_floating_point()}
        self._number = operator.enroll(self) if backend == "triton" else 0

    def __repr__(self) -> str:
        order = f", order={self.order}" if self.order else ""
        return f"compile({self.spec.label}{order}, backend={self.backend!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return CompiledAttention, (self.spec, self.order, self.block_size, self.backend, self.exact, self.autotune)

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        return_lse: bool = False,
        inputs: str = "logical",
        page_table: torch.Tensor | None = None,
        kv_len: int | None = None,
        **values: Any,
    ) -> Any:
        """Attention output [batch, heads, q_len, v_head_dim] in q's dtype.

        q: [batch, heads, q_len, head_dim]; k, v: [batch, kv_heads, kv_len, head_dim], kv_heads dividing heads.
        return_lse: also the log-sum-exp in nats, float32 [batch, heads, q_len]; of another weight, the log of the sum
        that it is divided by (FS042 where there is none). inputs: "logical" (an order moves tokens in and out) or
        "ordered" (q, k, v lie in the order already, padding included, and so does the output). page_table: int32
        [batch, pages of a sequence], the page of each page_size tokens; k, v are then [pages, page_size, kv_heads,
        head_dim], of any page_size, and kv_len counts the keys of a sequence; a mask tells shorter ones apart. Entries
        are not checked; those past kv_len are not read. values: run-time parameters and tensors by name. A query that
        keeps nothing has output 0 and lse -inf. Values of masked keys are multiplied by 0: they must be finite.
        Raises FS020 to FS042.

        >>> import flexspec as fs, torch
        >>> attend = fs.compile(fs.causal, backend="reference")
        >>> token, pages = torch.zeros(1, 1, 1, 4), torch.eye(4).view(2, 2, 1, 4)
        >>> out = attend(token, pages, pages, page_table=torch.tensor([[1, 0]]), kv_len=3, offset=2)
        >>> (3 * out).round()[0, 0, 0].tolist()
        [1.0, 0.0, 1.0, 1.0]
        """
        plain = page_table is None and kv_len is None and self.spec.weight is None
        if plain and self.backend == "triton" and torch.compiler.is_compiling() and operator.fits(values):
            out, lse = operator.attend(self._number, self.held, q, k, v, inputs, values)
            return (out, lse) if return_lse else out
        call = self._call
        if torch.compiler.is_compiling() or "torch._dynamo" in sys.modules:  # which is slow to import
            call = torch.compiler.disable(call)  # it compiles itself; inside a compiled model it is a graph break
        return call(q, k, v, return_lse, inputs, values, page_table, kv_len)

    def _call(
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
        """The call in memory order, checked, with its block map."""
        seen_k, seen_v = self._seen(k, v, page_table, kv_len)
        check_qkv(q, seen_k, seen_v)
        if inputs not in ("logical", "ordered"):
            fix = "choose logical or ordered"
            raise FlexSpecError("FS021", f"inputs is {inputs!r}", fix=fix, where=user_caret())
        q_len, kv_len = (self._tokens(x.shape[2], inputs) for x in (q, seen_k))
        sizes = make_sizes(q_len, kv_len, q.shape[0], q.shape[1])
        check_weight(self.spec, sizes, return_lse)
        bound, blocks = self._maps.of(sizes, values, q.device, exact=self.exact)
        if page_table is not None and self.order is not None and inputs == "logical":
            k, v, page_table = *(gathered(x, page_table, seen_k.shape[2]) for x in (k, v)), None
        q, k, v = (self.moved(x, inputs) for x in (q, k, v))
        exprs = self._expressions(sizes)
        return Call(self.spec, bound, *exprs, blocks, q, k, v, return_lse, page_table, self.autotune)

    def run(self, call: Call, q_len: int, inputs: str) -> tuple[Any, Any]:
        """Output and lse of a call, at the places where its inputs came from."""
        out, lse = self._backend(call).run(call)
        lse = None if lse is None else self.moved_back(lse, inputs, q_len, dim=-1)
        return self.moved_back(out, inputs, q_len), lse

    def moved(self, x: torch.Tensor, inputs: str, dim: int = -2) -> torch.Tensor:
        return self.order.apply(x, dim) if self.order is not None and inputs == "logical" else x

    def moved_back(self, x: torch.Tensor, inputs: str, length: int, dim: int = -2) -> torch.Tensor:
        return self.order.undo(x, length, dim) if self.order is not None and inputs == "logical" else x

    def _seen(self, k: Any, v: Any, page_table: Any, kv_len: Any) -> tuple[Any, Any]:
        """Keys and values as [batch, kv_heads, kv_len, head_dim], of pages their shape alone."""
        if page_table is None and kv_len is None:
            return k, v
        check_pages(k, v, page_table, kv_len)
        return as_seen(k, page_table, kv_len), as_seen(v, page_table, kv_len)

    def _tokens(self, length: int, inputs: str) -> int:
        """Logical tokens of a tensor with `length` places."""
        if self.order is None or inputs == "logical":
            return length
        canvas = self.spec.formula.canvas
        tokens = self.order.tokens or (canvas.size if canvas else length)
        if self.order.padded(tokens) != length:
            message = f"{self.order} has {self.order.padded(tokens):,} places; q, k, v have {length:,}"
            raise FlexSpecError("FS033", message, fix='move them with order.apply, or inputs="logical"')
        return tokens

    def _expressions(self, sizes: Sizes) -> tuple[Expr, Expr]:
        """The mask and the score over memory positions."""
        whole = self.spec.formula
        assert isinstance(whole.expr, Apply)
        where = (self.order, whole.canvas, sizes.q_len, sizes.kv_len)
        return in_memory(whole.expr.args[0], *where), relocate(whole.expr.args[1], *where)

    def _backend(self, call: Call) -> Backend:
        """The named backend, or the first that can; FS042 with the reasons and the one that works."""
        against: dict[str, list[str]] = {}
        for name, backend in backends().items():
            if self.backend not in ("auto", name):
                continue
            against[name] = backend.reasons_against(call)
            if not against[name]:
                if len(against) > 1:
                    self._warn(f"{name} runs this, because {'; '.join(sum(against.values(), []))}")
                return backend
        able = [name for name, backend in backends().items() if not backend.reasons_against(call)]
        message = f"{self.backend} cannot run this: {'; '.join(sum(against.values(), []))}"
        fix = f"backend={choices(repr(name) for name in able)} can"
        raise FlexSpecError("FS042", message, fix=fix, where=user_caret())

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, FlexSpecWarning, stacklevel=user_level())

    def block_map(
        self,
        q_len: int,
        kv_len: int | None = None,
        *,
        batch: int | None = None,
        heads: int | None = None,
        device: torch.device | str = "cpu",
        **values: Any,
    ) -> BlockMap:
        """The block map that a call with these sizes uses (see `fs.block_map`)."""
        return self._maps.of(make_sizes(q_len, kv_len, batch, heads), values, torch.device(device))[1]

    def facts(
        self,
        q_len: int,
        kv_len: int | None = None,
        *,
        batch: int | None = None,
        heads: int | None = None,
        head_dim: int = 64,
        **values: Any,
    ) -> dict[str, Any]:
        """What `explain` says, as plain data."""
        return self._report(make_sizes(q_len, kv_len, batch, heads), head_dim, values).facts()

    def explain(
        self,
        q_len: int,
        kv_len: int | None = None,
        *,
        batch: int | None = None,
        heads: int | None = None,
        head_dim: int = 64,
        latex: bool = False,
        **values: Any,
    ) -> str:
        """Every stage under a heading: the spec, its expression, the blocks at these lengths, the kernel, the proofs.

        head_dim: for the FLOPs. latex: the formula as LaTeX too.
        """
        return explain(self._report(make_sizes(q_len, kv_len, batch, heads), head_dim, values), latex=latex)

    def _report(self, sizes: Sizes, head_dim: int, values: Mapping[str, Any]) -> Report:
        stages = Stages()
        bound, made = self._maps.of(sizes, values, torch.device("cpu"), stages)
        return Report(self.spec, self.order, self.backend, bound, made, stages, head_dim, *self._expressions(sizes))

    def aot(
        self,
        target: str = "sm_90",
        *,
        dtype: torch.dtype = torch.bfloat16,
        head_dim: int = 128,
        v_head_dim: int | None = None,
        heads: int = 8,
        kv_heads: int | None = None,
        q_len: int | None = None,
        kv_len: int | None = None,
        batch: int = 1,
        backward: bool = True,
        folder: Path | str | None = None,
        **values: Any,
    ) -> AotReport:
        """Compile the Triton kernels of a call with these sizes for a GPU, with none at hand, and report on them.

        target: sm_80, sm_90, sm_100, gfx942, ... q_len: a canvas' own size, or 4096, where left out; 16 queries or
        fewer take the decode kernels. backward: its kernels too, unless the call decodes. folder: also write the
        report, the generated source and each kernel's PTX and binary there. values: run-time values by name. Raises
        FS020 to FS042, FS054.

        >>> print(fs.compile(fs.causal()).aot("sm_90", head_dim=128))  # doctest: +SKIP
        """
        from .backends.triton.aot import build  # Triton is slow to import

        if q_len is None:
            canvas = self.spec.formula.canvas
            q_len = canvas.size if canvas else 4096
        sizes = make_sizes(q_len, kv_len, batch, heads)
        bound, blocks = self._maps.of(sizes, values, torch.device("cpu"))
        grid, few = blocks.grid, check_length("kv_heads", heads if kv_heads is None else kv_heads)
        width = check_length("head_dim", head_dim)
        v_width = width if v_head_dim is None else check_length("v_head_dim", v_head_dim)
        check_length(
            "the size of q, k or v", batch * max(heads, few) * max(grid.q_len, grid.kv_len) * max(width, v_width)
        )
        shapes = (heads, grid.q_len, width), (few, grid.kv_len, width), (few, grid.kv_len, v_width)
        q, k, v = (torch.empty((batch, *shape), dtype=dtype, device="meta") for shape in shapes)
        check_qkv(q, k, v)
        report = build(Call(self.spec, bound, *self._expressions(sizes), blocks, q, k, v, True), target, backward)
        if folder is not None:
            report.write(folder)
        return report

    @property
    def mask_mod(self) -> Callable[..., torch.Tensor]:
        """The mask as a FlexAttention mask_mod, for use by hand. FS020 where a value or size is open."""
        return self._by_hand("mask_mod")

    @property
    def score_mod(self) -> Callable[..., torch.Tensor]:
        """The scores, without a weight, as a FlexAttention score_mod for use by hand (see `mask_mod`)."""
        return self._by_hand("score_mod")

    def _by_hand(self, kind: str) -> Callable[..., torch.Tensor]:
        whole = self.spec.formula
        tokens = 1 if self.order is None else self.order.tokens
        if tokens is None:
            message = f"{self.order} depends on the length"
            raise FlexSpecError("FS020", message, fix="use block_map(length).mask_mod", where=user_caret())
        expr = self._expressions(Sizes(tokens, tokens))[kind == "score_mod"]
        tables = {} if self.order is None else self.order.tensors()
        values = {**whole.defaults, **whole.tensors, **tables}
        missing = sorted(name for name in expr.names - values.keys() - {"b", "h", "q", "kv", "score"})
        if missing:
            message = f"{choices(missing)} has no value in a function that stands alone"
            raise FlexSpecError("FS020", message, fix="bind it, or use block_map(...).mask_mod", where=user_caret())
        return function_of(expr, values, kind=kind, device=torch.device("cpu"))
