"""Drawings: what is in a cell, what reaches the pixels, and what the text says."""

from __future__ import annotations

import re

import numpy as np
import pytest
from flexspec.compiler.draw import picture, scale, terminal
from flexspec.compiler.draw.scale import Shade
from matplotlib.image import imread

import flexspec as fs


@fs.mask
def band(q, kv, *, window):
    return (q >= kv) & (q - kv < window)


@fs.mask
def diagonal(q, kv):
    return q == kv


@fs.mask
def checkers(q, kv):
    return (q + kv) % 2 == 0


def pixels(path):
    """A PNG as int [height, width, 3]."""
    return (imread(path)[..., :3] * 255).round().astype(int)


def of_color(image, shade):
    wanted = [int(picture.COLORS[shade][i : i + 2], 16) for i in (1, 3, 5)]
    return (abs(image - wanted) <= 2).all(-1)


def kind_of(cell):
    """The rule, said in plain words: empty or full where all of it is, else partial."""
    return {(0,): 0, (2,): 2}.get(tuple(sorted(set(cell.reshape(-1).tolist()))), 1)


@pytest.mark.parametrize("rows, columns", [(1, 1), (2, 3), (5, 1), (4, 4), (100, 100)])
def test_a_coarse_cell_has_the_kind_of_one_block_of_its_size(rows, columns):
    made = fs.block_map(band(window=30) | (fs.mask(lambda kv: kv < 3)), 101, 90, block_size=(4, 3))
    dense = made.kinds()[0, 0].numpy()
    wanted = [
        [kind_of(dense[i : i + rows, j : j + columns]) for j in range(0, dense.shape[1], columns)]
        for i in range(0, dense.shape[0], rows)
    ]
    assert scale.coarse(dense, rows, columns).tolist() == wanted
    window = (0, made.q_blocks, 0, made.kv_blocks)
    assert scale.coarse_runs(made.of(), window, rows, columns).tolist() == wanted


def test_coarse_cells_of_a_window_inside_the_map():
    made = fs.block_map(band(window=30), 100, block_size=4)
    dense = made.kinds()[0, 0].numpy()
    assert scale.coarse_runs(made.of(), (3, 17, 2, 20), 1, 1).tolist() == dense[3:17, 2:20].tolist()


def test_cells_of_pairs_tell_what_is_computed_and_what_is_kept():
    made = fs.block_map(band(window=4), 6, block_size=2)
    cells = scale.pair_cells(made, 0, 0, (0, 6, 0, 6), (64, 64))
    blank, dropped, kept, solid = Shade.BLANK, Shade.DROPPED, Shade.KEPT, Shade.SOLID
    assert cells.shades.tolist() == [
        [kept, dropped, blank, blank, blank, blank],
        [kept, kept, blank, blank, blank, blank],
        [solid, solid, kept, dropped, blank, blank],
        [solid, solid, kept, kept, blank, blank],
        [dropped, kept, solid, solid, kept, dropped],
        [dropped, dropped, solid, solid, kept, kept],
    ]
    assert cells.blocks == (3, 4, 2)


def test_coarse_cells_of_pairs_may_be_mixed():
    cells = scale.pair_cells(fs.block_map(band(window=4), 12, block_size=12), 0, 0, (0, 12, 0, 12), (4, 4))
    assert cells.cell_q == cells.cell_kv == 3
    mixed, dropped = Shade.MIXED, Shade.DROPPED
    assert cells.shades.tolist() == [
        [mixed, dropped, dropped, dropped],
        [mixed, mixed, dropped, dropped],
        [dropped, mixed, mixed, dropped],
        [dropped, dropped, mixed, mixed],
    ]


def test_shades_differ_for_the_eye_and_on_a_grey_printer():
    def lightness(color):  # CIE L*, 0 to 100
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        y = np.dot(linear, [0.2126, 0.7152, 0.0722])
        return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y

    found = [lightness(picture.COLORS[shade]) for shade in Shade]
    assert all(light - dark > 7 for light, dark in zip(found, found[1:], strict=False))
    kinds = [found[shade] for shade in (Shade.BLANK, Shade.MIXED, Shade.SOLID)]
    assert all(light - dark > 25 for light, dark in zip(kinds, kinds[1:], strict=False))


def test_a_thin_diagonal_and_a_sink_of_one_block_survive_100_000_tokens(tmp_path):
    made = fs.block_map(diagonal | fs.mask(lambda kv: kv < 1), 100_000, block_size=16)
    image = pixels(made.show(tmp_path / "thin.png"))
    partial = of_color(image, Shade.MIXED)
    partial[-image.shape[0] // 10 :] = False  # the legend
    tall, wide = partial.any(1).sum(), partial.any(0).sum()
    assert min(tall, wide) > 1000
    column = int(np.argmax(partial.any(0)))
    assert partial[:, column].sum() >= tall - 2  # the sink, down the whole left edge
    rows = np.flatnonzero(partial.any(1))
    last = [int(np.flatnonzero(partial[row])[-1]) - column for row in rows]
    assert all(abs(x - i) <= 4 for i, x in enumerate(last))  # the diagonal, without a gap


def test_every_cell_is_as_wide_as_the_others(tmp_path):
    image = pixels(fs.block_map(checkers, 640, block_size=1).show(tmp_path / "checkers.png"))
    row = of_color(image, Shade.SOLID)[image.shape[0] // 2]
    changes = np.flatnonzero(np.diff(row.astype(int)))
    assert len(changes) >= 638
    assert len(set(np.diff(changes[1:-1]).tolist())) == 1


@pytest.mark.parametrize("name", ["a.png", "a.svg", "a.pdf", "A.PNG"])
def test_formats(name, tmp_path):
    path = fs.block_map(band(window=9), 300).show(str(tmp_path / name))
    assert path == tmp_path / name
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    assert path.read_bytes().startswith(starts[path.suffix.lower()])


def texts(figure):
    axes = figure.axes[0]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    return legend, [text.get_text() for text in figure.texts], axes


def test_title_notes_legend_and_axes():
    made = fs.block_map(band(window=300), 5000, 3000, block_size=(128, 64))
    legend, (title, notes), axes = texts(picture.figure(made))
    counts = {kind.name: count for kind, count in made.counts().items()}
    assert legend == [
        f"empty blocks: {counts['EMPTY']:,}",
        f"partial blocks: {counts['PARTIAL']:,}",
        f"full blocks: {counts['FULL']:,}",
    ]
    assert title == "band(window=300)"
    assert "5,000 queries × 3,000 keys" in notes and "blocks of 128 × 64" in notes and "density" in notes
    assert (axes.get_xlim(), axes.get_ylim()) == (
        (0, 3000),
        (5000, 0),
    )  # the ragged tail is cut, not squeezed
    assert axes.get_xlabel() == "key position" and axes.get_ylabel() == "query position"
    assert "1,024" in [label.get_text() for label in axes.get_xticklabels()]


def test_notes_name_the_order_the_head_and_coarse_dots():
    each = fs.mask(lambda h, q, kv: q - kv < 64 * h)
    made = fs.block_map(each, 16 * 700, heads=3, block_size=16, order=fs.striped(4))
    _, (_, notes), axes = texts(picture.figure(made, h=2))
    assert "order striped(4)" in notes and "head 2 of 3" in notes and "a dot is 2 × 2 blocks" in notes
    assert axes.get_xlabel() == "key position in memory order"


def test_a_long_label_is_wrapped_and_dollars_are_no_formula(tmp_path):
    made = fs.block_map(band(window=3).named("pattern " * 60, x="$a_1$"), 64)
    _, (title, _), _ = texts(picture.figure(made))
    assert title.count("\n") == 2 and title.endswith("…")
    picture.save(fs.block_map(band(window=3).named(r"$\nope{$"), 64), tmp_path / "dollar.png")


def test_a_region_shows_its_own_pairs_and_blocks():
    made = fs.block_map(band(window=300), 100_000)
    legend, (_, notes), axes = texts(picture.figure(made, region=(50_000, 50_200, 49_900, 50_100)))
    assert (axes.get_xlim(), axes.get_ylim()) == ((49_900, 50_100), (50_200, 50_000))
    assert "region q 50,000–50,200, kv 49,900–50,100" in notes
    assert sum(int(text.split(": ")[1]) for text in legend if ": " in text) == 3 * 3


@pytest.mark.parametrize(
    "region",
    [(0, 5000, 0, 10), (0, 10, 0, 4097), (5, 5, 0, 9), (9, 3, 0, 9), (-1, 5, 0, 9), (0, 9, 9990, 10_001)],
)
def test_regions_that_cannot_be_drawn(region, tmp_path):
    with pytest.raises(fs.FlexSpecError) as caught:
        fs.block_map(diagonal, 10_000).show(tmp_path / "a.png", region=region)
    assert caught.value.code == "FS030"
    assert not (tmp_path / "a.png").exists()


def test_heads_that_are_not_there(tmp_path):
    made = fs.block_map(fs.mask(lambda h, q, kv: q - kv < h), 100, heads=3)
    for index in (3, -1):
        with pytest.raises(fs.FlexSpecError, match="FS030"):
            made.show(tmp_path / "a.png", h=index)
        with pytest.raises(fs.FlexSpecError, match="FS030"):
            terminal.draw(made, h=index)
    fs.block_map(diagonal, 100).show(tmp_path / "a.png", h=7)  # the same for every head


@pytest.mark.parametrize("name", ["a.gif", "a", "/dev/null/a.png"])
def test_files_that_cannot_be_written(name, tmp_path):
    with pytest.raises(fs.FlexSpecError, match="FS054"):
        fs.block_map(diagonal, 100).show(tmp_path / name)


@pytest.mark.parametrize("q_len, kv_len", [(1, 1), (1, 5000), (5000, 1), (16, 16), (64, 65), (3, 100_000)])
def test_every_shape_is_drawn(q_len, kv_len, tmp_path):
    made = fs.block_map(band(window=5), q_len, kv_len, block_size=(16, 128))
    image = pixels(made.show(tmp_path / "a.png"))
    assert 300 < image.shape[0] < 4000 and 300 < image.shape[1] < 4000
    assert terminal.draw(made)


def test_terminal_draws_pairs_where_they_fit():
    assert terminal.draw(fs.block_map(band(window=4), 6, block_size=2), color=False).splitlines() == [
        "band(window=4)",
        "q ↓ kv → 0     5",
        "   ┌────────────┐",
        " 0 │▓▓··        │",
        "   │▓▓▓▓        │",
        "   │████▓▓··    │",
        "   │████▓▓▓▓    │",
        " 4 │··▓▓████▓▓··│",
        "   │····████▓▓▓▓│",
        "   └────────────┘",
        "blocks: █ full 2   · partial 4 (▓ pairs kept in them)   blank: empty 3",
        "6 queries x 6 keys, blocks of 2 x 2, density 66.7%",
    ]


def test_terminal_draws_blocks_where_pairs_do_not_fit():
    assert terminal.draw(fs.block_map(band(window=300), 1024), color=False).splitlines() == [
        "band(window=300)",
        "    q ↓ kv → 0     1,023",
        "       ┌────────────────┐",
        "     0 │░░              │",
        "       │██░░            │",
        "       │░░██░░          │",
        "       │░░░░██░░        │",
        "   512 │  ░░░░██░░      │",
        "       │    ░░░░██░░    │",
        "       │      ░░░░██░░  │",
        "       │        ░░░░██░░│",
        "       └────────────────┘",
        "blocks: █ full 7   ░ partial 19   blank: empty 38",
        "1,024 queries x 1,024 keys, blocks of 128 x 128, density 40.6%",
    ]


def test_terminal_keeps_a_thin_diagonal():
    lines = terminal.draw(fs.block_map(diagonal, 100_000), color=False).splitlines()
    rows = [line.split("│")[1] for line in lines if line.count("│") == 2]
    assert all("░" in row for row in rows) and all(any(row[i] == "░" for row in rows) for i in range(len(rows[0])))
    assert "a cell is" in lines[-1]


@pytest.mark.parametrize("length", [6, 1000, 100_000])
def test_terminal_stays_in_its_width(length):
    for width in (40, 72, 100):
        drawn = terminal.draw(fs.block_map(band(window=4), length), width=width, color=False).splitlines()
        assert max(len(line) for line in drawn[:-2]) <= width


def test_terminal_color_is_asked_for(monkeypatch):
    made = fs.block_map(band(window=300), 10_000)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    colored = terminal.draw(made)
    monkeypatch.setenv("NO_COLOR", "1")
    plain = terminal.draw(made)
    assert "\x1b[" in colored and "\x1b[" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored).splitlines()[1] == plain.splitlines()[1]
    assert set("".join(line.split("│")[1] for line in plain.splitlines() if line.count("│") == 2)) == {
        " ",
        "░",
    }
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert terminal.draw(made) == plain
