"""The forward kernel: one tile of queries against the blocks of keys that its row keeps.

Rows come as runs of blocks, where no index is loaded inside a run, or as lists of tiles, where one pipeline goes over
all that a row keeps: each map has the one that is faster for it (`rows`). Full blocks need no mask. The mask and the
score are functions generated from the spec and passed in: a score is one function, a mask `MaskFunctions`, any of them
None. `first` and `end` bound the keys of a query (in `backward_kv` the queries of a key), `rest` is asked for each
pair. Tensors are tuples (pointer, strides of batch, head, token, channel).

On NVIDIA's GPUs from sm_90 on, a descriptor made here takes the place of the pointers to keys and values: one thread
asks for a tile (TMA), which needs neither addresses nor checks. Then p v may also come a pass late, so that it runs
while the next tile's exponentials are taken.
"""

import os

import triton
import triton.language as tl

INTERPRETED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LEAST: tl.constexpr = tl.constexpr(-3.4028234663852886e38)
"""The least float32: the maximum of no scores. Differences to it are numbers, those to -inf need not be."""
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def program(tiles, heads):
    """Which tile of the schedule, batch and head this program has. The grid is one axis, as CUDA's others stop at
    65,535; the tiles of a (batch, head) follow one another.
    """
    pair = tl.program_id(0) // tiles
    return tl.program_id(0) % tiles, pair // heads, pair % heads


@triton.jit
def place(tensor, b, h):
    """The start of one (batch, head), in 64 bits."""
    return tensor[0] + b.to(tl.int64) * tensor[1] + h.to(tl.int64) * tensor[2]


@triton.jit
def tile_of(base, tensor, first, tokens, channels, FIRST_ALONE: tl.constexpr = False):
    """Pointers [tokens, channels] to a tile that starts at token `first`; only the start needs 64 bits. FIRST_ALONE:
    it is added to the base by itself. The sum is the same; which way takes fewer registers depends on the loop.

    A tensor in pages has more: the page of each so many tokens, the last entry that may be read, the tokens of a page.
    """
    across = channels[None, :] * tensor[4]
    if len(tensor) > 5:
        at = first + tokens
        page = tl.load(tensor[5] + tl.minimum(at // tensor[7], tensor[6])).to(tl.int64)
        pointers = base + (page * tensor[1] + (at % tensor[7]).to(tl.int64) * tensor[3])[:, None] + across
    elif FIRST_ALONE:
        pointers = base + tl.cast(first, tl.int64) * tensor[3] + (tokens[:, None] * tensor[3] + across)
    else:
        pointers = base + (tl.cast(first, tl.int64) * tensor[3] + tokens[:, None] * tensor[3]) + across
    return pointers


@triton.jit
def tile_at(
    base, tensor, start, tokens, channels, CHANNELS: tl.constexpr, length, RAGGED: tl.constexpr,
    FIRST_ALONE: tl.constexpr = False,
):  # fmt: skip
    """The tile [tokens, channels] from token `start` on; zeros from CHANNELS on, where RAGGED from `length` on too.
    base: a pointer, or a descriptor of these channels, which knows both ends.
    """
    if isinstance(base, tl.tensor_descriptor):
        tile = base.load([start, 0])
    else:
        inside = (channels < CHANNELS)[None, :]
        if RAGGED:
            inside = inside & (start + tokens < length)[:, None]
        tile = tl.load(tile_of(base, tensor, start, tokens, channels, FIRST_ALONE), mask=inside, other=0.0)
    return tile


@triton.jit
def tiles_at(
    bases, tensor, start, tokens, like, CHANNELS: tl.constexpr, length, RAGGED: tl.constexpr,
    FIRST_ALONE: tl.constexpr = False,
):  # fmt: skip
    """`tile_at` for each part of the channels, as `like` is parted: in one, or in two."""
    channels = tl.arange(0, like[0].shape[1])
    tiles = (tile_at(bases[0], tensor, start, tokens, channels, CHANNELS, length, RAGGED, FIRST_ALONE),)
    if len(like) > 1:
        channels = like[0].shape[1] + tl.arange(0, like[1].shape[1])
        tiles = (tiles[0], tile_at(bases[1], tensor, start, tokens, channels, CHANNELS, length, RAGGED, FIRST_ALONE))
    return tiles


@triton.jit
def bases_of(
    base, tensor, length, CHANNELS: tl.constexpr, PARTS: tl.constexpr, TOKENS: tl.constexpr, TMA: tl.constexpr
):
    """What `tile_at` takes for each part of the channels: a pointer, or with TMA a descriptor that brings TOKENS."""
    if TMA and len(PARTS) > 1:
        first = tl.make_tensor_descriptor(base, [length, PARTS[0]], [tensor[3], 1], [TOKENS, PARTS[0]])
        rest = [length, CHANNELS - PARTS[0]]
        bases = (first, tl.make_tensor_descriptor(base + PARTS[0], rest, [tensor[3], 1], [TOKENS, PARTS[1]]))
    elif TMA:
        bases = (tl.make_tensor_descriptor(base, [length, CHANNELS], [tensor[3], 1], [TOKENS, PARTS[0]]),)
    else:
        bases = (base, base)
    return bases


@triton.jit
def own_tiles(tensor, b, h, first, tokens, length, CHANNELS: tl.constexpr, PARTS: tl.constexpr):
    """The tiles of a program's own side, which it reads once: by pointers."""
    base = place(tensor, b, h)
    like = zeros(tokens.shape[0], PARTS)
    return tiles_at((base, base), tensor, first, tokens, like, CHANNELS, length, True)


@triton.jit
def zeros(ROWS: tl.constexpr, PARTS: tl.constexpr):
    """float32 [ROWS, part] for each part."""
    tiles = (tl.zeros([ROWS, PARTS[0]], tl.float32),)
    if len(PARTS) > 1:
        tiles = (tiles[0], tl.zeros([ROWS, PARTS[1]], tl.float32))
    return tiles


@triton.jit
def product(a, b, acc, precision: tl.constexpr):
    """`acc + a @ b` in float32."""
    if INTERPRETED:  # whose dot takes the bits of a bfloat16 for an integer
        a, b = a.to(tl.float32), b.to(tl.float32)
    else:
        b = b.to(a.dtype)  # where keys and values are in 8 bits
    return tl.dot(a, b, acc, input_precision=precision)


@triton.jit
def score_products(q_tiles, k_tiles, precision: tl.constexpr):
    """q @ k.T, summed over the parts of the channels."""
    nothing = tl.zeros([q_tiles[0].shape[0], k_tiles[0].shape[0]], tl.float32)
    s = product(q_tiles[0], tl.trans(k_tiles[0]), nothing, precision)
    if len(q_tiles) > 1:
        s = product(q_tiles[1], tl.trans(k_tiles[1]), s, precision)
    return s


@triton.jit
def ends_of(b, h, at, values, mask, length, other_length):
    """First and end, int32, of what the positions `at` of a tile keep on the other side, as far as the mask bounds it;
    nothing for a position past `length`. Then first and end of the hole, if the mask has one.
    """
    end = at * 0 + other_length
    if mask.end is not None:
        end = tl.minimum(end, tl.maximum(mask.end(b, h, at, values), 0))
    first = end * 0
    if mask.first is not None:
        first = tl.minimum(tl.maximum(mask.first(b, h, at, values), 0), other_length)
    first, end = first.to(tl.int32), tl.where(at < length, end, 0).to(tl.int32)
    if mask.hole_end is not None:
        hole_first = tl.minimum(tl.maximum(mask.hole_first(b, h, at, values), 0), other_length)
        hole_end = tl.minimum(tl.maximum(mask.hole_end(b, h, at, values), 0), other_length)
        ends = (first, end, hole_first.to(tl.int32), hole_end.to(tl.int32))
    else:
        ends = (first, end)
    return ends


@triton.jit
def kept(ends, start, step, b, h, q, kv, values, mask):
    """bool tile: the pairs that exist and that the mask keeps. `ends` bound the positions `start + step`; the ends are
    moved, because the compiler would compare moved positions in 64 bits.
    """
    keep = step < ends[1] - start
    if mask.first is not None:
        keep = keep & (step >= ends[0] - start)
    if mask.hole_end is not None:
        keep = keep & ((step < ends[2] - start) | (step >= ends[3] - start))
    if mask.rest is not None:
        keep = keep & mask.rest(b, h, q, kv, values)
    return keep


@triton.jit
def scored(s, scale, b, h, q, kv, values, score: tl.constexpr):
    """Scores from the products of q and k, and the factor that brings them to base 2.

    Without a score function the scale is part of the factor: exp2(s * factor - shift) is one multiply-add.
    """
    factor = scale * LOG2_E
    if score is not None:
        s = score(s * scale, b, h, q, kv, values)
        factor = LOG2_E
    return s, factor


@triton.jit
def weighted(total, most, s, factor):
    """One step of the online softmax over scores [M, N], which `factor` (more than 0) brings to base 2: the weights,
    what earlier sums [M] are multiplied by, their total and the new maximum.
    """
    new = tl.maximum(most, tl.max(s, 1) * factor)
    p = tl.exp2(s * factor - new[:, None])
    fade = tl.exp2(most - new)
    return p, fade, total * fade + tl.sum(p, 1), new


@triton.jit
def added(accs, p, fade, v_tiles, precision: tl.constexpr):
    """`accs * fade + p @ v` for each part of the channels."""
    sums = (product(p, v_tiles[0], accs[0] * fade[:, None], precision),)
    if len(accs) > 1:
        sums = (sums[0], product(p, v_tiles[1], accs[1] * fade[:, None], precision))
    return sums


@triton.jit
def added_late(accs, late, v, v_bases, tokens, V_DIM: tl.constexpr, length, precision: tl.constexpr):
    """`added` for the tile before. late: the bits of its weights, what the sums fade by, and its end."""
    bits, fade, end = late
    v_tiles = tiles_at(v_bases, v, end - tokens.shape[0], tokens, accs, V_DIM, length, True)
    return added(accs, bits.to(v_tiles[0].dtype, bitcast=True), fade, v_tiles, precision)


@triton.jit
def scales_at(scale, start, tokens, length, RAGGED: tl.constexpr):
    """The scales [1, tokens] of keys or values in 8 bits. scale: (its start, the tensor)."""
    return tl.trans(tile_at(scale[0], scale[1], start, tokens, tl.arange(0, 1), 1, length, RAGGED))


@triton.jit
def over_tile(
    state, start, tiles, places, k, v, kv_len, scale, ends, mask_values, score_values, mask, score: tl.constexpr,
    PARTIAL: tl.constexpr, BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, V_DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend to the keys from `start` on; unless PARTIAL, every pair is kept and every position exists.

    tiles: of the queries. state: the sums for each part of the channels, their total and maximum, and where p v is a
    pass late what `added_late` needs, else nothing. The last of places: where keys and values are in 8 bits, the scales
    of both for `scales_at`, and what the scores of each query lack; else nothing.
    """
    accs, total, most, late = state
    b, h, q_idx, k_bases, v_bases, scales = places
    n = tl.arange(0, BLOCK_N)
    kv_idx = (start + n)[None, :]
    k_tiles = tiles_at(k_bases, k, start, n, tiles, HEAD_DIM, kv_len, PARTIAL)
    s = score_products(tiles, k_tiles, PRECISION)
    if len(scales) > 0:
        s = s * scales_at(scales[0], start, n, kv_len, PARTIAL) + scales[2]
    if len(late) > 0:
        accs = added_late(accs, late, v, v_bases, n, V_DIM, kv_len, PRECISION)
    s, factor = scored(s, scale, b, h, q_idx, kv_idx, score_values, score)
    if PARTIAL:
        keep = kept(ends, start, n[None, :], b, h, q_idx, kv_idx, mask_values, mask)
        s = tl.where(keep, s, float("-inf"))
    p, fade, total, most = weighted(total, most, s, factor)
    if len(scales) == 0:
        p = p.to(k_tiles[0].dtype)
    else:
        p = p * scales_at(scales[1], start, n, kv_len, PARTIAL)
        if tiles[0].dtype != tl.float32:
            p = p.to(tl.bfloat16)  # float16 would lose small scales
    if len(late) > 0:  # bits, as the compiler would copy a matrix that an earlier pass left to shared memory; and
        late = (p.to(tl.int16, bitcast=True), fade, start + BLOCK_N)  # it pipelines no loop that carries its counter
    else:
        v_tiles = tiles_at(v_bases, v, start, n, accs, V_DIM, kv_len, PARTIAL)
        accs = added(accs, p, fade, v_tiles, PRECISION)
    return accs, total, most, late


@triton.jit
def over_runs(
    state, runs, row, tiles, places, k, v, kv_len, scale, ends, mask_values, score_values, mask, score: tl.constexpr,
    PARTIAL: tl.constexpr, BLOCK_KV: tl.constexpr, BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, V_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`over_tile` for the runs of a row. runs: (first, start, stop)."""
    for run in range(tl.load(runs[0] + row), tl.load(runs[0] + row + 1)):
        for start in range(tl.load(runs[1] + run) * BLOCK_KV, tl.load(runs[2] + run) * BLOCK_KV, BLOCK_N):
            state = over_tile(
                state, start, tiles, places, k, v, kv_len, scale, ends, mask_values, score_values, mask, score,
                PARTIAL, BLOCK_N, HEAD_DIM, V_DIM, PRECISION,
            )  # fmt: skip
    return state


@triton.jit
def over_list(
    state, numbers, row, tiles, places, k, v, kv_len, scale, ends, mask_values, score_values, mask, score: tl.constexpr,
    PARTIAL: tl.constexpr, BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, V_DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`over_tile` for the listed tiles of a row, in one loop. numbers: (first, number). One is loaded a pass before the
    keys that it leads to, whose asynchronous loads would wait for it.
    """
    first, last = tl.load(numbers[0] + row), tl.load(numbers[0] + row + 1)
    number = tl.load(numbers[1] + first)
    for entry in range(first, last):
        start = number * BLOCK_N
        number = tl.load(numbers[1] + entry + 1)
        state = over_tile(
            state, start, tiles, places, k, v, kv_len, scale, ends, mask_values, score_values, mask, score,
            PARTIAL, BLOCK_N, HEAD_DIM, V_DIM, PRECISION,
        )  # fmt: skip
    return state


@triton.jit
def over_row(
    state, blocks, row, tiles, places, k, v, kv_len, scale, ends, mask_values, score_values, mask, score: tl.constexpr,
    PARTIAL: tl.constexpr, BLOCK_KV: tl.constexpr, BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, V_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`over_list` or `over_runs`, as the blocks of the row come."""
    if len(blocks) == 2:
        state = over_list(
            state, blocks, row, tiles, places, k, v, kv_len, scale, ends, mask_values, score_values, mask, score,
            PARTIAL, BLOCK_N, HEAD_DIM, V_DIM, PRECISION,
        )  # fmt: skip
    else:
        state = over_runs(
            state, blocks, row, tiles, places, k, v, kv_len, scale, ends, mask_values, score_values, mask, score,
            PARTIAL, BLOCK_KV, BLOCK_N, HEAD_DIM, V_DIM, PRECISION,
        )  # fmt: skip
    return state


@triton.jit
def store_tiles(tensor, b, h, first, tokens, tiles, total, CHANNELS: tl.constexpr, length):
    """Write tiles, divided by the total of each row, as `tiles_at` reads them."""
    start = 0
    for i in tl.static_range(len(tiles)):
        channels = start + tl.arange(0, tiles[i].shape[1])
        inside = ((first + tokens) < length)[:, None] & (channels < CHANNELS)[None, :]
        at = tile_of(place(tensor, b, h), tensor, first, tokens, channels)
        tl.store(at, (tiles[i] / total[:, None]).to(tensor[0].dtype.element_ty), mask=inside)
        start += tiles[i].shape[1]


@triton.jit
def forward(
    q, k, v, out, lse, rows, full, partial, sizes, scale, mask_values, score_values, sink, mask,
    score: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr, V_DIM: tl.constexpr, HEAD_PARTS: tl.constexpr, V_PARTS: tl.constexpr,
    PRECISION: tl.constexpr, TMA: tl.constexpr, LATE: tl.constexpr,
):  # fmt: skip
    """q, k, v, out: tensors; lse: float32 [batch, heads, q_len] in nats. rows: (index, its strides, schedule, its
    length). full, partial: the blocks of each row as `over_runs` or `over_list` takes them. sizes: (heads, group,
    q_len, kv_len, q_blocks). sink: float32 [heads], the score of one more column without a value, or None. PARTS:
    of the channels, a power of two each. TMA: by descriptors. LATE: of 16-bit numbers, and only with TMA.
    """
    heads, group, q_len, kv_len, q_blocks = sizes
    turn, b, h = program(rows[4], heads)
    tile = tl.load(rows[3] + turn)  # the rows with most work first
    which = tl.load(rows[0] + b * rows[1] + h * rows[2])
    row = which * q_blocks + tile // (BLOCK_Q // BLOCK_M)
    first_q = tile * BLOCK_M

    m = tl.arange(0, BLOCK_M)
    q_idx = (first_q + m)[:, None]
    tiles = own_tiles(q, b, h, first_q, m, q_len, HEAD_DIM, HEAD_PARTS)
    total = tl.zeros([BLOCK_M], tl.float32)
    most = tl.full([BLOCK_M], LEAST, tl.float32)
    if sink is not None:  # the first column of the online softmax
        most = tl.zeros([BLOCK_M], tl.float32) + tl.load(sink + h) * LOG2_E
        total = (most > float("-inf")).to(tl.float32)
        most = tl.maximum(most, LEAST)

    late = ()
    if LATE:  # no weight for values past the end, which are zeros
        one = tl.full([BLOCK_M], 1.0, tl.float32)
        late = (tl.zeros([BLOCK_M, BLOCK_N], tl.int16), one, kv_len + BLOCK_N)
    state = (zeros(BLOCK_M, V_PARTS), total, most, late)
    k_bases = bases_of(place(k, b, h // group), k, kv_len, HEAD_DIM, HEAD_PARTS, BLOCK_N, TMA)
    v_bases = bases_of(place(v, b, h // group), v, kv_len, V_DIM, V_PARTS, BLOCK_N, TMA)
    places = (b, h, q_idx, k_bases, v_bases, ())
    state = over_row(
        state, full, row, tiles, places, k, v, kv_len, scale, None, mask_values, score_values, mask, score,
        False, BLOCK_KV, BLOCK_N, HEAD_DIM, V_DIM, PRECISION,
    )  # fmt: skip
    ends = ends_of(b, h, q_idx, mask_values, mask, q_len, kv_len)
    accs, total, most, late = over_row(
        state, partial, row, tiles, places, k, v, kv_len, scale, ends, mask_values, score_values, mask, score,
        True, BLOCK_KV, BLOCK_N, HEAD_DIM, V_DIM, PRECISION,
    )  # fmt: skip
    if len(late) > 0:
        accs = added_late(accs, late, v, v_bases, tl.arange(0, BLOCK_N), V_DIM, kv_len, PRECISION)

    some = total > 0
    total = tl.where(some, total, 1.0)
    store_tiles(out, b, h, first_q, m, accs, total, V_DIM, q_len)
    found = tl.where(some, (most + tl.log2(total)) * LN_2, float("-inf"))
    at = lse + (b.to(tl.int64) * heads + h) * q_len + first_q
    tl.store(at + m, found, mask=first_q + m < q_len)
