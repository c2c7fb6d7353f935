"""The backward kernels with the other side's tiles by descriptors (TMA): against gradients of a dense softmax in
float64, and the same bits as with pointers.
"""

import json

import pytest
import torch
from flexspec.compiler.backends.triton import autograd, launch, tuning
from flexspec.compiler.backends.triton.configs import TABLES, config_of
from flexspec.compiler.blocks.grid import Grid
from test_aot import output, started
from test_triton import DEVICE, TOLERANCE, qkv
from test_triton_descriptors import HOLES, moved
from test_triton_lists import BIAS, CASES, SCORES, biased, dense

import flexspec as fs

KERNELS = ("backward_q", "backward_kv", "backward_fused")


@pytest.fixture
def described(monkeypatch):
    """Backward passes by descriptors; returns for each tensor that asked whether it may be described."""
    choose, alike, answers = tuning.config_of, launch.described_alike, []

    def config_of(kernel, *given):
        alike = "backward_kv" if kernel == "backward_fused" else kernel  # which has tiles for some GPUs only
        return choose(alike, *given)._replace(tma=kernel in KERNELS)

    monkeypatch.setattr(tuning, "config_of", config_of)
    monkeypatch.setattr(launch, "described_alike", lambda tensor: (answers.append(alike(tensor)), answers[-1])[1])
    return answers


@pytest.fixture(params=[None, False], ids=["two kernels", "one pass"])
def deterministic(request, monkeypatch):
    monkeypatch.setattr(autograd, "has_fused", lambda *_: True)
    return request.param


def gradients(call, tensors):
    """Of a weighted sum of the output and of the finite lse. What lies behind the output's gradient is no number."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out, lse = call(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device).view(out.shape)
    behind = torch.nn.functional.pad(weights.to(out), (0, 0, 0, 9), value=torch.nan)[:, :, :-9]
    of_lse = weights[..., 0].to(lse).masked_fill(lse.isinf(), 0.0)
    return torch.autograd.grad((out, lse), leaves, (behind, of_lse))


def ours(spec, tensors, **options):
    attend = fs.compile(spec, backend="triton", **options)
    return gradients(lambda *each: attend(*each, return_lse=True), tensors)


def compare(spec, tensors, keep, score=lambda s: s, **options):
    """Of our kernels and of a dense softmax; returns ours."""
    found = ours(spec, tensors, **options)
    wanted = gradients(lambda *each: dense(*each, keep, score), [x.double() for x in tensors])
    near = 3 * TOLERANCE[tensors[0].dtype]
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.double(), other, atol=near, rtol=near)
    return found


@pytest.mark.parametrize("listed", [True, False], ids=["lists", "runs"])
@pytest.mark.parametrize("name", ["documents", "blocks with holes, ragged", "blocks beyond a tile"])
def test_masks(name, listed, deterministic, described, monkeypatch):
    mask, keep, order, block_size = CASES[name]
    monkeypatch.setattr(autograd, "takes_lists", lambda *_: listed)
    tensors = qkv(*keep.shape[1:], heads=max(2, len(keep)), kv_heads=1, batch=1, dtype=torch.float16)
    options = {"block_size": block_size, "order": order, "deterministic": deterministic}
    found = compare(mask, tensors, keep, **options)
    assert described == [True, True] * (2 if deterministic is None else 1)
    monkeypatch.setattr(launch, "described_alike", lambda tensor: False)
    assert all(map(torch.equal, found, ours(mask, tensors, **options)))  # the same sums in the same order


@pytest.mark.parametrize(
    ("head_dim", "v_dim", "dtype"), [(80, 96, torch.bfloat16), (192, 24, torch.float16), (8, 72, torch.float32)]
)
def test_scores_groups_and_parts_of_the_channels(head_dim, v_dim, dtype, deterministic, described):
    mask, keep = HOLES
    tensors = qkv(*keep.shape[1:], heads=4, kv_heads=2, head_dim=head_dim, v_dim=v_dim, batch=2, dtype=dtype)
    spec = fs.Attention(mask, SCORES)
    compare(spec, tensors, keep, biased, block_size=32, deterministic=deterministic)
    assert all(described)


def test_a_table_that_a_score_reads(deterministic, described):
    mask, keep = HOLES
    q, k, v = qkv(*keep.shape[1:], heads=4, kv_heads=2, batch=1)
    table = BIAS.to(DEVICE, copy=True).requires_grad_()
    spec = fs.Attention(mask, [fs.relative_bias(table)])
    fs.compile(spec, backend="triton", block_size=32, deterministic=deterministic)(q, k, v).square().sum().backward()
    wide = table.detach().double().requires_grad_()
    distance = torch.arange(keep.shape[1])[:, None] - torch.arange(keep.shape[2])
    near = distance.clamp(-10, 10) + 10
    dense(q, k, v, keep, lambda s: s + wide[:, near])[0].square().sum().backward()
    torch.testing.assert_close(table.grad.double(), wide.grad, atol=1e-3, rtol=1e-3)
    assert all(described)


@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 70), (33, 7), (40, 75)])
def test_what_lies_behind_the_last_token_is_not_read(q_len, kv_len, deterministic, described):
    longer = [torch.nn.functional.pad(x, (0, 0, 0, 9), value=torch.nan) for x in qkv(q_len, kv_len, 4, 2, batch=1)]
    tensors = [x[:, :, :-9] for x in longer]
    keep = torch.arange(q_len)[:, None] + 3 >= torch.arange(kv_len)
    compare(fs.causal(3), tensors, keep[None], block_size=(32, 16), deterministic=deterministic)
    assert all(described)


@pytest.mark.parametrize(
    ("which", "answers"),
    [("q", [True, True, False]), ("k", [False, True, True]), ("v", [True, False, True, True])],
)
def test_tensors_that_may_not_be_described_come_by_pointers(which, answers, described):
    """`backward_q` asks for k and v, `backward_kv` for q and the output's gradient."""
    mask, keep = HOLES
    tensors = dict(zip("qkv", qkv(*keep.shape[1:], heads=4, kv_heads=2, batch=1, dtype=torch.float16), strict=True))
    tensors[which] = moved(tensors[which])
    compare(mask, list(tensors.values()), keep, block_size=32)
    assert described == answers


def test_one_gradient_for_the_whole_output(described):
    """Which a sum gives: its channels have no distance."""
    mask, keep = HOLES
    tensors = [x.requires_grad_() for x in qkv(*keep.shape[1:], heads=4, kv_heads=2, batch=1)]
    found = torch.autograd.grad(fs.compile(mask, backend="triton", block_size=32)(*tensors).sum(), tensors)
    for mine, wanted in zip(found, torch.autograd.grad(dense(*tensors, keep)[0].sum(), tensors), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=1e-4)
    assert described == [True, True, True, False]


@pytest.mark.parametrize("kernel", KERNELS)
def test_tiles_of_few_rows_come_by_pointers(kernel):
    """Fewer than four warps would wait for each tile; and candidates of the tuner have both kinds."""
    q, _, v = qkv(1, head_dim=64, v_dim=64, dtype=torch.float16)
    small, large = (config_of(kernel, "sm_90", Grid(500, 500, size, size), q, v) for size in (32, 128))
    assert large.tma and not small.tma and small.warps < 4
    each = tuning.candidates(kernel, Grid(500, 500, 128, 128), large)
    assert {one.tma for one in each} == {True, False} and not any(one.late for one in each)


BUILT = """
import json, flexspec as fs
attend = fs.compile(fs.causal() & fs.sliding_window(200), backend="triton", deterministic={deterministic})
for target in ("sm_90", "sm_100"):
    for kernel in attend.aot(target, head_dim=64, heads=4, q_len=512).kernels:
        print(json.dumps([target, kernel.name, kernel.config.tma, kernel.files["sass"].count("UTMALDG"), kernel.flaws]))
"""


@pytest.mark.parametrize("deterministic", [None, False])
def test_compiled_kernels_load_by_descriptors(deterministic):
    lines = output(started("-c", BUILT.format(deterministic=deterministic))).splitlines()
    rows = [json.loads(line) for line in lines]
    wanted = {(target, "forward") for target in ("sm_90", "sm_100")}
    for target in ("sm_90", "sm_100"):
        fused = deterministic is False and target in TABLES["backward_fused"]
        wanted |= {(target, name) for name in (KERNELS[2:] if fused else KERNELS[:2])}
    assert {(target, name) for target, name, tma, *_ in rows if tma} == wanted
    assert all(count > 0 and not flaws for _, _, tma, count, flaws in rows if tma)
