"""Weights other than softmax, for `Attention(weight=...)`. They weigh the score `s` that the score mods leave.

A score of -inf weighs nothing. A query that keeps nothing has output 0. Tensors are held as they are, so that training
them works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..expr import const
from ..predicate import read_signature
from ..weight import Weight
from .about import pattern
from .checks import per_head_number

__all__: list[str] = [
    "sigmoid_weight",
    "relu_weight",
    "squared_relu_weight",
    "taylor_weight",
    "signed_weight",
    "sink_logit",
    "identity_mix",
]


@pattern("", "the sigmoid of score plus bias, not normalised")
def sigmoid_weight(bias: Any = None) -> Weight:
    """`sum_kv sigmoid(s + bias) * v`, not normalised.

    bias: a number, float [heads], a float `fs.Param`, or a float `fs.Input` with the dim heads; default `-log(kv_len)`.

    lse: none. Source: FlashSigmoid. Raises FS022 (another shape), FS023 (no number); FS042 where it runs with
    return_lse.

    >>> sigmoid_weight(), sigmoid_weight(-8.0)
    (sigmoid_weight(), sigmoid_weight(bias=-8.0))
    """
    if bias is None:
        return _reading(lambda kv_len: -torch.log(kv_len)).of_kind("sigmoid").named("sigmoid_weight")
    return _with_number("sigmoid", "sigmoid_weight", "bias", bias)


@pattern("", "positive scores as they are, not normalised")
def relu_weight() -> Weight:
    """`sum_kv max(s, 0) * v`, not normalised.

    lse: none. Source: ReLA, without its norm of the output. Raises FS042 where it runs with return_lse: there is no sum
    to take the log of.

    >>> relu_weight()
    relu_weight()
    """
    return Weight(const(0.0), "relu_weight()", kind="relu")


@pattern("", "positive scores squared, not normalised")
def squared_relu_weight() -> Weight:
    """`sum_kv max(s, 0)**2 * v`, not normalised.

    lse: none. Source: the form of ReLA with squares. Raises FS042 where it runs with return_lse: there is no sum to
    take the log of.

    >>> squared_relu_weight()
    squared_relu_weight()
    """
    return Weight(const(0.0), "squared_relu_weight()", kind="squared_relu")


@pattern("", "1 + s + s * s / 2, normalised")
def taylor_weight() -> Weight:
    """`1 + s + s * s / 2`, divided by its sum.

    lse: log of the sum of the weights. Source: TaylorShift.

    >>> taylor_weight()
    taylor_weight()
    """
    return Weight(const(0.0), "taylor_weight()", kind="taylor")


@pattern("", "the score's sign times the exponential of its size, normalised")
def signed_weight() -> Weight:
    """`sign(s) * exp(abs(s))`, divided by the sum of `exp(abs(s))`.

    A score of exactly 0 counts in the sum and weighs no value.

    lse: log of the sum of `exp(abs(s))`. Source: Cog attention.

    >>> signed_weight()
    signed_weight()
    """
    return Weight(const(0.0), "signed_weight()", kind="signed")


@pattern("", "the softmax with one more column that has no value")
def sink_logit(logit: Any = 0.0) -> Weight:
    """The softmax with one more column, of score `logit` and without a value, so that a query may attend to nothing.

    logit: a number, float [heads], a float `fs.Param`, or a float `fs.Input` with the dim heads; 0 is the softmax with
        one added to its sum.

    lse: with the extra column; a query that keeps nothing has the logit. Source: softmax-off-by-one, gpt-oss. Raises
    FS022 (another shape), FS023 (no number).

    >>> sink_logit(torch.zeros(8))
    sink_logit(logit=<float32[8]>)
    """
    return _with_number("sink_logit", "sink_logit", "logit", logit)


@pattern("", "the softmax mixed with the query's own value")
def identity_mix(u: Any) -> Weight:
    """`(1 - u) * out + u * v`: the softmax mixed with the value `v` at the query's own position.

    u: the identity's share, a number, float [heads], a float `fs.Param`, or a float `fs.Input` with the dim heads.

    Where a call has positions, `v` is 0 if no key is at the query's.

    lse: the softmax's. Source: HeadHunter, SoftPAG. Raises FS022 (another shape), FS023 (no number); FS040 where it
    runs with q_len other than kv_len and no positions say which key is a query's own.

    >>> identity_mix(0.25)
    identity_mix(u=0.25)
    """
    return _with_number("identity_mix", "identity_mix", "u", u)


def _with_number(kind: str, weight: str, argument: str, value: Any) -> Weight:
    """A weight with a number: one for all heads, or one for each."""
    number = per_head_number(argument, value, f"weight_{argument}")
    bound = _reading(lambda h: number.read(h))(**number.held)
    return bound.of_kind(kind).named(weight, **{argument: number.shown})


def _reading(number: Callable[..., Any]) -> Weight:
    """The weight whose number is that function of `h` and sizes."""
    return Weight.from_predicate(read_signature(number), None)
