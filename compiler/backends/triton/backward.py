"""The backward kernels. `backward_q`: a tile of queries against the keys that its row keeps. `backward_kv`: a tile of
keys against the queries that its column keeps, for each query head of the group. `backward_fused`: the latter, which
adds its share of the queries' gradients to memory, so that it is all: five products for a pair of tiles instead of
seven, in an order that no call repeats.

All compute the weights p again, from the scores and the lse of the forward pass. With do, dlse the gradients of output
and lse: delta = rowsum(do * out) - dlse, ds = p * (do @ v.T - delta), and before a score function its derivative times
that. `deltas` runs first. Full blocks need no mask here either; blocks come as runs or as lists of tiles, and tiles by
pointers or descriptors, as in `forward`.
"""

import triton
import triton.language as tl

from .arithmetic import only
from .forward import (
    LOG2_E,
    bases_of,
    ends_of,
    kept,
    own_tiles,
    place,
    product,
    program,
    score_products,
    scored,
    tile_of,
    tiles_at,
    zeros,
)


@triton.jit
def grown(sums, x, tiles, precision: tl.constexpr):
    """`sums + x @ tiles` for each part of the channels; x in the type of the tiles."""
    x = x.to(tiles[0].dtype)
    found = (product(x, tiles[0], sums[0], precision),)
    if len(sums) > 1:
        found = (found[0], product(x, tiles[1], sums[1], precision))
    return found


@triton.jit
def store_at(tensor, tiles, factor, b, h, first, tokens, length, SIZE: tl.constexpr):
    """Write tiles times a factor, as `tiles_at` reads them."""
    start = 0
    for i in tl.static_range(len(tiles)):
        channels = start + tl.arange(0, tiles[i].shape[1])
        there = (first + tokens < length)[:, None] & (channels < SIZE)[None, :]
        at = tile_of(place(tensor, b, h), tensor, first, tokens, channels)
        tl.store(at, (tiles[i] * factor).to(tensor[0].dtype.element_ty), mask=there)
        start += tiles[i].shape[1]


@triton.jit
def add_at(
    tensor, ds, k_tiles, b, h, first, tokens, length, SIZE: tl.constexpr, PARTIAL: tl.constexpr, precision: tl.constexpr
):
    """Add ds.T @ k to a float32 tensor, as other programs do. Where PARTIAL it may pass the end."""
    start = 0
    for i in tl.static_range(len(k_tiles)):
        channels = start + tl.arange(0, k_tiles[i].shape[1])
        there = (channels < SIZE)[None, :]
        if PARTIAL:
            there = there & (first + tokens < length)[:, None]
        share = turned_product(ds.to(k_tiles[i].dtype), k_tiles[i], precision)
        tl.atomic_add(tile_of(place(tensor, b, h), tensor, first, tokens, channels), share, mask=there, sem="relaxed")
        start += k_tiles[i].shape[1]


@triton.jit
def per_query(rows, b, h, first, m, heads, q_len):
    """float32 [M]: an entry of [batch, heads, q_len] for each query, 0 past the end."""
    return tl.load(rows + (b.to(tl.int64) * heads + h) * q_len + first + m, mask=first + m < q_len, other=0.0)


@triton.jit
def deltas(
    out, dout, lse, dlse, delta, shift, sizes, BLOCK_M: tl.constexpr, V_DIM: tl.constexpr, V_PAD: tl.constexpr,
):  # fmt: skip
    """delta, and shift, the lse in base 2, float32 [batch, heads, q_len]; both are 0 where a query keeps nothing,
    whatever its gradients are.
    """
    heads, _, q_len, _, _ = sizes
    tile, b, h = program(tl.cdiv(q_len, BLOCK_M), heads)
    first = tile * BLOCK_M
    m = tl.arange(0, BLOCK_M)
    out_tile = own_tiles(out, b, h, first, m, q_len, V_DIM, (V_PAD,))[0].to(tl.float32)
    found = tl.sum(out_tile * own_tiles(dout, b, h, first, m, q_len, V_DIM, (V_PAD,))[0].to(tl.float32), 1)
    if dlse is not None:
        found -= per_query(dlse, b, h, first, m, heads, q_len)
    most = per_query(lse, b, h, first, m, heads, q_len)
    nothing = most == float("-inf")
    at = (b.to(tl.int64) * heads + h) * q_len + first + m
    tl.store(delta + at, tl.where(nothing, 0.0, found), mask=first + m < q_len)
    tl.store(shift + at, tl.where(nothing, 0.0, most * LOG2_E), mask=first + m < q_len)


@triton.jit
def turned_product(ds, k_tile, precision: tl.constexpr):
    """ds.T @ k, float32. Of fewer than 64 queries, which four warps multiply at once, its transpose is computed."""
    none = tl.zeros([ds.shape[1], k_tile.shape[1]], tl.float32)
    if ds.shape[1] < 64:
        turned = tl.trans(product(tl.trans(k_tile), ds, tl.trans(none), precision))
    else:
        turned = product(tl.trans(ds), k_tile, none, precision)
    return turned


@triton.jit
def slopes(
    s, dp, scale, shift, delta, keep, b, h, q, kv, values, sums, score: tl.constexpr, dscore: tl.constexpr,
    gather: tl.constexpr,
):  # fmt: skip
    """The weights, and the gradients of the scores before the score function, from products of q and k, and of do and
    v. Tiles are [M, N], or [N, M]; keep: the pairs that are kept, None where all are.
    """
    found, factor = scored(s, scale, b, h, q, kv, values, score)
    p = only(tl.exp2(found * factor - shift), keep)
    ds = p * (dp - delta)
    if gather is not None:
        gather(s * scale, ds, keep, b, h, q, kv, values, sums)
    if dscore is not None:
        ds = only(ds * dscore(s * scale, b, h, q, kv, values), keep)
    return p, ds


@triton.jit
def runs_of(blocks, row):
    """The first run of a row and the one past its last. A list is one run."""
    return (0, 1) if len(blocks) == 2 else (tl.load(blocks[0] + row), tl.load(blocks[0] + row + 1))


@triton.jit
def run_at(blocks, row, run, BLOCK: tl.constexpr):
    """Where a run begins and stops: at tokens, or a list at its entries. And a list's first number."""
    if len(blocks) == 2:
        begin = tl.load(blocks[0] + row)
        found = (begin, tl.load(blocks[0] + row + 1), tl.load(blocks[1] + begin))
    else:
        found = (tl.load(blocks[1] + run) * BLOCK, tl.load(blocks[2] + run) * BLOCK, 0)
    return found


@triton.jit
def tile_in(blocks, at, number, TILE: tl.constexpr):
    """The first token of a tile in a run, and the number of the next in a list: loaded a pass before the tokens that it
    leads to, whose asynchronous loads would wait for it.
    """
    return (number * TILE, tl.load(blocks[1] + at + 1)) if len(blocks) == 2 else (at, number)


@triton.jit
def backward_q(
    q, k, v, dout, dq, shift, delta, rows, kinds, sizes, scale, mask_values, score_values, sums, mask,
    score: tl.constexpr, dscore: tl.constexpr, gather: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
    SIZE: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """As `forward`; kinds: (full, partial), sums: float32 tensors that take the gradients of those that scores read.
    BLOCK, TILE: of queries and keys. SIZE, PARTS: channels of q, k and of v, and the powers of two that hold them.
    """
    heads, group, q_len, kv_len, q_blocks = sizes
    turn, b, h = program(rows[4], heads)
    tile = tl.load(rows[3] + turn)
    row = tl.load(rows[0] + b * rows[1] + h * rows[2]) * q_blocks + tile // (BLOCK[0] // TILE[0])
    first = tile * TILE[0]
    m, n = tl.arange(0, TILE[0]), tl.arange(0, TILE[1])
    q_tiles = own_tiles(q, b, h, first, m, q_len, SIZE[0], PARTS[0])
    do_tiles = own_tiles(dout, b, h, first, m, q_len, SIZE[1], PARTS[1])
    k_bases = bases_of(place(k, b, h // group), k, kv_len, SIZE[0], PARTS[0], TILE[1], TMA)
    v_bases = bases_of(place(v, b, h // group), v, kv_len, SIZE[1], PARTS[1], TILE[1], TMA)
    shift_m = per_query(shift, b, h, first, m, heads, q_len)[:, None]
    delta_m = per_query(delta, b, h, first, m, heads, q_len)[:, None]
    q_idx = (first + m)[:, None]
    sums_q = zeros(TILE[0], PARTS[0])
    for PARTIAL in tl.static_range(2):
        blocks = kinds[PARTIAL]
        if PARTIAL:
            ends = ends_of(b, h, q_idx, mask_values, mask, q_len, kv_len)
        first_run, last_run = runs_of(blocks, row)
        for run in range(first_run, last_run):
            begin, stop, number = run_at(blocks, row, run, BLOCK[1])
            for at in range(begin, stop, 1 if len(blocks) == 2 else TILE[1]):
                start, number = tile_in(blocks, at, number, TILE[1])
                k_tiles = tiles_at(k_bases, k, start, n, q_tiles, SIZE[0], kv_len, PARTIAL, True)
                v_tiles = tiles_at(v_bases, v, start, n, do_tiles, SIZE[1], kv_len, PARTIAL, True)
                s = score_products(q_tiles, k_tiles, PRECISION)
                dp = score_products(do_tiles, v_tiles, PRECISION)
                keep, kv_idx = None, (start + n)[None, :]
                if PARTIAL:
                    keep = kept(ends, start, n[None, :], b, h, q_idx, kv_idx, mask_values, mask)
                places = (b, h, q_idx, kv_idx, score_values, sums)
                _, ds = slopes(s, dp, scale, shift_m, delta_m, keep, *places, score, dscore, gather)
                sums_q = grown(sums_q, ds, k_tiles, PRECISION)
    store_at(dq, sums_q, scale, b, h, first, m, q_len, SIZE[0])


@triton.jit
def over_column(
    q, k, v, dout, dk, dv, dq, shift, delta, rows, kinds, sizes, scale, mask_values, score_values, sums, mask,
    score: tl.constexpr, dscore: tl.constexpr, gather: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
    SIZE: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """As `backward_q`; rows, kinds and the ends of the mask are those of the columns, sizes end with the number of
    their blocks. dq: float32, takes the gradients of q over the scale; None where another kernel makes them.
    """
    heads, group, q_len, kv_len, kv_blocks = sizes
    turn, b, kv_h = program(rows[4], heads // group)
    tile = tl.load(rows[3] + turn)
    first = tile * TILE[1]
    m, n = tl.arange(0, TILE[0]), tl.arange(0, TILE[1])
    k_tiles = own_tiles(k, b, kv_h, first, n, kv_len, SIZE[0], PARTS[0])
    v_tiles = own_tiles(v, b, kv_h, first, n, kv_len, SIZE[1], PARTS[1])
    kv_idx = (first + n)[:, None]
    dk_sums, dv_sums = zeros(TILE[1], PARTS[0]), zeros(TILE[1], PARTS[1])
    for PARTIAL in tl.static_range(2):
        blocks = kinds[PARTIAL]
        for member in range(group):
            h = kv_h * group + member
            q_bases = bases_of(place(q, b, h), q, q_len, SIZE[0], PARTS[0], TILE[0], TMA)
            do_bases = bases_of(place(dout, b, h), dout, q_len, SIZE[1], PARTS[1], TILE[0], TMA)
            row = tl.load(rows[0] + b * rows[1] + h * rows[2]) * kv_blocks + tile // (BLOCK[1] // TILE[1])
            if PARTIAL:
                ends = ends_of(b, h, kv_idx, mask_values, mask, kv_len, q_len)
            first_run, last_run = runs_of(blocks, row)
            for run in range(first_run, last_run):
                begin, stop, number = run_at(blocks, row, run, BLOCK[0])
                for at in range(begin, stop, 1 if len(blocks) == 2 else TILE[0]):
                    start, number = tile_in(blocks, at, number, TILE[0])
                    q_tiles = tiles_at(q_bases, q, start, m, k_tiles, SIZE[0], q_len, PARTIAL, True)
                    do_tiles = tiles_at(do_bases, dout, start, m, v_tiles, SIZE[1], q_len, PARTIAL, True)
                    shift_m = per_query(shift, b, h, start, m, heads, q_len)[None, :]
                    delta_m = per_query(delta, b, h, start, m, heads, q_len)[None, :]
                    s = score_products(k_tiles, q_tiles, PRECISION)
                    dp = score_products(v_tiles, do_tiles, PRECISION)
                    keep, q_idx = None, (start + m)[None, :]
                    if PARTIAL:
                        keep = kept(ends, start, m[None, :], b, h, q_idx, kv_idx, mask_values, mask)
                    places = (b, h, q_idx, kv_idx, score_values, sums)
                    p, ds = slopes(s, dp, scale, shift_m, delta_m, keep, *places, score, dscore, gather)
                    dv_sums = grown(dv_sums, p, do_tiles, PRECISION)
                    dk_sums = grown(dk_sums, ds, q_tiles, PRECISION)
                    if dq is not None:
                        add_at(dq, ds, k_tiles, b, h, start, m, q_len, SIZE[0], PARTIAL, PRECISION)
    store_at(dk, dk_sums, scale, b, kv_h, first, n, kv_len, SIZE[0])
    store_at(dv, dv_sums, 1.0, b, kv_h, first, n, kv_len, SIZE[1])


@triton.jit
def backward_kv(
    q, k, v, dout, dk, dv, shift, delta, rows, kinds, sizes, scale, mask_values, score_values, mask,
    score: tl.constexpr, dscore: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, SIZE: tl.constexpr,
    PARTS: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """The gradients of k and v."""
    over_column(
        q, k, v, dout, dk, dv, None, shift, delta, rows, kinds, sizes, scale, mask_values, score_values, (), mask,
        score, dscore, None, BLOCK, TILE, SIZE, PARTS, PRECISION, TMA,
    )  # fmt: skip


@triton.jit
def backward_fused(
    q, k, v, dout, dk, dv, dq, shift, delta, rows, kinds, sizes, scale, mask_values, score_values, sums, mask,
    score: tl.constexpr, dscore: tl.constexpr, gather: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
    SIZE: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """All gradients; dq and sums are 0 before."""
    over_column(
        q, k, v, dout, dk, dv, dq, shift, delta, rows, kinds, sizes, scale, mask_values, score_values, sums, mask,
        score, dscore, gather, BLOCK, TILE, SIZE, PARTS, PRECISION, TMA,
    )  # fmt: skip
