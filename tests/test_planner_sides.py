"""Plans for a mask with a canvas for each side: an order for each, with exact counts."""

import pytest
import torch
from flexspec.compiler.planning.candidates import candidates
from hypothesis import given, settings
from hypothesis import strategies as st
from random_masks import block_kinds

import flexspec as fs
from flexspec.canvas import CanvasPair
from flexspec.errors import FlexSpecError
from flexspec.order import as_order

FRAME, CACHE = fs.Canvas(h=8, w=12), fs.Canvas(t=3, h=8, w=12)
PAIR = CanvasPair(FRAME, CACHE)


def columns(near=1):
    return fs.mask(q_canvas=FRAME, kv_canvas=CACHE)(lambda q, kv: (q.w - kv.w).abs() <= near)


def moved(dense, order):
    """A dense mask in memory, by the permutations of the sides; padding is not kept."""
    for axis, side in enumerate(("q", "kv")):
        own = None if order is None else order.side(side)
        if own is not None:
            table = own.permutation(dense.shape[axis])
            there = (table >= 0).unsqueeze(1 - axis)
            dense = dense.index_select(axis, table.clamp(min=0)) & there
    return dense


def check_counts(mask, plans, sizes=()):
    dense = mask.dense(*sizes)[0, 0]
    for plan in plans:
        kinds = block_kinds(moved(dense, plan.order)[None, None], *plan.block_size)
        assert (plan.partial, plan.full) == ((kinds == 1).sum(), (kinds == 2).sum()), plan
        assert plan.kept_pairs == dense.sum()


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 7), st.integers(0, 11), st.sampled_from([(8, 8), (16, 24), (24, 7)]))
def test_counts_are_those_of_the_dense_mask(high, wide, block):
    mask = fs.mask(q_canvas=FRAME, kv_canvas=CACHE)(
        lambda q, kv: ((q.h - kv.h).abs() <= high) & ((q.w - kv.w).abs() <= wide) & (q.h + kv.t >= kv.w - q.w)
    )
    check_counts(mask, fs.plan(mask, block_sizes=[block], moved=False, check=0), (FRAME.size, CACHE.size))


def test_the_first_plan_puts_columns_side_by_side():
    plans = fs.plan(columns(0), block_sizes=[8], moved=False)
    assert (plans.shape.q_len, plans.shape.kv_len) == (FRAME.size, CACHE.size)
    assert str(plans.best.order.side("q")) == "axes(w, h)"
    assert plans.best.partial == 0 and plans.best.kept_pairs == plans.best.computed_pairs
    assert any(plan.order is None for plan in plans)
    assert plans.best.seconds < next(plan for plan in plans if plan.order is None).seconds


def test_candidates_are_alike_on_both_sides_or_leave_one():
    tried = {str(each.order) for each in candidates(PAIR, [(16, 32)], steps={"w": 3})}
    for wanted in (
        "None",
        "(hilbert, hilbert)",
        "(None, hilbert)",
        "(hilbert, None)",
        "(axes(w, h), axes(w, t, h))",
        "(dilated(h=1, w=3), dilated(t=1, h=1, w=3))",
        "(tiled(h=4, w=4), tiled(t=1, h=8, w=4))",
    ):
        assert wanted in tried
    assert not any("hilbert, morton" in text or "row_major" in text for text in tried)
    one_side = {str(each.order) for each in candidates(CanvasPair(FRAME, None), [(16, 32)])}
    assert {"None", "(tiled(h=4, w=4), None)", "(axes(w, h), None)"} <= one_side


def test_moving_one_side_costs_less_than_moving_both():
    orders = [None, (fs.hilbert(FRAME), None), (None, fs.hilbert(CACHE)), (fs.hilbert(FRAME), fs.hilbert(CACHE))]
    moving = {str(plan.order): plan.moving for plan in fs.plan(columns(), orders=orders, block_sizes=[8])}
    q, kv = moving["(hilbert, None)"], moving["(None, hilbert)"]
    assert moving["None"] == 0 < q < kv
    assert moving["(hilbert, hilbert)"] == pytest.approx(q + kv)
    assert kv == pytest.approx(q * CACHE.size / FRAME.size)


def test_orders_by_side_of_one_canvas_are_counted_by_boxes_too():
    mask, tiles = fs.neighborhood(FRAME, window=5), fs.tiled(FRAME, h=4, w=4)
    orders = [None, tiles, (tiles, None), (None, tiles), (tiles, fs.axes(FRAME, "w", "h"))]
    plans = fs.plan(mask, orders=orders, block_sizes=[16, (8, 16)], check=0)
    assert len(plans) == 10
    check_counts(mask, plans, (FRAME.size,))


def test_a_large_cache_is_sampled_first():
    frame, cache = fs.Canvas(h=48, w=40), fs.Canvas(t=20, h=48, w=40)
    mask = fs.mask(q_canvas=frame, kv_canvas=cache)(lambda q, kv: (q.w - kv.w).abs() <= 1)
    plans = fs.plan(mask, block_sizes=[(16, 32)], moved=False, check=1)
    assert len(plans) < len(candidates(CanvasPair(frame, cache), [(16, 32)]))
    best = fs.block_map(mask, frame.size, cache.size, order=plans.best.order, block_size=(16, 32))
    assert plans.best.blocks == best.counts()[1] + best.counts()[2]


def test_attention_plans_at_its_first_call():
    q, k, v = (torch.randn(2, 2, canvas.size, 16) for canvas in (FRAME, CACHE, CACHE))
    attend = fs.compile(columns(0), order="auto", block_size=8, backend="blocks")
    kept = (torch.arange(96) % 12)[:, None] == torch.arange(288) % 12
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=kept)
    torch.testing.assert_close(attend(q, k, v), wanted, rtol=2e-5, atol=2e-5)
    assert attend.plans(FRAME.size, CACHE.size).shape.kv_len == CACHE.size


def test_video_over_text():
    assert len(fs.plan(columns(), FRAME, block_sizes=[16])) == len(fs.plan(columns(), block_sizes=[16]))
    mask = fs.mask(q_canvas=CACHE)(lambda q, kv: kv // 7 == q.t)
    plans = fs.plan(mask, kv_len=21, block_sizes=[16], moved=False)
    check_counts(mask, plans, (CACHE.size, 21))


def test_what_does_not_fit():
    turned = as_order((fs.hilbert(CACHE), fs.hilbert(FRAME)))
    by_head = (fs.by_label(torch.zeros(1, 2, FRAME.size, dtype=torch.int64)), None)
    for code, call in (
        ("FS033", lambda: fs.plan(columns(), orders=[turned])),
        ("FS033", lambda: fs.plan(columns(), orders=[by_head], heads=2)),
        ("FS033", lambda: fs.plan(columns(), orders=[(None, 3)])),
        ("FS032", lambda: fs.plan(columns(), FRAME.size, 100)),
        ("FS030", lambda: fs.plan(columns().T, FRAME)),
        ("FS030", lambda: fs.plan(fs.mask(kv_canvas=CACHE)(lambda q, kv: q // 7 == kv.t))),
    ):
        with pytest.raises(FlexSpecError) as found:
            call()
        assert found.value.code == code, found.value
