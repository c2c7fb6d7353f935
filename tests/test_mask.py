"""Masks as values: composition, parameters, tensors, equality; small matrices read as documentation."""

from __future__ import annotations

from typing import Annotated

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

import flexspec as fs
from flexspec.errors import FlexSpecError

causal = fs.mask(lambda q, kv: q >= kv)
diagonal = fs.mask(lambda q, kv: q == kv)
first = fs.mask(lambda kv: kv < 1)


def grid(mask: fs.Mask, q_len: int = 4, kv_len: int | None = None, **inputs: object) -> list[str]:
    """The first head's matrix, a row of `#` and `.` for each query."""
    dense = mask.dense(q_len, kv_len, **inputs)
    return ["".join("#" if keep else "." for keep in row) for row in dense[0, 0].tolist()]


def test_and() -> None:
    assert grid(causal & first) == ["#...", "#...", "#...", "#..."]


def test_or() -> None:
    assert grid(diagonal | first) == ["#...", "##..", "#.#.", "#..#"]


def test_not() -> None:
    assert grid(~causal) == [".###", "..##", "...#", "...."]


def test_xor() -> None:
    assert grid(causal ^ first) == ["....", ".#..", ".##.", ".###"]


def test_minus_is_and_not() -> None:
    assert grid(causal - first) == ["....", ".#..", ".##.", ".###"]
    assert grid(first - causal) == ["....", "....", "....", "...."]
    assert grid(first - diagonal) == ["....", "#...", "#...", "#..."]


def test_mask_mods_compose_on_both_sides() -> None:
    def sink(b, h, q, kv):
        return kv < 1

    assert causal & sink == causal & first
    assert (sink & causal).expr is (first & causal).expr
    assert (sink | causal).expr is (first | causal).expr
    assert (sink ^ causal).expr is (first ^ causal).expr
    assert (sink - causal).expr is (first - causal).expr


def test_unequal_lengths() -> None:
    assert grid(causal, 2, 5) == ["#....", "##..."]
    assert fs.mask(lambda q, kv, q_len, kv_len: q + kv_len - q_len >= kv).dense(2, 5).int().tolist() == [
        [[[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]]
    ]


def test_positions_by_either_name_in_any_order() -> None:
    assert fs.mask(lambda kv_idx, q_idx: q_idx >= kv_idx).expr is causal.expr
    assert fs.mask(lambda kv, h, b, q: q >= kv).expr is causal.expr


def test_labels() -> None:
    def near(q, kv, *, window):
        return q - kv < window

    assert repr(fs.mask(near)(window=3)) == "near(window=3)"
    assert repr(fs.mask(near)(3) & ~fs.mask(near)(4)) == "near(window=3) & ~near(window=4)"
    assert repr(fs.mask(near)(fs.Param("w"))) == "near(window=<w>)"
    a, b, c = (fs.mask(near)(n) for n in (1, 2, 3))
    assert repr((a & b & c) - a) == "(near(window=1) & near(window=2) & near(window=3)) - near(window=1)"
    assert repr(~(a | b) & c) == "~(near(window=1) | near(window=2)) & near(window=3)"
    assert repr(a & (b & c)) == "near(window=1) & (near(window=2) & near(window=3))"


@fs.mask
def near(q, kv, *, window: Annotated[int, Field(ge=1)] = 2, sink: int = 0):
    return (q >= kv) & ((q - kv < window) | (kv < sink))


def test_parameters_bound_free_and_at_run_time() -> None:
    assert grid(near(window=1)) == grid(diagonal) == grid(near, window=1) == grid(near(1, 0)) == grid(near(1)(sink=0))
    assert grid(near) == ["#...", "##..", ".##.", "..##"]
    assert grid(near(sink=1)) == ["#...", "##..", "###.", "#.##"]
    assert grid(near(window=1) | near(window=1)(sink=1)) == ["#...", "##..", "#.#.", "#..#"]
    assert near.defaults == {"window": 2, "sink": 0}
    assert near(window=3).defaults == {"sink": 0}


def test_a_parameter_of_a_composition() -> None:
    both = near & ~diagonal
    assert (
        grid(both, window=3)
        == grid(both(window=3))
        == [
            "....",
            "#...",
            "##..",
            ".##.",
        ]
    )
    assert both(window=3).defaults == {"sink": 0}


def test_annotations_check_values() -> None:
    for call in (lambda: near(window=0), lambda: near.dense(4, window=0), lambda: near(window="1")):
        with pytest.raises(FlexSpecError, match=r"FS025.*window is"):
            call()


def test_a_param_shared_by_two_patterns() -> None:
    width = fs.Param("width")
    made = near(window=width) & fs.mask(lambda q, kv: q - kv < width)
    assert grid(made, width=2) == grid(near(window=2))
    assert grid(near(window=width * 2), width=1) == grid(near(window=2))
    with pytest.raises(FlexSpecError, match="FS020"):
        made.dense(4)


def test_a_real_and_a_boolean_parameter() -> None:
    made = fs.mask(lambda q, kv, *, slope=0.5, flip=False: ((q - kv) * slope > 0.9) ^ flip)
    assert grid(made) == ["....", "....", "#...", "##.."]
    assert grid(made, slope=1.0, flip=True) == ["####", ".###", "..##", "...#"]
    assert grid(made(flip=True)(slope=1)) == ["####", ".###", "..##", "...#"]


def captured(values: list[int]) -> fs.Mask:
    ids = torch.tensor(values)
    return fs.from_mask_mod(lambda b, h, q, kv: ids[q] == ids[kv])


@pytest.mark.parametrize("op", ["and", "or", "xor", "sub"])
def test_captured_tensors_of_one_name_stay_apart(op: str) -> None:
    a, b, c = captured([0, 0, 1, 1]), captured([0, 1, 1, 0]), captured([0, 1, 0, 1])
    join = {
        "and": torch.logical_and,
        "or": torch.logical_or,
        "xor": torch.logical_xor,
        "sub": lambda x, y: x & ~y,
    }[op]
    made = getattr(getattr(a, f"__{op}__")(b), f"__{op}__")(c)
    assert len(made.tensors) == 3
    assert torch.equal(made.dense(4), join(join(a.dense(4), b.dense(4)), c.dense(4)))
    other = getattr(c, f"__{op}__")(getattr(a, f"__{op}__")(b))
    assert torch.equal(other.dense(4), join(c.dense(4), join(a.dense(4), b.dense(4))))


def test_one_captured_tensor_is_held_once() -> None:
    mask = captured([0, 0, 1])
    assert list((mask & ~mask).tensors) == ["ids"]


def test_a_captured_tensor_and_an_input_or_a_parameter_of_one_name() -> None:
    source = fs.Input("ids", dims=("sequence",))
    run_time = fs.mask(lambda q, kv: source[q] == source[kv])
    number = fs.mask(lambda q, kv, *, ids: q - kv < ids)
    held, values = captured([0, 0, 1, 1]), torch.tensor([0, 1, 1, 0])
    for made in (held & run_time, run_time & held):
        assert torch.equal(made.dense(4, ids=values), held.dense(4) & run_time.dense(4, ids=values))
    for made in (held & number, number & held):
        assert torch.equal(made.dense(4, ids=1), held.dense(4) & number.dense(4, ids=1))


def test_inputs_of_one_name_are_one_input() -> None:
    source = fs.Input("ids", dims=("sequence",))
    made = fs.mask(lambda q: source[q] > 0) & fs.mask(lambda kv: source[kv] > 0)
    assert grid(made, ids=torch.tensor([0, 1, 1, 0])) == ["....", ".##.", ".##.", "...."]
    assert grid(made(ids=torch.tensor([1, 0, 0, 1]))) == ["#..#", "....", "....", "#..#"]


def test_equality_and_hash_are_by_value() -> None:
    assert fs.mask(lambda q, kv: q >= kv) == causal
    assert hash(fs.mask(lambda q, kv: q >= kv)) == hash(causal)
    assert causal != fs.mask(lambda q, kv: kv <= q)
    assert near(window=3) != near(window=4)
    assert near != near(window=2)
    assert len({causal, fs.mask(lambda q, kv: q >= kv), diagonal}) == 2
    assert captured([0, 1]) != captured([0, 1])
    assert captured([0, 1]) != causal
    assert fs.mask(canvas=fs.Canvas(w=4))(lambda q, kv: q >= kv) != causal
    assert fs.score(lambda score: score) != causal


def test_a_mask_called_inside_a_predicate() -> None:
    inner = captured([0, 0, 1, 1])
    made = fs.mask(lambda b, h, q, kv: inner(b, h, q, kv) & causal(b, h, q, kv))
    assert grid(made) == ["#...", "##..", "..#.", "..##"]
    assert grid(fs.mask(lambda q, kv: near(0, 0, kv, q) | (q == kv))) == ["##..", ".##.", "..##", "...#"]


def test_a_mask_called_on_tensors() -> None:
    at = torch.arange(4)
    assert torch.equal(causal(torch.tensor(0), torch.tensor(0), at[:, None], at), causal.dense(4)[0, 0])
    inner = captured([0, 0, 1, 1])
    assert torch.equal(inner(torch.tensor(0), torch.tensor(0), at[:, None], at), inner.dense(4)[0, 0])


def test_axes_of_a_canvas() -> None:
    image = fs.Canvas(h=2, w=2)
    same_row = fs.mask(canvas=image)(lambda q, kv: q.h == kv.h)
    same_column = fs.mask(canvas=image)(lambda q, kv: q.w == kv.w)
    assert grid(same_row) == ["##..", "##..", "..##", "..##"]
    assert grid(same_row ^ same_column & causal) == [".#..", "#...", "#..#", ".##."]
    assert (same_row & causal).canvas == image


def test_batch_and_heads_are_read_off_the_inputs() -> None:
    source = fs.Input("ids", dims=("batch", "heads", "sequence"))
    mask = fs.mask(lambda b, h, q: source[b, h, q] > 0)
    assert mask.dense(3, ids=torch.ones(2, 5, 3, dtype=torch.int64)).shape == (2, 5, 3, 3)
    assert causal.dense(3, batch=2, heads=4).shape == (2, 4, 3, 3)


SPANS = fs.Input("spans", dims=("batch", "heads"))
near_by_head = fs.mask(lambda b, h, q, kv: abs(q - kv) <= SPANS[b, h])


def span_matrix(spans: list[list[int]], length: int) -> list[list[list[list[bool]]]]:
    tokens = range(length)
    return [[[[abs(q - kv) <= span for kv in tokens] for q in tokens] for span in heads] for heads in spans]


@pytest.mark.parametrize("spans", [[[2]], [[2], [5]], [[1, 3, 2, 6]], [[1, 3, 2, 6], [0, 2, 9, 4]]])
def test_one_head_or_one_batch_entry_serves_all(spans: list[list[int]]) -> None:
    whole = [heads * (4 // len(heads)) for heads in spans] * (2 // len(spans))
    wanted = span_matrix(whole, 20)
    given = torch.tensor(spans)
    assert near_by_head.dense(20, batch=2, heads=4, spans=given).tolist() == wanted
    assert near_by_head(spans=given).dense(20, batch=2, heads=4).tolist() == wanted
    blocks = fs.block_map(near_by_head, 20, batch=2, heads=4, block_size=4, spans=given)
    by_block = torch.tensor(wanted).view(2, 4, 5, 4, 5, 4).transpose(3, 4).flatten(-2)
    kinds = by_block.any(-1).int() + by_block.all(-1).int()
    assert torch.equal(blocks.kinds().expand(2, 4, 5, 5).int(), kinds)


@pytest.mark.parametrize(
    "backend, exact", [("reference", True), ("reference", False), ("flex", True), ("flex", False), ("triton", True)]
)
def test_one_head_serves_all_in_a_call(backend: str, exact: bool) -> None:
    q, k, v = (torch.randn(2, 4, 40, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    gain = fs.Input("gain", dims=("heads",), dtype="float")
    scaled = fs.score(lambda score, h: score * gain[h])
    attend = fs.compile(fs.Attention(near_by_head, [scaled]), backend=backend, block_size=16, exact=exact)
    for spans, gains in (([[3]], [2.0]), ([[7], [2]], [0.5]), ([[7, 1, 30, 0]], [0.5, 1.0, 2.0, 3.0])):
        out = attend(q, k, v, spans=torch.tensor(spans), gain=torch.tensor(gains))
        whole = [heads * (4 // len(heads)) for heads in spans] * (2 // len(spans))
        scaled_q = q * torch.tensor(gains * (4 // len(gains))).view(1, 4, 1, 1)
        keep = torch.tensor(span_matrix(whole, 40))
        wanted = torch.nn.functional.scaled_dot_product_attention(scaled_q, k, v, attn_mask=keep)
        torch.testing.assert_close(out, wanted, atol=2e-5, rtol=2e-5)


def test_heads_that_do_not_fit_are_an_error() -> None:
    for spans in ([[1, 2]], [[1, 2, 3]]):
        with pytest.raises(fs.FlexSpecError, match="dim `heads` of `spans` has size"):
            near_by_head.dense(6, batch=1, heads=4, spans=torch.tensor(spans))


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_the_gradient_of_one_head_is_the_sum_over_all(backend: str) -> None:
    slopes = torch.tensor([0.3], requires_grad=True)
    q, k, v = (torch.randn(1, 4, 20, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    fs.compile(fs.Attention(scores=[fs.alibi(slopes)]), backend=backend)(q, k, v).square().sum().backward()
    plain = torch.tensor([0.3], requires_grad=True)
    at = torch.arange(20)
    bias = -plain * (at[:, None] - at).abs()
    scores = q @ k.transpose(-1, -2) / 4 + bias
    (torch.softmax(scores, -1) @ v).square().sum().backward()
    torch.testing.assert_close(slopes.grad, plain.grad, atol=1e-4, rtol=1e-4)


ATOMS = {
    "causal": (causal, lambda q, kv: q >= kv),
    "diagonal": (diagonal, lambda q, kv: q == kv),
    "first": (first, lambda q, kv: kv < 1),
    "near": (near(window=2, sink=1), lambda q, kv: q >= kv and (q - kv < 2 or kv < 1)),
    "even": (fs.mask(lambda q, kv: (q - kv) % 2 == 0), lambda q, kv: (q - kv) % 2 == 0),
    "ids": (
        captured([0, 0, 1, 1, 2, 0, 1]),
        lambda q, kv: [0, 0, 1, 1, 2, 0, 1][q] == [0, 0, 1, 1, 2, 0, 1][kv],
    ),
    "ids again": (captured([0, 1] * 4), lambda q, kv: q % 2 == kv % 2),
}
JOINS = {
    "&": (lambda a, b: a & b, lambda a, b: a and b),
    "|": (lambda a, b: a | b, lambda a, b: a or b),
    "^": (lambda a, b: a ^ b, lambda a, b: a != b),
    "-": (lambda a, b: a - b, lambda a, b: a and not b),
}
PAIRS = st.recursive(
    st.sampled_from(list(ATOMS.values())),
    lambda below: st.one_of(
        st.tuples(below, st.sampled_from(list(JOINS.values())), below).map(
            lambda item: (
                item[1][0](item[0][0], item[2][0]),
                lambda q, kv, item=item: item[1][1](item[0][1](q, kv), item[2][1](q, kv)),
            )
        ),
        below.map(lambda item: (~item[0], lambda q, kv, item=item: not item[1](q, kv))),
    ),
    max_leaves=6,
)


@settings(max_examples=120, deadline=None)
@given(PAIRS, st.integers(1, 7), st.integers(1, 7))
def test_any_composition_is_pythons(pair, q_len, kv_len) -> None:
    mask, fn = pair
    assert mask.dense(q_len, kv_len)[0, 0].tolist() == [[fn(q, kv) for kv in range(kv_len)] for q in range(q_len)]


def test_a_tensor_renamed_takes_no_name_that_is_read() -> None:
    """The second `ids` must not be called `ids_2`: its own mask reads an input of that name."""
    ours, theirs, given = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 1, 0]), torch.tensor([5, 6, 6, 6])
    first = fs.Mask(fs.parse("ids: int[sequence]; ids[q] == ids[kv]"), "first", {"ids": ours})
    text = "ids: int[sequence]; ids_2: int[sequence]; (ids[q] == ids[kv]) & (ids_2[q] == ids_2[kv])"
    second = fs.Mask(fs.parse(text), "second", {"ids": theirs})
    wanted = [[all(ids[i] == ids[j] for ids in (ours, theirs, given)) for j in range(4)] for i in range(4)]
    assert (first & second).dense(4, ids_2=given)[0, 0].tolist() == wanted
