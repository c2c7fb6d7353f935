"""What a compiled attention says of itself: its block maps, every stage, its kernels, its functions for use by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flexspec.errors import FlexSpecError, choices
from flexspec.inputs import Sizes, check_length, make_sizes
from flexspec.user_line import user_caret

from .attend import Attending
from .backends.base import Call, check_qkv
from .backends.registry import BACKENDS
from .blocks.block_map import BlockMap
from .blocks.on_device import DeviceMap, listed
from .explain import Report, explain
from .pipeline import expressions
from .printers.python import function_of
from .selecting.choices import resolved

CPU = torch.device("cpu")


class CompiledAttention(Attending):
    """`attend(q, k, v, **values)`: attention with one spec, and what it is made of. Made by `fs.compile`."""

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
        """The block map that a call with these sizes uses (see `fs.block_map`).

        values: run-time values by name; `q` and `k` where blocks are chosen by them.

        With `exact=False` its kinds are those that bounds decide on the device; reading them waits for it.
        """
        sizes, values = self._resolved(make_sizes(q_len, kv_len, batch, heads), values)
        place = torch.device(device)
        block_map = self._cache.of(sizes, values, place)[1].block_map
        if isinstance(block_map, BlockMap):
            return block_map
        exact = self._cache.staged(sizes, values, place)[1].block_map
        assert isinstance(exact, BlockMap)
        return listed(block_map, exact)

    def _resolved(self, sizes: Sizes, values: dict[str, Any]) -> tuple[Sizes, dict[str, Any]]:
        return resolved(self.spec.parts.mask, self.order, sizes, values, self.spec.parts.names)

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
        return self._report(q_len, kv_len, batch, heads, head_dim, values).facts()

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

        q_len, kv_len: tokens; kv_len defaults to q_len.
        batch, heads: of the call, where the spec depends on them.
        head_dim: for the FLOPs.
        latex: the formula as LaTeX too.
        values: run-time parameters and tensors by name.
        """
        return explain(self._report(q_len, kv_len, batch, heads, head_dim, values), latex=latex)

    def _report(
        self, q_len: int, kv_len: int | None, batch: int | None, heads: int | None, head_dim: int, values: Any
    ) -> Report:
        sizes, values = self._resolved(make_sizes(q_len, kv_len, batch, heads), values)
        bound, lowered, stages = self._cache.staged(sizes, values, CPU)
        computed = lowered.block_map if self.exact else self._cache.of(sizes, values, CPU)[1].block_map
        on_device = computed if isinstance(computed, DeviceMap) else None
        name = "auto" if len(self.backends) > 1 else self.backends[0].name
        name += f", precision {self.precision}" if self.precision else ""
        return Report(lowered, name, self.backends[0], bound, stages, head_dim, on_device)

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
    ) -> Any:
        """Compile the kernels of a call with these sizes for a GPU, with none at hand, and report on them.

        target: sm_80, sm_90, sm_100, gfx942, ...
        q_len: tokens; a canvas' own size, or 4096, where left out; 16 queries or fewer take the decode kernels, with
            a precision over keys and values as `fs.quantise` keeps them.
        kv_len, batch, heads, kv_heads, dtype, head_dim, v_head_dim: of the call.
        backward: its kernels too, unless the call decodes.
        folder: also write the report, the generated source and each kernel's PTX and binary there.
        values: run-time values by name.

        A report is kept in the cache folder (`FLEXSPEC_CACHE`) and read again where nothing that it depends on differs.

        Returns an `AotReport`. Raises FS020, FS021, FS022, FS023 (values), FS040 (sizes), FS041 (target), FS042 (the
        kernels cannot run this), FS054 (folder).

        >>> print(fs.compile(fs.causal()).aot("sm_90", head_dim=128))  # doctest: +SKIP
        """
        on = self.spec.parts.mask.on
        if q_len is None:
            q_canvas, kv_canvas = (on.side(side) if on else None for side in ("q", "kv"))
            q_len = q_canvas.size if q_canvas else 4096
            kv_len = kv_canvas.size if kv_canvas and kv_len is None else kv_len
        bound, lowered = self._cache.of(make_sizes(q_len, kv_len, batch, heads), values, CPU)
        grid, few = lowered.grid, check_length("kv_heads", heads if kv_heads is None else kv_heads)
        few *= 1 if heads % few else self.copies_of_keys(heads, few, "logical", CPU)
        width = check_length("head_dim", head_dim)
        v_width = width if v_head_dim is None else check_length("v_head_dim", v_head_dim)
        elements = batch * max(heads, few) * max(grid.q_len, grid.kv_len) * max(width, v_width)
        check_length("the size of q, k or v", elements)
        shapes = (heads, grid.q_len, width), (few, grid.kv_len, width), (few, grid.kv_len, v_width)
        q, k, v = (torch.empty((batch, *shape), dtype=dtype, device="meta") for shape in shapes)
        check_qkv(q, k, v)
        build = next((each.build for each in (*self.backends, *BACKENDS) if each.build), None)
        assert build is not None
        report = build(Call(lowered, lowered.score, bound, q, k, v, True, None, *self.options()), target, backward)
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
        parts, order = self.spec.parts, self.order
        tokens = 1 if order is None else order.tokens
        if tokens is None:
            message = f"{order} depends on the length"
            raise FlexSpecError("FS020", message, fix="use block_map(length).mask_mod", where=user_caret())
        expr = expressions(self.spec, order, tokens, tokens)[kind == "score_mod"]
        tables = {} if order is None else order.tensors()
        values = {**parts.defaults, **parts.tensors, **tables}
        missing = sorted(name for name in expr.names - values.keys() - {"b", "h", "q", "kv", "score"})
        if missing:
            message = f"{choices(missing)} has no value in a function that stands alone"
            raise FlexSpecError("FS020", message, fix="bind it, or use block_map(...).mask_mod", where=user_caret())
        return function_of(expr, values, kind=kind, device=CPU)
