"""Block maps of random masks on random canvases under random orders, and of long sequences, against dense truth."""

import torch
from flexspec.compiler.blocks import classify, leaves
from hypothesis import given, settings
from hypothesis import strategies as st
from random_masks import block_kinds, make_mask, masks, tables

import flexspec as fs

sides = st.lists(st.integers(1, 9), min_size=2, max_size=3)
axis_parts = st.sampled_from(
    [
        lambda q, kv, n: abs(q - kv) <= n,
        lambda q, kv, n: (q - kv) % (n + 1) == 0,
        lambda q, kv, n: q // (n + 1) == kv // (n + 1),
        lambda q, kv, n: q + n >= kv,
        lambda q, kv, n: (q * 2 + kv) % 5 < n,
        lambda q, kv, n: kv < n,
    ]
)


@st.composite
def orders_of(draw, canvas):
    """An order of a canvas or of its tokens, or none."""
    tile = {name: draw(st.integers(1, 4)) for name in canvas.names}
    outer = {name: side * draw(st.integers(1, 3)) for name, side in tile.items()}
    first = tile[canvas.names[0]]
    every = [
        None,
        fs.row_major(canvas),
        fs.tiled(canvas, tile),
        fs.axes(canvas, *reversed(canvas.names)),
        fs.striped(first),
        fs.zigzag(first),
        fs.dilated(canvas, tile),
        fs.tiled(canvas, outer, tile),
        fs.morton(canvas),
        fs.hilbert(canvas),
        fs.by_label(torch.arange(canvas.size) * 7 % (first + 1)),
        fs.concatenated(fs.tiled(canvas, tile)),
    ]
    return draw(st.sampled_from(every))


@st.composite
def on_canvas(draw):
    """A canvas, a mask on it, and an order of it or of its tokens."""
    names = "thw"[: len(lengths := draw(sides))]
    canvas = fs.Canvas(**dict(zip(names, lengths, strict=True)))

    def predicate():
        parts = [(name, draw(axis_parts), draw(st.integers(0, 4))) for name in names]
        joined = draw(st.lists(st.booleans(), min_size=len(parts), max_size=len(parts)))

        @fs.mask(canvas=canvas)
        def made(q, kv):
            kept = None
            for (name, part, n), both in zip(parts, joined, strict=True):
                one = part(getattr(q, name), getattr(kv, name), n)
                kept = one if kept is None else (kept & one if both else kept | one)
            return kept

        return made

    def one():
        tile = {name: draw(st.integers(1, 4)) for name in names}
        count = {name: 2 * draw(st.integers(0, 1)) + 1 for name in names}
        return draw(st.sampled_from(["predicate", "neighborhood", "sliding_tile", "windows", "line"])), tile, count

    def of(kind, tile, count):
        if kind == "neighborhood":
            fits = {name: min(3 * tile[name], canvas.lengths[name]) for name in names}
            return fs.neighborhood(canvas, window=fits)
        if kind == "sliding_tile":
            return fs.sliding_tile(canvas, window={name: tile[name] * count[name] for name in names}, tile=tile)
        if kind == "windows":
            return fs.windows(canvas, size=tile, shift={name: count[name] for name in names}, wrap=tile["t"] > 2)
        if kind == "line":
            return fs.axial(canvas, names[-1])
        return predicate()

    mask = of(*one())
    if draw(st.booleans()):
        other = (
            draw(st.sampled_from([fs.causal(), fs.sliding_window(9), fs.sink(4)]))
            if draw(st.booleans())
            else of(*one())
        )
        mask = draw(st.sampled_from([lambda a, b: a & b, lambda a, b: a | b, lambda a, b: a ^ b, lambda a, b: a - b]))(
            mask, other
        )
    return canvas, mask, draw(orders_of(canvas))


def check(case, block):
    canvas, mask, order = case
    kept = mask.dense(canvas.size)
    if order is not None:
        at = order.permutation(canvas.size)
        there = at >= 0
        at = at.clamp(min=0)
        kept = kept[:, :, at][:, :, :, at] & there[:, None] & there[None, :]
    made = fs.block_map(mask, canvas.size, order=order, block_size=block)
    assert torch.equal(made.kinds(), block_kinds(kept, *block)), (mask, order)
    assert made.kept_pairs == int(kept.sum())


blocks = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=150, deadline=None)
@given(on_canvas(), blocks)
def test_canvases(case, block):
    check(case, block)


@settings(max_examples=100, deadline=None)
@given(on_canvas(), blocks)
def test_canvases_in_small_steps(case, block):
    """Every stage of the search is reached at small sizes."""
    changed = ((classify, "_FIRST", 2), (classify, "_FINER", 1), (leaves, "_LEAF", 2), (leaves, "_FEW", 2))
    old = [(module, name, getattr(module, name)) for module, name, _ in changed]
    try:
        for module, name, value in changed:
            setattr(module, name, value)
        check(case, block)
    finally:
        for module, name, value in old:
            setattr(module, name, value)


@settings(max_examples=25, deadline=None)
@given(masks, st.integers(1000, 2500), st.integers(1000, 2500), st.sampled_from([(16, 16), (128, 64), (37, 90)]))
def test_thousands_of_tokens(written, q_len, kv_len, block):
    held = tables(max(q_len, kv_len), 1, 1, q_len)
    mask = make_mask(written, held)
    kept = mask.dense(q_len, kv_len, batch=1, heads=1)
    made = fs.block_map(mask, q_len, kv_len, batch=1, heads=1, block_size=block)
    rows, columns = -(-q_len // block[0]), -(-kv_len // block[1])
    padded = torch.nn.functional.pad(kept[0, 0], (0, columns * block[1] - kv_len, 0, rows * block[0] - q_len))
    tiles = padded.view(rows, block[0], columns, block[1])
    there = torch.nn.functional.pad(
        torch.ones_like(kept[0, 0]), (0, columns * block[1] - kv_len, 0, rows * block[0] - q_len)
    )
    every = (tiles | ~there.view_as(tiles)).all(3).all(1)
    assert torch.equal(made.kinds()[0, 0], tiles.any(3).any(1).to(torch.uint8) + every.to(torch.uint8))
