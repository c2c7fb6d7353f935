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
    same_gradients(MASKS[name], *qkv(90, heads=4, kv_heads=2))


@pytest.mark.parametrize("name", SCORES)
def test_scores(name):
    some = SCORES[name] if isinstance(SCORES[name], list) else [SCORES[name]]
    same_gradients(fs.Attention(mask=fs.causal_window(40), scores=some), *qkv(70, heads=4))
