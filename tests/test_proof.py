"""Proofs find one wrong token among a million million, and the first one in reading order."""

import pytest
import torch
from flexspec.compiler.proofs.assume import reduced
from flexspec.compiler.simplify.rules import simplify
from hypothesis import given, settings
from hypothesis import strategies as st
from random_masks import make_mask, masks, tables, truth

import flexspec as fs

LENGTH = 1_000_000


@settings(max_examples=15, deadline=None)
@given(st.integers(0, LENGTH - 1), st.integers(0, LENGTH - 1))
def test_one_planted_pair(q_at, kv_at):
    plain = fs.sink_window(window=1000, sink=4)
    planted = plain ^ fs.Mask(fs.parse(f"(q == {q_at}) & (kv == {kv_at})"), "one pair")
    proof = fs.equals(plain, planted, LENGTH)
    assert not proof and proof.counterexample == (0, 0, q_at, kv_at)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 300), st.integers(1, 300))
def test_the_first_difference_in_reading_order(seed, q_len, kv_len):
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(2, 3, q_len, kv_len, generator=generator) < 3 / (q_len * kv_len)
    other = torch.zeros_like(table)
    a, b = (fs.from_mask_mod(lambda b, h, q, kv, t=t: t[b, h, q, kv]) for t in (table, other))
    proof = fs.equals(a, b, q_len, kv_len, batch=2, heads=3)
    first = table.nonzero()
    assert proof.holds == (len(first) == 0)
    assert proof.counterexample == (tuple(first[0].tolist()) if len(first) else None)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (fs.causal_window(512), fs.causal() & fs.sliding_window(511)),
        (fs.chunked(64) & fs.causal(), fs.chunk_causal(64) & fs.causal() & ~(fs.chunk_causal(64) - fs.chunked(64))),
        (fs.prefix_lm(100), fs.causal() | fs.sink(100)),
        (fs.dilated_window(8, 1), fs.sliding_window(8)),
        (~(fs.causal() | fs.sink(3)), ~fs.causal() - fs.sink(3)),
    ],
)
def test_known_equalities(a, b):
    assert fs.equals(a, b, 100_000).holds
    assert torch.equal(a.dense(200), b.dense(200))


def test_a_full_block_on_the_right_can_come_first():
    mask = fs.Mask(fs.parse("(kv >= 128) | (q == 3)"), "late")
    assert fs.equals(mask, fs.nothing(), 256).counterexample == (0, 0, 0, 128)


FLIPPED = fs.mask(lambda q, kv: (q == 777_777) & (kv == 777_000))
MILLION = 1 << 20


def test_one_flipped_pair_in_a_window():
    plain = fs.causal_window(1024)
    proof = plain.equals(plain ^ FLIPPED, MILLION)
    assert not proof and proof.counterexample == (0, 0, 777_777, 777_000)
    assert not plain.implies(plain ^ FLIPPED, MILLION)
    assert (plain ^ FLIPPED).implies(plain, MILLION)
    assert plain.equals((plain ^ FLIPPED) ^ FLIPPED, MILLION)


def test_one_flipped_pair_between_two_ways_to_write_a_mask():
    one, other = fs.causal_window(1024), fs.causal() & fs.sliding_window(1023)
    assert one.equals(other, MILLION)
    assert one.equals(other ^ FLIPPED, MILLION).counterexample == (0, 0, 777_777, 777_000)


def test_one_token_of_another_document():
    ids = torch.arange(200_000) // 777
    wrong = ids.clone()
    wrong[150_000] += 1
    proof = fs.document(ids).equals(fs.document(wrong), len(ids))
    assert proof.counterexample == (0, 0, 150_000 // 777 * 777, 150_000)
    assert fs.document(ids).equals(fs.document(ids.clone()), len(ids))


def test_one_head_whose_window_is_off_by_one():
    windows = torch.tensor([64, 512, 1024, 4096])
    wrong = windows + torch.tensor([0, 0, 1, 0])
    a, b = (fs.mask(lambda h, q, kv, *, reach=t: (q >= kv) & (q - kv < reach[h])) for t in (windows, wrong))
    listed = fs.per_head([fs.causal_window(int(window)) for window in windows])
    assert listed.equals(a, MILLION, heads=4)
    assert listed.equals(b, MILLION, heads=4).counterexample == (0, 2, 1024, 0)
    assert a.equals(b, MILLION, heads=4).counterexample == (0, 2, 1024, 0)
    assert a.implies(b, MILLION, heads=4)
    assert not b.implies(a, MILLION, heads=4)
    assert a.equals(b, MILLION, heads=2)


def test_a_planted_pair_on_a_canvas():
    video = fs.Canvas(t=30, h=48, w=80)
    tiles = fs.sliding_tile(video, window={"t": 18, "h": 24, "w": 24}, tile={"t": 6, "h": 8, "w": 8})
    planted = fs.mask(lambda q, kv: (q == 100_001) & (kv == 3))
    assert tiles.equals(tiles ^ planted).counterexample == (0, 0, 100_001, 3)
    assert tiles.equals(tiles, 115_200)
    assert tiles.every_query_attends()
    assert tiles.is_causal().counterexample[2] == 0


@pytest.mark.parametrize(
    "mask",
    [
        fs.causal_window(1024),
        fs.sink_window(sink=4, window=1024),
        fs.strided(64),
        fs.fixed(stride=64, summary=8),
        fs.log_sparse(),
        fs.hidden_decoding(2),
        fs.power_window(window=256, block=64),
        fs.causal() & fs.document(torch.arange(MILLION) // 900),
    ],
    ids=repr,
)
def test_shipped_patterns_at_a_million(mask):
    assert mask.is_causal(MILLION)
    assert mask.implies(fs.causal(), MILLION)
    assert mask.every_query_attends(MILLION)
    assert mask.is_empty(MILLION).counterexample == (0, 0, 0, 0)


def first_of(kept):
    where = kept.nonzero()
    return tuple(where[0].tolist()) if len(where) else None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_masks_against_counting(data):
    q_len, kv_len, batch, heads = (data.draw(st.integers(1, most)) for most in (70, 70, 2, 3))
    held = tables(max(q_len, kv_len), batch, heads, seed=data.draw(st.integers(0, 99)))
    written = [data.draw(masks) for _ in "ab"]
    a, b = (make_mask(each, held) for each in written)
    kept_a, kept_b = (truth(each, held, (batch, heads, q_len, kv_len)) for each in written)
    sizes = {"q_len": q_len, "kv_len": kv_len, "batch": batch, "heads": heads}
    assert a.implies(b, **sizes).counterexample == first_of(kept_a & ~kept_b)
    assert a.equals(b, **sizes).counterexample == first_of(kept_a ^ kept_b)
    assert (a & b).equals(b - (b - a), **sizes)
    assert a.is_empty(**sizes).counterexample == first_of(kept_a)
    later = torch.arange(kv_len) > torch.arange(q_len)[:, None]
    assert a.is_causal(**sizes).counterexample == first_of(kept_a & later)
    lonely = first_of(~kept_a.any(-1))
    assert a.every_query_attends(**sizes).counterexample == (lonely and (*lonely, None))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3000), st.integers(1, 700), st.sampled_from([0.001, 0.01, 0.1]))
def test_the_first_query_without_a_key(seed, q_len, kv_len, share):
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(q_len, kv_len, generator=generator) < share
    kept[
        : int(torch.randint(q_len, (1,), generator=generator)), int(torch.randint(kv_len, (1,), generator=generator))
    ] = True
    mask = fs.from_mask_mod(lambda b, h, q, kv: kept[q, kv])
    lonely = (~kept.any(1)).nonzero()
    proof = mask.every_query_attends(q_len, kv_len=kv_len)
    assert proof.counterexample == ((0, 0, int(lonely[0]), None) if len(lonely) else None)


def test_a_query_served_by_one_far_key():
    far = fs.mask(lambda q, kv: (q * 7919 + 13) % 5003 == kv)
    assert far.every_query_attends(6000, kv_len=5003)
    proof = (far & ~fs.mask(lambda q: q == 5555)).every_query_attends(6000, kv_len=5003)
    assert proof.counterexample == (0, 0, 5555, None)


def test_sizes_and_text():
    assert repr(fs.causal().is_causal(length=9)) == "Proof(holds=True, boxes=0)"
    assert repr(fs.everything().is_causal(q_len=9)) == "Proof(holds=False, counterexample=(0, 0, 0, 1))"
    assert fs.causal().implies(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx - 1, 1000)
    for code, wrong in (("FS020", {}), ("FS021", {"length": 9, "q_len": 9}), ("FS030", {"length": 0})):
        with pytest.raises(fs.FlexSpecError) as caught:
            fs.causal().is_empty(**wrong)
        assert caught.value.code == code
    with pytest.raises(fs.FlexSpecError) as caught:
        fs.mask(lambda h, q, kv: q > kv + h).is_causal(9)
    assert caught.value.code == "FS031"


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("(q >= kv) & (kv > q)", "False"),
        ("(q >= kv) & ~((q >= kv) & (q < 9))", "(q - kv >= 0) & (q >= 9)"),
        ("(abs(q - kv) < 4) & (q - kv < 4)", "abs(q - kv) < 4"),
        ("(abs(q - kv) < 4) & (kv - q > 3)", "False"),
        ("(q - kv < 4) & (q - kv > -4) & (abs(q - kv) >= 4)", "False"),
        ("(q == kv) & (q != kv)", "False"),
        ("(q > 3) & (q < 4)", "False"),
        ("(q > 3) & ((q >= 4) ^ (kv > 1))", "(q > 3) & (kv <= 1)"),
        ("(q - kv < -9) & (abs(q - kv) >= 10)", "q - kv < -9"),
        ("(q - kv < -9) & (abs(q - kv) >= 11)", "(q - kv < -9) & (abs(q - kv) >= 11)"),
        ("(q == kv) & ((q <= kv) | (q > 7))", "q - kv == 0"),
        ("~((q > 3) | (kv > 3)) & ((q > 4) ^ (kv == 2))", "(q <= 3) & (kv == 2)"),
        ("(x[q] < 0.5) & ~(x[q] < 0.5)", "False"),
        ("(x[q] < 0.5) & ~(x[q] >= 0.5)", "(x[q] < 0.5) & ~(x[q] >= 0.5)"),
    ],
)
def test_conjunctions_get_shorter(text, short):
    assert str(reduced(simplify(fs.parse("x: float[_]; " + text)))).removeprefix("x: float[_]; ") == short
