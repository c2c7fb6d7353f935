"""Attention in 8 bits: the kernel and the reference against dense torch code, what is lost, what may be left out."""

import math
import pickle

import pytest
import torch
from flexspec.compiler.backends import quantised
from flexspec.compiler.backends.registry import LOW_PRECISION
from flexspec.compiler.backends.triton import able
from flexspec.compiler.backends.triton.launch import launch_of
from flexspec.compiler.backends.triton.precision import quantised_by_kernels
from test_triton import DEVICE, IDS, SCORES, qkv

import flexspec as fs

PRECISIONS = ["int8", "fp8"]
E4M3 = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double().to(DEVICE)
"""Its numbers from 0 on, in order: the index of an even one is even."""
SEED = torch.Generator().manual_seed(5)
PAIRS = (torch.rand(2, 4, 100, 150, generator=SEED) < 0.3) & (torch.rand(2, 4, 100, 1, generator=SEED) < 0.9)
FEW = (torch.rand(2, 4, 4, 5, generator=SEED) < 0.5).repeat_interleave(32, 2).repeat_interleave(32, 3)


def nearest(x, precision):
    """`x` as int8 or e4m3, to nearest, ties to even."""
    if precision == "int8":
        return x.double().round()
    at = torch.searchsorted(E4M3, x.double().abs().contiguous()).clamp(1, 126)
    low, high = E4M3[at - 1], E4M3[at]
    below, above = x.double().abs() - low, high - x.double().abs()
    up = (above < below) | ((above == below) & (at % 2 == 0))
    return torch.where(up, high, low) * x.double().sign()


def oracle(keep, q, k, v, precision, score=None, scale=None, sink=None):
    """Output and lse of dense attention in float64 with everything rounded as is said; keep: [batch, heads, q, kv]."""
    scale = q.shape[3] ** -0.5 if scale is None else scale
    q, k, v = q.float(), k.float(), v.float()
    group = q.shape[1] // k.shape[1]
    mean = k.mean(2, keepdim=True)
    largest = 127.0 if precision == "int8" else 448.0
    q_scale = q.abs().amax(-1, keepdim=True) / largest
    rounded_q = nearest(q / q_scale, precision) * q_scale.double()
    rounded_k = torch.zeros_like(k, dtype=torch.float64)
    for start in range(0, k.shape[2], 64):
        block = (k - mean)[:, :, start : start + 64]
        k_scale = block.abs().amax((2, 3), keepdim=True) / largest
        rounded_k[:, :, start : start + 64] = nearest(block / k_scale, precision) * k_scale.double()
    most = v.abs().amax(2, keepdim=True)
    v_scale = 2.0 ** (most.log2().floor() + 1) if precision == "int8" else most / largest
    numbers = (v / v_scale).half().double() if precision == "int8" else nearest(v / v_scale, precision)
    values = (numbers * v_scale.double()).repeat_interleave(group, 1)
    s = rounded_q @ rounded_k.repeat_interleave(group, 1).transpose(2, 3)
    s = (s + q.double() @ mean.repeat_interleave(group, 1).double().transpose(2, 3)) * scale
    s = torch.where(keep, s if score is None else score(s), -math.inf)
    if sink is not None:
        s = torch.cat([s, sink.double().view(1, -1, 1, 1).expand(*s.shape[:3], 1)], -1)
        values = torch.cat([values, torch.zeros_like(values[:, :, :1])], 2)
    top = (s.amax(-1, keepdim=True) / math.log(2)).ceil() * math.log(2)
    p = torch.exp(s - torch.where(top > -math.inf, top, 0.0))
    total = p.sum(-1, keepdim=True)
    p = (p * 2**15).half().double() / 2**15 if precision == "int8" else nearest(p * 2**8, "fp8") / 2**8
    out = p @ values / torch.where(total > 0, total, 1.0)
    return out, (total.log() + torch.where(top > -math.inf, top, 0.0)).squeeze(-1)


def close(found, wanted, precision):
    """Where sums of float32 round otherwise, a few weights move by a step: 2**-10 of themselves, of e4m3 2**-3."""
    (out, lse), (wanted, wanted_lse) = found, wanted
    off = (out.double() - wanted).abs() / wanted.abs().amax()
    assert off.max() < (2**-10 if precision == "int8" else 2**-3)
    many = 1 if DEVICE == "cpu" else 100
    assert off.mean() < many * (1e-6 if precision == "int8" else 2e-5)
    near = 5e-6 if DEVICE == "cpu" else 2e-3  # a Hopper adds up products of fp8 in fewer bits
    torch.testing.assert_close(lse.double(), wanted_lse.double(), atol=near, rtol=near)


def both(spec, q, k, v, precision, block_size=32, order=None, skip=None, **values):
    """Output and lse of the kernel and of the reference."""
    for backend in ("triton", "reference"):
        given = (q, k, v) if backend == "triton" else (q.double(), k.double(), v.double())
        options = {"order": order, "precision": precision, "skip": skip}
        attend = fs.compile(spec, backend=backend, block_size=block_size, **options)
        yield attend(*given, return_lse=True, **values)


def outliers(q, k, v):
    """Channels of k with an offset that all tokens share, and some of q that are large."""
    k[..., ::7] += 9.0
    q[..., 3] *= 6.0
    return q, k, v


def causal(q_len, kv_len, offset):
    return torch.ones(q_len, kv_len, dtype=torch.bool).tril(offset)[None, None]


CASES = {
    "causal, ragged": (fs.causal(40), causal(70, 133, 40), {}, 32),
    "rows without a key": (fs.causal(-20), causal(70, 133, -20), {}, 32),
    "window": (fs.causal_window(50), causal(90, 90, 0) & ~causal(90, 90, -50), {}, (32, 64)),
    "everything": (fs.everything(), torch.ones(1, 1, 100, 256, dtype=torch.bool), {}, (64, 128)),
    "pairs": (fs.mask(lambda b, h, q, kv: PAIRS[b, h, q, kv]), PAIRS, {}, (32, 96)),
    "blocks, in lists": (fs.mask(lambda b, h, q, kv: FEW[b, h, q, kv]), FEW[:, :, :100, :150], {}, 32),
    "softcap": (
        fs.Attention(mask=fs.causal(40), scores=[fs.softcap(2.0)]),
        causal(70, 133, 40),
        {"score": lambda s: 2.0 * torch.tanh(s / 2.0)},
        32,
    ),
    "negative scale": (fs.Attention(mask=fs.causal(9), scale=-0.3), causal(70, 80, 9), {"scale": -0.3}, 32),
    "sink": (
        fs.Attention(mask=fs.causal(-9), weight=fs.sink_logit(torch.tensor([0.5, -3.0, 9.0, 1.0]))),
        causal(70, 80, -9),
        {"sink": torch.tensor([0.5, -3.0, 9.0, 1.0])},
        32,
    ),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CASES)
def test_kernel_and_reference_round_as_is_said(name, precision):
    """Grouped heads, channels that are no power of two, two batches, outliers."""
    spec, keep, options, block_size = CASES[name]
    tensors = outliers(*qkv(*keep.shape[2:], heads=4, kv_heads=2, head_dim=24, v_dim=41))
    options = {key: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for key, x in options.items()}
    wanted = oracle(keep.expand(2, 4, *keep.shape[2:]).to(DEVICE), *tensors, precision, **options)
    kernel, reference = both(spec, *tensors, precision, block_size)
    assert kernel[0].shape == (2, 4, keep.shape[2], 41) and kernel[1].dtype == torch.float32
    close(reference, wanted, precision)
    close(kernel, wanted, precision)
    close(kernel, reference, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_compositions(precision):
    """Documents, several scores, an order, one query, small blocks, 16-bit tensors, and other strides."""
    image = fs.Canvas(h=9, w=10)
    spec = fs.Attention(mask=fs.causal() & fs.document(IDS), scores=SCORES["several"])
    cases = [
        (spec, qkv(90, heads=4, head_dim=40), {}),
        (fs.neighborhood(image, window={"h": 5, "w": 3}), qkv(90), {"order": fs.tiled(image, h=4, w=4)}),
        (fs.causal(189), qkv(1, 190, heads=4, kv_heads=1, v_dim=80), {"block_size": 128}),
        (fs.sink_window(sink=3, window=20), qkv(33, 64, dtype=torch.bfloat16), {"block_size": (16, 32)}),
        (fs.nothing(), qkv(33, 64, dtype=torch.float16), {}),
    ]
    moved = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv(70, heads=4, kv_heads=2, v_dim=32)]
    cases += [(fs.causal(), moved, {}), (fs.causal(), [x.transpose(2, 3).contiguous().mT for x in moved], {})]
    for each, tensors, options in cases:
        kernel, reference = both(each, *tensors, precision, **options)
        assert kernel[0].dtype == tensors[0].dtype
        if tensors[0].dtype == torch.float32:
            close(kernel, reference, precision)
        else:
            torch.testing.assert_close(kernel[0].double(), reference[0].double(), atol=2e-2, rtol=2e-2)


def test_small_blocks_and_pages():
    q, k, v = qkv(1, 40, batch=1)
    attend = fs.compile(fs.causal(39), backend="triton", precision="int8", block_size=16)
    wanted = attend(q, k, v)
    pages = [x.squeeze(0).transpose(0, 1).unflatten(0, (5, 8)) for x in (k, v)]
    table = torch.arange(5, dtype=torch.int32, device=DEVICE)[None]
    assert attend(q, *pages, page_table=table, kv_len=40).equal(wanted)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_numbers_of_any_size(precision):
    """Zeros, products that float32 cannot hold, and values that float16 cannot."""
    q, k, v = qkv(40, batch=1)
    exact = fs.reference_attention(fs.causal(), q, k, v)
    for factor in (1e-30, 1e30):
        out, _ = next(both(fs.causal(), q * factor, k / factor, v * 1e20, precision))
        torch.testing.assert_close(out.double() / 1e20, exact, atol=0.5, rtol=0)
    tiny, _ = next(both(fs.causal(), q * 1e-25, k * 1e-25, v, precision))
    mean = v.double().cumsum(2) / torch.arange(1, 41, device=DEVICE)[:, None]
    torch.testing.assert_close(tiny.double(), mean, atol=0.2, rtol=0)
    out, lse = next(both(fs.causal(), q * 0, k * 0, v * 0, precision))
    assert out.eq(0).all()
    torch.testing.assert_close(lse[0, 0], torch.arange(1, 41, device=DEVICE).log())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_offset_that_keys_share_costs_nothing(precision):
    q, k, v = qkv(70, heads=2, head_dim=32)
    exact = fs.reference_attention(fs.causal(), q, k, v)
    plain, shifted = (next(both(fs.causal(), q, k + offset, v, precision))[0] for offset in (0.0, 64.0))
    errors = [(out - exact).norm() / exact.norm() for out in (plain, shifted)]
    assert errors[0] < (0.02 if precision == "int8" else 0.08) and errors[1] < 1.1 * errors[0]
    q8, k8, v8 = quantised.restored(quantised.quantised(q, k + 64.0, v, precision, centred=False), 70, 70)
    kept = fs.reference_attention(fs.Attention(mask=fs.causal(), scale=32**-0.5), q8, k8, v8)
    assert (kept - exact).norm() / exact.norm() > 3 * errors[0]


def far_below(gap, q_len=70, kv_len=320):
    """Scores of the first 64 keys are about 0, those of the others about `-gap`."""
    q, k, v = qkv(q_len, kv_len, heads=2, head_dim=32, batch=1)
    q = q * 0.05
    q[..., 0], k[..., 0], k[:, :, 64:, 0] = 1.0, 0.0, -gap * 32**0.5
    return q, k, v


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("offset", [250, -5])
def test_tiles_that_cannot_matter_are_left_out(precision, offset):
    """All after the first block, as if the mask did not keep them; rows without a key and rows that do not exist do not
    hold them back.
    """
    tensors, spec = far_below(gap=9.7), fs.causal(offset)
    found = next(both(spec, *tensors, precision, block_size=64, skip=7.0))
    near = next(both(spec & fs.mask(lambda kv: kv < 64), *tensors, precision, block_size=64))
    torch.testing.assert_close(found, near, atol=1e-6, rtol=1e-6)
    all_of_them = next(both(spec, *tensors, precision, block_size=64))
    if offset > 0:
        assert (all_of_them[1] - found[1]).min() > 1e-4
    held = next(both(spec, *tensors, precision, block_size=64, skip=10.0))
    torch.testing.assert_close(held, all_of_them, atol=0, rtol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("skip", [0.5, 2.0, 6.0])
def test_what_is_left_out_is_light(precision, skip):
    """Each key has less than exp(-skip) of its row's weight, so output and lse are within the bounds that follow."""
    q, k, v = qkv(90, 200, heads=2, head_dim=16, batch=1)
    q *= 6.0
    kernel, (whole, whole_lse) = both(fs.causal(110), q, k, v, precision, block_size=(16, 32), skip=skip)
    q8, k8, _ = quantised.restored(quantised.quantised(q, k, v, precision), 90, 200)
    weights = (q8 @ k8.transpose(2, 3) * 0.25 - whole_lse[..., None]).exp() * causal(90, 200, 110).to(DEVICE)
    light = (weights * (weights < 1.001 * math.exp(-skip))).sum(-1).clamp(max=1.0)
    assert ((kernel[0] - whole).abs() <= 2 * light[..., None] * v.abs().amax() + 2e-2).all()
    assert (whole_lse - kernel[1] <= -(1 - light).log() + 2e-5).all()
    assert (kernel[1] <= whole_lse + 2e-5).all()
    assert skip > 2 or not torch.allclose(kernel[1].double(), whole_lse.double(), atol=1e-4)


def test_what_is_asked_for_is_kept():
    attend = fs.compile(fs.causal(), precision="fp8", skip=9.0)
    assert attend.backends == LOW_PRECISION
    assert repr(attend) == "compile(causal(), backend='auto', precision='fp8', skip=9.0)"
    again = pickle.loads(pickle.dumps(attend))
    assert (again.precision, again.skip) == ("fp8", 9.0)
    assert "backend auto, precision fp8" in attend.explain(64)
    planned = fs.compile(fs.causal(), order="auto", precision="int8", backend="reference")
    q, k, v = qkv(40, batch=1)
    wanted = fs.compile(fs.causal(), precision="int8", backend="reference")(q, k, v)
    torch.testing.assert_close(planned(q, k, v), wanted)


@pytest.mark.skipif(DEVICE == "cuda", reason="there the kernels run")
def test_without_a_gpu_the_reference_rounds_alike(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    q, k, v = qkv(40)
    with pytest.warns(fs.FlexSpecWarning, match="reference runs this, because Triton kernels need a CUDA device"):
        out = fs.compile(fs.causal(), precision="int8")(q, k, v)
    assert not torch.allclose(out, fs.reference_attention(fs.causal(), q, k, v).float(), atol=1e-4)


def test_reasons_against(monkeypatch):
    q, k, v = qkv(40)

    def refused(match, given=(q, k, v), **options):
        options = {"precision": "fp8", "backend": "triton", "block_size": 32} | options
        with pytest.raises(fs.FlexSpecError, match=match):
            fs.compile(fs.causal(), **options)(*given)

    refused("FS042.*flex has no precision='int8'", backend="flex", precision="int8")
    refused("FS042.*multiples of 32 tokens, not 16", block_size=16)
    refused("FS042.*has no gradients", given=(q.clone().requires_grad_(), k, v))
    refused("FS041.*no precision 'int4'", precision="int4")
    refused("FS041.*skip is of kernels in low precision", precision=None, skip=3.0)
    refused("FS025.*skip is -1", skip=-1)
    monkeypatch.setattr(able, "MOST_FP8_KEYS", 39)
    refused("FS042.*at most 39 keys")
    monkeypatch.setattr(able, "arch_of", lambda device: "sm_86")
    refused("FS042.*sm_86 multiplies no e4m3 numbers; precision='int8' runs there")
    with pytest.raises(fs.FlexSpecError, match="FS042.*for the softmax, and the weight is sigmoid"):
        fs.compile(fs.Attention(weight=fs.sigmoid_weight()), precision="int8")
    with torch.no_grad():
        fs.compile(fs.causal(), precision="int8", backend="triton", block_size=32)(q.clone().requires_grad_(), k, v)


@pytest.mark.parametrize("backend", ["triton", "reference", "auto"])
def test_inside_torch_compile_there_is_no_graph_break(backend):
    """Captured and given tensors, an order, a sink, an lse; then other values of all of them."""
    sink, slopes = torch.tensor([0.5, -1.0], device=DEVICE), torch.rand(2, device=DEVICE)
    spec = fs.Attention(fs.causal() & fs.document(), [fs.alibi(slopes)], weight=fs.sink_logit(sink))
    options = {"order": fs.striped(2), "block_size": 32, "backend": backend}
    attend = fs.compile(spec, precision="int8", **options)
    model = torch.compile(
        lambda q, *x, **ids: attend(2 * q, *x, return_lse=True, **ids), backend="aot_eager", fullgraph=True
    )
    for step in range(2):
        q, k, v = qkv(45, batch=1, seed=step)
        ids = (torch.arange(45, device=DEVICE)[None] + 20 * step) // 32
        found = model(q, k, v, document_id=ids)
        torch.testing.assert_close(found, attend(2 * q, k, v, return_lse=True, document_id=ids), atol=0, rtol=0)
        changed = fs.Attention(spec.mask, [fs.alibi(slopes.clone())], weight=fs.sink_logit(sink.clone()))
        wanted = fs.compile(changed, precision="int8", **options)(2 * q, k, v, return_lse=True, document_id=ids)
        torch.testing.assert_close(found, wanted, atol=0, rtol=0)
        sink += 1.0
        slopes *= 2.0
    with pytest.raises(fs.FlexSpecError, match="FS042.*has no gradients"):
        torch.compile(attend, backend="aot_eager")(q.requires_grad_(), k, v, document_id=ids)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernels_quantise_to_the_same_numbers(precision, dtype):
    """Ties, zeros, numbers of all sizes, other strides; zeros up to whole blocks and 16 channels."""
    q, k, v = qkv(70, 133, heads=4, kv_heads=2, head_dim=24, v_dim=41, dtype=dtype)
    k, v = outliers(q, k, v)[1] * 3, (v * torch.logspace(-8, 0, 41, device=DEVICE)).to(dtype)
    most = 127.0 if precision == "int8" else 448.0
    q[:, :, 7] = torch.linspace(-most, most, 24, device=DEVICE).round() / 2
    q[:, :, 7, 0], q[:, :, 8], v[..., 5], k[1] = most, 0.0, 0.0, 0.0
    k = k.transpose(1, 2).contiguous().transpose(1, 2)
    call = fs.compile(fs.causal(40), block_size=32).call_of(q, k, v, False, "logical", {})
    found = quantised_by_kernels(launch_of(call), q, k, v, precision, (96, 160))
    wanted = quantised.quantised(q, k, v, precision, (96, 160))
    for name, one, other in zip(wanted._fields, found, wanted, strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride()), name
        if name == "offset":
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        else:
            assert one.double().equal(other.double()), name
