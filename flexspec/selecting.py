"""`fs.select`, `fs.chosen` and `fs.selector`: masks that q and k, or the caller, decide at each call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from .errors import FlexSpecError, choices
from .expr import apply, const, input_, load, var
from .inputs import identifier
from .mask import Mask, from_mask_mod
from .ops import Type
from .selection import SHARED, SUMMARIES, Rule, Selection
from .traced import TracedTensor
from .user_line import user_caret

Block = int | tuple[int, int]


def select(
    block: Block = 64,
    *,
    rule: Rule,
    summary: str = "mean",
    scale: float | None = None,
    softmax: bool = True,
    stride: int | None = None,
    similarity: float | None = None,
    complete: bool = False,
    scores: Any = None,
    forced: Any = None,
    counted: bool = False,
    shared: str = "head",
) -> Mask:
    """The blocks of keys with the best scores for each block of queries, chosen at each call from its q and k.

    block: tokens, one number or (query, key); `(1, 64)` gives each query a choice of its own. Blocks are of memory: a
        cube under a tiled order, a cluster under `fs.orders.by_label`.
    rule: `fs.top_k(8)`, `fs.top_p(0.9)`, `fs.threshold(0.01)` or `fs.share(0.1)`.
    summary: of a block: "mean" or "max" of its tokens; "min_max": the mean query, and the bounds of the keys channel by
        channel; "antidiagonal": each `stride` tokens as one vector, queries backwards, summed over a pair of blocks.
    scale: of the scores; None is `1 / sqrt(head_dim)`.
    softmax: of the scores of a row, over the blocks that may be chosen.
    similarity: blocks whose mean cosine similarity is not above it: of keys they are chosen unscored, of queries they
        choose all.
    complete: only blocks of which the rest of the mask keeps every pair may be chosen.
    scores: an `fs.Input` of floats [batch | 1, heads | kv_heads | 1, q_blocks, kv_blocks] in the place of q and k.
    forced: a mask: blocks of which it keeps a pair are chosen whatever their scores. counted: among the rule's.
    shared: each "head" chooses; a "group", the query heads of a key head, by the sum of scores; "all" by the mean.

    Only blocks of which the rest of the mask keeps a pair may be chosen, and a NaN is never chosen by its score. The
    choice has no gradient; what it lets through has.

    Raises FS025 (a number or a word that has no meaning) and FS023 (a rule, scores or a mask of another kind).

    >>> import flexspec as fs
    >>> fs.causal() & (fs.select(64, rule=fs.top_k(8)) | fs.sink(4))
    causal() & (select(block=64, rule=top_k(8)) | sink(n=4))
    """
    given = None
    if scores is not None:
        if not isinstance(scores, TracedTensor) or len(scores.source.dims) != 4:
            fix = 'give fs.Input("name", dims=("batch", "heads", "q_blocks", "kv_blocks"), dtype=float)'
            raise FlexSpecError("FS023", f"scores is {scores!r}", fix=fix, where=user_caret())
        given, softmax = scores.source.name, False
    selection = checked(
        block, _rule(rule), summary=summary, stride=stride, shared=shared, scale=scale, forced=forced, given=given,
        similarity=similarity, softmax=softmax, complete=complete, counted=counted,
    )  # fmt: skip
    return of_selection(selection, _label("select", selection))


def checked(
    block: Any, rule: Rule | None, *, summary: str = "mean", stride: Any = None, shared: str = "head",
    scale: Any = None, forced: Any = None, given: str | None = None, similarity: Any = None, softmax: bool = True,
    complete: bool = False, counted: bool = False,
) -> Selection:  # fmt: skip
    """A selection of values that may be wrong; for their meanings see `select`. FS023, FS025."""
    block = _block(block)
    return Selection(
        block,
        rule,
        _word("summary", summary, SUMMARIES),
        _number("scale", scale),
        stride=_stride(stride, summary, block),
        similarity=_number("similarity", similarity),
        shared=_word("shared", shared, SHARED),
        forced=_forced(forced),
        given=given,
        softmax=bool(softmax),
        complete=bool(complete),
        counted=bool(counted),
    )


def chosen(name: str, block: Block = 64) -> Mask:
    """The blocks that the caller chooses: a value of the call by this name.

    name: an identifier that no operator, position or size has.
    block: tokens in memory, one number or (query, key).

    The value is a table, bool [batch | 1, heads | 1, q_blocks, kv_blocks], or a list of blocks of keys for each block
    of queries, int32 or int64 [batch | 1, heads | 1, q_blocks, at most kv_blocks], -1 for none.

    Raises FS021 (name), FS025 (block).

    >>> import flexspec as fs, torch
    >>> mask = fs.causal() & fs.chosen("mine", block=2)
    >>> mask.dense(4, mine=torch.tensor([[[[0, -1], [1, -1]]]])).int().tolist()[0][0]
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    """
    selection = Selection(_block(block), None, given=identifier(name))
    return of_selection(selection, f"chosen({name!r}, block={_shown(selection.block)})")


def selector(fn: Callable[..., Any]) -> Callable[..., Mask]:
    """A selector of one's own: `@fs.selector` on a plain torch function of q and k.

    fn: takes q [batch, heads, q_len, head_dim] and k [batch, kv_heads, kv_len, head_dim], in memory order, and
        numbers of its own by keyword. It returns scores, float [batch | 1, heads | kv_heads | 1, q_blocks, kv_blocks],
        or the choice itself, bool of that shape.

    What it returns is called with `block=` and, for scores, `rule=`, `forced=` and `counted=` (see `fs.select`), and
    with the function's own keywords.

    >>> import flexspec as fs
    >>> @fs.selector
    ... def by_mean(q, k, *, block):
    ...     means = [x.unflatten(2, (-1, block)).mean(3) for x in (q, k)]
    ...     return means[0] @ means[1].mT
    >>> by_mean(block=32, rule=fs.top_k(4))
    by_mean(block=32, rule=top_k(4))
    """

    @wraps(fn)
    def make(
        *, block: Block = 64, rule: Rule | None = None, forced: Any = None, counted: bool = False, **own: Any
    ) -> Mask:
        takes = inspect.signature(fn).parameters
        values = {**own, **({"block": block} if "block" in takes else {})}
        unknown = [name for name in values if name not in takes]
        if unknown:
            message = f"`{fn.__name__}` has no parameter `{unknown[0]}`"
            fix = f"it takes {choices(list(takes)[2:])}"
            raise FlexSpecError("FS021", message, fix=fix, where=user_caret())

        def bound(q: Any, k: Any) -> Any:
            return fn(q, k, **values)

        selection = Selection(
            _block(block), rule and _rule(rule), softmax=False, forced=_forced(forced), counted=counted, function=bound
        )
        shown = {"block": selection.block, "rule": rule, "forced": forced, **own}
        text = ", ".join(f"{name}={_shown(value)}" for name, value in shown.items() if value is not None)
        return of_selection(selection, f"{fn.__name__}({text})")

    return make


def of_selection(selection: Selection, label: str) -> Mask:
    """The mask that keeps the pairs of chosen blocks."""
    rows, columns = selection.block
    table = input_(selection.name, ("batch", "heads", "_", "_"), Type.BOOL)
    sides = [apply("floordiv", var(f"{side}.memory"), const(n)) for side, n in (("q", rows), ("kv", columns))]
    expr = load(table, (var("b"), var("h"), *sides))
    return Mask(expr, label, selections={selection.name: selection})


def _label(name: str, selection: Selection) -> str:
    plain = Selection(selection.block, selection.rule)
    fields = ("rule", "summary", "scale", "softmax", "stride", "similarity", "complete", "shared", "forced", "counted")
    said = {each: getattr(selection, each) for each in fields}
    told = {each: value for each, value in said.items() if each == "rule" or value != getattr(plain, each)}
    if selection.given:
        told |= {"scores": f"<{selection.given}>"}
        told.pop("softmax")
    text = "".join(f", {each}={_shown(value)}" for each, value in told.items())
    return f"{name}(block={_shown(selection.block)}{text})"


def _shown(value: Any) -> str:
    if isinstance(value, tuple) and len(value) == 2 and value[0] == value[1]:
        return repr(value[0])
    return value if isinstance(value, str) and value.startswith("<") else repr(value)


def _block(block: Any) -> tuple[int, int]:
    pair = block if isinstance(block, tuple) else (block, block)
    if len(pair) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in pair):
        fix = "give 64, or (1, 64) for queries and keys"
        raise FlexSpecError("FS025", f"block is {block!r}", fix=fix, where=user_caret())
    return pair


def _rule(rule: Any) -> Rule:
    if not isinstance(rule, Rule):
        fix = "give fs.top_k(8), fs.top_p(0.9), fs.threshold(0.01) or fs.share(0.1)"
        raise FlexSpecError("FS023", f"rule is {rule!r}", fix=fix, where=user_caret())
    return rule


def _word(name: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise FlexSpecError("FS025", f"{name} is {value!r}", fix=f"give {choices(known)}", where=user_caret())
    return str(value)


def _number(name: str, value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value != value):
        raise FlexSpecError("FS025", f"{name} is {value!r}", fix="give a number", where=user_caret())
    return None if value is None else float(value)


def _stride(stride: Any, summary: str, block: tuple[int, int]) -> int | None:
    if summary != "antidiagonal" and stride is None:
        return None
    whole = isinstance(stride, int) and not isinstance(stride, bool) and stride > 0
    if summary != "antidiagonal" or not whole or any(n % stride for n in block):
        fix = 'give summary="antidiagonal" with a stride that divides the blocks'
        raise FlexSpecError("FS025", f"stride is {stride!r} with blocks of {block}", fix=fix, where=user_caret())
    return int(stride)


def _forced(forced: Any) -> Mask | None:
    if forced is None:
        return None
    mask = from_mask_mod(forced)
    if mask.selections:
        message = f"the forced mask `{mask.label}` chooses blocks itself"
        fix = f"write it beside: fs.select(...) | {mask.label}"
        raise FlexSpecError("FS023", message, fix=fix, where=user_caret())
    return mask
