"""Every order against plain loops, both ways, as expressions and as tensors; and what moves tokens by it."""

from __future__ import annotations

import copy
import pickle
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flexspec as fs
from flexspec.evaluate import evaluate
from flexspec.expr import var
from flexspec.order import Order

NAMES = ("t", "h", "w")
SIDES = [sides for rank in (1, 2, 3) for sides in product(range(1, 7), repeat=rank)]


def canvas_of(sides: tuple[int, ...]) -> fs.Canvas:
    return fs.Canvas(**dict(zip(NAMES, sides, strict=False)))


def position_of(point: tuple[int, ...], sides: tuple[int, ...]) -> int:
    """Row-major, -1 outside."""
    position = 0
    for at, side in zip(point, sides, strict=True):
        if at >= side:
            return -1
        position = position * side + at
    return position


def counted(ends: list[tuple[int, ...]]):
    """Points of a counter of counters: `ends` are the digits' counts of each level, slowest first."""
    return product(*(product(*map(range, level)) for level in ends))


def check_both_ways(order: Order, length: int, wanted: list[int] | None = None) -> None:
    """A bijection: expressions and tensors agree, and undo each other."""
    source = order.permutation(length).tolist()
    kept = [position for position in source if position >= 0]
    assert sorted(kept) == list(range(length)) and len(source) == order.padded(length)
    if wanted is not None:
        assert source == wanted
    values = {**order.tensors(), "m": torch.arange(len(source))}
    place = order.place(var("m"), length)
    logical = evaluate(place.logical, values).expand(len(source))
    valid = torch.ones(1, dtype=torch.bool) if place.valid is None else evaluate(place.valid, values)
    assert torch.where(valid, logical, -1).tolist() == source
    assert logical.min() >= 0 and logical.max() < length
    back = evaluate(order.memory(var("i"), length), {**values, "i": torch.arange(length)}).expand(length)
    assert back.tolist() == order.inverse(length).tolist() == [source.index(i) for i in range(length)]
    if order.canvas:
        at = [evaluate(part, values).expand(len(source)).tolist() for part in place.coordinates.values()]
        sides = tuple(order.canvas.lengths.values())
        assert [position_of(point, sides) for point in zip(*at, strict=True)] == logical.tolist()


@pytest.mark.parametrize("sides", [s for s in SIDES if len(s) < 3 or max(s) < 5], ids=str)
def test_tiles_of_every_side(sides: tuple[int, ...]) -> None:
    canvas = canvas_of(sides)
    for tile in product(*(range(1, side + 2) for side in sides)):
        if len(sides) == 3 and sum(tile) % 3:
            continue  # a third of them is enough
        order = fs.tiled(canvas, dict(zip(canvas.names, tile, strict=True)))
        counts = tuple(-(-side // each) for side, each in zip(sides, tile, strict=True))
        wanted = [
            position_of(tuple(a * side + b for a, side, b in zip(outer, tile, inner, strict=True)), sides)
            for outer, inner in counted([counts, tile])
        ]
        check_both_ways(order, canvas.size, wanted if order.permutes else list(range(canvas.size)))


@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_dilations_and_curves_of_every_canvas(sides: tuple[int, ...]) -> None:
    canvas = canvas_of(sides)
    for steps in [(2,) * len(sides), (3, 1, 2)[: len(sides)], (1, 4, 3)[: len(sides)], (9,) * len(sides)]:
        order = fs.dilated(canvas, dict(zip(canvas.names, steps, strict=True)))
        least = tuple(min(step, side) for step, side in zip(steps, sides, strict=True))
        counts = tuple(-(-side // step) for side, step in zip(sides, least, strict=True))
        wanted = [
            position_of(tuple(r + step * x for r, step, x in zip(residue, least, at, strict=True)), sides)
            for residue, at in counted([least, counts])
        ]
        check_both_ways(order, canvas.size, wanted if order.permutes else list(range(canvas.size)))
    points = list(product(*map(range, sides)))
    ranked = sorted(range(canvas.size), key=lambda i: morton_code(points[i], sides))
    check_both_ways(fs.morton(canvas), canvas.size, ranked)
    check_both_ways(fs.hilbert(canvas), canvas.size)
    check_both_ways(fs.row_major(canvas), canvas.size, list(range(canvas.size)))
    check_both_ways(fs.axes(canvas, *reversed(canvas.names)), canvas.size)


def morton_code(point: tuple[int, ...], sides: tuple[int, ...]) -> str:
    """The bits of all axes from the highest place down; an axis has only as many as its side needs."""
    code = ""
    for bit in reversed(range(3)):
        for at, side in zip(point, sides, strict=True):
            if side > 1 << bit:
                code += str(at >> bit & 1)
    return code


@pytest.mark.parametrize(("axes", "bits"), [(1, 4), (2, 1), (2, 3), (2, 5), (3, 1), (3, 2), (3, 3), (4, 2), (5, 1)])
def test_the_hilbert_curve_steps_to_neighbours_and_fills_cubes(axes: int, bits: int) -> None:
    side = 1 << bits
    canvas = fs.Canvas(**{f"x{axis}": side for axis in range(axes)})
    order = fs.hilbert(canvas)
    points = torch.stack(torch.unravel_index(order.permutation(canvas.size), (side,) * axes), 1)
    assert (points.diff(dim=0).abs().sum(1) == 1).all()
    for half in range(1, bits):
        cubes = (points >> half).view(-1, 1 << half * axes, axes)  # aligned parts of the curve are aligned cubes
        assert torch.equal(cubes.amin(1), cubes.amax(1))


def test_a_hilbert_curve_of_part_of_a_cube_keeps_its_order() -> None:
    whole, part = fs.Canvas(h=8, w=8), fs.Canvas(h=5, w=7)
    h, w = torch.unravel_index(fs.hilbert(whole).permutation(64), (8, 8))
    inside = (h < 5) & (w < 7)
    assert torch.equal(fs.hilbert(part).permutation(35), (h * 7 + w)[inside])


@pytest.mark.parametrize("sides", [(4, 4), (8, 2), (2, 8, 4), (1, 8), (16,)], ids=str)
def test_morton_of_powers_of_two_is_tiles_of_tiles(sides: tuple[int, ...]) -> None:
    canvas = canvas_of(sides)
    levels = [{n: min(1 << bit, side) for n, side in canvas.axes} for bit in reversed(range(1, 4))]
    assert torch.equal(fs.morton(canvas).permutation(canvas.size), fs.tiled(canvas, *levels).permutation(canvas.size))


def test_tiles_of_tiles() -> None:
    for sides, outer, inner in [((7, 9), (4, 6), (2, 3)), ((5, 6), (6, 4), (3, 4)), ((3, 8, 5), (2, 4, 4), (1, 2, 2))]:
        canvas = canvas_of(sides)
        levels = [dict(zip(canvas.names, each, strict=True)) for each in (outer, inner)]
        counts = [tuple(-(-a // b) for a, b in zip(*pair, strict=True)) for pair in ((sides, outer), (outer, inner))]
        wanted = [
            position_of(tuple(a * p + b * r + c for a, p, b, r, c in zip(x, outer, y, inner, z, strict=True)), sides)
            for x, y, z in counted([*counts, inner])
        ]
        check_both_ways(fs.tiled(canvas, *levels), canvas.size, wanted)
        one = dict.fromkeys(canvas.names, 1)
        assert fs.tiled(canvas, levels[0], one).permutation(canvas.size).tolist() == (
            fs.tiled(canvas, levels[0]).permutation(canvas.size).tolist()
        )


@pytest.mark.parametrize("length", range(1, 30))
@pytest.mark.parametrize("ranks", range(1, 6))
def test_ranks(ranks: int, length: int) -> None:
    share = -(-length // ranks)
    striped = [i * ranks + rank for rank in range(ranks) for i in range(share)]
    check_both_ways(fs.striped(ranks), length, [at if at < length else -1 for at in striped])
    size = -(-length // (2 * ranks))
    chunks = [chunk for rank in range(ranks) for chunk in (rank, 2 * ranks - 1 - rank)]
    zigzag = [chunk * size + i for chunk in chunks for i in range(size)]
    check_both_ways(fs.zigzag(ranks), length, [at if at < length else -1 for at in zigzag])


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_causal_work_is_the_same_on_every_rank(ranks: int) -> None:
    """Zigzag: exactly. Striped: a rank has at most one key a query more than the next."""
    size = 4
    length = 2 * ranks * size
    kept = fs.causal().dense(length)[0, 0].sum(1)
    share = length // ranks
    assert len({int(part.sum()) for part in kept[fs.zigzag(ranks).permutation(length)].split(share)}) == 1
    striped = [int(part.sum()) for part in kept[fs.striped(ranks).permutation(length)].split(share)]
    assert max(striped) - min(striped) == share * (ranks - 1)
    rows = fs.block_map(fs.causal(), length, order=fs.zigzag(ranks), block_size=size).kinds()[0, 0] > 0
    assert len({int(part.sum()) for part in rows.split(share // size)}) == 1


def test_by_label_is_a_stable_sort() -> None:
    labels = torch.tensor([3, -1, 3, 0, -1, 7, 0, 3])
    wanted = sorted(range(8), key=lambda i: (int(labels[i]), i))
    check_both_ways(fs.by_label(labels), 8, wanted)
    check_both_ways(fs.by_label(labels.to(torch.int16)[None]), 8, wanted)
    both = torch.stack([labels, labels.flip(0)])
    order = fs.by_label(both)
    assert order.permutation(8)[0].tolist() == wanted
    assert order.permutation(8)[1].tolist() == sorted(range(8), key=lambda i: (int(both[1, i]), i))
    assert torch.equal(order.permutation(8).gather(1, order.inverse(8)), torch.arange(8).expand(2, 8))
    labels.zero_()  # an order does not change with the caller's tensor
    assert order.permutation(8)[0].tolist() == wanted
    assert order != fs.by_label(both) and len({order, order}) == 1


def test_segments_one_after_the_other() -> None:
    first, second = fs.tiled(fs.Canvas(h=3, w=5), h=2, w=2), fs.hilbert(fs.Canvas(h=3, w=3))
    order = fs.concatenated(4, first, second, 2)
    wanted = list(range(4))
    wanted += [at + 4 if at >= 0 else -1 for at in first.permutation(15).tolist()]
    wanted += [at + 19 for at in second.permutation(9).tolist()] + [28, 29]
    check_both_ways(order, 30, wanted)
    check_both_ways(fs.concatenated(1, fs.concatenated(2, second)), 12)
    labels = torch.tensor([[1, 0, 1], [0, 1, 0]])
    batched = fs.concatenated(2, fs.by_label(labels))
    assert batched.permutation(5).tolist() == [[0, 1, 3, 2, 4], [0, 1, 2, 4, 3]]


VIDEO = fs.Canvas(t=2, h=3, w=5)
ORDERS: dict[str, Order] = {
    "row_major": fs.row_major(VIDEO),
    "axes(w, t, h)": fs.axes(VIDEO, "w", "t", "h"),
    "tiled(t=2, h=2, w=3)": fs.tiled(VIDEO, t=2, h=2, w=3),
    "tiled({t: 2, h: 2, w: 4}, {t: 1, h: 2, w: 2})": fs.tiled(VIDEO, {"t": 2, "h": 2, "w": 4}, {"h": 2, "w": 2}),
    "dilated(t=1, h=2, w=3)": fs.dilated(VIDEO, h=2, w=3),
    "morton": fs.morton(VIDEO),
    "hilbert": fs.hilbert(VIDEO),
    "striped(4)": fs.striped(4),
    "zigzag(4)": fs.zigzag(4),
    "by_label(<int64[30]>)": fs.by_label(torch.arange(30) * 7 % 4),
    "concatenated(7, tiled(h=2, w=4), 2)": fs.concatenated(7, fs.tiled(fs.Canvas(h=3, w=7), h=2, w=4), 2),
}


def test_orders_print_as_their_text() -> None:
    assert [str(order) for order in ORDERS.values()] == list(ORDERS) == [repr(order) for order in ORDERS.values()]


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_orders_are_copied_without_their_tensors(order: Order) -> None:
    length = 30
    before = order.permutation(length)
    for again in (copy.deepcopy(order), pickle.loads(pickle.dumps(order))):
        assert not again._kept and torch.equal(again.permutation(length), before)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_apply_and_undo_along_every_dim(order: Order, dim: int) -> None:
    shape = [2, 3, 4]
    shape[dim] = 30
    source = order.permutation(30).tolist()
    made = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.int32, torch.bool):
        x = (torch.randn(shape, generator=made) * 3).to(dtype)
        moved = order.apply(x, dim)
        assert moved.dtype == dtype and moved.shape[dim] == len(source)
        for place, position in enumerate(source):
            wanted = torch.zeros_like(x.select(dim, 0)) if position < 0 else x.select(dim, position)
            assert torch.equal(moved.select(dim, place), wanted)
        assert torch.equal(order.undo(moved, 30, dim), x)
    nan = torch.full(shape, torch.nan)
    assert int(order.apply(nan, dim).nan_to_num(nan=1.0).sum()) == nan.numel()  # padding is zero, whatever a token is


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_gradients_go_back(order: Order) -> None:
    x = torch.randn(2, 30, 1, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: order.apply(x), (x,))
    torch.autograd.gradgradcheck(lambda x: order.undo(order.apply(x).square(), 30), (x,))
    padded = torch.randn(2, order.padded(30), 1, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda y: order.undo(y, 30), (padded,))  # padding has no gradient
    mapped = torch.func.vmap(lambda one: order.apply(one, 0))(x)
    assert torch.equal(mapped, order.apply(x))


def test_labels_of_each_sequence_move_it() -> None:
    labels = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 2, 1, 0]])
    order = fs.by_label(labels)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    moved = order.apply(x)
    for b in range(2):
        assert torch.equal(moved[b], x[b][:, order.permutation(5)[b]])
    assert torch.equal(order.undo(moved), x)
    assert torch.equal(order.apply(labels, 1), labels.sort(1).values)
    torch.autograd.gradcheck(lambda x: order.apply(x), (x,))
    for wrong in (lambda: order.apply(x[:1]), lambda: order.apply(torch.zeros(5, 2), 0)):
        with pytest.raises(fs.FlexSpecError, match="FS022"):
            wrong()


def test_index_tensors_are_made_once() -> None:
    order = fs.tiled(VIDEO, t=2, h=2, w=3)
    x = torch.randn(30, 2)
    order.apply(x, 0)
    kept = order.moves(30, x.device)
    with torch.inference_mode():
        order.undo(order.apply(x, 0), dim=0)
    assert order.moves(30, x.device) is kept
    fresh = fs.tiled(VIDEO, t=2, h=2, w=3)
    with torch.inference_mode():
        fresh.apply(x, 0)
    assert torch.autograd.functional.jacobian(lambda x: fresh.apply(x, 0).sum(), x).eq(1).all()
    for length in range(1, 40):
        ORDERS["striped(4)"].apply(torch.zeros(length), 0)
    assert len(ORDERS["striped(4)"]._kept) <= 16


@pytest.mark.parametrize(
    "name", ["tiled(t=2, h=2, w=3)", "hilbert", "zigzag(4)", "concatenated(7, tiled(h=2, w=4), 2)"]
)
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_models_hold_the_order(name: str, dynamic: bool | None) -> None:
    order = copy.deepcopy(ORDERS[name])
    if dynamic and order.tokens is None:
        return  # of any number of tokens: a graph break where the number is not known
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def model(x: torch.Tensor) -> torch.Tensor:
        return order.undo(order.apply(x).sin(), 30)

    x = torch.randn(2, 30, 3, requires_grad=True)
    out = model(x)
    assert torch.equal(out, x.sin())
    out.sum().backward()
    assert torch.equal(x.grad, x.detach().cos())


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_orders_of_random_canvases(data: st.DataObject) -> None:
    sides = data.draw(sizes)
    canvas = fs.Canvas(**{f"x{axis}": side for axis, side in enumerate(sides)})
    inner = {name: data.draw(st.integers(1, 4)) for name in canvas.names}
    middle = {name: side * data.draw(st.integers(1, 3)) for name, side in inner.items()}
    outer = {name: side * data.draw(st.integers(1, 2)) for name, side in middle.items()}
    steps = {name: data.draw(st.integers(1, 10)) for name in canvas.names}
    labels = torch.tensor(data.draw(st.lists(st.integers(-3, 3), min_size=canvas.size, max_size=canvas.size)))
    made = [fs.tiled(canvas, outer, middle, inner), fs.dilated(canvas, steps), fs.hilbert(canvas), fs.morton(canvas)]
    made += [fs.axes(canvas, *data.draw(st.permutations(canvas.names))), fs.by_label(labels)]
    made += [fs.zigzag(data.draw(st.integers(1, 9))), fs.striped(data.draw(st.integers(1, 9)))]
    for order in made:
        check_both_ways(order, canvas.size)
    check_both_ways(fs.concatenated(3, made[0], made[2]), 3 + 2 * canvas.size)
