"""Masks as the Triton kernels ask them: spans, integers past 32 bits, floats rounded as torch rounds them."""

import pytest
import torch
from flexspec.compiler.printers.triton import may_fuse
from flexspec.compiler.simplify.spans import span_of
from hypothesis import given, settings
from hypothesis import strategies as st
from random_masks import comparisons, make_mask, masks, tables, truth
from test_triton import qkv, same_as_reference

import flexspec as fs
from flexspec.evaluate import evaluate
from flexspec.inputs import make_sizes
from flexspec.syntax import parse


def by_span(mask, side, q_len, kv_len, batch=1, heads=1):
    """bool [batch, heads, q_len, kv_len]: `first <= position < end`, the rest, and no position of the hole, evaluated
    as they stand.
    """
    shape = (batch, heads, q_len, kv_len)
    at = {
        name: torch.arange(size).view([-1 if axis == other else 1 for other in range(4)])
        for axis, (name, size) in enumerate(zip(("b", "h", "q", "kv"), shape, strict=True))
    }
    bound = mask.bind(make_sizes(q_len, kv_len, batch, heads), {})
    values = {**at, **bound.all_numbers(), **bound.tensors}
    first, end, rest, hole_first, hole_end = span_of(mask.expr, side)
    kept = torch.ones(shape, dtype=torch.bool)
    if hole_first is not None:
        assert side not in hole_first.names | hole_end.names
        kept &= (at[side] < evaluate(hole_first, values)) | (at[side] >= evaluate(hole_end, values))
    for part, limit in ((first, at[side].__ge__), (end, at[side].__lt__)):
        if part is not None:
            assert side not in part.names
            kept &= limit(evaluate(part, values))
    return kept if rest is None else kept & evaluate(rest, values)


conjunctions = st.lists(masks | comparisons, min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(conjunctions, st.integers(1, 30), st.integers(1, 30), st.integers(0, 9), st.sampled_from(["q", "kv"]))
def test_random_masks_are_their_span_and_rest(parts, q_len, kv_len, seed, side):
    held = tables(max(q_len, kv_len, 4), 2, 2, seed)
    kept, whole = torch.tensor(True), fs.everything()
    for part in parts:
        whole = whole & make_mask(part, held)
        kept = kept & truth(part, held, (2, 2, q_len, kv_len))
    assert torch.equal(by_span(whole, side, q_len, kv_len, 2, 2), kept)


@pytest.mark.parametrize(
    ("text", "side", "first", "end", "rest"),
    [
        ("kv <= q", "kv", None, "q + 1", None),
        ("kv <= q", "q", "kv", None, None),
        ("abs(q - kv) <= 5", "kv", "q - 5", "q + 6", None),
        ("kv == q + 2", "kv", "q + 2", "q + 3", None),
        ("(q >= kv) & ((q - kv < 8) | (kv < 4))", "q", "kv", "where(kv < 4, 2147483647, kv + 8)", None),
        ("(q % 2 == 0) | (kv >= q) | (kv >= 9)", "kv", "where(q % 2 == 0, 0, min(q, 9))", None, None),
        (
            "(q % 2 == 0) | (kv < q) | (q < 2)",
            "kv",
            None,
            "where(q < 2, 2147483647, where(q % 2 == 0, 2147483647, q))",
            None,
        ),
        ("(kv <= q) | (kv % 2 == 0) | (q < 3)", "kv", None, None, "(kv - q <= 0) | (kv % 2 == 0) | (q < 3)"),
        ("(q >= kv) | (kv < 5)", "kv", None, "max(q + 1, 5)", None),
        ("(kv <= q) & (q % 2 == 0)", "kv", None, "min(q + 1, where(q % 2 == 0, 2147483647, 0))", None),
        ("(kv // 2 <= q) & (2 * kv <= q)", "kv", None, None, "(kv // 2 - q <= 0) & (kv * 2 - q <= 0)"),
        ("abs(q - kv) > 5", "kv", None, None, "abs(q - kv) > 5"),
        ("kv * 1.0 <= q", "kv", None, None, "kv * 1.0 <= q"),
        ("kv != q", "kv", None, None, "kv - q != 0"),
    ],
)
def test_what_becomes_a_span(text, side, first, end, rest):
    span = span_of(parse(text), side)
    wanted = [part and parse(part) for part in (first, end, rest)]
    assert [part and str(part) for part in span] == [part and str(part) for part in (*wanted, None, None)]


@pytest.mark.parametrize(
    ("text", "rest", "hole_first", "hole_end"),
    [
        ("(q >= kv) & ((q - kv < 8) | (kv < 4))", None, "4", "q - 7"),
        ("(kv < 4) | (q - kv < 8) | (kv < q // 2) | (kv > q)", None, "max(4, q // 2)", "min(q - 7, q + 1)"),
        ("(kv < q) | (kv > q) | (q % 3 == 0)", None, "where(q % 3 == 0, 2147483647, q)", "q + 1"),
        ("((kv < 3) | (kv > 5)) & ((kv < 9) | (kv > q))", "(kv < 9) | (kv - q > 0)", "3", "6"),
    ],
)
def test_what_becomes_a_hole(text, rest, hole_first, hole_end):
    """Two limits that a disjunction is the union of leave out what lies between them: one such pair for a mask."""
    span = span_of(parse(text), "kv")
    assert span.rest is (rest and parse(rest))
    assert (str(span.hole_first), str(span.hole_end)) == (str(parse(hole_first)), str(parse(hole_end)))


LIMITS = torch.tensor([2**63 - 1, -(2**63), 2**31, 2**31 - 1, 2**31 - 2, -1, -3, 0, 1, 5, 8])


@pytest.mark.parametrize("keep", ["kv <= x", "kv < x", "kv >= x", "kv > x", "kv + 1 < x", "kv - 9 < x", "x == kv"])
def test_tensors_may_hold_any_integer(keep):
    """A sentinel such as the largest integer must not wrap."""
    mask = fs.mask(lambda q, kv: eval(keep, {"kv": kv, "x": LIMITS[q]}))
    wanted = [[eval(keep, {"kv": kv, "x": x}) for kv in range(8)] for x in LIMITS.tolist()]
    assert by_span(mask, "kv", len(LIMITS), 8)[0, 0].tolist() == wanted
    if keep == "kv <= x":
        assert span_of(mask.expr, "kv").rest is None
        same_as_reference(mask, *qkv(len(LIMITS), 8, heads=1, kv_heads=1, batch=1), block_size=16)


@pytest.mark.parametrize("size", [2**31 - 1, 2**31 - 60, 2**40, -(2**31)])
def test_parameters_near_the_ends_of_32_bits(size):
    """They leave sums once they are known; a kernel adds them all the same."""
    mask = fs.mask(lambda q, kv, *, far=0: ((q + far - kv >= 0) & (q - kv <= far)) | (kv == q))
    same_as_reference(mask, *qkv(40, heads=1, kv_heads=1, batch=1), block_size=16, far=size)
    mask = fs.mask(lambda q, kv, *, far=0: (kv - q <= far) & (kv - q > -20))
    same_as_reference(mask, *qkv(40, heads=1, kv_heads=1, batch=1), block_size=16, far=size)


@pytest.mark.parametrize("scale", [0.0, -0.7, 1e-38, 3.0])
def test_scales(scale):
    """Without a score function the maximum is taken before the scale."""
    same_as_reference(fs.Attention(mask=fs.causal_window(9), scale=scale), *qkv(40, 50, batch=1), block_size=16)


FLOATS = {
    "a product and a sum": lambda q, kv: q * 0.1 + kv * 0.3 < 7.7,
    "divisions": lambda q, kv: (q / 3) * 3 - kv / 7 * 7 == q - kv,
    "roots": lambda q, kv: torch.sqrt(q + 0.5) * torch.sqrt(q + 0.5) >= kv + 0.5,
    "remainders": lambda q, kv: (q * 1000.3) % 0.7 < (kv * 0.1) % 0.7,
    "quotients": lambda q, kv: (q * 0.1) // 0.1 >= kv,
    "negative divisors": lambda q, kv: ((q - kv) * 0.3) // -0.1 + ((q - kv) * 0.3) % -0.7 < 2.5,
    "doubles": lambda q, kv: torch.sqrt(STEPS[q]) / 3 > kv * STEPS[1],
}
STEPS = torch.arange(60, dtype=torch.float64) / 7


@pytest.mark.parametrize("name", FLOATS)
def test_floats(name):
    same_as_reference(fs.mask(FLOATS[name]), *qkv(60, heads=1, kv_heads=1, batch=1), block_size=16)


def test_what_may_be_fused():
    kept = {name: may_fuse(fs.mask(mask).expr) for name, mask in FLOATS.items()}
    assert not any(kept.values())
    assert may_fuse(fs.causal().expr) and may_fuse(fs.mask(lambda q, kv: q / 3 - kv < 2.5).expr)
