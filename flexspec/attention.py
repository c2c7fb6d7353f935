"""What attends to what, and how scores change: the whole meaning of one attention call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import torch

from .canvas import Canvas
from .combine import together
from .errors import FlexSpecError
from .expr import Expr, Input, inputs_of, params_of, var
from .files import write_document
from .formula import VERSION, one_meaning_each
from .inputs import Bound, Sizes
from .mask import Mask, from_mask_mod
from .predicate import Parameter
from .score import ScoreMod, from_score_mod
from .user_line import user_caret
from .weight import OWN_TOKEN, Weight


@dataclass(frozen=True)
class Parts:
    """What one attention computes: its mask, its score and its weight, with one meaning for each name.

    mask: keeps a pair or not.
    score: of all score mods, applied in order; `score` itself where there is none.
    weight: None is the softmax.

    Each holds the tensors, the parameters and the canvas of all three, so values are bound once for all. Raises FS026
    where a name is both an input and a parameter.
    """

    mask: Mask
    score: ScoreMod
    weight: Weight | None

    def __post_init__(self) -> None:
        one_meaning_each(self.exprs)

    @property
    def exprs(self) -> tuple[Expr, ...]:
        """The expressions of the parts that there are: mask, score, and the weight's number."""
        return tuple(part.expr for part in (self.mask, self.score, self.weight) if part is not None)

    @property
    def own_token(self) -> tuple[Expr, ...]:
        """Which key is a query's own, where the weight takes its value."""
        return (OWN_TOKEN,) if self.weight is not None and self.weight.kind == "identity_mix" else ()

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The captured tensors by name."""
        return self.mask.tensors

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return self.mask.parameters

    @property
    def defaults(self) -> dict[str, Any]:
        """Values of the parameters that a call may leave out."""
        return self.mask.defaults

    @property
    def canvas(self) -> Canvas | None:
        return self.mask.canvas

    @cached_property
    def inputs(self) -> dict[str, Input]:
        """The named tensors that are read, captured or given."""
        return {name: node for expr in self.exprs for name, node in inputs_of(expr).items()}

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of the tensors and parameters that are read, and of parameters with a default."""
        return frozenset({*self.inputs, *self.defaults, *(name for expr in self.exprs for name in params_of(expr))})

    def bind(self, sizes: Sizes, given: Mapping[str, Any]) -> Bound:
        """All values that one call needs (see `Formula.bind_all`)."""
        return self.mask.bind_all(self.exprs, sizes, given)


@dataclass(frozen=True)
class Attention:
    """`softmax(where(mask, scores(scale * q @ k.T), -inf)) @ v`, or another weight in the softmax's place.

    mask: a Mask, a FlexAttention mask_mod, or None for every pair.
    scores: ScoreMods or FlexAttention score_mods, applied in order.
    scale: of `q @ k.T`; None is `1 / sqrt(head_dim)`.
    weight: None is the softmax; else `fs.sigmoid_weight()`, `fs.sink_logit(...)` or one of their like.

    Raises FS023 (a value of another kind), and what `from_mask_mod` and `from_score_mod` raise for a function.

    >>> import flexspec as fs
    >>> fs.Attention(mask=fs.causal(), scores=[fs.softcap(30.0)])
    Attention(mask=causal(), scores=(softcap(cap=30.0),), scale=None, weight=None)
    """

    mask: Mask
    scores: tuple[ScoreMod, ...]
    scale: float | None
    weight: Weight | None

    def __init__(
        self,
        mask: Mask | Callable[..., Any] | None = None,
        scores: Iterable[ScoreMod | Callable[..., Any]] | ScoreMod = (),
        scale: float | None = None,
        weight: Weight | None = None,
    ) -> None:
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, (int, float)) or scale != scale):
            raise FlexSpecError("FS023", f"scale is {scale!r}; it must be a number", where=user_caret())
        if isinstance(mask, ScoreMod):
            raise FlexSpecError("FS023", f"{mask!r} is a score mod", fix="scores=[...]", where=user_caret())
        chain = (scores,) if isinstance(scores, ScoreMod) or callable(scores) else tuple(scores)
        wrong = next((item for item in chain if isinstance(item, Mask)), None)
        if wrong is not None:
            raise FlexSpecError("FS023", f"{wrong!r} is a mask", fix="mask=...", where=user_caret())
        if weight is not None and not isinstance(weight, Weight):
            fix = "give fs.sigmoid_weight(), fs.sink_logit(...) or None for the softmax"
            raise FlexSpecError("FS023", f"weight is {weight!r}", fix=fix, where=user_caret())
        object.__setattr__(self, "mask", Mask.constant(True) if mask is None else from_mask_mod(mask))
        object.__setattr__(self, "scores", tuple(from_score_mod(item) for item in chain))
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "weight", weight)

    @cached_property
    def parts(self) -> Parts:
        """The mask, the score and the weight, a name meaning one thing in all of them. FS026, FS032."""
        scores = reduce(lambda a, b: a + b, self.scores) if self.scores else ScoreMod(var("score"), "score")
        every = [self.mask, scores] if self.weight is None else [self.mask, scores, self.weight]
        (mask, score, *number), held = together(*every)
        weight = None if self.weight is None else replace(self.weight, expr=number[0], **held)
        return Parts(Mask(mask, self.mask.label, **held), ScoreMod(score, scores.label, **held), weight)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as YAML (.yaml, .yml) or JSON (.json), whole or not at all; `fs.load` reads it.

        path: where to write it.

        Raises FS053 (a tensor of more than 65,536 elements, a file of more than 16 MiB) and FS054 (another suffix, or
        a place that cannot be written).
        """
        document = {
            "version": VERSION,
            "kind": "attention",
            "mask": self.mask.stored(),
            "scores": [score.stored() for score in self.scores],
            "scale": self.scale,
        }
        if self.weight is not None:
            document["weight"] = {"kind": self.weight.kind} | self.weight.stored()
        write_document(document, path)

    @property
    def label(self) -> str:
        """The mask, the scores and the weight as people write them."""
        weight = [f"with {self.weight.label}"] if self.weight else []
        return " ".join([self.mask.label, *(f"+ {item.label}" for item in self.scores), *weight])


def as_attention(spec: object) -> Attention:
    """An Attention from what a user may give for one.

    spec: an Attention, a Mask, a ScoreMod or a FlexAttention mask_mod.

    Raises FS023 (anything else), and what `from_mask_mod` raises for a function.
    """
    if isinstance(spec, Attention):
        return spec
    if isinstance(spec, ScoreMod):
        return Attention(scores=[spec])
    if isinstance(spec, Mask) or callable(spec):
        return Attention(mask=spec)
    message = f"a pattern is needed, got {type(spec).__name__}"
    fix = "fs.parse_pattern(text) reads text" if isinstance(spec, str) else "give a Mask, an Attention or a mask_mod"
    raise FlexSpecError("FS023", message, fix=fix, where=user_caret())
