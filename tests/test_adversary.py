"""What an adversary found: each case here was once a wrong block, a wrong kernel or a stale cache."""

import random
import threading

import numpy as np
import pytest
import torch
from flexspec.compiler.backends import flex
from flexspec.compiler.blocks import tensor_ranges
from flexspec.compiler.blocks.tensor_ranges import TensorRanges, pairs
from flexspec.compiler.printers.python import source_of
from random_masks import block_kinds
from torch.nn.attention.flex_attention import create_mask

import flexspec as fs
from flexspec.expr import input_, load, var
from flexspec.ops import Type

LEAST, MOST = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
INF, NAN = float("inf"), float("nan")


def judged(mask, length=16, block=(1, 1), **values):
    """The map and the printed mask_mod both say what the predicate says; returns its pairs."""
    kept = mask.dense(length, **values)
    made = fs.block_map(mask, length, block_size=block, **values)
    assert torch.equal(made.kinds(), block_kinds(kept, *block))
    assert torch.equal(create_mask(made.mask_mod, 1, 1, length, length, device="cpu"), kept)
    return kept


ENDLESS = torch.tensor([0.0, 1.0, INF, 2.0] * 4)
DOWN = torch.tensor([0.0, -1.0, -INF, 2.0] * 4)
AROUND = torch.tensor([-1.0, 0.0, 1.0, -1.0] * 4)
HOLES = torch.tensor([NAN, 1.0, NAN, -1.0] * 4)
EDGES = torch.tensor([LEAST, 5, MOST, -1] * 4)
EDGES_32 = torch.tensor([-(2**31), 5, 2**31 - 1, -1] * 4, dtype=torch.int32)
HALF = torch.tensor([0.1, 0.2, 0.3, 0.4] * 4, dtype=torch.float16)
TENTH = torch.tensor(0.1, dtype=torch.float64)
TABLE = torch.tensor([3, 4, 5])
LARGE = torch.tensor([0, 7, -7, 3] * 4, dtype=torch.int32) * 3 * 10**8

WHAT_NAN_HIDES = {
    "inf - inf": lambda q, kv: ENDLESS[q] + DOWN[kv] <= INF,
    "a clamped nan": lambda q, kv: torch.clamp(ENDLESS[q] + DOWN[kv], min=0) >= 0,
    "0 * inf": lambda q, kv: AROUND[q] * ENDLESS[kv] <= INF,
    "the sign of nan is 0": lambda q, kv: torch.sign(HOLES[(q - kv) % 16]) <= 0,
    "the sign of zero": lambda q, kv: 1 / (AROUND[q] % AROUND[kv]) > 0,
}


@pytest.mark.parametrize("name", WHAT_NAN_HIDES)
@pytest.mark.parametrize("block", [(1, 1), (4, 4), (3, 5)])
def test_nan_and_infinity(name, block):
    judged(fs.mask(WHAT_NAN_HIDES[name]), block=block)


WHAT_64_BITS_WRAP = {
    "two sentinels": lambda q, kv: EDGES[q] < EDGES[kv],
    "a sentinel and a position": lambda q, kv: EDGES[q] <= kv,
    "equal sentinels": lambda q, kv: EDGES[q] == EDGES[kv],
    "bits of the least integer": lambda q, kv: (q | LEAST) < -1000,
    "a bit shifted out": lambda q, kv: (q * 3 < kv).int() * 7 <= (kv % 2) << 63,
    "a sum of shifted bits": lambda q, kv: (1 << (q + 55)) + kv > 0,
    "a cast of infinity": lambda q, kv: (ENDLESS[q] * 2).int() < kv,
    "32-bit sentinels": lambda q, kv: EDGES_32[q] < EDGES_32[kv],
    "a 32-bit difference": lambda q, kv: LARGE[q] - LARGE[kv] > 5,
    "a 32-bit product": lambda q, kv: LARGE[q] * 3 + LARGE[kv] > 0,
}


@pytest.mark.parametrize("name", WHAT_64_BITS_WRAP)
@pytest.mark.parametrize("block", [(1, 1), (4, 3)])
def test_the_ends_of_integers(name, block):
    judged(fs.mask(WHAT_64_BITS_WRAP[name]), block=block)


@pytest.mark.parametrize("fn", [lambda q, kv: EDGES[q] - EDGES[kv] > 0, lambda q, kv: -EDGES[q] < kv])
def test_arithmetic_that_wraps_is_refused(fn):
    with pytest.raises(fs.FlexSpecError, match="FS034"):
        fs.block_map(fs.mask(fn), 16)


def test_large_hashes_may_be_compared():
    hashes = torch.tensor([2**62 + 5, -(2**62), 2**62 + 5, 1] * 4)
    kept = judged(fs.mask(lambda q, kv: (hashes[q] == hashes[kv]) & (hashes[q] % 7 == hashes[kv] % 7)))
    assert int(kept.sum()) == 64 + 16 + 16


TYPES = {
    "a captured number": lambda q, kv: q - kv < TABLE[0],
    "a captured double": lambda q, kv: q * TENTH <= kv / 10,
    "a bound double": lambda q, kv: q * TENTH == kv * TENTH,
    "half and a number": lambda q, kv: HALF[q] >= 0.1,
    "half products": lambda q, kv: HALF[q] * HALF[kv] >= 0.04,
    "half and a position": lambda q, kv: HALF[q] * 1000 > kv * 100,
    "a boolean index": lambda q, kv: TABLE[q > kv] > 3,
    "the size of a boolean": lambda q, kv: abs(kv > 2) < q,
    "a sum that brings booleans together": lambda q, kv: -q + (kv > 2) + (q > 3) > -5,
}


@pytest.mark.parametrize("name", TYPES)
def test_types_are_the_languages_own(name):
    judged(fs.mask(TYPES[name]))


@pytest.mark.parametrize(
    "text",
    [
        "(q > 1) + (kv > 1) == 2",
        "sign(q > 1) - (kv > 2) < 1",
        "min(q > 1, kv > 1) * 3 - q == 2",
        "-(q > 3) * 2 < kv - 5",
    ],
)
def test_booleans_are_numbers_in_arithmetic(text):
    judged(fs.Mask(fs.parse(text), text))


@pytest.mark.parametrize("kind", ["float", "double"])
@pytest.mark.parametrize("value", [3, 0.1, 1.5])
def test_float_parameters_are_floats(kind, value):
    scale = fs.Param("scale", kind)
    judged(fs.mask(lambda q, kv: q * scale == kv / 10), scale=value)
    judged(fs.mask(lambda q, kv: (q * scale) // 2 <= kv * 0.3), scale=value)
    beyond = fs.mask(lambda q, kv: (q + 16777216) * scale == (kv + 16777216) * scale)  # floats there are even
    assert kind == "float" or int(judged(beyond, scale=value).sum()) == 16


def test_the_printed_difference_is_a_comparison():
    ids = fs.Input("ids", dims=("_",))
    text = source_of(fs.mask(lambda q, kv: ids[q] == ids[kv]).expr, kind="mask_mod")
    assert "ids[q] == ids[kv]" in text


U8 = torch.arange(0, 250, 10).to(torch.uint8)
I16 = torch.arange(25).to(torch.int16)
REFUSED = {
    "uint8 differences wrap": lambda b, h, q, kv: U8[q] - U8[kv] < 50,
    "also of a choice": lambda b, h, q, kv: torch.where(q > kv, U8[q], U8[kv]) - 5 < 50,
    "its complement": lambda b, h, q, kv: ~U8[q] > 100,
    "a shift": lambda b, h, q, kv: U8[q] << 1 > 100,
    "int16 products wrap": lambda b, h, q, kv: I16[q] * I16[kv] > 0,
    "half rounds a number": lambda b, h, q, kv: HALF[q] >= 0.1,
    "half rounds a position": lambda b, h, q, kv: HALF[q] > kv,
    "half rounds a sum": lambda b, h, q, kv: HALF[q] + HALF[kv] > 0.5,
}
TAKEN = {
    "compared": lambda b, h, q, kv: (U8[q] < U8[kv]) & (U8[q] < 100) & (HALF[q % 16] < HALF[kv % 16]),
    "converted": lambda b, h, q, kv: (U8[q].long() - U8[kv].long() < 50) & (HALF[q % 16].float() >= 0.1),
    "with a position": lambda b, h, q, kv: U8[q] - kv < 50,
    "divided": lambda b, h, q, kv: (U8[q] % 7 == U8[kv] % 7) | (U8[q] // 50 == U8[kv] // 50) | (U8[q] / 2 > kv),
    "bits": lambda b, h, q, kv: (U8[q] & U8[kv]) != 0,
    "an exact half": lambda b, h, q, kv: HALF[q % 16] > 0.25,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mask_mod_that_torch_computes_in_few_bits_is_refused(name):
    with pytest.raises(fs.FlexSpecError, match="FS008.*wraps or rounds"):
        fs.from_mask_mod(REFUSED[name])


@pytest.mark.parametrize("name", TAKEN)
def test_a_mask_mod_is_what_torch_computes(name):
    wanted = create_mask(TAKEN[name], 1, 1, 25, 25, device="cpu")
    assert torch.equal(fs.from_mask_mod(TAKEN[name]).dense(25), wanted)


def test_changing_a_tensor_in_place_is_refused():
    total = torch.zeros((), dtype=torch.int64)

    def in_place(b, h, q, kv):
        copy = total.clone()
        copy.add_(q)
        return copy >= kv

    def out(b, h, q, kv):
        copy = total.clone()
        torch.add(q, 1, out=copy)
        return copy >= kv

    for fn in (in_place, out):
        with pytest.raises(fs.FlexSpecError, match="FS008"):
            fs.from_mask_mod(fn)


def two_documents(cut, length=32):
    return torch.tensor([0] * cut + [1] * (length - cut))[None]  # a view: nothing else keeps it alive


def test_a_freed_tensors_map_is_not_anothers():
    attend = fs.compile(fs.document(), backend="reference")
    for cut in [*range(1, 32), *range(1, 32)]:
        ids = two_documents(cut)
        assert attend.block_map(32, document_id=ids).kept_pairs == cut**2 + (32 - cut) ** 2
        del ids


def test_tensors_of_inference_mode():
    attend = fs.compile(fs.document(), backend="reference")
    with torch.inference_mode():
        for cut in (5, 9):
            ids = two_documents(cut)
            assert attend.block_map(32, document_id=ids).kept_pairs == cut**2 + (32 - cut) ** 2
        ids[:] = 0
        assert attend.block_map(32, document_id=ids).kept_pairs == 32**2


def test_the_first_planted_difference_is_found():
    made = random.Random(0)
    length = 200_000
    for _ in range(4):
        places = sorted(tuple(made.randrange(size) for size in (2, 3, length, length)) for _ in range(2))

        def planted(b, h, q, kv, places=places):
            return reduce_or([(b == w) & (h == x) & (q == y) & (kv == z) for w, x, y, z in places])

        proof = fs.equals(fs.causal(), fs.causal() ^ planted, length, batch=2, heads=3)
        assert proof.counterexample == places[0]


def reduce_or(parts):
    return parts[0] | parts[1]


def test_a_map_of_equal_values_keeps_none_of_them():
    first, other = two_documents(5), two_documents(20)
    q = torch.randn(1, 1, 32, 8, generator=torch.Generator().manual_seed(0))
    attend = fs.compile(fs.document(), backend="reference")
    wanted = attend(q, q, q, document_id=first)
    first.copy_(other)
    assert torch.equal(attend(q, q, q, document_id=two_documents(5)), wanted)
    bias = fs.Input("bias", dims=("kv_len",), dtype="float")
    attend = fs.compile(fs.Attention(scores=[fs.score(lambda score, kv: score + bias[kv])]), backend="reference")
    zeros = [torch.zeros(32, requires_grad=True) for _ in range(2)]
    for each in zeros:
        attend(q, q, q, bias=each).pow(2).sum().backward()
    assert torch.equal(zeros[0].grad, zeros[1].grad)


PAST_64_BITS = {
    "a shifted bit, in blocks that are alike": lambda q, kv: (
        (1 << torch.where(q % 32 == 19, 63, 0)) + q - 600 > kv + 999
    ),
    "a large constant": lambda q, kv: torch.where(q % 32 == 9, 2**62, 0) + (2**62 - 600) + q > kv + 99,
    "a multiple of a shifted bit": lambda q, kv: ((1 << (q % 64)) * 3 + kv) // 3 == (1 << (q % 64)),
}


@pytest.mark.parametrize("name", PAST_64_BITS)
def test_sums_that_start_again(name):
    """What wraps follows no rule of sums: neither may blocks be taken for alike, nor multiples leave a division."""
    judged(fs.mask(PAST_64_BITS[name]), 1024, (8, 8))


@pytest.mark.parametrize("fn", [lambda q, kv: (q << 3) * 2**57 // 2**57 < kv, lambda q, kv: q * 2**60 // 2**60 < kv])
def test_products_that_wrap_are_refused_before_they_are_simplified(fn):
    with pytest.raises(fs.FlexSpecError, match="FS034"):
        fs.block_map(fs.mask(fn), 64)


def test_the_default_of_a_name_that_the_call_gives():
    def window(q, kv, *, h=5):
        return (q >= kv) & (q - kv < h)

    with pytest.raises(fs.FlexSpecError, match="FS021.*`h` is given by the call"):
        fs.mask(window)
    with pytest.raises(fs.FlexSpecError, match="FS021.*`q_len` is given by the call"):
        fs.mask(lambda q, kv, q_len=4: kv < q_len)
    with pytest.raises(fs.FlexSpecError, match="FS021.*`b` is given by the call"):
        fs.score(lambda score, q, b=0: score + b)
    assert fs.mask(lambda q, kv, h=None: kv < h + 1).dense(2, heads=2).sum() == 2 + 4


def test_a_pattern_that_is_not_called():
    for use in (lambda: fs.causal & fs.alibi, lambda: fs.Attention(scores=[fs.alibi])):
        with pytest.raises(
            fs.FlexSpecError, match=r"FS001(.|\n)*test_adversary.py(.|\n)*fix: call it: alibi\(\.\.\.\)"
        ):
            use()


def test_threads_that_build_the_ranges_of_one_tensor(monkeypatch):
    values = np.random.default_rng(0).integers(0, 1000, (8, 8))
    ranges, meet = TensorRanges({"values": values}), threading.Barrier(2, timeout=30)
    mine = threading.local()

    def pairs_at_once(*args):
        if not getattr(mine, "met", False):
            mine.met = True
            meet.wait()
        return pairs(*args)

    monkeypatch.setattr(tensor_ranges, "pairs", pairs_at_once)
    node = load(input_("values", ("_", "_"), Type.INT), (var("q"), var("kv")))
    part = np.array([0]), np.array([3])
    threads = [threading.Thread(target=ranges.over, args=(node, [part, part])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    for last in (1, 3, 7):
        end = np.array([0]), np.array([last])
        least, most = ranges.over(node, [end, end])
        box = values[: last + 1, : last + 1]
        assert (least, most) == (box.min(), box.max())


def test_threads_that_call_one_kernel(monkeypatch):
    """Another thread moves the function to the front of the list while it runs here."""
    functions = []

    def run(function, args):
        functions.remove(function)
        return function(*args)

    monkeypatch.setattr(flex, "_functions", lambda kernel: functions)
    monkeypatch.setattr(flex, "_function", lambda kernel, number: lambda value: value)
    monkeypatch.setattr(flex, "_run", run)
    functions.append(flex._function("kernel", 0))
    assert [flex._called("kernel", value) for value in (1, 2)] == [1, 2]
    assert len(functions) == 1


@pytest.mark.parametrize("given", [True, False])
def test_a_bias_of_64_bits_on_flex(given):
    """FlexAttention's kernel on the CPU gave nan where a score_mod returned float64."""
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 32, 16, generator=made) for _ in range(3))
    held = torch.randn(2, 32, generator=made, dtype=torch.float64)
    bias = fs.Input("bias", ("heads", "kv_len"), "float") if given else held
    attend = fs.compile(fs.Attention(scores=[fs.score(lambda score, h, kv: score + bias[h, kv])]), backend="flex")
    weights = torch.softmax((q @ k.mT / 4).double() + held[:, None], -1)
    values = {"bias": held} if given else {}
    torch.testing.assert_close(attend(q, k, v, **values), (weights @ v.double()).float())
