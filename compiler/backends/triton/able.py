"""What our kernels can run."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec

import torch

from ...blocks.block_map import BlockMap
from ..base import Call

LEAST_TILE = 16
MOST_CHANNELS = 256


def reasons_against(call: Call, ahead_of_time: bool = False) -> list[str]:
    """They run on CUDA, and in Triton's interpreter (`TRITON_INTERPRET=1`, for tests); they compile anywhere."""
    reasons = []
    if not _installed():
        reasons.append("the triton package is not installed")
    elif not ahead_of_time and call.q.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
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
    return reasons


@lru_cache(1)
def _installed() -> bool:
    return find_spec("triton") is not None
