"""The forward kernel in 8 bits: products of int8 or e4m3, weights and values in float16 or e4m3, sums in float32.

It goes over the tiles that `forward` goes over. The running maximum is rounded up to a whole number in base 2: what was
summed before it is then rescaled exactly, and a weight is rounded to the same multiple of a power of two whatever the
order of the tiles, so that a reference can round as the kernel does. Weights are lifted by a power of two, which fills
the range of their type and leaves with the division by their sum.
"""

import triton
import triton.language as tl

from .forward import INTERPRETED, LN_2, LOG2_E, ends_of, kept, place, program, tile_of

MOST_APART: tl.constexpr = tl.constexpr(128)
"""Channels up to which the sums of a tile stand apart, and are added in float32: a Hopper adds products of e4m3 in
fewer bits (DeepSeek-V3, arXiv 2412.19437, 3.3.2). More would not fit a thread's registers twice."""
LEAST_FACTOR: tl.constexpr = tl.constexpr(1e-37)


@triton.jit
def product(a, b, acc=None):
    """`acc + a @ b` in float32; of int8 it is exact."""
    if INTERPRETED:  # whose dot misreads e4m3
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc).to(tl.float32)


@triton.jit
def narrowed(p, dtype: tl.constexpr):
    """Weights in the type of values, to nearest, ties to even."""
    if INTERPRETED and dtype == tl.float8e4nv:  # which truncates: adding and taking off rounds to so many bits
        power = (p.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        far = tl.maximum(power, 0.015625) * 1572864.0  # 1.5 * 2**23 steps of 2**-3; normal from 2**-6 on
        p = (p + far) - far
    else:
        p = p.to(dtype)
    return p


@triton.jit
def attended(
    state, start, s, factor, offset, top, v_base, v, BLOCK_N: tl.constexpr, V_WIDE: tl.constexpr, LIFT: tl.constexpr
):  # fmt: skip
    """One step of the online softmax: numbers [M, N] that times factor [M] plus offset [M] are scores in base 2, and
    the maximum of those [M].
    """
    acc, total, most = state
    e = tl.arange(0, acc.shape[1])
    v_tile = tl.load(tile_of(v_base, v, start, tl.arange(0, BLOCK_N), e), mask=(e < V_WIDE)[None, :], other=0.0)
    new = tl.maximum(most, tl.ceil(top))
    shift = tl.where(new == float("-inf"), 0.0, new)  # a row without a key so far stays at zero
    p = tl.exp2(s * factor[:, None] - (shift - offset - LIFT)[:, None])
    fade = tl.exp2(most - shift)
    total = total * fade + tl.sum(p, 1)
    p = narrowed(p, v_tile.dtype)
    acc = acc * fade[:, None]
    if acc.shape[1] > MOST_APART:
        acc = product(p, v_tile, acc)
    else:
        acc += product(p, v_tile)
    return acc, total, new


@triton.jit
def over_tile(
    state, start, tile, places, k, v, skip, ends, mask_values, score_values, mask, score: tl.constexpr,
    PARTIAL: tl.constexpr, BLOCK_N: tl.constexpr, KEYS: tl.constexpr, HEAD_WIDE: tl.constexpr, V_WIDE: tl.constexpr,
    LIFT: tl.constexpr,
):  # fmt: skip
    """Attend to the keys from `start` on. tile: (queries, the factor and the offset of each).

    k and v have zeros past the last key. skip: how far below a row's maximum, in base 2, the scores of a tile must lie
    in all rows for it to be left out; its values are not even loaded then.
    """
    queries, factor, offset = tile
    b, h, q_idx, k_base, v_base, k_scale = places
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, queries.shape[1])
    kv_idx = (start + n)[None, :]
    k_tile = tl.load(tile_of(k_base, k, start, n, d), mask=(d < HEAD_WIDE)[None, :], other=0.0)
    s = product(queries, tl.trans(k_tile))
    factor = factor * tl.load(k_scale + start // KEYS)
    if score is None:
        factor = tl.maximum(factor, LEAST_FACTOR)  # 0 times the score of a masked key would be no number
    else:
        s = score(s * factor[:, None] + offset[:, None], b, h, q_idx, kv_idx, score_values)
        factor = tl.full([queries.shape[0]], LOG2_E, tl.float32)
        offset = tl.zeros([queries.shape[0]], tl.float32)
    if PARTIAL:
        keep = kept(ends, start, n[None, :], b, h, q_idx, kv_idx, mask_values, mask)
        s = tl.where(keep, s, float("-inf"))
    top = tl.max(s, 1) * factor + offset
    if skip is None:
        state = attended(state, start, s, factor, offset, top, v_base, v, BLOCK_N, V_WIDE, LIFT)
    else:
        acc, total, most = state
        matters = (top > float("-inf")) & (top >= most - skip)
        if tl.max(matters.to(tl.int32), 0) > 0:
            acc, total, most = attended(
                state, start, s, factor, offset, top, v_base, v, BLOCK_N, V_WIDE, LIFT
            )  # fmt: skip
        state = (acc, total, most)
    return state


@triton.jit
def over_row(
    state, blocks, row, tile, places, k, v, skip, ends, mask_values, score_values, mask, score: tl.constexpr,
    PARTIAL: tl.constexpr, BLOCK_KV: tl.constexpr, BLOCK_N: tl.constexpr, KEYS: tl.constexpr, HEAD_WIDE: tl.constexpr,
    V_WIDE: tl.constexpr, LIFT: tl.constexpr,
):  # fmt: skip
    """`over_tile` for the blocks of a row, which come as `forward.over_list` or `forward.over_runs` has them."""
    first, last = tl.load(blocks[0] + row), tl.load(blocks[0] + row + 1)
    if len(blocks) == 2:
        number = tl.load(blocks[1] + first)
        for entry in range(first, last):
            start = number * BLOCK_N
            number = tl.load(blocks[1] + entry + 1)
            state = over_tile(
                state, start, tile, places, k, v, skip, ends, mask_values, score_values, mask, score,
                PARTIAL, BLOCK_N, KEYS, HEAD_WIDE, V_WIDE, LIFT,
            )  # fmt: skip
    else:
        for run in range(first, last):
            for start in range(tl.load(blocks[1] + run) * BLOCK_KV, tl.load(blocks[2] + run) * BLOCK_KV, BLOCK_N):
                state = over_tile(
                    state, start, tile, places, k, v, skip, ends, mask_values, score_values, mask, score,
                    PARTIAL, BLOCK_N, KEYS, HEAD_WIDE, V_WIDE, LIFT,
                )  # fmt: skip
    return state


@triton.jit
def before_the_first_key(sink, h, whole, V_PAD: tl.constexpr, LIFT: tl.constexpr):
    """The state of the online softmax, whose first column is the sink. whole: what scores lack [M]."""
    total = 0.0 * whole
    most = total - float("inf")
    if sink is not None:
        column = tl.load(sink + h) * LOG2_E - whole
        most = tl.ceil(column)
        total = tl.exp2(column - tl.where(most == float("-inf"), 0.0, most) + LIFT)
    return tl.zeros([whole.shape[0], V_PAD], tl.float32), total, most


@triton.jit
def low_precision(
    q, k, v, scales, out, lse, rows, full, partial, sizes, scale, skip, mask_values, score_values, sink, mask,
    score: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    KEYS: tl.constexpr, HEAD_WIDE: tl.constexpr, V_WIDE: tl.constexpr, V_DIM: tl.constexpr, HEAD_PAD: tl.constexpr,
    V_PAD: tl.constexpr, LIFT: tl.constexpr,
):  # fmt: skip
    """q, k, v and scales (of q, k, v, then the offset): as `Quantised`, tensors that end with whole blocks, of `WIDE`
    channels. skip: see `over_tile`, or None. All else as `forward` takes it.
    """
    heads, group, q_len, kv_len, q_blocks = sizes
    turn, b, h = program(rows[4], heads)
    tile = tl.load(rows[3] + turn)  # the rows with most work first
    row = tl.load(rows[0] + b * rows[1] + h * rows[2]) * q_blocks + tile // (BLOCK_Q // BLOCK_M)
    first_q = tile * BLOCK_M

    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, HEAD_PAD)
    e = tl.arange(0, V_PAD)
    q_idx = (first_q + m)[:, None]
    queries = tl.load(tile_of(place(q, b, h), q, first_q, m, d), mask=(d < HEAD_WIDE)[None, :], other=0.0)
    factor = tl.load(place(scales[0], b, h) + first_q + m) * scale
    offset = tl.load(place(scales[3], b, h) + first_q + m) * scale
    whole = 0.0 * offset
    if score is None:  # scores are in base 2, less a whole number that all keys of a query share
        factor, offset = factor * LOG2_E, offset * LOG2_E
        whole = tl.floor(offset)
        offset -= whole
    state = before_the_first_key(sink, h, whole, V_PAD, LIFT)
    kv_head = h // group
    places = (b, h, q_idx, place(k, b, kv_head), place(v, b, kv_head), place(scales[1], b, kv_head))
    parts = (queries, factor, offset)
    state = over_row(
        state, full, row, parts, places, k, v, skip, None, mask_values, score_values, mask, score,
        False, BLOCK_KV, BLOCK_N, KEYS, HEAD_WIDE, V_WIDE, LIFT,
    )  # fmt: skip
    ends = ends_of(b, h, q_idx, mask_values, mask, q_len, kv_len)
    acc, total, most = over_row(
        state, partial, row, parts, places, k, v, skip, ends, mask_values, score_values, mask, score,
        True, BLOCK_KV, BLOCK_N, KEYS, HEAD_WIDE, V_WIDE, LIFT,
    )  # fmt: skip

    some = total > 0
    v_scale = tl.load(place(scales[2], b, kv_head) + e, mask=e < V_DIM, other=0.0)
    acc = acc / tl.where(some, total, 1.0)[:, None] * v_scale[None, :]
    tl.store(
        tile_of(place(out, b, h), out, first_q, m, e),
        acc.to(out[0].dtype.element_ty),
        mask=(q_idx < q_len) & (e < V_DIM)[None, :],
    )
    found = (most + whole - LIFT + tl.log2(tl.where(some, total, 1.0))) * LN_2
    found = tl.where(some, found, float("-inf"))
    at = lse + (b.to(tl.int64) * heads + h) * q_len + first_q
    tl.store(at + m, found, mask=first_q + m < q_len)
