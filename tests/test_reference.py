"""The reference against loops and against torch's own dense attention."""

import math
import subprocess
import sys

import pytest
import torch

import flexspec as fs


def by_loops(q, k, v, keep, score=lambda s, *at: s):
    batch, heads, q_len, dim = q.shape
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=torch.float64)
    lse = torch.full(q.shape[:3], -math.inf, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            g = h // (heads // k.shape[1])
            for i in range(q_len):
                kept = [j for j in range(k.shape[2]) if keep(b, h, i, j)]
                if not kept:
                    continue
                logits = [score(float(q[b, h, i] @ k[b, g, j]) / math.sqrt(dim), b, h, i, j) for j in kept]
                total = sum(math.exp(x) for x in logits)
                lse[b, h, i] = math.log(total)
                for x, j in zip(logits, kept, strict=True):
                    out[b, h, i] += math.exp(x) / total * v[b, g, j]
    return out, lse


def test_against_loops_with_gqa_scores_and_empty_rows():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 9, 8).double(), torch.randn(2, 2, 13, 8).double(), torch.randn(2, 2, 13, 5).double()
    mask = fs.mask(lambda b, h, q, kv: (q > kv + b) & (kv % (h + 1) == 0))
    bias = fs.score(lambda score, h, q, kv: 4 * torch.tanh(score / 4) - 0.1 * h * abs(q - kv))
    out, lse = fs.reference_attention(fs.Attention(mask=mask, scores=[bias]), q, k, v, return_lse=True)
    wanted = by_loops(
        q,
        k,
        v,
        lambda b, h, i, j: i > j + b and j % (h + 1) == 0,
        lambda s, b, h, i, j: 4 * math.tanh(s / 4) - 0.1 * h * abs(i - j),
    )
    torch.testing.assert_close(out, wanted[0])
    torch.testing.assert_close(lse, wanted[1])
    assert (out[:, :, 0] == 0).all() and (lse[:, :, 0] == -math.inf).all()


def test_gradients_are_torchs_own():
    torch.manual_seed(1)
    tensors = [torch.randn(1, 2, 12, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    mask = fs.mask(lambda q, kv: (q >= kv) & (q != 3))
    mine = torch.autograd.grad(fs.reference_attention(mask, *tensors).square().sum(), tensors)
    kept = mask.dense(12)
    dense = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=kept)
    dense = torch.where(kept.any(-1, keepdim=True), dense, 0.0)
    wanted = torch.autograd.grad(dense.square().sum(), tensors)
    for a, b in zip(mine, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_gradient_of_a_bias_table():
    table = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    spec = fs.Attention(scores=[lambda score, b, h, q, kv: score + table[torch.clamp(q - kv, -3, 3) + 3]])
    tensors = [torch.randn(1, 1, 6, 4, dtype=torch.float64) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda t: _with_table(spec, tensors, t), (table,))


def _with_table(spec, tensors, table):
    held = fs.Attention(scores=[lambda score, b, h, q, kv: score + table[torch.clamp(q - kv, -3, 3) + 3]])
    return fs.reference_attention(held, *tensors)


def test_a_nan_score_of_a_dropped_pair_is_dropped():
    spec = fs.Attention(
        mask=fs.mask(lambda q, kv: q >= kv),
        scores=[fs.score(lambda score, q, kv: score + torch.where(q < kv, float("nan"), 0.0))],
    )
    tensors = [torch.randn(1, 1, 5, 4) for _ in range(3)]
    plain = fs.reference_attention(spec.mask, *tensors)
    torch.testing.assert_close(fs.reference_attention(spec, *tensors), plain)


def test_rows_in_pieces_are_the_whole(monkeypatch):
    from flexspec.compiler.backends import reference

    tensors = [torch.randn(1, 2, 33, 4) for _ in range(3)]
    mask = fs.mask(lambda q, kv: (q + kv) % 3 != 0)
    whole = fs.reference_attention(mask, *tensors)
    monkeypatch.setattr(reference, "CHUNK", 400)
    torch.testing.assert_close(fs.reference_attention(mask, *tensors), whole)


PEAK = """
import resource, sys, torch
import flexspec as fs
from flexspec.compiler.backends import reference
torch.set_num_threads(1)
reference.CHUNK = 1 << 17
q, k, v = torch.randn(3, 1, 1, int(sys.argv[1]), 8)
fs.reference_attention(fs.causal(), *(x[:, :, :64].clone().requires_grad_() for x in (q, k, v))).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[2] == "gradients":
    fs.reference_attention(fs.causal(), *(x.requires_grad_() for x in (q, k, v))).sum().backward()
else:
    fs.reference_attention(fs.causal(), q, k, v)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("what", ["output", "gradients"])
def test_the_peak_grows_with_the_length_and_not_with_the_pairs(what):
    """KiB above the imports in a fresh process: at 6,144 tokens all pairs in float64 are 288 MiB, a chunk is 1."""
    run = subprocess.run([sys.executable, "-c", PEAK, "6144", what], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 150 * 1024
