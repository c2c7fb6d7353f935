"""What an adversary found in the Triton backend: each case here was once a crash or a wrong result."""

import pytest
import torch
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
