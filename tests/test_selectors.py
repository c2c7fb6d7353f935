"""Selectors against brute force: loops over rows of blocks, written from the papers' definitions."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flexspec as fs

BATCH, HEADS, KV_HEADS, DIM = 2, 4, 2, 8


def qkv(q_len=37, kv_len=None, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(HEADS, q_len), (KV_HEADS, kv_len or q_len), (KV_HEADS, kv_len or q_len)]
    return [torch.randn(BATCH, *shape, DIM, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def blocks(length, size):
    return [range(first, min(first + size, length)) for first in range(0, length, size)]


def keeps(keep, rows, columns):
    return any(keep(q, kv) for q in rows for kv in columns)


def top(scores, allowed, k, first=()):
    """The k allowed places with the largest scores, those of `first` before all others; of equal ones the lower."""
    ranked = sorted(allowed, key=lambda j: (j not in first, -scores[j], j))
    return {*first} | {*ranked[:k]}


def mass_of(scores, allowed, mass, crossing):
    ranked = sorted(allowed, key=lambda j: (-scores[j], j))
    total, done, taken = sum(scores[j] for j in allowed), 0.0, set()
    for j in ranked:
        if crossing and done >= mass * total or not crossing and taken and done + scores[j] > mass * total:
            break
        taken.add(j)
        done += scores[j]
    return taken


def softmax(scores, allowed):
    largest = max((scores[j] for j in allowed), default=0.0)
    weights = {j: math.exp(scores[j] - largest) for j in allowed}
    return {j: weight / sum(weights.values()) for j, weight in weights.items()}


def dense(choice, q_len, kv_len, block, keep=lambda q, kv: True):
    """The pairs of chosen blocks that `keep` keeps; choice: by (b, h), a list of sets for each row of blocks."""
    out = torch.zeros(BATCH, HEADS, q_len, kv_len, dtype=torch.bool)
    for (b, h), rows in choice.items():
        for q in range(q_len):
            for kv in range(kv_len):
                out[b, h, q, kv] = kv // block[1] in rows[q // block[0]] and keep(q, kv)
    return out


def by_row(q, k, block, keep, choose):
    """choose(q rows [n, dim], list of k blocks [m, dim], allowed, row number) for every row of blocks of every head."""
    k = k.repeat_interleave(HEADS // KV_HEADS, 1)
    columns = blocks(k.shape[2], block[1])
    found = {}
    for b in range(BATCH):
        for h in range(HEADS):
            rows = []
            for i, rows_of in enumerate(blocks(q.shape[2], block[0])):
                allowed = [j for j, each in enumerate(columns) if keeps(keep, rows_of, each)]
                keys = [k[b, h, each.start : each.stop] for each in columns]
                rows.append(choose(q[b, h, rows_of.start : rows_of.stop], keys, allowed, i))
            found[b, h] = rows
    return found


def everything(q, kv):
    return True


def causal(q, kv):
    return q >= kv


def dot(q, k):
    return float(q.mean(0) @ k.mean(0))


def same(mask, choice, q, k, block, keep):
    wanted = dense(choice, q.shape[2], k.shape[2], block, keep)
    found = mask.dense(q.shape[2], k.shape[2], q=q, k=k)
    assert torch.equal(found, wanted)
    attend = fs.compile(mask, backend="blocks", block_size=16)
    v = torch.randn(k.shape, dtype=k.dtype)
    group = HEADS // KV_HEADS
    scores = q @ k.repeat_interleave(group, 1).mT * DIM**-0.5
    some = wanted.any(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(~wanted & some, -torch.inf), -1)
    out = torch.where(some, weights @ v.repeat_interleave(group, 1), 0.0)
    torch.testing.assert_close(attend(q, k, v), out)


def test_moba():
    q, k, _ = qkv()

    def choose(rows, keys, allowed, i):
        scores = [dot(rows, each) for each in keys]
        return top(scores, allowed, 3, first=[i // 8])

    same(fs.moba(8, 3), by_row(q, k, (1, 8), causal, choose), q, k, (1, 8), causal)


@pytest.mark.parametrize("size", [1, 4, 9])
def test_nsa(size):
    q, k, _ = qkv(45)
    scale = DIM**-0.5
    found = {}
    for b in range(BATCH):
        for group in range(KV_HEADS):
            rows = []
            for i in range(45):
                whole = [j for j in range(6) if min(8 * j + 8, 45) <= i + 1]
                total = dict.fromkeys(range(6), 0.0)
                for h in (2 * group, 2 * group + 1):
                    scores = {j: float(q[b, h, i] @ k[b, group, 8 * j : 8 * j + 8].mean(0)) * scale for j in whole}
                    for j, weight in softmax(scores, whole).items():
                        total[j] += weight
                first = {0, i // 8, max(i // 8 - 1, 0)}
                rows.append(top(total, [*{*whole, *first}], size, first) if size >= len(first) else first)
            found[b, 2 * group] = found[b, 2 * group + 1] = rows
    same(fs.nsa(8, size), found, q, k, (1, 8), causal)


@pytest.mark.parametrize("sizes", [(37, 37), (40, 21), (9, 64)])
def test_vsa_and_nabla(sizes):
    q, k, _ = qkv(*sizes)

    def best(rows, keys, allowed, i):
        return top([dot(rows, each) for each in keys], allowed, 2)

    def until(rows, keys, allowed, i):
        return mass_of(softmax([dot(rows, each) * DIM**-0.5 for each in keys], allowed), allowed, 0.6, True)

    same(fs.vsa(8, 2), by_row(q, k, (8, 8), everything, best), q, k, (8, 8), everything)
    same(fs.nabla(8, 0.6), by_row(q, k, (8, 8), everything, until), q, k, (8, 8), everything)
    both = fs.causal() & fs.nabla(8, 0.6)
    same(both, by_row(q, k, (8, 8), causal, until), q, k, (8, 8), causal)


def test_draft():
    q, k, _ = qkv()
    found = by_row(q, k, (8, 8), everything, lambda rows, keys, allowed, i: softmax(
        [dot(rows, each) * DIM**-0.5 for each in keys], allowed))  # fmt: skip
    for key, rows in found.items():
        pairs = sorted(((-weight, i, j) for i, row in enumerate(rows) for j, weight in row.items()))[:7]  # of 25, 27 %
        found[key] = [{j for _, row, j in pairs if row == i} for i in range(len(rows))]
    same(fs.draft(8, 0.73), found, q, k, (8, 8), everything)


def test_sparge():
    q, k, _ = qkv(70)
    q, k = q + 0.8, k + 0.8

    def alike(x):
        x = x / x.norm(dim=-1, keepdim=True)
        return float((x @ x.mT).mean()) > 0.5

    def choose(rows, keys, allowed, i):
        if not alike(rows):
            return {*allowed}
        compete = [j for j in allowed if alike(keys[j])]
        scores = softmax([dot(rows, each) * DIM**-0.5 for each in keys], compete)
        return mass_of(scores, compete, 0.6, False) | {j for j in allowed if j not in compete}

    found = by_row(q, k, (16, 8), causal, choose)
    sizes = {len(row) for rows in found.values() for row in rows}
    assert len(sizes) > 3
    same(fs.causal() & fs.sparge(16, 8, 0.6, 0.5), found, q, k, (16, 8), causal)


@pytest.mark.parametrize("first", [False, True])
def test_xattention(first):
    q, k, _ = qkv(40)
    stride, block = 4, 8
    keys = k.repeat_interleave(2, 1)
    found = {}
    for b in range(BATCH):
        for h in range(HEADS):
            sums = torch.zeros(5, 5, dtype=torch.float64)
            for i in range(10):
                scores = {}
                for j in range(i + 1):
                    pairs = zip(reversed(range(4 * i, 4 * i + 4)), range(4 * j, 4 * j + 4), strict=True)
                    product = sum(float(q[b, h, row] @ keys[b, h, column]) for row, column in pairs)
                    scores[j] = product / (math.sqrt(DIM) * stride)
                for j, weight in softmax(scores, [*scores]).items():
                    sums[i // 2, j // 2] += weight
            found[b, h] = [
                mass_of(sums[i], range(i + 1), 0.6, True) | {i} | ({0} if first else set()) for i in range(5)
            ]
    same(fs.xattention(block, stride, 0.6, first), found, q, k, (8, 8), causal)


def test_region_topk():
    q, k, _ = qkv()

    def scores(rows, keys, allowed, i):
        return [dot(rows, each) for each in keys]

    each = by_row(q, k, (8, 8), everything, scores)
    found = {}
    for b in range(BATCH):
        for h in range(HEADS):
            rows = [[sum(each[b, other][i][j] for other in range(HEADS)) for j in range(5)] for i in range(5)]
            found[b, h] = [top(row, range(5), 2) for row in rows]
    same(fs.region_topk(8, 2), found, q, k, (8, 8), everything)


@pytest.mark.parametrize("q_len", [37, 1])
def test_quest(q_len):
    q, k, _ = qkv(q_len, 37)
    offset = 37 - q_len

    def choose(rows, keys, allowed, i):
        scores = [
            sum(max(float(rows[0, c] * page[:, c].min()), float(rows[0, c] * page[:, c].max())) for c in range(DIM))
            for page in keys
        ]
        return top(scores, allowed, 3, first=[(i + offset) // 8])

    found = by_row(q, k, (1, 8), lambda q, kv: q + offset >= kv, choose)
    same(fs.quest(8, 3)(offset=offset), found, q, k, (1, 8), lambda q, kv: q + offset >= kv)
    if q_len == 1:
        with_offset = fs.quest(8, 3).dense(1, 37, q=q, k=k, offset=36)
        assert torch.equal(with_offset, fs.quest(8, 3)(offset=36).dense(1, 37, q=q, k=k))


@pytest.mark.parametrize("first", [False, True])
def test_tokens_of_a_router(first):
    q, k, v = qkv(33)
    router = torch.randn(BATCH, HEADS, 33, generator=torch.Generator().manual_seed(2))
    wanted = torch.zeros(BATCH, HEADS, 33, 33, dtype=torch.bool)
    keys = torch.zeros(BATCH, HEADS, 33, 33, dtype=torch.bool)
    for b in range(BATCH):
        for h in range(HEADS):
            scores = router[b, h].tolist()
            chosen = top(scores, range(33), 7, first=[0] if first else [])
            for i in range(33):
                for j in range(i + 1):
                    wanted[b, h, i, j] = i in chosen and j in chosen
                    keys[b, h, i, j] = j in top(scores, range(33), 7)
    mask = fs.expert_choice(top=7, first=first)
    for given_ in (router, router.unsqueeze(2)):
        assert torch.equal(mask.dense(33, router=given_), wanted)
        assert torch.equal(mask.dense(33, router=given_, q=q, k=k), wanted)
    assert torch.equal(fs.value_mask(keep=7).dense(33, key_scores=router), keys)
    out = fs.compile(mask, backend="blocks")(q, k, v, router=router)
    assert (out[~wanted.any(-1)] == 0).all()
    with pytest.raises(fs.FlexSpecError, match="FS020"):
        mask.dense(33)
    with pytest.raises(fs.FlexSpecError, match="FS023"):
        mask.dense(33, router=router.long())
    with pytest.raises(fs.FlexSpecError, match="FS022"):
        mask.dense(33, router=router[..., :32])


def ranked(rule, scores, candidates, forced):
    """A rule on one row, by sorting in Python; forced ones are counted."""
    usable = [j for j, ok in enumerate(candidates) if ok and not math.isnan(scores[j])]
    first = [j for j, must in enumerate(forced) if must]
    count = len({*usable, *first})
    if rule.kind == "threshold":
        return {j for j in usable if scores[j] >= rule.amount} | {*first}
    if rule.kind in ("top_k", "share"):
        k = rule.amount if rule.kind == "top_k" else math.ceil(count * rule.amount - 1e-9)
        return {*first} | {*sorted({*usable, *first}, key=lambda j: (j not in first, -scores[j], j))[: int(k)]}
    values = {j: 0.0 if math.isnan(scores[j]) else scores[j] for j in {*usable, *first}}
    order = sorted(values, key=lambda j: (j not in first, -values[j], j))
    done, taken = 0.0, {*first}
    for place, j in enumerate(order):
        done += values[j]
        total = rule.amount * sum(values.values())
        if done - values[j] < total if rule.crossing else done <= total or place == 0:
            taken.add(j)
    return taken


RULES = st.one_of(
    st.integers(1, 9).map(fs.top_k),
    st.builds(fs.top_p, st.sampled_from([0.1, 0.35, 0.5, 0.99]), st.booleans()),
    st.sampled_from([0.0, 0.25, 0.5, 9.0]).map(fs.threshold),
    st.sampled_from([0.01, 0.3, 0.5, 1.0]).map(fs.share),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[*HealthCheck])
@given(RULES, st.data())
def test_rules_row_by_row(rule, data):
    from flexspec.compiler.selecting.rules import chosen

    width = data.draw(st.integers(1, 8))
    values = st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0, math.nan])
    rows = data.draw(st.lists(st.lists(values, min_size=width, max_size=width), min_size=1, max_size=4))
    flags = st.lists(st.booleans(), min_size=width, max_size=width)
    candidates, forced = ([data.draw(flags) for _ in rows] for _ in range(2))
    table = torch.tensor(rows, dtype=torch.float64)[None, None]
    found = chosen(rule, table, torch.tensor(candidates)[None, None], torch.tensor(forced)[None, None])
    for i, row in enumerate(rows):
        assert {*found[0, 0, i].nonzero().flatten().tolist()} == ranked(rule, row, candidates[i], forced[i])


def test_under_an_order_blocks_are_of_memory():
    video = fs.Canvas(t=4, h=5, w=6)
    order = fs.tiled(video, t=2, h=2, w=2)
    q, k, v = qkv(video.size)
    attend = fs.compile(fs.vsa(8, 3), order=order, backend="blocks", block_size=8)
    moved = [order.apply(x) for x in (q, k, v)]
    there = order.permutation(video.size) >= 0
    rows = there.view(-1, 8)
    means = [
        torch.stack([x[:, :, 8 * i : 8 * i + 8][:, :, row].mean(2) for i, row in enumerate(rows)], 2)
        for x in (moved[0], moved[1].repeat_interleave(2, 1))
    ]
    best = (means[0] @ means[1].mT).topk(3).indices
    chosen = torch.zeros(BATCH, HEADS, len(rows), len(rows), dtype=torch.bool).scatter_(-1, best, True)
    keep = chosen.repeat_interleave(8, 2).repeat_interleave(8, 3) & there
    scores = moved[0] @ moved[1].repeat_interleave(2, 1).mT * DIM**-0.5
    out = torch.softmax(scores.masked_fill(~keep, -torch.inf), -1) @ moved[2].repeat_interleave(2, 1)
    torch.testing.assert_close(attend(q, k, v), order.undo(out, video.size))


def test_scores_and_choices_of_the_caller():
    q, k, v = qkv(32)
    table = fs.Input("router", ("batch", "heads", "q_blocks", "kv_blocks"), float)
    mask = fs.causal() & fs.select(8, rule=fs.top_k(2), scores=table)
    scores = torch.randn(1, KV_HEADS, 4, 4, generator=torch.Generator().manual_seed(3))
    allowed = torch.ones(4, 4).tril().bool()
    best = scores.masked_fill(~allowed, -torch.inf).topk(2).indices
    chosen = torch.zeros(1, KV_HEADS, 4, 4, dtype=torch.bool).scatter_(-1, best, True) & allowed
    chosen = chosen.repeat_interleave(2, 1)
    wanted = chosen.repeat_interleave(8, 2).repeat_interleave(8, 3) & torch.ones(32, 32).tril().bool()
    found = mask.dense(32, q=q, k=k, router=scores)
    assert torch.equal(found, wanted.expand(BATCH, -1, -1, -1))
    direct = fs.causal() & fs.chosen("mine", 8)
    lists = torch.where(chosen.any(-1, keepdim=True), best.repeat_interleave(2, 1), -1)
    for given_ in (chosen, lists, lists.int()):
        assert torch.equal(direct.dense(32, mine=given_), wanted)
        out = fs.compile(direct, backend="blocks", block_size=8)(q, k, v, mine=given_)
        torch.testing.assert_close(out, fs.compile(mask, backend="reference")(q, k, v, router=scores))


def test_a_selector_of_ones_own():
    @fs.selector
    def by_norm(q, k, *, block, power=1.0):
        sizes = k.unflatten(2, (-1, block)).norm(dim=(3, 4)) ** power
        return sizes.unsqueeze(2).expand(-1, -1, q.shape[2] // block, -1)

    @fs.selector
    def every_other(q, k):
        return torch.arange(4).view(1, 1, 1, 4).expand(1, 1, 4, 4) % 2 == 0

    q, k, _ = qkv(32)
    mask = by_norm(block=8, rule=fs.top_k(1), power=2.0)
    assert repr(mask) == "by_norm(block=8, rule=top_k(1), power=2.0)"
    best = k.unflatten(2, (4, 8)).norm(dim=(3, 4)).argmax(-1).repeat_interleave(2, 1)
    found = mask.dense(32, q=q, k=k)
    assert torch.equal(found, (torch.arange(32) // 8 == best[..., None, None]).expand_as(found))
    assert torch.equal(every_other(block=8).dense(32, q=q, k=k)[0, 0, 0], torch.arange(32) // 8 % 2 == 0)


@pytest.mark.parametrize("backend", ["blocks", "triton", "reference"])
def test_gradients_go_through_what_was_chosen(backend):
    q, k, v = qkv(40, dtype=torch.float32)
    mask = fs.causal() & (fs.nabla(8, 0.4) | fs.causal_window(5))
    keep = mask.dense(40, q=q, k=k)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = fs.compile(mask, backend=backend, block_size=16)(*leaves)
    found = torch.autograd.grad(out.square().sum(), leaves)
    scores = leaves[0] @ leaves[1].repeat_interleave(2, 1).mT * DIM**-0.5
    other = torch.softmax(scores.masked_fill(~keep, -torch.inf), -1) @ leaves[2].repeat_interleave(2, 1)
    wanted = torch.autograd.grad(other.square().sum(), leaves)
    torch.testing.assert_close(out, other, atol=1e-5, rtol=1e-4)
    for one, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, theirs, atol=1e-4, rtol=1e-4)


def test_inside_a_compiled_model():
    q, k, v = qkv(40, dtype=torch.float32)
    attend = fs.compile(fs.causal() & fs.vsa(8, 2), backend="blocks", block_size=8)
    model = torch.compile(lambda *x: attend(*x) + 1, fullgraph=True, backend="eager")
    for scale in (1.0, -1.0):
        torch.testing.assert_close(model(q * scale, k, v), attend(q * scale, k, v) + 1)
    assert not torch.allclose(attend(-q, k, v), attend(q, k, v))


def test_values_of_forced_masks():
    far = fs.mask(lambda q, kv, *, reach: q - kv == reach)
    mask = fs.causal() & fs.select(4, rule=fs.top_k(1), forced=far)
    q, k, v = qkv(16)
    plain = (fs.causal() & fs.select(4, rule=fs.top_k(1))).dense(16, q=q, k=k)
    for reach in (8, 13):
        more = mask.dense(16, q=q, k=k, reach=reach)
        here, there = torch.arange(16)[:, None], torch.arange(16)
        blocks_of = torch.zeros(4, 4, dtype=torch.bool)
        blocks_of[((here - there) == reach).nonzero().T[0] // 4, ((here - there) == reach).nonzero().T[1] // 4] = True
        forced = blocks_of.repeat_interleave(4, 0).repeat_interleave(4, 1) & (here >= there)
        assert torch.equal(more, plain | forced)
        assert torch.equal(mask(reach=reach).dense(16, q=q, k=k), more)
        out = fs.compile(mask, backend="blocks")(q, k, v, reach=reach)
        torch.testing.assert_close(out, fs.compile(mask(reach=reach), backend="reference")(q, k, v))
    with pytest.raises(fs.FlexSpecError, match="FS020"):
        mask.dense(16, q=q, k=k)


def test_forced_masks_of_one_form_are_told_apart_by_their_tensors():
    q, k, _ = qkv(16)
    ids = [torch.tensor([0] * n + [1] * (16 - n)) for n in (4, 12)]
    few, many = (fs.select(4, rule=fs.top_k(1), forced=fs.document(each)) for each in ids)
    one, other = (mask.dense(16, q=q, k=k) for mask in (few, many))
    assert not torch.equal(one, other)
    assert torch.equal((few ^ many).dense(16, q=q, k=k), one ^ other)
    assert len((few ^ many).selections) == 2


WRONG = [
    (lambda: fs.top_k(0), "FS025"),
    (lambda: fs.top_k(True), "FS025"),
    (lambda: fs.top_p(0.0), "FS025"),
    (lambda: fs.top_p(1.5), "FS025"),
    (lambda: fs.threshold(math.nan), "FS025"),
    (lambda: fs.share(0.5, over="column"), "FS025"),
    (lambda: fs.select(0, rule=fs.top_k(1)), "FS025"),
    (lambda: fs.select(8, rule=8), "FS023"),
    (lambda: fs.select(8, rule=fs.top_k(1), summary="median"), "FS025"),
    (lambda: fs.select(8, rule=fs.top_k(1), summary="antidiagonal"), "FS025"),
    (lambda: fs.select(8, rule=fs.top_k(1), summary="antidiagonal", stride=3), "FS025"),
    (lambda: fs.select(8, rule=fs.top_k(1), shared="layer"), "FS025"),
    (lambda: fs.select(8, rule=fs.top_k(1), scores=torch.zeros(1, 1, 4, 4)), "FS023"),
    (lambda: fs.select(8, rule=fs.top_k(1), forced=fs.vsa(8, 1)), "FS023"),
    (lambda: fs.chosen("q"), "FS021"),
    (lambda: fs.draft(8, 1.0), "FS025"),
    (lambda: fs.Canvas(memory=8), "FS032"),
    (lambda: fs.vsa(8, 1).dense(16), "FS020"),
    (lambda: fs.vsa(8, 1).dense(16, q=torch.zeros(16), k=torch.zeros(16)), "FS023"),
    (lambda: fs.chosen("mine", 8).dense(16), "FS020"),
    (lambda: fs.chosen("mine", 8).dense(16, mine=torch.zeros(1, 1, 2, 3, dtype=torch.bool)), "FS022"),
    (lambda: fs.chosen("mine", 8).dense(16, mine=torch.zeros(1, 1, 2, 2)), "FS023"),
    (lambda: fs.chosen("mine", 8).dense(16, mine=torch.tensor([[[[0], [2]]]])), "FS024"),
    (lambda: fs.block_map(fs.chosen("mine", 8), 32, mine=torch.ones(1, 1, 2, 2, dtype=torch.bool)), "FS022"),
    (lambda: fs.compile(fs.select(8, rule=fs.top_k(1), scores=fs.Input("inputs", (*"abcd",), float))), "FS021"),
]


@pytest.mark.parametrize("call, code", WRONG)
def test_wrong_values(call, code):
    with pytest.raises(fs.FlexSpecError) as caught:
        call()
    assert caught.value.code == code
    assert caught.value.where is None or "test_selectors.py" in caught.value.where


SAVED = [
    fs.moba(8, 3),
    fs.nsa(8, 4),
    fs.causal() & (fs.select((16, 8), rule=fs.share(0.4, over="batch"), similarity=0.2) | fs.sink(4)),
    fs.xattention(16, 4, 0.7),
    fs.causal() & fs.chosen("mine", (8, 16)),
    fs.select(8, rule=fs.top_p(0.5, crossing=False), forced=fs.document([0] * 20 + [1] * 12)),
]


@pytest.mark.parametrize("mask", SAVED, ids=repr)
def test_files_and_pickles_hold_the_selection(mask, tmp_path):
    q, k, _ = qkv(32)
    values = {"mine": torch.ones(1, 1, 4, 2, dtype=torch.bool)} if "mine" in mask.expr.names else {"q": q, "k": k}
    mask.save(tmp_path / "mask.yaml")
    for again in (fs.load(tmp_path / "mask.yaml"), pickle.loads(pickle.dumps(mask)), copy.deepcopy(mask)):
        assert repr(again) == repr(mask)
        assert torch.equal(again.dense(32, **values), mask.dense(32, **values))
    assert fs.load(tmp_path / "mask.yaml") == mask or mask.label.startswith("select(block=8, rule=top_p")


def test_a_function_is_in_no_file(tmp_path):
    own = fs.selector(lambda q, k: q)(block=8, rule=fs.top_k(1))
    with pytest.raises(fs.FlexSpecError, match="FS023"):
        own.save(tmp_path / "mask.yaml")


def test_one_selection_in_a_mask_is_one_table():
    both = (fs.causal() & fs.vsa(8, 2)) | (fs.vsa(8, 2) & fs.sink(4))
    assert len(both.selections) == 1
    two = fs.vsa(8, 2) ^ fs.vsa(8, 3)
    q, k, _ = qkv(32)
    one, other = (fs.vsa(8, top).dense(32, q=q, k=k) for top in (2, 3))
    assert torch.equal(two.dense(32, q=q, k=k), one ^ other) and len(two.selections) == 2
    assert torch.equal((~fs.vsa(8, 2)).dense(32, q=q, k=k), ~one)
    assert torch.equal(fs.vsa(8, 2).T.dense(32, q=q, k=k), one.mT)


def test_proofs_hold_whatever_is_chosen():
    assert (fs.causal() & fs.vsa(64, 8)).is_causal(1_000_000, heads=1)
    assert fs.moba(64, 8).is_causal(1_000_000, heads=1)
    both = (fs.causal() & fs.vsa(64, 8)) | fs.sink(4)
    assert both.is_causal(1000, heads=1).counterexample == (0, 0, 0, 1)
    assert fs.vsa(16, 2).implies(fs.causal(), 100, heads=1).counterexample == (0, 0, 0, 1)
    assert fs.vsa(16, 2).equals(fs.vsa(16, 2), 100, heads=1)
    assert not fs.vsa(16, 2).equals(fs.vsa(16, 3), 100, heads=1)
    assert fs.moba(64, 8).every_query_attends(1000, heads=1)
    assert fs.vsa(16, 1).every_query_attends(100, heads=1)
    for left_to_choice in (fs.causal() & fs.vsa(64, 8), ~fs.vsa(16, 8)):
        with pytest.raises(fs.FlexSpecError, match="FS020"):
            left_to_choice.every_query_attends(1000, heads=1)
    far = fs.causal() & fs.select(8, rule=fs.threshold(0.5))
    assert far.every_query_attends(64, heads=1).counterexample == (0, 0, 0, None)
    assert (far | fs.causal_window(1)).every_query_attends(64, heads=1)
    first = fs.mask(lambda q, kv: kv == 0)
    forced = fs.select(8, rule=fs.threshold(0.5), forced=first)
    assert (fs.causal() & fs.sink(8)).implies(fs.causal() & forced, 64, heads=1)  # of a forced block all is kept
    assert (fs.causal() & fs.sink(9)).implies(fs.causal() & forced, 64, heads=1).counterexample == (0, 0, 8, 8)
    q, k, _ = qkv(64)
    assert (fs.causal() & fs.vsa(8, 8)).every_query_attends(64, q=q, k=k)


def test_questions_with_q_and_k():
    q, k, v = qkv(40)
    mask = fs.moba(8, 2)
    keep = mask.dense(40, q=q, k=k)
    assert fs.diff(mask, fs.causal(), 40, q=q, k=k).only_b == (40 * 41 // 2) * BATCH * HEADS - int(keep.sum())
    blocks = fs.block_map(mask, 40, block_size=8, q=q, k=k)
    assert torch.equal(blocks.kinds() > 0, keep.view(BATCH, HEADS, 5, 8, 5, 8).any(3).any(-1))
    attend = fs.compile(mask, block_size=8)
    assert attend.block_map(40, q=q, k=k).counts() == blocks.counts()
    assert "FS020" not in attend.explain(40, q=q, k=k)
    group = HEADS // KV_HEADS
    later = ~torch.ones(40, 40).tril().bool()
    scores = (q @ k.repeat_interleave(group, 1).mT * DIM**-0.5).masked_fill(later, -torch.inf)
    mass = (torch.softmax(scores, -1) * keep).sum(-1)
    torch.testing.assert_close(fs.recall(mask, q, k, within=fs.causal()).share.double(), mass)


@pytest.mark.parametrize("backend", ["blocks", "reference", "triton"])
def test_decoding_over_a_ring_of_keys(backend):
    """Slots hold keys out of order, some hold none: the choice is that among the keys that are there."""
    length, slots = 40, 24
    q, k, v = qkv(1, slots, dtype=torch.float32)
    generator = torch.Generator().manual_seed(7)
    places = torch.randperm(length, generator=generator)[:slots]
    places[[3, 4, 9, 16, 17, 18, 19, 20, 21, 22, 23]] = -1  # one page is empty
    mask = fs.causal() & fs.select((1, 8), summary="min_max", softmax=False, rule=fs.top_k(1))
    attend = fs.compile(mask, backend=backend, block_size=16)
    here = torch.tensor([[length]])
    out = attend(q, k, v, q_positions=here, kv_positions=places[None])
    keys, values = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))
    there = (places >= 0).view(3, 8)
    for b in range(BATCH):
        for h in range(HEADS):
            pages = [keys[b, h, 8 * j : 8 * j + 8][there[j]] for j in range(2)]
            bounds = [torch.maximum(q[b, h] * x.amin(0), q[b, h] * x.amax(0)).sum() for x in pages]
            best = 0 if bounds[0] >= bounds[1] else 1
            kept = torch.arange(8 * best, 8 * best + 8)[there[best]]
            weights = torch.softmax(q[b, h] @ keys[b, h, kept].mT * DIM**-0.5, -1)
            torch.testing.assert_close(out[b, h], weights @ values[b, h, kept], atol=1e-5, rtol=1e-4)
