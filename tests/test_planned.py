"""Attention whose order the planner chooses is the attention of the reference."""

from __future__ import annotations

import pickle

import pytest
import torch
from flexspec.compiler import planned

import flexspec as fs

VIDEO = fs.Canvas(t=4, h=8, w=8)
NEAR = fs.neighborhood(VIDEO, window=3)
ACROSS = fs.axial(VIDEO, "t")
LINE = fs.axial(VIDEO, "w")


def qkv(heads: int = 2, kv_heads: int = 2, length: int = 256, dim: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(heads)
    return [torch.randn(2, n, length, dim, generator=generator) for n in (heads, kv_heads, kv_heads)]


def compared(spec: object, tensors: list[torch.Tensor], **values: object) -> planned.PlannedAttention:
    attend = fs.compile(spec, order="auto", block_size=16, backend="reference")
    out, lse = attend(*tensors, return_lse=True, **values)
    wanted, wanted_lse = fs.reference_attention(spec, *tensors, return_lse=True, **values)
    assert (out - wanted).abs().max() < 1e-5 and (lse - wanted_lse).abs().max() < 1e-5
    assert torch.equal(attend(*tensors, **values), out)
    return attend


def test_one_order_for_all_heads() -> None:
    attend = compared(NEAR, qkv())
    (part,) = attend.parts(256, heads=2, head_dim=16)
    best = attend.plans(256, heads=2, head_dim=16).best
    assert part.heads is None and str(part.attend.order or "row_major") == str(best.order)
    text = repr(attend)
    assert text.startswith("compile(neighborhood(") and "order=auto" in text and "blocks of 16 x 16" in text
    assert "1 " in attend.explain(256, heads=2, head_dim=16) and "BLOCKS" in attend.explain(256, heads=2, head_dim=16)


@pytest.fixture
def apart(monkeypatch):
    """Heads of different kinds run apart, whatever that costs."""
    monkeypatch.setattr("flexspec.compiler.planning.plans.Plans.seconds_by_head", 0.0)


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 6), (6, 3), (6, 1), (6, 2)])
def test_groups_of_heads(apart, heads: int, kv_heads: int) -> None:
    spec = fs.per_head([ACROSS, LINE, LINE, ACROSS, LINE, NEAR])
    attend = compared(spec, qkv(heads, kv_heads))
    parts = attend.parts(256, heads=heads, kv_heads=kv_heads, head_dim=16)
    assert [part.heads for part in parts] == [(0, 3), (1, 2, 4), (5,)]
    assert "heads 0, 3: order" in repr(attend)
    for part in parts:
        assert part.attend.block_map(256).heads == 1


def test_groups_take_the_values_that_they_read(apart) -> None:
    spec = fs.per_head([ACROSS & fs.causal_window(window=fs.Param("window")), LINE])
    attend = compared(spec, qkv(), window=100)
    assert len(attend.parts(256, heads=2, head_dim=16, window=100)) == 2
    out = attend(*qkv(), window=7)  # the groups of the first call, with another value
    assert (out - fs.reference_attention(spec, *qkv(), window=7)).abs().max() < 1e-5
    with pytest.raises(fs.FlexSpecError, match="FS021"):
        attend(*qkv(), window=7, widow=7)


def test_scores_that_differ_by_head_keep_heads_together(apart) -> None:
    spec = fs.Attention(mask=fs.per_head([ACROSS, LINE]), scores=[fs.alibi()])
    attend = compared(spec, qkv())
    assert [part.heads for part in attend.parts(256, heads=2, head_dim=16)] == [None]


def test_a_table_by_head_that_a_call_gives_keeps_heads_together(apart) -> None:
    kind = fs.Input("kind", dims=("heads",))

    @fs.mask(canvas=VIDEO)
    def either(h, q, kv):
        return ((kind[h] == 0) & (q.t == kv.t)) | ((kind[h] == 1) & (q.w == kv.w))

    attend = compared(either, qkv(), kind=torch.tensor([0, 1]))
    out = attend(*qkv(), kind=torch.tensor([1, 0]))
    assert (out - fs.reference_attention(either, *qkv(), kind=torch.tensor([1, 0]))).abs().max() < 1e-5


def test_gradients_pass_through_groups(apart) -> None:
    spec = fs.per_head([ACROSS, LINE])
    tensors = [x.double().requires_grad_() for x in qkv(2, 1)]
    own, wanted = (
        torch.autograd.grad(run(*tensors).square().sum(), tensors)
        for run in (
            fs.compile(spec, order="auto", block_size=16, backend="reference"),
            lambda *x: fs.reference_attention(spec, *x),
        )
    )
    assert all((a - b).abs().max() < 1e-9 for a, b in zip(own, wanted, strict=True))


def test_the_block_size_alone() -> None:
    order = fs.tiled(VIDEO, t=4, h=4, w=4)
    attend = fs.compile(NEAR, order=order, block_size="auto", backend="reference")
    tensors = qkv()
    assert (attend(*tensors) - fs.reference_attention(NEAR, *tensors)).abs().max() < 1e-5
    (part,) = attend.parts(256, heads=2, head_dim=16)
    assert part.attend.order == order and part.attend.block_size[0] in (64, 128, 256)


def test_a_plain_sequence_stays_as_it_is() -> None:
    attend = compared(fs.causal_window(8), qkv())
    assert attend.parts(256, heads=2, head_dim=16)[0].attend.order is None
    assert pickle.loads(pickle.dumps(attend)).parts(256, heads=2, head_dim=16)[0].attend.order is None


def test_mistakes() -> None:
    attend = fs.compile(NEAR, order="auto")
    q, k, v = qkv()
    with pytest.raises(fs.FlexSpecError, match="FS033"):
        attend(q, k, v, inputs="ordered")
    with pytest.raises(fs.FlexSpecError, match="FS032"):
        attend(q[:, :, :100], k[:, :, :100], v[:, :, :100])
    with pytest.raises(fs.FlexSpecError, match="FS040"):
        attend(q, k[:, :, :3], v)
    with pytest.raises(fs.FlexSpecError, match="FS033"):
        fs.compile(NEAR, order="best")
    with pytest.raises(fs.FlexSpecError, match="FS041"):
        fs.compile(NEAR, order="auto", backend="fastest")
