"""Masks and attention under every order mean what they mean without one."""

from __future__ import annotations

import pytest
import torch
from flexspec.compiler.pipeline import map_on_device
from random_masks import block_kinds

import flexspec as fs
from flexspec.inputs import make_sizes
from flexspec.order import Order, bound_in_memory, in_memory

VIDEO = fs.Canvas(t=3, h=5, w=7)
TEXT, LENGTH = 11, 116  # text, then the video
ORDERS: list[Order] = [
    fs.axes(VIDEO, "w", "t", "h"),
    fs.tiled(VIDEO, t=2, h=2, w=3),
    fs.tiled(VIDEO, {"t": 2, "h": 4, "w": 4}, {"h": 2, "w": 2}),
    fs.dilated(VIDEO, 2),
    fs.morton(VIDEO),
    fs.hilbert(VIDEO),
    fs.striped(4),
    fs.zigzag(4),
    fs.by_label(torch.arange(105) * 11 % 8),
    fs.concatenated(fs.tiled(fs.Canvas(h=10, w=10), h=4, w=4), 5),
]
NEAR = fs.neighborhood(VIDEO, window={"t": 3, "h": 3, "w": 5})
BIAS = fs.score(lambda score, h, q, kv: score - 0.01 * (h + 1) * abs(q - kv))


def moved(kept: torch.Tensor, order: Order, batch: int = 0) -> torch.Tensor:
    """bool [heads, q, kv] with rows and columns in memory, padding not kept."""
    at = order.permutation(kept.shape[-1])
    at = at[batch] if at.dim() == 2 else at
    there = at >= 0
    return kept[:, at.clamp(min=0)][:, :, at.clamp(min=0)] & there[:, None] & there


def qkv(length: int, batch: int = 2) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(length)
    return [torch.randn(batch, 2, length, 8, generator=made, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_attention_is_the_same(order: Order) -> None:
    spec = fs.Attention(mask=NEAR | fs.causal_window(3), scores=[BIAS])
    tensors = [x.requires_grad_() for x in qkv(105)]
    attend = fs.compile(spec, order=order, backend="reference", block_size=16)
    out, lse = attend(*tensors, return_lse=True)
    wanted, wanted_lse = fs.reference_attention(spec, *tensors, return_lse=True)
    assert torch.allclose(out, wanted) and torch.allclose(lse.double(), wanted_lse, atol=1e-6)
    weight = torch.cos(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape)
    for got, truth in zip(*(torch.autograd.grad((x * weight).sum(), tensors) for x in (out, wanted)), strict=True):
        assert torch.allclose(got, truth)
    ordered = attend(*(order.apply(x) for x in tensors), inputs="ordered")
    assert torch.allclose(order.undo(ordered, 105), wanted)


@pytest.mark.parametrize("order", [fs.hilbert(VIDEO), fs.by_label(torch.arange(210).view(2, 105) % 8)], ids=str)
def test_kernels_load_from_the_table(order: Order) -> None:
    spec = fs.Attention(mask=NEAR, scores=[BIAS])
    tensors = [x.float() for x in qkv(105)]
    out = fs.compile(spec, order=order, backend="triton", block_size=32)(*tensors)
    assert (out - fs.reference_attention(spec, *tensors)).abs().max() < 3e-6


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_block_maps_and_functions_by_hand(order: Order) -> None:
    kept = moved(NEAR.dense(105)[0], order)
    made = fs.block_map(NEAR, 105, order=order, block_size=(13, 8))
    assert torch.equal(made.kinds(), block_kinds(kept[None], 13, 8))
    assert made.kept_pairs == int(kept.sum())
    assert torch.equal(made.tokens(3, 40, 2, 90), kept[0, 3:40, 2:90])
    places = torch.arange(kept.shape[-1])
    zero = torch.tensor(0)
    by_hand = made.mask_mod(zero, zero, places[:, None], places)
    assert torch.equal(by_hand, kept[0])
    if order.tokens is not None:
        assert torch.equal(fs.compile(NEAR, order=order).mask_mod(zero, zero, places[:, None], places), kept[0])
    bound = bound_in_memory(NEAR.bind(make_sizes(105), {}), order, "cpu")
    loose = map_on_device(NEAR, bound, (13, 8), order, torch.device("cpu")).kinds()
    exact = made.kinds()
    assert ((loose == exact) | (loose == 1)).all()
    cut = made.slice(q=(13, 39), kv_len=70)
    assert torch.equal(cut.tokens(0, 26, 0, 70), kept[0, 13:39, :70])


def test_one_sequence_sorted_unlike_another() -> None:
    labels = torch.tensor([[0, 1, 0, 2, 1, 0, 2, 2, 1], [1, 1, 1, 0, 0, 2, 2, 0, 0]])
    order, mask = fs.by_label(labels), fs.same_label(labels)
    made = fs.block_map(mask, 9, order=order, block_size=3)
    wanted = torch.stack([moved(mask.dense(9)[b], order, b) for b in range(2)])
    assert torch.equal(made.kinds(), block_kinds(wanted, 3, 3)) and made.batch == 2
    causal = fs.block_map(fs.causal, 9, order=order, block_size=2)  # the mask itself does not depend on the batch
    wanted = torch.stack([moved(fs.causal().dense(9)[0], order, b) for b in range(2)])
    assert torch.equal(causal.kinds(), block_kinds(wanted, 2, 2))
    tensors = qkv(9)
    for spec in (mask, fs.Attention(mask=fs.causal(), scores=[BIAS])):
        out = fs.compile(spec, order=order, backend="reference")(*tensors)
        assert torch.allclose(out, fs.reference_attention(spec, *tensors))
    with pytest.raises(fs.FlexSpecError, match="of 2 sequences, the call has batch 3"):
        fs.block_map(fs.causal, 9, batch=3, order=order)


def test_equal_labels_are_full_blocks_once_they_are_together() -> None:
    labels = torch.arange(64) % 8
    made = fs.block_map(fs.same_label(labels), 64, order=fs.by_label(labels), block_size=8)
    assert torch.equal(made.kinds()[0, 0], 2 * torch.eye(8, dtype=torch.uint8))


@pytest.mark.parametrize("inner", [fs.tiled(VIDEO, t=2, h=2, w=3), fs.hilbert(VIDEO)], ids=str)
def test_video_after_text(inner: Order) -> None:
    """The video part in tiles, the text as it stands; text sees all, video its window and the text."""
    table = {("text", "text"): True, ("text", "video"): True, ("video", "text"): True, ("video", "video"): NEAR}
    mask = fs.segments({"text": TEXT, "video": VIDEO.size}, table)
    order = fs.concatenated(TEXT, inner)
    kept = moved(mask.dense(LENGTH)[0], order)
    made = fs.block_map(mask, LENGTH, order=order, block_size=(8, 16))
    assert torch.equal(made.kinds(), block_kinds(kept[None], 8, 16))
    out = fs.compile(mask, order=order, backend="reference")(*(tensors := qkv(LENGTH)))
    assert torch.allclose(out, fs.reference_attention(mask, *tensors))


@pytest.mark.parametrize("order", [fs.striped(3), fs.zigzag(3)], ids=str)
@pytest.mark.parametrize(("q_len", "kv_len"), [(17, 40), (41, 23), (6, 7)])
def test_unequal_lengths(order: Order, q_len: int, kv_len: int) -> None:
    mask = fs.causal(kv_len - q_len) & fs.mask(lambda q, kv: (q - kv) % 5 != 1)
    rows, columns = order.permutation(q_len), order.permutation(kv_len)
    kept = mask.dense(q_len, kv_len)[0, 0][rows.clamp(min=0)][:, columns.clamp(min=0)]
    kept &= (rows >= 0)[:, None] & (columns >= 0)
    made = fs.block_map(mask, q_len, kv_len, order=order, block_size=(4, 5))
    assert torch.equal(made.kinds(), block_kinds(kept[None, None], 4, 5))


def test_the_name_of_the_table_is_taken() -> None:
    memory_order = torch.arange(105)
    mask = fs.mask(lambda q, kv: memory_order[q] >= memory_order[kv])
    assert fs.block_map(mask, 105, order=fs.tiled(VIDEO, t=2, h=2, w=2)).kept_pairs == 105 * 53
    with pytest.raises(fs.FlexSpecError, match="rename") as caught:
        in_memory(mask.expr, fs.morton(VIDEO), None, 105, 105)
    assert caught.value.code == "FS026"


def test_a_compiled_attention_explains_and_keeps_maps_under_a_table() -> None:
    attend = fs.compile(NEAR, order=fs.hilbert(VIDEO), block_size=32)
    assert attend.block_map(105) is attend.block_map(105)
    assert "order hilbert" in attend.explain(105)
