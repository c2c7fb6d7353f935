"""docs/equalities.md: its code runs, and its conditions hold on every small axis."""

import re
from itertools import product
from pathlib import Path

import pytest

import flexspec as fs
from flexspec import patterns as p
from flexspec.canvas import Canvas

PAGE = Path(__file__).parent.parent / "docs" / "equalities.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


def test_the_page_runs():
    names: dict = {}
    for code in BLOCKS:
        exec(compile(code, PAGE.name, "exec"), names)
    assert sum(code.count("assert") for code in BLOCKS) > 25


def same(a, b, length):
    return bool((a.dense(length) == b.dense(length)).all())


AXES = list(product(range(1, 15), range(1, 6), range(1, 6)))


def is_neighborhood(length, tile, count):
    """When a sliding tile is a strided neighborhood, on one axis."""
    return count * tile >= length or (length % tile == 0 and (count % 2 == 1 or tile == 1))


def test_when_a_sliding_tile_is_a_strided_neighborhood():
    for length, tile, count in AXES:
        axis = Canvas(w=length)
        a = p.sliding_tile(axis, window=count * tile, tile=tile)
        b = p.neighborhood(axis, window=count * tile, stride=tile)
        assert same(a, b, length) == is_neighborhood(length, tile, count), (length, tile, count)


@pytest.mark.parametrize("lengths", [(6, 5), (4, 6), (3, 7)])
def test_on_several_axes_it_must_hold_on_each(lengths):
    for tiles, counts in product(product((1, 2, 3), repeat=2), repeat=2):
        canvas = Canvas(h=lengths[0], w=lengths[1])
        window = {"h": tiles[0] * counts[0], "w": tiles[1] * counts[1]}
        tile = {"h": tiles[0], "w": tiles[1]}
        a, b = p.sliding_tile(canvas, window, tile), p.neighborhood(canvas, window, tile)
        assert same(a, b, canvas.size) == all(map(is_neighborhood, lengths, tiles, counts))


def test_when_windows_are_a_strided_neighborhood():
    for length, size, _ in AXES:
        axis = Canvas(w=length)
        windows = p.windows(axis, size)
        assert same(windows, p.sliding_tile(axis, size, size), length)
        divides = size >= length or length % size == 0
        assert same(windows, p.neighborhood(axis, window=size, stride=size), length) == divides


def test_a_halo_is_part_of_the_strided_neighborhood_that_is_pushed_inwards():
    for length, block, halo in AXES:
        axis = Canvas(w=length)
        cut, pushed = p.halo(axis, block, halo), p.neighborhood(axis, block + 2 * halo, stride=block)
        if length % block == 0:
            assert cut.implies(pushed)
            assert same(cut, pushed, length) == (length == block or halo >= length - block)
        a, b = cut.dense(length)[0, 0], pushed.dense(length)[0, 0]
        start = [q // block * block for q in range(length)]
        inside = [q for q in range(length) if start[q] >= halo and start[q] + block + halo <= length]
        assert bool((a[inside] == b[inside]).all())


def test_windows_in_tile_order_are_chunks_where_they_divide():
    for h, w in product((1, 2, 3), repeat=2):
        canvas = Canvas(h=6, w=6)
        tiles = fs.tiled(canvas, h=h, w=w)
        assert p.reordered(p.windows(canvas, {"h": h, "w": w}), tiles).equals(p.chunked(h * w), 36)
    blocks = fs.block_map(p.windows(Canvas(h=6, w=6), 3), order=fs.tiled(Canvas(h=6, w=6), 3), block_size=9, q_len=36)
    assert blocks.counts()[fs.BlockKind.PARTIAL] == 0


def test_bands_and_frames_with_time_anywhere():
    canvas = Canvas(h=3, t=4, w=2)
    order = fs.axes(canvas, "t", "h", "w")
    assert p.reordered(p.spatial_head(canvas, 5), order).equals(p.sliding_window(4), 24)
    assert p.reordered(p.first_frame(canvas), order).equals(p.sink(6), 24)
    assert p.reordered(p.frame_window(canvas, 4), order).equals(p.chunk_causal(6), 24)
    for window, sink in product((1, 2, 3), (1, 2)):
        kept = p.reordered(p.frame_window(canvas, window, sink), order)
        near = p.neighborhood(canvas, {"h": 3, "t": window, "w": 2}, causal={"t": True})
        early = p.sink(sink * 6) & p.chunk_causal(6)
        assert kept.equals(p.reordered(near, order) | early, 24)
