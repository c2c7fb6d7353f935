"""Canvas patterns in blocks and in memory order, and beside text: against dense truth and the oracle."""

from __future__ import annotations

import oracle
import pytest
import torch
from canvases import canvases, table
from hypothesis import given, settings
from hypothesis import strategies as st
from random_masks import block_kinds

import flexspec as fs
from flexspec import patterns as p
from flexspec.canvas import Canvas

# block maps, under orders


def in_memory(kept, order, size):
    """A dense mask [..., q, kv] over memory places."""
    if order is None:
        return kept
    at = order.permutation(size)
    there = at >= 0
    at = at.clamp(min=0)
    return kept[..., at, :][..., at] & there[:, None] & there[None, :]


VIDEO = Canvas(t=5, h=3, w=7)
LINES = torch.randn(105, 5, 3, generator=torch.Generator().manual_seed(0))
MADE = {
    "halo": p.halo(VIDEO, block={"t": 2, "h": 2, "w": 3}, halo={"t": 0, "h": 1, "w": 2}),
    "any_shared": p.any_shared(VIDEO, "t w"),
    "block_causal_2d": p.block_causal_2d(VIDEO, block={"t": 2, "h": 3, "w": 2}),
    "first_frame": p.first_frame(VIDEO),
    "frame_window": p.frame_window(VIDEO, window=2, sink=1),
    "spatial_head": p.spatial_head(VIDEO, width=30),
    "temporal_head": p.temporal_head(VIDEO, width=7),
    "radial": p.radial(VIDEO, decay=0.5, block=4),
    "radial_rounded": p.radial(VIDEO, decay=0.5, block=4, rounded=True),
    "epipolar": p.epipolar(VIDEO, LINES, width=1.0, view="t"),
}
ORDERS = {
    "none": None,
    "tiled": fs.tiled(VIDEO, t=2, h=2, w=4),
    "axes": fs.axes(VIDEO, "h", "w", "t"),
    "striped": fs.striped(4),
    "hilbert": fs.hilbert(VIDEO),
    "dilated": fs.dilated(VIDEO, h=2, w=3),
    "by_label": fs.by_label(torch.arange(105) % 4),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("mask", MADE.values(), ids=MADE)
def test_block_maps_and_reordered_masks(mask, order):
    wanted = in_memory(mask.dense(VIDEO.size), order, VIDEO.size)
    for block in ((16, 16), (7, 20)):
        made = fs.block_map(mask, VIDEO.size, order=order, block_size=block)
        assert torch.equal(made.kinds(), block_kinds(wanted, *block))
        assert made.kept_pairs == int(wanted.sum())
    if order is not None:
        assert torch.equal(p.reordered(mask, order).dense(order.padded(VIDEO.size)), wanted)


@settings(max_examples=120, deadline=None)
@given(st.data(), canvases(), st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_block_maps_of_random_patterns_and_orders(data, sides, block):
    canvas, time = Canvas(**sides), data.draw(st.sampled_from([*sides]))
    small = st.integers(1, 5)
    size = {name: data.draw(small) for name in sides}
    mask = data.draw(
        st.sampled_from(
            [
                p.halo(canvas, size, data.draw(small) - 1),
                p.block_causal_2d(canvas, size),
                p.any_shared(canvas, [*sides][: data.draw(small)]),
                p.frame_window(canvas, data.draw(small), data.draw(small) - 1, time),
                p.spatial_head(canvas, data.draw(st.integers(1, 30)), time),
                p.temporal_head(canvas, data.draw(st.integers(1, 30)), time),
                p.radial(canvas, 0.5, data.draw(small), data.draw(st.booleans()), time, data.draw(st.booleans())),
            ]
        )
    )
    tile = {name: data.draw(small) for name in sides}
    order = data.draw(st.sampled_from([None, fs.tiled(canvas, tile), fs.axes(canvas, *reversed([*sides]))]))
    wanted = in_memory(mask.dense(canvas.size), order, canvas.size)
    made = fs.block_map(mask, canvas.size, order=order, block_size=block)
    assert torch.equal(made.kinds(), block_kinds(wanted, *block)), (mask, order)
    if order is not None:
        assert torch.equal(p.reordered(mask, order).dense(order.padded(canvas.size)), wanted)


def test_reordered_masks_of_sequences_and_tensors():
    ids = torch.tensor([[0, 0, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, -1]])
    order = fs.striped(3)
    wanted = in_memory((p.document(ids) & p.causal()).dense(7), order, 7)
    made = p.reordered(p.document() & p.causal(), order, length=7)
    assert torch.equal(made.dense(9, document_id=ids), wanted)
    last = fs.mask(lambda q, kv, q_len, kv_len: (q == q_len - 1) & (kv == kv_len - 1))
    assert torch.equal(p.reordered(last, order, 7).dense(9), in_memory(last.dense(7), order, 7))


# video and text


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("order", [*ORDERS.values()], ids=ORDERS)
@pytest.mark.parametrize("name", ["halo", "radial_rounded", "temporal_head", "epipolar"])
def test_with_text(name, order, first):
    text, lengths = 5, [0, 3, 5]
    kept = in_memory(MADE[name].dense(VIDEO.size), order, VIDEO.size)[0, 0].tolist()
    there = [True] * VIDEO.size if order is None else (order.permutation(VIDEO.size) >= 0).tolist()
    size, offset = len(there), text if first else 0
    made = p.with_text(MADE[name], text, first=first, order=order)
    dense = made.dense(size + text, text_lengths=torch.tensor(lengths))
    held = p.with_text(MADE[name], text, lengths, first, order)
    assert torch.equal(held.dense(size + text), dense)
    blocks = fs.block_map(made, size + text, block_size=16, text_lengths=torch.tensor(lengths))
    assert torch.equal(blocks.kinds()[:, :1], block_kinds(dense, 16, 16))
    for b, real in enumerate(lengths):

        def keep(q, kv, real=real):
            if any(x in range(offset, offset + size) and not there[x - offset] for x in (q, kv)):
                return False
            return oracle.with_text(q, kv, lambda q, kv: kept[q][kv], size, text, real, first)

        assert dense[b, 0].tolist() == oracle.matrix(keep, size + text)


def test_reordered_masks_of_labels_that_differ_by_batch():
    order = fs.by_label(torch.arange(210).view(2, 105) % torch.tensor([[4], [7]]))
    mask = MADE["halo"]
    made = p.reordered(mask, order).dense(105, batch=2)
    for b, at in enumerate(order.permutation(105)):
        assert torch.equal(made[b, 0], mask.dense(105)[0, 0][at][:, at])
    both = p.reordered(mask, order) & p.reordered(mask, ORDERS["hilbert"])  # two tables of the same name
    at = ORDERS["hilbert"].permutation(105)
    assert torch.equal(both.dense(105, batch=2), made & mask.dense(105)[..., at, :][..., at])


def test_an_order_of_the_whole_sequence_gives_the_same_blocks():
    tiles = ORDERS["tiled"]
    alone = fs.block_map(p.with_text(MADE["halo"], 5, [3], order=tiles), tiles.padded(105) + 5, block_size=16)
    whole = fs.block_map(p.with_text(MADE["halo"], 5, [3]), 110, order=fs.concatenated(tiles, 5), block_size=16)
    assert torch.equal(alone.kinds(), whole.kinds())


def test_attention_over_video_in_tiles_and_text():
    """Tokens in tile order beside text give what tokens in reading order give."""
    canvas, text = Canvas(t=3, h=4, w=5), 9
    order = fs.tiled(canvas, t=2, h=2, w=2)
    pattern = p.halo(canvas, block=2, halo=1)
    lengths = torch.tensor([4, 9])
    q, k, v = torch.randn(3, 2, 2, canvas.size + text, 8, generator=torch.Generator().manual_seed(1)).unbind(0)
    plain = fs.reference_attention(p.with_text(pattern, text), q, k, v, text_lengths=lengths)
    moved = [torch.cat([order.apply(x[:, :, : canvas.size]), x[:, :, canvas.size :]], 2) for x in (q, k, v)]
    out = fs.reference_attention(p.with_text(pattern, text, order=order), *moved, text_lengths=lengths)
    inside = order.padded(canvas.size)
    back = torch.cat([order.undo(out[:, :, :inside]), out[:, :, inside:]], 2)
    assert torch.allclose(back, plain, atol=1e-6)
    assert bool((plain[0, :, canvas.size + 4 :] == 0).all())  # padding of the text sees nothing


def test_a_sequence_of_video_and_text():
    kept = p.with_text(p.axial(Canvas(h=2, w=2), "w"), text=2, lengths=[1])
    assert kept.dense(6)[0, 0].tolist() == table("""
        x x . . x .
        x x . . x .
        . . x x x .
        . . x x x .
        x x x x x .
        . . . . . .""")


def test_labels_show_name_and_parameters():
    canvas = Canvas(t=2, h=4)
    assert repr(p.reordered(p.causal(), fs.striped(2), 4)) == "reordered(pattern=causal(), order=striped(2))"
    kept = p.with_text(p.axial(canvas, "t"), 3, first=True, order=fs.tiled(canvas, 2))
    assert repr(kept).startswith("with_text(pattern=axial(") and repr(kept).endswith(
        "text=3, first=True, order=tiled(t=2, h=2))"
    )


IMAGE = Canvas(h=4, w=4)
WRONG = [
    (lambda: p.reordered(p.causal(), "tiled"), "FS023"),
    (lambda: p.reordered(p.causal(), fs.striped(2)), "FS030"),
    (lambda: p.reordered(p.axial(IMAGE, "h"), fs.striped(2), 15), "FS032"),
    (lambda: p.reordered(p.axial(IMAGE, "h"), fs.tiled(Canvas(t=3, w=2), 2)), "FS033"),
    (lambda: p.with_text(p.causal(), 4), "FS032"),
    (lambda: p.with_text(p.axial(IMAGE, "h"), 0), "FS025"),
    (lambda: p.with_text(p.axial(IMAGE, "h"), 4, [5]), "FS025"),
    (lambda: p.with_text(p.axial(IMAGE, "h"), 4, [-1]), "FS025"),
    (lambda: p.with_text(p.axial(IMAGE, "h"), 4, [[1]]), "FS022"),
    (lambda: p.with_text(p.axial(IMAGE, "h"), 4, first=1), "FS025"),
    (lambda: p.with_text(p.axial(IMAGE, "h"), 4).dense(20), "FS020"),
]


@pytest.mark.parametrize("call, code", WRONG)
def test_wrong_values(call, code):
    with pytest.raises(fs.FlexSpecError) as caught:
        call()
    assert caught.value.code == code
    assert caught.value.where is None or "test_mixed.py" in caught.value.where
