"""Parts of attention over disjoint keys, merged, against attention over all keys at once."""

import random

import pytest
import torch

import flexspec as fs


def part(q, k, v, keep):
    """Output and lse over the kept keys, -inf and 0 where there is none: torch in float64."""
    logits = (q @ k.mT).masked_fill(~keep, -torch.inf)
    some = keep.any(-1, keepdim=True)
    out = torch.where(some, torch.softmax(torch.where(some, logits, 0.0), -1) @ v, 0.0)
    return out, torch.where(some[..., 0], torch.logsumexp(torch.where(some, logits, 0.0), -1), -torch.inf)


def problem(parts, dtype=torch.float64):
    generator = torch.Generator().manual_seed(parts)
    q, k, v = (torch.randn(2, 3, n, 4, generator=generator, dtype=dtype) for n in (6, 21, 21))
    keep = torch.rand(2, 3, 6, 21, generator=generator) < 0.3
    keep[:, :, 2] = False  # a query that keeps nothing anywhere
    keep[:, :, 3, :15] = False
    owner = torch.randint(0, parts, (21,), generator=generator)
    return (q, k, v), keep, [keep & (owner == number) for number in range(parts)]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_merged_parts_and_their_gradients_are_those_of_the_whole(count):
    tensors, keep, keeps = problem(count)
    results = []
    for whole in (False, True):
        leaves = [x.clone().requires_grad_() for x in tensors]
        out, lse = part(*leaves, keep) if whole else fs.merge(*(part(*leaves, each) for each in keeps))
        loss = (out * torch.arange(24.0).view(6, 4)).sum() + (torch.where(lse > -torch.inf, lse, 0.0) ** 2).sum()
        results.append((out, lse, *torch.autograd.grad(loss, leaves)))
    for mine, wanted in zip(*results, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-12, rtol=1e-12)
    assert (results[0][0][:, :, 2] == 0).all() and (results[0][1][:, :, 2] == -torch.inf).all()


def test_gradcheck_through_outputs_and_lses():
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [(5, 3), (5,)] * 3]
    made[1][2] = made[3][2] = -torch.inf
    made = [x.requires_grad_(bool(x.isfinite().all())) for x in made]
    assert torch.autograd.gradcheck(lambda *x: fs.merge(*zip(x[::2], x[1::2], strict=True)), made)


def test_in_any_order_and_grouping():
    tensors, _, keeps = problem(5, torch.float32)
    parts = [part(*tensors, keep) for keep in keeps]
    out, lse = fs.merge(*parts)
    random.Random(1).shuffle(parts)
    running = parts[0]
    for each in parts[1:]:
        running = fs.merge(running, each)
    for other in (running, fs.merge(fs.merge(*parts[:3]), fs.merge(*parts[3:]))):
        torch.testing.assert_close(other[0], out, atol=3e-6, rtol=1e-5)
        torch.testing.assert_close(other[1], lse, atol=3e-6, rtol=1e-5)


def test_large_scores_and_what_others_leave_in_rows_that_keep_nothing():
    out = torch.tensor([[torch.nan], [1.0]], requires_grad=True)
    other = torch.tensor([[2.0], [3.0]], requires_grad=True)
    merged, lse = fs.merge((out, torch.tensor([-torch.inf, 5e4])), (other, torch.tensor([-3e38, 5e4])))
    assert merged.tolist() == [[2.0], [2.0]] and lse[0] == -3e38
    merged.sum().backward()
    assert out.grad.tolist() == [[0.0], [0.5]] and other.grad.tolist() == [[1.0], [0.5]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype(dtype):
    parts = [(torch.randn(4, 3).to(dtype), torch.randn(4)) for _ in range(2)]
    out, lse = fs.merge(*parts)
    assert out.dtype == dtype and lse.dtype == torch.float32


ROWS = torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5)
BAD = {
    "no part": (),
    "a tensor": (ROWS[0],),
    "an lse that was not asked for": ((ROWS[0], None), ROWS),
    "integers": ((ROWS[0].long(), ROWS[1]),),
    "an lse with a channel": ((ROWS[0], ROWS[1][..., None]),),
    "other lengths": (ROWS, (torch.zeros(1, 2, 6, 4), torch.zeros(1, 2, 6))),
    "other dtypes": (ROWS, (ROWS[0].bfloat16(), ROWS[1])),
}


@pytest.mark.parametrize("name", BAD)
def test_parts_that_do_not_fit(name):
    with pytest.raises(fs.FlexSpecError, match="FS040") as caught:
        fs.merge(*BAD[name])
    assert "return_lse=True" in caught.value.fix
