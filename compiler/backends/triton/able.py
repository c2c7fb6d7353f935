"""What our kernels can run."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec

import torch

from ...blocks.block_map import BlockMap
from ..base import Call
from .configs import LEAST_SUM, arch_of

LEAST_TILE = 16
MOST_CHANNELS = 256
WITH_E4M3 = ("sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "gfx950")
"""Architectures whose tensor cores multiply this format."""
MOST_FP8_KEYS = 2**31 // MOST_CHANNELS - 128
"""A channel's values lie next to each other, and a step inside a tile has 32 bits."""


def reasons_against(call: Call, target: str | None = None) -> list[str]:
    """They run on CUDA, and in Triton's interpreter (`TRITON_INTERPRET=1`, for tests); they compile anywhere.

    target: the GPU that they are compiled for ahead of time.
    """
    reasons = []
    if not _installed():
        reasons.append("the triton package is not installed")
    elif target is None and call.q.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        reasons.append("Triton kernels need a CUDA device")
    if call.q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        reasons.append(f"the kernels take float16, bfloat16 and float32, not {call.q.dtype}")
    if any(map(torch._C._functorch.is_functorch_wrapped_tensor, (call.q, call.k, call.v))):
        reasons.append("vmap, grad and other transforms of torch.func do not reach into kernels")
    if not isinstance(call.lowered.block_map, BlockMap):
        reasons.append("exact=False makes lists for FlexAttention only")
    grid = call.lowered.grid
    if grid.block_q % LEAST_TILE or grid.block_kv % LEAST_TILE:
        reasons.append(f"its blocks are multiples of {LEAST_TILE} tokens, not {grid.block_q} x {grid.block_kv}")
    if max(call.q.shape[3], call.v.shape[3]) > MOST_CHANNELS:
        reasons.append(f"heads have at most {MOST_CHANNELS} channels")
    if call.precision == "fp8":
        reasons += _against_fp8(call, arch_of(call.q.device) if target is None else target)
    return reasons


def _against_fp8(call: Call, arch: str) -> list[str]:
    reasons = []
    grid = call.lowered.grid
    if arch and arch not in WITH_E4M3:
        reasons.append(f"{arch} multiplies no e4m3 numbers; precision='int8' runs there")
    if grid.block_kv % LEAST_SUM:
        reasons.append(f"in fp8 its blocks of keys are multiples of {LEAST_SUM} tokens, not {grid.block_kv}")
    if grid.kv_len > MOST_FP8_KEYS:
        reasons.append(f"in fp8 a sequence has at most {MOST_FP8_KEYS:,} keys")
    return reasons


@lru_cache(1)
def _installed() -> bool:
    return find_spec("triton") is not None
