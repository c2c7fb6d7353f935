"""Windows on a canvas: against matrices written by hand and the oracle, axis by axis."""

from __future__ import annotations

import oracle
import pytest
import torch

import flexspec as fs
from flexspec import patterns as p
from flexspec.canvas import Canvas


def table(text):
    """Rows of `x` and `.` as a matrix."""
    return [[mark == "x" for mark in line.split()] for line in text.strip().splitlines()]


def rows(mask, canvas):
    return mask.dense(canvas.size)[0, 0].tolist()


def of(value, name, default=None):
    return value.get(name, default) if isinstance(value, dict) else value


LINE = Canvas(w=6)


def test_neighborhood_is_pushed_inwards():
    assert rows(p.neighborhood(LINE, window=3), LINE) == table("""
        x x x . . .
        x x x . . .
        . x x x . .
        . . x x x .
        . . . x x x
        . . . x x x""")


def test_an_even_neighborhood_reaches_further_to_the_left():
    assert rows(p.neighborhood(LINE, window=4), LINE) == table("""
        x x x x . .
        x x x x . .
        x x x x . .
        . x x x x .
        . . x x x x
        . . x x x x""")


def test_a_strided_neighborhood_is_shared_by_groups():
    assert rows(p.neighborhood(LINE, window=3, stride=2), LINE) == table("""
        x x x . . .
        x x x . . .
        . . x x x .
        . . x x x .
        . . . x x x
        . . . x x x""")


def test_a_dilated_neighborhood_stays_in_its_residue_class():
    assert rows(p.neighborhood(LINE, window=2, dilation=2), LINE) == table("""
        x . x . . .
        . x . x . .
        x . x . . .
        . x . x . .
        . . x . x .
        . . . x . x""")


def test_a_causal_neighborhood_is_a_causal_window():
    assert rows(p.neighborhood(LINE, window=3, causal=True), LINE) == rows(p.causal_window(3), LINE)
    assert rows(p.neighborhood(LINE, window=3, stride=2, causal=True), LINE) == table("""
        x . . . . .
        x x . . . .
        . x x . . .
        . x x x . .
        . . . x x .
        . . . x x x""")


@pytest.mark.parametrize(
    "given, axes",
    [("h", {"h"}), (["h"], {"h"}), ("h w", {"h", "w"}), (("w", "h"), {"h", "w"}), ({"w": True}, {"w"}), (False, set())],
)
def test_the_causal_axes_of_a_neighborhood_are_named(given, axes):
    sides = {"h": 4, "w": 5}
    mask = p.neighborhood(Canvas(**sides), window=3, causal=given)

    def keep(q, kv, name):
        return oracle.neighborhood(q, kv, sides[name], 3, causal=name in axes)

    assert rows(mask, Canvas(**sides)) == oracle.canvas_matrix(keep, sides)
    assert repr(mask) == f"neighborhood(canvas=canvas(h=4, w=5), window=3{f', causal={given!r}' if given else ''})"


def test_sliding_tile_with_an_odd_number_of_tiles():
    canvas = Canvas(w=8)
    assert rows(p.sliding_tile(canvas, window=6, tile=2), canvas)[::2] == table("""
        x x x x x x . .
        x x x x x x . .
        . . x x x x x x
        . . x x x x x x""")


def test_sliding_tile_with_an_even_number_of_tiles_keeps_exactly_that_many():
    assert rows(p.sliding_tile(LINE, window=2, tile=1), LINE) == table("""
        x x . . . .
        x x . . . .
        . x x . . .
        . . x x . .
        . . . x x .
        . . . . x x""")


def test_windows_with_and_without_wrap():
    assert rows(p.windows(LINE, size=3, shift=1), LINE) == table("""
        x x . . . .
        x x . . . .
        . . x x x .
        . . x x x .
        . . x x x .
        . . . . . x""")
    assert rows(p.windows(LINE, size=3, shift=1, wrap=True), LINE) == table("""
        x x . . . x
        x x . . . x
        . . x x x .
        . . x x x .
        . . x x x .
        x x . . . x""")


def test_axial():
    canvas = Canvas(h=2, w=3)
    assert rows(p.axial(canvas, "w"), canvas) == table("""
        x x x . . .
        x x x . . .
        x x x . . .
        . . . x x x
        . . . x x x
        . . . x x x""")
    assert rows(p.axial(canvas, "h"), canvas) == table("""
        x . . x . .
        . x . . x .
        . . x . . x
        x . . x . .
        . x . . x .
        . . x . . x""")


LENGTHS = [1, 2, 5, 7, 12]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 20])
def test_neighborhood_on_a_line(length, window):
    canvas = Canvas(x=length)
    for stride in {1, 2, 3, window}:
        for dilation in (1, 2, 3, 8):
            for causal in (False, True):
                if stride > window:
                    continue
                kept = p.neighborhood(canvas, window, stride, dilation, causal)
                wanted = oracle.matrix(
                    lambda q, kv, s=stride, d=dilation, c=causal: oracle.neighborhood(q, kv, length, window, s, d, c),
                    length,
                )
                assert rows(kept, canvas) == wanted, kept


GRIDS = [
    ({"h": 5, "w": 7}, {"window": {"h": 3, "w": 4}}),
    ({"h": 5, "w": 7}, {"window": 3, "dilation": {"h": 2, "w": 1}, "stride": {"w": 2}}),
    ({"t": 3, "h": 4, "w": 5}, {"window": {"t": 2, "h": 3, "w": 5}, "causal": {"t": True}}),
    (
        {"t": 4, "h": 4, "w": 3},
        {"window": 2, "stride": 2, "dilation": {"h": 2}, "causal": {"t": True, "w": True}},
    ),
    ({"a": 2, "b": 3, "c": 2, "d": 3}, {"window": 2}),
]


@pytest.mark.parametrize("sides, how", GRIDS)
def test_neighborhood_on_a_canvas(sides, how):
    canvas = Canvas(**sides)

    def keep(q, kv, name):
        plain = {"stride": 1, "dilation": 1, "causal": False}
        values = {key: of(how.get(key, plain.get(key)), name, plain.get(key)) for key in ("window", *plain)}
        return oracle.neighborhood(q, kv, sides[name], **values)

    assert rows(p.neighborhood(canvas, **how), canvas) == oracle.canvas_matrix(keep, sides)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("tile", [1, 2, 3, 8])
def test_sliding_tile_on_a_line(length, tile):
    canvas = Canvas(x=length)
    for count in (1, 2, 3, 4, 9):
        kept = p.sliding_tile(canvas, window=count * tile, tile=tile)
        wanted = oracle.matrix(lambda q, kv, n=count: oracle.sliding_tile(q, kv, length, n * tile, tile), length)
        assert rows(kept, canvas) == wanted, kept


def test_sliding_tile_on_a_canvas():
    for sides, window, tile in [
        ({"t": 4, "h": 6, "w": 5}, {"t": 2, "h": 6, "w": 3}, {"t": 2, "h": 2, "w": 1}),
        ({"h": 7, "w": 9}, 6, 2),
    ]:
        canvas = Canvas(**sides)
        wanted = oracle.canvas_matrix(
            lambda q, kv, name, sides=sides, window=window, tile=tile: oracle.sliding_tile(
                q, kv, sides[name], of(window, name), of(tile, name)
            ),
            sides,
        )
        assert rows(p.sliding_tile(canvas, window, tile), canvas) == wanted


def test_interior_queries_keep_as_many_keys_as_the_docstrings_say():
    canvas = Canvas(h=12, w=12)
    assert set(p.neighborhood(canvas, window={"h": 4, "w": 5}).dense(144).sum(-1).flatten().tolist()) == {20}
    tiles = p.sliding_tile(canvas, window={"h": 4, "w": 9}, tile={"h": 2, "w": 3})
    assert set(tiles.dense(144).sum(-1).flatten().tolist()) == {36}
    assert set(p.windows(canvas, size={"h": 4, "w": 3}).dense(144).sum(-1).flatten().tolist()) == {12}


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 2, -1, -3, 9])
def test_windows_against_the_oracle(wrap, shift):
    for sides, size in [({"x": 8}, 4), ({"x": 7}, 3), ({"x": 5}, 9), ({"h": 4, "w": 6}, {"h": 2, "w": 3})]:
        canvas = Canvas(**sides)
        wanted = oracle.canvas_matrix(
            lambda q, kv, name, sides=sides, size=size: oracle.windows(q, kv, sides[name], of(size, name), shift, wrap),
            sides,
        )
        assert rows(p.windows(canvas, size, shift, wrap), canvas) == wanted


def test_windows_are_those_of_a_rolled_picture():
    """Swin: roll by -s, cut into windows, and mask what the roll joined."""
    size, s, length = 4, 1, 8
    image = torch.arange(length).roll(-s)
    group = torch.empty(length, dtype=torch.int64)
    group[image] = torch.arange(length) // size
    ring = (group[:, None] == group[None, :]).tolist()
    canvas = Canvas(x=length)
    assert rows(p.windows(canvas, size, shift=-s, wrap=True), canvas) == ring
    joined = torch.arange(length) < s
    apart = [[ring[q][kv] and joined[q] == joined[kv] for kv in range(length)] for q in range(length)]
    assert rows(p.windows(canvas, size, shift=-s), canvas) == apart


def test_axial_against_the_oracle():
    sides = {"t": 3, "h": 2, "w": 4}
    canvas = Canvas(**sides)
    for axis in sides:
        wanted = oracle.canvas_matrix(lambda q, kv, name, axis=axis: name == axis or q == kv, sides)
        assert rows(p.axial(canvas, axis), canvas) == wanted
    line = Canvas(x=3)
    assert rows(p.axial(line, "x"), line) == oracle.matrix(lambda q, kv: True, 3)


def test_labels_show_name_and_parameters():
    canvas = Canvas(h=4, w=4)
    assert repr(p.neighborhood(canvas, 3)) == "neighborhood(canvas=canvas(h=4, w=4), window=3)"
    assert repr(p.neighborhood(canvas, 3, dilation={"h": 2})).endswith("window=3, dilation={'h': 2})")
    assert repr(p.axial(canvas, "h")) == "axial(canvas=canvas(h=4, w=4), axis='h')"
    assert repr(p.sliding_tile(canvas, 2, 1)) == "sliding_tile(canvas=canvas(h=4, w=4), window=2, tile=1)"
    assert repr(p.windows(canvas, 2, wrap=True)) == "windows(canvas=canvas(h=4, w=4), size=2, shift=0, wrap=True)"


VIDEO = Canvas(t=4, h=4, w=4)
WRONG = [
    (lambda: p.neighborhood(64, window=3), "FS032"),
    (lambda: p.neighborhood(VIDEO, window=0), "FS025"),
    (lambda: p.neighborhood(VIDEO, window=2.0), "FS025"),
    (lambda: p.neighborhood(VIDEO, window={"t": 3}), "FS011"),
    (lambda: p.neighborhood(VIDEO, window={"t": 3, "h": 3, "w": 3, "x": 3}), "FS011"),
    (lambda: p.neighborhood(VIDEO, window=3, stride=4), "FS025"),
    (lambda: p.neighborhood(VIDEO, window=3, dilation=0), "FS025"),
    (lambda: p.neighborhood(VIDEO, window=3, causal=1), "FS025"),
    (lambda: p.neighborhood(VIDEO, window=fs.Param("window")), "FS025"),
    (lambda: p.neighborhood(VIDEO, window=3).dense(63), "FS032"),
    (lambda: p.sliding_tile(64, 4, 2), "FS032"),
    (lambda: p.sliding_tile(VIDEO, window=3, tile=2), "FS025"),
    (lambda: p.sliding_tile(VIDEO, window=0, tile=2), "FS025"),
    (lambda: p.sliding_tile(VIDEO, window=4, tile={"t": 1, "h": 0, "w": 1}), "FS025"),
    (lambda: p.windows(64, 4), "FS032"),
    (lambda: p.windows(VIDEO, 0), "FS025"),
    (lambda: p.windows(VIDEO, 2, shift=0.5), "FS025"),
    (lambda: p.windows(VIDEO, 2, wrap=1), "FS025"),
    (lambda: p.axial(VIDEO, "x"), "FS011"),
    (lambda: p.axial("t", VIDEO), "FS032"),
]


@pytest.mark.parametrize("call, code", WRONG)
def test_wrong_values(call, code):
    with pytest.raises(fs.FlexSpecError) as caught:
        call()
    assert caught.value.code == code
    assert caught.value.where is None or "test_grid.py" in caught.value.where
