"""Orders: bijections, and a mask in memory is the mask with its rows and columns moved."""

from __future__ import annotations

from itertools import permutations, product

import pytest
import torch

import flexspec as fs
from flexspec.evaluate import evaluate
from flexspec.order import Order, in_memory


def tiled_positions(lengths: tuple[int, ...], tile: tuple[int, ...]) -> list[int]:
    """The logical position of each memory place of a tiled canvas, -1 for padding: plain loops."""
    found = []
    counts = [-(-length // side) for length, side in zip(lengths, tile, strict=True)]
    for corner in product(*map(range, counts)):
        for inside in product(*map(range, tile)):
            point = [c * side + i for c, side, i in zip(corner, tile, inside, strict=True)]
            position = 0
            for at, length in zip(point, lengths, strict=True):
                position = position * length + at
            fits = all(at < length for at, length in zip(point, lengths, strict=True))
            found.append(position if fits else -1)
    return found


SMALL = [
    lengths for rank in (1, 2, 3) for lengths in product((1, 2, 3, 5), repeat=rank) if rank < 3 or 5 not in lengths
]
NAMES = ("t", "h", "w")


def canvas_of(lengths: tuple[int, ...]) -> fs.Canvas:
    return fs.Canvas(**dict(zip(NAMES, lengths, strict=False)))


@pytest.mark.parametrize("lengths", SMALL, ids=str)
def test_every_small_tiling(lengths: tuple[int, ...]) -> None:
    canvas = canvas_of(lengths)
    for tile in product((1, 2, 3), repeat=len(lengths)):
        order = fs.tiled(canvas, dict(zip(canvas.names, tile, strict=True)))
        found = order.permutation(canvas.size).tolist()
        wanted = tiled_positions(lengths, tile)
        kept = [position for position in found if position >= 0]
        assert sorted(kept) == list(range(canvas.size))
        assert kept == [position for position in wanted if position >= 0]
        assert len(found) == order.padded(canvas.size)
        if len(lengths) > 1 and any(side > 1 for side in tile):
            assert found == wanted
        else:  # tiles of a line are row-major order: nothing is padded
            assert found == kept


@pytest.mark.parametrize("lengths", SMALL, ids=str)
def test_every_order_of_axes(lengths: tuple[int, ...]) -> None:
    canvas = canvas_of(lengths)
    at = torch.arange(canvas.size).reshape(lengths)
    for names in permutations(canvas.names):
        moved = at.permute([canvas.names.index(name) for name in names]).reshape(-1)
        assert torch.equal(fs.axes(canvas, *names).permutation(canvas.size), moved)
    assert torch.equal(fs.row_major(canvas).permutation(canvas.size), at.reshape(-1))


@pytest.mark.parametrize("length", range(1, 12))
@pytest.mark.parametrize("ranks", range(1, 6))
def test_every_small_striping(ranks: int, length: int) -> None:
    found = fs.striped(ranks).permutation(length).tolist()
    share = -(-length // ranks)
    wanted = [i * ranks + rank for rank in range(ranks) for i in range(share)]
    assert found == [position if position < length else -1 for position in wanted]


VIDEO = fs.Canvas(t=2, h=3, w=4)
ORDERS: dict[str, Order] = {
    "row_major": fs.row_major(VIDEO),
    "axes": fs.axes(VIDEO, "w", "t", "h"),
    "tiled": fs.tiled(VIDEO, t=1, h=3, w=2),
    "tiled, padded": fs.tiled(VIDEO, t=2, h=2, w=3),
    "tiled on the first axis": fs.tiled(VIDEO, t=3),
    "striped": fs.striped(4),
    "striped, padded": fs.striped(5),
}
IDS = torch.arange(24) * 5 % 7
MASKS = {
    "causal": fs.mask(lambda q, kv: q >= kv),
    "captured": fs.from_mask_mod(lambda b, h, q, kv: (IDS[q] == IDS[kv]) | (h == 1)),
    "axes": fs.mask(canvas=VIDEO)(lambda q, kv: ((q.h - kv.h).abs() <= 1) & (q.w // 2 == kv.w // 2) | (q.t < kv.t)),
    "positions and axes": fs.mask(canvas=VIDEO)(lambda q, kv: (q >= kv) & (q.w == kv.w)),
    "everything": fs.Mask.constant(True),
}


@pytest.mark.parametrize("name", ORDERS)
def test_apply_and_undo(name: str) -> None:
    order = ORDERS[name]
    x = torch.randn(2, 24, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    moved = order.apply(x)
    source = order.permutation(24).tolist()
    assert moved.shape == (2, len(source), 3)
    for place, position in enumerate(source):
        wanted = torch.zeros(2, 3, dtype=torch.float64) if position < 0 else x[:, position]
        assert torch.equal(moved[:, place], wanted)
    assert torch.equal(order.undo(moved, 24), x)
    weight = torch.randn(moved.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (moved * weight).sum().backward()
    assert torch.equal(x.grad, order.undo(weight, 24))
    flat = torch.arange(24)
    assert torch.equal(order.undo(order.apply(flat, dim=0), 24, dim=0), flat)
    if order.canvas:
        assert torch.equal(order.undo(moved), x)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mask", MASKS)
def test_in_memory_is_the_mask_moved(mask: str, order: str) -> None:
    made, where = MASKS[mask], ORDERS[order]
    logical = made.dense(24, heads=2)[0].tolist()
    source = where.permutation(24).tolist()
    wanted = [[[q >= 0 and kv >= 0 and logical[h][q][kv] for kv in source] for q in source] for h in range(2)]
    expr = in_memory(made.expr, where, made.canvas, 24, 24)
    at = torch.arange(len(source))
    values = {"h": torch.arange(2)[:, None, None], "q": at[:, None], "kv": at, **made.tensors}
    assert evaluate(expr, values).expand(2, len(source), len(source)).tolist() == wanted


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_in_memory_with_unequal_lengths(ranks: int) -> None:
    order, mask = fs.striped(ranks), MASKS["causal"]
    rows, columns = order.permutation(5).tolist(), order.permutation(7).tolist()
    expr = in_memory(mask.expr, order, None, 5, 7)
    found = evaluate(expr, {"q": torch.arange(len(rows))[:, None], "kv": torch.arange(len(columns))})
    assert found.tolist() == [[q >= 0 and kv >= 0 and q >= kv for kv in columns] for q in rows]


def test_without_an_order_memory_is_logical() -> None:
    made = MASKS["axes"]
    assert in_memory(made.expr, None, made.canvas, 24, 24) is made.flat


@pytest.mark.parametrize("lengths", SMALL, ids=str)
def test_coordinates_and_positions_are_inverse(lengths: tuple[int, ...]) -> None:
    from flexspec.expr import var

    canvas = canvas_of(lengths)
    at = torch.arange(canvas.size)
    found = canvas.coordinates(var("q"))
    wanted = torch.cartesian_prod(*(torch.arange(length) for length in lengths)).reshape(canvas.size, -1)
    for axis, name in enumerate(canvas.names):
        assert torch.equal(evaluate(found[name], {"q": at}).expand(canvas.size), wanted[:, axis])
    back = canvas.position({name: var(f"q.{name}") for name in canvas.names})
    values = {f"q.{name}": wanted[:, axis] for axis, name in enumerate(canvas.names)}
    assert torch.equal(evaluate(back, values), at)


def test_a_small_tiling_to_look_at() -> None:
    order = fs.tiled(fs.Canvas(h=2, w=4), h=2, w=2)
    assert order.permutation(8).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    padded = fs.tiled(fs.Canvas(h=2, w=3), h=2, w=2)
    assert padded.permutation(6).tolist() == [0, 1, 3, 4, 2, -1, 5, -1]


def test_orders_print_as_their_text() -> None:
    assert [str(order) for order in ORDERS.values()] == [
        "row_major",
        "axes(w, t, h)",
        "tiled(t=1, h=3, w=2)",
        "tiled(t=2, h=2, w=3)",
        "tiled(t=3, h=1, w=1)",
        "striped(4)",
        "striped(5)",
    ]
