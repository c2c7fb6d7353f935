"""Selections: which blocks of keys each block of queries attends to, decided by q and k at each call.

A selection in a mask is a load from a table of blocks, `selected[b, h, q.memory // 64, kv.memory // 64]`. What is here
says, as data, how a call makes that table; the compiler does it (`compiler/selecting`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import blake2b
from typing import Any

from .errors import FlexSpecError
from .expr import inputs_of, params_of
from .user_line import user_caret

SUMMARIES = ("mean", "max", "min_max", "antidiagonal")
SHARED = ("head", "group", "all")
SCOPES = ("row", "head", "batch")


@dataclass(frozen=True)
class Rule:
    """Which blocks are chosen by their scores; of equal ones the first. Made by `top_k`, `top_p`, `threshold`, `share`.

    crossing: of top_p: is the block that reaches the mass chosen too? over: of share: whose largest scores count.
    """

    kind: str
    amount: float
    crossing: bool = True
    over: str = "row"

    def __repr__(self) -> str:
        beside = "" if self.crossing else ", crossing=False"
        beside += "" if self.over == "row" else f", over={self.over!r}"
        return f"{self.kind}({self.amount!r}{beside})"


def top_k(k: int) -> Rule:
    """The `k` blocks of each row with the largest scores, all where there are fewer.

    k: blocks, at least 1. Raises FS025.

    >>> top_k(8)
    top_k(8)
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise FlexSpecError("FS025", f"k is {k!r}", fix="give a number of blocks, at least 1", where=user_caret())
    return Rule("top_k", k)


def top_p(mass: float, crossing: bool = True) -> Rule:
    """The blocks with the largest scores of a row, in descending order, until they have `mass` of the row's sum.

    mass: in (0, 1].
    crossing: is the block that reaches it among them? Without it a row still has its first.

    Scores are to be a softmax, or anything that is not negative. Raises FS025.

    >>> top_p(0.9)
    top_p(0.9)
    """
    return Rule("top_p", _part("mass", mass), bool(crossing))


def threshold(score: float) -> Rule:
    """The blocks with a score of at least `score`. Raises FS025.

    >>> threshold(0.01)
    threshold(0.01)
    """
    if isinstance(score, bool) or not isinstance(score, (int, float)) or score != score:
        raise FlexSpecError("FS025", f"the threshold is {score!r}", fix="give a number", where=user_caret())
    return Rule("threshold", float(score))


def share(part: float, over: str = "row") -> Rule:
    """The largest `part` of the scores of a row, of a head or of a whole batch entry, rounded up to whole blocks.

    part: of the blocks that may be chosen, in (0, 1].
    over: "row", "head" or "batch".

    Raises FS025.

    >>> share(0.1, over="head")
    share(0.1, over='head')
    """
    if over not in SCOPES:
        raise FlexSpecError("FS025", f"over is {over!r}", fix="give row, head or batch", where=user_caret())
    return Rule("share", _part("part", part), over=over)


def rule_of(kind: str, amount: float, crossing: bool = True, over: str = "row") -> Rule:
    """A rule from what `Selection.stored` says of it. FS025."""
    if kind == "top_k":
        return top_k(int(amount) if amount == int(amount) else -1)
    makers = {"top_p": lambda: top_p(amount, crossing), "threshold": lambda: threshold(amount)}
    return makers.get(kind, lambda: share(amount, over))()


def _part(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise FlexSpecError("FS025", f"{name} is {value!r}", fix="give a number in (0, 1]", where=user_caret())
    return float(value)


@dataclass(frozen=True)
class Selection:
    """How a call chooses blocks (see `fs.select`, which makes one).

    block: tokens in memory of a block of queries and of one of keys.
    rule: by which scores choose; None where `function` or the value `given` is the choice itself.
    summary, scale, softmax, stride, similarity, complete: how blocks are scored.
    shared: which heads have one choice.
    forced: a mask, whose blocks are chosen whatever their scores. counted: among those that the rule counts.
    function: a selector of the user's own. given: the value of the call that holds the scores, or the choice.
    """

    block: tuple[int, int]
    rule: Rule | None
    summary: str = "mean"
    scale: float | None = None
    softmax: bool = True
    stride: int | None = None
    similarity: float | None = None
    complete: bool = False
    shared: str = "head"
    forced: Any = None
    counted: bool = False
    function: Callable[..., Any] | None = None
    given: str | None = None

    @cached_property
    def name(self) -> str:
        """Of the table. It follows from what is here: equal selections of a pattern are one table."""
        if self.rule is None and self.given is not None:
            return self.given
        said = [getattr(self, each.name) for each in fields(self) if each.name not in ("forced", "function")]
        held = None
        if self.forced is not None:
            tensors = sorted((name, id(tensor)) for name, tensor in self.forced.tensors.items())
            held = str(self.forced.expr), self.forced.defaults, self.forced.on and self.forced.on.lengths, tensors
        content = repr((said, held, self.function and id(self.function)))
        return f"selected_{blake2b(content.encode(), digest_size=4).hexdigest()}"

    @property
    def reads(self) -> frozenset[str]:
        """The names of the values of a call that it needs beside q and k, those with a default too."""
        return frozenset(() if self.given is None else [self.given]) | self.forced_reads

    @property
    def forced_reads(self) -> frozenset[str]:
        """Of those, what the forced mask reads."""
        if self.forced is None:
            return frozenset()
        names = {*inputs_of(self.forced.expr), *params_of(self.forced.expr), *self.forced.defaults}
        return frozenset(names - self.forced.tensors.keys())

    def stored(self) -> dict[str, Any]:
        """As plain data. FS023: a function of the user's own, which no file holds; FS053: a forced mask too large."""
        if self.function is not None:
            message = "a selector of one's own is a function, which no file holds"
            raise FlexSpecError("FS023", message, fix="save the rest of the mask", where=user_caret())
        values = {each.name: (getattr(self, each.name), each.default) for each in fields(self)}
        said: dict[str, Any] = {name: value for name, (value, default) in values.items() if value != default}
        said["block"] = list(self.block)
        if self.rule is not None:
            said["rule"] = vars(self.rule)
        if self.forced is not None:
            said["forced"] = self.forced.stored()
        return said
