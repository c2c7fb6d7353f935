"""Weights other than softmax, against plain torch: on the reference, by the identities, and in our own kernels."""

import math

import pytest
import torch
from flexspec.compiler.backends import flex
from flexspec.compiler.backends.base import Backend, Call
from flexspec.compiler.backends.reference import by_rows
from flexspec.compiler.backends.weights import by_softmax

import flexspec as fs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LOGIT = torch.tensor([0.5, -2.0, 3.0, -math.inf])
SHARE = torch.tensor([0.0, 0.3, 1.0, -0.5])
SOFT = fs.Input("soft", dims=("heads",), dtype="float")


def qkv(q_len, kv_len=None, heads=4, kv_heads=2, dim=24, v_dim=8, batch=2, dtype=torch.float64, seed=0):
    made = torch.Generator().manual_seed(seed)
    shapes = ((heads, q_len, dim), (kv_heads, kv_len or q_len, dim), (kv_heads, kv_len or q_len, v_dim))
    return [torch.randn(batch, *shape, generator=made).to(DEVICE, dtype) for shape in shapes]


def scores_of(q, k, change=lambda s: s):
    return change(q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2) / math.sqrt(q.shape[-1]))


def softmax(s, keep, v):
    e = torch.where(keep, s, -math.inf).exp()
    total = e.sum(-1, keepdim=True)
    return torch.where(total > 0, e @ v / total, 0.0), total[..., 0].log()


def divided(weights, sizes, keep, v):
    weights, sizes = torch.where(keep, weights, 0.0), torch.where(keep, sizes, 0.0)
    total = sizes.sum(-1, keepdim=True)
    return torch.where(total > 0, weights @ v / total, 0.0), total[..., 0].log()


def summed(weights, keep, v):
    return torch.where(keep, weights, 0.0) @ v, None


def sunk(s, keep, v, logit):
    e, extra = torch.where(keep, s, -math.inf).exp(), logit.double().exp().view(1, -1, 1, 1).to(s.device)
    total = e.sum(-1, keepdim=True) + extra
    return torch.where(total > 0, e @ v / total, 0.0), total[..., 0].log()


def mixed(s, keep, v, share):
    out, lse = softmax(s, keep, v)
    share = share.double().view(1, -1, 1, 1).to(s.device)
    return torch.where((lse > -math.inf)[..., None], (1 - share) * out + share * v, 0.0), lse


CASES = {
    "sigmoid": (fs.sigmoid_weight(), lambda s, m, v: summed(1 / (1 + (math.log(s.shape[-1]) - s).exp()), m, v)),
    "sigmoid, bias": (fs.sigmoid_weight(-1.5), lambda s, m, v: summed(1 / (1 + (1.5 - s).exp()), m, v)),
    "sigmoid, by head": (
        fs.sigmoid_weight(SHARE),
        lambda s, m, v: summed(1 / (1 + (-s - SHARE.view(1, -1, 1, 1).to(s)).exp()), m, v),
    ),
    "relu": (fs.relu_weight(), lambda s, m, v: summed(s * (s > 0), m, v)),
    "squared relu": (fs.squared_relu_weight(), lambda s, m, v: summed(s * s * (s > 0), m, v)),
    "taylor": (fs.taylor_weight(), lambda s, m, v: divided(1 + s + s**2 / 2, 1 + s + s**2 / 2, m, v)),
    "signed": (fs.signed_weight(), lambda s, m, v: divided(s.sign() * s.abs().exp(), s.abs().exp(), m, v)),
    "off by one": (fs.sink_logit(), lambda s, m, v: sunk(s, m, v, torch.zeros(1))),
    "sink": (fs.sink_logit(LOGIT), lambda s, m, v: sunk(s, m, v, LOGIT)),
    "mix": (fs.identity_mix(SHARE), lambda s, m, v: mixed(s, m, v, SHARE)),
}
MASKS = {
    "everything": fs.everything(),
    "causal": fs.causal(),
    "late": fs.mask(lambda q, kv: (q >= kv + 5) & (kv % 3 != 1)),
    "by batch and head": fs.mask(lambda b, h, q, kv: (q - kv).abs() <= 3 * h + 11 * b),
    "nothing": fs.nothing(),
}


def by_identity(spec, q, k, v, return_lse):
    """The identities over a softmax in float64: what flex does on a GPU, without its rounding."""

    def softmax(call: Call):
        lowered = call.lowered
        return by_rows(lowered.mask, call.score, lowered.attention.scale, call.bound, call.q, call.k, call.v)

    identity = Backend("identity", lambda call: [], lambda call: by_softmax(call, softmax))
    return fs.compile(spec, backend=identity)(q, k, v, return_lse=return_lse)


def run(way, spec, q, k, v, return_lse=False):
    if way == "reference":
        return fs.reference_attention(spec, q, k, v, return_lse=return_lse)
    if way == "identity":
        return by_identity(spec, q, k, v, return_lse)
    return fs.compile(spec, backend="triton", block_size=32)(*(x.float() for x in (q, k, v)), return_lse=return_lse)


def agrees(way, name, mask, q, k, v, scores=(), change=lambda s: s):
    weight, direct = CASES[name]
    keep = mask.dense(q.shape[2], k.shape[2], batch=q.shape[0], heads=q.shape[1]).to(q.device)
    wanted, wanted_lse = direct(scores_of(q, k, change), keep, v.repeat_interleave(q.shape[1] // v.shape[1], 1))
    spec = fs.Attention(mask=mask, scores=scores, weight=weight)
    near = {"reference": 1e-12, "identity": 1e-5, "triton": 3e-5}[way]
    found = run(way, spec, q, k, v, return_lse=wanted_lse is not None)
    out, lse = found if wanted_lse is not None else (found, None)
    torch.testing.assert_close(out.double(), wanted, atol=near, rtol=near)
    if lse is not None:
        torch.testing.assert_close(lse.double(), wanted_lse, atol=near, rtol=near)


@pytest.mark.parametrize("way", ["reference", "identity"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", CASES)
def test_definitions(way, mask, name):
    agrees(way, name, MASKS[mask], *qkv(37))


KERNELS = [name for name in CASES if name not in ("sigmoid, bias", "squared relu", "off by one")]


@pytest.mark.parametrize("mask", ["late", "by batch and head"])
@pytest.mark.parametrize("name", KERNELS)
def test_in_our_kernels(mask, name):
    agrees("triton", name, MASKS[mask], *qkv(37))


@pytest.mark.parametrize("name", ["relu", "signed", "sink", "mix"])
def test_nothing_in_our_kernels(name):
    agrees("triton", name, MASKS["nothing"], *qkv(20))


@pytest.mark.parametrize("name", ["sigmoid", "relu", "signed", "sink"])
def test_bfloat16_in_our_kernels(name):
    q, k, v = qkv(50, dtype=torch.bfloat16)
    spec = fs.Attention(mask=MASKS["late"], weight=CASES[name][0])
    out = fs.compile(spec, backend="triton", block_size=32)(q, k, v)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), fs.reference_attention(spec, q, k, v), atol=2e-2, rtol=2e-2)


LENGTHS = [("reference", 1, 70), ("reference", 33, 7), ("identity", 33, 7), ("triton", 1, 70), ("triton", 33, 7)]


@pytest.mark.parametrize("way, q_len, kv_len", LENGTHS)
@pytest.mark.parametrize("name", ["sigmoid", "relu", "signed", "sink"])
def test_other_lengths(way, q_len, kv_len, name):
    agrees(way, name, MASKS["late"], *qkv(q_len, kv_len))


@pytest.mark.parametrize("way", ["reference", "identity", "triton"])
@pytest.mark.parametrize("name", KERNELS)
def test_after_scores(way, name):
    q, k, v = qkv(30)
    capped = [
        fs.distance_scale(lambda h: 1.0 + h / 8),
        fs.softcap(0.8),
        fs.score(lambda score, q, kv: score - abs(q - kv) / 23),
    ]
    far = (torch.arange(30)[:, None] - torch.arange(30)).abs().to(q) / 23
    growth = (1 + torch.arange(4) / 8).view(1, -1, 1, 1).to(q)
    agrees(way, name, MASKS["causal"], 3 * q, k, v, capped, lambda s: 0.8 * torch.tanh(growth * s / 0.8) - far)


@pytest.mark.parametrize("way", ["reference", "identity", "triton"])
@pytest.mark.parametrize("name", ["sigmoid", "relu", "taylor", "signed", "sink", "mix"])
def test_a_score_of_minus_infinity_is_a_dropped_pair(way, name):
    q, k, v = qkv(30)
    weight = CASES[name][0]
    dropped = fs.score(lambda score, q, kv: torch.where(q >= kv + 9, score, -math.inf))
    a = run(way, fs.Attention(scores=dropped, weight=weight), q, k, v)
    b = run(way, fs.Attention(mask=fs.mask(lambda q, kv: q >= kv + 9), weight=weight), q, k, v)
    torch.testing.assert_close(a, b)
    assert not a[:, :, :9].any()


@pytest.mark.parametrize("way", ["reference", "identity", "triton"])
def test_zero_scores_of_the_signed_weight_count_in_its_sum(way):
    q, k, v = qkv(20)
    k[:, :, 1::2] = 0
    agrees(way, "signed", MASKS["causal"], q, k, v)


@pytest.mark.parametrize("way", ["reference", "identity", "triton"])
@pytest.mark.parametrize("name", ["signed", "sink", "off by one", "taylor"])
def test_large_scores_do_not_overflow(way, name):
    q, k, v = qkv(30)
    out, lse = run(way, fs.Attention(mask=fs.causal(), weight=CASES[name][0], scale=60.0), q, k, v, return_lse=True)
    assert out.isfinite().all() and lse.isfinite().all() and lse.max() > 10


WITH_GRADIENTS = [("identity", name) for name in CASES]
WITH_GRADIENTS += [("triton", name) for name in ("sigmoid, by head", "signed", "sink", "mix")]


@pytest.mark.parametrize("way, name", WITH_GRADIENTS)
def test_gradients_through_the_identities(way, name):
    tensors = [x.requires_grad_() for x in qkv(15)]
    found = {}
    for each in ("reference", way):
        number = torch.tensor([0.3, -0.4, 0.2, 0.0], dtype=torch.float64, requires_grad=True)
        makes = {"sigmoid, by head": fs.sigmoid_weight, "sink": fs.sink_logit, "mix": fs.identity_mix}
        weight = makes[name](number) if name in makes else CASES[name][0]
        spec = fs.Attention(mask=MASKS["late"], weight=weight)
        result = run(each, spec, *tensors, return_lse=weight.normalised)
        loss = result[0].square().sum() + result[1][:, :, 5:].sum() if weight.normalised else result.square().sum()
        found[each] = torch.autograd.grad(loss, [*tensors, number] if name in makes else tensors)
    for wanted, got in zip(found["reference"], found[way], strict=True):
        torch.testing.assert_close(got, wanted, atol=3e-5, rtol=3e-5)


def test_gradients_of_the_reference():
    tensors = [x.requires_grad_() for x in qkv(7, heads=2, kv_heads=1, dim=4, v_dim=3, batch=1)]
    for weight in (w for w, _ in CASES.values() if not w.tensors):
        spec = fs.Attention(mask=MASKS["late"], weight=weight)
        assert torch.autograd.gradcheck(lambda *x, spec=spec: fs.reference_attention(spec, *x), tensors), weight


@pytest.mark.parametrize("make", [fs.sigmoid_weight, fs.sink_logit, fs.identity_mix])
def test_gradients_of_a_weights_own_number(make):
    q, k, v = qkv(9, heads=2)

    def attention(number):
        return fs.reference_attention(fs.Attention(mask=fs.causal(), weight=make(SOFT)), q, k, v, soft=number)

    assert torch.autograd.gradcheck(attention, (torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True),))
    held = torch.nn.Parameter(torch.zeros(2))
    assert held in {*make(held).tensors.values()}


@pytest.mark.parametrize("way", ["reference", "triton"])
def test_numbers_given_at_the_call(way):
    q, k, v = (x.float() for x in qkv(33))
    spec = fs.Attention(weight=fs.sigmoid_weight(fs.Param("shift", float)))
    attend = fs.compile(spec, backend=way, block_size=32)
    for shift in (-3.0, 0.5):
        wanted = fs.reference_attention(fs.Attention(weight=fs.sigmoid_weight(shift)), q, k, v)
        torch.testing.assert_close(attend(q, k, v, shift=shift).double(), wanted, atol=3e-5, rtol=3e-5)
    attend = fs.compile(fs.Attention(weight=fs.sink_logit(SOFT)), backend=way, block_size=32)
    wanted = fs.reference_attention(fs.Attention(weight=fs.sink_logit(LOGIT)), q, k, v)
    torch.testing.assert_close(attend(q, k, v, soft=LOGIT).double(), wanted, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("way", ["reference", "triton"])
def test_orders(way):
    canvas = fs.Canvas(h=5, w=7)
    q, k, v = (x.float() for x in qkv(35))
    for name in ("sink", "mix"):
        spec = fs.Attention(mask=fs.neighborhood(canvas, window=3), weight=CASES[name][0])
        attend = fs.compile(spec, order=fs.tiled(canvas, h=2, w=4), backend=way, block_size=16)
        wanted = fs.reference_attention(spec, q, k, v)
        torch.testing.assert_close(attend(q, k, v).double(), wanted, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_flexs_own_identities(name, monkeypatch):
    """What flex does on a GPU, with torch's eager flex_attention, which gives an lse everywhere."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    flex._functions.cache_clear()
    eager = Backend("eager", lambda call: [], lambda call: by_softmax(call, lambda part: flex.compiled(part, part.q)))
    q, k, v = (x.float() for x in qkv(40, dim=16, v_dim=16))
    spec = fs.Attention(mask=MASKS["late"], scores=[fs.softcap(2.0)], weight=CASES[name][0])
    out, wanted = fs.compile(spec, backend=eager)(q, k, v), fs.reference_attention(spec, q, k, v)
    flex._functions.cache_clear()
    torch.testing.assert_close(out.double(), wanted, atol=3e-5, rtol=3e-5)


@pytest.mark.skipif(DEVICE == "cuda", reason="the way around on a CPU")
def test_flex_on_a_cpu():
    tensors = [x.float() for x in qkv(130, heads=2)]
    for name in ("taylor", "sigmoid"):
        spec = fs.Attention(mask=fs.causal(), weight=CASES[name][0])
        attend = fs.compile(spec, backend="flex")
        if name == "taylor":
            out = attend(*tensors)
        else:
            with pytest.warns(
                fs.FlexSpecWarning, match="reference runs this, because FlexAttention gives no lse"
            ) as seen:
                out = attend(*tensors)
            assert seen[0].filename == __file__
        torch.testing.assert_close(out.double(), fs.reference_attention(spec, *tensors), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("suffix", ["yaml", "json"])
@pytest.mark.parametrize("name", CASES)
def test_files(name, suffix, tmp_path):
    spec = fs.Attention(mask=fs.causal(), scores=[fs.softcap(3.0)], weight=CASES[name][0])
    spec.save(tmp_path / f"spec.{suffix}")
    loaded = fs.load(tmp_path / f"spec.{suffix}")
    assert loaded.weight.kind == spec.weight.kind and loaded.label == spec.label
    q, k, v = qkv(12)
    wanted = fs.reference_attention(spec, q, k, v)
    torch.testing.assert_close(fs.reference_attention(loaded, q, k, v), wanted)
    if not spec.weight.tensors:
        assert loaded == spec


def test_what_people_read():
    spec = fs.Attention(mask=fs.causal(), scores=[fs.softcap(3.0)], weight=fs.sink_logit(LOGIT))
    assert spec.label == "causal() + softcap(cap=3.0) with sink_logit(logit=<float32[4]>)"
    text = fs.compile(fs.Attention(mask=fs.causal(), weight=fs.sigmoid_weight())).explain(256, heads=2)
    assert "weight sigmoid(score + -log(kv_len)), not normalised" in text
    assert "def score_mod" in text
    assert fs.compile(spec).facts(256)["weight"] == "sink_logit(logit=<float32[4]>)"
    assert str(fs.sink_logit(SOFT)) == "sink_logit(logit=<soft>)"


def test_a_held_number_keeps_its_name_apart():
    bias = torch.randn(4)
    by_head = fs.mask(lambda h, q, kv: bias[h] > 0) | fs.causal()
    weight_bias = torch.randn(4)
    shifted = fs.from_score_mod(lambda score, b, h, q_idx, kv_idx: score + weight_bias[h])
    spec = fs.Attention(mask=by_head, scores=[shifted], weight=fs.sigmoid_weight(SHARE))
    q, k, v = qkv(20)
    s = scores_of(q, k) + (weight_bias + SHARE).view(1, -1, 1, 1)
    keep = by_head.dense(20, heads=4)
    wanted = torch.where(keep, torch.sigmoid(s), 0.0) @ v.repeat_interleave(2, 1)
    torch.testing.assert_close(fs.reference_attention(spec, q, k, v), wanted, atol=1e-6, rtol=1e-6)


WRONG = [
    (lambda: fs.Attention(weight="sigmoid"), "FS023"),
    (lambda: fs.Attention(weight=fs.softcap(3.0)), "FS023"),
    (lambda: fs.Attention(weight=fs.sigmoid_weight), "FS023"),
    (lambda: fs.sigmoid_weight("low"), "FS023"),
    (lambda: fs.sink_logit(fs.Input("logit", ("batch",), float)), "FS022"),
    (lambda: fs.sink_logit(fs.Input("logit", ("heads",))), "FS023"),
    (lambda: fs.sink_logit(True), "FS023"),
    (lambda: fs.sink_logit(math.nan), "FS023"),
    (lambda: fs.sink_logit(torch.zeros(2, 2)), "FS022"),
    (lambda: fs.sink_logit(torch.zeros(2).long()), "FS023"),
    (lambda: fs.reference_attention(fs.Attention(weight=fs.sink_logit(torch.zeros(3))), *qkv(5)), "FS022"),
    (lambda: fs.reference_attention(fs.Attention(weight=fs.identity_mix(0.5)), *qkv(5, 6)), "FS040"),
    (lambda: fs.compile(fs.Attention(weight=fs.identity_mix(0.5)))(*qkv(5, 6)), "FS040"),
    (lambda: fs.reference_attention(fs.Attention(weight=fs.relu_weight()), *qkv(5), return_lse=True), "FS042"),
    (lambda: fs.compile(fs.Attention(weight=fs.sigmoid_weight()))(*qkv(5), return_lse=True), "FS042"),
]


@pytest.mark.parametrize("call, code", WRONG)
def test_wrong_values(call, code):
    with pytest.raises(fs.FlexSpecError) as caught:
        call()
    assert caught.value.code == code
    assert caught.value.where is None or "test_weights.py" in caught.value.where


@pytest.mark.parametrize("broken", ["kind: softer", "expr: score", "expr: q * 1.0", "expr: q > 3"])
def test_broken_files(broken, tmp_path):
    path = tmp_path / "spec.yaml"
    fs.Attention(weight=fs.sink_logit(0.5)).save(path)
    key = broken.partition(":")[0]
    old = "kind: sink_logit" if key == "kind" else "expr: '0.5'"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, broken))
    with pytest.raises(fs.FlexSpecError, match="weight") as caught:
        fs.load(path)
    assert caught.value.code == "FS052"
