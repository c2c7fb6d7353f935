"""q, k and v in 8 bits, each read and written once: the numbers and scales of `quantised`, none rounded otherwise.

What needs all tokens of a head is given: the mean of keys and the scales of values.
"""

import triton
import triton.language as tl

from .forward import place, program, tile_of
from .low_precision import narrowed


@triton.jit
def to_nearest(x, dtype: tl.constexpr):
    """float32 as int8, e4m3 or float16; ties to even."""
    if dtype == tl.int8:
        return ((x + 12582912.0) - 12582912.0).to(tl.int8)  # 1.5 * 2**23, whose last bit is 1
    else:
        return narrowed(x, dtype).to(dtype)


@triton.jit
def scale_of(largest, MOST: tl.constexpr):
    """That brings the largest number to MOST; 1 where all are 0."""
    scale = tl.div_rn(largest, tl.full(largest.shape, MOST, tl.float32))
    return tl.where(scale == 0, 1.0, scale)


@triton.jit
def floats(x, b, h, start, n, d, length, CHANNELS: tl.constexpr):
    """A tile [tokens, channels] in float32, zeros past both ends."""
    inside = (start + n < length)[:, None] & (d < CHANNELS)[None, :]
    return tl.load(tile_of(place(x, b, h), x, start, n, d), mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store(x, numbers, b, h, start, n, d, tokens, WIDE: tl.constexpr):
    inside = (start + n < tokens)[:, None] & (d < WIDE)[None, :]
    x = to_nearest(x, numbers[0].dtype.element_ty)
    tl.store(tile_of(place(numbers, b, h), numbers, start, n, d), x, mask=inside)


@triton.jit
def quantise_queries(
    q, mean, numbers, scale, offset, sizes, CHANNELS: tl.constexpr, WIDE: tl.constexpr, PAD: tl.constexpr,
    ROWS: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """ROWS queries. q, mean (of keys), numbers, scale, offset: tensors, all but the first as in `Quantised`, which have
    WIDE channels and whole blocks of tokens. sizes: (tiles, heads, group, q_len, tokens with those of whole blocks).
    """
    tiles, heads, group, q_len, tokens = sizes
    tile, b, h = program(tiles, heads)
    n, d = tl.arange(0, ROWS), tl.arange(0, PAD)
    start = tile * ROWS
    x = floats(q, b, h, start, n, d, q_len, CHANNELS)
    row = tl.load(place(mean, b, h // group) + d * mean[4], mask=d < CHANNELS, other=0.0)
    factor = scale_of(tl.max(tl.abs(x), 1), MOST)
    store(tl.div_rn(x, tl.zeros_like(x) + factor[:, None]), numbers, b, h, start, n, d, tokens, WIDE)
    there = start + n < tokens
    tl.store(place(scale, b, h) + start + n, factor, mask=there)
    tl.store(place(offset, b, h) + start + n, tl.sum(x * row[None, :], 1), mask=there)


@triton.jit
def quantise_keys(
    k, v, mean, numbers, k_scale, values, v_scale, sizes, CHANNELS: tl.constexpr, WIDE: tl.constexpr,
    PAD: tl.constexpr, V_CHANNELS: tl.constexpr, V_WIDE: tl.constexpr, V_PAD: tl.constexpr, KEYS: tl.constexpr,
    MOST: tl.constexpr,
):  # fmt: skip
    """A block of keys, which share a scale, and its values. k, v, mean, numbers and k_scale (of keys), values, v_scale:
    tensors, the last three as in `Quantised`. sizes: (blocks, key heads, kv_len).
    """
    blocks, heads, kv_len = sizes
    block, b, h = program(blocks, heads)
    n, d, e = tl.arange(0, KEYS), tl.arange(0, PAD), tl.arange(0, V_PAD)
    start = block * KEYS
    row = tl.load(place(mean, b, h) + d * mean[4], mask=d < CHANNELS, other=0.0)
    x = floats(k, b, h, start, n, d, kv_len, CHANNELS) - row[None, :]
    x = tl.where((start + n < kv_len)[:, None], x, 0.0)
    factor = scale_of(tl.max(tl.max(tl.abs(x), 1), 0), MOST)
    store(tl.div_rn(x, tl.zeros_like(x) + factor), numbers, b, h, start, n, d, start + KEYS, WIDE)
    tl.store(place(k_scale, b, h) + block, factor)
    y = floats(v, b, h, start, n, e, kv_len, V_CHANNELS)
    column = tl.load(place(v_scale, b, h) + e, mask=e < V_CHANNELS, other=1.0)
    store(tl.div_rn(y, tl.zeros_like(y) + column[None, :]), values, b, h, start, n, e, start + KEYS, V_WIDE)
