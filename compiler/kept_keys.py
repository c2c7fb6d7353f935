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

from .selecting.choices import resolved

Query = int | Mapping[str, int]
MOST_PAIRS = 1 << 27
"""Most pairs of queries and keys that are evaluated for one drawing."""


@dataclass(frozen=True, eq=False, repr=False)
class KeptKeys:
    """What some queries of a mask keep. Made by `fs.kept_keys`.

    label: the mask's name.
    canvas: on which the tokens are laid.
    queries: each query's logical position.
    kept: bool [queries, *the canvas' sides].
    counts: how many keys each query keeps, those off the canvas too.
    length: tokens in the sequence.
    start: where in it the canvas begins.
    head: which batch and head these are, in words; empty where the mask does not depend on them.
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
        counts = [f"{self.named(number)} keeps {count:,}" for number, count in enumerate(self.counts)]
        return f"KeptKeys({self.label}: {'; '.join(counts)} of {self.length:,} keys)"

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
        named = zip(self.canvas.names, place, strict=True)
        return "query " + ", ".join(f"{name}={coordinate:,}" for name, coordinate in named)

    def show(self, path: str | Path | None = None) -> Path | str:
        """Draw the kept keys: to a picture file (its path is returned), or without a path in the terminal.

        The last two axes are an image, and there is one for each position on the others; one axis is a strip.

        path: a .png, .svg or .pdf file, or None.

        Raises FS054 (another suffix, or a file that cannot be written).
        """
        from .draw import frames, frames_text

        if path is not None:
            return frames.save(self, path)
        text = frames_text.draw(self)
        print(text)
        return text


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

    Evaluates the predicate itself.

    mask: a `Mask`, or a FlexAttention mask_mod as it is.
    query: its coordinates by axis, or its logical position; or several of these.
    canvas: where the mask has none of its own, the canvas on which to lay its tokens in row-major order; a number of
        tokens is a strip.
    start: where the canvas begins in a longer sequence, as a video beside text.
    length: tokens of that sequence; None: it ends with the canvas.
    b, h: which batch and head.
    batch, heads: how many there are, where the mask depends on them and no input says it.
    inputs: run-time values by name.

    Raises FS011 (a query names other axes), FS020 (no query, canvas or value), FS021 (an unknown name), FS022 (a tensor
    of another shape), FS023 (a query or value of another type), FS024 (an index leaves its tensor), FS025 (a number
    that its annotation refuses), FS030 (start, a length, or a query, batch or head that is not there), FS031 (batch or
    heads are needed), FS032 (a canvas that does not fit the sequence or the mask), FS034 (a number past 64 bits), FS035
    (a division by zero), and for a mask_mod what `from_mask_mod` raises.

    >>> import flexspec as fs
    >>> image = fs.Canvas(h=3, w=4)
    >>> keys = fs.kept_keys(fs.neighborhood(image, window=dict(h=1, w=3)), dict(h=1, w=2))
    >>> keys
    KeptKeys(neighborhood(canvas=canvas(h=3, w=4), window={'h': 1, 'w': 3}): query h=1, w=2 keeps 3 of 12 keys)
    >>> keys.kept[0].int().tolist()
    [[0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]]
    """
    mask = from_mask_mod(mask)
    laid = _canvas(mask, canvas)
    length = _length(laid, start, length)
    several: list[Any] = list(query) if isinstance(query, Sequence) and not isinstance(query, str) else [query]
    queries = tuple(_position(each, laid, start, length) for each in several)
    if len(queries) * length > MOST_PAIRS:
        message = f"{len(queries):,} queries among {length:,} keys are more than {MOST_PAIRS:,} pairs"
        raise FlexSpecError("FS030", message, fix="give fewer queries, or a shorter length", where=user_caret())
    if not queries:
        raise FlexSpecError("FS020", "no query is given", fix="give one, e.g. dict(h=3, w=5)", where=user_caret())
    bound = mask.bind(*resolved(mask, None, make_sizes(length, None, batch, heads), inputs))
    head = _head(mask, bound, b, h)
    positions = {"b": torch.tensor(b), "h": torch.tensor(h)}
    positions |= {"q": torch.tensor(queries)[:, None], "kv": torch.arange(length)}
    tensors = {name: tensor.cpu() for name, tensor in bound.tensors.items()}
    kept = evaluate(mask.flat, {**bound.all_numbers(), **tensors, **positions}).expand(len(queries), length)
    counts = tuple(int(count) for count in kept.sum(1))
    kept = kept[:, start : start + laid.size].reshape(len(queries), *laid.lengths.values())
    return KeptKeys(mask.label, laid, queries, kept, counts, length, start, head)


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
    coordinates: dict[str, Any] = canvas.per_axis(query, "the query") if on_canvas else {"position": query}
    sizes, what = (canvas.lengths, str(canvas)) if on_canvas else ({"position": length}, "the sequence")
    position = 0
    for name, size in sizes.items():
        coordinate = coordinates[name]
        if isinstance(coordinate, bool) or not isinstance(coordinate, int):
            message = f"the query's {name} is {coordinate!r}"
            raise FlexSpecError("FS023", message, fix="give integers", where=user_caret())
        if not 0 <= coordinate < size:
            message = f"there is no such query: {name} is {coordinate:,}, and {what} has {size:,} there"
            raise FlexSpecError("FS030", message, fix=f"give {name} from 0 to {size - 1:,}", where=user_caret())
        position = position * size + coordinate
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
