"""Differences of masks: counts, first pairs, regions that hold all of them, and what is drawn."""

import numpy as np
import pytest
import torch
from flexspec.compiler.draw import diff as drawing
from flexspec.compiler.draw.diff import Side
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from random_masks import make_mask, masks, tables, truth

import flexspec as fs

MILLION = 1 << 20


def first_of(kept):
    where = kept.nonzero()
    return tuple(where[0].tolist()) if len(where) else None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_masks_against_counting(data):
    q_len, kv_len, batch, heads = (data.draw(st.integers(1, most)) for most in (70, 70, 2, 2))
    block_size = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    held = tables(max(q_len, kv_len), batch, heads, seed=data.draw(st.integers(0, 99)))
    written = [data.draw(masks) for _ in "ab"]
    a, b = (make_mask(each, held) for each in written)
    kept_a, kept_b = (truth(each, held, (batch, heads, q_len, kv_len)) for each in written)
    difference = a.diff(b, q_len, kv_len=kv_len, batch=batch, heads=heads, block_size=block_size)
    only_a, only_b = kept_a & ~kept_b, kept_b & ~kept_a
    assert bool(difference) == bool((only_a | only_b).any())
    assert (difference.first_a, difference.first_b) == (first_of(only_a), first_of(only_b))
    for kept, count in ((only_a, difference.only_a), (only_b, difference.only_b)):
        names = a.expr.names | b.expr.names  # masks that do not depend on b, or h, are counted once
        same = (batch if "b" not in names else 1) * (heads if "h" not in names else 1)
        assert count * same == int(kept.sum())
    if difference.region_count == len(difference.regions):
        for name, kept in (("a", only_a), ("b", only_b)):
            left = kept.clone()
            for part in difference.regions:
                if part.only == name:
                    b_all, h_all = (left.shape[0], left.shape[1])
                    blocks = difference.blocks_a if name == "a" else difference.blocks_b
                    at_b = slice(part.b, part.b + 1) if blocks.batch > 1 else slice(0, b_all)
                    at_h = slice(part.h, part.h + 1) if blocks.heads > 1 else slice(0, h_all)
                    left[at_b, at_h, part.q_start : part.q_stop, part.kv_start : part.kv_stop] = False
            assert not left.any()


def test_one_flipped_pair_at_a_million():
    plain = fs.causal_window(1024)
    difference = plain.diff(plain ^ fs.mask(lambda q, kv: (q == 777_777) & (kv == 777_000)), MILLION)
    assert (difference.only_a, difference.only_b) == (1, 0)
    assert (difference.first_a, difference.first_b) == ((0, 0, 777_777, 777_000), None)
    assert [tuple(part) for part in difference.regions] == [("a", 0, 0, 777_728, 777_856, 776_960, 777_088)]


def test_counts_at_a_million():
    difference = fs.causal().diff(fs.everything(), MILLION)
    assert (difference.only_a, difference.only_b) == (0, MILLION * (MILLION - 1) // 2)
    difference = fs.causal_window(100).diff(fs.causal_window(101), MILLION)
    assert (difference.only_a, difference.only_b) == (0, MILLION - 100)


def test_no_difference_is_false():
    difference = fs.causal().diff(lambda b, h, q_idx, kv_idx: kv_idx <= q_idx, 1000)
    assert not difference and difference.regions == ()
    assert str(difference) == "no difference on 1,000 queries x 1,000 keys\n  a  causal()\n  b  predicate"


def test_equal_rows_of_blocks_are_one_region_and_the_largest_is_first():
    a = fs.mask(lambda q, kv: (kv < 32) & (q >= 16) & (q < 80) | (kv >= 90) & (q < 16))
    difference = fs.diff(a, fs.nothing(), 100, block_size=16)
    assert [tuple(part)[3:] for part in difference.regions] == [(16, 80, 0, 32), (0, 16, 80, 100)]
    assert difference.only_a == 64 * 32 + 16 * 10


def test_text():
    difference = fs.diff(fs.causal(), fs.causal(offset=1), 2000, block_size=16)
    lines = str(difference).splitlines()
    assert lines[0] == "different on 2,000 queries x 2,000 keys"
    assert "     only here: 1,999 pairs, the first at b=0, h=0, q=0, kv=1" in lines
    assert lines[-1] == f"  ... and {difference.region_count - 8:,} smaller regions"
    assert repr(difference) == "Diff(only_a=0, only_b=1999, first_a=None, first_b=(0, 0, 0, 1))"


def test_cells_show_a_single_pair_among_many_blocks(tmp_path):
    plain = fs.causal_window(4096)
    difference = plain.diff(plain ^ fs.mask(lambda q, kv: (q == 50_000) & (kv >= 50_000) & (kv < 50_002)), 100_000)
    cells = drawing.cells_of(difference, 0, 0, None, 100, 0)
    seen = np.argwhere(cells.shades >= Side.ONLY_A).tolist()
    at = 50_000 // cells.cell_q
    assert seen == [[at, at]] and cells.shades[at, at] == Side.EACH
    assert cells.shades[at, at - 1] == Side.BOTH and cells.shades[0, -1] == Side.NEITHER
    image = (imread(difference.show(tmp_path / "diff.png"))[..., :3] * 255).round().astype(int)
    wanted = [int(drawing.COLORS[Side.ONLY_A][i : i + 2], 16) for i in (1, 3, 5)]
    assert (abs(image - wanted) <= 2).all(-1).sum() > 40  # the legend, and a ring around the region


@pytest.mark.parametrize("color", [False, True])
def test_terminal(color):
    a, b = fs.causal_window(2), fs.causal() & fs.sink(1)
    drawn = drawing.draw(fs.diff(a, b, 4), color=color)
    rows = [line.split("│")[1] for line in drawn.splitlines() if line.endswith("│")]
    if color:
        assert rows[0].startswith("\x1b[38;5;245m··\x1b[0m")
    else:
        assert rows == ["··      ", "··aa    ", "bbaaaa  ", "bb  aaaa"]


def test_a_region_and_a_head_are_drawn(tmp_path, capsys):
    a = fs.mask(lambda h, q, kv: q - kv < 4 * h + 1)
    difference = fs.diff(a, fs.mask(lambda q, kv: q - kv < 5), 600, heads=3)
    assert difference.first_a == (0, 2, 5, 0) and difference.first_b == (0, 0, 1, 0)
    assert difference.show(h=1) and "head 1 of 3" in capsys.readouterr().out
    cells = drawing.cells_of(difference, 0, 2, (0, 10, 0, 10), 64, 64)
    dense = a.dense(10, heads=3)[0, 2] & (torch.arange(10)[:, None] - torch.arange(10) >= 5)
    assert (torch.from_numpy(cells.shades) == Side.ONLY_A).equal(dense)
    assert difference.show(tmp_path / "part.svg", h=2, region=(0, 10, 0, 10)).exists()
    for code, wrong in (
        ("FS054", {"path": tmp_path / "a.bmp"}),
        ("FS030", {"h": 3}),
        ("FS030", {"region": (0, 9, 9, 9)}),
    ):
        with pytest.raises(fs.FlexSpecError) as caught:
            difference.show(**wrong)
        assert caught.value.code == code
