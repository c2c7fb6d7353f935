"""Keys and values kept in 8 bits: what is stored, the decode kernels that read it, and calls that restore it."""

import math

import pytest
import torch
from flexspec.compiler.backends.triton import decoding
from hypothesis import given, settings
from hypothesis import strategies as st
from random_masks import make_mask, masks, tables, truth
from test_low_precision import PRECISIONS, nearest
from test_triton import DEVICE, TOLERANCE, qkv
from test_triton_decode import KEYS, LOGIT, MASKS, last, paged, window

import flexspec as fs


@pytest.fixture
def read(monkeypatch):
    """Some call must read 8 bits in the decode kernels."""
    ran = []
    real = decoding.run_decode
    monkeypatch.setattr(decoding, "run_decode", lambda *args: (ran.append(args[1].stored), real(*args))[1])
    yield
    assert any(each is not None for each in ran)


def as_stored(x, precision, mean):
    """By definition, in float64: each token to nearest, its largest number the largest that there is."""
    x = x.float() - mean
    scale = x.abs().amax(-1, keepdim=True) / (127.0 if precision == "int8" else 448.0)
    scale = torch.where(scale > 0, scale, 1.0)
    return nearest(x / scale, precision) * scale.double() + mean.double()


def stored_and_exact(k, v, precision):
    """Both in 8 bits, and by definition."""
    mean = k.float().mean(2, keepdim=True)
    return fs.quantise(k, v, precision), (as_stored(k, precision, mean), as_stored(v, precision, torch.zeros(())))


def dense(keep, q, k, v, score=None, sink=None):
    """Output and lse of dense attention in float64; keep: [batch, heads, q, kv]."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    s = q.double() @ k.transpose(2, 3) * q.shape[3] ** -0.5
    s = torch.where(keep, s if score is None else score(s), -math.inf)
    if sink is not None:
        s = torch.cat([s, sink.double().view(1, -1, 1, 1).expand(*s.shape[:3], 1)], -1)
        v = torch.cat([v, torch.zeros_like(v[:, :, :1])], 2)
    return s.softmax(-1).nan_to_num() @ v, s.logsumexp(-1)


def same(found, wanted, near=2e-5):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, atol=near, rtol=near)


def keeps(mask, q, kv_len=KEYS):
    made = fs.block_map(mask, q.shape[2], kv_len, batch=q.shape[0], heads=q.shape[1])
    each = [[made.tokens(0, q.shape[2], 0, kv_len, b=b, h=h) for h in range(made.heads)] for b in range(made.batch)]
    return torch.stack([torch.stack(heads) for heads in each]).expand(*q.shape[:3], kv_len).to(DEVICE)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_stored(precision):
    """Appended and written in place, tokens are as if they had been there from the start, but for the mean."""
    k, v = qkv(1, 70, kv_heads=2, head_dim=24, v_dim=9)[1:]
    k[..., 3] += 20.0
    v[:, :, 5], v[:, :, 60] = 0.0, 1e30
    stored, wanted = stored_and_exact(k, v, precision)
    for x, exact in zip(stored, wanted, strict=True):
        assert x.numbers.element_size() == 1 and x.restored(torch.bfloat16).dtype == torch.bfloat16
        torch.testing.assert_close(x.restored(torch.float64), exact, atol=0, rtol=0)
    early = fs.quantise(k[:, :, :50], v[:, :, :50], precision, mean=stored[0].mean)
    for x, tokens, whole in zip(early, (k, v), stored, strict=True):
        longer = x.append(tokens[:, :, 50:51]).append(tokens[:, :, 51:])
        assert longer.restored(torch.float64).equal(whole.restored(torch.float64)) and x.numbers.shape[2] == 50
        longer.write(tokens[:, :, :3] * 2, torch.tensor([60, 4, 69], device=DEVICE))
        at = [60, 4, 69]
        assert longer.restored(torch.float64)[:, :, at].equal(x.rounded(tokens[:, :, :3] * 2).restored(torch.float64))


@pytest.mark.usefixtures("read")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MASKS)
def test_masks(name, precision):
    """Odd channels, grouped heads, two batches, three queries, rows and maps without a key, an offset in keys."""
    q, k, v = qkv(3, KEYS, heads=4, kv_heads=1 if name == "by query" else 2, head_dim=20, v_dim=41)
    k[..., ::7] += 9.0
    stored, exact = stored_and_exact(k, v, precision)
    wanted = dense(keeps(MASKS[name], q), q, *exact)
    for backend in ("triton", "reference"):
        attend = fs.compile(MASKS[name], backend=backend, block_size=(16, 32))
        same(attend(q, *stored, return_lse=True), wanted)


@settings(max_examples=15, deadline=None)
@given(
    masks,
    st.integers(1, 4),
    st.integers(65, 140),
    st.integers(0, 99),
    st.sampled_from([16, 32]),
    st.sampled_from(PRECISIONS),
)
def test_random_masks(written, q_len, kv_len, seed, block_kv, precision):
    held = tables(kv_len, 2, 2, seed)
    q, k, v = qkv(q_len, kv_len, heads=2, kv_heads=1, head_dim=9, v_dim=33, seed=seed)
    stored, exact = stored_and_exact(k, v, precision)
    wanted = dense(truth(written, held, (2, 2, q_len, kv_len)).to(DEVICE), q, *exact)
    attend = fs.compile(make_mask(written, held), backend="triton", block_size=(16, block_kv))
    same(attend(q, *stored, return_lse=True), wanted)


@pytest.mark.usefixtures("read")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_scores_and_a_sink(precision):
    """They need the product of a query and the mean."""
    q, k, v = qkv(3, KEYS, heads=4, kv_heads=2)
    k[..., 5] += 6.0
    stored, exact = stored_and_exact(k, v, precision)
    sink = LOGIT.to(DEVICE)
    wanted = dense(keeps(last(3), q), q, *exact, score=lambda s: 5 * torch.tanh(s / 5), sink=sink)
    spec = fs.Attention(mask=last(3), scores=[fs.softcap(5.0)], weight=fs.sink_logit(sink))
    same(fs.compile(spec, backend="triton", block_size=32)(q, *stored, return_lse=True), wanted)


@pytest.mark.usefixtures("read")
@pytest.mark.parametrize("weight", [fs.sigmoid_weight(), fs.signed_weight()])
def test_other_weights(weight):
    q, k, v = qkv(2, KEYS, heads=4, kv_heads=2)
    stored, exact = stored_and_exact(k, v, "int8")
    spec = fs.Attention(mask=last(2), weight=weight)
    found = fs.compile(spec, backend="triton", block_size=32)(q, *stored)
    torch.testing.assert_close(found.double(), fs.reference_attention(spec, q.double(), *exact), atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("read")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_16_bits_and_small_values(dtype, precision):
    """Weights times the scales of values are numbers of bfloat16, whose range is that of float32."""
    q, k, v = qkv(1, KEYS, heads=8, kv_heads=2, head_dim=80, v_dim=72, dtype=dtype)
    stored, exact = stored_and_exact(k, v, precision)
    attend = fs.compile(last(1), backend="triton", block_size=32)
    wanted = dense(keeps(last(1), q), q, *exact)
    out, lse = attend(q, *stored, return_lse=True)
    assert out.dtype == dtype and lse.dtype == torch.float32
    same((out, lse), wanted, TOLERANCE[torch.bfloat16])
    small = attend(q.bfloat16(), stored[0], stored[1]._replace(scale=stored[1].scale * 2.0**-30))
    same([small * 2.0**30], wanted[:1], TOLERANCE[torch.bfloat16])


@pytest.mark.usefixtures("read")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("page_size", [16, 24])
def test_pages(precision, page_size):
    """A mean for all sequences, or for each, or none; rubbish in the pages where no token is."""
    q, k, v = qkv(3, KEYS, heads=4, kv_heads=2, head_dim=24)
    mask = window(70, 3) & fs.mask(lambda b, kv: kv < 190 - b * 60)
    for mean in (k[:1, :, :9].mean(2, keepdim=True), None):
        stored = fs.quantise(k, v, precision, mean=mean)
        table, in_pages = None, []
        for x in stored:
            scale, table = paged(x.scale, page_size)
            numbers = paged(x.numbers.float(), page_size)[0].nan_to_num(7.0).to(x.numbers.dtype)
            in_pages.append(x._replace(numbers=numbers, scale=scale))
        for backend in ("triton", "reference", "blocks"):
            attend = fs.compile(mask, backend=backend, block_size=32)
            wanted = attend(q, *stored, return_lse=True)
            found = attend(q, *in_pages, page_table=table, kv_len=KEYS, return_lse=True)
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_calls_that_restore_it(precision):
    """Many queries, few keys, another backend, an order, and a call for gradients of q."""
    q, k, v = qkv(60, 90, heads=4, kv_heads=2)
    stored, exact = stored_and_exact(k, v, precision)
    restored = [x.restored(torch.float32) for x in stored]
    mask = fs.causal(30)
    attend = fs.compile(mask, backend="triton", block_size=32)
    same(attend(q, *stored, return_lse=True), dense(keeps(mask, q, 90), q, *exact))
    for options in ({"backend": "blocks"}, {"backend": "triton", "order": (None, fs.striped(4))}, {}):
        attend = fs.compile(mask, block_size=32, **options)
        torch.testing.assert_close(attend(q, *stored), attend(q, *restored))
    found = []
    for keys in (stored, restored):
        token = q[:, :, :1].clone().requires_grad_()
        fs.compile(fs.everything(), backend="triton", block_size=16)(token, *keys).square().sum().backward()
        found.append(token.grad)
    torch.testing.assert_close(*found)


@pytest.mark.usefixtures("read")
def test_a_precision_rounds_nothing_again():
    """So that one attention may serve a prompt and the steps after it."""
    q, k, v = qkv(1, KEYS, heads=4, kv_heads=2)
    stored = fs.quantise(k, v)
    wanted = fs.compile(last(1), backend="triton", block_size=32)(q, *stored)
    for backend in ("triton", "reference"):
        found = fs.compile(last(1), backend=backend, precision="int8", block_size=32)(q, *stored)
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=2e-5)


@pytest.mark.usefixtures("read")
@pytest.mark.parametrize("precision", [None, "fp8"])
def test_inside_torch_compile_there_is_no_graph_break(precision):
    """The cache grows in the model; other values of a captured table are seen."""
    slopes = torch.rand(2, device=DEVICE)
    mask = fs.mask(lambda q, kv, *, length=0: kv < length)
    options = {"backend": "triton", "precision": precision, "block_size": 16}
    attend = fs.compile(fs.Attention(mask, [fs.alibi(slopes)]), **options)

    def step(q, k, v, new_k, new_v, at):
        k.write(new_k, at), v.write(new_v, at)
        more = k.append(new_k), v.append(new_v)
        return attend(q, k, v, length=70), attend(q, *more, length=91, return_lse=True)

    model = torch.compile(step, backend="aot_eager", fullgraph=True)
    for seed in range(2):
        q, k, v = qkv(1, 90, batch=1, seed=seed)
        new = qkv(1, 1, batch=1, seed=9)[1:]
        at = torch.tensor([66 + seed], device=DEVICE)
        given = [fs.quantise(k, v, "fp8") for _ in range(2)]
        found, wanted = model(q, *given[0], *new, at), step(q, *given[1], *new, at)
        torch.testing.assert_close(found, wanted, atol=0, rtol=0)
        exact = [x.restored(torch.float64) for x in given[0]]
        near = fs.reference_attention(fs.Attention(mask, [fs.alibi(slopes.clone())]), q.double(), *exact, length=70)
        torch.testing.assert_close(found[0].double(), near, atol=2e-5, rtol=2e-5)
        slopes *= 3.0


def test_a_gpu_without_e4m3_restores_it():
    q, k, v = qkv(1, 90)
    call = fs.compile(fs.everything()).call_of(q, *fs.quantise(k, v, "fp8"), False, "logical", {})
    assert [decoding.reads(arch, call) for arch in ("sm_80", "sm_86", "sm_90", "")] == [False, False, True, True]


def test_mistakes():
    q, k, v = qkv(1, 90)
    stored = fs.quantise(k, v)

    def refused(match, *keys, make=None):
        with pytest.raises(fs.FlexSpecError, match=match):
            make() if make else fs.compile(fs.everything())(q, *keys)

    refused("FS023.*v is a tensor beside one in 8 bits", stored[0], v)
    refused("FS023.*k is of torch.float32", stored[0]._replace(numbers=k), stored[1])
    refused(r"FS040.*scale of k is \[2, 2, 90\]", stored[0]._replace(scale=stored[0].scale[..., 0]), stored[1])
    refused("FS040.*v has a mean", stored[0], stored[1]._replace(mean=stored[0].mean))
    refused(r"FS040.*the mean of k is \[2, 2, 1, 8\]", stored[0]._replace(mean=stored[0].mean[..., :8]), stored[1])
    refused("FS040.*q and k differ in head_dim", *fs.quantise(k[..., :8], v))
    refused("FS041.*no precision 'int4'", make=lambda: fs.quantise(k, v, "int4"))
    refused("FS040.*they are .batch, kv_heads", make=lambda: fs.quantise(k, v[:, :, 1:]))
    for change in (lambda x: stored[0].append(x), lambda x: stored[0].write(x, torch.tensor([0], device=DEVICE))):
        refused("FS040.*tokens are .* beside .2, 2, 90, 16. in 8 bits", make=lambda change=change: change(k[..., :8]))
