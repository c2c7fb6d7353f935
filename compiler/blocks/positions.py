"""What true positions hold, looked at before a map is made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from flexspec.errors import FlexSpecError
from flexspec.expr import Expr
from flexspec.inputs import Bound
from flexspec.positions import GIVEN, MOST, NAMES, compares
from flexspec.user_line import user_caret

from ..evaluation.points import Array


def check_positions(exprs: Iterable[Expr], bound: Bound, tensors: Mapping[str, Array]) -> None:
    """Positions are inside the whole sequence, and what compares keys' positions finds no two keys at one.

    exprs: the mask, or what else tells keys apart, over logical positions. bound: of the call. tensors: what it holds,
        by name.

    Raises FS024 (past the end of what a tensor or the canvas says), FS036 (2**31 and more, two keys at one position).
    """
    for side in bound.rows:
        held = tensors[NAMES[side]]
        most, length = int(held.max()), bound.numbers.get(f"{side}_len")
        if length is not None and most >= length:
            message = f"{GIVEN[side]} reach {most:,}; a tensor or the canvas of the pattern has {length:,} positions"
            fix = "give them the length of the whole sequence"
            raise FlexSpecError("FS024", message, fix=fix, where=user_caret())
        if most >= MOST:
            message = f"{GIVEN[side]} reach {most:,}; positions are below 2**31"
            raise FlexSpecError("FS036", message, fix="count from a later start", where=user_caret())
    if "kv" in bound.rows and any(compares(expr, "kv") for expr in exprs):
        _check_distinct(tensors[NAMES["kv"]])


def _check_distinct(held: Array) -> None:
    ordered = np.sort(held, axis=-1)
    twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
    if twice.any():
        at = int(ordered[..., 1:][twice][0])
        message = f"two keys stand at position {at:,} in {GIVEN['kv']}, and the pattern compares positions"
        fix = "give -1 to the slot that is out of date, or to summary keys positions of their own"
        raise FlexSpecError("FS036", message, fix=fix, where=user_caret())
