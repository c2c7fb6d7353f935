"""Measures of attention against dense float64 weights of torch's softmax, summed up by hand."""

import math

import numpy as np
import pytest
import torch
from flexspec.compiler.backends import row_batches
from flexspec.compiler.draw.measures import binned
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_masks import DECLARED, banded, comparisons, flags, tables
from test_blocks_backend import Largest

import flexspec as fs


def qk(heads=2, kv_heads=None, q_len=90, kv_len=None, batch=1, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(q_len + seed)
    shapes = (batch, heads, q_len, 8), (batch, kv_heads or heads, kv_len or q_len, 8)
    return [(2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype) for shape in shapes]


def weights(keep, q, k, scored=lambda s: s, scale=None):
    """float64 [batch, heads, q_len, kv_len]: the softmax over what is kept, 0 in a row that keeps nothing."""
    q, k = q.double(), k.double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = scored(q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale))
    keep = keep.expand_as(scores)
    some = keep.any(-1, keepdim=True)
    return torch.where(some, torch.softmax(scores.masked_fill(~keep & some, -torch.inf), -1), 0.0)


def same(found, wanted, tolerance=1e-9):
    torch.testing.assert_close(found.double(), wanted.double(), atol=tolerance, rtol=tolerance)


def check(found, dense, keep, sets=(), axes=(), tolerance=1e-9):
    """All measures, from dense weights. sets: by name, which pairs; axes: by name, each token's coordinate."""
    distance = (torch.arange(dense.shape[2])[:, None] - torch.arange(dense.shape[3])).abs()
    same(found.entropy, -(dense * dense.clamp(min=1e-300).log()).sum(-1), tolerance)
    same(found.distance, (dense * distance).sum(-1), tolerance * 100)
    same(found.column_sums, dense.sum(-2), tolerance * 10)
    assert torch.equal(found.column_counts, keep.expand_as(dense).sum(-2))
    same(found.importance, dense.sum(-2) / keep.expand_as(dense).sum(-2).clamp(min=1), tolerance)
    assert found.mass.keys() == dict(sets).keys() and found.axis_distance.keys() == dict(axes).keys()
    for name, chosen in dict(sets).items():
        same(found.mass[name], (dense * chosen).sum(-1), tolerance)
    for name, at in dict(axes).items():
        same(found.axis_distance[name], (dense * (at[:, None] - at).abs()).sum(-1), tolerance * 100)


MASKS = {
    "causal": fs.causal(),
    "late": fs.mask(lambda q, kv: (q >= kv + 40) & (q - kv < 60)),
    "nothing": fs.mask(lambda kv: kv < 0),
    "all": fs.everything(),
    "scattered": fs.mask(lambda q, kv: (q * 7 + kv * 13) % 19 == 0),
    "by pairs of heads": fs.mask(lambda h, q, kv: abs(q - kv) < 20 + 30 * (h % 2)),
    "by batch and head": fs.mask(lambda b, h, q, kv: q - kv >= b * 11 - h * 5),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("pairs", [1, 1 << 12, 1 << 20])
def test_masks_however_rows_are_batched(name, pairs, monkeypatch):
    monkeypatch.setattr(row_batches, "PAIRS", pairs)
    q, k = qk(heads=4, kv_heads=2, batch=2)
    near = fs.mask(lambda q, kv: abs(q - kv) < 5)
    chosen = {
        "keys": torch.rand(90) < 0.4,
        "keys by batch": torch.rand(2, 90) < 0.4,
        "keys of one head": torch.rand(2, 1, 90) < 0.4,
        "keys by head": torch.rand(2, 4, 90) < 0.4,
    }
    found = fs.measure(MASKS[name], q, k, mass={"near": near, **chosen}, block_size=16)
    shown = {key: x.view(x.shape[0] if x.dim() > 1 else 1, -1, 1, 90) for key, x in chosen.items()}
    keep = MASKS[name].dense(90, batch=2, heads=4)
    check(found, weights(keep, q, k), keep, {"near": near.dense(90), **shown})
    empty = ~keep.expand(2, 4, 90, 90).any(-1)
    assert ((found.lse == -torch.inf) == empty).all() and (found.entropy[empty] == 0).all()


@pytest.mark.parametrize("sizes", [(1, 300), (7, 7), (130, 65), (33, 257)])
@pytest.mark.parametrize("block_size", [(16, 32), (64, 8), 128])
def test_lengths_and_blocks(sizes, block_size):
    mask = fs.mask(lambda q, kv: (q - kv) % 5 < 2)
    q, k = qk(q_len=sizes[0], kv_len=sizes[1])
    check(fs.measure(mask, q, k, block_size=block_size), weights(mask.dense(*sizes), q, k), mask.dense(*sizes))


predicates = st.recursive(
    comparisons | banded | flags,
    lambda inner: st.tuples(st.sampled_from(["({} & {})", "({} | {})", "({} ^ {})"]), inner, inner).map(
        lambda x: type(x[1])(x[0].format(x[1].ours, x[2].ours), x[0].format(x[1].python, x[2].python))
    ),
    max_leaves=4,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
@given(predicates, predicates, st.integers(1, 70), st.integers(0, 9), st.sampled_from([8, (16, 32), (32, 8)]))
def test_random_masks_and_sets_of_keys(first, second, length, seed, block_size):
    values = tables(length, 2, 4, seed)
    mask, chosen = (fs.Mask(fs.parse(DECLARED + each.ours), "random") for each in (first, second))
    keep, on = (each.dense(length, batch=2, heads=4, **_own(each, values)) for each in (mask, chosen))
    q, k = qk(heads=4, kv_heads=2, batch=2, q_len=length)
    both = _own(mask, values) | _own(chosen, values)
    found = fs.measure(mask, q, k, mass={"chosen": chosen}, block_size=block_size, **both)
    dense = weights(keep, q, k)
    check(found, dense, keep, {"chosen": on})
    kept = fs.recall(chosen, q, k, within=mask, block_size=block_size, **both)
    some = keep.expand_as(dense).any(-1)
    same(kept.share, torch.where(some, (dense * on).sum(-1), 1.0))


def _own(mask, values):
    return {name: values[name] for name in values if name in mask.expr.names}


def test_scores_a_scale_and_values_of_the_call():
    q, k = qk(heads=4, kv_heads=2, batch=2)
    by = fs.Param("by", float)
    slope = fs.score(lambda score, h, q, kv: score - (h + 1) * by * abs(q - kv))
    spec = fs.Attention(fs.causal(), [slope, fs.softcap(5.0)], scale=0.3)
    at, head = torch.arange(90), torch.arange(4).view(4, 1, 1)

    def scored(s):
        return 5 * torch.tanh((s - (head + 1) * 0.125 * (at[:, None] - at).abs()) / 5)

    ids = torch.randint(0, 3, (2, 90)).sort(-1).values
    found = fs.measure(spec, q, k, mass={"own document": fs.document()}, by=0.125, document_id=ids)
    own = (ids[:, :, None] == ids[:, None])[:, None]
    dense = weights(at[:, None] >= at, q, k, scored, 0.3)
    check(found, dense, at[:, None] >= at, {"own document": own})
    same(fs.recall(fs.document(), q, k, within=spec, by=0.125, document_id=ids).share, (dense * own).sum(-1))


@pytest.mark.parametrize("order", ["tiled", "striped", "hilbert", "by side", "by head"])
def test_orders_change_nothing_and_a_canvas_gives_distances_by_axis(order):
    video = fs.Canvas(t=3, h=5, w=7)
    q, k = qk(q_len=105)
    orders = {"tiled": fs.tiled(video, t=2, h=2, w=4), "striped": fs.striped(4), "hilbert": fs.orders.hilbert(video)}
    orders |= {"by side": (orders["tiled"], fs.axes(video, "w", "t", "h"))}
    orders |= {"by head": [fs.axes(video, "w", "t", "h"), fs.axes(video, "h", "w", "t")]}
    same_frame = fs.mask(lambda q, kv: q.t == kv.t, canvas=video)
    near = fs.mask(lambda q, kv: (q.h - kv.h).abs() <= 2, canvas=video)
    at = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (3, 5, 7)), indexing="ij")).view(3, -1)
    chosen = torch.rand(105) < 0.5
    sets = {"own frame": same_frame, "chosen": chosen}
    found = fs.measure(near, q, k, mass=sets, order=orders[order], block_size=16)
    dense = weights(near.dense(105), q, k)
    check(found, dense, near.dense(105), sets | {"own frame": same_frame.dense(105)}, dict(zip("thw", at, strict=True)))
    share = fs.recall(same_frame, q, k, within=near, order=orders[order], block_size=16).share
    same(share, (dense * same_frame.dense(105)).sum(-1))
    flow = fs.rollout(near, [(q, k)], [0, 50], order=orders[order], block_size=16).shares
    same(flow[0], 0.5 * torch.eye(105)[[0, 50]] + 0.5 * dense.mean(1)[0, [0, 50]])


def test_true_positions():
    """Of a ring buffer: distances, and the keys that a mask names, are by position; columns are rows of k."""
    q, k = qk(q_len=3, kv_len=20, batch=2)
    queries, keys = torch.tensor([[40, 43, 41]]), torch.stack([torch.randperm(45)[:20], torch.randperm(45)[:20]])
    keys[:, ::6] = -1
    window, early = fs.causal_window(30), fs.mask(lambda kv: kv < 25)
    at, there = keys[:, None, None], queries[:, None, :, None]
    keep = (at >= 0) & (there >= at) & (there - at < 30)
    found = fs.measure(window, q, k, mass={"early": early}, q_positions=queries, kv_positions=keys, block_size=16)
    dense = weights(keep, q, k)
    same(found.distance, (dense * (there - at).abs()).sum(-1), 1e-7)
    same(found.mass["early"], (dense * (at < 25)).sum(-1))
    same(found.column_sums, dense.sum(-2))
    assert torch.equal(found.column_counts, keep.expand_as(dense).sum(-2))
    share = fs.recall(fs.causal_window(5), q, k, within=window, q_positions=queries, kv_positions=keys).share
    same(share, (dense * (there - at < 5)).sum(-1) + (~keep.any(-1)).expand(-1, 2, -1).double())


def test_a_canvas_for_full_attention():
    q, k = qk(q_len=12)
    found = fs.measure(fs.everything(), q, k, canvas=fs.Canvas(h=3, w=4))
    at = {"h": torch.arange(12) // 4, "w": torch.arange(12) % 4}
    check(found, weights(torch.tensor(True), q, k), torch.ones(12, 12, dtype=torch.bool), axes=at)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    q, k = qk(heads=4, kv_heads=2, dtype=dtype)
    found = fs.measure(fs.causal(), q.requires_grad_(), k)
    assert {each.dtype for each in found.by_query.values()} == {found.column_sums.dtype} == {torch.float32}
    check(found, weights(fs.causal().dense(90), q.detach(), k), fs.causal().dense(90), tolerance=3e-6)
    assert not found.entropy.requires_grad


def test_scores_far_apart_leave_no_nan():
    q, k = qk(dtype=torch.float32)
    found = fs.measure(fs.causal(), q * 1e4, k * 1e4)
    assert (found.entropy >= 0).all() and found.entropy.max() < 1e-5
    same(found.column_sums.sum(-1), torch.full((1, 2), 90.0), 1e-5)


def test_recall_with_a_known_lse_is_the_same_and_full_attention_is_the_default():
    q, k = qk(heads=4, kv_heads=2, dtype=torch.float32)
    window = fs.causal_window(9)
    found = fs.recall(window, q, k)
    dense = weights(torch.tensor(True), q, k)
    same(found.share, (dense * window.dense(90)).sum(-1), 1e-6)
    assert torch.equal(fs.recall(window, q, k, lse=found.lse).share, found.share)
    same(found.by_head(), found.share.mean((0, 2)), 1e-6)


def test_by_head_leaves_out_queries_that_keep_nothing():
    q, k = qk(batch=2)
    keep = MASKS["late"].dense(90).any(-1).view(90)
    found = fs.measure(MASKS["late"], q, k, mass={"even": torch.arange(90) % 2 == 0})
    for name, each in found.by_head().items():
        same(each, found.by_query[name][:, :, keep].mean((0, 2)))
    kept = fs.recall(fs.sink(40), q, k, within=MASKS["late"])
    same(kept.by_head(), kept.share[:, :, keep].mean((0, 2)))
    assert (kept.share[:, :, ~keep] == 1).all()


def test_a_sink_is_found():
    q, k = qk(heads=2, q_len=40)
    q[:, 1, :, 0] += 8.0  # all queries of head 1 look for what only the first key has
    k[:, 1, 0, 0] = 8.0
    sinks = fs.measure(fs.causal(), q, k).sinks()
    dense = weights(fs.causal().dense(40), q, k).sum(-2) / torch.arange(40, 0, -1)
    assert torch.equal(sinks, dense > 0.3) and sinks[0, 1, 0] and not sinks[0, 0, 0]


SPECS = {
    "causal": [fs.causal()],
    "alternating": [fs.causal(), fs.causal_window(7), MASKS["by batch and head"]],
    "rows that keep nothing": [MASKS["late"], fs.everything()],
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("residual", [0.0, 0.5, 0.9])
def test_rollout_is_rows_of_the_product_of_dense_matrices(name, residual):
    layers = [qk(heads=4, kv_heads=2, batch=2, seed=seed) for seed in range(4)]
    found = fs.rollout(SPECS[name], layers, [0, 89, 45, 45], residual=residual, block_size=16)
    one = torch.eye(90, dtype=torch.float64)
    total = one.expand(2, 90, 90)
    for layer in reversed(range(4)):
        mask = SPECS[name][layer % len(SPECS[name])].dense(90, batch=2, heads=4)
        dense = weights(mask, *layers[layer])
        dense = torch.where(dense.sum(-1, keepdim=True) > 0, dense, one)
        total = total @ (residual * one + (1 - residual) * dense.mean(1))
        same(found.flow[layer], total[:, [0, 89, 45, 45]])
    same(found.flow.sum(-1), torch.ones(5, 2, 4))
    assert torch.equal(found.shares, found.flow[0]) and found.tokens == (0, 89, 45, 45)


@pytest.mark.parametrize("name", ["causal", "scattered", "all"])
def test_no_tensor_has_all_pairs(name, monkeypatch):
    """Storages are those of inputs and of batches, at a length whose pairs are 64 times as many."""
    monkeypatch.setattr(row_batches, "PAIRS", 1 << 14)
    q, k = qk(heads=1, q_len=1024, dtype=torch.float32)
    near = fs.mask(lambda q, kv: abs(q - kv) < 5)
    with Largest() as largest:
        fs.measure(MASKS[name], q, k, mass={"near": near}, block_size=64)
        fs.recall(near, q, k, within=MASKS[name], block_size=64)
        fs.rollout(MASKS[name], [(q, k)] * 2, [3, 1000], block_size=64)
    assert 0 < largest.elements <= 1 << 16


def test_reprs():
    q = torch.zeros(1, 2, 8, 4)
    found = fs.measure(fs.causal(), q, q, mass={"sink": fs.sink(1)})
    entropy = sum(math.log(n) for n in range(1, 9)) / 8
    wanted = (
        f"Measures(causal(): 1 x 2 heads, 8 queries, 8 keys; entropy {entropy:.3g}, distance 1.75, mass on sink 0.34)"
    )
    assert repr(found) == wanted
    assert repr(fs.recall(fs.nothing(), q, q)) == "Recall(nothing() within full attention: 0.0%, 0.0% by head)"
    wanted = "Rollout(causal(): 2 layers, batch 1, 1 of 8 tokens; token 7 has most from 7)"
    assert repr(fs.rollout(fs.causal(), [(q, q)] * 2, 7)) == wanted


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_pictures(suffix, tmp_path):
    q, k = qk(q_len=700, heads=3, dtype=torch.float32)
    found = fs.measure(MASKS["late"], q, k, mass={"a $set$": fs.sink(4)}, canvas=fs.Canvas(t=7, n=100))
    kept = fs.recall(fs.nothing(), q, k, within=MASKS["late"])
    for each in (found, kept, fs.rollout(fs.causal(), [(q, k)] * 3, range(9))):
        path = each.show(tmp_path / f"{type(each).__name__}.{suffix}")
        assert path.stat().st_size > 1000
    with pytest.raises(fs.FlexSpecError, match="FS054"):
        found.show(tmp_path / "measures.txt")


def test_cells_of_pictures_have_the_mean_the_largest_or_the_sum_of_what_there_is():
    rows = np.array([[1.0, 3.0, np.nan, 5.0, np.nan, np.nan, 7.0]])
    for how, wanted in (("mean", [2, 5, np.nan, 7]), ("largest", [3, 5, np.nan, 7]), ("sum", [4, 5, np.nan, 7])):
        np.testing.assert_array_equal(binned(rows, 4, how), [wanted])


X = torch.zeros(1, 2, 8, 4)
BAD = {
    "q and k differ": ("FS040", lambda: fs.measure(fs.causal(), X, torch.zeros(1, 3, 8, 4))),
    "no tensor": ("FS023", lambda: fs.measure(fs.causal(), X, None)),
    "a weight": ("FS042", lambda: fs.measure(fs.Attention(weight=fs.sink_logit(0.5)), X, X)),
    "a weight of the wider attention": (
        "FS042",
        lambda: fs.recall(fs.causal(), X, X, within=fs.Attention(weight=fs.sink_logit(0.5))),
    ),
    "a set of numbers": ("FS023", lambda: fs.measure(fs.causal(), X, X, mass={"a": torch.zeros(8)})),
    "a set of too many dims": ("FS022", lambda: fs.measure(fs.causal(), X, X, mass={"a": torch.ones(1, 1, 8, 8) > 0})),
    "a set of other keys": ("FS022", lambda: fs.measure(fs.causal(), X, X, mass={"a": torch.ones(9) > 0})),
    "a set that is a score": ("FS023", lambda: fs.measure(fs.causal(), X, X, mass={"a": fs.softcap(3.0)})),
    "a set without its value": ("FS020", lambda: fs.measure(fs.causal(), X, X, mass={"a": fs.document()})),
    "an unknown value": ("FS021", lambda: fs.measure(fs.causal(), X, X, window=3)),
    "a canvas of another length": ("FS032", lambda: fs.measure(fs.causal(), X, X, canvas=fs.Canvas(h=3, w=3))),
    "an order of another length": (
        "FS033",
        lambda: fs.measure(fs.causal(), X, X, order=fs.tiled(fs.Canvas(h=3, w=3), h=2, w=2)),
    ),
    "an index that leaves its tensor": (
        "FS024",
        lambda: fs.measure(fs.causal(), X, X, mass={"a": fs.mask(lambda kv: torch.ones(3)[kv] > 0)}),
    ),
    "an lse of another shape": ("FS040", lambda: fs.recall(fs.causal(), X, X, lse=torch.zeros(1, 2, 9))),
    "an lse that is none": ("FS040", lambda: fs.recall(fs.causal(), X, X, lse=0.5)),
    "no layers": ("FS030", lambda: fs.rollout(fs.causal(), [], 0)),
    "no tokens": ("FS030", lambda: fs.rollout(fs.causal(), [(X, X)], [])),
    "no specs": ("FS030", lambda: fs.rollout([], [(X, X)], 0)),
    "a token that is not there": ("FS030", lambda: fs.rollout(fs.causal(), [(X, X)], [7, 8])),
    "a residual of more than all": ("FS025", lambda: fs.rollout(fs.causal(), [(X, X)], 0, residual=1.5)),
    "layers of other lengths": ("FS040", lambda: fs.rollout(fs.causal(), [(X, X), (X[:, :, :7],) * 2], 0)),
    "keys of another length": ("FS040", lambda: fs.rollout(fs.causal(), [(X, X[:, :, :7])], 0)),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes(name):
    code, call = BAD[name]
    with pytest.raises(fs.FlexSpecError, match=code) as caught:
        call()
    assert caught.value.where is None or "test_measures.py" in caught.value.where
