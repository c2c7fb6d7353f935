"""Kinds bounded on the device: sound against the exact map, equal for documents, and without waiting for the device."""

import pytest
import torch
from flexspec.compiler.blocks.on_device import report_lines
from flexspec.compiler.pipeline import map_on_device
from hypothesis import given, settings
from hypothesis import strategies as st
from random_masks import block_kinds, make_mask, masks, tables
from torch._subclasses.fake_tensor import FakeTensorMode

import flexspec as fs
from flexspec.inputs import make_sizes


def device_map(mask, q_len, kv_len, block, device="cpu", order=None, batch=None, heads=None, **values):
    bound = mask.bind(make_sizes(q_len, kv_len, batch, heads), values)
    return map_on_device(mask, bound, block, order, torch.device(device))


def kinds_of(*args, **options):
    return device_map(*args, **options).kinds()


def sound(found, wanted):
    """FULL and EMPTY are so; returns the fraction that is decided of what is not partial."""
    found = found.expand_as(wanted)
    decided = found != 1
    assert found.dtype == torch.uint8 and torch.equal(found[decided], wanted[decided])
    return 1.0 if (wanted == 1).all() else float(decided.sum() / (wanted != 1).sum())


@settings(max_examples=200, deadline=None)
@given(masks, st.integers(1, 90), st.integers(1, 90), st.sampled_from([(8, 8), (16, 5), (7, 31)]), st.integers(0, 99))
def test_random_masks_are_bounded_soundly(written, q_len, kv_len, block, seed):
    held = tables(max(q_len, kv_len, 4), 2, 3, seed)
    mask = make_mask(written, held)
    sound(
        kinds_of(mask, q_len, kv_len, block, batch=2, heads=3),
        block_kinds(mask.dense(q_len, kv_len, batch=2, heads=3), *block),
    )


def interval_test(ids, block):
    """What documents of rising ids come to, by two loops: the ranges of ids are apart, or one and the same id."""
    rows = [row.split(block) for row in ids]
    kinds = [[[(q.min() <= k.max()) & (k.min() <= q.max()) for k in row] for q in row] for row in rows]
    alike = [[[q.min() == q.max() == k.min() == k.max() for k in row] for q in row] for row in rows]
    return torch.tensor(kinds).to(torch.uint8)[:, None] + torch.tensor(alike).to(torch.uint8)[:, None]


@pytest.mark.parametrize("length", [512, 700])
def test_documents_are_decided_exactly(length):
    ids = torch.randint(0, 9, (3, length), generator=torch.Generator().manual_seed(length)).sort(-1).values
    found = kinds_of(fs.document(), length, length, 64, document_id=ids)
    assert torch.equal(found, interval_test(ids, 64))
    packed = fs.document() & fs.causal()
    wanted = fs.block_map(packed, length, block_size=64, document_id=ids).kinds()
    assert torch.equal(kinds_of(packed, length, length, 64, document_id=ids), wanted)


big = torch.tensor([2**62, -(2**62), 2**63 - 1, -(2**63), 5, 0, 1, -1]).repeat_interleave(8)
real = torch.tensor([1.5, -2.0, float("nan"), float("inf"), 0.0, -0.0, 3.0, -1.0]).repeat_interleave(8)


@pytest.mark.parametrize(
    ("fn", "least"),
    [
        (lambda b, h, q, kv: q >= kv, 1),
        (lambda b, h, q, kv: (q - kv) % (h + 2) == 0, 1),
        (lambda b, h, q, kv: torch.where(real[q] > 0, q >= kv, kv > q), 1),
        (lambda b, h, q, kv: real[q] < real[kv], 0.7),
        (lambda b, h, q, kv: real[q] != real[kv], 0.7),
        (lambda b, h, q, kv: (big[q] < big[kv]) ^ (q >= kv), 0.9),
        (lambda b, h, q, kv: big[q] + q >= kv - big[kv], 0),
        (lambda b, h, q, kv: torch.minimum(big[q], kv) + 3 > torch.maximum(big[kv], q) * 2 - 7, 0),
        (lambda b, h, q, kv: ~(q < 40) | (kv >= 0), 1),
        (lambda b, h, q, kv: (big[q] > 0) == (big[kv] > 0), 1),
    ],
)
def test_extreme_values_and_heads(fn, least):
    mask = fs.from_mask_mod(fn)
    found = kinds_of(mask, 64, 64, (8, 4), batch=1, heads=2)
    assert sound(found, block_kinds(mask.dense(64, heads=2), 8, 4)) >= least


FAR = 2**61
"""Past it a sum or product is any integer: those of 64 bits start again at the other end."""
LARGE = [sign * (size + step) for size in (2**29, 2**60, 2**61, 2**62) for step in (-1, 0, 1) for sign in (1, -1)]
LARGE += [2**63 - 1, -(2**63), 0, 1, -1, 3]
COMPUTED = {  # text, the true integer in Python's own integers, and what it computes with
    "left[q] + right[kv]": (lambda a, b: a + b, lambda a, b: [a, b]),
    "left[q] - right[kv]": (lambda a, b: a - b, lambda a, b: [a, b]),
    "-left[q] + right[kv]": (lambda a, b: b - a, lambda a, b: [a, b]),
    "left[q] * right[kv]": (lambda a, b: a * b, lambda a, b: [a, b]),
    "(left[q] + right[kv]) + right[kv]": (lambda a, b: a + 2 * b, lambda a, b: [a, b, a + b]),
    "left[q] * right[kv] + 1": (lambda a, b: a * b + 1, lambda a, b: [a, b, a * b]),
}


@pytest.mark.parametrize("text", COMPUTED)
@pytest.mark.parametrize("limit", [0, -3, 2**59])
def test_integers_saturate_and_never_wrap(text, limit):
    """One pair a block: what may have left 64 bits decides nothing, not even where the wrapped value would."""
    values = torch.tensor(LARGE)
    whole, parts = COMPUTED[text]
    mask = fs.Mask(fs.parse(f"left: int[_]; right: int[_]; {text} >= {limit}"), "large")
    found = kinds_of(mask, len(LARGE), len(LARGE), 1, left=values, right=values)[0, 0]
    for row, a in enumerate(LARGE):
        for column, b in enumerate(LARGE):
            true, kind = whole(a, b), int(found[row, column])
            if any(abs(part) >= FAR for part in (*parts(a, b), true)):
                assert kind == 1, (a, b)
            elif kind == 1:  # large factors may be left open
                assert "*" in text and max(abs(a), abs(b)) >= 2**30, (a, b)
            else:
                assert kind == (2 if true >= limit else 0), (a, b)


def test_ranges_of_large_integers_saturate_at_both_ends():
    """Blocks of several values: one that may leave 64 bits leaves its whole block open."""
    left = torch.tensor([5, 6, 2**62, 6, -(2**62), 6, 2**61 - 9, 2**61 - 12])
    kinds = kinds_of(fs.from_mask_mod(lambda b, h, q, kv: left[q] + kv > 2), 8, 8, (2, 8))
    assert kinds.flatten().tolist() == [2, 1, 1, 2]
    kinds = kinds_of(fs.from_mask_mod(lambda b, h, q, kv: left[q] - kv > -9), 8, 8, (2, 4))
    assert kinds[0, 0].tolist() == [[2, 2], [1, 1], [1, 1], [2, 2]]
    kinds = kinds_of(fs.from_mask_mod(lambda b, h, q, kv: left[q] + kv * kv > 2), 8, 8, (2, 8))
    assert kinds.flatten().tolist() == [2, 1, 1, 1]


def test_orders_are_bounded_in_memory():
    canvas = fs.Canvas(h=9, w=10)
    label = torch.arange(90) // 20

    @fs.mask(canvas=canvas)
    def near(q, kv):
        return ((q.h - kv.h).abs() <= 2) & (q.w // 4 == kv.w // 4)

    mask, order = near & fs.same_label(label), fs.tiled(canvas, h=4, w=4)
    wanted = fs.block_map(mask, 90, order=order, block_size=8).kinds()
    assert sound(kinds_of(mask, 90, 90, 8, order=order), wanted) > 0.8


def test_lists_are_those_of_the_exact_map_where_all_is_decided():
    ids = torch.arange(700) // 190
    packed = fs.document(ids) & fs.causal()
    ours, exact = (fs.create_block_mask(packed, 2, 3, 700, 700, device="cpu", exact=x) for x in (False, True))
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_indices", "full_q_indices"):
        assert torch.equal(getattr(ours, name), getattr(exact, name))


def test_compiled_attention_with_bounded_lists():
    attend = fs.compile(fs.document() & fs.causal_window(70), exact=False, backend="flex", block_size=64)
    q, k, v = (torch.randn(2, 3, 300, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    for size in (61, 90):
        ids = (torch.arange(300) // size).expand(2, -1)
        wanted = fs.reference_attention(attend.spec, q, k, v, document_id=ids)
        assert (attend(q, k, v, document_id=ids) - wanted).abs().max() < 3e-6
    assert attend.block_map(300, document_id=ids).kept_pairs > 0


CHOSEN = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 1]]).bool()


def test_a_report_says_what_a_call_computes():
    """An index that depends on both sides at once is bounded by nothing: all of its blocks are computed."""
    fn = lambda b, h, q, kv: CHOSEN[q // 16 + kv // 16 - kv // 16, kv // 16]  # noqa: E731
    mask = fs.from_mask_mod(fn)
    bounded, exact = device_map(mask, 64, 64, 16), fs.block_map(mask, 64, block_size=16)
    assert bounded.counts() == {0: 0, 1: 16, 2: 0} and bounded.density == 1.0
    assert exact.counts() == {0: 8, 1: 0, 2: 8}
    assert report_lines(bounded, exact) == [
        "by bounds on the device: 0 full, 16 partial, 0 empty, density 100.00%",
        "exact: 8 full, 0 partial, 8 empty, density 50.00%",
    ]
    wanted = "64 x 64 in blocks of 16 x 16, by bounds: 0 full, 16 partial, 0 empty, density 100.00%"
    assert repr(bounded) == f"DeviceMap({wanted})"
    ids = torch.tensor([0] * 100 + [1] * 92)[None].expand(2, -1)
    packed = device_map(fs.document() & fs.causal(), 192, 192, 64, document_id=ids)
    assert packed.counts() == {kind: int((packed.kinds() == kind).sum()) for kind in fs.BlockKind}
    assert sum(packed.counts().values()) == 2 * 9 and packed.density == 1 - packed.counts()[0] / 18
    by_batch = torch.stack([CHOSEN, ~CHOSEN])
    mask = fs.from_mask_mod(lambda b, h, q, kv: by_batch[b, q // 16 + kv - kv, kv // 16])
    bounded, exact = device_map(mask, 64, 64, 16, batch=2), fs.block_map(mask, 64, batch=2, block_size=16)
    assert (bounded.batch, exact.batch) == (1, 2)  # the counts of both are of two all the same
    assert [line.partition(": ")[2] for line in report_lines(bounded, exact)] == [
        "0 full, 32 partial, 0 empty, density 100.00%",
        "16 full, 0 partial, 16 empty, density 50.00%",
    ]


SPEC = fs.document() & fs.causal_window(300) | fs.sink(4)


def test_nothing_is_read_back():
    """Under fake tensors there is no value to read: anything that needs one raises."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        ids = torch.zeros(2, 1000, dtype=torch.int64)
        found = kinds_of(SPEC, 1000, 1000, 128, document_id=ids)
        assert found.shape == (2, 1, 8, 8)
        fn = lambda b, h, q, kv: (ids[b, q] == ids[b, kv]) & (q >= kv) & (q - kv < 3 * (h + 1))  # noqa: E731
        lists = fs.create_block_mask(fn, 2, 4, 1000, 1000, device="cpu", exact=False)
        assert lists.full_q_indices.shape == (2, 4, 8, 8)
        with pytest.raises(Exception, match="numpy"):
            fs.create_block_mask(fn, 2, 4, 1000, 1000, device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_no_synchronisation_on_the_device():
    ids = (torch.arange(4096, device="cuda") // 700).expand(2, -1).contiguous()
    fn = lambda b, h, q, kv: (ids[b, q] == ids[b, kv]) & (q >= kv) & (q - kv < 300 * (h + 1))  # noqa: E731
    make = lambda: fs.create_block_mask(fn, 2, 4, 4096, 4096, device="cuda", exact=False)  # noqa: E731
    make()
    torch.cuda.set_sync_debug_mode("error")
    try:
        lists = make()
        found = kinds_of(SPEC, 4096, 4096, 128, device="cuda", document_id=ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    sound(found.cpu(), fs.block_map(SPEC, 4096, document_id=ids.cpu()).kinds())
    assert torch.equal(lists.kv_indices, fs.create_block_mask(fn, 2, 4, 4096, 4096, device="cuda").kv_indices)


def test_reports_tell_what_runs():
    """A table whose index depends on both sides is not bounded on the device: all runs, and every report says so."""
    chosen = torch.zeros(8, 8, dtype=torch.bool)
    chosen[torch.arange(8), torch.arange(8)] = True
    spec = fs.mask(lambda q, kv: chosen[q // 16 + kv - kv, kv // 16])
    exact, bounded = (fs.compile(spec, exact=value, block_size=16, backend="flex") for value in (True, False))
    assert exact.block_map(128).density == 1 / 8
    assert bounded.block_map(128).density == 1.0 and bounded.block_map(128).kept_pairs == 8 * 16 * 16
    facts = bounded.facts(128)
    assert facts["computed_density"] == 1.0 == facts["fraction_of_dense"] and facts["block_density"] == 1 / 8
    assert "by bounds on the device: 0 full, 64 partial, 0 empty" in bounded.explain(128)
    assert "on the device" not in exact.explain(128)
