"""Compiled attention on the CPU against the reference: layouts, dtypes, lengths, orders, and what is routed around."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch._dynamo.utils import counters

import flexspec as fs


def qkv(heads=2, kv_heads=2, q_len=200, kv_len=None, dim=16, batch=1, dtype=torch.float32, v_dim=None):
    made = torch.Generator().manual_seed(q_len + dim)
    shape = [(batch, heads, q_len, dim), (batch, kv_heads, kv_len or q_len, dim)]
    shape.append((*shape[1][:3], v_dim or dim))
    return [torch.randn(size, generator=made).to(dtype) for size in shape]


def check(spec, tensors, tolerance=3e-6, order=None, backend="flex", **values):
    attend = fs.compile(spec, order=order, backend=backend)
    out = attend(*tensors, **values)
    wanted = fs.reference_attention(spec, *tensors, **values)
    assert out.dtype == tensors[0].dtype and out.shape == wanted.shape
    assert (out.double() - wanted).abs().max() < tolerance
    return attend


causal = fs.mask(lambda q, kv: q >= kv)
late = fs.mask(lambda q, kv: (q >= kv + 40) & (q - kv < 120))


def test_rows_that_keep_nothing_are_zero():
    tensors = qkv()
    attend = check(late, tensors)
    assert attend(*tensors)[:, :, :40].abs().max() == 0


def test_scores_heads_and_gqa():
    slope = fs.score(lambda score, h, q, kv: score - (h + 1) * 0.1 * abs(q - kv))
    cap = fs.score(lambda score: 5 * torch.tanh(score / 5))
    by_head = fs.mask(lambda h, q, kv: (q - kv) % (h + 2) != 1)
    spec = fs.Attention(mask=by_head & causal, scores=[slope, cap], scale=0.3)
    check(spec, qkv(heads=4, kv_heads=2, q_len=150, kv_len=170))


def test_bias_table_and_bfloat16_and_a_different_value_dim():
    table = torch.randn(3, 41)

    def relative(score, b, h, q_idx, kv_idx):
        return score + table[h, torch.clamp(q_idx - kv_idx, -20, 20) + 20]

    spec = fs.Attention(mask=causal, scores=[relative])
    check(spec, qkv(heads=3, kv_heads=1, dim=24, v_dim=8, dtype=torch.bfloat16), tolerance=0.03)


def test_changing_parameters_lengths_and_tensors_recompiles_nothing():
    ids = fs.Input("document_id", dims=("batch", "sequence"))

    @fs.mask
    def packed(b, q, kv, *, window):
        return (ids[b, q] == ids[b, kv]) & (q >= kv) & (q - kv < window)

    attend = fs.compile(packed, backend="flex")
    compiled = []
    for length, window in ((140, 9), (300, 17), (511, 400), (200, 30)):
        tensors = qkv(batch=5, heads=7, kv_heads=7, q_len=length)
        values = {"document_id": torch.arange(length)[None] // 37, "window": window}
        out = attend(*tensors, **values)
        assert (out - fs.reference_attention(packed, *tensors, **values)).abs().max() < 3e-6
        compiled.append(counters["stats"]["unique_graphs"])
    assert compiled[1:] == compiled[:1] * 3


def test_twelve_patterns_all_run_compiled():
    """None falls back to eager: each is a graph of its own (and a reached recompile limit raises)."""
    before = counters["stats"]["unique_graphs"]
    tensors = qkv(q_len=130)
    for number in range(12):
        check(fs.Mask(fs.parse(f"(q - kv) % {number + 2} < 2"), f"stripes {number}"), tensors)
    assert counters["stats"]["unique_graphs"] - before >= 12


@pytest.mark.parametrize("spec", [causal, fs.mask(lambda h, kv: kv % (h + 2) == 0), fs.mask(lambda kv: kv < 0)])
def test_one_query_is_routed_around(spec):
    check(spec, qkv(heads=2, q_len=1, kv_len=700))


def test_lse_and_fully_masked_rows():
    tensors = qkv()
    out, lse = fs.compile(late, backend="flex")(*tensors, return_lse=True)
    wanted, wanted_lse = fs.reference_attention(late, *tensors, return_lse=True)
    assert (out - wanted).abs().max() < 1e-6 and lse.dtype == torch.float32
    assert torch.equal(lse == -torch.inf, wanted_lse == -torch.inf) and (lse[:, :, :40] == -torch.inf).all()
    assert (lse - wanted_lse)[:, :, 40:].abs().max() < 1e-5


def test_an_order_moves_tokens_in_and_out():
    canvas = fs.Canvas(h=11, w=13)

    @fs.mask(canvas=canvas)
    def near(q, kv):
        return ((q.h - kv.h).abs() <= 2) & ((q.w - kv.w).abs() <= 3)

    order = fs.tiled(canvas, h=4, w=4)
    tensors = qkv(q_len=143)
    attend = check(near, tensors, order=order)
    ordered = attend(*(order.apply(x) for x in tensors), inputs="ordered")
    assert torch.equal(order.undo(ordered), attend(*tensors))
    with pytest.raises(fs.FlexSpecError, match="FS033"):
        attend(*tensors, inputs="ordered")


def test_striped_order_with_a_ragged_length():
    check(causal, qkv(q_len=131), order=fs.striped(4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_auto_takes_what_works_without_a_word(dtype):
    tensors = [x.requires_grad_() for x in qkv(q_len=40, dtype=dtype)]
    attend = fs.compile(causal)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = attend(*tensors)
    out.sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in tensors)
    with pytest.raises(fs.FlexSpecError, match="'blocks'") as caught:
        fs.compile(causal, backend="flex")(*tensors)
    assert caught.value.code == "FS042"


def test_without_a_compiler_the_error_names_the_backend_that_works(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(fs.FlexSpecError, match="C\\+\\+ compiler") as caught:
        fs.compile(causal, backend="flex")(*qkv(q_len=20))
    assert caught.value.code == "FS042" and "'blocks'" in str(caught.value)


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 2, 8, 4), (1, 2, 8, 4), (1, 2, 9, 4)],
        [(1, 3, 8, 4), (1, 2, 8, 4), (1, 2, 8, 4)],
        [(2, 2, 8, 4), (1, 2, 8, 4), (1, 2, 8, 4)],
        [(1, 2, 8, 4), (1, 2, 8, 5), (1, 2, 8, 5)],
        [(2, 8, 4), (2, 8, 4), (2, 8, 4)],
        [(1, 2, 0, 4), (1, 2, 8, 4), (1, 2, 8, 4)],
    ],
)
def test_tensors_that_do_not_fit(shapes):
    for call in (fs.compile(causal), lambda *x: fs.reference_attention(causal, *x)):
        with pytest.raises(fs.FlexSpecError) as caught:
            call(*(torch.zeros(shape) for shape in shapes))
        assert caught.value.code == "FS040"


def test_wrong_kinds_of_tensors_and_backends():
    whole = [torch.zeros(1, 1, 4, 4, dtype=torch.int64)] * 3
    with pytest.raises(fs.FlexSpecError, match="FS023"):
        fs.compile(causal)(*whole)
    mixed = [torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4).half()]
    with pytest.raises(fs.FlexSpecError, match="FS040"):
        fs.compile(causal)(*mixed)
    with pytest.raises(fs.FlexSpecError, match="auto, flex, flash, blocks, reference or triton") as caught:
        fs.compile(causal, backend="cuda")
    assert caught.value.code == "FS041"
    for size in (0, -1, 1.5, (128,), (128, 0), "128"):
        with pytest.raises(fs.FlexSpecError) as caught:
            fs.compile(causal, block_size=size)
        assert caught.value.code == "FS030"


def test_maps_are_kept_per_values_and_tensor_versions():
    ids = torch.zeros(1, 50, dtype=torch.int64)
    document = fs.Input("document_id", dims=("batch", "sequence"))
    attend = fs.compile(fs.mask(lambda b, q, kv: document[b, q] == document[b, kv]), block_size=16)
    first = attend.block_map(50, document_id=ids)
    assert attend.block_map(50, document_id=ids) is first
    ids[0, 25:] = 1
    assert attend.block_map(50, document_id=ids).density < first.density


def test_functions_by_hand():
    from torch.nn.attention.flex_attention import create_mask

    spec = fs.Attention(mask=late, scores=[lambda score, b, h, q, kv: score * 2 + kv])
    attend = fs.compile(spec)
    assert torch.equal(create_mask(attend.mask_mod, 1, 1, 99, 99, device="cpu"), late.dense(99))
    assert attend.score_mod(torch.tensor(1.5), *torch.tensor([0, 0, 3, 4])) == 7
    with pytest.raises(fs.FlexSpecError, match="window"):
        fs.compile(fs.mask(lambda q, kv, *, window: q - kv < window)).mask_mod  # noqa: B018


def test_a_fresh_process_is_quick_to_describe_patterns():
    code = "import flexspec as fs, sys; fs.mask(lambda q, kv: q > kv); print([m in sys.modules for m in {}])"
    heavy = ["matplotlib", "typer", "flexspec.compiler", "torch._inductor.compile_fx"]
    out = subprocess.run([sys.executable, "-c", code.format(heavy)], capture_output=True, text=True, env={**os.environ})
    assert out.stdout.strip() == str([False] * len(heavy)), out.stderr


def test_inside_a_compiled_model_it_is_a_graph_break():
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    attend = fs.compile(causal, backend="reference")
    q, k, v = qkv(q_len=20)
    model = torch.compile(lambda q: attend(q + 1, k, v).sin(), backend=backend)
    for _ in range(2):
        torch.testing.assert_close(model(q), attend(q + 1, k, v).sin())
    assert len(graphs) == 2
