"""The keys that chosen queries keep, as they lie on a canvas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flexspec.canvas import Canvas
from flexspec.errors import FlexSpecError
from flexspec.evaluate import evaluate
from flexspec.inputs import Bound, make_sizes
from flexspec.mask import Mask, from_mask_mod
from flexspec.source import user_caret

Query = int | Mapping[str, int]


@dataclass(frozen=True, eq=False, repr=False)
class KeptKeys:
    """What some queries of a mask keep. Made by `fs.kept_keys`.

    kept: bool [queries, *the canvas' sides]. queries: each query's logical position. head: which batch and head these
    are, where the mask depends on them.
    """

    label: str
    canvas: Canvas
    queries: tuple[int, ...]
    kept: torch.Tensor
    head: str

    @property
    def counts(self) -> list[int]:
        """How many keys each query keeps."""
        return [int(count) for count in self.kept.flatten(1).sum(1)]

    def __repr__(self) -> str:
        each = [f"{self.named(i)} keeps {count:,}" for i, count in enumerate(self.counts)]
        return f"KeptKeys({self.label}: {'; '.join(each)} of {self.canvas.size:,} keys)"

    def place(self, number: int) -> tuple[int, ...]:
        """The coordinates of query `number`."""
        position, found = self.queries[number], []
        for length in reversed(self.canvas.lengths.values()):
            position, at = divmod(position, length)
            found.append(at)
        return tuple(reversed(found))

    def named(self, number: int) -> str:
        """Query `number` by its coordinates: `t=2, h=3, w=5`."""
        at = zip(self.canvas.names, self.place(number), strict=True)
        return "query " + ", ".join(f"{name}={value:,}" for name, value in at)

    def show(self, path: str | Path | None = None) -> Path | str:
        """Draw the kept keys: to a picture file (its path is returned), or without a path in the terminal.

        The last two axes are an image, and there is one for each position on the others; one axis is a strip. FS054.
        """
        from . import frames, frames_text

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
    b: int = 0,
    h: int = 0,
    batch: int | None = None,
    heads: int | None = None,
    **inputs: Any,
) -> KeptKeys:
    """The keys that a query keeps: `fs.kept_keys(mask, dict(t=2, h=3, w=5)).show("keys.png")` draws them on the canvas.

    query: its coordinates by axis, or its logical position; or several of these. canvas: where the mask has none of its
    own, the canvas on which to lay its tokens in row-major order; a number of tokens is a strip. b, h: which batch and
    head. batch, heads: how many there are, where the mask depends on them and no input says it. inputs: run-time values
    by name. Evaluates the predicate itself. Raises FS011, FS020 to FS025, FS030 (a query off the canvas), FS031, FS032.

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
    queries = [query] if isinstance(query, (int, Mapping)) else list(query)
    places = tuple(_position(each, laid) for each in queries)
    if not places:
        raise FlexSpecError("FS020", "no query is given", fix="give one, e.g. dict(h=3, w=5)", where=user_caret())
    bound = mask.bind(make_sizes(laid.size, None, batch, heads), inputs)
    head = _head(mask, bound, b, h)
    at = {name: torch.tensor(value) for name, value in (("b", b), ("h", h))}
    at |= {"q": torch.tensor(places)[:, None], "kv": torch.arange(laid.size)}
    tensors = {name: tensor.cpu() for name, tensor in bound.tensors.items()}
    kept = evaluate(mask.flat, {**bound.all_numbers(), **tensors, **at}).expand(len(places), laid.size)
    return KeptKeys(mask.label, laid, places, kept.reshape(len(places), *laid.lengths.values()), head)


def _canvas(mask: Mask, given: Canvas | int | None) -> Canvas:
    if isinstance(given, Canvas):
        return given
    if given is not None:
        return Canvas(token=given)
    if mask.canvas is None:
        fix = "give canvas=fs.Canvas(h=48, w=80), or a number of tokens"
        raise FlexSpecError("FS020", f"{mask.label} has no canvas", fix=fix, where=user_caret())
    return mask.canvas


def _position(query: Query, canvas: Canvas) -> int:
    """The logical position of a query. FS011, FS023, FS030."""
    if isinstance(query, Mapping):
        at, sizes = canvas.per_axis(query, "the query"), canvas.lengths
    else:
        at, sizes = {"position": query}, {"position": canvas.size}
    position = 0
    for name, size in sizes.items():
        if isinstance(at[name], bool) or not isinstance(at[name], int):
            raise FlexSpecError("FS023", f"the query's {name} is {at[name]!r}", fix="give integers", where=user_caret())
        if not 0 <= at[name] < size:
            message = f"the query is off the canvas: {name} is {at[name]:,}, and {canvas} has {size:,} there"
            raise FlexSpecError("FS030", message, fix=f"give {name} from 0 to {size - 1:,}", where=user_caret())
        position = position * size + at[name]
    return position


def _head(mask: Mask, bound: Bound, b: int, h: int) -> str:
    """Which batch and head are meant, of those that the mask depends on. FS030."""
    parts = []
    for name, kind, index, size in (("b", "batch", b, bound.sizes.batch), ("h", "head", h, bound.sizes.heads)):
        if index < 0 or (name in mask.expr.names and index >= (size or 1)):
            raise FlexSpecError("FS030", f"there is no {kind} {index}; there are {size or 1}", where=user_caret())
        if name in mask.expr.names and size and size > 1:
            parts.append(f"{kind} {index} of {size}")
    return ", ".join(parts)
