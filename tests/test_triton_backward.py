"""Gradients of our own kernels against autograd of the reference in float64."""

from __future__ import annotations

import pytest
import torch
from test_triton import CANVAS, DEVICE, MASKS, SCORES, TOLERANCE, qkv
from torch.utils.checkpoint import checkpoint

import flexspec as fs


def gradients(attend, tensors, weights, lse_weights, **values):
    """Of a weighted sum of the output and of the finite lse."""
    out, lse = attend(*tensors[:3], return_lse=True, **values)
    loss = (out * weights.to(out)).sum() + (lse * lse_weights.to(lse)).masked_fill(lse.isinf(), 0).sum()
    return torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)


def same_gradients(spec, q, k, v, block_size=32, order=None, **values):
    """Of q, k and v."""
    attend = fs.compile(spec, backend="triton", block_size=block_size, order=order)
    exact = fs.compile(spec, backend="reference", order=order)
    weights, lse_weights = torch.randn(*q.shape[:3], v.shape[3]), torch.randn(q.shape[:3])
    mine, theirs = ([x.detach().to(kind).requires_grad_() for x in (q, k, v)] for kind in (q.dtype, torch.float64))
    found = gradients(attend, mine, weights, lse_weights, **values)
    wanted = gradients(exact, theirs, weights, lse_weights, **values)
    near = 3 * TOLERANCE[q.dtype]
    for x, y in zip(found, wanted, strict=True):
        assert x.dtype == q.dtype
        torch.testing.assert_close(x.double(), y, atol=near, rtol=near)


@pytest.mark.parametrize("name", MASKS)
def test_masks(name):
    if name == "documents":  # their ids are those of two sequences of 90 tokens
        same_gradients(MASKS[name], *qkv(90, heads=1, kv_heads=1))
    else:
        same_gradients(MASKS[name], *qkv(50, heads=2, kv_heads=1, batch=2 if name == "by batch" else 1))


@pytest.mark.parametrize("name", SCORES)
def test_scores(name):
    some = SCORES[name] if isinstance(SCORES[name], list) else [SCORES[name]]
    same_gradients(fs.Attention(mask=fs.causal_window(30), scores=some), *qkv(50, heads=4, kv_heads=4, batch=1))


@pytest.mark.parametrize(("sizes", "block_size"), [((1, 70), 32), ((33, 7), 16), ((40, 75), (32, 64))])
def test_lengths(sizes, block_size):
    same_gradients(fs.sink_window(sink=3, window=20), *qkv(*sizes, batch=1), block_size=block_size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("head_dim", "v_dim"), [(80, 80), (40, 72)])
def test_channels(dtype, head_dim, v_dim):
    same_gradients(fs.causal(), *qkv(40, 35, 3, 1, head_dim=head_dim, v_dim=v_dim, dtype=dtype, batch=1))


def test_orders_and_strides():
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv(70, batch=1, heads=1, kv_heads=1))
    mask = fs.neighborhood(CANVAS, window={"t": 1, "h": 3, "w": 5})
    same_gradients(mask, q, k, v, order=fs.tiled(CANVAS, t=1, h=2, w=4))


def test_values_given_at_the_call():
    window = fs.mask(lambda q, kv, *, window=8: (q >= kv) & (q - kv < window))
    q, k, v = qkv(40, heads=1, kv_heads=1, batch=1)
    for size in (5, 33):
        same_gradients(window & fs.document(), q, k, v, window=size, document_id=torch.arange(40)[None] // size)


def test_queries_that_keep_nothing():
    """Their gradients are 0, whatever comes back for their lse, and they add nothing to those of the keys."""
    tensors = [x.requires_grad_() for x in qkv(40, batch=1, heads=1, kv_heads=1)]
    attend = fs.compile(fs.padding([20]), backend="triton", block_size=16)
    out, lse = attend(*tensors, return_lse=True)
    torch.autograd.backward((out, lse), (torch.ones_like(out), torch.full_like(lse, torch.nan).where(lse.isinf(), lse)))
    for x in tensors:
        assert x.grad[:, :, 20:].eq(0).all() and x.grad[:, :, :20].isfinite().all()


SMALL = fs.Canvas(h=5, w=5)
SCALE = fs.Input("scale", ("_",), "float")
PAIRS = fs.Input("pairs", ("_", "_"), "float")
GAIN = fs.Input("gain", ("batch", "heads"), "float")
READ = {
    "relative bias": (fs.relative_bias, (4, 21)),
    "slopes": (fs.alibi, (4,)),
    "key gain": (fs.key_gain, (4, 50)),
    "before a cap": (lambda table: fs.relative_bias(table) + fs.softcap(2.0), (4, 21)),
    "twice": (
        lambda x: fs.score(lambda score, q, kv: score * PAIRS[q % 3, kv % 5] + PAIRS[kv % 3, 2])(pairs=x),
        (3, 5),
    ),
    "one number": (lambda x: fs.score(lambda score: score * SCALE[0])(scale=x), (1,)),
    "a captured number": (lambda x: fs.score(lambda score: score * x), ()),
    "one for all of a batch": (lambda x: fs.score(lambda score, b, h: score * GAIN[b, h])(gain=x), (1, 4)),
}


@pytest.mark.parametrize("name", READ)
def test_tensors_that_scores_read(name):
    make, shape = READ[name]
    table = torch.rand(shape, generator=torch.Generator().manual_seed(2)) + 0.5
    q, k, v = qkv(50, heads=4, kv_heads=2, batch=2 if "batch" in name else 1)
    found = []
    for backend, kind in (("triton", torch.float32), ("reference", torch.float64)):
        leaf = table.to(DEVICE, kind, copy=True).requires_grad_()
        attend = fs.compile(fs.Attention(fs.causal_window(30), [make(leaf)]), backend=backend, block_size=32)
        out, lse = attend(*(x.to(kind).requires_grad_() for x in (q, k, v)), return_lse=True)
        ((out * q.to(kind)).sum() + lse.sum()).backward()
        found.append(leaf.grad.double())
    torch.testing.assert_close(*found, atol=2e-4, rtol=2e-4)


class Model(torch.nn.Module):
    """Two layers with a trained bias each."""

    def __init__(self, backend, checkpointed=False):
        super().__init__()
        torch.manual_seed(3)
        self.tables = torch.nn.ParameterList(torch.randn(2, 9) for _ in range(2))
        self.mixes = torch.nn.ModuleList(torch.nn.Linear(32, 96) for _ in range(2))
        self.attends = [
            fs.compile(fs.Attention(fs.causal(), [fs.relative_bias(table)]), backend=backend, block_size=32)
            for table in self.tables
        ]
        self.checkpointed = checkpointed

    def layer(self, x, mix, attend):
        q, k, v = mix(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        return x + attend(q, k, v).transpose(1, 2).flatten(2)

    def forward(self, x):
        for mix, attend in zip(self.mixes, self.attends, strict=True):
            if self.checkpointed:
                x = checkpoint(self.layer, x, mix, attend, use_reentrant=False)
            else:
                x = self.layer(x, mix, attend)
        return x.square().sum()


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_model(checkpointed):
    x = torch.randn(1, 40, 32, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    mine, exact = (Model(*how).to(DEVICE) for how in (("triton", checkpointed), ("reference",)))
    for model in (mine, exact):
        model(x).backward()
    for a, b in zip(mine.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=2e-3, rtol=2e-3)


def test_a_compiled_model():
    """Whole, with its layers as operators; the same kernels run."""
    x = torch.randn(1, 40, 32, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    plain, model = (Model("triton").to(DEVICE) for _ in range(2))
    plain(x).backward()
    torch.compile(model, backend="aot_eager", fullgraph=True)(x).backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_a_compiled_call_with_everything():
    """An order, an lse, and at the call an integer, a float, ids and a trained table that serves both sequences."""
    window = fs.mask(lambda q, kv, *, window=8: (q - kv).abs() < window)
    scores = fs.score(lambda score, b, h, *, factor=1.0: score * GAIN[b, h] * factor)
    spec = fs.Attention(window & fs.document(), [scores])
    attend = fs.compile(spec, backend="triton", block_size=16, order=fs.tiled(SMALL, h=2, w=4))
    ids = (torch.arange(25)[None] // 14).to(DEVICE)
    found = []
    for run in (attend, torch.compile(lambda *x, **values: attend(*x, **values), backend="aot_eager", fullgraph=True)):
        leaves = [x.requires_grad_() for x in qkv(25, heads=2, kv_heads=1)]
        gain = torch.ones(1, 2, device=DEVICE, requires_grad=True)
        out, lse = run(*leaves, return_lse=True, window=10, factor=0.5, document_id=ids, gain=gain)
        (out.square().sum() + lse.sum()).backward()
        found.append([out, lse, *(x.grad for x in (*leaves, gain))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_a_mistake_inside_a_compiled_model():
    attend = torch.compile(fs.compile(fs.document(), backend="triton"), backend="aot_eager")
    with pytest.raises(fs.FlexSpecError, match="FS020"):
        attend(*qkv(40, batch=1))
