"""The backward kernels. `backward_q`: a tile of queries against the keys that its row keeps. `backward_kv`: a tile of
keys against the queries that its column keeps, for each query head of the group.

Both compute the weights p again, from the scores and the lse of the forward pass. With do, dlse the gradients of output
and lse: delta = rowsum(do * out) - dlse, ds = p * (do @ v.T - delta), and before a score function its derivative times
that. Full runs need no mask here either.
"""

import triton
import triton.language as tl

from .arithmetic import only
from .forward import LOG2_E, kept, place, product, scored, tile_of


@triton.jit
def tile_at(tensor, b, h, first, tokens, channels, length, SIZE: tl.constexpr, PARTIAL: tl.constexpr):
    """A tile [tokens, channels] from token `first` on. Where PARTIAL it may pass the end, and is 0 there."""
    there = (channels < SIZE)[None, :]
    if PARTIAL:
        there = there & (first + tokens < length)[:, None]
    start = place(tensor, b, h) + tl.cast(first, tl.int64) * tensor[3]
    return tl.load(start + (tokens[:, None] * tensor[3] + channels[None, :] * tensor[4]), mask=there, other=0.0)


@triton.jit
def store_at(tensor, x, b, h, first, tokens, channels, length, SIZE: tl.constexpr):
    there = (first + tokens < length)[:, None] & (channels < SIZE)[None, :]
    at = tile_of(place(tensor, b, h), tensor, first, tokens, channels)
    tl.store(at, x.to(tensor[0].dtype.element_ty), mask=there)


@triton.jit
def per_query(rows, b, h, first, m, heads, q_len):
    """float32 [M]: an entry of [batch, heads, q_len] for each query, 0 past the end."""
    return tl.load(rows + (b.to(tl.int64) * heads + h) * q_len + first + m, mask=first + m < q_len, other=0.0)


@triton.jit
def deltas(out, dout, lse, dlse, delta, sizes, BLOCK_M: tl.constexpr, V_DIM: tl.constexpr, V_PAD: tl.constexpr):
    """delta float32 [batch, heads, q_len]; 0 where a query keeps nothing, whatever its gradients are."""
    heads, _, q_len, _, _ = sizes
    b = tl.program_id(1) // heads
    h = tl.program_id(1) % heads
    first = tl.program_id(0) * BLOCK_M
    m = tl.arange(0, BLOCK_M)
    e = tl.arange(0, V_PAD)
    out_tile = tile_at(out, b, h, first, m, e, q_len, V_DIM, True).to(tl.float32)
    found = tl.sum(out_tile * tile_at(dout, b, h, first, m, e, q_len, V_DIM, True).to(tl.float32), 1)
    if dlse is not None:
        found -= per_query(dlse, b, h, first, m, heads, q_len)
    found = tl.where(per_query(lse, b, h, first, m, heads, q_len) == float("-inf"), 0.0, found)
    tl.store(delta + (b.to(tl.int64) * heads + h) * q_len + first + m, found, mask=first + m < q_len)


@triton.jit
def slopes(
    s,
    dp,
    lse,
    delta,
    b,
    h,
    q,
    kv,
    sizes,
    mask_values,
    score_values,
    sums,
    mask: tl.constexpr,
    score: tl.constexpr,
    dscore: tl.constexpr,
    gather: tl.constexpr,
    PARTIAL: tl.constexpr,
):
    """The weights, and the gradients of the scores before the score function. Tiles are [M, N], or [N, M]."""
    _, _, q_len, kv_len, _ = sizes
    lse = tl.where(lse == float("-inf"), 0.0, lse)  # of a query that keeps nothing
    p = tl.exp2(scored(s, b, h, q, kv, score_values, score, q_len, kv_len) - lse * LOG2_E)
    keep = None
    if PARTIAL:
        keep = kept((q < q_len) & (kv < kv_len), b, h, q, kv, mask_values, mask, q_len, kv_len)
        q = tl.minimum(q, q_len - 1)
        kv = tl.minimum(kv, kv_len - 1)
    p = only(p, keep)
    ds = p * (dp - delta)
    if gather is not None:
        gather(s, ds, keep, b, h, q, kv, score_values, sums)
    if dscore is not None:
        ds = only(ds * dscore(s, b, h, q, kv, score_values), keep)
    return p, ds


@triton.jit
def backward_q(
    q,
    k,
    v,
    dout,
    dq,
    lse,
    delta,
    rows,
    runs,
    sizes,
    scale,
    mask_values,
    score_values,
    sums,
    mask: tl.constexpr,
    score: tl.constexpr,
    dscore: tl.constexpr,
    gather: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """As `forward`; runs: (full, partial), sums: float32 tensors that take the gradients of those that scores read.
    BLOCK, TILE: of queries and keys. SIZE, PAD: channels of q, k and of v, and the powers of two that hold them.
    """
    heads, group, q_len, kv_len, q_blocks = sizes
    tile = tl.load(rows[3] + tl.program_id(0))
    b = tl.program_id(1) // heads
    h = tl.program_id(1) % heads
    row = tl.load(rows[0] + b * rows[1] + h * rows[2]) * q_blocks + tile // (BLOCK[0] // TILE[0])
    first = tile * TILE[0]
    m, n = tl.arange(0, TILE[0]), tl.arange(0, TILE[1])
    d, e = tl.arange(0, PAD[0]), tl.arange(0, PAD[1])
    q_tile = tile_at(q, b, h, first, m, d, q_len, SIZE[0], True)
    do_tile = tile_at(dout, b, h, first, m, e, q_len, SIZE[1], True)
    lse_m = per_query(lse, b, h, first, m, heads, q_len)[:, None]
    delta_m = per_query(delta, b, h, first, m, heads, q_len)[:, None]
    at_m = (first + m)[:, None]
    none = tl.zeros(TILE, tl.float32)
    acc = tl.zeros(q_tile.shape, tl.float32)
    for PARTIAL in tl.static_range(2):
        run_of, begins, ends = runs[PARTIAL]
        for run in range(tl.load(run_of + row), tl.load(run_of + row + 1)):
            for start in range(tl.load(begins + run) * BLOCK[1], tl.load(ends + run) * BLOCK[1], TILE[1]):
                k_tile = tile_at(k, b, h // group, start, n, d, kv_len, SIZE[0], PARTIAL)
                v_tile = tile_at(v, b, h // group, start, n, e, kv_len, SIZE[1], PARTIAL)
                s = product(q_tile, tl.trans(k_tile), none, PRECISION) * scale
                dp = product(do_tile, tl.trans(v_tile), none, PRECISION)
                at = (b, h, at_m, (start + n)[None, :])
                given = (sizes, mask_values, score_values, sums)
                _, ds = slopes(s, dp, lse_m, delta_m, *at, *given, mask, score, dscore, gather, PARTIAL)
                acc = product(ds.to(k_tile.dtype), k_tile, acc, PRECISION)
    store_at(dq, acc * scale, b, h, first, m, d, q_len, SIZE[0])


@triton.jit
def backward_kv(
    q,
    k,
    v,
    dout,
    dk,
    dv,
    lse,
    delta,
    rows,
    runs,
    sizes,
    scale,
    mask_values,
    score_values,
    mask: tl.constexpr,
    score: tl.constexpr,
    dscore: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """As `backward_q`; rows and runs are those of the columns, sizes end with the number of their blocks."""
    heads, group, q_len, kv_len, kv_blocks = sizes
    tile = tl.load(rows[3] + tl.program_id(0))
    b = tl.program_id(1) // (heads // group)
    kv_h = tl.program_id(1) % (heads // group)
    first = tile * TILE[1]
    m, n = tl.arange(0, TILE[0]), tl.arange(0, TILE[1])
    d, e = tl.arange(0, PAD[0]), tl.arange(0, PAD[1])
    k_tile = tile_at(k, b, kv_h, first, n, d, kv_len, SIZE[0], True)
    v_tile = tile_at(v, b, kv_h, first, n, e, kv_len, SIZE[1], True)
    at_n = (first + n)[:, None]
    none = tl.trans(tl.zeros(TILE, tl.float32))
    dk_acc = tl.zeros(k_tile.shape, tl.float32)
    dv_acc = tl.zeros(v_tile.shape, tl.float32)
    for member in range(group):
        h = kv_h * group + member
        row = tl.load(rows[0] + b * rows[1] + h * rows[2]) * kv_blocks + tile // (BLOCK[1] // TILE[1])
        for PARTIAL in tl.static_range(2):
            run_of, begins, ends = runs[PARTIAL]
            for run in range(tl.load(run_of + row), tl.load(run_of + row + 1)):
                for start in range(tl.load(begins + run) * BLOCK[0], tl.load(ends + run) * BLOCK[0], TILE[0]):
                    q_tile = tile_at(q, b, h, start, m, d, q_len, SIZE[0], PARTIAL)
                    do_tile = tile_at(dout, b, h, start, m, e, q_len, SIZE[1], PARTIAL)
                    lse_m = per_query(lse, b, h, start, m, heads, q_len)[None, :]
                    delta_m = per_query(delta, b, h, start, m, heads, q_len)[None, :]
                    s = product(k_tile, tl.trans(q_tile), none, PRECISION) * scale
                    dp = product(v_tile, tl.trans(do_tile), none, PRECISION)
                    at = (b, h, (start + m)[None, :], at_n)
                    given = (sizes, mask_values, score_values, ())
                    p, ds = slopes(s, dp, lse_m, delta_m, *at, *given, mask, score, dscore, None, PARTIAL)
                    dv_acc = product(p.to(do_tile.dtype), do_tile, dv_acc, PRECISION)
                    dk_acc = product(ds.to(q_tile.dtype), q_tile, dk_acc, PRECISION)
    store_at(dk, dk_acc * scale, b, kv_h, first, n, d, kv_len, SIZE[0])
    store_at(dv, dv_acc, b, kv_h, first, n, e, kv_len, SIZE[1])
