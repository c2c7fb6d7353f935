"""The portable backend against a dense implementation of its own: torch's softmax in float64 over `mask.dense`."""

import re
import warnings
from dataclasses import replace

import pytest
import torch
from flexspec.compiler.backends import registry, row_batches
from flexspec.compiler.backends.blocks import BLOCKS
from flexspec.compiler.backends.registry import BACKENDS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_masks import DECLARED, banded, comparisons, flags, tables
from torch.utils._python_dispatch import TorchDispatchMode

import flexspec as fs


def qkv(heads=2, kv_heads=None, q_len=90, kv_len=None, dim=8, v_dim=None, batch=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(q_len + dim)
    keys = (batch, kv_heads or heads, kv_len or q_len)
    shapes = [(batch, heads, q_len, dim), (*keys, dim), (*keys, v_dim or dim)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def dense(keep, q, k, v, scored=lambda s: s, scale=None):
    """Output and lse over a dense mask that broadcasts to [batch, heads, q_len, kv_len], in float64."""
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = scored(q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale))
    keep = keep.expand_as(scores)
    some = keep.any(-1, keepdim=True)
    logits = scores.masked_fill(~keep & some, -torch.inf)  # rows that keep nothing are filled in afterwards
    out = torch.where(some, torch.softmax(logits, -1) @ v, 0.0)
    return out, torch.where(some.squeeze(-1), torch.logsumexp(logits, -1), -torch.inf)


def gradients(function, tensors):
    """Output, lse, and the gradients of a sum over both that weighs every element differently."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    out, lse = function(*leaves)
    generator = torch.Generator().manual_seed(5)
    weights, lse_weights = (torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (out, lse))
    loss = (out * weights).sum() + (torch.where(lse > -torch.inf, lse, 0.0) * lse_weights).sum()
    return out.detach(), lse.detach(), *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)


def same(spec, tensors, keep, scored=lambda s, *_: s, read=(), scale=None, block_size=32, order=None, **values):
    """The backend and the dense implementation agree in output, lse and all gradients; read: tensors of the scores."""
    attend = fs.compile(spec, backend="blocks", block_size=block_size, order=order)

    def ours(q, k, v, *held):
        return attend(q, k, v, return_lse=True, **values, **dict(zip(read, held, strict=True)))

    def theirs(q, k, v, *held):
        return dense(keep, q, k, v, lambda s: scored(s, *held), scale)

    count = 3 + len(read)
    for mine, wanted in zip(gradients(ours, tensors[:count]), gradients(theirs, tensors[:count]), strict=True):
        assert not mine.isnan().any()
        tolerance = 1e-9 if mine.dtype == torch.float64 else 3e-5
        torch.testing.assert_close(mine.double(), wanted.double(), atol=tolerance, rtol=tolerance)


@pytest.fixture(autouse=True)
def small_halves(monkeypatch):
    """Rows of small blocks run in halves too."""
    monkeypatch.setattr(row_batches, "FINE", 4)


MASKS = {
    "causal": fs.causal(),
    "window": fs.causal_window(37),
    "late": fs.mask(lambda q, kv: (q >= kv + 40) & (q - kv < 60)),
    "nothing": fs.mask(lambda kv: kv < 0),
    "all": fs.mask(lambda kv: kv >= 0),
    "stripes": fs.mask(lambda q, kv: (q // 8 + kv // 16) % 3 == 0),
    "scattered": fs.mask(lambda q, kv: (q * 7 + kv * 13) % 19 == 0),
    "by head": fs.mask(lambda h, q, kv: (q >= kv) & (q - kv < 9 * (h + 1))),
    "by pairs of heads": fs.mask(lambda h, q, kv: abs(q - kv) < 20 + 30 * (h % 2)),
    "by batch and head": fs.mask(lambda b, h, q, kv: q - kv >= b * 11 - h * 5),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("pairs", [1, 1 << 12, 1 << 20])
def test_masks_however_rows_are_batched(name, pairs, monkeypatch):
    monkeypatch.setattr(row_batches, "PAIRS", pairs)
    tensors = qkv(heads=4, kv_heads=2, batch=2, v_dim=5)
    same(MASKS[name], tensors, MASKS[name].dense(90, batch=2, heads=4), block_size=16)


@pytest.mark.parametrize("sizes", [(1, 300), (7, 7), (130, 65), (33, 257)])
@pytest.mark.parametrize("block_size", [(16, 32), (64, 8), 128, 1])
def test_lengths_and_blocks(sizes, block_size):
    mask = fs.mask(lambda q, kv: (q - kv) % 5 < 2)
    same(mask, qkv(q_len=sizes[0], kv_len=sizes[1]), mask.dense(*sizes), block_size=block_size)


@pytest.mark.parametrize("name", MASKS)
def test_rows_in_halves(name):
    tensors = qkv(heads=4, kv_heads=2, batch=2, q_len=300, kv_len=270)
    same(MASKS[name], tensors, MASKS[name].dense(300, 270, batch=2, heads=4), block_size=128)


def test_which_rows_run_in_halves(monkeypatch):
    """Those whose halves read fewer keys: of a window all, of a causal mask the first, of whole blocks none."""
    monkeypatch.setattr(row_batches, "FINE", 64)

    def queries(mask, block_size=128):
        (rows,) = row_batches.finer_rows(fs.block_map(mask, 1024, block_size=block_size))
        assert [row.q[0] for row in rows[1:]] == [row.q[1] for row in rows[:-1]]
        return [row.queries for row in rows]

    assert queries(fs.causal_window(256)) == [64] * 16
    assert queries(fs.causal()) == [64] * 4 + [128] * 6
    assert queries(MASKS["all"]) == [128] * 8
    assert queries(fs.causal_window(256), 64) == [64] * 16  # not finer than asked for


def test_scores_of_dropped_pairs_are_never_seen():
    mask = fs.mask(lambda q, kv: (kv % 7 != 3) & (q >= kv))
    logs = fs.score(lambda score, q, kv: score - torch.log(q - kv + 1.0))  # nan or inf where q < kv
    q, k, v = qkv()
    k[:, :, 3::7] = torch.nan
    here, there = torch.arange(90)[:, None], torch.arange(90)
    keep, distance = mask.dense(90), torch.log((here - there + 1.0).clamp(min=1))
    wanted, _ = dense(keep, q, k.nan_to_num(), v, lambda s: s - distance)
    torch.testing.assert_close(fs.compile(fs.Attention(mask, [logs]), backend="blocks")(q, k, v), wanted)


predicates = st.recursive(
    comparisons | banded | flags,
    lambda inner: st.tuples(st.sampled_from(["({} & {})", "({} | {})", "({} ^ {})"]), inner, inner).map(
        lambda x: type(x[1])(x[0].format(x[1].ours, x[2].ours), x[0].format(x[1].python, x[2].python))
    ),
    max_leaves=4,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
@given(predicates, st.integers(1, 70), st.integers(0, 9), st.sampled_from([8, 16, (16, 32), (32, 8)]), st.booleans())
def test_random_masks(written, length, seed, block_size, exact):
    held = {name: x for name, x in tables(length, 2, 4, seed).items() if name in re.findall(r"\w+", written.ours)}
    mask = fs.Mask(fs.parse(DECLARED + written.ours), "random")
    keep = mask.dense(length, batch=2, heads=4, **held)
    tensors = qkv(heads=4, kv_heads=2, batch=2, q_len=length)
    attend = fs.compile(mask, backend="blocks", block_size=block_size, exact=exact)
    mine = gradients(lambda q, k, v: attend(q, k, v, return_lse=True, **held), tensors)
    for one, wanted in zip(mine, gradients(lambda q, k, v: dense(keep, q, k, v), tensors), strict=True):
        torch.testing.assert_close(one, wanted, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores(dtype):
    tensors = qkv(heads=4, kv_heads=2, batch=2, dtype=dtype)
    slope = fs.score(lambda score, h, b, q, kv: score - (h + 1) * 0.125 * abs(q - kv) + b * 0.5)
    cap = fs.score(lambda score: 5 * torch.tanh(score / 5))
    q, kv = torch.arange(90)[:, None], torch.arange(90)
    head, number = torch.arange(4).view(4, 1, 1), torch.arange(2).view(2, 1, 1, 1)
    spec = fs.Attention(mask=fs.causal(), scores=[slope, cap], scale=0.3)

    def scored(s):
        return 5 * torch.tanh((s - (head + 1) * 0.125 * abs(q - kv) + number * 0.5) / 5)

    same(spec, tensors, q >= kv, scored, scale=0.3)


def test_tensors_that_scores_read_have_gradients():
    table = fs.Input("table", ("heads", 41), float)
    bias = fs.Input("bias", ("batch", "heads", "q_len", "kv_len"), float)
    near = fs.score(lambda score, h, q, kv: score + table[h, torch.clamp(q - kv, -20, 20) + 20])
    full = fs.score(lambda score, b, h, q, kv: score * bias[b, h, q, kv])
    generator = torch.Generator().manual_seed(1)
    held = [torch.randn(size, generator=generator) for size in ((4, 41), (2, 4, 90, 90))]
    distance = torch.clamp(torch.arange(90)[:, None] - torch.arange(90), -20, 20) + 20
    same(
        fs.Attention(fs.causal_window(50), [near, full]),
        [*qkv(heads=4, kv_heads=2, batch=2), *held],
        fs.causal_window(50).dense(90),
        lambda s, table, bias: (s + table[:, distance]) * bias,
        read=("table", "bias"),
    )


def test_orders():
    canvas = fs.Canvas(h=9, w=10)
    near = fs.mask(lambda q, kv: ((q.h - kv.h).abs() <= 2) & ((q.w - kv.w).abs() <= 3), canvas=canvas)
    for order in (fs.tiled(canvas, h=4, w=4), fs.striped(4)):
        same(near, qkv(), near.dense(90), order=order, block_size=16)


def test_documents_given_at_the_call():
    ids = torch.randint(0, 5, (3, 90), generator=torch.Generator().manual_seed(3)).sort(-1).values
    keep = (ids[:, None, :, None] == ids[:, None, None, :]) & (torch.arange(90)[:, None] >= torch.arange(90))
    same(fs.document() & fs.causal(), qkv(batch=3), keep, document_id=ids, block_size=16)


@pytest.mark.parametrize("exact", [True, False])
def test_a_map_bounded_on_the_device_hides_no_difference_between_heads(exact):
    """A load by both sides is open in every head alike, and the masks differ."""
    table = torch.rand(3, 64, generator=torch.Generator().manual_seed(2)) < 0.5
    mask = fs.mask(lambda h, q, kv: table[h, (q * 5 + kv * 3) % 64])
    tensors = qkv(heads=3)
    out = fs.compile(mask, backend="blocks", exact=exact, block_size=16)(*tensors)
    torch.testing.assert_close(out, dense(mask.dense(90, heads=3), *tensors)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    tensors = qkv(heads=4, kv_heads=2, q_len=150, dtype=dtype)
    attend = fs.compile(fs.causal_window(40), backend="blocks", block_size=32)
    mine = gradients(lambda *x: attend(*x, return_lse=True), tensors)
    wanted = gradients(lambda *x: dense(fs.causal_window(40).dense(150), *x), tensors)
    assert mine[0].dtype == dtype and mine[1].dtype == torch.float32
    for one, other in zip(mine, wanted, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=0.03, rtol=0.03)


@pytest.mark.parametrize("weight", [None, fs.sink_logit(0.5), fs.sigmoid_weight(-1.0), fs.weights.taylor_weight()])
def test_gradcheck(weight):
    tensors = [x.requires_grad_() for x in qkv(q_len=9, heads=2, kv_heads=1, dim=3)]
    spec = fs.Attention(MASKS["late"] | fs.causal_window(3), [fs.softcap(3.0)], weight=weight)
    attend = fs.compile(spec, backend="blocks", block_size=4)
    lse = weight is None or weight.normalised
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, return_lse=lse), tensors)


def test_strided_inputs_and_gradients_of_some():
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv(heads=4, kv_heads=2))
    same(fs.causal(), [q, k, v], fs.causal().dense(90))
    k.requires_grad_()
    out = fs.compile(fs.causal(), backend="blocks")(q, k, v)
    (gradient,) = torch.autograd.grad(out.sum(), k)
    (wanted,) = torch.autograd.grad(dense(fs.causal().dense(90), q, k, v)[0].sum(), k)
    torch.testing.assert_close(gradient, wanted)


class Largest(TorchDispatchMode):
    """The most elements that any operation returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("name", ["causal", "scattered", "all"])
def test_no_tensor_has_all_pairs(name, monkeypatch):
    """Storages of both passes are those of inputs and of batches, at a length whose pairs are 64 times as many."""
    monkeypatch.setattr(row_batches, "PAIRS", 1 << 14)
    tensors = [x.requires_grad_() for x in qkv(heads=1, q_len=1024, dtype=torch.float32)]
    attend = fs.compile(MASKS[name], backend="blocks", block_size=64)
    attend.block_map(1024, heads=1)
    with Largest() as largest:
        out, lse = attend(*tensors, return_lse=True)
        (out.sum() + lse.sum()).backward()
    assert 0 < largest.elements <= 1 << 16


def test_inside_torch_compile_there_is_no_graph_break():
    attend = fs.compile(fs.causal(), backend="blocks", block_size=32)
    whole = torch.compile(lambda q, k, v: attend(q * 2, k, v, return_lse=True), backend="aot_eager", fullgraph=True)
    tensors = qkv()
    mine, wanted = (gradients(f, tensors) for f in (whole, lambda q, k, v: dense(fs.causal().dense(90), q * 2, k, v)))
    for one, other in zip(mine, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_captured_tensors_that_a_compiled_model_changes():
    """The block map is made of them: in the model it is an error, between its passes torch's own."""
    q, k, v = (torch.randn(1, 1, 40, 16, requires_grad=True) for _ in range(3))
    ids, others = (torch.arange(40)[None] // size for size in (20, 7))
    attend = fs.compile(fs.mask(lambda b, q, kv: ids[b, q] == ids[b, kv]), backend="blocks", block_size=16)

    def changing(others, *tensors):
        ids.copy_(others)
        return attend(*tensors)

    with pytest.raises(fs.FlexSpecError, match="FS042.*compiled model changes `ids`"):
        torch.compile(changing, backend="aot_eager", fullgraph=True)(others, q, k, v)
    out = torch.compile(lambda *x: attend(*x), backend="aot_eager", fullgraph=True)(q, k, v)
    torch.testing.assert_close(out, attend(q, k, v))
    ids.copy_(torch.arange(40)[None] // 3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_scores_are_differentiated_inside_torch_compile():
    """By autograd, inside an operator."""
    found = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, backend="aot_eager", fullgraph=True)):
        tensors, slopes = [x.requires_grad_() for x in qkv()], torch.ones(2, dtype=torch.float64, requires_grad=True)
        spec = fs.Attention(fs.causal(), [fs.alibi(slopes), fs.softcap(2.0)])
        attend = fs.compile(spec, backend="blocks", block_size=32)
        wrap(lambda *x, attend=attend: attend(*x))(*tensors).square().sum().backward()
        found.append([x.grad for x in (*tensors, slopes)])
    for one, other in zip(*found, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, other)


def test_a_call_under_inference_mode_serves_training_later():
    attend = fs.compile(fs.Attention(fs.causal(), [fs.alibi()]), backend="blocks", block_size=32)
    with torch.inference_mode():
        attend(*qkv())
    tensors = [x.requires_grad_() for x in qkv()]
    attend(*tensors).sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in tensors)


def test_a_tensor_of_the_scores_that_changed_before_the_backward_pass_is_an_error():
    bias = torch.randn(90)
    attend = fs.compile(fs.Attention(fs.causal(), [fs.score(lambda score, kv: score + bias[kv])]), backend="blocks")
    out = attend(*(x.requires_grad_() for x in qkv()))
    bias += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


CPU = {
    "a forward pass": ({}, "flex"),
    "gradients": ({"requires_grad": True}, "blocks"),
    "an lse": ({"return_lse": True}, "blocks"),
    "one query": ({"q_len": 1}, "blocks"),
    "float64": ({"dtype": torch.float64}, "blocks"),
    "no compiler": ({"CXX": "no-such-compiler"}, "blocks"),
    "a weight that needs the lse": ({"weight": fs.sink_logit(0.5)}, "blocks"),
}


@pytest.mark.parametrize("name", CPU)
def test_auto_on_a_cpu_takes_what_is_quicker_and_does_not_warn(name, monkeypatch):
    options, wanted = CPU[name]
    if "CXX" in options:
        monkeypatch.setenv("CXX", options["CXX"])
    tensors = qkv(q_len=options.get("q_len", 40), kv_len=40, dtype=options.get("dtype", torch.float32))
    tensors = [x.requires_grad_(options.get("requires_grad", False)) for x in tensors]
    attend = fs.compile(fs.Attention(fs.causal(), weight=options.get("weight")))
    taken = []

    def noted(name):
        return lambda call: (taken.append(name), BLOCKS.run(call))[1]

    ran = [replace(each, run=noted(each.name)) for each in BACKENDS]
    monkeypatch.setattr(registry, "BLOCKS", next(each for each in ran if each.name == "blocks"))
    attend.backends = tuple(ran)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attend(*tensors, return_lse=options.get("return_lse", False))
    assert taken == [wanted]
