"""Documents as intervals in the kernels: where the tokens of each are one run, no pair is asked for its document."""

import json

import numpy as np
import pytest
import torch
from flexspec.compiler.backends.triton.groups import first_and_end, with_intervals
from flexspec.compiler.backends.triton.launch import launch_of
from flexspec.compiler.simplify.spans import span_of
from test_aot import output, started
from test_triton import DEVICE, qkv

import flexspec as fs
from flexspec.evaluate import evaluate

ASCENDING = [0] * 20 + [1] * 37 + [4] * 33
ONE_RUN_EACH = [7] * 11 + [-3] * 8 + [2] * 60 + [-1] * 11
PADDING_BETWEEN = [-1] * 5 + [0] * 30 + [-1] * 9 + [1] * 31 + [-1] * 15
SHUFFLED = [1, 0, 2] * 30
DOCUMENTS = {
    "ascending": ([ASCENDING, ASCENDING[::-1]], True),
    "not ascending, one run each": ([ASCENDING, ONE_RUN_EACH], True),
    "padding between documents": ([PADDING_BETWEEN, ASCENDING], True),
    "one document": ([[3] * 90, [-1] * 90], True),
    "shuffled": ([SHUFFLED, SHUFFLED], False),
    "one of two shuffled": ([ASCENDING, SHUFFLED], False),
}


def dense(ids, q_len, kv_len, causal=True):
    """bool [batch, 1, q_len, kv_len], pair by pair."""
    kept = [
        [[row[q] == row[kv] >= 0 and (kv <= q or not causal) for kv in range(kv_len)] for q in range(q_len)]
        for row in ids
    ]
    return torch.tensor(kept)[:, None]


def expected(q, k, v, dout, kept):
    """Output and gradients of q, k, v in float64; 0 where a query keeps nothing."""
    leaves = [x.detach().cpu().double().requires_grad_() for x in (q, k, v)]
    group = q.shape[1] // k.shape[1]
    keys, values = (x.repeat_interleave(group, 1) for x in leaves[1:])
    scores = (leaves[0] @ keys.mT / q.shape[3] ** 0.5).masked_fill(~kept, -1e30)
    out = (scores.softmax(-1) * kept) @ values
    out.backward(dout.cpu().double())
    return [out.detach(), *(x.grad for x in leaves)]


def call_of(spec, q_len, kv_len=None, heads=2, batch=2, block_size=32, **values):
    q, k, v = qkv(q_len, kv_len, heads=heads, batch=batch)
    return fs.compile(spec, backend="triton", block_size=block_size).call_of(q, k, v, True, "logical", values)


def masks_of(call):
    """By side, what is asked of each pair, if anything."""
    lowered = call.lowered
    masks = {side: with_intervals(lowered.block_map, lowered.mask, side, lowered.values) for side in ("kv", "q")}
    return {side: span_of(mask, side).rest for side, (mask, _) in masks.items()}


@pytest.mark.parametrize("sizes", [(90, 90), (50, 90), (90, 33)])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents(name, sizes):
    """Output and gradients against dense attention; where documents are one run each, nothing is asked of a pair."""
    ids, are_intervals = DOCUMENTS[name]
    q, k, v = (x.requires_grad_() for x in qkv(*sizes, heads=4, kv_heads=2))
    attend = fs.compile(fs.causal() & fs.document(), backend="triton", block_size=32)
    given = torch.tensor(ids, device=DEVICE)
    out = attend(q, k, v, document_id=given)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    out.backward(dout)
    wanted = expected(q, k, v, dout, dense(ids, *sizes))
    for tensor, right in zip((out, q.grad, k.grad, v.grad), wanted, strict=True):
        torch.testing.assert_close(tensor.detach().cpu().double(), right, atol=2e-5, rtol=2e-5)
    if sizes == (90, 90):
        rests = masks_of(call_of(fs.causal() & fs.document(), *sizes, document_id=given))
        assert all((rest is None) == are_intervals for rest in rests.values()), rests


def test_other_documents_run_the_same_kernel_and_shuffled_ones_one_more():
    spec = fs.causal() & fs.document()
    rows = ASCENDING, ONE_RUN_EACH, PADDING_BETWEEN, SHUFFLED, SHUFFLED[::-1], sorted(SHUFFLED)
    launches = [launch_of(call_of(spec, 90, document_id=torch.tensor([row], device=DEVICE))) for row in rows]
    kernels = [launch.functions.mask for launch in launches]
    assert len({*kernels}) == 2 and kernels[0] == kernels[1] == kernels[2] == kernels[5] != kernels[3] == kernels[4]
    assert len({launch.columns[0] for launch in launches}) == 2
    shapes = [[getattr(x, "dtype", type(x)) for x in launch.mask_values] for launch in launches]
    assert shapes[0] == shapes[1] == shapes[2] == shapes[5]


def test_a_tensor_that_is_written_to_is_read_again():
    """The second call's documents are no intervals any more."""
    q, k, v = qkv(90, batch=1)
    attend = fs.compile(fs.document(), backend="triton", block_size=32)
    ids = torch.tensor([ASCENDING], device=DEVICE)
    for row in (ASCENDING, SHUFFLED, ASCENDING):
        ids.copy_(torch.tensor([row]))
        kept = dense([row], 90, 90, causal=False)
        wanted = expected(q, k, v, torch.zeros_like(q), kept)[0]
        torch.testing.assert_close(attend(q, k, v, document_id=ids).cpu().double(), wanted, atol=2e-5, rtol=2e-5)


def test_a_negative_id_that_is_no_padding_and_labels_by_head():
    labels = torch.tensor([[[-2] * 40 + [5] * 50, [0] * 90], [[9] * 89 + [1], [1] * 10 + [0] * 80]], device=DEVICE)
    q, k, v = qkv(90)
    out = fs.compile(fs.same_label(labels), backend="triton", block_size=32)(q, k, v)
    kept = (labels[..., :, None] == labels[..., None, :]).cpu()
    torch.testing.assert_close(
        out.cpu().double(), expected(q, k, v, torch.zeros_like(q), kept)[0], atol=2e-5, rtol=2e-5
    )
    assert masks_of(call_of(fs.same_label(labels), 90)) == {"kv": None, "q": None}


def test_decoding():
    q, k, v = qkv(1, 90)
    ids = torch.tensor([ASCENDING[::-1], [4] * 40 + ONE_RUN_EACH[:50]], device=DEVICE)
    out = fs.compile(fs.document(ids), backend="triton", block_size=16)(q, k, v)
    wanted = expected(q, k, v, torch.zeros_like(q), dense(ids.tolist(), 1, 90, causal=False))[0]
    torch.testing.assert_close(out.cpu().double(), wanted, atol=2e-5, rtol=2e-5)


LARGE = 2**62
RANDOM = {
    "ids[q] == ids[kv]": lambda ids, other, q, kv: ids[q] == ids[kv],
    "of two tensors": lambda ids, other, q, kv: ids[q] + 1 == other[kv],
    "conditions": lambda ids, other, q, kv: (ids[q] == other[kv]) & (ids[q] > 0) & (other[kv] != 2) & (q >= kv),
    "two of them": lambda ids, other, q, kv: (ids[q] == ids[kv]) & (other[q] == other[kv]) & (other[q] > 0),
    "past 64 bits": lambda ids, other, q, kv: ids[q] + LARGE == other[kv] + LARGE,
    "arithmetic": lambda ids, other, q, kv: ids[q] * 2 - q == other[kv] // 2 + kv % 2,
    "of three terms": lambda ids, other, q, kv: ids[q] + other[kv] == ids[kv] + q,
    "of both sides": lambda ids, other, q, kv: ids[q] + kv == ids[kv] + q,
}


def over(predicate, ids, other):
    return fs.mask(lambda q, kv: predicate(ids, other, q, kv))


@pytest.mark.parametrize("name", RANDOM)
def test_random_ids_keep_the_same_pairs(name):
    """The rewritten mask at each pair is the predicate at each pair, in plain integers."""
    generator, intervals = np.random.default_rng(3), 0
    for q_len, kv_len in ((7, 7), (5, 9), (9, 4), (1, 6)) * 15:
        ids, other = (generator.integers(-1, 4, max(q_len, kv_len)) for _ in range(2))
        ids, other = (np.sort(x) if generator.random() < 0.6 else x for x in (ids, other))
        held = torch.from_numpy(ids), torch.from_numpy(other)
        predicate = RANDOM[name]
        mask = over(predicate, *held)
        lowered = call_of(mask, q_len, kv_len, batch=1, block_size=16).lowered
        python = [[int(x) for x in row] for row in (ids, other)]
        truth = [[predicate(*python, q, kv) for kv in range(kv_len)] for q in range(q_len)]
        positions = {"q": torch.arange(q_len)[:, None], "kv": torch.arange(kv_len)[None]}
        for side in ("q", "kv"):
            rewritten, values = with_intervals(lowered.block_map, lowered.mask, side, lowered.values)
            kept = evaluate(rewritten, {**values, **positions}).expand(q_len, kv_len)
            assert kept.tolist() == truth
            intervals += any("." in each for each in rewritten.names)
    assert intervals > 0, "some of these are intervals"


def test_first_and_end_are_where_a_value_stands():
    """Several rows, values of either sign, positions that take no part; by Python's own search."""
    generator, intervals = np.random.default_rng(8), 0
    for _ in range(400):
        rows, sizes, low = generator.integers(1, 4), generator.integers(1, 6, 2), generator.integers(-3, 1)
        own, other = (generator.integers(low, 2, (rows, size)) for size in sizes)
        own_met, other_met = (generator.random((rows, size)) < 0.8 for size in sizes)
        wanted, one_run = [], True
        for row, i in np.argwhere(own_met):
            places = [j for j in range(sizes[1]) if other_met[row, j] and other[row, j] == own[row, i]]
            first, end = (places[0], places[-1] + 1) if places else (0, 0)
            one_run &= end - first == len(places)
            wanted.append((first, end))
        ends = first_and_end(own, own_met, other, other_met)
        assert (ends is not None) == one_run
        if ends is not None:
            assert list(zip(*(end[own_met].tolist() for end in ends), strict=True)) == wanted
            assert not any(end[~own_met].any() for end in ends)
            intervals += 1
    assert 100 < intervals < 400


BINARIES = """
import json, torch, flexspec as fs
attend = fs.compile(fs.causal() & fs.document(), backend="triton")
for ids in (torch.arange(4096) // 3000, torch.arange(4096) % 5):  # both read their blocks as runs
    report = attend.aot("sm_90", head_dim=128, document_id=ids[None])
    print(json.dumps({each.name: [loop.instructions for loop in each.loops] for each in report.kernels if each.loops}))
"""


def test_the_partial_loops_of_intervals_are_shorter():
    intervals, asked = map(json.loads, output(started("-c", BINARIES)).splitlines())
    assert intervals.keys() == asked.keys() == {"forward", "backward_q", "backward_kv"}
    for name, (full, partial) in intervals.items():
        assert full <= 1.03 * asked[name][0] and full < partial < asked[name][1] - 16, (name, intervals, asked)
