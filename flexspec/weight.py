"""Weights: what a score weighs, where that is not the softmax's exponential."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from .errors import FlexSpecError
from .expr import Expr, apply, infix_text, var
from .formula import Formula
from .ops import Type
from .user_line import function_place

KINDS = {
    "sigmoid": "sigmoid(score + {}), not normalised",
    "relu": "max(score, 0), not normalised",
    "squared_relu": "max(score, 0)**2, not normalised",
    "taylor": "1 + score + score * score / 2",
    "signed": "sign(score) * exp(abs(score)), divided by the sum of exp(abs(score))",
    "sink_logit": "exp(score), and a column of weight exp({}) without a value",
    "identity_mix": "softmax, then (1 - u) * out + u * v with u = {}",
}
"""The weights that there are, for people. The reference has their definitions, the backends their identities."""
UNNORMALISED = ("sigmoid", "relu", "squared_relu")
"""Those that are not divided by their sum, and so have no lse."""

OWN_TOKEN = apply("eq", var("q"), var("kv"))
"""Is a key the query's own token? What an identity mix mixes in is the value of that key."""


@dataclass(frozen=True, eq=False, repr=False)
class Weight(Formula):
    """A weight of one of the `KINDS`; its expression is the weight's own number: a bias, a logit, a share.

    Made by `fs.sigmoid_weight`, `fs.sink_logit` and their like, for `fs.Attention(weight=...)`.

    >>> import flexspec as fs
    >>> fs.Attention(mask=fs.causal(), weight=fs.sigmoid_weight(bias=-8.0)).label
    'causal() with sigmoid_weight(bias=-8.0)'
    """

    kind: str = ""
    noun: ClassVar[str] = "a weight"
    argument: ClassVar[str] = "weight=..."

    def _key(self) -> tuple[Any, ...]:
        return *super()._key(), self.kind

    @property
    def definition(self) -> str:
        """The weight as people write it."""
        return KINDS[self.kind].format(infix_text(self.expr))

    @property
    def normalised(self) -> bool:
        """Is the output divided by the sum of the weights?"""
        return self.kind not in UNNORMALISED

    @staticmethod
    def check_result(expr: Expr, fn: object) -> Expr:
        if expr.type is Type.BOOL:
            message = "a weight's own number is a boolean"
            raise FlexSpecError("FS007", message, fix="give a float", where=function_place(fn))
        return expr if expr.type > Type.INT else apply("float", expr)

    def of_kind(self, kind: str) -> Weight:
        return replace(self, kind=kind)

    def __call__(self, *args: Any, **values: Any) -> Weight:
        """Bind parameters and inputs."""
        return self.given(*args, **values)
