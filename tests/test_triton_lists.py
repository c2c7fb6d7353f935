"""The forward kernel over lists of tiles: against a dense softmax, beside the same kernel over runs, and when it is
chosen.
"""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from flexspec.compiler.backends.triton import forward, launch, rows, tuning
from random_masks import block_kinds
from test_aot import output, started
from test_triton import DEVICE, TOLERANCE, qkv

import flexspec as fs

SEED = torch.Generator().manual_seed(3)
BIAS = torch.randn(4, 21, generator=SEED)
CHOSEN = torch.rand(4, 5, 6, generator=SEED) < 0.5
CHOSEN[0, 2] = False  # a row of blocks that keeps nothing
PAIRS = torch.rand(160, 192, generator=SEED) < 0.9
IMAGE = fs.Canvas(h=16, w=24)
SCORES = [fs.softcap(5.0), fs.relative_bias(BIAS)]


def documents(*lengths):
    """Ids [tokens], and what a query keeps: its own document up to itself."""
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return ids, (ids[:, None] == ids) & torch.ones(len(ids), len(ids), dtype=torch.bool).tril()


def tile_of(token):
    return token // 24 // 4, token % 24 // 8


def near_tiles(q, kv):
    """Of 4 x 3 tiles, the three around the query's along h, pushed inwards, and the query's own along w."""
    (q_h, q_w), (kv_h, kv_w) = tile_of(q), tile_of(kv)
    first = min(max(q_h - 1, 0), 1)
    return q_w == kv_w and first <= kv_h < first + 3


def cases():
    """By name: the mask, which tokens it keeps [heads | 1, q, kv], order and block size."""
    ids, own = documents(16, 96, 33, 64, 7, 50)
    yield "documents", fs.causal() & fs.document(ids[None]), own[None], None, 32
    causal = torch.ones(160, 160, dtype=torch.bool).tril()
    yield "striped", fs.causal(), causal[None], fs.striped(5), 16
    tiles = torch.tensor([[near_tiles(q, kv) for kv in range(384)] for q in range(384)])
    sliding = fs.sliding_tile(IMAGE, {"h": 12, "w": 8}, {"h": 4, "w": 8})
    yield "sliding tile", sliding, tiles[None], fs.tiled(IMAGE, h=4, w=8), 32
    blocks = CHOSEN.repeat_interleave(32, 1).repeat_interleave(32, 2)
    selection = fs.mask(lambda h, q, kv: CHOSEN[h, q // 32, kv // 32])
    yield "blocks of each head", selection, blocks, None, 32
    holes = fs.mask(lambda q, kv: PAIRS[q, kv])
    yield "blocks with holes, ragged", selection & holes, (blocks & PAIRS)[:, :150, :181], None, 32
    yield "blocks beyond a tile", selection & holes, blocks & PAIRS, None, (64, 128)


CASES = {name: case for name, *case in cases()}
SORTED_BY = {"striped": lambda token: (token % 5, token), "sliding tile": lambda token: (tile_of(token), token)}
"""How memory holds the tokens of the two orders."""


def dense(q, k, v, keep, score=lambda s: s):
    """Output and lse in float64; a query that keeps nothing has 0 and -inf."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    s = score(q @ k.mT / math.sqrt(q.shape[3])).masked_fill(~keep.to(q.device), -math.inf)
    lse = s.logsumexp(-1)
    return (s - lse.masked_fill(lse.isinf(), 0.0)[..., None]).exp() @ v, lse


def biased(s):
    distance = torch.arange(s.shape[2])[:, None] - torch.arange(s.shape[3])
    return 5 * torch.tanh(s / 5) + BIAS[:, distance.clamp(-10, 10) + 10].to(s)


def close(found, wanted, near=2e-5):
    torch.testing.assert_close(found.double(), wanted, atol=near, rtol=near)


@pytest.fixture
def both_loops(monkeypatch):
    """A call over lists and over runs, whatever the counts say: the same bits."""

    def call(spec, *tensors, **options):
        results = []
        for listed in (True, False):
            monkeypatch.setattr(launch, "takes_lists", lambda block_map, listed=listed: listed)
            returned = fs.compile(spec, backend="triton", **options)(*tensors, return_lse=spec.weight is None)
            results.append(returned if isinstance(returned, tuple) else (returned,))
        assert all(map(torch.equal, *results))
        return results[0]

    return call


@pytest.mark.parametrize("name", CASES)
def test_both_loops_are_a_dense_softmax(name, both_loops):
    mask, keep, order, block_size = CASES[name]
    q, k, v = qkv(*keep.shape[1:], heads=max(2, len(keep)), kv_heads=1, batch=1)
    found = both_loops(fs.Attention(mask), q, k, v, block_size=block_size, order=order)
    for mine, wanted in zip(found, dense(q, k, v, keep), strict=True):
        close(mine, wanted)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_scores_groups_and_channels(dtype, both_loops):
    mask, keep, *_ = CASES["blocks with holes, ragged"]
    q, k, v = qkv(*keep.shape[1:], heads=4, kv_heads=2, head_dim=40, v_dim=24, batch=2, dtype=dtype)
    out, lse = both_loops(fs.Attention(mask, SCORES), q, k, v, block_size=32)
    for mine, wanted in zip((out, lse), dense(q, k, v, keep, biased), strict=True):
        close(mine, wanted, TOLERANCE[dtype])


def test_weights(both_loops):
    """A sum that is not divided, and one more column."""
    mask, keep, *_ = CASES["blocks with holes, ragged"]
    q, k, v = qkv(*keep.shape[1:], heads=4, kv_heads=4, batch=1)
    s = q.double() @ k.double().mT / 4
    sigmoid = torch.sigmoid(s - 1).masked_fill(~keep.to(DEVICE), 0.0) @ v.double()
    close(*both_loops(fs.Attention(mask, weight=fs.sigmoid_weight(-1.0)), q, k, v, block_size=32), sigmoid)
    plain, lse = dense(q, k, v, keep)
    sink = both_loops(fs.Attention(mask, weight=fs.sink_logit(0.5)), q, k, v, block_size=32)
    close(*sink, plain * torch.sigmoid(lse - 0.5)[..., None])


def test_gradients():
    """Of a map whose forward pass takes lists."""
    mask, keep, _, block_size = CASES["documents"]
    tensors = [x.requires_grad_() for x in qkv(*keep.shape[1:], heads=2, kv_heads=1, batch=1)]
    attend = fs.compile(mask, backend="triton", block_size=block_size)
    found = torch.autograd.grad(attend(*tensors).square().sum(), tensors)
    for mine, wanted in zip(found, torch.autograd.grad(dense(*tensors, keep)[0].square().sum(), tensors), strict=True):
        close(mine, wanted.double(), 1e-4)


@pytest.mark.parametrize("name", CASES)
def test_lists_name_each_tile_once(name):
    """Against blocks counted pair by pair."""
    mask, keep, order, block_size = CASES[name]
    block_q, block_kv = block_size if isinstance(block_size, tuple) else (block_size, block_size)
    block_map = fs.block_map(mask, *keep.shape[1:], heads=4, block_size=block_size, order=order)
    listed, per_block = rows.rows_of(block_map, "q", 1, block_kv // 16), block_kv // 16
    if name in SORTED_BY:
        tokens = sorted(range(keep.shape[1]), key=SORTED_BY[name])
        keep = keep[:, tokens][:, :, tokens]
    kinds = block_kinds(keep[None], block_q, block_kv)[0]
    whole = keep.shape[1] // block_q, keep.shape[2] // block_kv  # ragged last blocks are partial
    kinds[:, whole[0] :].clamp_(max=1)
    kinds[:, :, whole[1] :].clamp_(max=1)
    for h, of_rows in enumerate(kinds):
        first_row = int(listed.index[0, h % listed.index.shape[1]]) * len(of_rows)
        for row, of_blocks in enumerate(of_rows, first_row):
            for kind, (first, number) in ((2, listed.full), (1, listed.partial)):
                columns = (of_blocks == kind).nonzero()[:, 0].tolist()
                wanted = [column * per_block + part for column in columns for part in range(per_block)]
                assert number[first[row] : first[row + 1]].tolist() == wanted


def of_blocks(columns, others=(), heads=1):
    """A block map of one row of queries, which keeps blocks of 128 keys; all heads but the first share a map."""
    table = torch.zeros(2, 12, dtype=torch.bool)
    table[0, list(columns)] = table[1, list(others)] = True
    mask = fs.mask(lambda h, kv: table[torch.clamp(h, max=1), kv // 128])
    block_map = fs.block_map(mask, 128, 1536, heads=heads)
    assert len(block_map.maps) == min(heads, 2)
    return block_map


LONG, APART, CLOSE = range(9), [0, 1, 2, 5, 6, 7, 8], [0, 1, 2, 3, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("blocks", "listed"),
    [
        ((APART,), True),  # seven blocks for the fill of the second run
        ((CLOSE,), False),  # eight
        (([0], [5], 2), False),  # two rows of one run: no fill is saved
        ((LONG, APART, 2), False),  # 16 blocks for one fill
        ((LONG, APART, 10), False),  # 72 for 9
        ((LONG, APART, 11), True),  # 79 for 10: heads that share a map count each
        (([],), False),
    ],
)
def test_lists_are_taken_by_count(blocks, listed):
    assert rows.takes_lists(of_blocks(*blocks)) is listed


@pytest.mark.parametrize("name", [name for name in CASES if name != "blocks beyond a tile"])
def test_short_runs_take_lists(name):
    mask, keep, order, block_size = CASES[name]
    assert rows.takes_lists(fs.block_map(mask, *keep.shape[1:], heads=4, block_size=block_size, order=order))


@pytest.mark.parametrize("mask", [fs.causal(), fs.everything(), fs.nothing(), fs.causal_window(1024)])
def test_long_runs_stay_runs(mask):
    assert not rows.takes_lists(fs.block_map(mask, 4096))


def test_lists_that_would_be_too_long_stay_runs(monkeypatch):
    monkeypatch.setattr(rows, "MOST_LISTED_KEYS", 7 * 128)
    assert not rows.takes_lists(of_blocks(APART))


def test_a_tuned_choice_is_that_of_a_loop():
    """The file of one is not read for the other."""
    q, _, v = qkv(128)
    facts = [
        tuning.facts_of(forward.forward, SimpleNamespace(block_map=of_blocks(blocks), group=1), q, v, ())
        for blocks in (APART, CLOSE)
    ]
    assert [each.pop("lists") for each in facts] == [True, False] and facts[0] == facts[1]


ALIKE = """
import hashlib, json, torch, flexspec as fs
from flexspec.compiler.backends.triton import launch
choose = launch.takes_lists
kinds = []
launch.takes_lists = lambda block_map: (kinds.append(choose(block_map)), kinds[-1])[1]
for lengths in ([700] * 6, [300] * 14, [129, 2000, 64, 903, 1100], [555] * 8, [4200], [2049, 2151], [4000, 200]):
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None, :4096]
    report = fs.compile(fs.causal() & fs.document(ids)).aot("sm_90", backward=False, head_dim=64)
    (kernel,) = report.kernels
    print(json.dumps([kinds.pop(), hashlib.sha256(kernel.cubin).hexdigest(), kernel.facts()["loops"]["full"]]))
"""


def test_alike_maps_compile_nothing_new():
    """Documents of any lengths have two kernels in all, whose loops have loads under way and reach no spilt value."""
    kernels = [json.loads(line) for line in output(started("-c", ALIKE)).splitlines()]
    assert len(kernels) == 7 and {kind for kind, *_ in kernels} == {True, False}
    assert len({(kind, cubin) for kind, cubin, _ in kernels}) == len({cubin for _, cubin, _ in kernels}) == 2
    for _, _, full in kernels:
        assert full["products"] == 1.0 and full["wait_depth"] >= 2 and full["local"] == 0
