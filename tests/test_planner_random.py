"""Random masks, canvases, orders and blocks: the planner's counts row by row against dense masks."""

from __future__ import annotations

import numpy as np
import torch
from flexspec.compiler.planning.candidates import Candidate
from flexspec.compiler.planning.counting import Counter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flexspec as fs
from flexspec.inputs import make_sizes


@st.composite
def canvases(draw) -> fs.Canvas:
    sides = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    return fs.Canvas(**dict(zip("thw", sides, strict=False)))


@st.composite
def masks(draw, canvas: fs.Canvas) -> fs.Mask:
    """A condition on each axis, or two of them joined, or such a mask with a condition on positions."""

    def sides(low: int, high: int) -> dict[str, int]:
        return {name: draw(st.integers(low, high)) for name in canvas.names}

    def one() -> fs.Mask:
        kind = draw(st.sampled_from(["neighborhood", "sliding_tile", "windows", "labels"]))
        if kind == "neighborhood":
            strides = sides(1, 3)
            windows = {name: stride + draw(st.integers(0, 3)) for name, stride in strides.items()}
            return fs.neighborhood(canvas, windows, strides, sides(1, 3), draw(st.booleans()))
        if kind == "sliding_tile":
            tiles = sides(1, 3)
            return fs.sliding_tile(
                canvas, {name: side * draw(st.integers(1, 3)) for name, side in tiles.items()}, tiles
            )
        if kind == "windows":
            return fs.windows(canvas, sides(1, 4), sides(-3, 3), draw(st.booleans()))
        labels = torch.tensor(draw(st.lists(st.integers(0, 2), min_size=6, max_size=6)))
        axis = draw(st.sampled_from(canvas.names))
        return fs.mask(canvas=canvas)(lambda q, kv: labels[getattr(q, axis)] == labels[getattr(kv, axis)])

    made = one()
    join = draw(st.sampled_from(["", "and", "or", "minus", "positions"]))
    if join == "and":
        return made & one()
    if join == "or":
        return made | one()
    if join == "minus":
        return made - one()
    return made & fs.causal() if join == "positions" else made


@st.composite
def orders(draw, canvas: fs.Canvas) -> fs.Order | None:
    kind = draw(st.sampled_from(["none", "axes", "tiled", "tiled", "striped"]))
    if kind == "axes":
        return fs.axes(canvas, *draw(st.permutations(canvas.names)))
    if kind == "tiled":
        return fs.tiled(canvas, {name: draw(st.integers(1, 4)) for name in canvas.names})
    return fs.striped(draw(st.integers(1, 5))) if kind == "striped" else None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_rows_of_blocks_are_those_of_the_dense_mask(data) -> None:
    canvas = data.draw(canvases())
    mask, order = data.draw(masks(canvas)), data.draw(orders(canvas))
    side = st.sampled_from([1, 2, 3, 4, 6, 8, 9, 16, 40])
    blocks = tuple(dict.fromkeys(data.draw(st.lists(st.tuples(side, side), min_size=1, max_size=4))))
    counter = Counter.of(mask, mask.bind(make_sizes(canvas.size), {}))
    counts = counter.block_counts(Candidate(order, blocks))
    place = np.arange(canvas.size) if order is None else order.permutation(canvas.size).numpy()
    dense = mask.dense(canvas.size)[0, 0].numpy()[np.ix_(place, place)] & (place >= 0)[:, None] & (place >= 0)
    assert set(counts) == set(blocks)
    for (block_q, block_kv), (count,) in counts.items():
        rows = [dense[at : at + block_q] for at in range(0, len(place), block_q)]
        each = [[row[:, at : at + block_kv] for at in range(0, len(place), block_kv)] for row in rows]
        assert count.kept.tolist() == [sum(bool(part.any()) for part in row) for row in each]
        assert count.full.tolist() == [sum(bool(part.all()) for part in row) for row in each]
    assert counter.kept_pairs(0, order, blocks[0]) == int(dense.sum())
