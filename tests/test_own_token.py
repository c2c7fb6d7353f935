"""An identity mix takes the value of the key at the query's position, wherever it lies; nothing where that is gone."""

import positions_oracle as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_positions import HEADS, WHOLE, K, Q, drawn, scattered, whole_qkv

import flexspec as fs
from flexspec.errors import FlexSpecError

SHARE = torch.tensor([0.0, 0.25, 0.5, 1.0])
SPEC = fs.Attention(fs.causal_window(60), weight=fs.identity_mix(SHARE))
KEPT = ((Q >= K) & (Q - K < 60))[None, None]
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


def mixed(q, k, v, q_at, kv_at):
    """The dense answer: (1 - u) * attention + u * the own value; 0 of a query that keeps nothing."""
    out = oracle.attention(q, k, v, q_at, kv_at, KEPT)
    kept = torch.take_along_dim(KEPT.expand(*q.shape[:2], -1, -1), q_at.clamp(min=0)[..., None], 2)
    there = (torch.arange(WHOLE) == kv_at[..., None]).any(-2)
    some = (kept & there[:, :, None]).any(-1) & (q_at >= 0)
    own = torch.take_along_dim(v.double() * there[..., None], q_at.clamp(min=0)[..., None], 2)
    share = SHARE.double()[:, None, None]
    return torch.where(some[..., None], (1 - share) * out + share * own, 0.0)


def same(attend, q_positions, kv_positions, kv_heads=2):
    q, k, v = whole_qkv(kv_heads=kv_heads)
    q_at, kv_at = (oracle.heads_of(each, 2, HEADS) for each in (q_positions, kv_positions))
    of_keys = kv_at[:, :: HEADS // kv_heads]
    rows = oracle.gathered(q, q_at), oracle.gathered(k, of_keys), oracle.gathered(v, of_keys)
    wanted = mixed(q, *(x.repeat_interleave(HEADS // kv_heads, 1) for x in (k, v)), q_at, kv_at)
    out = attend(*rows, q_positions=q_positions, kv_positions=kv_positions)
    torch.testing.assert_close(out.double(), wanted, **TOLERANCE)


ORDERS = {
    "as it lies": None,
    "ranks": fs.striped(3),
    "padded": (None, fs.tiled(fs.Canvas(a=7, b=10), a=4, b=4)),
    "by head": (fs.by_label(torch.arange(4 * 30).view(1, 4, 30) * 7 % 11), None),
}


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("backend", ["reference", "blocks", "triton", "flex"])
def test_every_backend_finds_the_own_key(backend, name):
    attend = fs.compile(SPEC, order=ORDERS[name], backend=backend, block_size=16)
    same(attend, scattered(30, 2, seed=1), scattered(70, 2, 2, seed=2))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 100), st.sampled_from([(1,), (2,), (1, 2), (2, 4)]), st.integers(0, 999))
def test_random_positions(q_rows, kv_rows, leading, seed):
    attend = fs.compile(SPEC, order=(fs.striped(5), fs.zigzag(3)), backend="blocks", block_size=(8, 5))
    kv_heads = 4 if leading[1:] == (4,) else 2
    same(attend, scattered(q_rows, 2, seed=seed), scattered(kv_rows, *leading, seed=seed + 1), kv_heads)


def test_decoding():
    """One query over a ring buffer: its own key is in some slot, or not yet."""
    q, k, v = whole_qkv(batch=1)
    positions = torch.randperm(64, generator=torch.Generator().manual_seed(3))[None] + 80
    for own in (True, False):
        at = torch.where(positions == 143, 143 if own else -1, positions)
        each = oracle.heads_of(torch.tensor([[143]]), 1, HEADS), oracle.heads_of(at, 1, HEADS)
        wanted = mixed(q, *(x.repeat_interleave(2, 1) for x in (k, v)), *each)
        rows = q[:, :, 143:144], *(oracle.gathered(x, oracle.heads_of(at, 1, 2)) for x in (k, v))
        for backend in ("triton", "blocks", "reference"):
            attend = fs.compile(SPEC, backend=backend, block_size=16)
            out = attend(*rows, q_positions=torch.tensor([[143]]), kv_positions=at)
            torch.testing.assert_close(out.double(), wanted, **TOLERANCE)
        truth = fs.reference_attention(SPEC, *rows, q_positions=torch.tensor([[143]]), kv_positions=at)
        torch.testing.assert_close(truth, wanted, **TOLERANCE)


@pytest.mark.parametrize("backend", ["blocks", "triton", "reference"])
def test_gradients(backend):
    q, k, v = (x.double().requires_grad_() for x in whole_qkv(kv_heads=HEADS))
    q_at, kv_at = scattered(20, 2, seed=1), scattered(50, 2, 4, seed=2)
    each = oracle.heads_of(q_at, 2, 4), oracle.heads_of(kv_at, 2, 4)
    dout = drawn(2, 4, 20, 16, seed=9).double()
    wanted = torch.autograd.grad(mixed(q, k, v, *each), (q, k, v), dout)
    rows = oracle.gathered(q, each[0]), oracle.gathered(k, each[1]), oracle.gathered(v, each[1])
    attend = fs.compile(SPEC, backend=backend, order=(None, fs.zigzag(5)), block_size=16)
    out = attend(*(x.float() for x in rows), q_positions=q_at, kv_positions=kv_at)
    found = torch.autograd.grad(out, (q, k, v), dout.float())
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_two_keys_that_could_be_the_own_one_are_refused():
    """Though the mask itself compares nothing."""
    spec, x = fs.Attention(fs.everything(), weight=fs.identity_mix(0.5)), drawn(1, 2, 3, 16)
    twice = torch.tensor([[5, 7, 5]])
    for call in (fs.compile(spec, backend="blocks"), lambda *qkv, **at: fs.reference_attention(spec, *qkv, **at)):
        with pytest.raises(FlexSpecError, match="two keys stand at position 5") as found:
            call(x, x, x, kv_positions=twice)
        assert found.value.code == "FS036"
    with pytest.raises(FlexSpecError, match="or q_positions and kv_positions"):
        fs.compile(spec)(x[:, :, :2], x, x)
