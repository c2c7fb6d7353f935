"""Windows, sinks, chunks and strides of a plain sequence.

`q` and `kv` are token positions. A parameter that is not bound stays open and is given when the pattern runs:
`causal_window.dense(8, window=3)`. Every window pattern says how many keys an interior query keeps, because
libraries disagree by one.
"""

from __future__ import annotations

from typing import Any

from pydantic import NonNegativeInt, PositiveInt

from ..mask import Mask, mask
from .about import pattern

__all__: list[str] = [
    "everything",
    "nothing",
    "causal",
    "sliding_window",
    "causal_window",
    "sink",
    "sink_window",
    "dilated_window",
    "global_tokens",
    "prefix_lm",
    "chunked",
    "chunk_causal",
    "power_window",
    "log_sparse",
    "strided",
    "fixed",
    "hidden_decoding",
]


@pattern("everything()", "every pair")
def everything() -> Mask:
    """Every query keeps every key.

    >>> everything().dense(2).int()[0, 0].tolist()
    [[1, 1], [1, 1]]
    """
    return Mask.constant(True)


@pattern("nothing()", "no pair")
def nothing() -> Mask:
    """No query keeps any key; a row without keys has output 0.

    >>> nothing().dense(2).int()[0, 0].tolist()
    [[0, 0], [0, 0]]
    """
    return Mask.constant(False)


@mask
@pattern("causal()", "keys up to the query, moved by an offset")
def causal(q: Any, kv: Any, *, offset: int = 0) -> Any:
    """Keys up to the query's own position plus `offset`.

    offset: tokens, any integer. `kv_len - q_len` gives the lower-right causal mask that decoding and chunked prefill
        need; PyTorch's `is_causal=True` is the upper-left one, 0.

    Raises FS025 (offset is no integer).

    >>> causal().dense(3).int()[0, 0].tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    >>> causal(2).dense(1, 3).int()[0, 0].tolist()
    [[1, 1, 1]]
    """
    return q + offset >= kv


@mask
@pattern("sliding_window(512)", "keys at most `window` away on both sides", picture="fs.sliding_window(48)")
def sliding_window(q: Any, kv: Any, *, window: NonNegativeInt) -> Any:
    """Keys at most `window` tokens away, on both sides: an interior query keeps `2 * window + 1` keys.

    window: tokens on each side, at least 0.

    Source: Longformer, whose configuration counts `2 * window`. Hugging Face's bidirectional overlay means
    the same `window`. Raises FS025 (window).

    >>> sliding_window(1).dense(4).int()[0, 0].tolist()
    [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    """
    return abs(q - kv) <= window


@mask
@pattern(
    "causal_window(1024)",
    "the last `window` keys, the query's own included",
    picture="fs.causal_window(96)",
)
def causal_window(q: Any, kv: Any, *, window: PositiveInt) -> Any:
    """The last `window` keys, the query's own included: an interior query keeps `window` keys.

    window: keys, at least 1.

    Source: Mistral 7B. Hugging Face's and NATTEN's causal window `w` is `causal_window(w)`; the left window
    `w` of attention-gym, FlashAttention, MagiAttention and FlashMask keeps one more: `causal_window(w + 1)`.
    Raises FS025 (window).

    >>> causal_window(2).dense(4).int()[0, 0].tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    """
    return (q >= kv) & (q - kv < window)


@mask
@pattern("sink(4)", "the first `n` keys", picture="fs.sink(16)")
def sink(kv: Any, *, n: NonNegativeInt) -> Any:
    """The first `n` keys, for every query, also for those before them: a query keeps `n` keys.

    n: keys, at least 0.

    Source: StreamingLLM. It is not causal by itself; `sink_window` is. Raises FS025 (n).

    >>> sink(2).dense(3).int()[0, 0].tolist()
    [[1, 1, 0], [1, 1, 0], [1, 1, 0]]
    """
    return kv < n


@mask
@pattern(
    "sink_window(sink=4, window=1024)",
    "the first `sink` and the last `window` keys",
    picture="fs.sink_window(sink=4, window=96)",
)
def sink_window(q: Any, kv: Any, *, sink: NonNegativeInt, window: PositiveInt) -> Any:
    """Causal: the first `sink` keys and the last `window` keys; an interior query keeps `sink + window` keys.

    sink: keys, at least 0.
    window: keys, the query's own included, at least 1.

    Source: StreamingLLM, whose cache evicts by the same count but numbers positions inside the cache. Raises
    FS025 (sink, window).

    >>> sink_window(sink=1, window=2).dense(4).int()[0, 0].tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]]
    """
    return (q >= kv) & ((q - kv < window) | (kv < sink))


@mask
@pattern(
    "dilated_window(window=64, dilation=4)",
    "every `dilation`-th key on both sides",
    picture="fs.dilated_window(window=6, dilation=16)",
)
def dilated_window(q: Any, kv: Any, *, window: NonNegativeInt, dilation: PositiveInt) -> Any:
    """Every `dilation`-th key on both sides, `window` of them each: an interior query keeps `2 * window + 1`
    keys.

    window: kept keys on each side, at least 0.
    dilation: tokens from one kept key to the next, at least 1.

    Source: Longformer; DiNA in one dimension, there with windows pushed inwards at the borders
    (`neighborhood`). attention-gym's `generate_dilated_sliding_window(w, d)` gives the reach in tokens:
    `dilated_window(w // d, d)`. Raises FS025 (window, dilation).

    >>> dilated_window(1, 2).dense(5).int()[0, 0].tolist()[2]
    [1, 0, 1, 0, 1]
    """
    return (abs(q - kv) <= window * dilation) & ((q - kv) % dilation == 0)


@mask
@pattern("global_tokens(16)", "the first `n` tokens see all and are seen by all", picture="fs.global_tokens(24)")
def global_tokens(q: Any, kv: Any, *, n: NonNegativeInt) -> Any:
    """The first `n` tokens see all and are seen by all; a later query keeps `n` keys.

    n: tokens, at least 0.

    Source: Longformer and BigBird, which add it to a window: `sliding_window(w) | global_tokens(n)`. Raises
    FS025 (n).

    >>> global_tokens(1).dense(3).int()[0, 0].tolist()
    [[1, 1, 1], [1, 0, 0], [1, 0, 0]]
    """
    return (q < n) | (kv < n)


@mask
@pattern("prefix_lm(256)", "causal, and the prefix in both directions", picture="fs.prefix_lm(128)")
def prefix_lm(q: Any, kv: Any, *, prefix: NonNegativeInt) -> Any:
    """Causal, but the first `prefix` tokens see each other in both directions.

    prefix: tokens, at least 0.

    Source: T5's prefix language model. Raises FS025 (prefix).

    >>> prefix_lm(2).dense(3).int()[0, 0].tolist()
    [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    """
    return (q >= kv) | (kv < prefix)


@mask
@pattern("chunked(512)", "the query's chunk", picture="fs.chunked(100)")
def chunked(q: Any, kv: Any, *, chunk: PositiveInt) -> Any:
    """Tokens of the same chunk see each other, in both directions: a query keeps `chunk` keys.

    chunk: tokens, at least 1.

    Source: Mega, TNL's diagonal attention; Llama 4's is `chunked(chunk) & causal()`. Raises FS025 (chunk).

    >>> chunked(2).dense(3).int()[0, 0].tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """
    return q // chunk == kv // chunk


@mask
@pattern("chunk_causal(512)", "the query's chunk and those before", picture="fs.chunk_causal(64)")
def chunk_causal(q: Any, kv: Any, *, chunk: PositiveInt) -> Any:
    """Causal between chunks, everything inside one: a query of chunk `c` keeps `(c + 1) * chunk` keys.

    chunk: tokens, at least 1.

    Source: MotionStream, ARFlow (its mask), block diffusion. Raises FS025 (chunk).

    >>> chunk_causal(2).dense(4).int()[0, 0].tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    """
    return q // chunk >= kv // chunk


@mask
@pattern(
    "power_window(window=256, block=64)",
    "a window and blocks 1, 2, 4, ... back",
    picture="fs.power_window(window=32, block=16)",
)
def power_window(q: Any, kv: Any, *, window: PositiveInt, block: PositiveInt) -> Any:
    """Causal: the last `window` keys, and the blocks that lie a power of two (1, 2, 4, ...) blocks back.

    An interior query of block `B` keeps about `window + block * (1 + floor(log2(B)))` keys, fewer where the
    window reaches into those blocks.

    window: keys, the query's own included, at least 1.
    block: tokens, at least 1.

    Source: PowerAttention. Raises FS025 (window, block).

    >>> power_window(window=1, block=1).dense(6).int()[0, 0].tolist()[5]
    [0, 1, 0, 1, 1, 1]
    """
    back = q // block - kv // block
    power = (back > 0) & (back & (back - 1) == 0)
    return (q >= kv) & ((q - kv < window) | power)


@mask
@pattern("log_sparse()", "keys 0, 1, 2, 4, 8, ... back")
def log_sparse(q: Any, kv: Any) -> Any:
    """Causal: the query's own key and those 1, 2, 4, 8, ... back: query `q > 0` keeps `2 + floor(log2(q))`
    keys.

    Source: LogSparse Transformer, Combiner-Logsparse. The paper's variants with a local window and restarts
    are `log_sparse() | causal_window(w)` and `log_sparse() & chunked(n)`.

    >>> log_sparse().dense(6).int()[0, 0].tolist()[5]
    [0, 1, 0, 1, 1, 1]
    """
    back = q - kv
    return (back >= 0) & (back & (back - 1) == 0)


@mask
@pattern("strided(64)", "the last `stride` keys and every `stride`-th before")
def strided(q: Any, kv: Any, *, stride: PositiveInt) -> Any:
    """Causal: the last `stride` keys and every `stride`-th before: query `q` keeps about `stride + q //
    stride`.

    stride: tokens, at least 1.

    Source: Sparse Transformer, both factorised heads in one mask; its first head also keeps the key exactly
    `stride` back, as this does. Raises FS025 (stride).

    >>> strided(2).dense(6).int()[0, 0].tolist()[5]
    [0, 1, 0, 1, 1, 1]
    """
    return (q >= kv) & ((q - kv < stride) | ((q - kv) % stride == 0))


@mask
@pattern("fixed(stride=64, summary=8)", "the query's chunk and the last keys of each before")
def fixed(q: Any, kv: Any, *, stride: PositiveInt, summary: NonNegativeInt) -> Any:
    """Causal: the query's own chunk of `stride`, and the last `summary` keys of every chunk before.

    Query `q` keeps `q % stride + 1 + summary * (q // stride)` keys for `summary <= stride`; with a larger
    `summary` it is plain causal.

    stride: tokens of a chunk, at least 1.
    summary: keys of each chunk before, at least 0.

    Source: Sparse Transformer, both factorised heads in one mask. Raises FS025 (stride, summary).

    >>> fixed(stride=3, summary=1).dense(6).int()[0, 0].tolist()[4]
    [0, 0, 1, 1, 1, 0]
    """
    return (q >= kv) & ((q // stride == kv // stride) | (kv % stride >= stride - summary))


@mask
@pattern(
    "hidden_decoding(2)",
    "repeated tokens; only last copies are seen later",
    picture="fs.hidden_decoding(4)",
)
def hidden_decoding(q: Any, kv: Any, *, repeat: PositiveInt) -> Any:
    """Each token stands `repeat` times in a row; only its last copy is seen by later tokens.

    Copy `j` of token `n` keeps `n + j + 1` keys: the last copies of earlier tokens, and its own copies up to
    `j`.

    repeat: copies of each token, at least 1.

    Source: PHD (parallel hidden decoding). Raises FS025 (repeat).

    >>> hidden_decoding(2).dense(4).int()[0, 0].tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    """
    earlier = (kv % repeat == repeat - 1) & (kv // repeat < q // repeat)
    own = (kv // repeat == q // repeat) & (kv % repeat <= q % repeat)
    return earlier | own
