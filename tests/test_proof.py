"""Proofs find one wrong token among a million million, and the first one in reading order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
    made = torch.Generator().manual_seed(seed)
    table = torch.rand(2, 3, q_len, kv_len, generator=made) < 3 / (q_len * kv_len)
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
