"""Patterns on a canvas that speak of frames, views and blocks: matrices by hand, the oracle, and block maps."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from canvases import canvases, rows, table
from hypothesis import given, settings
from hypothesis import strategies as st

import flexspec as fs
from flexspec import patterns as p
from flexspec.canvas import Canvas

LINE = Canvas(w=6)
FRAMES = Canvas(t=3, w=2)


def test_halo():
    assert rows(p.halo(LINE, block=2, halo=1), LINE) == table("""
        x x x . . .
        x x x . . .
        . x x x x .
        . x x x x .
        . . . x x x
        . . . x x x""")


def test_block_causal_2d_keeps_the_left_the_top_and_the_top_left_block():
    canvas = Canvas(h=2, w=3)
    assert rows(p.block_causal_2d(canvas, block=1), canvas) == table("""
        x . . . . .
        x x . . . .
        . x x . . .
        x . . x . .
        x x . x x .
        . x x . x x""")
    assert rows(p.block_causal_2d(LINE, block=2), LINE) == table("""
        x x . . . .
        x x . . . .
        x x x x . .
        x x x x . .
        . . x x x x
        . . x x x x""")


def test_any_shared_is_a_view_or_a_time():
    canvas = Canvas(v=2, t=3)
    assert rows(p.any_shared(canvas, "v t"), canvas) == table("""
        x x x x . .
        x x x . x .
        x x x . . x
        x . . x x x
        . x . x x x
        . . x x x x""")


def test_first_frame():
    assert rows(p.first_frame(FRAMES), FRAMES) == table("""
        x x . . . .
        x x . . . .
        x x . . . .
        x x . . . .
        x x . . . .
        x x . . . .""")


def test_frame_window_sees_whole_frames_and_the_sink():
    assert rows(p.frame_window(FRAMES, window=2), FRAMES) == table("""
        x x . . . .
        x x . . . .
        x x x x . .
        x x x x . .
        . . x x x x
        . . x x x x""")
    assert rows(p.frame_window(FRAMES, window=1, sink=1), FRAMES) == table("""
        x x . . . .
        x x . . . .
        x x x x . .
        x x x x . .
        x x . . x x
        x x . . x x""")


def test_spatial_and_temporal_heads():
    assert rows(p.spatial_head(FRAMES, width=2), FRAMES) == table("""
        x x . . . .
        x x x . . .
        . x x x . .
        . . x x x .
        . . . x x x
        . . . . x x""")
    # places: t0 w0, t1 w0, t2 w0, t0 w1, t1 w1, t2 w1
    assert rows(p.temporal_head(FRAMES, width=2), FRAMES) == table("""
        x . x . . .
        . x . x x .
        x . x . x .
        . x . x . x
        . x x . x .
        . . . x . x""")


def test_radial_halves_and_then_leaves_out_frames():
    canvas = Canvas(t=6, w=1)  # r = 1 at distance 1, 1/2 at 2 and 3 (every 2nd), 1/4 at 4 and 5 (every 4th)
    assert rows(p.radial(canvas, block=1, first_frame_sink=False), canvas) == table("""
        x x x . x .
        x x x x . x
        x x x x x .
        . x x x x x
        x . x x x x
        . x . x x x""")
    assert [row[0] for row in rows(p.radial(canvas, block=1), canvas)] == [True] * 6


def test_epipolar_sees_its_view_and_a_line_in_the_other():
    canvas = Canvas(v=2, h=2, w=2)
    lines = torch.tensor([1.0, 0.0, 0.0]).repeat(8, 2, 1)  # x = 0
    lines[3] = torch.tensor([0.0, 2.0, -2.0])  # the last query of view 0: y = 1
    assert rows(p.epipolar(canvas, lines, width=0.5), canvas) == table("""
        x x x x x . x .
        x x x x x . x .
        x x x x x . x .
        x x x x . . x x
        x . x . x x x x
        x . x . x x x x
        x . x . x x x x
        x . x . x x x x""")


# any number of axes, odd sides, windows larger than a side


def agree(mask, sides, keep, **values):
    assert rows(mask, Canvas(**sides), **values) == oracle.point_matrix(keep, sides), mask


@settings(max_examples=80, deadline=None)
@given(st.data(), canvases())
def test_blocks_of_any_number_of_axes(data, sides):
    canvas, number = Canvas(**sides), st.integers(1, 9)
    block = {name: data.draw(number) for name in sides}
    reach = {name: data.draw(number) - 1 for name in sides}
    agree(
        p.halo(canvas, block, reach),
        sides,
        lambda q, kv: all(oracle.halo(q[name], kv[name], block[name], reach[name]) for name in sides),
    )
    agree(
        p.block_causal_2d(canvas, block),
        sides,
        lambda q, kv: all(oracle.block_before(q[name], kv[name], block[name]) for name in sides),
    )
    names = data.draw(st.lists(st.sampled_from([*sides]), min_size=1, unique=True))
    agree(p.any_shared(canvas, names), sides, lambda q, kv: oracle.any_shared(q, kv, names))


@settings(max_examples=40, deadline=None)
@given(st.data(), canvases(), st.integers(1, 9), st.integers(0, 4))
def test_frames_of_any_number_of_axes(data, sides, window, sink):
    canvas, time = Canvas(**sides), data.draw(st.sampled_from([*sides]))
    others = [name for name in sides if name != time]
    agree(p.first_frame(canvas, time), sides, lambda q, kv: kv[time] == 0)
    kept = p.frame_window(canvas, window, sink, time)
    agree(kept, sides, lambda q, kv: oracle.frame_window(q, kv, window, sink, time))
    kept = p.spatial_head(canvas, window, time)
    agree(kept, sides, lambda q, kv: oracle.band(q, kv, sides, [time, *others], window))
    kept = p.temporal_head(canvas, window, time)
    agree(kept, sides, lambda q, kv: oracle.band(q, kv, sides, [*others, time], window))


RADIAL = {
    "decay": st.sampled_from([0.2, 0.5, 1, 1.5]),
    "block": st.integers(1, 6),
    "first_frame_sink": st.booleans(),
}


@settings(max_examples=80, deadline=None)
@given(st.data(), canvases(), st.fixed_dictionaries(RADIAL))
def test_radial(data, sides, how):
    time = data.draw(st.sampled_from([*sides]))
    agree(
        p.radial(Canvas(**sides), time=time, **how), sides, lambda q, kv: oracle.radial(q, kv, sides, time=time, **how)
    )


def frame_after_frame(sides, time):
    """For each place in that order, the token's row-major number."""
    order = [time, *(name for name in sides if name != time)]
    numbered = list(enumerate(oracle.points(sides)))
    return [number for number, point in sorted(numbered, key=lambda item: [item[1][name] for name in order])]


@settings(max_examples=60, deadline=None)
@given(st.data(), canvases(), st.fixed_dictionaries(RADIAL))
def test_radial_in_whole_tiles(data, sides, how):
    time = data.draw(st.sampled_from([*sides]))
    canvas, at = Canvas(**sides), frame_after_frame(sides, time)
    points = oracle.points(sides)
    exact = [[oracle.radial(points[q], points[kv], sides, time=time, **how) for kv in at] for q in at]
    made = p.radial(canvas, time=time, rounded=True, **how)
    got = torch.tensor(rows(made, canvas))[at][:, at]
    wanted = torch.tensor(oracle.rounded(exact, how["block"]))
    assert torch.equal(got, wanted), made
    loss = p.radial(canvas, time=time, **how).diff(made)
    assert loss.only_a == int((torch.tensor(exact) & ~wanted).sum())
    assert loss.only_b == int((wanted & ~torch.tensor(exact)).sum())
    assert repr(made).endswith(f"rounded=True, added={loss.only_b}, dropped={loss.only_a})")


def test_radial_as_the_public_code_rounds_it_where_tiles_divide_frames():
    """Two frames at a time, a window, whole tiles by columns; written from its description."""
    frames, frame, block = 5, 24, 8
    keep = torch.zeros(frames * frame, frames * frame, dtype=torch.bool)
    for i in range(frames):
        for j in range(frames):
            apart = abs(i - j)
            length = 2 ** frame.bit_length() / 2 ** apart.bit_length()
            near = (torch.arange(frame)[:, None] - torch.arange(frame)).abs() <= max(length, block)
            if apart == 0 or j == 0:
                near = torch.ones(frame, frame, dtype=torch.bool)
            elif length < block and apart % int(block / length):
                near = torch.zeros(frame, frame, dtype=torch.bool)
            for top in range(0, frame, block):
                for left in range(0, frame, block):
                    share = near[top : top + block, left : left + block].float().mean(0)
                    if (share > 1 / 3).sum() / ((share > 0).sum() + 1e-9) > 0.6:
                        keep[i * frame + top :, j * frame + left :][:block, :block] = True
    canvas = Canvas(t=frames, h=4, w=6)
    assert rows(p.radial(canvas, block=block, rounded=True), canvas) == keep.tolist()
    assert p.radial(canvas, block=block).diff(p.radial(canvas, block=block, rounded=True))


@settings(max_examples=60, deadline=None)
@given(st.data(), canvases(), st.sampled_from([0, 0.25, 0.75, 1.3, 20]), st.sampled_from([None, 1, 2]))
def test_epipolar(data, sides, width, batch):
    view = data.draw(st.sampled_from([*sides]))
    canvas = Canvas(**sides)
    shape = (canvas.size, sides[view], len(sides))
    count = math.prod(shape) * (batch or 1)
    numbers = data.draw(st.lists(st.integers(-3, 3), min_size=min(count, 40), max_size=min(count, 40)))
    numbers = (numbers * (count // len(numbers) + 1))[:count]
    lines = torch.tensor(numbers, dtype=torch.float32).view(batch or 1, *shape)
    made = p.epipolar(canvas, lines if batch else lines[0], width, view).dense(canvas.size)[:, 0]
    assert torch.equal(made, p.epipolar(canvas, width=width, view=view).dense(canvas.size, lines=lines)[:, 0])
    points = oracle.points(sides)
    for b in range(batch or 1):
        wanted = [
            [oracle.epipolar(q, kv, lines[b, i, kv[view]].tolist(), width, view) for kv in points]
            for i, q in enumerate(points)
        ]
        assert made[b].tolist() == wanted


def test_labels_show_name_and_parameters():
    canvas = Canvas(t=2, h=4)
    assert repr(p.halo(canvas, 2, 1)) == "halo(canvas=canvas(t=2, h=4), block=2, halo=1)"
    assert repr(p.any_shared(canvas, ["t", "h"])) == "any_shared(canvas=canvas(t=2, h=4), axes='t h')"
    assert repr(p.first_frame(canvas, "h")) == "first_frame(canvas=canvas(t=2, h=4), time='h')"
    assert repr(p.radial(canvas, rounded=True)).endswith("decay=1.0, block=128, rounded=True, added=16, dropped=0)")


IMAGE = Canvas(h=4, w=4)
GIVEN = torch.ones(16, 4, 2)
WRONG = [
    (lambda: p.halo(64, 2, 1), "FS032"),
    (lambda: p.halo(IMAGE, 0, 1), "FS025"),
    (lambda: p.halo(IMAGE, 2, -1), "FS025"),
    (lambda: p.halo(IMAGE, {"h": 2}, 1), "FS011"),
    (lambda: p.halo(IMAGE, fs.Param("block"), 1), "FS025"),
    (lambda: p.block_causal_2d(IMAGE, 0), "FS025"),
    (lambda: p.block_causal_2d(16, 1), "FS032"),
    (lambda: p.any_shared(IMAGE, "h t"), "FS011"),
    (lambda: p.any_shared(IMAGE, []), "FS023"),
    (lambda: p.any_shared(IMAGE, 3), "FS023"),
    (lambda: p.any_shared("h", IMAGE), "FS032"),
    (lambda: p.first_frame(IMAGE), "FS011"),
    (lambda: p.first_frame(16), "FS032"),
    (lambda: p.frame_window(IMAGE, 2), "FS011"),
    (lambda: p.frame_window(IMAGE, 0, time="h"), "FS025"),
    (lambda: p.frame_window(IMAGE, 1, -1, time="h"), "FS025"),
    (lambda: p.spatial_head(IMAGE, 2), "FS011"),
    (lambda: p.spatial_head(IMAGE, 0, time="h"), "FS025"),
    (lambda: p.temporal_head(IMAGE, 2), "FS011"),
    (lambda: p.temporal_head(IMAGE, 1.5, time="h"), "FS025"),
    (lambda: p.radial(IMAGE), "FS011"),
    (lambda: p.radial(IMAGE, decay=0, time="h"), "FS025"),
    (lambda: p.radial(IMAGE, decay=math.inf, time="h"), "FS025"),
    (lambda: p.radial(IMAGE, block=0, time="h"), "FS025"),
    (lambda: p.radial(IMAGE, rounded=2, time="h"), "FS025"),
    (lambda: p.radial(IMAGE, first_frame_sink=None, time="h"), "FS025"),
    (lambda: p.epipolar(IMAGE, GIVEN), "FS011"),
    (lambda: p.epipolar(IMAGE, GIVEN, -1, view="h"), "FS025"),
    (lambda: p.epipolar(IMAGE, GIVEN.long(), view="h"), "FS023"),
    (lambda: p.epipolar(IMAGE, GIVEN[:, :, 0], view="h"), "FS022"),
    (lambda: p.epipolar(IMAGE, GIVEN[:, :3], view="h"), "FS022"),
    (lambda: p.epipolar(IMAGE, view="h").dense(16), "FS020"),
]


@pytest.mark.parametrize("call, code", WRONG)
def test_wrong_values(call, code):
    with pytest.raises(fs.FlexSpecError) as caught:
        call()
    assert caught.value.code == code
    assert caught.value.where is None or "test_video.py" in caught.value.where


def test_a_missing_time_axis_names_the_ones_there_are():
    with pytest.raises(fs.FlexSpecError) as caught:
        p.first_frame(IMAGE)
    assert "the canvas has no axis 't'" in str(caught.value) and 'it has h or w: time="h"' in str(caught.value)
