"""Score mods: biases by distance, caps and gains. They chain with `+` in reading order.

A table that is a leaf tensor (or a Parameter) is held as it is, so that training it works.
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
from .checks import as_tensor, on_canvas, per_axis, whole


def alibi(slopes: Any = None) -> ScoreMod:
    """`score - slopes[h] * abs(q - kv)`.

    slopes: float [heads], per token; default `2 ** (-8 * (h + 1) / heads)`. For a head count that is no power
    of two the authors' code takes the slopes of the next smaller power and interleaves those of the next
    larger one; give them as a tensor to match such a checkpoint. In a causal mask the distance is `q - kv`;
    between bidirectional tokens it is symmetric. Source: ALiBi. Raises FS022, FS023; FS031 when it runs
    without a head count.

    >>> alibi(), alibi([0.5, 0.25])
    (alibi(), alibi(slopes=<float32[2]>))
    """
    if slopes is None:

        def default(score: Any, h: Any, q: Any, kv: Any, heads: Any) -> Any:
            return score - torch.exp2(-8.0 * (h + 1) / heads) * abs(q - kv)

        return score(default).named("alibi")
    tensor = as_tensor("slopes", slopes, [1], float, torch.float32)
    slope = Input("slopes", ("heads",), "float")
    made = score(lambda score, h, q, kv: score - slope[h] * abs(q - kv))
    return made(slopes=tensor).named("alibi", slopes=tensor)


@score
def softcap(score: Any, *, cap: PositiveFloat = 50.0) -> Any:
    """`cap * tanh(score / cap)`: scores stay within `-cap` and `cap`.

    Source: Gemma 2, whose attention has the cap 50. Raises FS025 (not positive).

    >>> softcap(30.0)
    softcap(cap=30.0)
    """
    return cap * torch.tanh(score / cap)


def relative_bias(table: Any) -> ScoreMod:
    """`score + table[h, clamp(q - kv, -R, R) + R]`: one bias for each head and distance.

    table: float [heads, 2 * R + 1], entry R is distance 0, later entries are keys further back. Source: Shaw
    et al. and Music Transformer, there as vectors that meet the query; this is the form with scalars. Shaw's
    index is `kv - q`: flip the table's last dim. Raises FS022 (an even number of distances), FS023.

    >>> relative_bias(torch.zeros(2, 5))
    relative_bias(table=<float32[2, 5]>)
    """
    tensor = as_tensor("table", table, [2], float, torch.float32)
    if tensor.shape[1] % 2 == 0:
        message = f"the table has {tensor.shape[1]} distances"
        raise FlexSpecError("FS022", message, fix="give 2 * R + 1: from -R to R", where=user_caret())
    reach = tensor.shape[1] // 2
    bias = Input("relative_bias", ("heads", "_"), "float")
    made = score(lambda score, h, q, kv: score + bias[h, (q - kv).clamp(-reach, reach) + reach])
    return made(relative_bias=tensor).named("relative_bias", table=tensor)


def t5_buckets(buckets: int, bidirectional: bool = True, max_distance: int = 128) -> torch.Tensor:
    """int64 [2 * D + 1]: T5's bucket of each `kv - q` from -D to D; farther ones are as D. D is max_distance.

    The nearest distances have a bucket each, farther ones share buckets that grow with the logarithm, in
    float32 as in Hugging Face's T5. bidirectional: half of the buckets are for keys after the query; else
    those share bucket 0.

    >>> t5_buckets(8, bidirectional=True, max_distance=8).tolist()
    [3, 3, 3, 3, 3, 2, 2, 1, 0, 5, 6, 6, 7, 7, 7, 7, 7]
    """
    half = buckets // 2 if bidirectional else buckets
    exact = half // 2
    distance = torch.arange(-max_distance, max_distance + 1)
    size = distance.abs() if bidirectional else (-distance).clamp(min=0)
    ratio = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
    found = torch.where(size < exact, size, far)
    return found + (distance > 0) * half if bidirectional else found


def t5_bias(table: Any, bidirectional: bool = True, max_distance: int = 128) -> ScoreMod:
    """`score + table[bucket(kv - q), h]`: T5's bias, near distances exactly, far ones in logarithmic buckets.

    table: float [buckets, heads], the weight of T5's `relative_attention_bias`. bidirectional: True in T5's
    encoder, False in its decoder. max_distance: tokens from which all distances share the last bucket. T5
    does not scale its scores: use it with `scale=1.0`. Source: T5. Raises FS022, FS023, FS025.

    >>> t5_bias(torch.zeros(32, 8))
    t5_bias(table=<float32[32, 8]>, bidirectional=True, max_distance=128)
    """
    tensor = as_tensor("table", table, [2], float, torch.float32)
    least = 4 if bidirectional else 2
    if tensor.shape[0] < least or (bidirectional and tensor.shape[0] % 2):
        message = f"the table has {tensor.shape[0]} buckets"
        fix = "give [buckets, heads], an even number of buckets, at least 4" if bidirectional else "at least 2"
        raise FlexSpecError("FS022", message, fix=fix, where=user_caret())
    whole("max_distance", max_distance)
    exact = tensor.shape[0] // least
    if max_distance <= exact:
        message = f"max_distance is {max_distance}, and {exact} distances have a bucket of their own"
        raise FlexSpecError("FS025", message, fix=f"give more than {exact}", where=user_caret())
    held = {"t5_table": tensor, "t5_buckets": t5_buckets(tensor.shape[0], bidirectional, max_distance)}
    held["t5_buckets"] = held["t5_buckets"].to(tensor.device)
    bias, bucket = Input("t5_table", ("_", "heads"), "float"), Input("t5_buckets", ("_",))

    def biased(score: Any, h: Any, q: Any, kv: Any) -> Any:
        return score + bias[bucket[(kv - q).clamp(-max_distance, max_distance) + max_distance], h]

    made = score(biased)(**held)
    return made.named("t5_bias", table=tensor, bidirectional=bidirectional, max_distance=max_distance)


def swin_bias(canvas: Canvas, table: Any, window: Any = None) -> ScoreMod:
    """`score + table[index, h]`, the index one for each difference of coordinates, `q - kv` on every axis.

    table: float [prod(2 * window - 1), heads], row-major over the axes, each from `-(window - 1)`: Swin's
    `relative_position_bias_table`. window: positions on each axis, default the whole canvas; larger
    differences take the outermost entry (a mask such as `windows(canvas, window)` drops those pairs). LeViT
    shares entries by absolute difference: expand its table. Source: Swin. Raises FS011, FS022, FS023, FS025,
    FS032.

    >>> swin_bias(Canvas(h=14, w=14), torch.zeros(13 * 13, 3), window=7)
    swin_bias(canvas=canvas(h=14, w=14), table=<float32[169, 3]>, window=7)
    """
    sides = per_axis(on_canvas(canvas, "swin_bias"), "window", canvas.lengths if window is None else window)
    tensor = as_tensor("table", table, [2], float, torch.float32)
    wanted = math.prod(2 * side - 1 for side in sides.values())
    if tensor.shape[0] != wanted:
        message = f"the table has {tensor.shape[0]} rows, the window {wanted} differences"
        raise FlexSpecError("FS022", message, fix=f"give [{wanted}, heads]", where=user_caret())
    bias = Input("swin_bias", ("_", "heads"), "float")

    def biased(score: Any, h: Any, q: Any, kv: Any) -> Any:
        terms: list[Any] = []
        stride = wanted
        for name, length in canvas.axes:
            reach = sides[name] - 1
            stride //= 2 * reach + 1
            difference = getattr(q, name) - getattr(kv, name)
            if sides[name] < length:
                difference = difference.clamp(-reach, reach)
            terms.append((difference + reach) * stride)
        return score + bias[reduce(add, terms), h]

    shown = {"table": tensor} | ({} if window is None else {"window": window})
    return score(canvas=canvas)(biased)(swin_bias=tensor).named("swin_bias", canvas=canvas, **shown)


def distance_scale(f: Callable[..., Any]) -> ScoreMod:
    """`score * f(...)`, f a function of positions and lengths by name (q, kv, h, b, q_len, kv_len, heads,
    batch).

    `distance_scale(lambda kv_len: torch.log(kv_len) / math.log(512))` keeps the entropy of a model trained on
    512 tokens. Source: entropy-preserving scaling (log-length attention). Raises FS001, FS007 to FS010.

    >>> distance_scale(lambda kv_len: torch.log(kv_len)).expr
    score * log(kv_len)
    """
    if not callable(f):
        message = f"f is a {type(f).__name__}"
        fix = "give a function, e.g. lambda kv_len: torch.log(kv_len)"
        raise FlexSpecError("FS001", message, fix=fix, where=user_caret())
    own = read_signature(f)

    def scaled(score: Any, **at: Any) -> Any:
        return score * f(**{name: at[NAMES[name]] for name in own.positions}, **defaults)

    defaults = {name: item.default for name, item in own.parameters.items() if item.default is not None}
    names = ["score", *dict.fromkeys(NAMES[name] for name in own.positions)]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    scaled.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
    return score(scaled).named("distance_scale", f=_Name(own.name))


class _Name(str):
    """A function's name, shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def key_gain(gain: Any) -> ScoreMod:
    """`score + log(gain[h, kv])`: the weight of a key times its gain, before the softmax normalises.

    gain: float [kv_len], [heads, kv_len] or [batch, heads, kv_len], not negative; 0 drops the key. A row
    whose gains are all 0 keeps nothing. Source: ZeroTuning (initial tokens), visual-token emphasis. Raises
    FS022, FS023, FS025.

    >>> key_gain([1.0, 2.0])
    key_gain(gain=<float32[2]>)
    """
    tensor = as_tensor("gain", gain, [1, 2, 3], float, torch.float32)
    if bool((tensor < 0).any()):
        raise FlexSpecError("FS025", "gain has a negative entry", fix="give factors of at least 0", where=user_caret())
    names = ("batch", "heads", "kv_len")[3 - tensor.dim() :]
    source = Input("gain", names, "float")
    readers: dict[int, Callable[..., Any]] = {
        1: lambda score, kv: score + torch.log(source[kv]),
        2: lambda score, h, kv: score + torch.log(source[h, kv]),
        3: lambda score, b, h, kv: score + torch.log(source[b, h, kv]),
    }
    return score(readers[tensor.dim()])(gain=tensor).named("key_gain", gain=tensor)
