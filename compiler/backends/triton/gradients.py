"""The functions that the backward kernels take from a score: its derivative, and what its tensors receive.

`dscore(s, b, h, q, kv, values)` is the derivative by the score. `gather(s, ds, keep, b, h, q, kv, values, sums)` adds
`ds` times the derivative by each load to the place that the load reads, in a float32 tensor of `sums`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from flexspec.expr import Expr, Load, infix_text, var
from flexspec.ops import Type

from ...printers.triton import MASK_TAKES, SCORE_TAKES, slots, source_of
from ...simplify.derivative import ONE, derivative, loads_of
from ...simplify.linear import cast
from ...simplify.rules import simplify
from .functions import Function, module_of


class Gradients(NamedTuple):
    """The jitted functions of a score's gradient: `dscore`, None where it is 1, and `gather`, None without tensors."""

    dscore: Function | None
    gather: Function | None


class Share(NamedTuple):
    """What one load of a tensor receives: the functions that it takes, and the line of `gather` that adds it."""

    sources: list[str]
    line: str


@lru_cache(256)
def gradient_functions(score: Expr, names: tuple[str, ...], wide: bool, title: str) -> Gradients:
    """The gradient of a score by itself and by the tensors `names`."""
    score = simplify(score)
    slope = derivative(score, var("score"))
    sources = []
    if slope is not ONE:
        sources.append(source_of(cast(slope, Type.FLOAT), kind="dscore", wide=wide, places=slots(score)))
    loads = [(tensor, load) for tensor, name in enumerate(names) for load in loads_of(score, name)]
    shares = [_share(number, tensor, load, score, wide) for number, (tensor, load) in enumerate(loads)]
    for share in shares:
        sources += share.sources
    if shares:
        head = f"@triton.jit\ndef gather(s, ds, keep, {MASK_TAKES}, values, sums):\n    "
        sources.append(head + "\n    ".join(share.line for share in shares) + "\n")
    if not sources:
        return Gradients(None, None)
    module = module_of(sources, f"Derivatives of {title}", infix_text(score))
    return Gradients(getattr(module, "dscore", None), getattr(module, "gather", None))


def _share(number: int, tensor: int, load: Load, score: Expr, wide: bool) -> Share:
    """Of the load `number`, which reads the tensor `tensor` of `sums`."""
    places, slope = slots(score), derivative(score, load)
    sources = [source_of(load, kind=f"place_{number}", wide=wide, places=places, offset=True)]
    received = "ds"
    if slope is not ONE:
        sources.append(source_of(cast(slope, Type.FLOAT), kind=f"slope_{number}", wide=wide, places=places))
        received = f"only(ds * slope_{number}({SCORE_TAKES}, values), keep)"
    line = f"add_to(sums[{tensor}] + place_{number}({SCORE_TAKES}, values), {received})"
    return Share(sources, line)
