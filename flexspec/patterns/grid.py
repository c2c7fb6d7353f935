"""Windows on a canvas: each is written once over the axes, and a query keeps the keys that every axis keeps.

The canvas is the first argument. A value for each axis is one integer for all, or a dict by axis name.
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
from .checks import every, on_axis, on_canvas, per_axis


def neighborhood(canvas: Canvas, window: Any, stride: Any = 1, dilation: Any = 1, causal: Any = False) -> Mask:
    """On each axis the `window` nearest positions, pushed inwards at the borders: a query keeps
    `prod(window)` keys.

    window: positions on each axis. An even one keeps `window // 2` before the query, the query, and `window
    // 2 - 1` after it. stride: queries that share one window, that of the leader in the middle of their group
    (on a causal axis the last one); at most `window`. dilation: step between kept positions; every residue
    class of positions is a canvas of its own. causal: on that axis only positions up to the query's. A window
    that is longer than the axis (or the residue class) keeps all of it; NATTEN refuses `window * dilation >
    length`.

    Source: NAT, DiNA, FNA, GNA, as NATTEN's `kernel_size`, `stride`, `dilation`, `is_causal`. Raises FS011,
    FS025, FS032.

    >>> neighborhood(Canvas(w=5), window=3).dense(5).int()[0, 0].tolist()
    [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]
    """
    on_canvas(canvas, "neighborhood")
    windows_ = per_axis(canvas, "window", window)
    strides = per_axis(canvas, "stride", stride, default=1)
    dilations = per_axis(canvas, "dilation", dilation, default=1)
    causals = canvas.per_axis(causal, "causal", False)
    for name in canvas.names:
        if strides[name] > windows_[name]:
            message = f"stride {strides[name]} on `{name}` is larger than the window {windows_[name]}"
            fix = "give at most the window, so that queries see themselves"
            raise FlexSpecError("FS025", message, fix=fix, where=user_caret())
        if not isinstance(causals[name], bool):
            message = f"causal on `{name}` is {causals[name]!r}"
            raise FlexSpecError("FS025", message, fix="give True or False", where=user_caret())

    def near(q: Any, kv: Any) -> Any:
        kept: list[Any] = []
        for name, length in canvas.axes:
            at = getattr(q, name), getattr(kv, name)
            kept += _near(*at, length, windows_[name], strides[name], dilations[name], causals[name])
        return every(kept)

    shown = {"canvas": canvas, "window": window, "stride": stride, "dilation": dilation, "causal": causal}
    plain = {"stride": 1, "dilation": 1, "causal": False}
    shown = {name: value for name, value in shown.items() if value != plain.get(name, ())}
    return mask(canvas=canvas)(near).named("neighborhood", **shown)


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


def sliding_tile(canvas: Canvas, window: Any, tile: Any) -> Mask:
    """The canvas in tiles; a tile's queries share a window of whole tiles, pushed inwards at the borders.

    window: positions on each axis, a whole number `n` of tiles; tile: positions on each axis. A query keeps
    `prod(window)` keys, wherever it is, if the tiles divide the canvas; else the last tile of an axis is
    smaller. For even `n` the window holds `n // 2` tiles before the query's and `n // 2 - 1` after it. A
    window longer than an axis keeps all of it. Fast in the order `tiled(canvas, tile)`, where a tile is one
    block.

    Source: Sliding Tile Attention, whose reference keeps `n + 1` tiles for even `n`. Raises FS011, FS025
    (also where the window is no whole number of tiles), FS032.

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
                at = getattr(kv, name) // side
                kept += [at >= first, at < first + count]
        return every(kept)

    made = mask(canvas=canvas)(tiled_window)
    return made.named("sliding_tile", canvas=canvas, window=window, tile=tile)


def windows(canvas: Canvas, size: Any, shift: Any = 0, wrap: bool = False) -> Mask:
    """The canvas cut into windows; tokens of the same window see each other: a query keeps up to `prod(size)`
    keys.

    size: positions on each axis. shift: window borders lie at `k * size - shift`; any integer. wrap: False,
    windows end at the canvas' border, so that both ends of an axis may have a smaller one; True, the axis is
    a ring and the shifted end joins the start. Swin rolls its canvas by `-s`, which puts borders at `k * size
    + s`: `shift=-s`, and the same as `shift=s` for its `s = size / 2`.

    Source: Swin, DaViT; HiDiffusion (wrap=True). Raises FS011, FS025, FS032.

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
            at = getattr(position, name)
            if shifts[name]:
                at = at + shifts[name]
            return (at % length if wrap and shifts[name] else at) // sizes[name]

        return every([number(q, name, length) == number(kv, name, length) for name, length in canvas.axes])

    shown = {"canvas": canvas, "size": size, "shift": shift} | ({"wrap": True} if wrap else {})
    return mask(canvas=canvas)(same_window).named("windows", **shown)


def axial(canvas: Canvas, axis: str) -> Mask:
    """The tokens on the query's line along `axis`, all other coordinates equal: a query keeps as many as the
    axis has.

    Source: axial attention; TimeSformer's temporal attention is `axial(canvas, "t")`. Raises FS011, FS032.

    >>> axial(Canvas(h=2, w=2), "h").dense(4).int()[0, 0].tolist()
    [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]
    """
    on_axis(canvas, "axial", axis)

    def on_line(q: Any, kv: Any) -> Any:
        return every([getattr(q, name) == getattr(kv, name) for name in canvas.names if name != axis])

    return mask(canvas=canvas)(on_line).named("axial", canvas=canvas, axis=axis)


def halo(canvas: Canvas, block: Any, halo: Any) -> Mask:
    """The query's block and `halo` positions around it on each axis, cut off at the canvas' border: an interior
    query keeps `prod(block + 2 * halo)` keys.

    block: positions on each axis; halo: at least 0. A strided neighborhood (`window=block + 2 * halo,
    stride=block`) is the same inside and pushed inwards at the border instead. Source: HaloNet, which pads its
    border with zeros. Raises FS011, FS025, FS032.

    >>> halo(Canvas(w=6), block=2, halo=1).dense(6).int()[0, 0].tolist()[::2]
    [[1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]]
    """
    on_canvas(canvas, "halo")
    blocks, halos = per_axis(canvas, "block", block), per_axis(canvas, "halo", halo, 0)

    def around(q: Any, kv: Any) -> Any:
        kept: list[Any] = []
        for name in canvas.names:
            side, start = blocks[name], getattr(q, name) // blocks[name] * blocks[name]
            at = getattr(kv, name)
            kept += [at >= start - halos[name], at < start + side + halos[name]]
        return every(kept)

    return mask(canvas=canvas)(around).named("halo", canvas=canvas, block=block, halo=halo)


def block_causal_2d(canvas: Canvas, block: Any) -> Mask:
    """The query's block and the one before it on each axis: on an image its own, the left, the top and the top-left
    block, so that a query keeps up to `2 ** axes * prod(block)` keys.

    block: positions on each axis. An axis whose block is the whole axis is not restricted. Source: Inf-DiT, which
    keeps these blocks in memory from row to row. Raises FS011, FS025, FS032.

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


def any_shared(canvas: Canvas, axes: str | Sequence[str]) -> Mask:
    """The tokens that share at least one of the named coordinates with the query, e.g. its view or its time.

    axes: names, as a sequence or as text with spaces ("v t"). With the sides `n` of the named axes a query keeps
    `size * (1 - prod(1 - 1 / n))` keys. Source: 4Real-Video-V2 (views and times). Raises FS011, FS023, FS032.

    >>> any_shared(Canvas(v=2, t=2), "v t").dense(4).int()[0, 0].tolist()
    [[1, 1, 1, 0], [1, 1, 0, 1], [1, 0, 1, 1], [0, 1, 1, 1]]
    """
    on_canvas(canvas, "any_shared")
    names = axes.split() if isinstance(axes, str) else axes
    if not isinstance(names, Sequence) or not names:
        raise FlexSpecError("FS023", f"axes is {axes!r}", fix='give names: "v t"', where=user_caret())
    for name in names:
        on_axis(canvas, "any_shared", name, "axes")

    def shared(q: Any, kv: Any) -> Any:
        return reduce(or_, [getattr(q, name) == getattr(kv, name) for name in names])

    return mask(canvas=canvas)(shared).named("any_shared", canvas=canvas, axes=" ".join(names))
