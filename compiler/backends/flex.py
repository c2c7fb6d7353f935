"""FlexAttention as a backend: a mask_mod and a score_mod as source, block lists, and one compiled function per spec.

torch falls back to eager, silently, after eight recompiles of one code object. So each combination of spec, dtype and
head layout has a code object of its own, lengths are dynamic, and values are captured tensors.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch.nn.attention import flex_attention as torch_flex

from flexspec.errors import FlexSpecWarning
from flexspec.expr import Expr, inputs_of, var
from flexspec.user_line import user_level

from ..blocks.block_map import BlockMap
from ..blocks.flex_lists import contiguous_lists, to_flex
from ..blocks.integer_range import needs_64_bits
from ..blocks.on_device import DeviceMap
from ..printers.python import function_of, run_source, source_of
from .base import Call
from .reference import by_rows
from .weights import by_softmax

ONE_QUERY_ROWS = 16
"""On CPU, one query against 512 keys or more is wrong or broken in torch: the query is repeated to this many rows."""


DENSE_BYTES = 1 << 26
"""Index lists up to this size are as wide as torch's: a new width or row stride compiles the kernel again, and a window
or documents must not. Past it they are compact, so that long sequences fit."""


class FlexBackend:
    """Runs through `torch.compile(flex_attention)`, never eager."""

    name = "flex"

    def reasons_against(self, call: Call) -> list[str]:
        reasons = []
        if call.q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            reasons.append(f"FlexAttention has no {call.q.dtype}")
        if call.q.device.type == "cpu":
            if call.wants_gradients:
                reasons.append("FlexAttention has no backward pass on CPU")
            if not _cpp_compiler():
                reasons.append("torch.compile finds no C++ compiler")
        return reasons

    def run(self, call: Call) -> tuple[torch.Tensor, torch.Tensor | None]:
        return by_softmax(_expanded_as_copies(call.unpaged()), self._softmax)

    def _softmax(self, call: Call) -> tuple[torch.Tensor, torch.Tensor | None]:
        if call.q.device.type != "cpu":
            return self._compiled(call, call.q, call.block_map, call.mask)
        if call.return_lse:
            message = "the reference runs this, because FlexAttention gives no lse on CPU"
            warnings.warn(message, FlexSpecWarning, stacklevel=user_level())
            out, lse = by_rows(call.mask, call.score, call.attention.scale, call.bound, call.q, call.k, call.v)
            return out.to(call.q.dtype), lse.to(torch.float32)
        if call.q.shape[2] > 1 or call.k.shape[2] < 512:
            return self._compiled(call, call.q, call.block_map, call.mask)
        rows = call.q.expand(-1, -1, ONE_QUERY_ROWS, -1).contiguous()
        out, _ = self._compiled(call, rows, call.block_map, call.mask, one_query=True)
        return out[:, :, :1], None

    def _compiled(
        self, call: Call, q: torch.Tensor, block_map: BlockMap | DeviceMap, mask: Expr, one_query: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        fixed = _fix_sizes(call)
        values = {**call.bound.all_numbers(), **call.bound.tensors}
        options: dict[str, Any] = {"device": q.device, "last_query": one_query}
        exact = isinstance(block_map, BlockMap)  # else no value is read, and the ranges of integers are not known
        wide = q.device.type != "cpu" and not (exact and not needs_64_bits(mask, call.bound, block_map.grid))
        options["wide"] = wide
        mask_mod = function_of(mask, values, kind="mask_mod", **options)
        score_mod = None
        if call.score is not var("score"):
            score_mod = function_of(call.score, values, kind="score_mod", **options)
        block_mask = to_flex(block_map, mask_mod, compact=exact and _dense_bytes(block_map) > DENSE_BYTES)
        if one_query:
            block_mask.seq_lengths = (q.shape[2], block_mask.seq_lengths[1])
        facts = contiguous_lists(block_map) if isinstance(block_map, BlockMap) and q.device.type != "cpu" else {}
        texts = [source_of(expr, kind="x", wide=options["wide"]) for expr in (mask, call.score)]
        layout = (q.dtype, q.shape[1] // call.k.shape[1], q.shape[3], call.v.shape[3], one_query)
        lists = (block_map.batch > 1, block_map.heads > 1)
        function = _function(
            key=(*texts, *layout, *lists, *fixed, q.device.type),
            scale=call.attention.scale,
            gqa=q.shape[1] != call.k.shape[1],
            lse=call.return_lse,
            facts=tuple(facts.items()),
        )
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            result = function(q, call.k, call.v, score_mod, block_mask)
        return (result[0], result[1].lse) if call.return_lse else (result, None)


def _expanded_as_copies(call: Call) -> Call:
    """The call with copies of tensors whose last dim is expanded: torch's CPU kernels do not compile for those."""
    tensors = call.bound.tensors
    copies = {name: x.contiguous() for name, x in tensors.items() if x.dim() and x.stride(-1) == 0 and x.size(-1) > 1}
    return replace(call, bound=replace(call.bound, tensors={**tensors, **copies})) if copies else call


def _dense_bytes(block_map: BlockMap | DeviceMap) -> int:
    """Bytes of torch's four index lists."""
    return 16 * block_map.batch * block_map.heads * block_map.grid.q_blocks * block_map.grid.kv_blocks


def _fix_sizes(call: Call) -> list[tuple[int, ...]]:
    """Tell dynamo which dims of the captured tensors are no lengths, and return their sizes.

    torch's CPU kernels do not compile for a captured tensor with a dynamic size that is not one of the lengths.
    """
    sizes = []
    for name, node in inputs_of(call.attention.formula.expr).items():
        tensor = call.bound.tensors[name]
        fixed = [axis for axis, dim in enumerate(node.dims) if dim not in ("q_len", "kv_len", "sequence")]
        for axis in fixed:
            torch._dynamo.mark_static(tensor, axis)
        sizes.append(tuple(tensor.shape[axis] for axis in fixed))
    return sizes


@lru_cache(maxsize=512)
def _function(
    key: tuple[Any, ...], scale: float | None, gqa: bool, lse: bool, facts: tuple[tuple[str, Any], ...]
) -> Callable[..., Any]:
    """A compiled attention function with a code object of its own for each set of arguments."""
    extra = ", return_aux=AuxRequest(lse=True)" if lse else ""
    source = (
        f"# {abs(hash((key, scale, gqa, lse, facts))):x}\n"
        "def attend(q, k, v, score_mod, block_mask):\n"
        f"    return flex_attention(q, k, v, score_mod, block_mask, {scale!r}, {gqa},"
        f" kernel_options={dict(facts)!r}{extra})\n"
    )
    made = run_source(source, **vars(torch_flex))["attend"]
    return torch.compile(made, dynamic=True, fullgraph=True)


def _cpp_compiler() -> str | None:
    named = os.environ.get("CXX")
    return shutil.which(named) if named else shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
