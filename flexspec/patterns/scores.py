"""Score mods: biases by distance, caps and gains. They chain with `+` in reading order.

A table that is a leaf tensor (or a Parameter) is held as it is, so that training it works. In its place stands an
`fs.Input`, given when the score mod runs: `fs.scores.relative_bias(fs.Input("table", ("heads", 257), float))`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import torch
from pydantic import PositiveFloat

from ..canvas import Canvas
from ..errors import FlexSpecError
from ..inputs import Input
from ..predicate import NAMES, read_signature
from ..score import ScoreMod, score
from ..user_line import user_caret
from .about import pattern
from .checks import Text, held_or_given, on_canvas, per_axis, per_head_number, whole

__all__: list[str] = [
    "alibi",
    "softcap",
    "relative_bias",
    "t5_buckets",
    "t5_bias",
    "swin_bias",
    "distance_scale",
    "key_gain",
]


@pattern("alibi()", "minus a slope for each head times the distance")
def alibi(slopes: Any = None) -> ScoreMod:
    """`score - slopes[h] * abs(q - kv)`.

    In a causal mask the distance is `q - kv`; between bidirectional tokens it is symmetric.

    slopes: float [heads], per token, a number for all heads, a float `fs.Param`, or a float `fs.Input` with the dim
        heads. Default `2 ** (-8 * (h + 1) / heads)`. For a head count that is no power of two the authors' code takes
        the slopes of the next smaller power and interleaves those of the next larger one; give them as a tensor to
        match such a checkpoint.

    Source: ALiBi. Raises FS022 (another shape), FS023 (no floats); FS031 where the default runs without a head count.

    >>> alibi(), alibi([0.5, 0.25])
    (alibi(), alibi(slopes=<float32[2]>))
    """
    if slopes is None:

        def default(score: Any, h: Any, q: Any, kv: Any, heads: Any) -> Any:
            return score - torch.exp2(-8.0 * (h + 1) / heads) * abs(q - kv)

        return score(default).named("alibi")
    slope = per_head_number("slopes", slopes, "slopes")
    sloped = score(lambda score, h, q, kv: score - slope.read(h) * abs(q - kv))
    return sloped(**slope.held).named("alibi", slopes=slope.shown)


@score
@pattern("softcap(50.0)", "scores held within -cap and cap")
def softcap(score: Any, *, cap: PositiveFloat = 50.0) -> Any:
    """`cap * tanh(score / cap)`: scores stay within `-cap` and `cap`.

    cap: a number above 0.

    Source: Gemma 2, whose attention has the cap 50. Raises FS025 (cap).

    >>> softcap(30.0)
    softcap(cap=30.0)
    """
    return cap * torch.tanh(score / cap)


@pattern("", "a bias for each head and distance")
def relative_bias(table: Any) -> ScoreMod:
    """`score + table[h, clamp(q - kv, -R, R) + R]`: one bias for each head and distance.

    table: float [heads, 2 * R + 1], entry R is distance 0, later entries are keys further back; or a float `fs.Input`
        whose dims say the number of distances, e.g. ("heads", 257).

    Source: Shaw et al. and Music Transformer, there as vectors that meet the query; this is the form with scalars.
    Shaw's index is `kv - q`: flip the table's last dim. Raises FS022 (another shape, an even number of distances),
    FS023 (no floats).

    >>> relative_bias(torch.zeros(2, 5))
    relative_bias(table=<float32[2, 5]>)
    """
    bias = held_or_given("table", table, "relative_bias", [("heads", "_")], float, torch.float32)
    distances = bias.size(1)
    if distances % 2 == 0:
        message = f"the table has {distances} distances"
        raise FlexSpecError("FS022", message, fix="give 2 * R + 1: from -R to R", where=user_caret())
    reach = distances // 2
    biased = score(lambda score, h, q, kv: score + bias.source[h, (q - kv).clamp(-reach, reach) + reach])
    return biased(**bias.held).named("relative_bias", table=bias.shown)


def t5_buckets(buckets: int, bidirectional: bool = True, max_distance: int = 128) -> torch.Tensor:
    """int64 [2 * D + 1]: T5's bucket of each `kv - q` from -D to D; farther ones are as D. D is max_distance.

    The nearest distances have a bucket each, farther ones share buckets that grow with the logarithm, in
    float32 as in Hugging Face's T5.

    buckets: how many there are, at least 4 if bidirectional, else at least 2.
    bidirectional: half of the buckets are for keys after the query; else those share bucket 0.
    max_distance: tokens from which all distances share the last bucket.

    >>> t5_buckets(8, bidirectional=True, max_distance=8).tolist()
    [3, 3, 3, 3, 3, 2, 2, 1, 0, 5, 6, 6, 7, 7, 7, 7, 7]
    """
    half = buckets // 2 if bidirectional else buckets
    exact = half // 2
    distance = torch.arange(-max_distance, max_distance + 1)
    size = distance.abs() if bidirectional else (-distance).clamp(min=0)
    ratio = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
    bucket = torch.where(size < exact, size, far)
    return bucket + (distance > 0) * half if bidirectional else bucket


@pattern("", "T5's bias by bucket of distance")
def t5_bias(table: Any, bidirectional: bool = True, max_distance: int = 128) -> ScoreMod:
    """`score + table[bucket(kv - q), h]`: T5's bias, near distances exactly, far ones in logarithmic buckets.

    T5 does not scale its scores: use it with `scale=1.0`.

    table: float [buckets, heads], the weight of T5's `relative_attention_bias`; or a float `fs.Input` whose dims say
        the number of buckets, e.g. (32, "heads").
    bidirectional: True in T5's encoder, False in its decoder.
    max_distance: tokens from which all distances share the last bucket.

    Source: T5. Raises FS022 (another shape, an odd number of buckets or too few), FS023 (no floats), FS025
    (max_distance).

    >>> t5_bias(torch.zeros(32, 8))
    t5_bias(table=<float32[32, 8]>, bidirectional=True, max_distance=128)
    """
    bias = held_or_given("table", table, "t5_table", [("_", "heads")], float, torch.float32)
    buckets, least = bias.size(0), 4 if bidirectional else 2
    if buckets < least or (bidirectional and buckets % 2):
        message = f"the table has {buckets} buckets"
        fix = "give [buckets, heads], an even number of buckets, at least 4" if bidirectional else "at least 2"
        raise FlexSpecError("FS022", message, fix=fix, where=user_caret())
    whole("max_distance", max_distance)
    exact = buckets // least
    if max_distance <= exact:
        message = f"max_distance is {max_distance}, and {exact} distances have a bucket of their own"
        raise FlexSpecError("FS025", message, fix=f"give more than {exact}", where=user_caret())
    bucket_of = t5_buckets(buckets, bidirectional, max_distance)
    if bias.tensor is not None:
        bucket_of = bucket_of.to(bias.tensor.device)
    bucket = Input("t5_buckets", ("_",))

    def biased(score: Any, h: Any, q: Any, kv: Any) -> Any:
        return score + bias.source[bucket[(kv - q).clamp(-max_distance, max_distance) + max_distance], h]

    shown = {"table": bias.shown, "bidirectional": bidirectional, "max_distance": max_distance}
    return score(biased)(**bias.held, t5_buckets=bucket_of).named("t5_bias", **shown)


@pattern("", "a bias for each difference of coordinates")
def swin_bias(canvas: Canvas, table: Any, window: Any = None) -> ScoreMod:
    """`score + table[index, h]`, the index one for each difference of coordinates, `q - kv` on every axis.

    canvas: the canvas.
    table: float [prod(2 * window - 1), heads], row-major over the axes, each from `-(window - 1)`: Swin's
        `relative_position_bias_table`; or a float `fs.Input` whose dims say the number of rows, e.g. (169, "heads").
        LeViT shares entries by absolute difference: expand its table.
    window: positions on each axis, default the whole canvas; larger differences take the outermost entry (a mask such
        as `windows(canvas, window)` drops those pairs).

    Source: Swin. Raises FS011 (axes that the canvas does not have, or misses), FS022 (another shape), FS023 (no
    floats), FS025 (window), FS032 (no canvas).

    >>> swin_bias(Canvas(h=14, w=14), torch.zeros(13 * 13, 3), window=7)
    swin_bias(canvas=canvas(h=14, w=14), table=<float32[169, 3]>, window=7)
    """
    sides = per_axis(on_canvas(canvas, "swin_bias"), "window", canvas.lengths if window is None else window)
    bias = held_or_given("table", table, "swin_bias", [("_", "heads")], float, torch.float32)
    differences = math.prod(2 * side - 1 for side in sides.values())
    if bias.size(0) != differences:
        message = f"the table has {bias.size(0)} rows, the window {differences} differences"
        raise FlexSpecError("FS022", message, fix=f"give [{differences}, heads]", where=user_caret())

    def biased(score: Any, h: Any, q: Any, kv: Any) -> Any:
        terms: list[Any] = []
        stride = differences
        for name, length in canvas.axes:
            reach = sides[name] - 1
            stride //= 2 * reach + 1
            difference = getattr(q, name) - getattr(kv, name)
            if sides[name] < length:
                difference = difference.clamp(-reach, reach)
            terms.append((difference + reach) * stride)
        return score + bias.source[reduce(add, terms), h]

    shown = {"table": bias.shown} | ({} if window is None else {"window": window})
    return score(canvas=canvas)(biased)(**bias.held).named("swin_bias", canvas=canvas, **shown)


@pattern("", "scores times a function of positions and lengths")
def distance_scale(f: Callable[..., Any]) -> ScoreMod:
    """`score * f(...)`, f a function of positions and lengths by name (q, kv, h, b, q_len, kv_len, heads,
    batch).

    `distance_scale(lambda kv_len: torch.log(kv_len) / math.log(512))` keeps the entropy of a model trained on
    512 tokens.

    f: a function, traced as a predicate is.

    Source: entropy-preserving scaling (log-length attention). Raises FS001 (no function, or other parameters), and what
    tracing it raises (see `fs.mask`).

    >>> distance_scale(lambda kv_len: torch.log(kv_len)).expr
    score * log(kv_len)
    """
    if not callable(f):
        message = f"f is a {type(f).__name__}"
        fix = "give a function, e.g. lambda kv_len: torch.log(kv_len)"
        raise FlexSpecError("FS001", message, fix=fix, where=user_caret())
    own = read_signature(f)

    def scaled(score: Any, **positions: Any) -> Any:
        return score * f(**{name: positions[NAMES[name]] for name in own.positions}, **defaults)

    defaults = {name: item.default for name, item in own.parameters.items() if item.default is not None}
    names = ["score", *dict.fromkeys(NAMES[name] for name in own.positions)]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    scaled.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
    return score(scaled).named("distance_scale", f=Text(own.name))


@pattern("", "keys weighted by a gain")
def key_gain(gain: Any) -> ScoreMod:
    """`score + log(gain[h, kv])`: the weight of a key times its gain, before the softmax normalises.

    A row whose gains are all 0 keeps nothing.

    gain: float [kv_len], [heads, kv_len] or [batch, heads, kv_len], not negative; 0 drops the key. Or a float
        `fs.Input` with these dims, or (batch, kv_len), whose values are not checked: a negative one makes its rows nan.

    Source: ZeroTuning (initial tokens), visual-token emphasis. Raises FS022 (another shape), FS023 (no floats), FS025
    (a negative gain).

    >>> key_gain([1.0, 2.0])
    key_gain(gain=<float32[2]>)
    """
    forms = [("kv_len",), ("heads", "kv_len"), ("batch", "heads", "kv_len"), ("batch", "kv_len")]
    given = held_or_given("gain", gain, "gain", forms, float, torch.float32)
    if given.tensor is not None and bool((given.tensor < 0).any()):
        raise FlexSpecError("FS025", "gain has a negative entry", fix="give factors of at least 0", where=user_caret())

    def weighed(score: Any, b: Any, h: Any, kv: Any) -> Any:
        return score + torch.log(given.read(batch=b, heads=h, kv_len=kv))

    return score(weighed)(**given.held).named("key_gain", gain=given.shown)
