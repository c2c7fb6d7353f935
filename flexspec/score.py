"""Score mods: what happens to a score before the softmax. They chain with `+` in reading order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, overload

from .canvas import Canvas, canvas_or_pair
from .combine import joined, merged
from .errors import FlexSpecError
from .expr import POSITIONS, Expr, apply, params_of, substitute, var
from .formula import Formula
from .mask import _four_positions, refuse_other_kinds
from .ops import Type
from .predicate import Parameter, Predicate, read_signature
from .trace import trace
from .user_line import function_place, user_caret


@dataclass(frozen=True, eq=False, repr=False)
class ScoreMod(Formula):
    """A new score from the score of a pair; `a + b` applies `a`, then `b`.

    >>> import flexspec as fs
    >>> fs.softcap(50.0) + fs.alibi()
    softcap(cap=50.0) + alibi()
    """

    noun: ClassVar[str] = "a score mod"
    argument: ClassVar[str] = "scores=[...]"
    document_kind = "score"

    @staticmethod
    def check_result(expr: Expr, fn: object) -> Expr:
        if expr.type is Type.BOOL:
            message = "the score mod returns a boolean, not a score"
            raise FlexSpecError("FS007", message, fix="for keeping pairs, use @fs.mask", where=function_place(fn))
        return expr if expr.type > Type.INT else apply("float", expr)

    def __call__(self, /, *args: Any, **values: Any) -> ScoreMod:
        """Bind parameters, positional ones in the order of their definition."""
        return self.given(*args, **values)

    def __add__(self, other: object) -> ScoreMod:
        refuse_other_kinds(other, ScoreMod, "FS010")
        if not isinstance(other, ScoreMod):
            return NotImplemented
        both = joined(self, "+", other)
        return merged(ScoreMod, lambda x, y: substitute(y, {"score": x}), self, other, both)

    def __radd__(self, other: object) -> ScoreMod:
        """Only what is no score mod comes here: a mask or a weight gets an error of its own."""
        refuse_other_kinds(other, ScoreMod, "FS010")
        return NotImplemented


@overload
def score(fn: Callable[..., Any]) -> ScoreMod: ...
@overload
def score(
    *, canvas: Canvas | None = None, q_canvas: Canvas | None = None, kv_canvas: Canvas | None = None
) -> Callable[[Callable[..., Any]], ScoreMod]: ...
def score(
    fn: Callable[..., Any] | None = None,
    *,
    canvas: Canvas | None = None,
    q_canvas: Canvas | None = None,
    kv_canvas: Canvas | None = None,
) -> Any:
    """Make a `ScoreMod` of a function of `score` and any of `b, h, q, kv` by name; else as `fs.mask`.

    fn: a function that returns a number, the new score.
    canvas: what gives `q` and `kv` named coordinates.
    q_canvas, kv_canvas: in its place where the sides differ: one frame over a cache of frames, tokens over pooled ones.

    Raises FS001 (parameters), FS023 (a mask or a weight), FS007 (no number is returned), and what tracing raises
    (see `fs.mask`).

    >>> import flexspec as fs
    >>> @fs.score
    ... def nearer(score, q, kv, *, slope=0.5):
    ...     return score - slope * abs(q - kv)
    >>> nearer(slope=1.0)
    nearer(slope=1.0)
    """
    on = canvas_or_pair(canvas, q_canvas, kv_canvas)
    if fn is None:
        return lambda inner: ScoreMod.from_predicate(read_signature(inner, ("score",)), on)
    refuse_other_kinds(fn, ScoreMod)
    if isinstance(fn, ScoreMod):
        return fn
    if not callable(fn):
        raise FlexSpecError("FS001", f"a score mod is a function, got {type(fn).__name__}", where=user_caret())
    return ScoreMod.from_predicate(read_signature(fn, ("score",)), on)


def from_score_mod(fn: Callable[..., Any]) -> ScoreMod:
    """A FlexAttention `score_mod(score, b, h, q_idx, kv_idx)` as it is.

    fn: a function of a score and four positions, or a ScoreMod, which is returned.

    Raises FS001 (not five positional parameters), FS023 (a mask or a weight), FS007 (no number is returned), and what
    tracing raises, at its line (see `fs.mask`).
    """
    refuse_other_kinds(fn, ScoreMod)
    if isinstance(fn, ScoreMod):
        return fn
    names = ("score", *POSITIONS)
    _four_positions(fn, names, "score_mod(score, b, h, q_idx, kv_idx)")
    expr, tensors = trace(fn, {name: var(name) for name in names}, positional=True)
    parameters = {name: Parameter() for name in params_of(expr)}
    return ScoreMod(ScoreMod.check_result(expr, fn), Predicate(fn, names, {}).name, tensors, parameters)
