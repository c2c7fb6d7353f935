"""From a call to kernel launches: arguments, grids and tile sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from flexspec.expr import Expr, const, substitute, var

from ...blocks.block_map import BlockMap
from ...pipeline import needs_64_bits
from .. import Call
from .configs import Config, arch_of, config_of
from .rows import Rows, rows_of
from .source import functions, values_of

FAR_STRIDE = 2**31 // 256
"""256: most tokens or channels of a tile."""


def run(kernel: Any, grid: tuple[int, ...], config: Config, *args: Any, **constants: Any) -> None:
    """Start a kernel where its tensors are."""
    kernel[grid](*args, **constants, **config.options())


@dataclass(frozen=True)
class Plan:
    """What every kernel of one call is given, beside its own tensors.

    arch: the GPU it is for, such as "sm_90". start: `run`, or what takes its place ahead of time.
    """

    block_map: BlockMap
    mask: Any
    score: Any
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
    bound = {**call.bound.all_numbers(), **call.bound.tensors}
    wide = is_wide(call)
    scored = call.score if call.score is not var("score") else None
    mask, score = functions(call.mask, scored, wide, call.attention.label)
    device = call.q.device
    return Plan(
        block_map,
        mask,
        score,
        values_of(call.mask, bound, device, wide),
        () if scored is None else values_of(scored, bound, device, wide),
        1 / math.sqrt(call.q.shape[3]) if call.attention.scale is None else call.attention.scale,
        call.q.shape[1],
        call.q.shape[1] // call.k.shape[1 if call.page_table is None else 2],
        scored,
        wide,
        call.attention.label,
        arch_of(device) if arch is None else arch,
        sink=None if sink is None else sink.expand(1, call.q.shape[1], 1).contiguous(),
    )


def is_wide(call: Call) -> bool:
    """Do the functions of a call need 64-bit integers? Kept with its map, unless other integer tensors decide too."""
    if any(x.numel() >= 2**31 for x in call.bound.tensors.values()):
        return True  # where an element lies is an integer too
    kept, block_map = call.attention.kept.expr.names, call.block_map
    if any(not x.is_floating_point() for name, x in call.bound.tensors.items() if name not in kept):
        return _computes_wide(call)
    key = ("triton wide", call.mask, call.score, *sorted(call.bound.numbers.items()))
    if key not in block_map.lists:
        block_map.lists[key] = _computes_wide(call)
    return bool(block_map.lists[key])


def _computes_wide(call: Call) -> bool:
    integers = substitute(call.score, {"score": const(0.0)})
    return any(needs_64_bits(expr, call.bound, call.block_map.grid) for expr in (call.mask, integers))


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
    grid = plan.block_map.grid
    chosen: Config = config_of("forward", plan.arch, grid, q, v)
    rows = rows_of(plan.block_map, "q", grid.block_q // chosen.block_m)
    batch, heads, q_len, _ = q.shape
    out = torch.empty((batch, heads, q_len, v.shape[3]), dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, heads, q_len), dtype=torch.float32, device=q.device)
    plan.start(
        forward,
        (len(rows.schedule), batch * heads),
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
        mask=plan.mask,
        score=plan.score,
        BLOCK_Q=grid.block_q,
        BLOCK_KV=grid.block_kv,
        BLOCK_M=chosen.block_m,
        BLOCK_N=chosen.block_n,
        HEAD_DIM=q.shape[3],
        V_DIM=v.shape[3],
        HEAD_PAD=padded(q.shape[3]),
        V_PAD=padded(v.shape[3]),
        PRECISION="ieee",
    )
    return out, lse
