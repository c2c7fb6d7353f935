"""Positions and an order in one call: the order moves the call's rows, positions say what they are."""

import positions_oracle as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_masks import block_kinds, make_mask, masks, tables
from test_positions import HEADS, IDS, WHOLE, K, Q, drawn, same, same_documents, scattered, whole_qkv

import flexspec as fs
from flexspec.errors import FlexSpecError

ROWS, KEYS = 12, 70
SMALL, LARGE = fs.Canvas(a=3, b=4), fs.Canvas(a=7, b=10)
LABELS = torch.randint(0, 5, (2, HEADS, KEYS), generator=torch.Generator().manual_seed(7))
ORDERS = {
    "ranks": fs.striped(3),
    "queries": (fs.zigzag(2), None),
    "keys": (None, fs.by_label(LABELS[0, 0])),
    "padded tiles": (fs.tiled(SMALL, a=2, b=3), fs.tiled(LARGE, a=4, b=4)),
    "by batch and head": (fs.by_label(LABELS[:, :, :ROWS]), fs.by_label(LABELS)),
    "a list by head": (None, [None, fs.hilbert(LARGE), fs.axes(LARGE, "b", "a"), fs.tiled(LARGE, a=4, b=4)]),
}
BACKENDS = {"reference": ORDERS, "blocks": ORDERS, "triton": ORDERS, "flex": ("padded tiles", "a list by head")}
KEPT = (Q >= K) & (same_documents() | ((Q - K).abs() <= 20))


@pytest.mark.parametrize(
    ("backend", "name"), [(backend, name) for backend, names in BACKENDS.items() for name in names]
)
def test_an_order_of_the_rows_changes_no_result(backend, name):
    spec = fs.Attention(fs.causal() & (fs.document() | fs.sliding_window(20)), [fs.alibi()])
    slopes = torch.tensor([2.0 ** (-8 * (head + 1) / HEADS) for head in range(HEADS)]).view(1, -1, 1, 1)
    at = scattered(ROWS, 2, seed=1), scattered(KEYS, 2, 2, seed=2)
    attend = fs.compile(spec, order=ORDERS[name], backend=backend, block_size=16)
    same(attend, whole_qkv(), *at, KEPT, -(Q - K).abs() * slopes, document_id=IDS)


@settings(max_examples=60, deadline=None)
@given(masks, st.sampled_from(sorted(ORDERS)), st.sampled_from([(1,), (2,), (2, 4), (1, 4)]), st.integers(0, 999))
def test_random_masks(written, name, leading, seed):
    """The map over memory holds the pairs of the rows' true positions, moved."""
    mask, order = make_mask(written, tables(WHOLE, 2, HEADS, seed)), fs.order.as_order(ORDERS[name])
    dense = mask.dense(WHOLE, batch=2, heads=HEADS)
    given = {"q": scattered(ROWS, *leading, seed=seed), "kv": scattered(KEYS, *leading, seed=seed + 1)}
    in_memory = {}
    for side, positions in given.items():
        own, each = order.side(side), oracle.heads_of(positions, 2, HEADS)
        if own is not None:
            table = own.permutation(each.shape[-1])
            table = table.view((1,) * (3 - table.dim()) + table.shape).expand(2, HEADS, -1)
            each = torch.where(table >= 0, torch.take_along_dim(each, table.clamp(min=0), 2), -1)
        in_memory[side] = each
    rows = torch.take_along_dim(dense, in_memory["q"].clamp(min=0)[..., None], 2)
    kept = torch.take_along_dim(rows, in_memory["kv"].clamp(min=0)[..., None, :], 3)
    kept &= (in_memory["q"] >= 0)[..., None] & (in_memory["kv"] >= 0)[..., None, :]
    values = {"q_positions": given["q"], "kv_positions": given["kv"]}
    found = fs.block_map(mask, ROWS, KEYS, batch=2, heads=HEADS, block_size=(8, 5), order=ORDERS[name], **values)
    wanted = block_kinds(kept, 8, 5)
    assert torch.equal(found.kinds().expand_as(wanted), wanted)
    for b, h in ((0, 0), (1, 3)):
        pairs = found.tokens(0, kept.shape[2], 0, kept.shape[3], b=b, h=h)
        assert torch.equal(pairs, kept[b, h])
    bounded = fs.compile(mask, order=ORDERS[name], block_size=(8, 5), exact=False)
    bounds = bounded.block_map(ROWS, KEYS, batch=2, heads=HEADS, **values).kinds().expand_as(wanted)
    assert torch.equal(bounds[bounds != 1], wanted[bounds != 1])


def test_a_canvas_of_true_positions_and_an_order_of_the_rows():
    """A rank holds some tokens of a video and sorts them by their place."""
    video = fs.Canvas(t=5, h=5, w=6)
    mask = fs.mask(canvas=video)(lambda q, kv: (q.t >= kv.t) & ((q.h - kv.h).abs() <= 1))
    t, h = torch.arange(WHOLE) // 30, torch.arange(WHOLE) // 6 % 5
    kept = ((t[:, None] >= t) & ((h[:, None] - h).abs() <= 1))[None, None]
    at = scattered(ROWS, 1, seed=4), scattered(KEYS, 1, seed=5)
    order = fs.by_label(h[at[0][0].clamp(min=0)]), fs.by_label(h[at[1][0].clamp(min=0)])
    for backend in ("blocks", "triton"):
        attend = fs.compile(mask, order=order, backend=backend, block_size=16)
        same(attend, whole_qkv(), *at, kept)
    empty = [
        fs.block_map(mask, ROWS, KEYS, block_size=4, order=each, q_positions=at[0], kv_positions=at[1]).counts()[0]
        for each in (order, None)
    ]
    assert empty[0] > empty[1]


@pytest.mark.parametrize("backend", ["blocks", "triton"])
def test_gradients_and_the_lse(backend):
    attend, plain = (
        fs.compile(fs.causal_window(90), order=order, backend=backend, block_size=16)
        for order in (ORDERS["by batch and head"], None)
    )
    at = {"q_positions": scattered(ROWS, 2, seed=1), "kv_positions": scattered(KEYS, 2, HEADS, seed=2)}
    tensors = [drawn(2, HEADS, rows, 16, seed=i).requires_grad_() for i, rows in enumerate((ROWS, KEYS, KEYS))]
    results = [each(*tensors, return_lse=True, **at) for each in (attend, plain)]
    torch.testing.assert_close(*results)
    mine, theirs = (torch.autograd.grad(out.square().sum(), tensors) for out, _ in results)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    model = torch.compile(lambda *qkv: attend(*qkv, **at).sin(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(model(*tensors), plain(*tensors, **at).sin())


def test_inputs_that_lie_in_the_order_take_positions_of_the_rows_as_they_stood():
    own, cache = ORDERS["padded tiles"]
    attend = fs.compile(fs.causal(), order=(own, cache), backend="blocks", block_size=16)
    q, k, v = (drawn(2, 2, rows, 16, seed=i) for i, rows in enumerate((ROWS, KEYS, KEYS)))
    at = {"q_positions": scattered(ROWS, 2, seed=1), "kv_positions": scattered(KEYS, 1, 2, seed=2)}
    out = attend(own.apply(q), cache.apply(k), cache.apply(v), inputs="ordered", **at)
    torch.testing.assert_close(own.undo(out), attend(q, k, v, **at))


@pytest.mark.parametrize("name", ORDERS)
def test_measures(name):
    q, k = drawn(2, HEADS, ROWS, 16), drawn(2, HEADS, KEYS, 16, seed=1)
    at = {"q_positions": scattered(ROWS, 2, seed=1), "kv_positions": scattered(KEYS, 2, HEADS, seed=2)}
    mass = {"late": fs.mask(lambda q, kv: kv > 60)}
    mine, theirs = (
        fs.measure(fs.causal(), q, k, mass=mass, order=order, block_size=16, **at) for order in (ORDERS[name], None)
    )
    for field in ("entropy", "distance", "column_sums", "column_counts", "lse"):
        torch.testing.assert_close(getattr(mine, field), getattr(theirs, field))
    torch.testing.assert_close(mine.mass["late"], theirs.mass["late"])
    window = fs.causal_window(9)
    shares = [fs.recall(window, q, k, within=fs.causal(), order=order, **at).share for order in (ORDERS[name], None)]
    torch.testing.assert_close(*shares)


def test_what_does_not_fit():
    q, k = drawn(1, 1, ROWS, 16), drawn(1, 1, KEYS, 16)
    tall = fs.compile(fs.causal(), order=(None, fs.hilbert(fs.Canvas(a=15, b=10))), backend="blocks")
    table = torch.arange(50.0)
    score = fs.score(lambda score, kv: score + table[kv // 2])
    looks_up = fs.compile(fs.Attention(fs.causal(), [score]), order=ORDERS["padded tiles"], backend="blocks")
    past = torch.arange(KEYS)[None].clone()
    past[0, 68] = 100  # of a key in the last tile, past the first 70 places
    for code, attend, positions in (("FS033", tall, past), ("FS024", looks_up, past)):
        with pytest.raises(FlexSpecError) as found:
            attend(q, k, k, kv_positions=positions)
        assert found.value.code == code
    looks_up(q, k, k, kv_positions=past.clamp(max=99))
