"""What a selection may choose among, and which selections are one: turned, in two masks, with alike forced masks."""

import pytest
import torch

import flexspec as fs
from flexspec.canvas import Canvas

HEADS, KV_HEADS = 4, 2


def qk(length=32, kv_heads=KV_HEADS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (HEADS, length), (kv_heads, length)
    return [torch.randn(2, *shape, 8, generator=generator, dtype=torch.float64) for shape in shapes]


def alike(ids):
    @fs.mask
    def of_one_group(q, kv):
        return ids[q] == ids[kv]

    return of_one_group


def test_a_turned_mask_chooses_among_the_turned_blocks():
    q, k = qk()
    mask = fs.causal() & fs.vsa(8, 2)
    assert torch.equal(mask.T.dense(32, q=q, k=k), mask.dense(32, q=q, k=k).mT)
    q, k = qk(37, seed=1)
    forced = fs.select((3, 5), rule=fs.top_k(1), complete=True, forced=fs.sink(1)) & fs.causal_window(20)
    assert torch.equal(forced.T.dense(37, q=q, k=k), forced.dense(37, q=q, k=k).mT)


def test_turned_choices_need_sides_of_one_length():
    q, k = qk()
    with pytest.raises(fs.FlexSpecError, match="FS024.*exchanged"):
        fs.expert_choice(top=8).dense(1, 32, router=torch.randn(2, HEADS, 32), offset=31)
    with pytest.raises(fs.FlexSpecError, match="FS024.*exchanged"):
        fs.vsa(8, 2).T.dense(24, 32, q=q[:, :, :24], k=k)


def test_no_query_is_promised_a_key_that_it_may_lose():
    q, k = qk(seed=1)
    parity = fs.mask(lambda h, q, kv: (kv // 8) % 2 == h % 2)
    for mask in (
        fs.vsa(8, 1).T,  # each block of keys chooses queries
        parity & fs.select(8, rule=fs.top_k(1), shared="all"),  # one choice for heads that keep other keys
        fs.select(8, rule=fs.top_p(0.5), softmax=False),  # sums below 0
    ):
        assert not mask.dense(32, q=q, k=k).any(-1).all()
        with pytest.raises(fs.FlexSpecError, match="FS020"):
            mask.every_query_attends(32, heads=HEADS)
    first = fs.mask(lambda q, kv: kv == 0)
    forced = fs.select(8, rule=fs.threshold(9.0), forced=first)
    assert forced.every_query_attends(32, heads=1)
    assert forced.T.every_query_attends(32, heads=1).counterexample == (0, 0, 8, None)


def test_each_of_two_masks_chooses_among_its_own_blocks():
    q, k = qk()
    a, b = fs.causal() & fs.vsa(8, 2), fs.vsa(8, 2)
    only = a.dense(32, q=q, k=k) & ~b.dense(32, q=q, k=k)
    assert only.any() and not a.implies(b, 32, heads=1) and not a.equals(b & fs.causal_window(30), 32, heads=1)
    assert a.implies(b, 32, q=q, k=k).counterexample == tuple(only.nonzero()[0].tolist())
    assert fs.diff(a, b, 32, q=q, k=k).only_a == int(only.sum())
    mine = a.dense(32, q=q, k=k)
    assert a.equals(fs.chosen("mine", 1), 32, q=q, k=k, mine=mine)
    assert a.implies(a | fs.sink(4) & fs.causal(), 1_000_000, heads=1)  # among the same blocks: one choice
    assert b.implies(b | fs.sink(4), 1_000_000, heads=1)


def test_alike_forced_masks_are_told_apart():
    q, k = qk()
    one, each = torch.zeros(32, dtype=torch.long), torch.arange(32) // 8
    never = fs.threshold(9.0)
    narrow, wide = (fs.select(8, rule=never, forced=alike(ids)) for ids in (each, one))
    assert narrow != wide
    for mask in (wide & narrow, narrow & wide):
        assert torch.equal(mask.dense(32, q=q, k=k), narrow.dense(32, q=q, k=k))

    def crossed(a, b):
        return fs.select(8, rule=never, forced=fs.mask(lambda q, kv: a[q] == b[kv]))

    two = torch.full((32,), 2)
    assert crossed(each, two) != crossed(two, each)
    assert (crossed(each, two) & crossed(two, each)).dense(32, q=q, k=k)[0, 0].sum() == 64

    def rows(**axes):
        return fs.select(8, rule=never, forced=fs.mask(canvas=Canvas(**axes))(lambda q, kv: q.t == kv.t))

    assert (rows(t=4, h=8) & rows(t=2, h=16)).dense(32, q=q, k=k)[0, 0].sum() == 4 * 64


def test_one_name_is_of_blocks_of_one_size():
    with pytest.raises(fs.FlexSpecError, match="FS026"):
        fs.chosen("mine", 16) & fs.chosen("mine", 8)


def test_a_group_shares_its_choice_under_any_rule_and_order():
    labels = torch.randint(0, 4, (HEADS, 32), generator=torch.Generator().manual_seed(3))
    orders = [fs.orders.by_label(each) for each in labels]
    for seed in range(3):
        q, k = qk(seed=seed)
        by_batch = fs.select(8, rule=fs.share(0.29, over="batch"), shared="group").dense(32, q=q, k=k)
        assert torch.equal(by_batch[:, ::2], by_batch[:, 1::2])
        attend = fs.compile(fs.select(8, rule=fs.top_k(1), shared="group"), order=orders, block_size=8)
        kinds = attend.block_map(32, q=q, k=k).kinds()
        assert torch.equal(kinds[:, ::2], kinds[:, 1::2])
        assert attend(q, k, k).shape == q.shape


def test_a_choice_of_ones_own_is_added_to_the_forced():
    @fs.selector
    def nothing(q, k):
        return torch.zeros(1, 1, 4, 4, dtype=torch.bool)

    q, k = qk()
    mask = nothing(block=8, forced=fs.sink(1))
    assert torch.equal(mask.dense(32, q=q, k=k), fs.sink(8).dense(32).expand(2, HEADS, 32, 32))


def test_a_score_may_read_what_a_selection_reads():
    q, k = qk()
    table = fs.Input("router", ("batch", "heads", "q_blocks", "kv_blocks"), float)
    mask = fs.select(8, rule=fs.top_k(2), scores=table)
    bias = fs.score(lambda score, b, h, q, kv: score + table[b, h, q // 8, kv // 8])
    router = torch.randn(2, HEADS, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    out = fs.compile(fs.Attention(mask, bias), backend="blocks", block_size=8)(q, k, k, router=router)
    keep = mask.dense(32, router=router)
    keys = k.repeat_interleave(2, 1)
    scores = q @ keys.mT * 8**-0.5 + router.repeat_interleave(8, 2).repeat_interleave(8, 3)
    torch.testing.assert_close(out, torch.softmax(scores.masked_fill(~keep, -torch.inf), -1) @ keys)


def test_keys_that_stand_elsewhere_for_each_query_head():
    q, k = qk()
    generator = torch.Generator().manual_seed(5)
    places = torch.stack([torch.randperm(64, generator=generator)[:32] for _ in range(HEADS)])[None]
    places[0, 0, :8] = -1
    mask = fs.select(8, rule=fs.top_k(1), softmax=False)
    out = fs.compile(mask, backend="blocks", block_size=8)(q, k, k, kv_positions=places)
    keys, there = k.repeat_interleave(2, 1), places >= 0
    means = keys.unflatten(2, (4, 8)).mean(3)
    scores = (q.unflatten(2, (4, 8)).mean(3) @ means.mT).masked_fill(~there[:, :, None, ::8], -torch.inf)
    best = torch.nn.functional.one_hot(scores.argmax(-1), 4).bool()
    keep = best.repeat_interleave(8, 2).repeat_interleave(8, 3)
    weights = torch.softmax((q @ keys.mT * 8**-0.5).masked_fill(~keep, -torch.inf), -1)
    torch.testing.assert_close(out, weights @ keys)


def test_a_choice_has_no_value_at_a_pair():
    with pytest.raises(fs.FlexSpecError, match="FS010"):
        fs.vsa(8, 2)(*[torch.tensor(0)] * 4)


def test_a_forced_mask_keeps_its_own_default():
    near = fs.mask(lambda q, kv, *, offset=5: kv <= q + offset)
    back = fs.mask(lambda q, kv, *, offset=0: kv == q + offset - 5)
    mask = near & fs.select(1, rule=fs.threshold(9.0), forced=back)
    assert mask.every_query_attends(32, heads=1).counterexample == (0, 0, 0, None)
    assert mask.every_query_attends(32, heads=1, offset=5)


def test_q_and_k_of_a_question_are_of_one_call():
    q, k = qk()
    for wrong in ((q[:, :, :30], k), (q, k[:, :, :30]), (q, k[:1]), (q[:, :3], k), (q, k[..., :4]), (q, k.float())):
        for ask in (
            lambda q, k: fs.vsa(8, 2).dense(32, q=q, k=k),
            lambda q, k: fs.vsa(8, 2).implies(fs.causal(), 32, q=q, k=k),
            lambda q, k: fs.block_map(fs.vsa(8, 2), 32, q=q, k=k),
        ):
            with pytest.raises(fs.FlexSpecError, match="FS022"):
                ask(*wrong)
