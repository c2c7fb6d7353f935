"""The planner's costs, its plans by head, lengths without a canvas, samples, and mistakes."""

from __future__ import annotations

import pytest
import torch
from flexspec.compiler.planning import cost, counting, ranking
from flexspec.compiler.planning.block_counts import BlockCounts, coarser
from flexspec.compiler.planning.candidates import Candidate
from flexspec.compiler.planning.cost import Shape, attention_seconds, permutation_seconds
from flexspec.compiler.planning.hardware import HARDWARE, Hardware, hardware_at, hardware_of
from flexspec.compiler.planning.ranking import moves

import flexspec as fs
from flexspec.inputs import make_sizes

VIDEO = fs.Canvas(t=4, h=6, w=5)
ACROSS, LINE = fs.axial(VIDEO, "t"), fs.axial(VIDEO, "w")


def rows(*kept: int, full: int | None = None) -> BlockCounts:
    table = torch.tensor(kept).numpy()
    return BlockCounts(table, table if full is None else table * 0 + full)


SHAPE = Shape(q_len=512, kv_len=512, batch=1, heads=1, kv_heads=1, head_dim=64)
FAST_MEMORY = Hardware("arithmetic only", flops=1e12, bandwidth=1e30, sms=2)
FAST_CORES = Hardware("reads only", flops=1e30, bandwidth=1e12, sms=2)


def test_dense_attention_takes_its_flops() -> None:
    seconds = attention_seconds([rows(4, 4, 4, 4)], 1, (128, 128), SHAPE, FAST_MEMORY)
    assert seconds == pytest.approx(4 * 512 * 512 * 64 / (1e12 * cost.ATTAINED))


def test_partial_blocks_cost_more() -> None:
    full, partial = (attention_seconds([rows(4, 4, full=n)], 1, (128, 128), SHAPE, FAST_MEMORY) for n in (4, 0))
    assert partial / full == pytest.approx(cost.PARTIAL_COST)


def test_waves_are_rounded_up_and_the_longest_row_counts() -> None:
    one = attention_seconds([rows(4)], 1, (128, 128), SHAPE, FAST_MEMORY)
    assert attention_seconds([rows(4, 4)], 1, (128, 128), SHAPE, FAST_MEMORY) == pytest.approx(one)
    assert attention_seconds([rows(4, 4, 4)], 1, (128, 128), SHAPE, FAST_MEMORY) == pytest.approx(2 * one)
    assert attention_seconds([rows(4, 0, 0, 0)], 1, (128, 128), SHAPE, FAST_MEMORY) == pytest.approx(one)
    assert attention_seconds([rows(4, 1)], 1, (128, 128), SHAPE, FAST_MEMORY) == pytest.approx(one)
    assert attention_seconds([rows(4)], 4, (128, 128), SHAPE, FAST_MEMORY) == pytest.approx(2 * one)


def test_short_blocks_of_queries_read_more() -> None:
    """The same pairs: half the queries in a block read every key twice as often; blocks past a tile gain nothing."""
    whole = attention_seconds([rows(4, 4, 4, 4)], 1, (128, 128), SHAPE, FAST_CORES)
    assert whole == pytest.approx(4 * 512 * 64 * 4 / (1e12 * cost.CACHE_SPEED))
    assert attention_seconds([rows(*[4] * 8)], 1, (64, 128), SHAPE, FAST_CORES) == pytest.approx(2 * whole)
    assert attention_seconds([rows(4, 4)], 1, (256, 128), SHAPE, FAST_CORES) == pytest.approx(whole)
    assert attention_seconds([rows(2, 2, 2, 2)], 1, (128, 256), SHAPE, FAST_CORES) == pytest.approx(whole)


def test_nothing_to_do_still_reads_and_writes() -> None:
    seconds = attention_seconds([rows(0, 0)], 1, (128, 128), SHAPE, FAST_CORES)
    assert seconds == pytest.approx(4 * 512 * 64 * 2 / 1e12)
    shared = Shape(512, 256, 2, 8, 2, 64)
    assert permutation_seconds(shared, FAST_CORES) == pytest.approx(2 * 2 * (2 * 8 * 512 + 2 * 2 * 256) * 64 * 2 / 1e12)


def test_only_orders_that_move_tokens_pay_for_it() -> None:
    stays = [None, fs.row_major(VIDEO), fs.axes(VIDEO, "t", "h", "w")]
    assert not any(moves(order, 120) for order in stays)
    assert all(moves(order, 120) for order in (fs.tiled(VIDEO, 2), fs.axes(VIDEO, "w", "h", "t"), fs.striped(3)))
    near = fs.neighborhood(VIDEO, window=3)
    there, moved = (fs.plan(near, block_sizes=[4], moved=moved) for moved in (False, True))
    assert {plan.moving for plan in there} == {0.0}
    assert {(plan.moving == 0) == plan.stays for plan in moved} == {True}
    at = {str(plan.order): plan.seconds for plan in there}
    assert all(plan.seconds == pytest.approx(at[str(plan.order)] + plan.moving) for plan in moved)


@pytest.mark.parametrize("mask", [fs.neighborhood(VIDEO, window=3) | fs.causal_window(7), fs.global_tokens(90)])
def test_coarser_tables_of_ragged_maps(mask: fs.Mask) -> None:
    fine = fs.block_map(mask, 120, block_size=(4, 3))
    for times in [(1, 1), (2, 1), (1, 3), (4, 7), (30, 50)]:
        totals = coarser(fine.kinds()[0, 0].numpy(), times).totals
        wanted = fs.block_map(mask, 120, block_size=(4 * times[0], 3 * times[1])).counts()
        assert totals == (wanted[fs.BlockKind.PARTIAL], wanted[fs.BlockKind.FULL])


@pytest.mark.parametrize("limit", [0, 1 << 25])
def test_lengths_without_a_canvas(monkeypatch, limit: int) -> None:
    monkeypatch.setattr(counting, "DENSE", limit)
    sizes = [(16, 16), (32, 16), (24, 48)]
    plans = fs.plan(fs.causal_window(window=30), 101, 203, block_sizes=sizes)
    assert sorted(plan.block_size for plan in plans) == sorted(sizes) and {plan.order for plan in plans} == {None}
    for plan in plans:
        block_map = fs.block_map(fs.causal_window(30), 101, 203, block_size=plan.block_size)
        assert plan.blocks == sum(block_map.counts().values()) - block_map.counts()[fs.BlockKind.EMPTY]
        assert plan.density == pytest.approx(block_map.density)
        assert plan.wasted_pairs == plan.computed_pairs - int(fs.causal_window(30).dense(101, 203).sum())
        assert plan.speedup == pytest.approx(101 * 203 / plan.computed_pairs)


def test_each_kind_of_head_has_plans_of_its_own() -> None:
    spec = fs.per_head([ACROSS, LINE, ACROSS])
    plans = fs.plan(spec, heads=3, block_sizes=[4, (6, 4)])
    assert [group.heads for group in plans.by_head] == [(0, 2), (1,)]
    for group, mask in zip(plans.by_head, (ACROSS, LINE), strict=True):
        alone = {(str(plan.order), plan.block_size): plan for plan in fs.plan(mask, block_sizes=[4, (6, 4)])}
        for plan in group.plans:
            wanted = alone[str(plan.order), plan.block_size]
            assert (plan.partial, plan.full) == (len(group.heads) * wanted.partial, len(group.heads) * wanted.full)
            assert plan.density == pytest.approx(wanted.density)
    for plan in plans:
        block_map = fs.block_map(spec, 120, heads=3, block_size=plan.block_size, order=plan.order)
        assert plan.full == block_map.counts()[fs.BlockKind.FULL] and plan.density == pytest.approx(block_map.density)
    assert plans.seconds_by_head == sum(group.plans.best.seconds for group in plans.by_head)
    assert "heads 0, 2: axes(h, w, t)" in str(plans) and "heads 1: row_major" in str(plans)


def test_the_two_layouts_of_sparse_videogen() -> None:
    video = fs.Canvas(t=8, h=8, w=12)
    spatial, temporal = fs.spatial_head(video, 192), fs.temporal_head(video, 16)
    plans = fs.plan(fs.per_head([spatial, temporal, spatial]), heads=3, block_sizes=[64, 32])
    assert [(each.heads, str(each.plans.best.order)) for each in plans.by_head] == [
        ((0, 2), "row_major"),
        ((1,), "axes(h, w, t)"),
    ]
    assert plans.seconds_by_head < plans.best.seconds


def test_batches_that_differ_are_summed() -> None:
    ids = torch.tensor([[0] * 60 + [1] * 60, [0] * 20 + [1] * 100])
    plans = fs.plan(fs.document(ids), 120, block_sizes=[8], heads=2)
    block_map = fs.block_map(fs.document(ids), 120, block_size=8)
    assert plans.best.full == block_map.counts()[fs.BlockKind.FULL] and plans.best.density == pytest.approx(
        block_map.density
    )
    assert plans.best.kept_pairs == 60**2 * 2 + 20**2 + 100**2 and not plans.by_head


def test_a_sample_narrows_the_orders(monkeypatch) -> None:
    """A mask that is no AND of axes: fewer orders are counted, with the same counts, and the best one stays."""
    cross = fs.mask(canvas=VIDEO)(lambda q, kv: ((q.t == kv.t) & (q.h == kv.h)) | (kv.t == 0) & (q.w == kv.w))
    every = fs.plan(cross, block_sizes=[4, 8], moved=False)
    monkeypatch.setattr(ranking, "EXHAUSTIVE", 0)
    monkeypatch.setattr(ranking, "AFTER_SAMPLE", 5)
    calls: list[tuple[int, int]] = []
    few = fs.plan(cross, block_sizes=[4, 8], moved=False, progress=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls) and calls[-1][0] == calls[-1][1]
    assert 5 <= len({plan.order for plan in few}) <= 8 < len({plan.order for plan in every})
    assert set(few) < set(every) and few.best == every.best
    assert any(plan.stays for plan in few)


def test_devices() -> None:
    assert hardware_of("H100") is HARDWARE["h100"] and hardware_of(FAST_CORES) is FAST_CORES
    assert hardware_at(torch.device("cpu")) is HARDWARE["generic"]
    near = fs.neighborhood(VIDEO, window=3)
    seconds = [fs.plan(near, hardware=name, heads=64).best.seconds for name in ("a100", "h100", "b200")]
    assert seconds == sorted(seconds, reverse=True)


def test_a_table_reads_like_a_list() -> None:
    calls: list[tuple[int, int]] = []
    plans = fs.plan(ACROSS, block_sizes=[4], progress=lambda done, total: calls.append((done, total)))
    assert plans[0] is plans.best and len(plans) == len(list(plans)) and plans[:2] == tuple(plans)[:2]
    assert calls[-1][0] == calls[-1][1] and [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert len(str(plans).splitlines()) <= 13
    own = fs.plan(ACROSS, orders=[fs.striped(3), fs.striped(3), None], block_sizes=[4])
    assert {plan.order for plan in own} == {fs.striped(3), None} and len(own) == 2


def test_scores_may_have_values_that_the_plan_does_not_read() -> None:
    cap = fs.score(lambda score, *, gain: score * gain)
    spec = fs.Attention(mask=ACROSS, scores=[cap])
    assert fs.plan(spec, block_sizes=[4]).best == fs.plan(spec, block_sizes=[4], gain=3).best


@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("FS041", {"hardware": "abacus"}),
        ("FS041", {"hardware": 3}),
        ("FS030", {"block_sizes": []}),
        ("FS030", {"block_sizes": [0]}),
        ("FS030", {"head_dim": 0}),
        ("FS030", {"heads": 6, "kv_heads": 4}),
        ("FS033", {"orders": []}),
        ("FS033", {"orders": ["row_major"]}),
        ("FS033", {"orders": [fs.row_major(fs.Canvas(h=3, w=3))]}),
        ("FS032", {"q_len": 100}),
        ("FS030", {"q_len": "120"}),
        ("FS021", {"window": 3}),
    ],
)
def test_mistakes(code: str, options: dict) -> None:
    with pytest.raises(fs.FlexSpecError) as caught:
        fs.plan(ACROSS, **options)
    assert caught.value.code == code


def test_an_order_that_differs_by_batch_is_refused() -> None:
    with pytest.raises(fs.FlexSpecError, match="differs by batch"):
        fs.plan(ACROSS, orders=[fs.by_label(torch.arange(240).view(2, 120) % 7)])


def test_mistakes_without_a_canvas() -> None:
    for code, spec, options in [
        ("FS030", fs.causal(), {}),
        ("FS031", fs.mask(lambda h, q, kv: q > kv + h), {"q_len": 9}),
        ("FS033", fs.causal(), {"q_len": VIDEO, "kv_len": 100}),
        ("FS023", "causal", {"q_len": 9}),
    ]:
        with pytest.raises(fs.FlexSpecError) as caught:
            fs.plan(spec, **options)
        assert caught.value.code == code


def test_published_shares_of_sliding_tiles() -> None:
    """Sliding tiles have no mixed blocks, 91.00% and 58.33% sparse; token by token 124 of 125 in a row are mixed."""
    video, tile = fs.Canvas(t=30, h=48, w=80), {"t": 6, "h": 8, "w": 8}
    for window, sparsity in [({"t": 18, "h": 24, "w": 24}, 0.91), ({"t": 30, "h": 40, "w": 40}, 7 / 12)]:
        mask = fs.sliding_tile(video, window, tile)
        (plan,) = fs.plan(mask, orders=[fs.tiled(video, tile)], block_sizes=[128], check=0)
        assert plan.partial == 0 and plan.density == pytest.approx(1 - sparsity) and plan.wasted_pairs == 0
    cube = fs.Canvas(t=48, h=48, w=48)
    near = fs.neighborhood(cube, window=11)
    counter = counting.Counter.of(near, near.bind(make_sizes(cube.size), {}))
    ((count,),) = counter.block_counts(Candidate(fs.tiled(cube, 4), ((64, 64),))).values()
    inside = (6 * 12 + 6) * 12 + 6
    assert (count.kept[inside], count.full[inside], len(count.kept)) == (125, 1, 12**3)
