"""Gradients in a fixed order, in one pass with no order, and over lists: against autograd of dense torch in float64."""

import json
import math
import pickle
import re
from dataclasses import replace

import pytest
import torch
from flexspec.compiler.backends.blocks import fixed_order
from flexspec.compiler.backends.flex import FLEX
from flexspec.compiler.backends.triton import autograd, configs, rows
from flexspec.compiler.backends.triton.aot import run_all
from flexspec.compiler.backends.triton.launch import launch_of
from test_aot import output, started
from test_triton import DEVICE, TOLERANCE, qkv
from test_triton_lists import CASES, of_blocks

import flexspec as fs

TABLE = torch.linspace(-1, 1, 4 * 21).view(4, 21)


def dense(q, k, v, keep, score=lambda s: s):
    """Output and lse; a query that keeps nothing has 0 and -inf."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    s = score(q @ k.mT / math.sqrt(q.shape[3])).masked_fill(~keep.to(q.device), -math.inf)
    lse = s.logsumexp(-1)
    weights = (s - lse.masked_fill(lse.isinf(), 0.0)[..., None]).exp()
    return weights @ v, lse


def gradients(attend, leaves, **values):
    """Of a weighted sum of the output and of the finite lse."""
    out, lse = attend(*leaves, **values)
    made = torch.Generator().manual_seed(5)
    weights, of_lse = (torch.randn(x.shape, generator=made).to(DEVICE) for x in (out, lse))
    loss = (out * weights.to(out)).sum() + (lse * of_lse).masked_fill(lse.isinf(), 0).sum()
    return torch.autograd.grad(loss, leaves)


def leaves_of(*tensors, dtype=None):
    return [x.detach().to(DEVICE, dtype or x.dtype, copy=True).requires_grad_() for x in tensors]


def same_gradients(mask, keep, tensors, deterministic, **options):
    """Of q, k and v."""
    attend = fs.compile(mask, backend="triton", deterministic=deterministic, **options)
    found = gradients(lambda *x: attend(*x, return_lse=True), leaves_of(*tensors))
    wanted = gradients(lambda *x: dense(*x, keep), leaves_of(*tensors, dtype=torch.float64))
    near = 3 * TOLERANCE[tensors[0].dtype]
    for mine, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.double(), exact.nan_to_num(), atol=near, rtol=near)


@pytest.fixture
def started_kernels(monkeypatch):
    """The names of the kernels that run."""
    names, real = [], autograd.launched
    monkeypatch.setattr(
        autograd,
        "launched",
        lambda start, kernel, *rest: (names.append(kernel.fn.__name__), real(start, kernel, *rest)),
    )
    return names


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_masks_over_runs_and_lists(name, deterministic, listed, monkeypatch, started_kernels):
    mask, keep, order, block_size = CASES[name]
    monkeypatch.setattr(autograd, "takes_lists", lambda *_: listed)
    tensors = qkv(*keep.shape[1:], heads=max(2, len(keep)), kv_heads=1, batch=1)
    same_gradients(mask, keep, tensors, deterministic, order=order, block_size=block_size)
    assert started_kernels == (["backward_q", "backward_kv"] if deterministic else ["backward_fused"])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("sizes", "block_size"), [((1, 70), 32), ((33, 7), 16), ((40, 75), (32, 64)), ((130, 67), (64, 16))]
)
def test_one_pass_at_odd_lengths_groups_and_channels(sizes, block_size, dtype, monkeypatch):
    """Tiles of fewer queries than 64, and of 64, whose products are turned in two ways."""
    monkeypatch.setitem(configs.BACKWARD_FUSED, "sm_86", {128: configs.Config(64, 32, 4, 2)})
    q_idx, kv_idx = torch.arange(sizes[0])[:, None], torch.arange(sizes[1])
    keep = (q_idx >= kv_idx) & ((q_idx - kv_idx < 20) | (kv_idx < 3))
    tensors = qkv(*sizes, heads=4, kv_heads=2, head_dim=24, v_dim=40, dtype=dtype)
    same_gradients(fs.sink_window(sink=3, window=20), keep, tensors, False, block_size=block_size)


def random_spec(made):
    """A mask of random blocks with holes for each head, and which pairs it keeps."""
    blocks = torch.rand(2, 4, 5, generator=made) < 0.6
    pairs = torch.rand(70, 77, generator=made) < 0.8
    keep = blocks.repeat_interleave(18, 1)[:, :70].repeat_interleave(16, 2)[..., :77] & (
        pairs | (blocks.sum() % 2 == 0)
    )
    return fs.mask(lambda h, q, kv: keep[h, q, kv]), keep


@pytest.mark.parametrize("seed", range(4))
def test_random_masks(seed):
    mask, keep = random_spec(torch.Generator().manual_seed(seed))
    for deterministic in (False, None):
        same_gradients(mask, keep, qkv(70, 77, heads=2, kv_heads=2, batch=1, seed=seed), deterministic, block_size=16)


def test_queries_that_keep_nothing():
    for deterministic in (False, True):
        tensors = [x.requires_grad_() for x in qkv(40, batch=1, heads=1, kv_heads=1)]
        table = torch.zeros(1, 3, device=DEVICE, requires_grad=True)
        spec = fs.Attention(fs.padding([20]), [fs.relative_bias(table)])
        out, lse = fs.compile(spec, backend="triton", block_size=16, deterministic=deterministic)(
            *tensors, return_lse=True
        )
        of_lse = torch.full_like(lse, torch.nan).where(lse.isinf(), lse)
        torch.autograd.backward((out, lse), (torch.ones_like(out), of_lse))
        assert table.grad.isfinite().all() and table.grad.ne(0).any()
        for x in tensors:
            assert x.grad[:, :, 20:].eq(0).all() and x.grad[:, :, :20].isfinite().all()


GAIN, PAIRS = fs.Input("gain", ("batch", "heads"), "float"), fs.Input("pairs", ("_", "_"), "float")


def distances(s):
    return (torch.arange(s.shape[2])[:, None] - torch.arange(s.shape[3])).to(s.device)


SCORES = {
    "by distance, before a cap": (
        lambda x: [fs.relative_bias(x), fs.softcap(2.0)],
        lambda s, x: 2 * torch.tanh((s + x[:, distances(s).clamp(-10, 10) + 10]) / 2),
        (4, 21),
    ),
    "slopes": (lambda x: [fs.alibi(x)], lambda s, x: s - x[:, None, None] * distances(s).abs(), (4,)),
    "by key": (lambda x: [fs.key_gain(x)], lambda s, x: s + x[:, None, :].log(), (4, 50)),
    "by query, key, both": (
        lambda x: [
            fs.score(lambda score, q, kv: score * PAIRS[q % 3, kv % 5] + PAIRS[kv % 3, 2] + PAIRS[q % 3, 1])(pairs=x)
        ],
        lambda s, x: (
            s * x[torch.arange(50)[:, None] % 3, torch.arange(50) % 5]
            + x[torch.arange(50) % 3, 2]
            + x[torch.arange(50)[:, None] % 3, 1]
        ),
        (3, 5),
    ),
    "by batch and head": (
        lambda x: [fs.score(lambda score, b, h: score * GAIN[b, h])(gain=x)],
        lambda s, x: s * x[..., None, None],
        (1, 4),
    ),
}


@pytest.mark.parametrize("deterministic", [None, False, True])
@pytest.mark.parametrize("name", SCORES)
def test_tensors_that_scores_read(name, deterministic):
    make, score, shape = SCORES[name]
    table = torch.rand(shape, generator=torch.Generator().manual_seed(2)) + 0.5
    keep = (distances(torch.empty(1, 1, 50, 50)) >= 0).cpu()
    tensors = *qkv(50, heads=4, kv_heads=2), table

    def attend(q, k, v, x):
        spec = fs.Attention(fs.causal(), make(x))
        return fs.compile(spec, backend="triton", block_size=32, deterministic=deterministic)(q, k, v, return_lse=True)

    found = [gradients(attend, leaves_of(*tensors)) for _ in range(2)]
    wanted = gradients(
        lambda q, k, v, x: dense(q, k, v, keep, lambda s: score(s, x)), leaves_of(*tensors, dtype=torch.float64)
    )
    for mine, again, exact in zip(*found, wanted, strict=True):
        torch.testing.assert_close(mine.double(), exact, atol=2e-4, rtol=2e-4)
        assert not deterministic or torch.equal(mine, again)


def test_no_kernel_adds_to_a_table_whose_order_is_fixed(monkeypatch):
    monkeypatch.setattr(
        autograd, "score_gradients", lambda *given: [torch.full_like(x, 7.0) for x in given[-1].values()]
    )
    for deterministic in (None, False, True):
        tensors, table = leaves_of(*qkv(40, heads=4)), TABLE.clone().to(DEVICE).requires_grad_()
        spec = fs.Attention(fs.causal(), [fs.relative_bias(table)])
        fs.compile(spec, backend="triton", deterministic=deterministic)(*tensors).square().sum().backward()
        assert table.grad.eq(7).all().item() is (deterministic is True)


def kernels_of(spec, deterministic, head_dim=64, arch="sm_90", dtype=torch.bfloat16):
    """Of a training step, by name, with the functions that they are given; nothing runs."""
    q, k, v = (torch.empty((1, 4, 300, head_dim), device="meta", dtype=dtype) for _ in range(3))
    call = fs.compile(spec, backend="triton", deterministic=deterministic).call_of(q, k, v, True, "logical", {})
    seen = {}

    def start(kernel, grid, config, *args, **constants):
        seen[kernel.fn.__name__] = args

    read = {} if call.deterministic else {name: call.bound.tensors[name].to("meta") for name in call.trained}
    run_all(replace(launch_of(call, arch=arch), start=start), q, k, v, True, read)
    return {*seen} - {"forward", "deltas"}, call


def test_which_kernels_run():
    two, one = {"backward_q", "backward_kv"}, {"backward_fused"}
    for deterministic, wanted in ((None, two), (True, two), (False, one)):
        assert kernels_of(fs.causal(), deterministic)[0] == wanted
    assert kernels_of(fs.causal(), False, arch="sm_80")[0] == kernels_of(fs.causal(), False, head_dim=256)[0] == two
    assert kernels_of(fs.causal(), False, arch="sm_80", dtype=torch.float32)[0] == one
    torch.use_deterministic_algorithms(True)
    try:
        assert kernels_of(fs.causal(), None)[1].deterministic is True
        assert kernels_of(fs.causal(), False)[1].deterministic is False
    finally:
        torch.use_deterministic_algorithms(False)
    assert kernels_of(fs.causal(), None)[1].deterministic is None


def test_other_backends():
    """FlexAttention adds up the gradient of a table by atomics; blocks does not, and leaves torch's settings."""
    spec = fs.Attention(fs.causal(), [fs.relative_bias(TABLE.clone().requires_grad_())])
    (reason,) = FLEX.reasons_against(kernels_of(spec, True)[1])
    assert "no fixed order" in reason
    assert not FLEX.reasons_against(kernels_of(spec, None)[1]) and not FLEX.reasons_against(
        kernels_of(fs.causal(), True)[1]
    )
    attend = fs.compile(spec, backend="blocks", block_size=32, deterministic=True)
    found = [
        gradients(lambda *x: attend(*x, return_lse=True), leaves_of(*qkv(90, heads=4, kv_heads=2))) for _ in range(2)
    ]
    assert all(map(torch.equal, *found)) and torch.get_deterministic_debug_mode() == 0
    with fixed_order(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert pickle.loads(pickle.dumps(attend)).deterministic is True


@pytest.mark.parametrize("deterministic", [False, True])
def test_inside_a_compiled_model(deterministic):
    """The operator runs the same kernels, and gives the table the same gradient."""
    found = []
    for wrapped in (False, True):
        tensors, table = leaves_of(*qkv(40, heads=4, kv_heads=2, batch=1)), TABLE.clone().to(DEVICE).requires_grad_()
        spec = fs.Attention(fs.causal(), [fs.relative_bias(table)])
        attend = fs.compile(spec, backend="triton", block_size=32, deterministic=deterministic)
        run = (
            torch.compile(lambda *x, attend=attend: attend(*x), backend="aot_eager", fullgraph=True)
            if wrapped
            else attend
        )
        run(*tensors).square().sum().backward()
        found.append([x.grad for x in (*tensors, table)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("places", "of_rows", "of_columns"),
    [
        (lambda q, kv: q >= 0, False, False),
        (lambda q, kv: (q + kv) % 2 == 0, True, True),
        (lambda q, kv: q % 2 == 0, False, True),  # each row is one run, and each column three
        (lambda q, kv: kv % 2 == 0, True, False),
    ],
)
def test_rows_and_columns_take_lists_by_their_own_runs(places, of_rows, of_columns):
    block_map = fs.block_map(fs.mask(lambda q, kv: places(q // 128, kv // 128)), 768)
    assert rows.takes_lists(block_map, "forward") is rows.takes_lists(block_map, "backward_q") is of_rows
    assert rows.takes_lists(block_map, "backward_kv") is rows.takes_lists(block_map, "backward_fused") is of_columns


def test_a_list_of_the_backward_pass_costs_more():
    """Four blocks for a fill: a list saves the forward pass more than it costs."""
    block_map = of_blocks([0, 1, 4, 5])
    assert rows.takes_lists(block_map) and not rows.takes_lists(block_map, "backward_q")


COMPILED = """
import json, torch, flexspec as fs
table = torch.zeros(4, 21, requires_grad=True)
biased = fs.Attention(fs.causal(), [fs.relative_bias(table)])
documents = fs.causal() & fs.document((torch.arange(512) // 200)[None])
for spec, head_dim, deterministic in (
    (biased, 64, None), (biased, 64, True), (biased, 64, False), (fs.causal(), 64, True), (documents, 64, False),
    (fs.causal() & fs.sliding_window(300), 128, False), (documents, 128, False),
):
    attend = fs.compile(spec, backend="triton", deterministic=deterministic)
    report = attend.aot("sm_90", head_dim=head_dim, heads=4, q_len=512)
    print(json.dumps([{"files": [each.ptx, each.files["sass"]], **each.facts()} for each in report.kernels]))
"""


@pytest.fixture(scope="module")
def compiled():
    """The kernels of `COMPILED`, by name, and the names of those with atomic additions. (Descriptors are exchanged.)"""
    made = [json.loads(line) for line in output(started("-c", COMPILED)).splitlines()]
    atomic = [
        {
            each["name"]
            for each in kernels
            if any(re.search(r"\b(red|atom)\.\S*add|\b(RED|ATOM)\S*ADD", text) for text in each["files"])
        }
        for kernels in made
    ]
    return [{each["name"]: each for each in kernels} for kernels in made], atomic


def test_no_atomic_operation_where_the_order_is_fixed(compiled):
    assert compiled[1][:5] == [{"backward_q"}, set(), {"backward_fused"}, set(), {"backward_fused"}]


def test_the_full_loop_of_one_pass_wastes_nothing(compiled):
    for kernels in compiled[0][4:]:
        fused = kernels["backward_fused"]
        full = fused["loops"]["full"]
        assert fused["flaws"] == [] and full["products"] == 1.0 and full["wait_depth"] >= 2 and full["local"] == 0


@pytest.mark.parametrize("deterministic", [None, False, True])
def test_integers_that_change_before_the_backward_pass(deterministic):
    """What a score loads by is as the forward pass found it, or torch tells."""
    table, groups = torch.zeros(5, requires_grad=True, device=DEVICE), torch.arange(40, device=DEVICE) % 5
    spec = fs.Attention(fs.causal(), [fs.score(lambda score, kv: score + table[groups[kv]])])
    attend = fs.compile(spec, backend="triton", block_size=16, deterministic=deterministic)
    tensors = leaves_of(*qkv(40, batch=1))
    (wanted,) = torch.autograd.grad(attend(*tensors).square().sum(), table)
    loss = attend(*tensors).square().sum()
    groups.zero_()
    if deterministic:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    else:
        torch.testing.assert_close(torch.autograd.grad(loss, table)[0], wanted)
