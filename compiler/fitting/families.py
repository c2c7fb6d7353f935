"""Families of masks to fit: what a user names, and those that are tried when nothing is named."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from typing import Any, NamedTuple

import torch

import flexspec.patterns as patterns
from flexspec.canvas import Canvas
from flexspec.errors import FlexSpecError
from flexspec.mask import Mask, from_mask_mod, mask
from flexspec.order import Order, axes, striped, tiled
from flexspec.patterns.video import band
from flexspec.user_line import user_caret

from .observed import Observed, Survey


@dataclass(frozen=True)
class Family:
    """Masks of one kind by size, for `fs.fit`: `make(size)` for each of `sizes`, which ascend; a larger one keeps more.

    orders: where tokens may lie in memory, None for as they are. head: the only head that it is for, None for all.

    >>> import flexspec as fs
    >>> image = fs.Canvas(h=8, w=8)
    >>> rows = fs.Family("rows", lambda size: fs.neighborhood(image, window=dict(h=size, w=8)), range(1, 9))
    >>> rows.make(2).dense(64)[0, 0, 0].sum()
    tensor(16)
    """

    name: str
    make: Callable[[int], Mask]
    sizes: Sequence[int]
    orders: tuple[Order | None, ...] = (None,)
    head: int | None = None


ONE = (1,)
"""The sizes of a mask that has none."""
DILATIONS = (2, 4, 8)
"""Tried on every head."""


def given(candidates: Any, orders: Sequence[Order | None], most: int) -> list[Family]:
    """What a user names as candidates, as families with sizes up to `most`. FS021, FS023."""
    if isinstance(candidates, Mask) or callable(candidates) or not isinstance(candidates, Sequence) or not candidates:
        message = f"the candidates are {candidates!r}"
        fix = "give a list, e.g. [fs.causal_window, fs.sink_window(sink=4), fs.causal()]"
        raise FlexSpecError("FS023", message, fix=fix, where=user_caret())
    return [_given(item, tuple(orders), range(1, most + 1)) for item in candidates]


def _given(item: Any, orders: tuple[Order | None, ...], sizes: Sequence[int]) -> Family:
    if isinstance(item, Family):
        return item if item.orders != (None,) else replace(item, orders=orders)
    if isinstance(item, tuple) and len(item) == 2 and (item[1] is None or isinstance(item[1], Order)):
        return replace(_given(item[0], (None,), sizes), orders=(item[1],))
    if not callable(item):
        message = f"a candidate is {item!r}"
        fix = "give a mask, a mask with one open parameter, a function of one integer, or (one of these, order)"
        raise FlexSpecError("FS023", message, fix=fix, where=user_caret())
    if not isinstance(item, Mask) and _takes_one(item):
        return Family(getattr(item, "__name__", "candidate"), item, sizes, orders)
    pattern = from_mask_mod(item)
    still_open = [name for name, parameter in pattern.parameters.items() if parameter.default is None]
    if len(still_open) > 1:
        message = f"`{pattern.label}` has {len(still_open)} open parameters: {', '.join(still_open)}"
        fix = f"bind all but one, e.g. {pattern.label.split('(')[0]}({still_open[0]}=4)"
        raise FlexSpecError("FS021", message, fix=fix, where=user_caret())
    name = pattern.label.removesuffix("()")
    if not still_open:
        return Family(name, lambda _: pattern, ONE, orders)
    return Family(name, lambda size: pattern(**{still_open[0]: size}), sizes, orders)


def _takes_one(fn: Callable[..., Any]) -> bool:
    try:
        needed = [p for p in inspect.signature(fn).parameters.values() if p.default is p.empty]
    except (TypeError, ValueError):
        return False
    return len(needed) == 1


def usual(
    observed: Observed, seen: Survey, canvas: Canvas | None, orders: Sequence[Order | None] | None, block: int
) -> list[Family]:
    """The families that are tried by default; all of them causal where the observed map is."""
    strides = [] if observed.pooled else _strides(observed, seen)  # blocks say nothing of a stride inside them
    causal = list(_causal_families(observed, strides, block))
    both = [*_windows(observed, seen.causal, block), *_columns_of_heads(observed, seen, block)]
    both += [_dilated(observed, stride, head) for head, stride in strides if stride not in DILATIONS]
    if canvas is not None:
        tile = _tile(canvas, block)
        memory = (None,) if observed.pooled else tuple(_orders(canvas, tile))
        both = [*(replace(family, orders=memory) for family in _on_canvas(canvas, tile)), *both]
    if seen.causal:
        both = [replace(family, make=partial(_causal, family.make)) for family in both]
    tried = [*both, *causal] if canvas is not None else [*causal, *both]  # of equal ones, the first named is taken
    return [replace(family, orders=tuple(orders)) for family in tried] if orders else tried


def _causal(make: Callable[[int], Mask], size: int) -> Mask:
    return make(size) & patterns.causal()


class Strided(NamedTuple):
    """A head whose weight lies on multiples of a distance."""

    head: int
    stride: int


def _strides(observed: Observed, seen: Survey) -> list[Strided]:
    """The heads that have a stride."""
    strides = ((head, seen.stride(head, observed.q_len)) for head in range(observed.heads))
    return [Strided(head, stride) for head, stride in strides if stride is not None]


def _causal_families(observed: Observed, strides: list[Strided], block: int) -> Iterator[Family]:
    """What is causal by itself."""
    sizes = range(1, max(observed.q_len, observed.kv_len) + 1)
    yield Family("causal_window", lambda size: patterns.causal_window(window=size), sizes)
    for sink in (4, block):
        yield Family(f"sink_window(sink={sink})", partial(_sink_window, sink), sizes)
    for head, stride in strides:
        yield Family("strided", partial(_strided, stride), ONE, head=head)


def _windows(observed: Observed, causal: bool, block: int) -> Iterator[Family]:
    """Windows, chunks and dilations of a plain sequence, on both sides of a query."""
    most = max(observed.q_len, observed.kv_len)
    sizes = range(1, most + 1)
    if not causal:
        yield Family("sliding_window", lambda size: patterns.sliding_window(window=size - 1), sizes)
        yield Family("sliding_window | sink", partial(_window_and, patterns.sink(n=block)), sizes)
    yield Family("sliding_window | global_tokens", partial(_window_and, patterns.global_tokens(n=block)), sizes)
    chunks = [2**power for power in range(16) if 2**power < block] + list(range(block, most + block, block))
    yield Family("chunked", lambda size: patterns.chunked(chunk=size), chunks)
    for dilation in DILATIONS:
        yield _dilated(observed, dilation)


def _window_and(other: Mask, size: int) -> Mask:
    return patterns.sliding_window(window=size - 1) | other


def _sink_window(sink: int, size: int) -> Mask:
    return patterns.sink_window(sink=sink, window=size)


def _dilated(observed: Observed, dilation: int, head: int | None = None) -> Family:
    """Dilated windows; with residue classes next to each other in memory they fill as few blocks as plain ones."""
    sizes = range(1, -(-max(observed.q_len, observed.kv_len) // dilation) + 1)
    orders = (None,) if observed.pooled else (None, striped(dilation))
    name = f"dilated_window(dilation={dilation})"
    return Family(name, lambda size: patterns.dilated_window(window=size, dilation=dilation), sizes, orders, head)


def _columns_of_heads(observed: Observed, seen: Survey, block: int) -> Iterator[Family]:
    """The heaviest blocks of keys of each head, alone and with a window: the vertical lines of MInference."""
    cells = block // observed.cell[1]
    padded = torch.nn.functional.pad(seen.columns, (0, -seen.columns.shape[1] % cells))
    blocks = padded.unflatten(1, (-1, cells)).sum(-1)
    near = patterns.sliding_window(window=block - 1)
    for head in range(observed.heads):
        ranked = blocks[head].argsort(descending=True, stable=True)
        heaviest, sizes = partial(_columns, ranked, block), range(1, len(ranked) + 1)
        yield Family("columns", heaviest, sizes, head=head)
        yield Family("columns | window", partial(_columns_and, near, heaviest), sizes, head=head)


def _columns_and(other: Mask, make: Callable[[int], Mask], size: int) -> Mask:
    return make(size) | other


def _columns(ranked: torch.Tensor, block: int, size: int) -> Mask:
    """The `size` heaviest blocks of keys, for every query."""
    chosen = sorted(ranked[:size].tolist())
    columns = torch.zeros(len(ranked), dtype=torch.bool)
    columns[chosen] = True
    return mask(lambda kv: columns[kv // block]).named("columns", block=block, kept=chosen)


def _strided(stride: int, _: int) -> Mask:
    return patterns.strided(stride=stride)


def _on_canvas(canvas: Canvas, tile: dict[str, int]) -> Iterator[Family]:
    """Neighborhoods, tiles, slabs, lines and bands. Sizes grow on every axis in the same proportion."""
    sides, longest = canvas.lengths, max(canvas.lengths.values())

    def share(size: int, of: int) -> dict[str, int]:
        return {name: -(-side * size // of) for name, side in sides.items()}

    yield Family(
        "neighborhood", lambda size: patterns.neighborhood(canvas, window=share(size, longest)), range(1, longest + 1)
    )
    counts = {name: -(-side // tile[name]) for name, side in sides.items()}
    most = max(counts.values())

    def tiles(size: int) -> Mask:
        window = {name: -(-count * size // most) * tile[name] for name, count in counts.items()}
        return patterns.sliding_tile(canvas, window=window, tile=tile)

    yield Family("sliding_tile", tiles, range(1, most + 1))
    time = canvas.names[0]
    yield Family("frame_window", lambda size: patterns.frame_window(canvas, size, time=time), range(1, sides[time] + 1))
    for axis, side in canvas.axes:
        yield Family(f"slab({axis})", partial(_slab, canvas, axis), range(1, side + 1))
        if len(sides) > 2:
            others = max(side for name, side in canvas.axes if name != axis)
            yield Family(f"line({axis})", partial(_line, canvas, axis, others), range(1, others + 1))
    for names in _permuted(canvas):
        if names == canvas.names[1:] + canvas.names[:1]:
            yield Family("temporal_head", partial(patterns.temporal_head, canvas, time=time), range(1, canvas.size + 1))
        else:
            yield Family(f"band({', '.join(names)})", partial(_band, canvas, names), range(1, canvas.size + 1))


def _slab(canvas: Canvas, axis: str, size: int) -> Mask:
    """Near along one axis, anywhere on the others."""
    return patterns.neighborhood(canvas, window=canvas.lengths | {axis: size})


def _line(canvas: Canvas, axis: str, of: int, size: int) -> Mask:
    """Anywhere along one axis, near on the others."""
    if size == 1:
        return patterns.axial(canvas, axis)
    window = {name: side if name == axis else -(-side * size // of) for name, side in canvas.axes}
    return patterns.neighborhood(canvas, window=window)


def _band(canvas: Canvas, names: Sequence[str], size: int) -> Mask:
    """Closer than `size` tokens when tokens lie in the order of `names`: as in `temporal_head`."""

    return band(canvas, names, size).named("band", canvas=canvas, axes=" ".join(names), width=size)


def _permuted(canvas: Canvas) -> list[tuple[str, ...]]:
    """Orders of the axes other than the canvas' own: all of up to three axes, else its rotations."""
    names = canvas.names
    rotations = (names[i:] + names[:i] for i in range(len(names)))
    return [permuted for permuted in (permutations(names) if len(names) <= 3 else rotations) if permuted != names]


def _orders(canvas: Canvas, tile: dict[str, int]) -> list[Order | None]:
    return [None, *(axes(canvas, *names) for names in _permuted(canvas)), tiled(canvas, tile)]


def _tile(canvas: Canvas, block: int) -> dict[str, int]:
    """A tile of at most `block` tokens, near to a cube: its shortest side is doubled while that fits."""
    sides = dict.fromkeys(canvas.names, 1)
    volume = 1
    while volume * 2 <= block:
        free = [name for name, length in canvas.axes if sides[name] * 2 <= length]
        if not free:
            break
        shortest = min(reversed(free), key=lambda name: sides[name])
        sides[shortest] *= 2
        volume *= 2
    return sides
