"""Video and views: patterns in which one axis of the canvas is the time, or the camera.

A frame is all tokens of one time; a token's place in its frame is its row-major number over the other axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch

from ..canvas import Canvas
from ..errors import FlexSpecError
from ..inputs import Input
from ..mask import Mask, mask
from ..user_line import user_caret
from .about import pattern
from .checks import Given, every, held_or_given, on_axis, whole

__all__: list[str] = ["first_frame", "frame_window", "spatial_head", "temporal_head", "radial", "epipolar"]


@pattern(
    "first_frame(canvas(t=30, h=48, w=80))",
    "the first frame",
    picture="fs.first_frame(fs.Canvas(t=8, h=8, w=8))",
)
def first_frame(canvas: Canvas, time: str = "t") -> Mask:
    """The tokens of the first frame: a query keeps as many keys as a frame has tokens.

    canvas: the canvas.
    time: the axis of the frames.

    Source: Puppet-Master; the attention sink of Sparse VideoGen. Raises FS011 (time), FS032 (no canvas).

    >>> first_frame(Canvas(t=2, w=2)).dense(4).int()[0, 0].tolist()[3]
    [1, 1, 0, 0]
    """
    on_axis(canvas, "first_frame", time, "time")
    return mask(canvas=canvas)(lambda kv: getattr(kv, time) == 0).named("first_frame", canvas=canvas, **_time(time))


@pattern(
    "frame_window(canvas(t=30, h=48, w=80), window=8, sink=1)",
    "the last `window` and the first `sink` frames, whole",
    picture="fs.frame_window(fs.Canvas(t=8, h=8, w=8), window=3, sink=1)",
)
def frame_window(canvas: Canvas, window: int, sink: int = 0, time: str = "t") -> Mask:
    """The last `window` frames, the query's own included and whole, and the first `sink` frames; none that is later.

    An interior query keeps `window + sink` frames of keys.

    canvas: the canvas.
    window: frames, at least 1.
    sink: frames, at least 0.
    time: the axis of the frames.

    Source: MotionStream, Live2Diff. Raises FS011 (time), FS025 (window, sink), FS032 (no canvas).

    >>> frame_window(Canvas(t=4, w=1), window=2, sink=1).dense(4).int()[0, 0].tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]]
    """
    on_axis(canvas, "frame_window", time, "time")
    whole("window", window)
    whole("sink", sink, 0)

    def lately(q: Any, kv: Any) -> Any:
        now, then = getattr(q, time), getattr(kv, time)
        return (now >= then) & ((now - then < window) | (then < sink))

    return mask(canvas=canvas)(lately).named("frame_window", canvas=canvas, window=window, sink=sink, **_time(time))


@pattern(
    "spatial_head(canvas(t=30, h=48, w=80), width=7680)",
    "a band where frame stands after frame",
    picture="fs.spatial_head(fs.Canvas(t=8, h=8, w=8), width=48)",
)
def spatial_head(canvas: Canvas, width: int, time: str = "t") -> Mask:
    """A band around the query where tokens stand frame after frame: an interior query keeps `2 * width - 1` keys.

    canvas: the canvas.
    width: tokens, at least 1; `2 * frame` keeps the query's frame and the ones next to it.
    time: the axis of the frames.

    Source: Sparse VideoGen, whose heads keep the first frame too: `spatial_head(...) | first_frame(...)`. Raises FS011
    (time), FS025 (width), FS032 (no canvas).

    >>> spatial_head(Canvas(t=2, w=2), width=2).dense(4).int()[0, 0].tolist()
    [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    """
    names = [on_axis(canvas, "spatial_head", time, "time"), *_others(canvas, time)]
    return band(canvas, names, width).named("spatial_head", canvas=canvas, width=width, **_time(time))


@pattern(
    "temporal_head(canvas(t=30, h=48, w=80), width=60)",
    "a band where a place's times stand together",
    picture="fs.temporal_head(fs.Canvas(t=8, h=8, w=8), width=32)",
)
def temporal_head(canvas: Canvas, width: int, time: str = "t") -> Mask:
    """A band around the query where the frames' tokens of one place stand together: an interior query keeps `2 * width
    - 1` keys, those of its own place at other times first.

    One block wide in the order `axes(canvas, ..., time)`.

    canvas: the canvas.
    width: tokens, at least 1.
    time: the axis of the frames.

    Source: Sparse VideoGen, as `spatial_head` after its reordering. Raises FS011 (time), FS025 (width), FS032 (no
    canvas).

    >>> temporal_head(Canvas(t=2, w=2), width=2).dense(4).int()[0, 0].tolist()
    [[1, 0, 1, 0], [0, 1, 1, 1], [1, 1, 1, 0], [0, 1, 0, 1]]
    """
    names = [*_others(canvas, on_axis(canvas, "temporal_head", time, "time")), time]
    return band(canvas, names, width).named("temporal_head", canvas=canvas, width=width, **_time(time))


def band(canvas: Canvas, names: Sequence[str], width: int) -> Mask:
    """Tokens closer than `width` where they lie row-major over the axes `names`."""
    whole("width", width)
    return mask(canvas=canvas)(lambda q, kv: abs(_number(q, canvas, names) - _number(kv, canvas, names)) < width)


def _number(point: Any, canvas: Canvas, names: Sequence[str]) -> Any:
    """A point's row-major number over the named axes, in their order."""
    if tuple(names) == canvas.names:
        return point
    if not names:
        return 0
    first, *rest = names
    return reduce(lambda total, name: total * canvas.lengths[name] + getattr(point, name), rest, getattr(point, first))


def _others(canvas: Canvas, time: str) -> list[str]:
    return [name for name in canvas.names if name != time]


def _time(time: str) -> dict[str, str]:
    """What a repr shows of the time axis."""
    return {} if time == "t" else {"time": time}


@pattern(
    "radial(canvas(t=30, h=48, w=80), block=128)",
    "a window that narrows with the distance of the frames",
    picture="fs.radial(fs.Canvas(t=8, h=8, w=8), decay=0.5, block=8)",
)
def radial(
    canvas: Canvas,
    decay: float = 1.0,
    block: int = 128,
    first_frame_sink: bool = True,
    time: str = "t",
    rounded: bool = False,
) -> Mask:
    """A window inside the frame that halves as often as the distance of the frames doubles, and then fewer frames.

    At the distance `d >= 1` of two frames of `S` tokens, `r = 2 ** bit_length(S) / 2 ** bit_length(d)`: places at most
    `max(r * decay, block)` apart are kept; where `r < block`, only of every `int(block / r)`-th frame. The query's own
    frame is kept whole.

    canvas: the canvas.
    decay: a number above 0.
    block: tokens, at least 1.
    first_frame_sink: the first frame is kept whole, too.
    time: the axis of the frames.
    rounded: whole tiles of `block` x `block` tokens, frame after frame, as the public kernel computes them. A tile is
        kept if, of its keys that any query of the tile keeps, more than 3/5 are kept by more than 1/3 of its queries.
        This is lossy: the repr says how many pairs it adds and drops, `radial(...).diff(radial(..., rounded=True))`
        where. A table of the tiles is made here, at the cost of `size ** 2 / block` counts.

    Source: Radial Attention. Its code has 128 for `block` in the choice of frames, rounds each two frames alone, and
    treats `d = 1` apart: width `S // 2` for Wan, `S` for HunyuanVideo. Raises FS011 (time), FS025 (decay, block,
    first_frame_sink, rounded), FS032 (no canvas).

    >>> radial(Canvas(t=3, w=4), decay=0.5, block=1, first_frame_sink=False).dense(12).int()[0, 0].tolist()[8]
    [1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1]
    >>> radial(Canvas(t=3, w=4), decay=0.5, block=2, rounded=True)
    radial(canvas=canvas(t=3, w=4), decay=0.5, block=2, rounded=True, added=8, dropped=0)
    """
    others = _others(canvas, on_axis(canvas, "radial", time, "time"))
    _check_radial(decay, block, first_frame_sink, rounded)
    inside = canvas.size // canvas.lengths[time]
    rings = _rings(canvas.lengths[time], inside, decay, block)

    def near(q: Any, kv: Any) -> Any:
        frames = abs(getattr(q, time) - getattr(kv, time))
        places = abs(_number(q, canvas, others) - _number(kv, canvas, others))
        kept = []
        for first, (width, step) in rings.items():  # the next ring is never wider, so a ring has no outer end
            kept += [(frames < first) | (places <= width)] if width < inside - 1 else []
            kept += [(frames < first) | (frames >= 2 * first) | (frames % step == 0)] if step > 1 else []
        return every(kept) | (getattr(kv, time) == 0) if first_frame_sink else every(kept)

    shown: dict[str, Any] = {"canvas": canvas, "decay": decay, "block": block}
    shown |= {} if first_frame_sink else {"first_frame_sink": False}
    shown |= _time(time)
    if not rounded:
        return mask(canvas=canvas)(near).named("radial", **shown)
    tiles = Input("tiles", ("_", "_"), bool)

    def tiled(q: Any, kv: Any) -> Any:
        return tiles[tuple(_number(point, canvas, [time, *others]) // block for point in (q, kv))]

    table, added, dropped = _rounded(canvas.lengths[time], inside, rings, first_frame_sink, block)
    shown |= {"rounded": True, "added": added, "dropped": dropped}
    return mask(canvas=canvas)(tiled)(tiles=table).named("radial", **shown)


def _check_radial(decay: Any, block: Any, first_frame_sink: Any, rounded: Any) -> None:
    whole("block", block)
    if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 < decay < float("inf"):
        raise FlexSpecError("FS025", f"decay is {decay!r}", fix="give a number above 0", where=user_caret())
    for name, value in (("first_frame_sink", first_frame_sink), ("rounded", rounded)):
        if not isinstance(value, bool):
            raise FlexSpecError("FS025", f"{name} is {value!r}", fix="give True or False", where=user_caret())


def _rings(frames: int, inside: int, decay: float, block: int) -> dict[int, tuple[int, int]]:
    """For the distances `first` to `2 * first - 1`: how far places may be apart, and every which distance is kept."""
    rings: dict[int, tuple[int, int]] = {}
    for group in range(1, (frames - 1).bit_length() + 1):
        length = 2.0 ** (inside.bit_length() - group)
        step = int(block / length) if length < block else 1
        rings[2 ** (group - 1)] = int(min(max(length * decay, block), inside)), step
    return rings


def _rounded(
    frames: int, inside: int, rings: dict[int, tuple[int, int]], first_frame_sink: bool, block: int
) -> tuple[torch.Tensor, int, int]:
    """The tiles that are kept, bool [tiles, tiles], and how many pairs they add and drop."""
    reach = np.full(frames, inside)
    for first, (width, step) in rings.items():
        apart = np.arange(first, min(2 * first, frames))
        reach[apart] = np.where(apart % step, -1, width)
    size, frame, place = frames * inside, np.arange(frames), np.arange(inside, dtype=np.int32)
    tiles = -(-size // block)
    columns = np.zeros(tiles * block, dtype=np.int32)  # of each key, how many of a tile's queries keep it
    kept, added, dropped = np.zeros((tiles, tiles), dtype=bool), 0, 0
    for row in range(tiles):
        start, stop = row * block, min(row * block + block, size)
        counts = np.zeros((frames, inside), dtype=np.int32)
        for time in range(start // inside, (stop - 1) // inside + 1):
            low, high = max(start - time * inside, 0), min(stop - time * inside, inside) - 1
            widest = reach[abs(frame - time)].astype(np.int32)[:, None]
            widest[0] = inside if first_frame_sink else widest[0]
            counts += np.maximum(np.minimum(place + widest, high) - np.maximum(place - widest, low) + 1, 0)
        columns[:size] = counts.reshape(-1)
        of_tiles = columns.reshape(tiles, block)
        kept[row] = 5 * (3 * of_tiles > stop - start).sum(1) > 3 * (of_tiles > 0).sum(1)
        pairs = of_tiles.sum(1, dtype=np.int64)
        keys = np.minimum(size - block * np.arange(tiles), block)
        added += int((keys * (stop - start) - pairs)[kept[row]].sum())
        dropped += int(pairs[~kept[row]].sum())
    return torch.from_numpy(kept), added, dropped


@pattern(
    "epipolar(canvas(v=8, h=32, w=32))",
    "pixels near the query's line in other views",
    # a line through the query's own pixel, steeper in each next view
    picture="fs.epipolar(fs.Canvas(v=4, h=8, w=16), torch.tensor([[[v / 4, 1.0, -(v / 4 * (i % 16) + i % 128 // 16)]"
    " for v in range(4)] for i in range(512)]), width=1.0)",
    order="fs.tiled(fs.Canvas(v=4, h=8, w=16), h=4, w=4)",
)
def epipolar(canvas: Canvas, lines: Any = None, width: float = 1.0, view: str = "v") -> Mask:
    """All tokens of the query's own view, and of other views those at most `width` away from the query's line there.

    canvas: the canvas.
    lines: float [tokens, views, axes] or [batch, tokens, views, axes], `axes` of the canvas. `lines[q, v]` is query
        `q`'s line in view `v`, (a, b, c) with `a * x + b * y + c = 0`, where x is the coordinate of the last axis and y
        of the one before, without the axis of views: a fundamental matrix times the query's (x, y, 1). With more axes
        it is a plane, its coefficients from the last axis to the first. Their scale does not matter; (0, 0, c) is no
        line and keeps nothing unless c is 0. Lines of the query's own view are not used. Default: the run-time input
        `lines` [batch, tokens, views, axes].
    width: pixels, at least 0.
    view: the axis of the views.

    Source: SPAD, whose lines are drawn and dilated. Raises FS011 (view), FS022 (the shape of lines), FS023 (their
    type), FS025 (width), FS032 (no canvas).

    >>> down = torch.tensor([1.0, 0.0, -1.0]).expand(4, 2, 3)  # x = 1
    >>> epipolar(Canvas(v=2, h=1, w=2), down, width=0.5).dense(4).int()[0, 0].tolist()
    [[1, 1, 0, 1], [1, 1, 0, 1], [0, 1, 1, 1], [0, 1, 1, 1]]
    """
    names = _others(canvas, on_axis(canvas, "epipolar", view, "view"))[::-1]
    if isinstance(width, bool) or not isinstance(width, (int, float)) or not 0 <= width < float("inf"):
        raise FlexSpecError("FS025", f"width is {width!r}", fix="give a number of at least 0", where=user_caret())
    sides = canvas.lengths[view], len(canvas.names)
    given = _lines(canvas, lines, sides)
    batched = "batch" in given.source.source.dims

    def near(b: Any, q: Any, kv: Any) -> Any:
        other = getattr(kv, view)
        own = given.source[b, q] if batched else given.source[q]
        line = [own[other, k] for k in range(len(names) + 1)]
        value, length = line[-1], 0.0
        for coefficient, name in zip(line, names, strict=False):
            value = value + coefficient * getattr(kv, name)
            length = length + coefficient * coefficient
        return (getattr(q, view) == other) | (value * value <= length * (width * width))

    shown = {} if lines is None else {"lines": given.shown}
    shown |= {"width": width} | ({} if view == "v" else {"view": view})
    return mask(canvas=canvas)(near)(**given.held).named("epipolar", canvas=canvas, **shown)


def _lines(canvas: Canvas, lines: Any, sides: tuple[int, int]) -> Given:
    """The lines of views with their coefficients, or the input that gives them; `sides` are the sizes of both dims."""
    if lines is None:
        return Given(Input("lines", ("batch", "sequence", *sides), float))
    given = held_or_given("lines", lines, "lines", [("sequence", "_", "_"), ("batch", "sequence", "_", "_")], float)
    tokens = canvas.size if given.tensor is None else given.tensor.shape[-3]
    if (tokens, given.size(-2), given.size(-1)) != (canvas.size, *sides):
        shape = (tokens, given.size(-2), given.size(-1))
        message = f"lines has the shape (..., {', '.join(map(str, shape))})"
        fix = f"{canvas} needs (..., {canvas.size}, {sides[0]}, {sides[1]})"
        raise FlexSpecError("FS022", message, fix=fix, where=user_caret())
    return given
