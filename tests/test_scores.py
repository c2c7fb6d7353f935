"""Score mods against plain arithmetic on every pair."""

from __future__ import annotations

import math

import oracle
import pytest
import torch

import flexspec as fs
from flexspec import patterns as p
from flexspec.canvas import Canvas
from flexspec.evaluate import evaluate

HEADS, LENGTHS = 3, (9, 11)


def scores_of(mod, heads=HEADS, q_len=LENGTHS[0], kv_len=LENGTHS[1], batch=2, **values):
    """The score mod on random scores [batch, heads, q_len, kv_len]: the scores before and after."""
    shape = (batch, heads, q_len, kv_len)
    before = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    at = {"batch": batch, "heads": heads, "q_len": q_len, "kv_len": kv_len, "score": before}
    for axis, name in enumerate(("b", "h", "q", "kv")):
        at[name] = torch.arange(shape[axis]).view([-1 if axis == i else 1 for i in range(4)])
    after = evaluate(mod.flat, {**mod.defaults, **mod.tensors, **at, **values}, precise=True).expand(shape)
    return before, after


def same(mod, plain, heads=HEADS, q_len=LENGTHS[0], kv_len=LENGTHS[1], **values):
    """`plain(score, b, h, q, kv)` on every pair."""
    before, after = scores_of(mod, heads, q_len, kv_len, **values)
    wanted = torch.empty_like(before)
    for b, h, q, kv in torch.cartesian_prod(*(torch.arange(size) for size in before.shape)).tolist():
        wanted[b, h, q, kv] = plain(before[b, h, q, kv].item(), b, h, q, kv)
    torch.testing.assert_close(after, wanted, rtol=1e-12, atol=1e-12)


def rounded(*shape):
    """Random float32 numbers, as a tensor."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("heads", [1, 2, 3, 8])
def test_alibi(heads):
    same(p.alibi(), lambda s, b, h, q, kv: oracle.alibi(s, q, kv, 2 ** (-8 * (h + 1) / heads)), heads, 5, 6)


def test_alibi_slopes_of_eight_heads_are_those_of_the_paper():
    _, after = scores_of(p.alibi(), 8, 2, 2)
    before, _ = scores_of(p.alibi(), 8, 2, 2)
    slopes = (before - after)[0, :, 1, 0]
    torch.testing.assert_close(slopes, torch.tensor([2.0**-k for k in range(1, 9)], dtype=torch.float64))


def test_alibi_with_slopes():
    slopes = [0.5, 0.1, 3.0]
    held = torch.tensor(slopes)
    for mod in (p.alibi(held), p.alibi(slopes)):
        same(mod, lambda s, b, h, q, kv: oracle.alibi(s, q, kv, held[h].item()))
    assert repr(p.alibi()) == "alibi()"


def test_softcap():
    same(p.softcap(2.5), lambda s, b, h, q, kv: oracle.softcap(s, 2.5))
    same(p.softcap(30), lambda s, b, h, q, kv: oracle.softcap(s, 30))
    same(p.softcap(), lambda s, b, h, q, kv: oracle.softcap(s, 50.0))
    same(p.softcap, lambda s, b, h, q, kv: oracle.softcap(s, 7.0), cap=7.0)
    assert repr(p.softcap(50.0) + p.alibi()) == "softcap(cap=50.0) + alibi()"


@pytest.mark.parametrize("reach", [0, 2, 40])
def test_relative_bias(reach):
    table = rounded(HEADS, 2 * reach + 1)
    same(p.relative_bias(table), lambda s, b, h, q, kv: oracle.relative_bias(s, q, kv, table[h].tolist()))


T5 = [
    (True, 32, 128),
    (False, 32, 128),
    (True, 8, 20),
    (False, 7, 11),
    (True, 4, 2),
    (False, 2, 2),
    (True, 6, 9),
]


@pytest.mark.parametrize("bidirectional, buckets, max_distance", T5)
def test_t5_buckets(bidirectional, buckets, max_distance):
    got = p.t5_buckets(buckets, bidirectional, max_distance).tolist()
    reach = range(-max_distance, max_distance + 1)
    assert got == [oracle.t5_bucket(d, bidirectional, buckets, max_distance) for d in reach]
    beyond = [oracle.t5_bucket(d, bidirectional, buckets, max_distance) for d in (-9999, 9999)]
    assert [got[0], got[-1]] == beyond


def test_t5_buckets_as_hugging_face_computes_them():
    """transformers' T5Attention._relative_position_bucket for the published models, in float32."""
    relative = torch.arange(-128, 129)
    n = relative.abs()
    large = 8 + (torch.log(n.float() / 8) / math.log(128 / 8) * (16 - 8)).to(torch.long)
    encoder = (relative > 0).long() * 16 + torch.where(n < 8, n, large.clamp(max=15))
    assert p.t5_buckets(32, True, 128).equal(encoder)
    n = -torch.min(relative, torch.zeros_like(relative))
    large = 16 + (torch.log(n.float() / 16) / math.log(128 / 16) * (32 - 16)).to(torch.long)
    assert p.t5_buckets(32, False, 128).equal(torch.where(n < 16, n, large.clamp(max=31)))


@pytest.mark.parametrize("bidirectional, buckets, max_distance", [(True, 8, 6), (False, 7, 8), (True, 32, 128)])
def test_t5_bias(bidirectional, buckets, max_distance):
    table = rounded(buckets, HEADS)

    def plain(s, b, h, q, kv):
        return s + table[oracle.t5_bucket(kv - q, bidirectional, buckets, max_distance), h].item()

    same(p.t5_bias(table, bidirectional, max_distance), plain, q_len=13, kv_len=17)


def test_swin_bias():
    sides = {"h": 3, "w": 4}
    at = oracle.points(sides)
    table = rounded(5 * 7, HEADS)

    def plain(s, b, h, q, kv):
        return s + table[oracle.swin_index(at[q], at[kv], sides), h].item()

    same(p.swin_bias(Canvas(**sides), table), plain, q_len=12, kv_len=12)


def test_swin_bias_as_swin_computes_its_index():
    """The index tensor of Swin's WindowAttention, by its own recipe."""
    h, w = 3, 2
    grid = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")).flatten(1)
    relative = (grid[:, :, None] - grid[:, None, :]).permute(1, 2, 0).contiguous()
    relative[:, :, 0] += h - 1
    relative[:, :, 1] += w - 1
    relative[:, :, 0] *= 2 * w - 1
    index = relative.sum(-1)
    table = rounded((2 * h - 1) * (2 * w - 1), 1)
    before, after = scores_of(p.swin_bias(Canvas(h=h, w=w), table), 1, h * w, h * w)
    torch.testing.assert_close(after - before, table[index, 0].double().expand(2, 1, -1, -1))


def test_swin_bias_of_windows_on_a_larger_canvas():
    sides, window = {"t": 2, "h": 4, "w": 3}, {"t": 2, "h": 2, "w": 1}
    at = oracle.points(sides)
    table = rounded(3 * 3 * 1, 2)

    def plain(s, b, h, q, kv):
        return s + table[oracle.swin_index(at[q], at[kv], window), h].item()

    same(p.swin_bias(Canvas(**sides), table, window), plain, heads=2, q_len=24, kv_len=24)


def test_distance_scale():
    same(p.distance_scale(lambda kv_len: torch.log(kv_len)), lambda s, b, h, q, kv: s * math.log(LENGTHS[1]))
    same(
        p.distance_scale(lambda q_idx, kv: 1 / (1.0 + abs(q_idx - kv))),
        lambda s, b, h, q, kv: s / (1 + abs(q - kv)),
    )
    same(p.distance_scale(lambda h, heads: (h + 1) / heads), lambda s, b, h, q, kv: s * (h + 1) / HEADS)
    same(p.distance_scale(lambda: 2.0), lambda s, b, h, q, kv: s * 2)
    assert repr(p.distance_scale(row_length)) == "distance_scale(f=row_length)"


def row_length(q):
    return torch.log(q + 2)


def test_key_gain():
    gain = rounded(2, HEADS, LENGTHS[1]).abs()
    gain[:, :, 3] = 0

    def log(value):
        return math.log(value) if value else -math.inf

    same(p.key_gain(gain), lambda s, b, h, q, kv: s + log(gain[b, h, kv].item()))
    same(p.key_gain(gain[0]), lambda s, b, h, q, kv: s + log(gain[0, h, kv].item()))
    same(p.key_gain(gain[0, 0]), lambda s, b, h, q, kv: s + log(gain[0, 0, kv].item()))


def test_score_mods_chain_in_reading_order_and_keep_their_tables_apart():
    first, second = rounded(HEADS, 5), rounded(HEADS, 3)
    chain = p.relative_bias(first) + p.softcap(3.0) + p.relative_bias(second)

    def plain(s, b, h, q, kv):
        capped = oracle.softcap(oracle.relative_bias(s, q, kv, first[h].tolist()), 3.0)
        return oracle.relative_bias(capped, q, kv, second[h].tolist())

    same(chain, plain)


CANVAS = Canvas(h=3, w=4)
SWIN = 5 * 7
GIVEN = {
    "alibi": (p.alibi, ("heads",), (HEADS,)),
    "relative_bias": (p.relative_bias, ("heads", 5), (HEADS, 5)),
    "t5_bias": (lambda table: p.t5_bias(table, max_distance=9), (8, "heads"), (8, HEADS)),
    "swin_bias": (lambda table: p.swin_bias(CANVAS, table), (SWIN, "heads"), (SWIN, HEADS)),
    "key_gain": (p.key_gain, ("heads", "kv_len"), (HEADS, 12)),
    "key_gain of keys": (p.key_gain, ("kv_len",), (12,)),
    "key_gain of batch entries": (p.key_gain, ("batch", "heads", "kv_len"), (2, HEADS, 12)),
}


def given_and_held(name):
    """A score mod of an input and one of a tensor, and the tensor."""
    make, dims, shape = GIVEN[name]
    table = rounded(*shape).abs()
    return make(fs.Input("table", dims, "float")), make(table), table


@pytest.mark.parametrize("name", GIVEN)
def test_a_table_given_at_run_time_scores_as_a_held_one(name):
    given, held, table = given_and_held(name)
    sizes = {"q_len": 12, "kv_len": 12}
    before, after = scores_of(given, **sizes, table=table)
    assert torch.equal(after, scores_of(held, **sizes)[1]) and not torch.equal(before, after)
    assert repr(given).endswith("=<table>)") or "table=<table>" in repr(given)
    assert not given.tensors.keys() - {"t5_buckets"}


@pytest.mark.parametrize("backend", ["reference", "flex", "triton"])
@pytest.mark.parametrize("name", GIVEN)
def test_a_table_given_at_run_time_in_a_call(name, backend):
    given, held, table = given_and_held(name)
    q, k, v = (torch.randn(2, HEADS, 12, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    biased = scores_of(held, q_len=12, kv_len=12)
    bias = (biased[1] - biased[0]).float()
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    out = fs.compile(fs.Attention(scores=[given]), backend=backend)(q, k, v, table=table)
    torch.testing.assert_close(out, wanted, atol=2e-5, rtol=2e-5)


def test_a_table_given_at_run_time_has_the_size_that_it_says():
    attend = fs.compile(fs.Attention(scores=[p.relative_bias(fs.Input("table", ("heads", 5), float))]))
    q = torch.zeros(1, 2, 12, 16)
    for distances in (3, 7):
        with pytest.raises(fs.FlexSpecError) as caught:
            attend(q, q, q, table=torch.zeros(2, distances))
        assert caught.value.code == "FS022" and f"has size {distances}, the pattern has 5" in str(caught.value)
    with pytest.raises(fs.FlexSpecError, match=r"give table=<float tensor \[heads, 5\]>"):
        attend(q, q, q)


def test_the_size_of_a_dim_is_text_that_is_read_back():
    expr = p.relative_bias(fs.Input("table", ("heads", 5), float)).expr
    assert str(expr).startswith("table: float[heads, _5]; ") and fs.parse(str(expr)) is expr


def test_one_slope_for_all_heads():
    half = fs.Param("slope", float)
    same(p.alibi(0.5), lambda s, b, h, q, kv: oracle.alibi(s, q, kv, 0.5))
    same(p.alibi(half), lambda s, b, h, q, kv: oracle.alibi(s, q, kv, 0.5), slope=0.5)
    assert repr(p.alibi(0.5)) == "alibi(slopes=0.5)" and repr(p.alibi(half)) == "alibi(slopes=<slope>)"


def test_tables_are_held_as_they_are():
    table = torch.nn.Parameter(torch.zeros(HEADS, 5))
    assert any(held is table for held in p.relative_bias(table).tensors.values())
    table = torch.nn.Parameter(torch.zeros(8, HEADS))
    assert any(held is table for held in p.t5_bias(table).tensors.values())


WRONG = [
    (lambda: p.alibi([[0.5]]), "FS022"),
    (lambda: p.alibi(torch.tensor([1, 2])), "FS023"),
    (lambda: p.alibi(True), "FS023"),
    (lambda: p.alibi(math.nan), "FS023"),
    (lambda: p.alibi(fs.Input("slopes", ("batch",), float)), "FS022"),
    (lambda: p.alibi(fs.Input("slopes", ("heads",))), "FS023"),
    (lambda: p.relative_bias(fs.Input("table", ("heads", "_"), float)), "FS022"),
    (lambda: p.relative_bias(fs.Input("table", ("heads", 4), float)), "FS022"),
    (lambda: p.relative_bias(fs.Input("table", ("heads", "kv_len"), float)), "FS022"),
    (lambda: p.t5_bias(fs.Input("table", (7, "heads"), float)), "FS022"),
    (lambda: p.t5_bias(fs.Input("table", ("heads", 32), float)), "FS022"),
    (lambda: p.swin_bias(Canvas(h=2, w=2), fs.Input("table", (8, "heads"), float)), "FS022"),
    (lambda: p.key_gain(fs.Input("gain", ("sequence",), float)), "FS022"),
    (lambda: p.softcap(0.0), "FS025"),
    (lambda: p.softcap(-3), "FS025"),
    (lambda: p.softcap("50"), "FS025"),
    (lambda: p.relative_bias(torch.zeros(2, 4)), "FS022"),
    (lambda: p.relative_bias(torch.zeros(5)), "FS022"),
    (lambda: p.relative_bias(torch.zeros(2, 5).long()), "FS023"),
    (lambda: p.t5_bias(torch.zeros(7, 2)), "FS022"),
    (lambda: p.t5_bias(torch.zeros(2, 2)), "FS022"),
    (lambda: p.t5_bias(torch.zeros(1, 2), bidirectional=False), "FS022"),
    (lambda: p.t5_bias(torch.zeros(32, 2), max_distance=8), "FS025"),
    (lambda: p.t5_bias(torch.zeros(32, 2), max_distance=64.0), "FS025"),
    (lambda: p.swin_bias(Canvas(h=2, w=2), torch.zeros(8, 2)), "FS022"),
    (lambda: p.swin_bias(Canvas(h=2, w=2), torch.zeros(9, 2), window=0), "FS025"),
    (lambda: p.swin_bias(Canvas(h=2, w=2), torch.zeros(9, 2), window={"h": 2}), "FS011"),
    (lambda: p.swin_bias(4, torch.zeros(9, 2)), "FS032"),
    (lambda: p.distance_scale(2.0), "FS001"),
    (lambda: p.distance_scale(lambda x: x), "FS001"),
    (lambda: p.distance_scale(lambda q, kv: q >= kv and 1.0), "FS002"),
    (lambda: p.key_gain([-1.0]), "FS025"),
    (lambda: p.key_gain("loud"), "FS023"),
]


@pytest.mark.parametrize("call, code", WRONG)
def test_wrong_values(call, code):
    with pytest.raises(fs.FlexSpecError) as caught:
        call()
    assert caught.value.code == code
    assert caught.value.where is None or "test_scores.py" in caught.value.where
