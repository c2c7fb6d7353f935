"""The patterns once more, as plain Python on integers, from their definitions; imports nothing of flexspec.

Each function is a predicate on positions (or points) and the pattern's own parameters; `matrix` tabulates.
"""

from __future__ import annotations

import math
from itertools import product


def matrix(keep, q_len, kv_len=None):
    """[q_len][kv_len] of booleans."""
    return [[bool(keep(q, kv)) for kv in range(q_len if kv_len is None else kv_len)] for q in range(q_len)]


def is_power_of_two(n):
    return n in [2**k for k in range(40)]


# plain sequences


def causal(q, kv, offset=0):
    return kv <= q + offset


def sliding_window(q, kv, window):
    return kv in range(q - window, q + window + 1)


def causal_window(q, kv, window):
    return kv in range(q - window + 1, q + 1)


def sink(q, kv, n):
    return kv in range(n)


def sink_window(q, kv, sink, window):
    return kv in range(q + 1) and (kv > q - window or kv in range(sink))


def dilated_window(q, kv, window, dilation):
    return kv in [q + step * dilation for step in range(-window, window + 1)]


def global_tokens(q, kv, n):
    return min(q, kv) < n


def prefix_lm(q, kv, prefix):
    return kv <= max(q, prefix - 1)


def chunked(q, kv, chunk):
    return kv in range(q - q % chunk, q - q % chunk + chunk)


def chunk_causal(q, kv, chunk):
    return kv < q - q % chunk + chunk


def power_window(q, kv, window, block):
    return kv <= q and (q - kv < window or is_power_of_two(q // block - kv // block))


def log_sparse(q, kv):
    return kv == q or is_power_of_two(q - kv)


def strided(q, kv, stride):
    return kv <= q and (kv > q - stride or kv in range(q, -1, -stride))


def fixed(q, kv, stride, summary):
    return kv <= q and (chunked(q, kv, stride) or kv % stride in range(max(0, stride - summary), stride))


def scaled_span(q, kv, kv_len, alpha, beta, sink):
    return kv <= q and (q - kv < alpha + beta * kv_len or kv < sink)


def shifted_groups(h, q, kv, heads, n, group):
    rolled = list(range(n))
    if h >= heads // 2:
        rolled = rolled[group // 2 :] + rolled[: group // 2]
    return kv <= q and rolled.index(q) // group == rolled.index(kv) // group


def hidden_decoding(q, kv, repeat):
    (n, j), (m, i) = divmod(q, repeat), divmod(kv, repeat)
    return (i == repeat - 1 and m < n) or (m == n and i <= j)


# documents, segments, tokens of several kinds


def document(q, kv, ids):
    return ids[q] >= 0 and ids[q] == ids[kv]


def padding(q, kv, length):
    return max(q, kv) < length


def same_label(q, kv, labels, background=None):
    return labels[kv] == labels[q] or (background is not None and labels[kv] == background)


def token_types(q, kv, types, window):
    if kv > q:
        return False
    if types[kv] == 0:
        return True
    if types[kv] == 1:
        return all(types[between] != 0 for between in range(kv + 1, q + 1))
    return q - kv < window


def shared_prefix(q, kv, prefix, ids):
    if kv > q or (q >= prefix and ids[q] < 0):
        return False
    return kv < prefix or ids[q] == ids[kv]


def tree(q, kv, parents):
    while q >= 0:
        if q == kv:
            return True
        q = parents[q]
    return False


def bridge(q, kv, chunk, memory, window):
    return kv <= q and (q - kv < window or (kv + 1) % chunk == 0 or memory[kv])


def adjacency(q, kv, pointers, keys):
    return kv in keys[pointers[q] : pointers[q + 1]]


def block_diffusion(q, kv, block, n):
    q_clean, q_block = q >= n, (q % n) // block
    kv_clean, kv_block = kv >= n, (kv % n) // block
    if not q_clean and not kv_clean:
        return q_block == kv_block
    if not q_clean and kv_clean:
        return q_block > kv_block
    return kv_clean and q_block >= kv_block


def segments(q, kv, lengths, table):
    """table: (query segment, key segment) to a predicate of local positions."""

    def place(position):
        for name, length in lengths.items():
            if position < length:
                return name, position
            position -= length
        return None, position

    (q_name, q), (kv_name, kv) = place(q), place(kv)
    keep = table.get((q_name, kv_name))
    return keep is not None and keep(q, kv)


# on a canvas: points are dicts by axis name


def points(sides):
    """The points of a canvas in row-major order."""
    return [dict(zip(sides, at, strict=True)) for at in product(*(range(side) for side in sides.values()))]


def canvas_matrix(keep_axis, sides):
    """[size][size] of the AND over axes of `keep_axis(q, kv, name)`."""
    rows = points(sides)
    return [[all(keep_axis(q[name], kv[name], name) for name in sides) for kv in rows] for q in rows]


def neighborhood(q, kv, length, window, stride=1, dilation=1, causal=False):
    mates = [x for x in range(length) if x % dilation == q % dilation]
    if kv not in mates:
        return False
    q, kv, length = mates.index(q), mates.index(kv), len(mates)
    group = [x for x in range(length) if x // stride == q // stride]
    if causal:
        return kv <= q and group[-1] - kv < window
    leader = min(group[0] + stride // 2, length - 1)
    first = max(0, min(leader - window // 2, length - window))
    return kv in range(first, first + window)


def sliding_tile(q, kv, length, window, tile):
    count, total = window // tile, math.ceil(length / tile)
    q, kv = q // tile, kv // tile
    kept = list(range(q - count // 2, q - count // 2 + count))
    while kept[-1] > total - 1:
        kept = [t - 1 for t in kept]
    while kept[0] < 0:
        kept = [t + 1 for t in kept]
    return kv in kept


def windows(q, kv, length, size, shift=0, wrap=False):
    if wrap:
        return ((q + shift) % length) // size == ((kv + shift) % length) // size
    return (q + shift) // size == (kv + shift) // size


# on a canvas, whole points: q and kv are dicts by axis name, `sides` the canvas


def point_matrix(keep, sides):
    """[size][size] of `keep(q, kv)` over points."""
    return [[bool(keep(q, kv)) for kv in points(sides)] for q in points(sides)]


def halo(q, kv, block, reach):
    start = q - q % block
    return kv in range(start - reach, start + block + reach)


def block_before(q, kv, block):
    return kv // block in (q // block, q // block - 1)


def any_shared(q, kv, axes):
    return len([name for name in axes if q[name] == kv[name]]) > 0


def frame_window(q, kv, window, sink, time="t"):
    ago = q[time] - kv[time]
    return ago in range(window) or (ago >= 0 and kv[time] in range(sink))


def place(point, sides, order):
    """Where a point stands if the canvas is walked through with the last name of `order` fastest."""
    walk = sorted(points(sides), key=lambda p: [p[name] for name in order])
    return walk.index(point)


def band(q, kv, sides, order, width):
    return abs(place(q, sides, order) - place(kv, sides, order)) < width


def bit_length(n):
    return len(f"{n:b}") if n else 0


def radial(q, kv, sides, decay, block, first_frame_sink, time="t"):
    if kv[time] == 0 and first_frame_sink:
        return True
    inner = {name: side for name, side in sides.items() if name != time}
    frame = math.prod(inner.values())
    at, then = (place({name: p[name] for name in inner}, inner, list(inner)) for p in (q, kv))
    d = abs(q[time] - kv[time])
    if d == 0:
        return True
    r = 2 ** bit_length(frame) / 2 ** bit_length(d)
    if r < block and d % int(block / r) != 0:
        return False
    return abs(at - then) <= max(r * decay, block)


def rounded(kept, block):
    """[size][size] in whole tiles, of [size][size] in which positions stand frame after frame."""
    size = len(kept)
    found = [[False] * size for _ in range(size)]
    for top in range(0, size, block):
        for left in range(0, size, block):
            queries, keys = range(top, min(top + block, size)), range(left, min(left + block, size))
            shares = [sum(kept[q][kv] for q in queries) / len(queries) for kv in keys]
            some = [share for share in shares if share > 0]
            if some and len([share for share in some if share > 1 / 3]) / len(some) > 0.6:
                for q in queries:
                    for kv in keys:
                        found[q][kv] = True
    return found


def epipolar(q, kv, line, width, view="v"):
    """`line`, in kv's view: coefficients of the other axes from the last to the first, then the constant."""
    if q[view] == kv[view]:
        return True
    at = [kv[name] for name in kv if name != view][::-1]
    away = abs(sum(c * p for c, p in zip(line, at, strict=False)) + line[-1])
    return away <= width * math.sqrt(sum(c * c for c in line[:-1]))


def with_text(q, kv, keep, video, text, real, first=False):
    """keep(q, kv) on the video's tokens; `real` of the `text` places hold text."""

    def part(position):
        start = text if first else 0
        if position in range(start, start + video):
            return "video", position - start
        position = position if first else position - video
        return ("text" if position in range(real) else None), position

    (q_part, q), (kv_part, kv) = part(q), part(kv)
    if None in (q_part, kv_part) or max(q, kv) >= video + text:
        return False
    return "text" in (q_part, kv_part) or keep(q, kv)


# scores


def alibi(score, q, kv, slope):
    return score - slope * abs(q - kv)


def softcap(score, cap):
    return cap * math.tanh(score / cap)


def relative_bias(score, q, kv, row):
    reach = len(row) // 2
    return score + row[max(-reach, min(reach, q - kv)) + reach]


def t5_bucket(relative, bidirectional, buckets, max_distance):
    """`relative` is key minus query. The logarithm's floor by comparing integers, without rounding."""
    bucket = 0
    if bidirectional:
        buckets //= 2
        bucket = buckets if relative > 0 else 0
        distance = abs(relative)
    else:
        distance = max(0, -relative)
    exact = buckets // 2
    if distance < exact:
        return bucket + distance
    # step = floor(log(distance / exact) / log(max_distance / exact) * steps)
    #      = the largest step with (distance / exact) ** steps >= (max_distance / exact) ** step
    steps = buckets - exact
    step = 0
    while distance**steps * exact ** (step + 1) >= max_distance ** (step + 1) * exact**steps and step < steps:
        step += 1
    return bucket + min(exact + step, buckets - 1)


def swin_index(q, kv, sides):
    """Row of Swin's table for two points."""
    index = 0
    for name, side in sides.items():
        reach = side - 1
        index = index * (2 * side - 1) + max(-reach, min(reach, q[name] - kv[name])) + reach
    return index
