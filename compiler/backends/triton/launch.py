"""From a call to kernel launches: arguments, grids and tile sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch

from flexspec.expr import Expr, const, inputs_of, substitute, var

from ...blocks.block_map import BlockMap
from ...blocks.integer_range import needs_64_bits
from ...pipeline import Lowered
from ...printers.triton import may_fuse
from ...simplify.spans import span_of
from ..base import Call
from .configs import Config, arch_of, parts_of
from .functions import Functions, functions, simple, values_of
from .groups import with_intervals
from .rows import Rows, rows_of, takes_lists
from .tuning import launched

FAR_STRIDE = 2**31 // 256
"""256: most tokens or channels of a tile."""
LEAST_SCALE = 1e-30
"""Where there is no score function, kernels take the maximum before they scale: by more than 0, in 32 bits."""


def run(kernel: Any, grid: tuple[int, ...], config: Config, *args: Any, **constants: Any) -> None:
    """Start a kernel where its tensors are."""
    start = partial(kernel[grid], *args, **constants, **config.options())
    if config.tma:  # descriptors made by a kernel lie in memory that Triton asks for; only here it asks us
        copy_context().run(_with_memory, start)
    else:
        start()


def _with_memory(start: Callable[[], Any]) -> None:
    import triton

    triton.set_allocator(lambda size, *_: torch.empty(size, dtype=torch.int8, device="cuda"))
    start()


@dataclass(frozen=True, eq=False)
class Launch:
    """What every kernel of one call is given, beside its own tensors.

    values: what the mask reads, by name. functions: of the mask as a span of keys, and of the score. scored: the score,
    None where it is the product of q and k. wide: integers have 64 bits. arch: the GPU it is for, such as "sm_90".
    start: `run`, or what takes its place ahead of time.
    """

    block_map: BlockMap
    mask: Expr
    values: Mapping[str, Any]
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
    deterministic: bool | None = None
    """As `Call.deterministic`."""

    @cached_property
    def options(self) -> dict[str, Any]:
        """Of the compiler, for kernels that ask the mask. Fusing is also the cheapest way from scores to weights."""
        return {"enable_fp_fusion": may_fuse(self.mask)}

    @property
    def columns(self) -> tuple[Expr, tuple[Any, ...]]:
        """The mask and its values for kernels that go along the queries of a key."""
        return self.block_map.derive(sided, self.mask, "q", self.block_map.device, self.wide, values=self.values)

    def sizes(self, side: str) -> tuple[int, ...]:
        """Heads, query heads for each key head, lengths, and the rows of blocks on a side."""
        grid = self.block_map.grid
        return self.heads, self.group, grid.q_len, grid.kv_len, grid.q_blocks if side == "q" else grid.kv_blocks


def launch_of(call: Call, sink: torch.Tensor | None = None, arch: str | None = None) -> Launch:
    """The launch of a call: what alike calls share is kept, and this call's score values are filled in.

    Kernels for a mask are compiled once; new values and lengths are arguments. arch: that of the call's device where
    left out.
    """
    lowered, device, tensors = call.lowered, call.q.device, call.bound.tensors
    heads, kv_heads = call.q.shape[1], call.k.shape[1 if call.page_table is None else 2]
    large = any(tensor.numel() >= 2**31 for tensor in tensors.values())  # where an element lies is an integer too
    how = call.autotune, call.deterministic
    launch = lowered.derive(_launch, call.score, device, heads, heads // kv_heads, call.q.shape[3], large, arch, *how)
    own: dict[str, Any] = {}
    if launch.scored is not None and inputs_of(launch.scored):
        values = {**lowered.values, **tensors}
        own["score_values"] = values_of(launch.scored, values, device, launch.wide)
    if sink is not None:
        own["sink"] = sink.expand(1, heads, 1).contiguous()
    return replace(launch, **own) if own else launch


def _launch(
    lowered: Lowered,
    score: Expr,
    device: torch.device,
    heads: int,
    group: int,
    head_dim: int,
    large: bool,
    arch: str | None,
    autotune: bool,
    deterministic: bool | None,
) -> Launch:
    """What calls with these heads on this device share."""
    block_map, attention = lowered.block_map, lowered.attention
    assert isinstance(block_map, BlockMap)
    wide = large or lowered.derive(is_wide, score)
    scale = 1 / math.sqrt(head_dim) if attention.scale is None else attention.scale
    scored = None if score is var("score") and scale > LEAST_SCALE else score
    fixed = scored is not None and not inputs_of(scored)
    mask, mask_values = block_map.derive(sided, lowered.mask, "kv", device, wide, values=lowered.values)
    return Launch(
        block_map,
        lowered.mask,
        lowered.values,
        functions(mask, scored, wide, attention.label),
        mask_values,
        values_of(scored, lowered.values, device, wide) if scored is not None and fixed else (),
        scale,
        heads,
        group,
        scored,
        wide,
        attention.label,
        arch_of(device) if arch is None else arch,
        autotune=autotune,
        deterministic=deterministic,
    )


def sided(
    block_map: BlockMap, mask: Expr, side: str, device: torch.device, wide: bool, values: Mapping[str, Any]
) -> tuple[Expr, tuple[Any, ...]]:
    """The mask for kernels that go along a side, "q" or "kv", and its values on the device."""
    mask, values = with_intervals(block_map, mask, side, values)
    return mask, values_of(mask, values, device, wide)


def is_wide(lowered: Lowered, score: Expr) -> bool:
    """Do the mask, the ends of its spans and the score need 64-bit integers?"""
    mask = simple(lowered.mask)
    ends = [end for side in ("q", "kv") for end in span_of(mask, side) if end is not None]
    exprs = (mask, substitute(score, {"score": const(0.0)}), *ends)
    return any(needs_64_bits(expr, lowered.values, lowered.grid) for expr in exprs)


def near(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Tensors as their memory says, whose steps inside a tile fit 32 bits: others are copied."""
    tensors = tuple(x.resolve_neg() for x in tensors)
    return tuple(x.contiguous() if max(x.stride()[2:]) >= FAR_STRIDE else x for x in tensors)


def described(tensor: torch.Tensor) -> tuple[Any, ...]:
    """A tensor as kernels take it: pointer and strides."""
    return (tensor, *tensor.stride())


def described_alike(tensor: torch.Tensor) -> bool:
    """May a descriptor take the place of pointers? Channels lie beside each other, and rows start at multiples of 16
    bytes (CUDA driver API, `cuTensorMapEncodeTiled`).
    """
    steps = [step * tensor.element_size() for step in tensor.stride()[:3]]
    apart = all(step % 16 == 0 for step in (tensor.data_ptr(), *steps))
    return tensor.stride(3) == 1 and apart and 0 < steps[2] < 2**40


def by_descriptors(chosen: Config, *tensors: torch.Tensor) -> Config:
    """The choice, without descriptors and what needs them where not all of these tensors may have one."""
    tma = chosen.tma and all(map(described_alike, tensors))
    return chosen._replace(tma=tma, late=chosen.late and tma and tensors[0].element_size() == 2)


def located(rows: Rows) -> tuple[Any, ...]:
    return (rows.index, *rows.strides(), rows.schedule, len(rows.schedule))


def run_forward(launch: Launch, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output in q's dtype, and lse float32."""
    from .forward import forward

    q, k, v = near(q, k, v)
    out = torch.empty((*q.shape[:3], v.shape[3]), dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    launched(
        lambda launch, chosen: _forward(launch, q, k, v, out, lse, chosen),
        forward,
        launch,
        q,
        v,
        (launch.functions.mask, launch.functions.score),
    )
    return out, lse


def _forward(
    launch: Launch,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    chosen: Config,
) -> None:
    from .forward import forward

    grid = launch.block_map.grid
    chosen = by_descriptors(chosen, k, v)
    listed = grid.block_kv // chosen.block_n if takes_lists(launch.block_map) else 0
    rows = rows_of(launch.block_map, "q", grid.block_q // chosen.block_m, listed)
    launch.start(
        forward,
        (len(rows.schedule) * q.shape[0] * q.shape[1],),
        chosen,
        described(q),
        described(k),
        described(v),
        described(out),
        lse,
        located(rows),
        rows.full,
        rows.partial,
        launch.sizes("q"),
        launch.scale,
        launch.mask_values,
        launch.score_values,
        launch.sink,
        mask=launch.functions.mask,
        score=launch.functions.score,
        BLOCK_Q=grid.block_q,
        BLOCK_KV=grid.block_kv,
        BLOCK_M=chosen.block_m,
        BLOCK_N=chosen.block_n,
        HEAD_DIM=q.shape[3],
        V_DIM=v.shape[3],
        HEAD_PARTS=parts_of(q.shape[3], launch.arch),
        V_PARTS=parts_of(v.shape[3], launch.arch),
        PRECISION="ieee",
        TMA=chosen.tma,
        LATE=chosen.late,
        **launch.options,
    )
