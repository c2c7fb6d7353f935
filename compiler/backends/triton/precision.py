"""Calls in 8 bits: q, k and v are quantised, then one kernel runs over the tiles of the block map."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Call
from ..quantised import ALIGNED, E4M3, INT8, KEYS, LIFT, Quantised, mean_of, scale_of_values
from .configs import LEAST_SUM, Config, padded
from .launch import Launch, described, located, near
from .rows import rows_of, takes_lists
from .tuning import launched

ROWS = 32
"""Queries that a program quantises."""


def run_low_precision(launch: Launch, call: Call) -> tuple[Tensor, Tensor]:
    """Output in q's dtype, and lse float32."""
    from .low_precision import low_precision

    assert call.precision is not None
    grid = launch.block_map.grid
    tokens = grid.q_blocks * grid.block_q, grid.kv_blocks * grid.block_kv
    each = quantised_by_kernels(launch, call.q, call.k, call.v, call.precision, tokens)
    out = torch.empty((*call.q.shape[:3], call.v.shape[3]), dtype=call.q.dtype, device=call.q.device)
    lse = torch.empty(call.q.shape[:3], dtype=torch.float32, device=call.q.device)
    functions = launch.functions.mask, launch.functions.score

    def start(launch: Launch, chosen: Config) -> None:
        _start(launch, each, out, lse, call, chosen)

    launched(start, low_precision, launch, each.q, each.v, functions)
    return out, lse


def quantised_by_kernels(
    launch: Launch, q: Tensor, k: Tensor, v: Tensor, precision: str, tokens: tuple[int, int]
) -> Quantised:
    """As `quantised`, whose numbers and scales are the same; the offset is summed in another order. Two reductions
    over k and v, and a kernel for each of q, and k and v.
    """
    from .quantising import quantise_keys, quantise_queries

    q, k, v = near(q, k, v)
    batch, heads, q_len, channels = q.shape
    kv_heads, kv_len, v_channels = k.shape[1], k.shape[2], v.shape[3]
    wide, v_wide = (-(-each // ALIGNED) * ALIGNED for each in (channels, v_channels))
    q_tokens, blocks = max(q_len, tokens[0]), -(-max(kv_len, tokens[1]) // KEYS)
    kind, most = (torch.int8, INT8) if precision == "int8" else (torch.float8_e4m3fn, E4M3)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty((batch, *shape), dtype=dtype, device=q.device)

    mean = mean_of(k)
    if precision == "int8":
        values = empty(kv_heads, blocks * KEYS, v_wide, dtype=torch.float16)
    else:
        values = empty(kv_heads, v_wide, blocks * KEYS, dtype=kind).transpose(2, 3)
    each = Quantised(
        empty(heads, q_tokens, wide, dtype=kind),
        empty(kv_heads, blocks * KEYS, wide, dtype=kind),
        values,
        empty(heads, q_tokens),
        empty(kv_heads, blocks),
        scale_of_values(v, precision),
        empty(heads, q_tokens),
    )
    options = {"CHANNELS": channels, "WIDE": wide, "PAD": padded(wide), "MOST": most, "enable_fp_fusion": True}
    tiles = -(-q_tokens // ROWS)
    launch.start(
        quantise_queries,
        (tiles * batch * heads,),
        Config(ROWS, wide, 4, 1),
        *map(described, (q, mean, each.q, each.q_scale, each.offset)),
        (tiles, heads, heads // kv_heads, q_len, q_tokens),
        ROWS=ROWS,
        **options,
    )
    launch.start(
        quantise_keys,
        (blocks * batch * kv_heads,),
        Config(KEYS, wide, 8, 1),
        *map(described, (k, v, mean, each.k, each.k_scale, each.v, each.v_scale)),
        (blocks, kv_heads, kv_len),
        V_CHANNELS=v_channels,
        V_WIDE=v_wide,
        V_PAD=padded(v_wide),
        KEYS=KEYS,
        **options,
    )
    return each


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
