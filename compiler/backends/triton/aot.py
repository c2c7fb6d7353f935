"""Kernels compiled ahead of time: for any GPU that Triton's compiler knows, with none at hand.

The kernels are started as in a call, on tensors without memory, and what would run them compiles them instead. So
types, specialised sizes and tiles are those of a call on that GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from flexspec.errors import FlexSpecError
from flexspec.user_line import user_caret

from ..base import Call
from ..stored import quantise
from ..weights import softmax_scores
from .able import reasons_against
from .autograd import run_backward
from .decoding import decodes, run_decode
from .launch import Launch, launch_of, run_forward
from .precision import run_low_precision
from .reading import reader
from .report import AotReport, KernelReport


def build(call: Call, target: str, backward: bool = True) -> AotReport:
    """The kernels of a call on meta tensors, compiled. FS041, FS042."""
    kernels: list[KernelReport] = []
    start = reader(target, (call.q.shape[3], call.v.shape[3]), kernels)
    against = reasons_against(call, target)
    if against:
        raise FlexSpecError("FS042", f"triton cannot run this: {'; '.join(against)}", where=user_caret())
    weight, sink = call.lowered.weight, None
    if weight is not None and weight.kind == "sink_logit" and (decodes(call) or not backward or call.precision):
        sink = torch.empty((1, call.q.shape[1], 1), device=call.q.device)  # gradients go by the identity
    if call.precision is not None and decodes(call):
        call = kept_in_8_bits(call, call.precision)
    score, *_ = softmax_scores(weight, call.score)  # a weight with a sign has another like it
    call = replace(call, score=score)
    launch = replace(launch_of(call, sink, target), start=start)
    if decodes(call):
        run_decode(launch, call)
    elif call.precision is not None:
        run_low_precision(launch, call)
    else:
        read = () if call.deterministic else call.trained
        run_all(launch, call.q, call.k, call.v, backward, {name: call.bound.tensors[name].to("meta") for name in read})
    source = Path(launch.functions.file).read_text("utf-8")
    return AotReport(call.lowered.attention.label, target, tuple(kernels), source)


def kept_in_8_bits(call: Call, precision: str) -> Call:
    """A step of decoding whose keys and values are as `fs.quantise` has them."""
    stored = quantise(call.k, call.v, precision)
    return replace(call, k=stored[0].numbers, v=stored[1].numbers, stored=stored, precision=None, skip=None)


def run_all(
    launch: Launch,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    backward: bool,
    read: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Every kernel of a training step, or of its forward pass. read: the tensors of the scores that want gradients."""
    out, lse = run_forward(launch, q, k, v)
    if backward:
        run_backward(launch, q, k, v, out, lse, torch.empty_like(out), None, dict(read or {}))
