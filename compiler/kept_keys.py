"""The keys that chosen queries keep, as they lie on a canvas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flexspec.canvas import MOST_TOKENS, Canvas
from flexspec.errors import FlexSpecError
from flexspec.evaluate import evaluate
from flexspec.inputs import Bound, check_length, make_sizes
from flexspec.mask import Mask, from_mask_mod
from flexspec.user_line import user_caret

Query = int | Mapping[str, int]
MOST_PAIRS = 1 << 27
"""Most pairs of queries and keys that are evaluated for one drawing."""


@dataclass(frozen=True, eq=False, repr=False)
class KeptKeys:
    """What some queries of a mask keep. Made by `fs.kept_keys`.

    kept: bool [queries, *the canvas' sides]. queries: each query's logical position. counts: how many keys each keeps,
    those off the canvas too. length, start: tokens in the sequence, and where the canvas begins in it. head: which
    batch and head these are, where the mask depends on them.
    """

    label: str
    canvas: Canvas
    queries: tuple[int, ...]
    kept: torch.Tensor
    counts: tuple[int, ...]
    length: int
    start: int
    head: str

    def __repr__(self) -> str:
        each = [f"{self.named(i)} keeps {count:,}" for i, count in enumerate(self.counts)]
        return f"KeptKeys({self.label}: {'; '.join(each)} of {self.length:,} keys)"

    def place(self, number: int) -> tuple[int, ...] | None:
        """The coordinates of query `number`, None where it is off the canvas."""
        position = self.queries[number] - self.start
        if not 0 <= position < self.canvas.size:
            return None
        return tuple(map(int, np.unravel_index(position, tuple(self.canvas.lengths.values()))))

    def named(self, number: int) -> str:
        """Query `number` by its coordinates, `query t=2, h=3, w=5`, or by its position."""
        place = self.place(number)
        if place is None:
            return f"query {self.queries[number]:,}"
        return "query " + ", ".join(f"{name}={at:,}" for name, at in zip(self.canvas.names, place, strict=True))

    def show(self, path: str | Path | None = None) -> Path | str:
        """Draw the kept keys: to a picture file (its path is returned), or without a path in the terminal.

        The last two axes are an image, and there is one for each position on the others; one axis is a strip. FS054.
        """
        from .draw import frames, frames_text

        if path is not None:
            return frames.save(self, path)
        drawn = frames_text.draw(self)
        print(drawn)
        return drawn


def kept_keys(
    mask: Mask | Callable[..., Any],
    query: Query | Sequence[Query],
    *,
    canvas: Canvas | int | None = None,
    start: int = 0,
    length: int | None = None,
    b: int = 0,
    h: int = 0,
    batch: int | None = None,
    heads: int | None = None,
    **inputs: Any,
) -> KeptKeys:
    """The keys that a query keeps: `fs.kept_keys(mask, dict(t=2, h=3, w=5)).show("keys.png")` draws them on the canvas.

    query: its coordinates by axis, or its logical position; or several of these. canvas: where the mask has none of its
    own, the canvas on which to lay its tokens in row-major order; a number of tokens is a strip. start, length: where
    the canvas begins in a longer sequence, as a video beside text, and how long that is. b, h: which batch and head.
    batch, heads: how many there are, where the mask depends on them and no input says it. inputs: run-time values by
    name. Evaluates the predicate itself. Raises FS011, FS020 to FS025, FS030 (a query that is not there), FS031, FS032.

    >>> import flexspec as fs
    >>> image = fs.Canvas(h=3, w=4)
    >>> found = fs.kept_keys(fs.neighborhood(image, window=dict(h=1, w=3)), dict(h=1, w=2))
    >>> found
    KeptKeys(neighborhood(canvas=canvas(h=3, w=4), window={'h': 1, 'w': 3}): query h=1, w=2 keeps 3 of 12 keys)
    >>> found.kept[0].int().tolist()
    [[0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]]
    """
    mask = from_mask_mod(mask)
    laid = _canvas(mask, canvas)
    length = _length(laid, start, length)
    queries: list[Any] = list(query) if isinstance(query, Sequence) and not isinstance(query, str) else [query]
    places = tuple(_position(each, laid, start, length) for each in queries)
    if len(places) * length > MOST_PAIRS:
        message = f"{len(places):,} queries among {length:,} keys are more than {MOST_PAIRS:,} pairs"
        raise FlexSpecError("FS030", message, fix="give fewer queries, or a shorter length", where=user_caret())
    if not places:
        raise FlexSpecError("FS020", "no query is given", fix="give one, e.g. dict(h=3, w=5)", where=user_caret())
    bound = mask.bind(make_sizes(length, None, batch, heads), inputs)
    head = _head(mask, bound, b, h)
    at = {name: torch.tensor(value) for name, value in (("b", b), ("h", h))}
    at |= {"q": torch.tensor(places)[:, None], "kv": torch.arange(length)}
    tensors = {name: tensor.cpu() for name, tensor in bound.tensors.items()}
    kept = evaluate(mask.flat, {**bound.all_numbers(), **tensors, **at}).expand(len(places), length)
    counts = tuple(int(count) for count in kept.sum(1))
    kept = kept[:, start : start + laid.size].reshape(len(places), *laid.lengths.values())
    return KeptKeys(mask.label, laid, places, kept, counts, length, start, head)


def _length(canvas: Canvas, start: int, length: int | None) -> int:
    """Tokens in the sequence that the canvas is a part of. FS030, FS032."""
    if isinstance(start, bool) or not isinstance(start, int) or start < 0:
        raise FlexSpecError("FS030", f"start is {start!r}", fix="give an integer of at least 0", where=user_caret())
    end = start + canvas.size
    length = check_length("length", end if length is None else length)
    if length < end:
        message = f"{canvas} ends at token {end:,}, after the sequence's {length:,}"
        raise FlexSpecError("FS032", message, fix=f"give length={end} or more", where=user_caret())
    return length


def _canvas(mask: Mask, given: Canvas | int | None) -> Canvas:
    if isinstance(given, Canvas):
        return given
    if given is not None:
        return Canvas(token=given)
    if mask.canvas is None:
        fix = "give canvas=fs.Canvas(h=48, w=80), or a number of tokens"
        raise FlexSpecError("FS020", f"{mask.label} has no canvas", fix=fix, where=user_caret())
    return mask.canvas


def _position(query: Query, canvas: Canvas, start: int, length: int) -> int:
    """The logical position of a query. FS011, FS023, FS030."""
    on_canvas = isinstance(query, Mapping)
    at: dict[str, Any] = canvas.per_axis(query, "the query") if on_canvas else {"position": query}
    sizes, what = (canvas.lengths, str(canvas)) if on_canvas else ({"position": length}, "the sequence")
    position = 0
    for name, size in sizes.items():
        if isinstance(at[name], bool) or not isinstance(at[name], int):
            raise FlexSpecError("FS023", f"the query's {name} is {at[name]!r}", fix="give integers", where=user_caret())
        if not 0 <= at[name] < size:
            message = f"there is no such query: {name} is {at[name]:,}, and {what} has {size:,} there"
            raise FlexSpecError("FS030", message, fix=f"give {name} from 0 to {size - 1:,}", where=user_caret())
        position = position * size + at[name]
    return position + start if on_canvas else position


def _head(mask: Mask, bound: Bound, b: int, h: int) -> str:
    """Which batch and head are meant, of those that the mask depends on. FS030."""
    parts = []
    for name, kind, index, size in (("b", "batch", b, bound.sizes.batch), ("h", "head", h, bound.sizes.heads)):
        if not 0 <= index <= MOST_TOKENS or (name in mask.expr.names and index >= (size or 1)):
            raise FlexSpecError("FS030", f"there is no {kind} {index}; there are {size or 1}", where=user_caret())
        if name in mask.expr.names and size and size > 1:
            parts.append(f"{kind} {index} of {size}")
    return ", ".join(parts)
