"""Windows on a canvas: each is written once over the axes, and a query keeps the keys that every axis keeps.

The canvas is the first argument. A value for each axis is one integer for all, or a dict by axis name: `window=7`,
`window=dict(h=7, w=5)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

import torch

from ..canvas import Canvas
from ..errors import FlexSpecError
from ..mask import Mask, mask
from ..user_line import user_caret
from .about import pattern
from .checks import every, names_of_axes, on_axis, on_canvas, per_axis

__all__: list[str] = ["neighborhood", "sliding_tile", "windows", "axial", "halo", "any_shared", "block_causal_2d"]


@pattern(
    "neighborhood(canvas(h=64, w=64), window=7)",
    "the nearest positions on each axis",
    picture="fs.neighborhood(fs.Canvas(h=16, w=32), window=7)",
    order="fs.tiled(fs.Canvas(h=16, w=32), h=4, w=4)",
)
def neighborhood(canvas: Canvas, window: Any, stride: Any = 1, dilation: Any = 1, causal: Any = False) -> Mask:
    """On each axis the `window` nearest positions, pushed inwards at the borders: a query keeps
    `prod(window)` keys.

    canvas: the canvas.
    window: positions on each axis, at least 1. An even one keeps `window // 2` before the query, the query, and
        `window // 2 - 1` after it. One that is longer than the axis (or the residue class) keeps all of it; NATTEN
        refuses `window * dilation > length`.
    stride: queries that share one window, that of the leader in the middle of their group (on a causal axis the last
        one); at most `window`.
    dilation: step between kept positions, at least 1; every residue class of positions is a canvas of its own.
    causal: the axes on which only positions up to the query's are kept: their names, as text ("t", "h w") or as a
        list, or True for all, or True and False by axis name.

    Source: NAT, DiNA, FNA, GNA, as NATTEN's `kernel_size`, `stride`, `dilation`, `is_causal`. Raises FS011 (axes that
    the canvas does not have, or misses), FS023 (causal has no names), FS025 (window, stride, dilation), FS032 (no
    canvas).

    >>> neighborhood(Canvas(w=5), window=3).dense(5).int()[0, 0].tolist()
    [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]
    """
    on_canvas(canvas, "neighborhood")
    windows_ = per_axis(canvas, "window", window)
    strides = per_axis(canvas, "stride", stride, default=1)
    dilations = per_axis(canvas, "dilation", dilation, default=1)
    causals = _by_axis(canvas, causal)
    for name in canvas.names:
        if strides[name] > windows_[name]:
            message = f"stride {strides[name]} on `{name}` is larger than the window {windows_[name]}"
            fix = "give at most the window, so that queries see themselves"
            raise FlexSpecError("FS025", message, fix=fix, where=user_caret())

    def near(q: Any, kv: Any) -> Any:
        kept: list[Any] = []
        for name, length in canvas.axes:
            sides = getattr(q, name), getattr(kv, name)
            kept += _near(*sides, length, windows_[name], strides[name], dilations[name], causals[name])
        return every(kept)

    shown = {"canvas": canvas, "window": window, "stride": stride, "dilation": dilation, "causal": causal}
    plain = {"stride": 1, "dilation": 1, "causal": False}
    shown = {name: value for name, value in shown.items() if value != plain.get(name, ())}
    return mask(canvas=canvas)(near).named("neighborhood", **shown)


def _by_axis(canvas: Canvas, causal: Any) -> dict[str, bool]:
    """For each axis, whether it is causal: of names, one truth for all, or truths by name. FS011, FS023, FS025."""
    if isinstance(causal, (str, list, tuple)):
        names = names_of_axes(canvas, "neighborhood", causal, "causal")
        return {name: name in names for name in canvas.names}
    by_axis: dict[str, Any] = canvas.per_axis(causal, "causal", False)
    for name, value in by_axis.items():
        if not isinstance(value, bool):
            message = f"causal on `{name}` is {value!r}"
            fix = f'give True or False, or the names of axes: causal="{name}"'
            raise FlexSpecError("FS025", message, fix=fix, where=user_caret())
    return by_axis


def _near(q: Any, kv: Any, length: int, window: int, stride: int, dilation: int, causal: bool) -> list[Any]:
    """The conditions of one axis."""
    kept: list[Any] = []
    last: Any = length - 1
    if dilation > 1:
        kept.append(q % dilation == kv % dilation)
        last = (length - 1 - q % dilation) // dilation if length % dilation else length // dilation - 1
        q, kv = q // dilation, kv // dilation
    whole_axis = window >= -(-length // dilation)
    if causal:
        leader = q if stride == 1 else torch.minimum((q // stride) * stride + stride - 1, _like(last, q))
        return [*kept, kv <= q] if whole_axis else [*kept, kv <= q, leader - kv < window]
    if whole_axis:
        return kept
    left, right = window // 2, window - 1 - window // 2
    leader = q if stride == 1 else torch.minimum((q // stride) * stride + stride // 2, _like(last, q))
    centre = leader.clamp(left, last - right)
    return [*kept, kv >= centre - left, kv <= centre + right]


def _like(value: Any, traced: Any) -> Any:
    """A plain number as torch.minimum takes it."""
    return traced.new_full((), value) if isinstance(value, int) else value


@pattern(
    "sliding_tile(canvas(t=30, h=48, w=80), window={t: 18, h: 24, w: 24}, tile={t: 6, h: 8, w: 8})",
    "whole tiles around the query's tile",
    picture="fs.sliding_tile(fs.Canvas(t=8, h=8, w=8), window=dict(t=6, h=4, w=6), tile=dict(t=2, h=4, w=2))",
    order="fs.tiled(fs.Canvas(t=8, h=8, w=8), t=2, h=4, w=2)",
)
def sliding_tile(canvas: Canvas, window: Any, tile: Any) -> Mask:
    """The canvas in tiles; a tile's queries share a window of whole tiles, pushed inwards at the borders.

    A query keeps `prod(window)` keys, wherever it is, if the tiles divide the canvas; else the last tile of an axis is
    smaller. Fast in the order `tiled(canvas, tile)`, where a tile is one block.

    canvas: the canvas.
    window: positions on each axis, a whole number `n` of tiles. For even `n` the window holds `n // 2` tiles before the
        query's and `n // 2 - 1` after it. One that is longer than an axis keeps all of it.
    tile: positions on each axis, at least 1.

    Source: Sliding Tile Attention, whose reference keeps `n + 1` tiles for even `n`. Raises FS011 (axes that the canvas
    does not have, or misses), FS025 (window, tile; a window that is no whole number of tiles), FS032 (no canvas).

    >>> sliding_tile(Canvas(w=6), window=4, tile=2).dense(6).int()[0, 0].tolist()[::2]
    [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]
    """
    on_canvas(canvas, "sliding_tile")
    windows_, tiles = per_axis(canvas, "window", window), per_axis(canvas, "tile", tile)
    for name in canvas.names:
        if windows_[name] % tiles[name]:
            message = f"the window on `{name}` is {windows_[name]}, which tiles of {tiles[name]} do not divide"
            near = max(1, round(windows_[name] / tiles[name])) * tiles[name]
            raise FlexSpecError("FS025", message, fix=f"e.g. {name}: {near}", where=user_caret())

    def tiled_window(q: Any, kv: Any) -> Any:
        kept: list[Any] = []
        for name, length in canvas.axes:
            side, count = tiles[name], windows_[name] // tiles[name]
            total = -(-length // side)
            if count < total:
                first = (getattr(q, name) // side - count // 2).clamp(0, total - count)
                number = getattr(kv, name) // side
                kept += [number >= first, number < first + count]
        return every(kept)

    return mask(canvas=canvas)(tiled_window).named("sliding_tile", canvas=canvas, window=window, tile=tile)


@pattern(
    "windows(canvas(h=56, w=56), size=7, shift=3)",
    "the query's window, shifted",
    picture="fs.windows(fs.Canvas(h=16, w=32), size=8, shift=4)",
    order="fs.tiled(fs.Canvas(h=16, w=32), h=4, w=4)",
)
def windows(canvas: Canvas, size: Any, shift: Any = 0, wrap: bool = False) -> Mask:
    """The canvas cut into windows; tokens of the same window see each other: a query keeps up to `prod(size)`
    keys.

    canvas: the canvas.
    size: positions on each axis, at least 1.
    shift: window borders lie at `k * size - shift`; any integer. Swin rolls its canvas by `-s`, which puts borders at
        `k * size + s`: `shift=-s`, and the same as `shift=s` for its `s = size / 2`.
    wrap: False, windows end at the canvas' border, so that both ends of an axis may have a smaller one; True, the axis
        is a ring and the shifted end joins the start.

    Source: Swin, DaViT; HiDiffusion (wrap=True). Raises FS011 (axes that the canvas does not have, or misses), FS025
    (size, shift, wrap), FS032 (no canvas).

    >>> windows(Canvas(w=4), size=2, shift=1).dense(4).int()[0, 0].tolist()
    [[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    >>> windows(Canvas(w=4), size=2, shift=1, wrap=True).dense(4).int()[0, 0].tolist()[0]
    [1, 0, 0, 1]
    """
    on_canvas(canvas, "windows")
    sizes = per_axis(canvas, "size", size)
    shifts = per_axis(canvas, "shift", shift, None, default=0)
    if not isinstance(wrap, bool):
        raise FlexSpecError("FS025", f"wrap is {wrap!r}", fix="give True or False", where=user_caret())

    def same_window(q: Any, kv: Any) -> Any:
        def number(position: Any, name: str, length: int) -> Any:
            place = getattr(position, name)
            if shifts[name]:
                place = place + shifts[name]
            return (place % length if wrap and shifts[name] else place) // sizes[name]

        return every([number(q, name, length) == number(kv, name, length) for name, length in canvas.axes])

    shown = {"canvas": canvas, "size": size, "shift": shift} | ({"wrap": True} if wrap else {})
    return mask(canvas=canvas)(same_window).named("windows", **shown)


@pattern(
    "axial(canvas(t=30, h=48, w=80), 't')",
    "the query's line along one axis",
    picture='fs.axial(fs.Canvas(t=8, h=8, w=8), "t")',
)
def axial(canvas: Canvas, axis: str) -> Mask:
    """The tokens on the query's line along `axis`, all other coordinates equal: a query keeps as many as the
    axis has.

    canvas: the canvas.
    axis: the name of an axis.

    Source: axial attention; TimeSformer's temporal attention is `axial(canvas, "t")`. Raises FS011 (axis), FS032 (no
    canvas).

    >>> axial(Canvas(h=2, w=2), "h").dense(4).int()[0, 0].tolist()
    [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]
    """
    on_axis(canvas, "axial", axis)

    def on_line(q: Any, kv: Any) -> Any:
        return every([getattr(q, name) == getattr(kv, name) for name in canvas.names if name != axis])

    return mask(canvas=canvas)(on_line).named("axial", canvas=canvas, axis=axis)


@pattern(
    "halo(canvas(h=64, w=64), block=8, halo=3)",
    "the query's block and what lies around it",
    picture="fs.halo(fs.Canvas(h=16, w=32), block=4, halo=2)",
    order="fs.tiled(fs.Canvas(h=16, w=32), h=4, w=4)",
)
def halo(canvas: Canvas, block: Any, halo: Any) -> Mask:
    """The query's block and `halo` positions around it on each axis, cut off at the canvas' border: an interior
    query keeps `prod(block + 2 * halo)` keys.

    A strided neighborhood (`window=block + 2 * halo, stride=block`) is the same inside and pushed inwards at the border
    instead.

    canvas: the canvas.
    block: positions on each axis, at least 1.
    halo: positions on each axis, at least 0.

    Source: HaloNet, which pads its border with zeros. Raises FS011 (axes that the canvas does not have, or misses),
    FS025 (block, halo), FS032 (no canvas).

    >>> halo(Canvas(w=6), block=2, halo=1).dense(6).int()[0, 0].tolist()[::2]
    [[1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]]
    """
    on_canvas(canvas, "halo")
    blocks, halos = per_axis(canvas, "block", block), per_axis(canvas, "halo", halo, 0)

    def around(q: Any, kv: Any) -> Any:
        kept: list[Any] = []
        for name in canvas.names:
            side, start = blocks[name], getattr(q, name) // blocks[name] * blocks[name]
            key = getattr(kv, name)
            kept += [key >= start - halos[name], key < start + side + halos[name]]
        return every(kept)

    return mask(canvas=canvas)(around).named("halo", canvas=canvas, block=block, halo=halo)


@pattern(
    "block_causal_2d(canvas(h=64, w=64), block=16)",
    "the query's block, the left, top and top-left one",
    picture="fs.block_causal_2d(fs.Canvas(h=16, w=32), block=4)",
    order="fs.tiled(fs.Canvas(h=16, w=32), h=4, w=4)",
)
def block_causal_2d(canvas: Canvas, block: Any) -> Mask:
    """The query's block and the one before it on each axis: on an image its own, the left, the top and the top-left
    block, so that a query keeps up to `2 ** axes * prod(block)` keys.

    canvas: the canvas.
    block: positions on each axis, at least 1. An axis whose block is the whole axis is not restricted.

    Source: Inf-DiT, which keeps these blocks in memory from row to row. Raises FS011 (axes that the canvas does not
    have, or misses), FS025 (block), FS032 (no canvas).

    >>> block_causal_2d(Canvas(w=6), block=2).dense(6).int()[0, 0].tolist()[::2]
    [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]
    """
    on_canvas(canvas, "block_causal_2d")
    blocks = per_axis(canvas, "block", block)

    def same_or_before(q: Any, kv: Any) -> Any:
        kept: list[Any] = []
        for name, side in blocks.items():
            number = getattr(kv, name) // side
            kept += [number <= getattr(q, name) // side, number >= getattr(q, name) // side - 1]
        return every(kept)

    return mask(canvas=canvas)(same_or_before).named("block_causal_2d", canvas=canvas, block=block)


@pattern(
    "any_shared(canvas(v=8, t=8, h=16, w=16), 'v t')",
    "tokens that share a coordinate",
    picture='fs.any_shared(fs.Canvas(v=4, t=8, h=4, w=4), "v t")',
)
def any_shared(canvas: Canvas, axes: str | Sequence[str]) -> Mask:
    """The tokens that share at least one of the named coordinates with the query, e.g. its view or its time.

    With the sides `n` of the named axes a query keeps `size * (1 - prod(1 - 1 / n))` keys.

    canvas: the canvas.
    axes: names, as a sequence or as text with spaces ("v t").

    Source: 4Real-Video-V2 (views and times). Raises FS011 (an axis that the canvas does not have), FS023 (no names),
    FS032 (no canvas).

    >>> any_shared(Canvas(v=2, t=2), "v t").dense(4).int()[0, 0].tolist()
    [[1, 1, 1, 0], [1, 1, 0, 1], [1, 0, 1, 1], [0, 1, 1, 1]]
    """
    on_canvas(canvas, "any_shared")
    names = names_of_axes(canvas, "any_shared", axes, "axes")

    def shared(q: Any, kv: Any) -> Any:
        return reduce(or_, [getattr(q, name) == getattr(kv, name) for name in names])

    return mask(canvas=canvas)(shared).named("any_shared", canvas=canvas, axes=" ".join(names))
