"""Pictures of a canvas: what is in them is compared with brute force, and what they say with what was asked."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from flexspec.compiler.cli import app
from flexspec.compiler.draw import frames, frames_text, orders, picture
from typer.testing import CliRunner

import flexspec as fs

VIDEO = fs.Canvas(t=3, h=5, w=4)
IMAGE = fs.Canvas(h=5, w=7)
LAST_AXES = [fs.Canvas(w=11), fs.Canvas(h=3, w=5), fs.Canvas(t=2, h=3, w=5), fs.Canvas(v=2, t=3, h=2, w=3)]


def near(canvas):
    """Kept: at most 1 away on the first axis, and not before on the last. Also said in plain Python below."""
    first, last = canvas.names[0], canvas.names[-1]

    @fs.mask(canvas=canvas)
    def kept(q, kv):
        return ((getattr(q, first) - getattr(kv, first)).abs() <= 1) & (getattr(kv, last) >= getattr(q, last))

    return kept


def brute(canvas, at):
    """The same mask on every point of the canvas, by a loop."""
    found = np.zeros(list(canvas.lengths.values()), bool)
    for point in product(*(range(length) for length in canvas.lengths.values())):
        found[point] = abs(point[0] - at[0]) <= 1 and point[-1] >= at[-1]
    return found


@pytest.mark.parametrize("canvas", LAST_AXES, ids=str)
def test_kept_keys_lie_where_a_loop_over_the_canvas_finds_them(canvas):
    points = list(product(*(range(length) for length in canvas.lengths.values())))
    found = fs.kept_keys(near(canvas), list(range(canvas.size)))
    for number, at in enumerate(points):
        assert found.place(number) == at
        assert (found.kept[number].numpy() == brute(canvas, at)).all()
        by_name = fs.kept_keys(near(canvas), dict(zip(canvas.names, at, strict=True)))
        assert by_name.queries == (number,) and torch.equal(by_name.kept[0], found.kept[number])
    assert found.counts == tuple(int(brute(canvas, at).sum()) for at in points)


@pytest.mark.parametrize("canvas", LAST_AXES, ids=str)
def test_frames_are_the_last_two_axes_one_for_each_position_on_the_others(canvas):
    at = tuple(length - 1 for length in canvas.lengths.values())
    found = fs.kept_keys(near(canvas), dict(zip(canvas.names, at, strict=True)))
    truth = brute(canvas, at)
    made = frames.frames_of(found, 0)
    outer = list(product(*(range(length) for length in list(canvas.lengths.values())[:-2])))
    assert len(made) == len(outer)
    for frame, place in zip(made, outer, strict=True):
        assert (frame.kept == np.atleast_2d(truth[place])).all()
        assert frame.name == ", ".join(f"{name}={index}" for name, index in zip(canvas.names, place, strict=False))
        assert frame.own == (((0, *at)[-2:]) if place == at[:-2] else None)


def test_the_keys_are_those_of_the_whole_mask_with_heads_and_values():
    pattern = fs.mask(lambda h, q, kv: q - kv < 3 * h) & fs.document()
    ids = torch.tensor([[0] * 10 + [1] * 25])
    found = fs.kept_keys(pattern, [4, 20], canvas=IMAGE, h=1, heads=2, document_id=ids)
    whole = pattern.dense(35, heads=2, document_id=ids)[0, 1]
    assert torch.equal(found.kept.flatten(1), whole[[4, 20]])
    assert found.head == "head 1 of 2" and "head 1 of 2" in texts(frames.figure(found))[1]


def test_a_mask_without_a_canvas_is_a_strip_or_is_laid_on_one():
    strip = fs.kept_keys(fs.causal_window(4), 6, canvas=9)
    assert repr(strip) == "KeptKeys(causal_window(window=4): query token=6 keeps 4 of 9 keys)"
    assert strip.kept[0].tolist() == [False] * 3 + [True] * 4 + [False] * 2
    laid = fs.kept_keys(lambda b, h, q_idx, kv_idx: kv_idx <= q_idx, {"h": 1, "w": 2}, canvas=fs.Canvas(h=3, w=4))
    assert laid.kept[0].int().tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    "query, given, code, words",
    [
        ({"h": 5, "w": 0}, {}, "FS030", "h is 5, and canvas(h=5, w=7) has 5 there"),
        ({"h": 0, "w": -1}, {}, "FS030", "give w from 0 to 6"),
        (35, {}, "FS030", "position is 35, and the sequence has 35 there"),
        ({"h": 1}, {}, "FS011", "the query names h"),
        ({"h": 1, "w": 1, "t": 1}, {}, "FS011", "the canvas has the axes h, w"),
        ({"h": 1, "w": 1.0}, {}, "FS023", "the query's w is 1.0"),
        (True, {}, "FS023", "the query's position is True"),
        (3.5, {}, "FS023", "the query's position is 3.5"),
        ("h=1", {}, "FS023", "the query's position is 'h=1'"),
        ([], {}, "FS020", "no query is given"),
        (3, {"canvas": fs.Canvas(h=5, w=8)}, "FS032", "canvas(h=5, w=7) has 35 tokens"),
        (3, {"h": -1}, "FS030", "there is no head -1"),
    ],
)
def test_mistakes(query, given, code, words):
    with pytest.raises(fs.FlexSpecError) as caught:
        fs.kept_keys(near(IMAGE), query, **given)
    assert caught.value.code == code and words in str(caught.value)


def test_a_canvas_inside_a_longer_sequence():
    """Video after 6 tokens of text, 4 more after it; the oracle is the dense mask."""
    table = {("text", "video"): True, ("video", "video"): near(VIDEO), ("video", "text"): True, ("video", "end"): True}
    pattern = fs.segments({"text": 6, "video": 60, "end": 4}, table)
    whole = pattern.dense(70)[0, 0]
    found = fs.kept_keys(pattern, [{"t": 1, "h": 2, "w": 1}, 0, 69], canvas=VIDEO, start=6, length=70)
    assert found.queries == (6 + 29, 0, 69)
    assert torch.equal(found.kept.flatten(1), whole[[35, 0, 69], 6:66])
    assert found.counts == (55, 60, 0) and found.place(1) is None and found.place(0) == (1, 2, 1)
    assert (found.kept[0].numpy() == brute(VIDEO, (1, 2, 1))).all()
    one = fs.kept_keys(pattern, 35, canvas=VIDEO, start=6, length=70)
    notes = texts(frames.figure(one))[1].replace("\n", " ")
    assert "70 tokens, t × h × w = 3 × 5 × 4 from token 6" in notes
    assert "keeps 55 keys (78.6%, 10 of them off the canvas)" in notes
    drawn = frames_text.draw(found, color=False)
    assert "query 0 keeps 60" in drawn and "query 69 keeps 0" in drawn
    for given in ({"start": 6, "length": 65}, {"start": 11, "length": 70}):
        with pytest.raises(fs.FlexSpecError, match="FS032"):
            fs.kept_keys(pattern, 0, canvas=VIDEO, **given)
    for given in ({"start": -1}, {"start": True}, {"length": 0}):
        with pytest.raises(fs.FlexSpecError, match="FS030"):
            fs.kept_keys(pattern, 0, canvas=VIDEO, **given)


def test_a_mask_without_a_canvas_needs_one():
    with pytest.raises(fs.FlexSpecError, match="FS020.*has no canvas"):
        fs.kept_keys(fs.causal(), 3)
    with pytest.raises(fs.FlexSpecError, match="FS030"):
        fs.kept_keys(fs.mask(lambda h, q, kv: q - kv < h), 3, canvas=9, heads=2, h=2)


def texts(figure):
    """The legend, the notes, and every text on the figure."""
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    return legend, figure.texts[1].get_text(), [text.get_text() for text in figure.texts]


def test_the_picture_says_its_counts():
    found = fs.kept_keys(near(VIDEO), {"t": 1, "h": 2, "w": 1})
    legend, notes, every = texts(frames.figure(found))
    assert notes == "60 tokens, t × h × w = 3 × 5 × 4  ·  query t=1, h=2, w=1 keeps 45 keys (75%)"
    assert every[2:] == ["t=0", "15", "t=1", "15", "t=2", "15"]
    assert legend == ["kept", "not kept", "the query"]
    assert len(frames.figure(found).axes) == 3


def test_a_query_that_does_not_keep_itself_is_told_apart():
    strictly = fs.mask(lambda q, kv: q > kv)
    found = fs.kept_keys(strictly, [5, 6], canvas=9)
    assert texts(frames.figure(found))[0][-1] == "the query, which does not keep itself"
    assert "qq" in frames_text.draw(found, color=False) and "Q" not in frames_text.draw(found, color=False)


def test_several_queries_are_several_groups_of_frames():
    found = fs.kept_keys(near(VIDEO), [0, 59])
    assert len(frames.figure(found).axes) == 6
    every = texts(frames.figure(found))[2]
    assert "query t=0, h=0, w=0 keeps 40" in every and "query t=2, h=4, w=3 keeps 10" in every
    flat = frames.figure(fs.kept_keys(near(IMAGE), [0, 34]))
    assert len(flat.axes) == 2 and "query h=4, w=6 keeps 2" in texts(flat)[2]


def test_of_many_frames_those_around_the_query_are_drawn_and_the_rest_is_counted():
    tall = fs.Canvas(t=100, h=2, w=3)
    found = fs.kept_keys(fs.axial(tall, "t"), {"t": 90, "h": 1, "w": 2})
    (group,) = frames.groups_of(found)
    assert len(group.frames) == frames.MOST_FRAMES and group.frames[-1].name == "t=99"
    assert any(frame.own == (1, 2) and frame.name == "t=90" for frame in group.frames)
    both = frames.groups_of(fs.kept_keys(fs.axial(tall, "t"), [0, 599]))
    assert both[1].name.endswith(f"; {group.note}") and both[1].note == ""
    assert group.note == f"{frames.MOST_FRAMES} of 100 frames, {100 - frames.MOST_FRAMES} keys in the others"


def test_of_many_queries_the_first_are_drawn():
    flat, deep = (fs.kept_keys(near(canvas), range(canvas.size)) for canvas in (fs.Canvas(h=7, w=9), VIDEO))
    (group,) = frames.groups_of(flat)
    assert len(group.frames) == frames.MOST_FRAMES and group.note == f"the first {frames.MOST_FRAMES} of 63 queries"
    groups = frames.groups_of(deep)
    assert len(groups) == frames.MOST_QUERIES and groups[-1].note == f"the first {frames.MOST_QUERIES} of 60 queries"
    assert "the first 6 of 60 queries" in frames_text.draw(deep, color=False)


@pytest.mark.parametrize("sides", [{"t": 40, "h": 90, "w": 3}, {"v": 3, "t": 12, "h": 2, "w": 2}, {"h": 40, "w": 2}])
def test_names_of_frames_do_not_overlap(sides):
    canvas = fs.Canvas(**sides)
    figure = frames.figure(fs.kept_keys(near(canvas), [0, canvas.size - 1, 5]))
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.texts[2:] if text.get_text()]
    assert not [(i, j) for i, a in enumerate(boxes) for j, b in enumerate(boxes[:i]) if a.overlaps(b)]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)


def test_a_long_strip_shows_single_keys_as_some_kept():
    found = fs.kept_keys(fs.mask(lambda kv: kv == 70_000), 3, canvas=100_000)
    figure = frames.figure(found)
    assert texts(figure)[0][:2] == ["kept", "some kept"]
    image = np.asarray(figure.axes[0].images[0].get_array())
    colors = {tuple(color) for color in image.reshape(-1, 3).tolist()}
    wanted = [tuple(int(frames.COLORS[kind][i : i + 2], 16) for i in (1, 3, 5)) for kind in (0, 1)]
    assert colors == set(wanted)


def test_text_of_frames():
    drawn = frames_text.draw(fs.kept_keys(near(VIDEO), {"t": 0, "h": 1, "w": 2}), color=False)
    assert drawn.splitlines() == [
        "kept()",
        "t=0         t=1",
        "┌────────┐  ┌────────┐",
        "│····████│  │····████│",
        "│····QQ██│  │····████│",
        "│····████│  │····████│",
        "│····████│  │····████│",
        "│····████│  │····████│",
        "└────────┘  └────────┘",
        "nothing is kept in 1 other frame",
        "█ kept   · not kept   Q the query",
        "60 tokens, t × h × w = 3 × 5 × 4, query t=0, h=1, w=2 keeps 20 keys (33.3%)",
    ]
    assert "\x1b[" in frames_text.draw(fs.kept_keys(near(VIDEO), 3), color=True)


@pytest.mark.parametrize("canvas", [fs.Canvas(w=999), fs.Canvas(t=9, h=40, w=90), fs.Canvas(t=4, h=9, w=9)], ids=str)
def test_text_stays_in_its_width(canvas):
    for width in (40, 72):
        lines = frames_text.draw(fs.kept_keys(near(canvas), 5), width=width, color=False).splitlines()
        assert max(len(line) for line in lines[:-1]) <= width


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_pictures_are_written(suffix, tmp_path, capsys):
    found = fs.kept_keys(near(VIDEO), 7)
    path = found.show(tmp_path / f"keys{suffix}")
    assert path == tmp_path / f"keys{suffix}" and path.stat().st_size > 1000
    assert found.show() == capsys.readouterr().out.rstrip("\n")
    with pytest.raises(fs.FlexSpecError, match="FS054"):
        found.show(tmp_path / "keys.gif")


TILED = fs.tiled(IMAGE, h=2, w=3)  # 3 x 3 tiles of 6


def test_titles_of_orders_count_blocks():
    pattern = fs.windows(IMAGE, size={"h": 2, "w": 3})  # full blocks in tiles, but at the edges
    maps = [fs.block_map(pattern, 35, block_size=6, order=order) for order in (None, fs.row_major(IMAGE), TILED)]
    for made, name in zip(maps, ("logical order", "row_major", "tiled(h=2, w=3)"), strict=True):
        kinds = made.kinds()[0, 0]
        title = orders.title_of(made)
        assert bool((kinds == 2).any()) == (made.order is TILED)
        busy, full = int((kinds > 0).sum()), int((kinds == 2).sum())
        assert title[0] == name
        assert title[1].startswith(f"{busy:,} of {kinds.numel():,} blocks, {100 * busy / kinds.numel():.3g}%")
        assert title[2].startswith(f"{full:,} of them full")
    figure = orders.figure(maps)
    assert len(figure.axes) == 3 and {"logical order", "row_major", "tiled(h=2, w=3)"} <= set(texts(figure)[2])
    assert maps[2].q_len == 54 and figure.axes[2].get_xlim() == (0, 54)


def test_show_orders_draws_and_prints(tmp_path, capsys):
    pattern = fs.neighborhood(IMAGE, window=3)
    path = fs.show_orders(pattern, [None, TILED], tmp_path / "orders.png", block_size=6)
    assert path == tmp_path / "orders.png" and path.stat().st_size > 1000
    drawn = fs.show_orders(pattern, [None, TILED], block_size=6)
    assert capsys.readouterr().out.rstrip("\n") == drawn and "order tiled(h=2, w=3)" in drawn
    assert fs.show_orders(fs.causal(), [fs.striped(2)] * 4, tmp_path / "four.svg", length=300)
    for given, code in (([], "FS020"), ([fs.tiled(VIDEO, 2)], "FS033")):
        with pytest.raises(fs.FlexSpecError, match=code):
            fs.show_orders(pattern, given, tmp_path / "x.png")
    with pytest.raises(fs.FlexSpecError, match="FS020"):
        fs.show_orders(fs.causal(), [None], tmp_path / "x.png")
    with pytest.raises(fs.FlexSpecError, match="FS030"):
        fs.show_orders(pattern, [None], tmp_path / "x.png", h=-1)


def test_tiles_begin_where_the_order_says():
    coordinates = TILED.permutation(35)
    tile = [None if at < 0 else (int(at) // 7 // 2, int(at) % 7 // 3) for at in coordinates]
    borders = [m for m in range(1, 54) if None not in (tile[m], tile[m - 1]) and tile[m] != tile[m - 1]]
    made = fs.block_map(fs.neighborhood(IMAGE, window=3), 35, block_size=4, order=TILED)
    q, kv = picture.tile_starts(made, (0, 54, 0, 54))
    assert q == kv == range(6, 54, 6) and set(borders) <= set(q)
    assert picture.tile_starts(made, (7, 30, 12, 19)) == (range(12, 30, 6), range(18, 19, 6))
    assert "purple: tiles of 6" in texts(picture.figure(made))[1]


def test_tiles_are_not_drawn_where_there_are_none_or_too_many():
    pattern = fs.neighborhood(IMAGE, window=3)
    none = (range(0), range(0))
    for order in (None, fs.row_major(IMAGE), fs.axes(IMAGE, "w", "h")):
        made = fs.block_map(pattern, 35, block_size=4, order=order)
        assert picture.tile_starts(made, (0, 35, 0, 35)) == none
    made = fs.block_map(pattern, 35, block_size=6, order=TILED)
    assert picture.tile_starts(made, (0, 54, 0, 54)) == none
    assert "a tile is a block" in texts(picture.figure(made))[1]
    wide = fs.Canvas(h=2, w=400)
    many = fs.block_map(fs.neighborhood(wide, window=3), 800, block_size=16, order=fs.tiled(wide, h=2, w=2))
    assert picture.tile_starts(many, (0, 800, 0, 800)) == none
    assert picture.tile_starts(many, (0, 100, 0, 100))[0] == range(4, 100, 4)


def test_tiles_of_a_sliced_map_are_drawn_on_the_keys_side_only():
    made = fs.block_map(fs.neighborhood(IMAGE, window=3), 35, block_size=4, order=TILED).slice(q=(8, 20))
    if made.order is not None:
        assert picture.tile_starts(made, (0, 12, 0, 54)) == (range(0), range(6, 54, 6))


def run(*words):
    return CliRunner().invoke(app, ["show", *words])


def test_the_command_line_draws_queries(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    pattern = "neighborhood(canvas(t=2, h=5, w=7), window={t: 1, h: 3, w: 3})"
    drawn = run(pattern, "--query", "t=1,h=0,w=0")
    assert drawn.exit_code == 0 and "│QQ████········│" in drawn.output and "keeps 9 keys" in drawn.output
    path = tmp_path / "keys.png"
    made = run(pattern, "--query", "t=1,h=0,w=0", "--query", "36", "-o", str(path), "--json")
    assert made.exit_code == 0 and path.exists() and '"kept": 9' in made.output and '"w": 1' in made.output
    strip = run("causal_window(3)", "--query", "5", "--length", "9")
    assert "│······████QQ······│" in strip.output


@pytest.mark.parametrize(
    "words, code",
    [
        (["--query", "t=1,h=9,w=0"], "FS030"),
        (["--query", "t=1,h=0"], "FS011"),
        (["--query", "t=1,h=0,h=0"], "FS050"),
        (["--query", "near"], "FS050"),
        (["--query", "0", "--length", "9"], "FS032"),
        (["--query", "0", "--kv-length", "9"], "FS030"),
        (["--query", "0", "--region", "0:9,0:9", "-o", "x.png"], "FS030"),
        (["--order", "row_major", "--order", "axes(h, t, w)", "--region", "0:9,0:9", "-o", "x.png"], "FS030"),
    ],
)
def test_queries_that_the_command_line_cannot_draw(words, code):
    found = run("neighborhood(canvas(t=2, h=5, w=7), window=3)", *words)
    assert found.exit_code == 2 and code in found.output and "Traceback" not in found.output


def test_the_command_line_draws_several_orders(tmp_path):
    path = tmp_path / "orders.png"
    words = ["neighborhood(canvas(h=5, w=7), window=3)", "--order", "row_major", "--order", "tiled(h=2, w=3)"]
    made = run(*words, "--block-size", "6", "-o", str(path))
    assert made.exit_code == 0 and path.exists()
    assert "order tiled(h=2, w=3)" in run(*words, "--block-size", "6").output
