"""The planner: its counts are those of dense masks, its first plan is the best of an exhaustive search."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from flexspec.compiler.planning.block_counts import BlockCounts
from flexspec.compiler.planning.boxes import boxes, permutation
from flexspec.compiler.planning.candidates import Candidate, candidates, cut_evenly, steps_of
from flexspec.compiler.planning.cost import Shape, attention_seconds, permutation_seconds
from flexspec.compiler.planning.counting import Counter
from flexspec.compiler.planning.hardware import Hardware

import flexspec as fs
from flexspec.inputs import make_sizes

VIDEO = fs.Canvas(t=3, h=6, w=5)
ODD = fs.Canvas(h=7, w=9)
LABELS = torch.arange(90) * 7 % 11
MASKS = {
    "neighborhood": (fs.neighborhood(VIDEO, window=3), VIDEO),
    "neighborhood, strided and dilated": (
        fs.neighborhood(
            VIDEO, window={"t": 1, "h": 2, "w": 4}, stride={"t": 1, "h": 2, "w": 3}, dilation={"t": 1, "h": 2, "w": 1}
        ),
        VIDEO,
    ),
    "sliding tile": (fs.sliding_tile(VIDEO, window={"t": 3, "h": 4, "w": 6}, tile={"t": 1, "h": 2, "w": 2}), VIDEO),
    "windows": (fs.windows(ODD, size=3, shift=1, wrap=True), ODD),
    "an axis of captured labels": (fs.mask(canvas=ODD)(lambda q, kv: LABELS[q.h] <= LABELS[kv.w]), ODD),
    "labels on one axis": (fs.mask(canvas=ODD)(lambda q, kv: LABELS[q.h] <= LABELS[kv.h]), ODD),
    "or of axes": (fs.mask(canvas=ODD)(lambda q, kv: (q.h == kv.h) | (q.w == kv.w)), ODD),
    "causal in memory": (fs.causal() & fs.axial(ODD, "h"), ODD),
    "nothing": (fs.axial(ODD, "h") & fs.mask(canvas=ODD)(lambda q, kv: q.h != q.h), ODD),
}
SIZES = [(4, 4), (8, 4), (4, 12), (6, 6), (64, 16)]


def dense_counts(
    mask: fs.Mask, order: fs.Order | None, block: tuple[int, int], length: int, **given: object
) -> list[int]:
    """Partial and full blocks over memory positions, pair by pair."""
    logical = mask.dense(length, **given)
    place = torch.arange(length) if order is None else order.permutation(length)
    at = place.clamp(min=0)
    moved = logical[:, :, at][:, :, :, at] & (place >= 0)[:, None] & (place >= 0)
    counts = [0, 0]
    for i, j in product(range(0, len(place), block[0]), range(0, len(place), block[1])):
        for part in moved[:, :, i : i + block[0], j : j + block[1]].flatten(0, 1):
            if part.any():
                counts[int(part.all())] += 1
    return counts


@pytest.mark.parametrize("cells", [1 << 16, 0], ids=["by axis", "by pairs"])
@pytest.mark.parametrize("name", MASKS)
def test_counts_are_those_of_the_dense_mask(monkeypatch, name: str, cells: int) -> None:
    monkeypatch.setattr("flexspec.compiler.planning.boxes.CELLS", cells)
    monkeypatch.setattr("flexspec.compiler.planning.boxes.ROWS", 5)
    mask, canvas = MASKS[name]
    orders = [fs.striped(4), fs.tiled(canvas, 2)]
    plans = fs.plan(mask, canvas, block_sizes=SIZES, more_orders=orders, check=0)
    assert {plan.block_size for plan in plans} == set(SIZES)
    assert {str(plan.order) for plan in plans} > {str(order) for order in orders}
    kept = int(mask.dense(canvas.size).sum())
    for plan in plans:
        wanted = dense_counts(mask, plan.order, plan.block_size, canvas.size)
        assert [plan.partial, plan.full] == wanted, plan
        places = canvas.size if plan.order is None else plan.order.padded(canvas.size)
        assert plan.possible == -(-places // plan.block_size[0]) * -(-places // plan.block_size[1])
        assert plan.computed_pairs == sum(wanted) * plan.block_size[0] * plan.block_size[1]
        assert plan.wasted_pairs == plan.computed_pairs - kept


@pytest.mark.parametrize("name", MASKS)
def test_checking_changes_nothing(name: str) -> None:
    mask, canvas = MASKS[name]
    plain, checked = (fs.plan(mask, canvas, block_sizes=SIZES, check=check) for check in (0, 1000))
    assert list(plain) == list(checked)


def test_both_ways_of_counting_are_used() -> None:
    def ways(name: str) -> tuple[int, int]:
        mask, canvas = MASKS[name]
        counter = Counter.of(mask, mask.bind(make_sizes(canvas.size), {}))
        if not counter.by_boxes:
            return 0, len(SIZES)
        tile = Candidate(fs.tiled(canvas, 2), tuple(SIZES))
        counts = counter._from_boxes(tile)
        return len(counts), len(SIZES) - len(counts)

    assert ways("neighborhood") == (2, 3)
    assert ways("labels on one axis") == (1, 4)
    assert ways("or of axes") == ways("an axis of captured labels") == ways("causal in memory") == (0, 5)


def test_a_block_is_a_box_only_where_it_is_one() -> None:
    canvas = fs.Canvas(h=4, w=6)
    for order in [
        None,
        fs.axes(canvas, "w", "h"),
        fs.tiled(canvas, h=2, w=4),
        fs.tiled(canvas, h=3, w=3),
        fs.striped(5),
    ]:
        place = permutation(order, 24)
        assert place.tolist() == (list(range(24)) if order is None else order.permutation(24).tolist())
        for block in (1, 2, 3, 4, 5, 6, 8, 9, 12, 24, 30):
            groups = [place[at : at + block] for at in range(0, len(place), block)]
            is_box = []
            for group in groups:
                points = {(int(p) // 6, int(p) % 6) for p in group if p >= 0}
                product_of = {(h, w) for h in {p[0] for p in points} for w in {p[1] for p in points}}
                is_box.append(points == product_of)
            made_boxes = boxes(place, canvas, block)
            assert (made_boxes is not None) == all(is_box), (order, block)
            if made_boxes is not None:
                assert made_boxes.whole.tolist() == [bool((group >= 0).all()) for group in groups]


def test_tiles_that_are_tried_make_boxes() -> None:
    canvas, sizes = fs.Canvas(t=3, h=8, w=10), [(8, 8), (4, 16), (16, 16)]
    tried = candidates(canvas, sizes)
    assert str(tried[0].order) == "row_major"
    assert len({each.order for each in tried}) == len(tried)
    tiles = [each for each in tried if str(each.order).startswith("tiled")]
    assert len(tiles) == 5
    for each in tiles:
        for block in each.block_sizes:
            assert all(boxes(permutation(each.order, canvas.size), canvas, side) is not None for side in block)
    assert [each.order for each in candidates(None, sizes)] == [None]


def test_a_dilated_mask_is_tried_in_its_residue_classes() -> None:
    canvas = fs.Canvas(t=2, h=8, w=6)
    mask = fs.neighborhood(canvas, window={"t": 1, "h": 3, "w": 3}, dilation={"t": 1, "h": 4, "w": 2})
    assert steps_of(mask.expr, canvas) == {"h": 4, "w": 2} and steps_of(fs.axial(canvas, "h").expr, canvas) == {}
    plans = fs.plan(mask, block_sizes=[12], moved=False)
    assert plans.best.order == fs.dilated(canvas, h=4, w=2)
    assert {str(plan.order).partition("(")[0] for plan in plans} >= {
        "row_major",
        "axes",
        "morton",
        "hilbert",
        "dilated",
    }


def test_cutting_evenly() -> None:
    assert cut_evenly((2, 3, 4), 4) and cut_evenly((2, 3, 4), 12) and cut_evenly((2, 3, 4), 2)
    assert not cut_evenly((2, 3, 4), 8) and not cut_evenly((2, 3, 4), 3)
    assert cut_evenly((5, 4), 8), "a ragged end of the leading digit"
    assert cut_evenly((2, 3), 100), "one block"


ALL_TILES = [dict(zip("thw", tile, strict=True)) for tile in product((1, 2, 3), (1, 2, 3, 6), (1, 2, 3, 4, 5))]


@pytest.mark.parametrize("name", ["neighborhood", "neighborhood, strided and dilated", "sliding tile"])
@pytest.mark.parametrize("moved", [False, True])
def test_the_first_plan_is_the_best_of_an_exhaustive_search(name: str, moved: bool) -> None:
    """Over every tile of the canvas, also those that the candidates leave out, counted pair by pair."""
    mask, canvas = MASKS[name]
    sizes = [(4, 4), (8, 8), (8, 4)]
    few = Hardware("few", 1e9, 1e9, 3)
    plans = fs.plan(mask, block_sizes=sizes, hardware=few, head_dim=16, heads=2, moved=moved)
    assert [plan.seconds for plan in plans] == sorted(plan.seconds for plan in plans)
    shape = Shape(canvas.size, canvas.size, 1, 2, 2, 16)
    best = float("inf")
    dense = mask.dense(canvas.size)[0, 0].numpy()
    for tile in ALL_TILES:
        order = fs.tiled(canvas, **tile)
        if order.padded(canvas.size) > 1.25 * canvas.size:
            continue
        place = order.permutation(canvas.size).numpy()
        moved_mask = dense[np.ix_(place, place)] & (place >= 0)[:, None] & (place >= 0)
        costs = permutation_seconds(shape, few) if moved and order.permutes else 0.0
        for block in sizes:
            seconds = attention_seconds([rows_of(moved_mask, block)], 2, block, shape, few)
            best = min(best, seconds + costs)
    assert plans.best.seconds <= best * (1 + 1e-12)


def rows_of(dense: np.ndarray, block: tuple[int, int]) -> BlockCounts:
    kept, full = [], []
    for i in range(0, len(dense), block[0]):
        parts = [dense[i : i + block[0], j : j + block[1]] for j in range(0, dense.shape[1], block[1])]
        kept.append(sum(bool(part.any()) for part in parts))
        full.append(sum(bool(part.all()) for part in parts))
    return BlockCounts(np.array(kept), np.array(full))


def test_a_canvas_beside_text() -> None:
    """The orders of the canvas' plans, beside text: counts of the block maps, in a ragged length."""
    canvas = fs.Canvas(t=3, h=5, w=4)
    near = fs.neighborhood(canvas, window={"t": 3, "h": 3, "w": 2})
    both = fs.with_text(near, text=7, lengths=[4])
    orders = [fs.concatenated(plan.order, 7) for plan in fs.plan(near, block_sizes=[8])[:4]]
    plans = fs.plan(both, canvas.size + 7, orders=[None, *orders], block_sizes=[8, (4, 8)], check=0)
    assert len({plan.order for plan in plans}) > 2
    for plan in plans:
        block_map = fs.block_map(both, canvas.size + 7, order=plan.order, block_size=plan.block_size)
        assert (plan.partial, plan.full) == (
            block_map.counts()[fs.BlockKind.PARTIAL],
            block_map.counts()[fs.BlockKind.FULL],
        )
