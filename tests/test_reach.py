"""Receptive fields between two bounds, against powers of the dense matrix."""

from math import comb

import numpy as np
import pytest
import torch
from flexspec.compiler.draw import reach as drawing
from flexspec.compiler.proofs.relation import Relation, pack, relation, unpack
from hypothesis import given, settings
from hypothesis import strategies as st
from random_masks import make_mask, masks, tables, truth

import flexspec as fs


def by_tokens(kept, layers):
    """bool [layers + 1, length, length]: what each query has seen, from a dense mask for each layer."""
    length = kept[0].shape[-1]
    own = torch.eye(length, dtype=torch.bool)
    seen = [own]
    for layer in range(layers):
        step = (kept[layer % len(kept)] | own).double()
        seen.append(step @ seen[-1].double() > 0)
    return torch.stack(seen)


def by_blocks(seen, block):
    """Of every block of [length, length]: is any pair there, are all?"""
    parts = [list(range(at, min(at + block, len(seen)))) for at in range(0, len(seen), block)]
    some = [[bool(seen[rows][:, columns].any()) for columns in parts] for rows in parts]
    full = [[bool(seen[rows][:, columns].all()) for columns in parts] for rows in parts]
    return torch.tensor(some), torch.tensor(full)


def layers_until_full(kept):
    """By one layer at a time until nothing changes in a whole turn; None: never."""
    length, turns = kept[0].shape[-1], kept[0].shape[-1] * len(kept)
    seen = by_tokens(kept, turns)
    before = torch.ones(length, length).tril().bool()
    return next((layer for layer in range(turns + 1) if (seen[layer] | ~before).all()), None)


def check(reach, kept):
    """Sound at every layer, in its shares and in the number of layers; exact with blocks of one token."""
    seen = by_tokens(kept, reach.layers)
    for layer, now in enumerate(seen):
        some, full = by_blocks(now, reach.block_size)
        assert not (some & ~reach.outer(layer)).any() and not (reach.inner(layer) & ~full).any()
        least, most = reach.fraction(layer)
        assert least <= now.float().mean().item() + 1e-6 and now.float().mean().item() <= most + 1e-6
        least, most = reach.last_query(layer)
        assert least <= now[-1].sum() <= most
        if reach.block_size == 1:
            assert torch.equal(reach.outer(layer), now) and torch.equal(reach.inner(layer), now)
    least, most = reach.layers_to_full
    exact = layers_until_full(kept)
    if exact is None:
        assert most is None
    else:
        assert least is not None and least <= exact and (most is None or exact <= most)
    if reach.block_size == 1:
        assert least == most == exact


@settings(max_examples=80, deadline=None)
@given(
    st.lists(masks, min_size=1, max_size=3),
    st.integers(1, 33),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(0, 9),
)
def test_random_masks_of_several_heads_against_powers_of_the_matrix(written, length, block, layers, seed):
    held = tables(max(length, 4), 2, 3, seed)
    each = [make_mask(one, held) for one in written]
    for b in (0, 1):
        kept = [truth(one, held, (2, 3, length, length))[b].any(0) for one in written]
        check(fs.reach(each, length, layers, block_size=block, batch=2, heads=3, b=b), kept)


NAMED = {
    "causal": fs.causal(),
    "window": fs.causal_window(9),
    "narrow": fs.causal_window(2),
    "both sides": fs.sliding_window(5),
    "sink": fs.sink_window(sink=2, window=5),
    "power": fs.power_window(window=3, block=4),
    "log": fs.log_sparse(),
    "strided": fs.strided(5),
    "chunked": fs.chunked(8),
    "nothing": fs.nothing(),
    "everything": fs.everything(),
    "all but the one before": fs.mask(lambda q, kv: (q >= kv) & (q - kv != 1)),
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("length, block", [(1, 4), (37, 1), (37, 4), (40, 5), (64, 64), (29, 32)])
def test_patterns_against_powers_of_the_matrix(name, length, block):
    check(fs.reach(NAMED[name], length, 6, block_size=block), [NAMED[name].dense(length)[0, 0]])


def test_layers_take_turns_and_the_first_is_applied_first():
    near, far = fs.mask(lambda q, kv: q == kv + 1), fs.mask(lambda q, kv: (q == 5) & (kv == 4))
    reach = fs.reach([near, far], 6, 2, block_size=1)
    assert reach.outer().int().tolist()[5] == [0, 0, 0, 1, 1, 1]  # 4 has seen 3 when 5 looks at it
    assert fs.reach([far, near], 6, 2, block_size=1).outer().int().tolist()[5] == [0, 0, 0, 0, 1, 1]
    for several in ([near, far], [far, near, fs.chunked(3)]):
        check(fs.reach(several, 6, 4, block_size=1), [mask.dense(6)[0, 0] for mask in several])


def test_a_layer_joins_its_heads():
    halves = fs.mask(lambda h, q, kv: (q >= kv) & (q - kv <= 7) & ((q - kv) % 2 == h))
    reach = fs.reach(halves, 64, 2, heads=2, block_size=8)
    whole = fs.reach(fs.causal_window(8), 64, 2, block_size=8)
    assert np.array_equal(reach.sure, whole.sure) and np.array_equal(reach.possible, whole.possible)


def test_a_block_may_be_sure_without_one_full_block_on_the_way():
    # Each query has a pair in the block before, which sees all of the one before that: neither block is full to start.
    first = fs.mask(lambda q, kv: (q // 4 - kv // 4 == 1) & (q // 4 == 1))
    then = fs.mask(lambda q, kv: q - kv == 4)
    reach = fs.reach([first, then], 12, 2, block_size=4)
    assert reach.inner(1).int().tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert reach.inner(2).int().tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("window, length", [(2, 50), (8, 101), (33, 100)])
def test_windows_grow_by_a_window_a_layer(window, length):
    reach = fs.reach(fs.causal_window(window), length, 5, block_size=1)
    for layer in range(6):
        assert reach.last_query(layer) == (min(length, layer * (window - 1) + 1),) * 2
    assert reach.layers_to_full == (-(-(length - 1) // (window - 1)),) * 2


@pytest.mark.parametrize("block", [1, 8])
def test_power_attention_doubles_what_a_query_sees_with_each_layer(block):
    """PowerAttention: 2**d tokens after d layers. A distance in blocks is seen after d layers if and only if it has at
    most d ones in binary: all those below 2**(d + 1) - 1, and of 2**m in all as many as there are ways to choose."""
    ones, last = 7, 2**7 - 1
    reach = fs.reach(fs.power_window(window=block, block=block), block << ones, ones, block_size=block)
    for layer in range(ones + 1):
        seen = reach.outer(layer)[-1].flip(0)  # by distance
        assert seen.tolist() == [distance.bit_count() <= layer for distance in range(last + 1)]
        assert int(seen.sum()) == sum(comb(ones, k) for k in range(layer + 1)) >= 2**layer
        assert seen[: 2 ** (layer + 1) - 1].all() and (layer == ones or not seen[2 ** (layer + 1) - 1])
    assert reach.layers_to_full[0] == ones
    if block == 1:
        assert reach.layers_to_full == (ones, ones)


def test_long_sequences_are_bounded():
    reach = fs.reach(fs.causal_window(1024), 65_536, 4)
    least, most = reach.layers_to_full
    assert least <= -(-65_535 // 1023) <= most
    assert reach.fraction(0) == (1 / 65_536, 128 / 65_536)
    assert reach.last_query(4)[0] <= 4 * 1023 + 1 <= reach.last_query(4)[1]
    assert fs.reach(fs.chunked(512), 65_536).layers_to_full == (None, None)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 150), st.integers(0, 99), st.floats(0.01, 0.9))
def test_products_of_packed_bits(blocks, seed, share):
    rng = np.random.default_rng(seed)
    left, right = rng.random((2, blocks, blocks)) < share
    assert np.array_equal(unpack(pack(left)), left)
    one, other = (Relation(*[pack(x)] * 4, x.diagonal()) for x in (left, right))
    assert np.array_equal(unpack(one.after(other).some), left.astype(int) @ right.astype(int) > 0)


def test_what_a_partial_block_covers():
    kept = fs.mask(lambda q, kv: (q == kv + 3) | (q >= 7) & (kv == 0))
    known = relation(fs.block_map(kept, 10, block_size=4))
    assert unpack(known.some).astype(int).tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert unpack(known.rows).astype(int).tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert unpack(known.columns).astype(int).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert unpack(known.full).astype(int).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_values_go_to_the_masks_that_take_them():
    narrow = fs.mask(lambda q, kv, *, near: (q >= kv) & (q - kv < near))
    reach = fs.reach([narrow, fs.sink_window(sink=1)], 32, 2, block_size=1, near=2, window=3)
    check(reach, [narrow.dense(32, near=2)[0, 0], fs.sink_window(sink=1, window=3).dense(32)[0, 0]])


@pytest.mark.parametrize(
    "code, call",
    [
        ("FS030", lambda: fs.reach([], 32)),
        ("FS030", lambda: fs.reach(fs.causal(), 0)),
        ("FS030", lambda: fs.reach(fs.causal(), 32, 0)),
        ("FS030", lambda: fs.reach(fs.causal(), 32, block_size=(16, 8))),
        ("FS030", lambda: fs.reach(fs.causal(), 1 << 21)),
        ("FS030", lambda: fs.reach(fs.causal(), 32, 1 << 16)),
        ("FS030", lambda: fs.reach(fs.causal(), 32, 2).outer(3)),
        ("FS030", lambda: fs.reach(fs.causal(), 32, 2).fraction(-1)),
        ("FS020", lambda: fs.reach(fs.causal_window, 32)),
        ("FS021", lambda: fs.reach([fs.causal(), fs.nothing()], 32, window=3)),
        ("FS031", lambda: fs.reach(fs.mask(lambda h, q, kv: q - kv < h), 32)),
        ("FS054", lambda: fs.reach(fs.causal(), 32).show("reach.gif")),
    ],
)
def test_mistakes(code, call):
    with pytest.raises(fs.FlexSpecError) as caught:
        call()
    assert caught.value.code == code


@pytest.mark.parametrize("blocks, most", [(1, 4), (7, 3), (12, 4), (5, 640)])
def test_a_coarse_cell_has_its_earliest_layer(blocks, most):
    first = np.random.default_rng(0).integers(0, 9, (blocks, blocks)).astype(np.uint16)
    step = -(-blocks // most)
    at = range(0, blocks, step)
    wanted = [[first[i : i + step, j : j + step].min() for j in at] for i in at]
    assert drawing.earliest(first, most).tolist() == wanted


def test_the_picture_shows_layers_and_growth():
    reach = fs.reach(fs.causal_window(300), 5000, 4)
    figure = drawing.figure(reach)
    field, _, growth = figure.axes
    shown = field.images[0].get_array()
    assert np.array_equal(shown.filled(99), np.where(reach.outer(), reach.possible, 99))
    most, least = (line.get_ydata().tolist() for line in growth.lines[:2])
    assert list(zip(least, most, strict=True)) == [reach.last_query(layer) for layer in range(5)]
    title, facts = (text.get_text() for text in figure.texts)
    assert title == reach.label and reach.full_text() in facts and "5,000 tokens" in facts
    assert field.get_xlim() == (0, 5000) and field.get_ylim() == (5000, 0)


@pytest.mark.parametrize("name", ["a.png", "b/a.svg", "a.pdf"])
@pytest.mark.parametrize("mask", [[fs.causal(), fs.chunked(9)], fs.nothing()])
def test_pictures_are_written(name, mask, tmp_path):
    for length, block in ((1, 128), (100, 1), (1000, 128)):
        path = fs.reach(mask, length, 3, block_size=block).show(tmp_path / name)
        assert path == tmp_path / name and path.stat().st_size > 2000
