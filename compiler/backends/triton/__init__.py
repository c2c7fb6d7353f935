"""Kernels of our own. Read `forward` first, then `backward`; `launch` and `autograd` start them, `functions` and
`gradients` have the functions of masks and scores printed, `aot` compiles ahead of time, `kept` keeps its reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..base import Backend, Call, Result
from ..flex import describe
from ..quantised import PRECISIONS
from ..weights import by_softmax, number_of
from .able import reasons_against
from .configs import arch_of
from .kept import kept_or_made

# Triton is slow to import: what needs it is met inside the functions below, and nowhere else.


def run(call: Call) -> Result:
    weight = call.lowered.weight
    with torch.cuda.device_of(call.q):  # Triton starts kernels on the current device
        if weight is not None and weight.kind == "sink_logit" and not call.wants_gradients:
            return _softmax(call, number_of(call))  # the kernel's own column; gradients go by the identity
        return by_softmax(call, _softmax)


def _softmax(call: Call, sink: Tensor | None = None) -> Result:
    from .autograd import differentiable
    from .decoding import decodes, reads, run_decode
    from .launch import launch_of
    from .precision import run_low_precision

    if call.precision is not None:
        call = call.plain()
        out, lse = run_low_precision(launch_of(call, sink), call)
    elif decodes(call) and reads(arch_of(call.q.device), call):
        out, lse = run_decode(launch_of(call, sink), call)
    else:
        out, lse = differentiable(call.plain(), sink)
    return out, lse if call.return_lse else None


def backward(
    call: Call, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None, read: Mapping[str, Tensor]
) -> list[Tensor]:
    """Gradients of q, k, v and of the tensors `read` by the scores, of a call without a weight."""
    from .autograd import gradients
    from .launch import launch_of

    with torch.cuda.device_of(call.q):
        return gradients(call, launch_of(call), out, lse, dout, dlse, dict(read))


def build(call: Call, target: str, backward: bool) -> Any:
    """The kernels of a call on meta tensors, compiled and reported on, or as they were kept. FS041, FS042."""
    return kept_or_made(call, target, backward, partial(_compiled, call, target, backward))


def _compiled(call: Call, target: str, backward: bool) -> Any:
    from .aot import build

    return build(call, target, backward)


TRITON = Backend(
    "triton",
    reasons_against,
    run,
    describe,
    backward=backward,
    build=build,
    paged=True,
    tunes=True,
    precisions=PRECISIONS,
)
