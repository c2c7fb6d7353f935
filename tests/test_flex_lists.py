"""Index lists for torch: compact ones hold the blocks of the map, and compiled runs with them are right."""

import numpy as np
import pytest
import torch
from flexspec.compiler.backends import flex
from hypothesis import given, settings
from hypothesis import strategies as st
from random_masks import make_mask, masks, tables
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention

import flexspec as fs

SIDES = ("kv", "q")


@torch.compile(dynamic=True, fullgraph=True)
def compiled(q, k, v, block_mask):
    return flex_attention(q, k, v, block_mask=block_mask)


def blocks_in(lists, side):
    """Kinds [batch, heads, rows, columns] as the lists of one side say, and how often each block is named."""
    counts = [getattr(lists, f"{full}{side}_num_blocks") for full in ("", "full_")]
    shape = (*counts[0].shape, getattr(lists, f"{SIDES[side == 'kv']}_num_blocks").shape[-1])
    kinds = torch.zeros(shape, dtype=torch.uint8)
    named = torch.zeros(shape, dtype=torch.int64)
    for kind, full in ((1, ""), (2, "full_")):
        count, indices = getattr(lists, f"{full}{side}_num_blocks"), getattr(lists, f"{full}{side}_indices")
        assert count.dtype == indices.dtype == torch.int32
        for b, h, row in np.ndindex(*count.shape):
            listed = indices[b, h, row, : count[b, h, row]].tolist()
            assert listed == sorted(listed)
            for column in listed:
                kinds[b, h, row, column] = kind
                named[b, h, row, column] += 1
    return kinds, named


def same_blocks(made):
    """The compact lists name the blocks that torch's lists name, once each, on both sides."""
    dense, compact = made.to_flex(compact=False), made.to_flex()
    for side in SIDES:
        wanted, _ = blocks_in(dense, side)
        kinds, named = blocks_in(compact, side)
        assert torch.equal(kinds, wanted) and int(named.max()) <= 1
        views = [getattr(compact, f"{full}{side}_indices") for full in ("", "full_")]
        assert views[0].stride() == views[1].stride() and views[0].shape == views[1].shape
        for view in views:
            last = sum((size - 1) * step for size, step in zip(view.shape, view.stride(), strict=True))
            assert last < view.untyped_storage().nbytes() // 4
            assert int(view.min()) >= 0 and int(view.max()) < wanted.shape[-1]
    return compact


lengths = st.integers(1, 90)


@settings(max_examples=80, deadline=None)
@given(masks, lengths, lengths, st.sampled_from([(8, 8), (16, 5), (7, 31)]), st.integers(0, 99))
def test_random_masks_name_the_same_blocks(written, q_len, kv_len, block, seed):
    held = tables(max(q_len, kv_len, 4), 2, 3, seed)
    same_blocks(fs.block_map(make_mask(written, held), q_len, kv_len, batch=2, heads=3, block_size=block))


def test_lists_are_as_wide_as_the_fullest_row():
    made = fs.block_map(fs.causal_window(1024), 1_048_576)
    lists = made.to_flex()
    indices = [getattr(lists, f"{full}{side}_indices") for full in ("", "full_") for side in SIDES]
    assert {x.shape[-1] for x in indices} == {8192} and {x.stride(-2) for x in indices} == {7}
    assert sum(x.untyped_storage().nbytes() for x in indices) == 4 * 4 * (8192 * 7 + 8192 - 7)
    sink = fs.block_map(fs.sink(3), 1000, block_size=10).to_flex()
    assert (sink.kv_indices.stride(-2), sink.q_indices.stride(-2)) == (1, 100)
    nothing = fs.block_map(fs.mask(lambda kv: kv < 0), 100, block_size=10).to_flex()
    assert nothing.kv_indices.stride(-2) == 1 and not nothing.kv_num_blocks.any()


def test_other_devices_get_contiguous_lists():
    lists = fs.block_map(fs.causal_window(20), 300, block_size=10, device="meta").to_flex()
    assert lists.kv_indices.shape == lists.full_kv_indices.shape == (1, 1, 30, 2)
    assert all(getattr(lists, f"{side}_indices").is_contiguous() for side in SIDES)


def test_torch_lists_are_still_there():
    made = fs.block_map(fs.causal_window(100), 700)
    whole, drop_in = made.to_flex(compact=False), fs.create_block_mask(fs.causal_window(100), 1, 1, 700, 700)
    for side in SIDES:
        assert torch.equal(getattr(whole, f"{side}_indices"), getattr(drop_in, f"{side}_indices"))
    assert whole.kv_indices.is_contiguous() and made.to_flex(compact=False).kv_indices is whole.kv_indices


by_head = fs.mask(lambda h, q, kv: (q >= kv) & (q - kv < 40 * (h % 2 + 1)))
both = fs.mask(lambda b, h, q, kv: (q - kv < 50 * b + 20 * h) & (kv - q < 20))
CASES = [
    ("window", fs.causal_window(70), 300, 300, (64, 64), {}),
    ("sink and window", fs.sink_window(sink=4, window=70), 333, 333, (64, 64), {}),
    ("documents", fs.document() & fs.causal(), 350, 350, (64, 64), {"document_id": torch.arange(350)[None] // 61}),
    ("heads that share maps", by_head, 310, 310, (32, 64), {}),
    ("batch and heads", both, 200, 310, (64, 32), {}),
    ("queries and keys", fs.causal(offset=-150), 420, 290, (32, 32), {}),
    ("nothing", fs.mask(lambda q, kv: q < kv - 999), 260, 260, (64, 64), {}),
    ("full ragged", fs.mask(lambda q, kv: (q >= 0) & (kv // 64 != 2)), 300, 333, (64, 64), {}),
]


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_compiled_runs_are_right(case, monkeypatch):
    """Through `fs.compile`, which takes compact lists here whatever their size."""
    monkeypatch.setattr(flex, "DENSE_BYTES", 0)
    _, mask, q_len, kv_len, block, values = case
    made = torch.Generator().manual_seed(q_len)
    q, k, v = (torch.randn(2, 4, n, 16, generator=made) for n in (q_len, kv_len, kv_len))
    attend = fs.compile(mask, block_size=block, backend="flex")
    out = attend(q, k, v, **values)
    assert (out - fs.reference_attention(mask, q, k, v, **values)).abs().max() < 3e-6
    lists = same_blocks(attend.block_map(q_len, kv_len, batch=2, heads=4, **values))
    assert lists.kv_indices.stride(-2) < lists.kv_indices.shape[-1] or case[0] == "full ragged"


@fs.mask
def blocky(q, kv):
    """A scatter of pairs, whole blocks of it kept or empty."""
    return ((q // 16 * 7 + kv // 16 * 5) % 11 < 3) & ((q + kv * 3) % 5 != (q // 64) % 9)


def test_a_missing_block_would_be_seen():
    """What the tests above rest on: compiled runs follow the lists, and not only the mask."""
    q, k, v = (torch.randn(1, 2, 200, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    made = fs.block_map(blocky, 200, block_size=16)
    lists = made.to_flex()
    wanted = fs.reference_attention(blocky, q, k, v)
    assert (compiled(q, k, v, lists) - wanted).abs().max() < 3e-6
    lists.kv_num_blocks = (lists.kv_num_blocks - 1).clamp(min=0)
    assert (compiled(q, k, v, lists) - wanted).abs().max() > 1e-2


def test_a_new_window_recompiles_nothing():
    """Below DENSE_BYTES the lists keep torch's strides, as a row stride is part of what a kernel is compiled for."""

    @fs.mask
    def near(q, kv, *, window):
        return (q >= kv) & (q - kv < window)

    attend = fs.compile(near, backend="flex", block_size=32)
    q, k, v = (torch.randn(5, 7, 300, 16) for _ in range(3))
    seen = []
    for window in (3, 50, 290, 120):
        attend(q, k, v, window=window)
        seen.append(counters["stats"]["unique_graphs"])
    assert seen[1:] == seen[:1] * 3
