"""Kernels of our own. Read `forward` first; then `backward`; `functions` and `gradients` make the functions of
masks and scores, `launch` and `autograd` run the kernels.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec

import torch

from ...blocks.block_map import BlockMap
from ..base import Call
from ..weights import by_softmax, number_of

LEAST_TILE = 16


class TritonBackend:
    """Runs on CUDA, and in Triton's interpreter (`TRITON_INTERPRET=1`, for tests)."""

    name = "triton"

    def __init__(self, ahead_of_time: bool = False) -> None:
        self.ahead_of_time = ahead_of_time

    def reasons_against(self, call: Call) -> list[str]:
        reasons = []
        if not _installed():
            reasons.append("the triton package is not installed")
        elif not self.ahead_of_time and call.q.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            reasons.append("Triton kernels need a CUDA device")
        if call.q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            reasons.append(f"the kernels take float16, bfloat16 and float32, not {call.q.dtype}")
        if any(map(torch._C._functorch.is_functorch_wrapped_tensor, (call.q, call.k, call.v))):
            reasons.append("vmap, grad and other transforms of torch.func do not reach into kernels")
        if not isinstance(call.block_map, BlockMap):
            reasons.append("exact=False makes lists for FlexAttention only")
        grid = call.block_map.grid
        if grid.block_q % LEAST_TILE or grid.block_kv % LEAST_TILE:
            reasons.append(f"its blocks are multiples of {LEAST_TILE} tokens, not {grid.block_q} x {grid.block_kv}")
        if max(call.q.shape[3], call.v.shape[3]) > 256:
            reasons.append("heads have at most 256 channels")
        return reasons

    def run(self, call: Call) -> tuple[torch.Tensor, torch.Tensor | None]:
        weight = call.attention.weight
        with torch.cuda.device_of(call.q):  # Triton starts kernels on the current device
            if weight is not None and weight.kind == "sink_logit" and not call.wants_gradients:
                return self._softmax(call, number_of(call))  # the kernel's own column; gradients go by the identity
            return by_softmax(call, self._softmax)

    def _softmax(self, call: Call, sink: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        from .autograd import attend
        from .decoding import decodes, run_decode
        from .launch import plan_of  # Triton is slow to import

        if decodes(call):
            out, lse = run_decode(plan_of(call, sink), call.q, call.k, call.v, call.page_table)
        else:
            out, lse = attend(call.unpaged(), sink)
        return out, lse if call.return_lse else None


@lru_cache(1)
def _installed() -> bool:
    return find_spec("triton") is not None
