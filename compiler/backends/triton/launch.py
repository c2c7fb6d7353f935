"""From a call to kernel launches: arguments, grids and tile sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from flexspec.expr import Expr, const, substitute, var

from ...blocks.block_map import BlockMap
from ...blocks.integer_range import needs_64_bits
from ...blocks.tensor_ranges import by_content
from ...printers.triton import may_fuse
from ...simplify.spans import span_of
from ..base import Call
from .configs import Config, arch_of
from .functions import Functions, functions, simple, values_of
from .rows import Rows, rows_of
from .tuning import launched

FAR_STRIDE = 2**31 // 256
"""256: most tokens or channels of a tile."""
LEAST_SCALE = 1e-30
"""Where there is no score function, kernels take the maximum before they scale: by more than 0, in 32 bits."""


def run(kernel: Any, grid: tuple[int, ...], config: Config, *args: Any, **constants: Any) -> None:
    """Start a kernel where its tensors are."""
    kernel[grid](*args, **constants, **config.options())


@dataclass(frozen=True)
class Plan:
    """What every kernel of one call is given, beside its own tensors.

    functions: of the mask as a span of keys, and of the score. arch: the GPU it is for, such as "sm_90". start:
    `run`, or what takes its place ahead of time.
    """

    block_map: BlockMap
    mask: Expr
    functions: Functions
    mask_values: tuple[Any, ...]
    score_values: tuple[Any, ...]
    scale: float
    heads: int
    group: int
    scored: Expr | None
    wide: bool
    label: str
    arch: str
    start: Callable[..., None] = run
    sink: torch.Tensor | None = None
    """float32 [heads]: the score of one more column, which has no value."""
    autotune: bool = False

    def options(self) -> dict[str, Any]:
        """Of the compiler, for kernels that ask the mask. Fusing is also the cheapest way from scores to weights."""
        return {"enable_fp_fusion": may_fuse(self.mask)}

    def sizes(self, side: str) -> tuple[int, ...]:
        """Heads, query heads for each key head, lengths, and the rows of blocks on a side."""
        grid = self.block_map.grid
        return self.heads, self.group, grid.q_len, grid.kv_len, grid.q_blocks if side == "q" else grid.kv_blocks


def plan_of(call: Call, sink: torch.Tensor | None = None, arch: str | None = None) -> Plan:
    """Functions and values of a call. Kernels for a mask are compiled once; new values and lengths are arguments.

    arch: that of the call's device where left out.
    """
    block_map = call.block_map
    assert isinstance(block_map, BlockMap)
    wide = is_wide(call)
    scale = 1 / math.sqrt(call.q.shape[3]) if call.attention.scale is None else call.attention.scale
    plain = call.score is var("score") and scale > LEAST_SCALE
    scored = None if plain else call.score
    device = call.q.device
    key = ("triton plan", call.mask, scored, wide, device)
    if key not in block_map.lists:
        printed = functions(call.mask, scored, wide, call.attention.label)
        block_map.lists[key] = printed, values_of(call.mask, _lasting(call), device, wide)
    made, mask_values = block_map.lists[key]
    bound = {**call.bound.all_numbers(), **call.bound.tensors}
    return Plan(
        block_map,
        call.mask,
        made,
        mask_values,
        () if scored is None else values_of(scored, bound, device, wide),
        scale,
        call.q.shape[1],
        call.q.shape[1] // call.k.shape[1 if call.page_table is None else 2],
        scored,
        wide,
        call.attention.label,
        arch_of(device) if arch is None else arch,
        sink=None if sink is None else sink.expand(1, call.q.shape[1], 1).contiguous(),
        autotune=call.autotune,
    )


def _lasting(call: Call) -> dict[str, Any]:
    """The mask's values, which stay with its map: copies of tensors that the map knows by what they hold."""
    tensors = {name: x for name, x in call.bound.tensors.items() if name in call.mask.names}
    copies = {name: x.detach().clone() if by_content(x) else x for name, x in tensors.items()}
    return {**call.bound.all_numbers(), **copies}


def is_wide(call: Call) -> bool:
    """Do the functions of a call need 64-bit integers? Kept with its map, unless other integer tensors decide too."""
    if any(x.numel() >= 2**31 for x in call.bound.tensors.values()):
        return True  # where an element lies is an integer too
    kept, block_map = call.attention.kept.expr.names | call.mask.names, call.block_map
    if any(not x.is_floating_point() for name, x in call.bound.tensors.items() if name not in kept):
        return _computes_wide(call)
    key = ("triton wide", call.mask, call.score, *sorted(call.bound.numbers.items()))
    if key not in block_map.lists:
        block_map.lists[key] = _computes_wide(call)
    return bool(block_map.lists[key])


def _computes_wide(call: Call) -> bool:
    integers = substitute(call.score, {"score": const(0.0)})
    mask = simple(call.mask)
    ends = [end for side in ("q", "kv") for end in span_of(mask, side)[:2] if end is not None]
    return any(needs_64_bits(expr, call.bound, call.block_map.grid) for expr in (mask, integers, *ends))


def near(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Tensors as their memory says, whose steps inside a tile fit 32 bits: others are copied."""
    tensors = tuple(x.resolve_neg() for x in tensors)
    return tuple(x.contiguous() if max(x.stride()[2:]) >= FAR_STRIDE else x for x in tensors)


def described(tensor: torch.Tensor) -> tuple[Any, ...]:
    """A tensor as kernels take it: pointer and strides."""
    return (tensor, *tensor.stride())


def located(rows: Rows) -> tuple[Any, ...]:
    return (rows.index, *rows.strides(), rows.schedule)


def padded(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


def run_forward(plan: Plan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output in q's dtype, and lse float32."""
    from .forward import forward

    q, k, v = near(q, k, v)
    out = torch.empty((*q.shape[:3], v.shape[3]), dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    launched(
        partial(_forward, plan, q, k, v, out, lse), forward, plan, q, v, (plan.functions.mask, plan.functions.score)
    )
    return out, lse


def _forward(
    plan: Plan,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    chosen: Config,
) -> None:
    from .forward import forward

    grid = plan.block_map.grid
    rows = rows_of(plan.block_map, "q", grid.block_q // chosen.block_m)
    plan.start(
        forward,
        (len(rows.schedule), q.shape[0] * q.shape[1]),
        chosen,
        described(q),
        described(k),
        described(v),
        described(out),
        lse,
        located(rows),
        rows.full,
        rows.partial,
        plan.sizes("q"),
        plan.scale,
        plan.mask_values,
        plan.score_values,
        plan.sink,
        mask=plan.functions.mask,
        score=plan.functions.score,
        BLOCK_Q=grid.block_q,
        BLOCK_KV=grid.block_kv,
        BLOCK_M=chosen.block_m,
        BLOCK_N=chosen.block_n,
        HEAD_DIM=q.shape[3],
        V_DIM=v.shape[3],
        HEAD_PAD=padded(q.shape[3]),
        V_PAD=padded(v.shape[3]),
        PRECISION="ieee",
        **plan.options(),
    )
