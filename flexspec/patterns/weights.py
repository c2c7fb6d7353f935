"""Weights other than softmax, for `Attention(weight=...)`. They weigh the score `s` that the score mods leave.

A score of -inf weighs nothing. A query that keeps nothing has output 0. Tensors are held as they are, so that training
them works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..errors import FlexSpecError
from ..expr import const
from ..inputs import Input
from ..predicate import read_signature
from ..traced import Traced, TracedTensor
from ..user_line import user_caret
from ..weight import Weight
from .checks import as_tensor


def sigmoid_weight(bias: Any = None) -> Weight:
    """`sum_kv sigmoid(s + bias) * v`, not normalised.

    bias: a number, float [heads], a float `fs.Param`, or an `fs.Input` with the dim heads; default `-log(kv_len)`.
    Source: FlashSigmoid. Raises FS022, FS023; FS042 when it runs with return_lse.

    >>> sigmoid_weight(), sigmoid_weight(-8.0)
    (sigmoid_weight(), sigmoid_weight(bias=-8.0))
    """
    if bias is None:
        return _reading(lambda kv_len: -torch.log(kv_len)).of_kind("sigmoid").named("sigmoid_weight")
    return _with_number("sigmoid", "sigmoid_weight", "bias", bias)


def relu_weight() -> Weight:
    """`sum_kv max(s, 0) * v`, not normalised. Source: ReLA, without its norm of the output.

    Raises FS042 when it runs with return_lse: there is no sum to take the log of.

    >>> relu_weight()
    relu_weight()
    """
    return Weight(const(0.0), "relu_weight()", kind="relu")


def squared_relu_weight() -> Weight:
    """`sum_kv max(s, 0)**2 * v`, not normalised. Source: the form of ReLA with squares.

    Raises FS042 when it runs with return_lse: there is no sum to take the log of.

    >>> squared_relu_weight()
    squared_relu_weight()
    """
    return Weight(const(0.0), "squared_relu_weight()", kind="squared_relu")


def taylor_weight() -> Weight:
    """`1 + s + s * s / 2`, divided by its sum; lse: the log of that sum. Source: TaylorShift.

    >>> taylor_weight()
    taylor_weight()
    """
    return Weight(const(0.0), "taylor_weight()", kind="taylor")


def signed_weight() -> Weight:
    """`sign(s) * exp(abs(s))`, divided by the sum of `exp(abs(s))`; lse: the log of that sum. Source: Cog attention.

    A score of exactly 0 counts in the sum and weighs no value.

    >>> signed_weight()
    signed_weight()
    """
    return Weight(const(0.0), "signed_weight()", kind="signed")


def sink_logit(logit: Any = 0.0) -> Weight:
    """The softmax with one more column, of score `logit` and without a value, so that a query may attend to nothing.

    logit: a number, float [heads], a float `fs.Param`, or an `fs.Input` with the dim heads; 0 is the softmax with one
    added to its sum. lse: with the extra column; a query that keeps nothing has the logit. Source: softmax-off-by-one,
    gpt-oss. Raises FS022, FS023.

    >>> sink_logit(torch.zeros(8))
    sink_logit(logit=<float32[8]>)
    """
    return _with_number("sink_logit", "sink_logit", "logit", logit)


def identity_mix(u: Any) -> Weight:
    """`(1 - u) * out + u * v`: the softmax mixed with the value at the query's own position.

    u: the identity's share, a number, float [heads], a float `fs.Param`, or an `fs.Input` with the dim heads. Needs
    q_len = kv_len (FS040 when it runs). lse: the softmax's. Source: HeadHunter, SoftPAG. Raises FS022, FS023.

    >>> identity_mix(0.25)
    identity_mix(u=0.25)
    """
    return _with_number("identity_mix", "identity_mix", "u", u)


def _with_number(kind: str, pattern: str, name: str, value: Any) -> Weight:
    """A weight with a number: one for all heads, or one for each."""
    shown = value
    if isinstance(value, TracedTensor):
        made, shown = _reading(lambda h: value[h]), Traced(value.source)
    elif isinstance(value, Traced):
        made = _reading(lambda: value)
    elif isinstance(value, (int, float)):
        if isinstance(value, bool) or value != value:
            raise FlexSpecError("FS023", f"{name} is {value!r}; it must be a number", where=user_caret())
        made = Weight(const(float(value)), name)
    else:
        shown = as_tensor(name, value, [0, 1], float, torch.float32)
        source = Input(f"weight_{name}", ("heads",) * shown.dim(), "float")
        made = _reading((lambda h: source[h]) if shown.dim() else (lambda: source[()]))(**{f"weight_{name}": shown})
    return made.of_kind(kind).named(pattern, **{name: shown})


def _reading(number: Callable[..., Any]) -> Weight:
    """The weight whose number is that function of `h` and sizes."""
    return Weight.from_predicate(read_signature(number), None)
