"""What an adversary found in the Triton backend: each case here was once a crash or a wrong result."""

from contextlib import nullcontext

import pytest
import torch
from flexspec.compiler import map_cache
from test_triton import qkv
from test_triton_backward import same_gradients

import flexspec as fs

BIAS = torch.randn(50, generator=torch.Generator().manual_seed(5))

ONE_SIDED = {
    "of the query": lambda score, q: q * 0.1,
    "of the key": lambda score, kv: BIAS[kv],
    "of the head": lambda score, h: h * 0.5,
    "of a load of the query": lambda score, q: BIAS[q],
}


@pytest.mark.parametrize("name", ONE_SIDED)
def test_scores_that_leave_the_score_out(name):
    """They are a row, a column or a number, and still one for each pair, in full blocks too."""
    spec = fs.Attention(fs.causal(), [fs.score(ONE_SIDED[name])])
    same_gradients(spec, *qkv(40, 35, batch=1), block_size=16)


def spread(tensors, token_stride):
    """The same values so far apart that offsets pass 32 bits; memory that nobody touches costs none."""
    length = max(x.shape[2] for x in tensors)
    room = torch.empty((length - 1) * token_stride + 4096, dtype=tensors[0].dtype)
    made, at = [], 0
    for x in tensors:
        batch, heads, tokens, channels = x.shape
        strides = (heads * channels, channels, token_stride, 1)
        made.append(room.as_strided(x.shape, strides, at).copy_(x))
        at += batch * heads * channels
    return made


def test_strides_that_pass_32_bits_inside_a_tile():
    tensors = qkv(64, dtype=torch.bfloat16, batch=1)
    same_gradients(fs.causal(), *spread(tensors, 2**31 // 63 + 64), block_size=64)


def test_pages_whose_tokens_pass_32_bits():
    length, stride = 1040, 2**31 // 1030
    q, k, v = qkv(1, length, heads=2, kv_heads=1, dtype=torch.bfloat16, batch=1)
    pages = [x.transpose(1, 2) for x in spread([k, v], stride)]
    attend = fs.compile(fs.everything(), backend="triton")
    out = attend(q, *pages, page_table=torch.zeros(1, 1, dtype=torch.int32), kv_len=length)
    torch.testing.assert_close(out, attend(q, k, v))


def test_a_table_with_more_entries_than_32_bits_count():
    side, length = 46_400, 20
    corner = torch.arange(length**2, dtype=torch.int8).view(length, length) % 7
    table = torch.empty(side, side, dtype=torch.int8)  # memory that nobody touches costs none
    table[-length:, -length:] = corner
    at = side - length
    attends = [
        fs.compile(fs.Attention(fs.causal(), [score]), backend="triton", block_size=16)
        for score in (
            lambda score, b, h, q, kv: score + table[q + at, kv + at],
            lambda score, b, h, q, kv: score + corner[q, kv],
        )
    ]
    q, k, v = qkv(length, batch=1)
    torch.testing.assert_close(attends[0](q, k, v), attends[1](q, k, v))


def test_the_map_reads_no_tensor_of_the_scores(monkeypatch):
    read = []
    real = map_cache.arrays_of
    monkeypatch.setattr(map_cache, "arrays_of", lambda tensors: (read.append({*tensors}), real(tensors))[1])
    ids = torch.arange(50)[None] // 9
    spec = fs.Attention(fs.document(), [lambda score, b, h, q, kv: score + BIAS[kv]])
    fs.compile(spec, backend="triton")(*qkv(50), document_id=ids)
    assert read == [{"document_id"}]


@pytest.mark.parametrize("q_len", [3, 20])
def test_a_view_whose_sign_is_only_noted(q_len):
    q, k, v = qkv(q_len, 200, batch=1)
    attend = fs.compile(fs.everything(), backend="triton", block_size=16)
    torch.testing.assert_close(attend(*(torch._neg_view(x) for x in (q, k, v))), attend(-q, -k, -v))


@pytest.mark.parametrize("what", ["ids", "bias"])
def test_values_that_change_before_the_backward_pass(what):
    """The backward kernels read them again: the gradient is that of the old values, or torch tells."""
    q, k, v = (x.requires_grad_() for x in qkv(40, batch=1))

    def gradient(change):
        read = {"ids": (torch.arange(40)[None] // 9).int(), "bias": BIAS.clone()}
        spec = fs.Attention(fs.document(), [lambda score, b, h, q, kv: score + read["bias"][kv]])
        out = fs.compile(spec, backend="triton", block_size=16)(q, k, v, document_id=read["ids"])
        if change:
            read[what].zero_()
        return torch.autograd.grad(out.square().sum(), k)[0]

    try:
        found = gradient(True)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        torch.testing.assert_close(found, gradient(False))


def test_kernels_start_on_the_device_of_their_tensors(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: (seen.append(x), nullcontext())[1])
    q, k, v = qkv(20, batch=1)
    fs.compile(fs.causal(), backend="triton")(q, k, v)
    assert seen == [q]


@pytest.mark.parametrize("transform", [torch.func.vmap, lambda f: torch.func.grad(lambda *x: f(*x).sum())])
def test_transforms_of_torch_func_are_refused(transform):
    attend = fs.compile(fs.causal(), backend="triton")
    tensors = qkv(20, batch=1)
    tensors = [x[None] for x in tensors] if transform is torch.func.vmap else tensors
    with pytest.raises(fs.FlexSpecError, match="FS042"):
        transform(attend)(*tensors)


@pytest.mark.parametrize("name", ["back\\slash\\u", "x\\N{", "nothing\0", '"""', "two\nlines", "\\"])
def test_names_that_python_would_read(name):
    """A pattern's name heads the generated source."""
    mask = fs.Mask(fs.parse("q >= kv"), name)
    q, k, v = qkv(9, batch=1)
    wanted = fs.compile(fs.causal(), backend="triton")(q, k, v)
    torch.testing.assert_close(fs.compile(mask, backend="triton")(q, k, v), wanted)


@pytest.mark.parametrize("value", [0.1, -0.3, 0.0, 5e-324])
def test_double_parameters_keep_their_64_bits(value):
    length, scale = 16, fs.Param("scale", "double")
    at = torch.arange(length, dtype=torch.float64)
    tenths = torch.tensor(abs(value), dtype=torch.float64)
    mask = fs.mask(lambda q, kv: torch.where(q > 3, q.double() * scale, q * 0.1) <= kv * tenths)
    q = torch.zeros(1, 1, length, 16)
    out = fs.compile(mask, backend="triton", block_size=16)(q, q, torch.eye(length)[None, None], scale=value)
    left = torch.where(at[:, None] > 3, at[:, None] * value, at[:, None].float() * 0.1)
    assert torch.equal(out[0, 0] > 0, left <= at * abs(value))
