"""Gradients through `torch.autograd`: the forward kernel, and the backward ones where a gradient is asked for."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from flexspec.expr import inputs_of

from ..base import Call
from ..blocks import score_gradients
from .backward import backward_fused, backward_kv, backward_q, deltas
from .configs import Config, has_fused, padded, parts_of
from .functions import functions
from .gradients import Gradients, gradient_functions
from .launch import Launch, by_descriptors, described, launch_of, located, near, run_forward
from .rows import rows_of, takes_lists
from .tuning import launched

LEAST = 32
"""Queries of a tile where sums are taken over the channels only."""


def differentiable(call: Call, sink: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Output [batch, heads, q_len, v_head_dim] in q's dtype and lse float32 [batch, heads, q_len], with gradients for
    q, k, v and the float tensors that the scores read.
    """
    launch = launch_of(call, sink)
    if not call.wants_gradients:
        return run_forward(launch, call.q, call.k, call.v)
    names = call.trained
    return Attend.apply(call, launch, names, call.q, call.k, call.v, *(call.bound.tensors[name] for name in names))


class Attend(torch.autograd.Function):
    """One call of the kernels, in memory order."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, launch: Launch, names: tuple[str, ...], *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        q, k, v = tensors[:3]
        out, lse = run_forward(launch, q, k, v)
        saved_below: dict[str, Any] = dict.fromkeys("qkv")  # and dropped where torch checkpoints
        ctx.call = replace(call, **saved_below)
        ctx.launch, ctx.names = launch, names
        apart = [call.bound.tensors[name] for name in inputs_of(call.score)] if names and call.deterministic else []
        asked = (*launch.mask_values, *launch.columns[1], *launch.score_values, *apart)
        values = [x for x in asked if isinstance(x, Tensor) and not x.is_inference()]
        ctx.save_for_backward(out, lse, *tensors, *values)  # torch tells if anyone writes to them in between
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
        out, lse, q, k, v, *read = ctx.saved_tensors
        dout = torch.zeros_like(out) if dout is None else dout
        read_by_name = dict(zip(ctx.names, read, strict=False))
        call = replace(ctx.call, q=q, k=k, v=v)
        return None, None, None, *gradients(call, ctx.launch, out, lse, dout, dlse, read_by_name)


def gradients(
    call: Call, launch: Launch, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None, read: dict[str, Tensor]
) -> list[Tensor]:
    """Gradients of q, k, v and of the tensors `read` by the scores, each in its tensor's dtype.

    The kernels add to the latter by atomic additions, whose order is not fixed; where it has to be, `blocks` makes
    them, which sums batch by batch.
    """
    apart = read if call.deterministic else {}
    found = run_backward(launch, call.q, call.k, call.v, out, lse, dout, dlse, {} if apart else read)
    return found + (score_gradients(call, out, lse, dout, dlse, apart) if apart else [])


def run_backward(
    launch: Launch,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    dlse: Tensor | None,
    read: dict[str, Tensor],
) -> list[Tensor]:
    """Gradients of q, k, v and of the tensors `read` by the scores, each in its tensor's dtype."""
    q, k, v, dout = near(q, k, v, dout)
    of_score = Gradients(None, None)
    if launch.scored is not None:
        of_score = gradient_functions(launch.scored, tuple(read), launch.wide, launch.label)
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    sums = tuple(torch.empty(tensor.shape, dtype=torch.float32, device=q.device) for tensor in read.values())
    stats = _stats(launch, out, lse, dout, dlse)
    of_rows, score = launch.functions.mask, launch.functions.score
    mask, values = launch.columns
    of_columns = functions(mask, None, launch.wide, launch.label, side="q").mask
    if launch.deterministic is False and has_fused(launch.arch, q, v):
        dq = torch.empty(q.shape, dtype=torch.float32, device=q.device)
        whole = (of_columns, score, *of_score)
        _launch(launch, Pass(backward_fused, "kv", (q, k, v, dout, dk, dv, dq), stats, values, whole, (sums,)))
        dq = dq.mul_(launch.scale).to(q.dtype)
    else:
        dq = torch.empty_like(q)
        rows = (of_rows, score, *of_score)
        _launch(launch, Pass(backward_q, "q", (q, k, v, dout, dq), stats, launch.mask_values, rows, (sums,)))
        columns = (of_columns, score, of_score.dscore)
        _launch(launch, Pass(backward_kv, "kv", (q, k, v, dout, dk, dv), stats, values, columns))
    return [dq, dk, dv, *(total.to(tensor) for total, tensor in zip(sums, read.values(), strict=True))]


class Pass(NamedTuple):
    """One backward kernel and what it is given beside the launch.

    side: "q" or "kv", whose tiles it walks. tensors: q, k, v, do, and the gradients that it writes. stats: shift and
    delta. values: of the mask along its side. functions: of that mask, of the score, and of its derivatives. sums: the
    float32 tensors that take the gradients of what the scores read, as one argument, where the kernel has it.
    """

    kernel: Any
    side: str
    tensors: tuple[Tensor, ...]
    stats: tuple[Tensor, Tensor]
    values: tuple[Any, ...]
    functions: tuple[Any, ...]
    sums: tuple[tuple[Tensor, ...], ...] = ()


def _stats(launch: Launch, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None) -> tuple[Tensor, Tensor]:
    """The lse in base 2, and the deltas."""
    shift, delta = torch.empty_like(lse), torch.empty_like(lse)
    batch, heads, q_len, v_dim = out.shape
    launch.start(
        deltas,
        (triton.cdiv(q_len, LEAST) * batch * heads,),
        Config(LEAST, 1, 4, 1),
        described(out),
        described(dout),
        lse,
        None if dlse is None else dlse.float().contiguous(),
        delta,
        shift,
        launch.sizes("q"),
        BLOCK_M=LEAST,
        V_DIM=v_dim,
        V_PAD=padded(v_dim),
        enable_fp_fusion=True,
    )
    return shift, delta


def _launch(launch: Launch, own: Pass) -> None:
    """One program for each tile of a side, in each (batch, head) of that side's tensor."""
    q, _, v = own.tensors[:3]
    launched(lambda launch, chosen: _start(launch, own, chosen), own.kernel, launch, q, v, own.functions)


def _start(launch: Launch, own: Pass, chosen: Config) -> None:
    q, k, v, dout = own.tensors[:4]
    chosen = by_descriptors(chosen, *((k, v) if own.side == "q" else (q, dout)))
    grid, axis = launch.block_map.grid, ("q", "kv").index(own.side)
    block, tile = (grid.block_q, grid.block_kv), (chosen.block_m, chosen.block_n)
    listed = block[1 - axis] // tile[1 - axis] if takes_lists(launch.block_map, own.kernel.fn.__name__) else 0
    rows = rows_of(launch.block_map, own.side, block[axis] // tile[axis], listed)
    for total in itertools.chain(own.tensors[6:], *own.sums):
        total.zero_()  # a kernel that is timed adds to it more than once
    launch.start(
        own.kernel,
        (len(rows.schedule) * math.prod(own.tensors[axis].shape[:2]),),
        chosen,
        *map(described, own.tensors),
        *own.stats,
        located(rows),
        (rows.full, rows.partial),
        launch.sizes(own.side),
        launch.scale,
        own.values,
        launch.score_values,
        *own.sums,
        *own.functions,
        BLOCK=block,
        TILE=tile,
        SIZE=(q.shape[3], v.shape[3]),
        PARTS=(parts_of(q.shape[3], launch.arch), parts_of(v.shape[3], launch.arch)),
        PRECISION="ieee",
        TMA=chosen.tma,
        **launch.options,
    )
