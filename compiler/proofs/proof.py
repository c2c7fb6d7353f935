"""Questions about masks, answered exactly for given lengths: holds, or the first counterexample in reading order.

Every question asks whether some expression keeps nothing: `a` implies `b` where `a & ~b` is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flexspec.combine import renamed
from flexspec.errors import FlexSpecError
from flexspec.expr import Expr, apply, var
from flexspec.inputs import Bound, Sizes, make_sizes
from flexspec.mask import Mask, from_mask_mod
from flexspec.order import in_memory
from flexspec.user_line import user_caret

from ..blocks.classify import Trail
from ..blocks.defined import check_defined
from ..blocks.integer_range import check_range
from ..blocks.tensor_ranges import TensorRanges
from ..evaluation.points import as_array
from ..selecting.choices import Choices, resolved
from ..selecting.whichever import Whichever
from ..simplify.specialise import specialise_each
from .search import first_difference, first_lonely, first_pair

MaskLike = Mask | Callable[..., Any]
Find = Callable[..., tuple[int, int | None] | None]


@dataclass(frozen=True, slots=True, repr=False)
class Proof:
    """The answer to a question about masks; true when it holds.

    counterexample: the first (b, h, q, kv) in reading order where it does not hold; kv is None where the whole query is
    meant. boxes: how many boxes of positions were bounded to know it; 0 where the expressions alone, or single pairs,
    say it.
    """

    holds: bool
    counterexample: tuple[int, int, int, int | None] | None
    boxes: int

    def __bool__(self) -> bool:
        return self.holds

    def __repr__(self) -> str:
        known = f"boxes={self.boxes}" if self.holds else f"counterexample={self.counterexample}"
        return f"Proof(holds={self.holds}, {known})"


def implies(a: MaskLike, b: MaskLike, length: int | None = None, kv_len: int | None = None, **given: Any) -> Proof:
    """Does `a` keep only pairs that `b` keeps? The counterexample is the first pair that only `a` keeps.

    a, b: masks, or FlexAttention mask_mods.
    length: tokens (or q_len); a canvas' own size where left out.
    kv_len: tokens; default: length.
    given: batch and heads, where a mask depends on them, and run-time values by name; q and k where blocks are chosen
        by them, else the answer is for every choice.

    Raises FS020 (a value or the length is missing), FS021, FS022, FS023, FS025 (a value is unknown or does not fit),
    FS026 (names of the two masks disagree), FS030, FS031, FS032 (lengths, batch and heads, canvases), FS024 (an index
    leaves its tensor), FS034 (integers past 64 bits), FS035 (a division by zero), and what `from_mask_mod` raises for a
    function.

    >>> import flexspec as fs
    >>> fs.implies(fs.sink_window(sink=4), fs.causal(), 1_000_000, window=512)
    Proof(holds=True, boxes=0)
    """
    pair, sizes, given = paired(a, b, length, kv_len, given)
    left, right = pair.expr.children
    return _answered(pair, without(left, right), sizes, given)


def equals(a: MaskLike, b: MaskLike, length: int | None = None, kv_len: int | None = None, **given: Any) -> Proof:
    """Do two masks keep the same pairs? The counterexample is the first pair that only one keeps.

    a, b: masks, or FlexAttention mask_mods.
    length: tokens (or q_len); a canvas' own size where left out.
    kv_len: tokens; default: length.
    given: batch and heads, where a mask depends on them, and run-time values by name; q and k where blocks are chosen
        by them, else the answer is for every choice.

    Raises FS020 (a value or the length is missing), FS021, FS022, FS023, FS025 (a value is unknown or does not fit),
    FS026 (names of the two masks disagree), FS030, FS031, FS032 (lengths, batch and heads, canvases), FS024 (an index
    leaves its tensor), FS034 (integers past 64 bits), FS035 (a division by zero), and what `from_mask_mod` raises for a
    function.

    >>> import flexspec as fs
    >>> fs.equals(fs.causal_window(4), fs.causal() & fs.sliding_window(4), 1_000_000)
    Proof(holds=False, counterexample=(0, 0, 4, 0))
    """
    pair, sizes, given = paired(a, b, length, kv_len, given)
    return _answered(pair, pair.expr, sizes, given, first_difference)


def is_causal(a: MaskLike, length: int | None = None, kv_len: int | None = None, **given: Any) -> Proof:
    """Does no query see a later key? The counterexample is the first pair whose key is later.

    a: a mask, or a FlexAttention mask_mod.
    length: tokens (or q_len); a canvas' own size where left out.
    kv_len: tokens; default: length.
    given: batch and heads, where the mask depends on them, and run-time values by name; q and k where blocks are chosen
        by them, else the answer is for every choice.

    Raises FS020 (a value or the length is missing), FS021, FS022, FS023, FS025 (a value is unknown or does not fit),
    FS030, FS031, FS032 (lengths, batch and heads, a canvas), FS024 (an index leaves its tensor), FS034 (integers past
    64 bits), FS035 (a division by zero), and what `from_mask_mod` raises for a function.

    >>> import flexspec as fs
    >>> fs.is_causal(fs.prefix_lm(3), 1_000_000)
    Proof(holds=False, counterexample=(0, 0, 0, 1))
    """
    mask = from_mask_mod(a)
    return _asked(mask, ahead(mask), length, kv_len, given)


def is_empty(a: MaskLike, length: int | None = None, kv_len: int | None = None, **given: Any) -> Proof:
    """Does the mask keep no pair at all? The counterexample is the first pair that it keeps.

    a: a mask, or a FlexAttention mask_mod.
    length: tokens (or q_len); a canvas' own size where left out.
    kv_len: tokens; default: length.
    given: batch and heads, where the mask depends on them, and run-time values by name; q and k where blocks are chosen
        by them, else the answer is for every choice.

    Raises FS020 (a value or the length is missing), FS021, FS022, FS023, FS025 (a value is unknown or does not fit),
    FS030, FS031, FS032 (lengths, batch and heads, a canvas), FS024 (an index leaves its tensor), FS034 (integers past
    64 bits), FS035 (a division by zero), and what `from_mask_mod` raises for a function.

    >>> import flexspec as fs
    >>> fs.is_empty(fs.causal() & ~fs.chunk_causal(64), 4096).holds
    True
    """
    mask = from_mask_mod(a)
    return _asked(mask, mask.expr, length, kv_len, given)


def every_query_attends(a: MaskLike, length: int | None = None, kv_len: int | None = None, **given: Any) -> Proof:
    """Does every query keep a key? The counterexample is the first that keeps none, with kv None.

    a: a mask, or a FlexAttention mask_mod.
    length: tokens (or q_len); a canvas' own size where left out.
    kv_len: tokens; default: length.
    given: batch and heads, where the mask depends on them, and run-time values by name; q and k where blocks are chosen
        by them, else the answer is for every choice.

    Raises FS020 (a value or the length is missing), FS021, FS022, FS023, FS025 (a value is unknown or does not fit),
    FS030, FS031, FS032 (lengths, batch and heads, a canvas), FS024 (an index leaves its tensor), FS034 (integers past
    64 bits), FS035 (a division by zero), and what `from_mask_mod` raises for a function.

    >>> import flexspec as fs
    >>> fs.every_query_attends(fs.causal(offset=-3), 1_000_000)
    Proof(holds=False, counterexample=(0, 0, 0, None))
    """
    mask = from_mask_mod(a)
    return _asked(mask, mask.expr, length, kv_len, given, lonely)


def lonely(*where: Any) -> tuple[int, None] | None:
    """The first query without a key, as a place (q, kv) that `never` takes."""
    query = first_lonely(*where)
    return None if query is None else (query, None)


def without(a: Expr, b: Expr) -> Expr:
    """What only `a` keeps."""
    return apply("and", a, apply("not", b))


def ahead(mask: Mask) -> Expr:
    """What a mask keeps of later keys."""
    return apply("and", mask.expr, apply("gt", var("kv"), var("q")))


def paired(
    a: MaskLike, b: MaskLike, length: int | None, kv_len: int | None, given: dict[str, Any]
) -> tuple[Mask, Sizes, dict[str, Any]]:
    """Both masks in one, with names and canvases that agree: its expression's children. FS026, FS032.

    Each chooses among its own blocks. A selection of both is one choice only where these are the same.
    """
    left, right = from_mask_mod(a), from_mask_mod(b)
    pair = left ^ right
    sizes = sizes_of(pair, length, kv_len, given)
    if not pair.selections:
        return pair, sizes, given
    told = resolved(pair, None, sizes, given)[0]
    plain = {name: value for name, value in given.items() if name not in ("q", "k")}
    twice = [name for name, each in left.selections.items() if name in right.selections and name != each.given]
    if twice and not _same_choices(left, right, twice, told, plain):
        new = {name: f"{name}_of_b" for name in twice}
        selections = {new.get(name, name): each for name, each in right.selections.items()}
        right = replace(renamed(right, new), selections=selections)
        pair = left ^ right
    made = [resolved(each, None, told, given)[1] for each in (left, right)]
    tables = {name: values[name] for values in made for name in pair.selections if name in values}
    return pair, told, Choices(pair).beside(plain) | tables


def _same_choices(a: Mask, b: Mask, names: list[str], sizes: Sizes, given: Mapping[str, Any]) -> bool:
    """May both masks choose among the same blocks? They may where the rest of both keeps the same pairs."""
    mine, theirs = Choices(a), Choices(b)
    if any(mine.turned[name] != theirs.turned[name] for name in names):
        return False
    if mine.rest == theirs.rest:
        return True
    both = mine.rest ^ theirs.rest
    known = both.expr.names | both.parameters.keys()
    bound = both.bind(sizes, {name: value for name, value in given.items() if name in known})
    return never(both, both.expr, bound, first_difference).holds


def _asked(
    mask: Mask, expr: Expr, length: int | None, kv_len: int | None, given: dict[str, Any], find: Find = first_pair
) -> Proof:
    return _answered(mask, expr, *resolved(mask, None, sizes_of(mask, length, kv_len, given), given), find)


def _answered(mask: Mask, expr: Expr, sizes: Sizes, given: Mapping[str, Any], find: Find = first_pair) -> Proof:
    open_ = Whichever(mask, given, sizes)
    if not open_:
        return never(mask, expr, mask.bind(sizes, given), find)
    return _for_every_choice(mask, expr, open_, find)


def _for_every_choice(mask: Mask, expr: Expr, open_: Whichever, find: Find) -> Proof:
    """The answer whichever blocks are chosen; without the tables of forced blocks where it does not depend on them."""
    for exact in (False, True):
        asked = open_.least(expr, exact) if find is lonely else open_.breaks(expr, exact)
        shut = replace(mask, expr=asked, selections={})
        proof = never(shut, asked, shut.bind(open_.sizes, open_.values(exact)), find)
        if proof:
            return proof
    if find is lonely and open_.reaches_each_query():
        return Proof(True, None, proof.boxes)
    if find is lonely and any(each.rule is not None and each.rule.kind != "threshold" for each in open_.open.values()):
        message = f"whether every query attends depends on what `{mask.label}` chooses"
        fix = "give q=... and k=..., or force a block of each row"
        raise FlexSpecError("FS020", message, fix=fix, where=user_caret())
    return proof


def sizes_of(mask: Mask, length: int | None, kv_len: int | None, given: dict[str, Any]) -> Sizes:
    """The sizes of a question, taken out of `given`. FS020, FS021, FS030."""
    q_len = given.pop("q_len", None)
    if length is not None and q_len is not None:
        raise FlexSpecError("FS021", "`length` and `q_len` are both given", fix="give one", where=user_caret())
    length = q_len if length is None else length
    q_canvas, kv_canvas = (mask.on.side(side) if mask.on else None for side in ("q", "kv"))
    length = q_canvas.size if length is None and q_canvas else length
    kv_len = kv_canvas.size if kv_len is None and kv_canvas else kv_len
    if length is None:
        raise FlexSpecError("FS020", "the length is not given", fix="give length=4096", where=user_caret())
    return make_sizes(length, kv_len, given.pop("batch", None), given.pop("heads", None))


def never(mask: Mask, expr: Expr, bound: Bound, find: Find = first_pair) -> Proof:
    """Does `find` find nothing in `expr`, in any batch and head? Names in it are the mask's."""
    q_len, kv_len = bound.sizes.q_len, bound.sizes.kv_len
    tensors = {name: as_array(tensor) for name, tensor in bound.tensors.items()}
    expr = in_memory(expr, None, mask.on, q_len, kv_len)
    check_range(expr, tensors)
    trail, ranges = Trail(), TensorRanges(tensors)
    check_defined([expr], bound, ranges)
    asked: set[Expr] = set()
    for (b, h), filled in np.ndenumerate(specialise_each(expr, bound, tensors)):
        place = find(filled, q_len, kv_len, ranges, trail) if filled not in asked else None
        asked.add(filled)  # equal expressions are one object: one that kept nothing keeps nothing again
        if place is not None:
            return Proof(False, (b, h, *place), sum(trail.boxes))
    return Proof(True, None, sum(trail.boxes))
