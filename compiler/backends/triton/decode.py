"""The decode kernels: few queries against many keys, the keys shared out equally among the programs.

A row is one batch and query heads that share a key head and a map: all their queries are one tile. The kept tiles of
keys of all rows are one list, cut into parts of equal length; what a part holds of one row is a piece. `decode` attends
to its part piece by piece, `merge` adds up the pieces of a row.
"""

import triton
import triton.language as tl

from .forward import LEAST, LN_2, LOG2_E, ends_of, over_runs, place


@triton.jit
def in_pages(tensor, table, b, last, PAGE: tl.constexpr):
    """A tensor with what `tile_of` needs to find its pages, if it has any; its second stride is that of pages then."""
    if PAGE > 0:
        entries = table[0] + b.to(tl.int64) * table[1]
        found = (tensor[0], tensor[1], tensor[2], tensor[3], tensor[4], entries, last // PAGE, PAGE)
    else:
        found = tensor
    return found


@triton.jit
def in_8_bits(stored, table, tile, b, batch, kv_head, last, PAGE: tl.constexpr):
    """The last of `over_tile`'s places, with the product of each query and the mean of all keys; nothing of floats."""
    if stored is None:
        found = ()
    else:
        k_scale, v_scale, mean = stored
        lacking = 0.0
        if mean is not None:
            d = tl.arange(0, tile.shape[1])
            row = tl.load(place(mean, b, kv_head) + d * mean[4], mask=d < mean[5], other=0.0)
            lacking = tl.sum(tile.to(tl.float32) * row[None, :], 1)[:, None]
        k_in, v_in = in_pages(k_scale, table, b, last, PAGE), in_pages(v_scale, table, b, last, PAGE)
        found = ((place(k_scale, batch, kv_head), k_in), (place(v_scale, batch, kv_head), v_in), lacking)
    return found


@triton.jit
def decode(
    q, k, v, stored, table, pieces, work, full, partial, sizes, scale, mask_values, score_values, mask,
    score: tl.constexpr, PAGE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr,
    V_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, V_PAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """q, k, v: tensors. stored: None, or where k and v are in 8 bits the scales of both, then the mean of keys with the
    number of its channels, or None. table: (page table, its stride), read if PAGE, the tokens of a page, is not 0.
    pieces: what is written, float32 (sums [pieces, BLOCK_M, V_DIM], weights and base-2 maxima [pieces, BLOCK_M]).
    work: (first piece of each part, row of each piece). full, partial: (first, start, stop) of the runs of each piece,
    in tiles of keys. sizes: (heads, group, q_len, kv_len, query heads in a row).
    """
    heads, group, q_len, kv_len, packed = sizes
    part = tl.program_id(0)
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, HEAD_PAD)
    e = tl.arange(0, V_PAD)
    q_idx = (m % q_len)[:, None]
    there = (m < packed * q_len)[:, None]
    for piece in range(tl.load(work[0] + part), tl.load(work[0] + part + 1)):
        row = tl.load(work[1] + piece)
        b = row // (heads // packed)
        first_h = row % (heads // packed) * packed
        h = first_h + tl.minimum(m // q_len, packed - 1)[:, None]
        at = place(q, b, h) + q_idx * q[3] + d[None, :] * q[4]
        tiles = (tl.load(at, mask=there & (d < HEAD_DIM)[None, :], other=0.0),)
        state = (
            (tl.zeros([BLOCK_M, V_PAD], tl.float32),),
            tl.zeros([BLOCK_M], tl.float32),
            tl.full([BLOCK_M], LEAST, tl.float32),
            (),
        )
        batch = b if PAGE == 0 else b * 0  # pages belong to no batch
        kv_head = first_h // group
        scales = in_8_bits(stored, table, tiles[0], b, batch, kv_head, kv_len - 1, PAGE)
        places = (b, h, q_idx, (place(k, batch, kv_head),), (place(v, batch, kv_head),), scales)
        k_in, v_in = in_pages(k, table, b, kv_len - 1, PAGE), in_pages(v, table, b, kv_len - 1, PAGE)
        state = over_runs(
            state, full, piece, tiles, places, k_in, v_in, kv_len, scale, None, mask_values, score_values, mask, score,
            False, BLOCK_N, BLOCK_N, HEAD_DIM, V_DIM, PRECISION,
        )  # fmt: skip
        ends = ends_of(b, h, q_idx, mask_values, mask, q_len, kv_len)
        accs, total, most, _ = over_runs(
            state, partial, piece, tiles, places, k_in, v_in, kv_len, scale, ends, mask_values, score_values, mask,
            score, True, BLOCK_N, BLOCK_N, HEAD_DIM, V_DIM, PRECISION,
        )  # fmt: skip
        slot = tl.cast(piece, tl.int64) * BLOCK_M + m
        tl.store(pieces[0] + slot[:, None] * V_DIM + e[None, :], accs[0], mask=there & (e < V_DIM)[None, :])
        tl.store(pieces[1] + slot, total)
        tl.store(pieces[2] + slot, most)


@triton.jit
def merge(
    pieces, first, out, lse, sink, sizes, BLOCK_M: tl.constexpr, V_DIM: tl.constexpr, V_PAD: tl.constexpr,
    PIECES: tl.constexpr,
):  # fmt: skip
    """Output and lse of one query from the pieces of its row. pieces, sizes: as in `decode`; first: first piece of each
    row; out: a tensor; lse: float32 [batch, heads, q_len] in nats. PIECES: how many are read at once.
    """
    heads, group, q_len, kv_len, packed = sizes
    row = tl.program_id(0)
    m = tl.program_id(1)
    b = row // (heads // packed)
    h = row % (heads // packed) * packed + m // q_len
    e = tl.arange(0, V_PAD)
    acc = tl.zeros([V_PAD], tl.float32)
    total = 0.0
    most = float("-inf")
    if sink is not None:  # the first column
        most = tl.load(sink + h) * LOG2_E
        total = 1.0
    last = tl.load(first + row + 1)
    for start in range(tl.load(first + row), last, PIECES):
        piece = start + tl.arange(0, PIECES)
        there = piece < last
        slot = tl.cast(piece, tl.int64) * BLOCK_M + m
        tops = tl.load(pieces[2] + slot, mask=there, other=float("-inf"))
        new = tl.maximum(most, tl.max(tops, 0))
        shift = tl.where(new == float("-inf"), 0.0, new)
        fade = tl.exp2(most - shift)
        weight = tl.exp2(tops - shift)
        sums = tl.load(
            pieces[0] + slot[:, None] * V_DIM + e[None, :], mask=there[:, None] & (e < V_DIM)[None, :], other=0.0
        )
        total = total * fade + tl.sum(tl.load(pieces[1] + slot, mask=there, other=0.0) * weight, 0)
        acc = acc * fade + tl.sum(sums * weight[:, None], 0)
        most = new

    some = total > 0
    total = tl.where(some, total, 1.0)
    at = place(out, b, h) + (m % q_len) * out[3] + e * out[4]
    tl.store(at, (acc / total).to(out[0].dtype.element_ty), mask=e < V_DIM)
    found = tl.where(some, (most + tl.log2(total)) * LN_2, float("-inf"))
    tl.store(lse + (b.to(tl.int64) * heads + h) * q_len + m % q_len, found)
