"""Calls in 8 bits: q, k and v are quantised, then one kernel runs over the tiles of the block map."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Call
from ..quantised import KEYS, LIFT, Quantised, quantised
from .configs import LEAST_SUM, Config, padded
from .launch import Launch, described, located
from .rows import rows_of, takes_lists
from .tuning import launched


def run_low_precision(launch: Launch, call: Call) -> tuple[Tensor, Tensor]:
    """Output in q's dtype, and lse float32."""
    from .low_precision import low_precision

    assert call.precision is not None
    grid = launch.block_map.grid
    tokens = grid.q_blocks * grid.block_q, grid.kv_blocks * grid.block_kv
    each = quantised(call.q, call.k, call.v, call.precision, tokens)
    out = torch.empty((*call.q.shape[:3], call.v.shape[3]), dtype=call.q.dtype, device=call.q.device)
    lse = torch.empty(call.q.shape[:3], dtype=torch.float32, device=call.q.device)
    functions = launch.functions.mask, launch.functions.score

    def start(launch: Launch, chosen: Config) -> None:
        _start(launch, each, out, lse, call, chosen)

    launched(start, low_precision, launch, each.q, each.v, functions)
    return out, lse


def _start(launch: Launch, each: Quantised, out: Tensor, lse: Tensor, call: Call, chosen: Config) -> None:
    from .low_precision import low_precision

    assert call.precision is not None
    grid = launch.block_map.grid
    listed = grid.block_kv // chosen.block_n if takes_lists(launch.block_map) else 0
    rows = rows_of(launch.block_map, "q", grid.block_q // chosen.block_m, listed)
    launch.start(
        low_precision,
        (len(rows.schedule) * call.q.shape[0] * call.q.shape[1],),
        chosen,
        described(each.q),
        described(each.k),
        described(each.v),
        tuple(described(scale) for scale in (each.q_scale, each.k_scale, each.v_scale, each.offset)),
        described(out),
        lse,
        located(rows),
        rows.full,
        rows.partial,
        launch.sizes("q"),
        launch.scale,
        None if call.skip is None else below(call.skip),
        launch.mask_values,
        launch.score_values,
        launch.sink,
        mask=launch.functions.mask,
        score=launch.functions.score,
        BLOCK_Q=grid.block_q,
        BLOCK_KV=grid.block_kv,
        BLOCK_M=chosen.block_m,
        BLOCK_N=chosen.block_n,
        KEYS=KEYS,
        HEAD_WIDE=each.q.shape[3],
        V_WIDE=each.v.shape[3],
        V_DIM=out.shape[3],
        HEAD_PAD=max(LEAST_SUM, padded(each.q.shape[3])),
        V_PAD=padded(each.v.shape[3]),
        LIFT=LIFT[call.precision],
        **launch.options,
    )


def below(skip: float) -> float:
    """In base 2, from a running maximum that is rounded up to a whole number, by less than 1."""
    return skip / math.log(2) + 1
