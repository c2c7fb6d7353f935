"""Slices of a block map are the block map of the slice: against the dense mask, cut and classified anew."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_masks import block_kinds, make_mask, masks, tables
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import create_mask, flex_attention

import flexspec as fs


def same_as_crop(whole, kept, q, kv_len):
    """kept: the dense mask of the whole."""
    part = whole.slice(q, kv_len=kv_len)
    start, stop = q or (0, whole.q_len)
    crop = kept[:, :, start:stop, : kv_len or whole.kv_len]
    wanted = block_kinds(crop, whole.block_q, whole.block_kv)
    assert torch.equal(part.kinds().expand_as(wanted), wanted), (q, kv_len)
    assert part.kept_pairs * crop.numel() == int(crop.sum()) * part.index.size * part.q_len * part.kv_len
    b, h = part.batch - 1, part.heads - 1
    assert part.tokens(0, part.q_len, 0, part.kv_len, b=b, h=h).equal(crop[b, h])
    seen = create_mask(part.mask_mod, *crop.shape, device="cpu")
    assert torch.equal(seen, crop)
    for runs in part.maps:
        ends = zip(runs.first[:-1], runs.first[1:], strict=True)
        rows = [[*zip(runs.start[a:z], runs.stop[a:z], runs.kind[a:z], strict=True)] for a, z in ends]
        assert all(one[:0:-2] != two[::2] for row in rows for one, two in zip(row, row[1:], strict=False))
        assert all(one[1] <= two[0] for row in rows for one, two in zip(row, row[1:], strict=False))
    return part


@settings(max_examples=150, deadline=None)
@given(masks, st.data())
def test_random_slices_of_random_masks(written, data):
    q_len, kv_len = (data.draw(st.integers(1, 70)) for _ in range(2))
    block_q, block_kv = data.draw(st.sampled_from([(1, 8), (8, 8), (16, 5), (7, 31), (99, 3)]))
    held = tables(max(q_len, kv_len, 4), 2, 3, data.draw(st.integers(0, 99)))
    mask = make_mask(written, held)
    whole = fs.block_map(mask, q_len, kv_len, batch=2, heads=3, block_size=(block_q, block_kv))
    kept = mask.dense(q_len, kv_len, batch=2, heads=3)
    start = data.draw(st.integers(0, (q_len - 1) // block_q)) * block_q
    part = same_as_crop(
        whole, kept, (start, data.draw(st.integers(start + 1, q_len))), data.draw(st.integers(1, kv_len))
    )
    inside = data.draw(st.integers(0, q_len - 1))
    end = min((inside // block_q + 1) * block_q, q_len)
    same_as_crop(whole, kept, (inside, data.draw(st.integers(inside + 1, end))), data.draw(st.integers(1, kv_len)))
    again = same_as_crop(part, kept[:, :, start : start + part.q_len, : part.kv_len], None, (part.kv_len + 1) // 2)
    assert again.q_len == part.q_len


def test_every_growing_length_of_a_window():
    mask = fs.sink_window(sink=3, window=20)
    whole = fs.block_map(mask, 60, block_size=(8, 8))
    kept = mask.dense(60)
    for position in range(60):
        part = same_as_crop(whole, kept, (position, position + 1), position + 1)
        assert part.kinds().shape == (1, 1, 1, position // 8 + 1)


def test_orders_are_cut_in_memory():
    canvas = fs.Canvas(h=11, w=13)

    @fs.mask(canvas=canvas)
    def near(h, q, kv):
        return ((q.h - kv.h).abs() <= 2) & ((q.w - kv.w).abs() <= 3 + h)

    for order in (fs.tiled(canvas, h=4, w=4), fs.axes(canvas, "w", "h"), fs.striped(4)):
        at = order.permutation(143)
        whole = fs.block_map(near, 143, heads=2, order=order, block_size=(16, 12))
        kept = near.dense(143, heads=2)[:, :, at.clamp(min=0)][..., at.clamp(min=0)] & (at >= 0) & (at >= 0)[:, None]
        for q, kv_len in (((32, 75), 100), (None, 91), ((128, 143), 143), ((50, 60), 77)):
            same_as_crop(whole, kept, q, kv_len)


def test_the_mask_keeps_the_sizes_that_it_was_told():
    late = fs.mask(lambda q, kv, q_len, kv_len: q - q_len >= kv - kv_len)
    same_as_crop(fs.block_map(late, 90, 100, block_size=8), late.dense(90, 100), (16, 50), 70)


@pytest.mark.parametrize(
    ("q", "kv_len", "fix"),
    [
        ((8, 200), None, "start at 0"),
        ((100, 300), None, "stop at 128"),
        ((0, 1001), None, None),
        ((5, 5), None, None),
        ((-128, 5), None, "at least 0"),
        ((0, 1.5), None, "at least 1"),
        (7, None, r"\(start, stop\)"),
        (None, 0, "at least 1"),
        (None, 1001, "longest"),
    ],
)
def test_slices_that_make_no_sense(q, kv_len, fix):
    with pytest.raises(fs.FlexSpecError, match=fix) as caught:
        fs.block_map(fs.causal(), 1000).slice(q, kv_len=kv_len)
    assert caught.value.code == "FS030"


def test_chunked_prefill_runs_compiled_and_compiles_once():
    @torch.compile(dynamic=True, fullgraph=True)
    def compiled(q, k, v, block_mask):
        return flex_attention(q, k, v, block_mask=block_mask)

    mask = fs.causal_window(90) | fs.sink(2)
    q, k, v = (torch.randn(3, 5, 330, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    whole = fs.block_map(mask, 330, block_size=32)
    seen = []
    for start in range(96, 288, 96):
        end, so_far = start + 96, start + 100
        lists = whole.slice((start, end), kv_len=so_far).to_flex(compact=False)
        cut = q[:, :, start:end], k[:, :, :so_far], v[:, :, :so_far]
        rows = compiled(*cut, lists)
        kept = mask.dense(330)[..., start:end, :so_far]
        truth = torch.nn.functional.scaled_dot_product_attention(*cut, attn_mask=kept)
        assert (rows - truth).abs().max() < 3e-6
        seen.append(counters["stats"]["unique_graphs"])
    assert seen[0] == seen[-1]
