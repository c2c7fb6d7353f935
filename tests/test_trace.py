# ruff: noqa: SIM300, C416 - the operands stand on purpose where they stand
"""Tracing, judged by FlexAttention itself: `from_mask_mod(fn).dense` against torch's `create_mask`."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import and_masks, create_mask, noop_mask, or_masks

import flexspec as fs

B, H, Q, KV = 2, 3, 7, 9
IDS = torch.tensor([[0, 0, 1, 1, 2, 2, 2, 3, 3], [0, 1, 1, 1, 1, 2, 2, 2, 2]])
TABLE = torch.arange(9) * 4 % 9
CUBE = (torch.arange(B * H * 9) * 7 % 5).reshape(B, H, 9)
KEEP = torch.tensor([True, False, True, True, False, True, False, True, True])
REAL = torch.linspace(-1, 1, 9)
SMALL = torch.arange(9, dtype=torch.int32)
THREE, YES = torch.tensor(3), torch.tensor(True)

MASK_MODS = {
    "causal": lambda b, h, q, kv: q >= kv,
    "all comparisons": lambda b, h, q, kv: (q > kv) | (q < 2) & (kv <= 3) | (q != 4) & (kv == 5),
    "arithmetic": lambda b, h, q, kv: q * 3 - kv * 2 + 1 > 4,
    "number on the left": lambda b, h, q, kv: 10 - q > 2 + 1 * kv,
    "number compared on the left": lambda b, h, q, kv: (3 <= q) & (2 < kv) | (4 == q) | (5 != kv),
    "floor division of negatives": lambda b, h, q, kv: (q - kv) // 2 == -2,
    "modulo of negatives": lambda b, h, q, kv: (q - kv) % 3 == 1,
    "reflected floor division": lambda b, h, q, kv: 20 // (q + 1) > kv,
    "reflected modulo": lambda b, h, q, kv: 20 % (q + 1) == kv % 3,
    "true division": lambda b, h, q, kv: q / 2 >= kv,
    "reflected true division": lambda b, h, q, kv: 3 / (q + 1) >= kv / 4,
    "negation": lambda b, h, q, kv: -q + kv > -(kv - 2),
    "plus": lambda b, h, q, kv: +q > kv,
    "abs builtin": lambda b, h, q, kv: abs(q - kv) < 2,
    "abs method": lambda b, h, q, kv: (q - kv).abs() < 2,
    "abs function": lambda b, h, q, kv: torch.abs(q - kv) < 2,
    "clamp": lambda b, h, q, kv: q.clamp(min=1, max=3) == kv.clamp(1, 3),
    "clamp with tensors": lambda b, h, q, kv: torch.clamp(q, THREE, THREE + 2) > kv,
    "clamp with crossing bounds": lambda b, h, q, kv: q.clamp(min=5, max=2) > kv,
    "clamp_min": lambda b, h, q, kv: torch.clamp_min(q - kv, 0) == kv.clamp_max(2),
    "minimum, maximum": lambda b, h, q, kv: torch.minimum(q, kv) * 2 >= torch.maximum(q, kv),
    "max of two": lambda b, h, q, kv: torch.max(q, kv) > torch.min(q, THREE),
    "where": lambda b, h, q, kv: torch.where(q > 3, q - kv, kv - q) > 1,
    "where of numbers": lambda b, h, q, kv: torch.where(q > kv, 1, 0) == 1,
    "where by keywords": lambda b, h, q, kv: torch.where(condition=q > 3, input=q, other=kv) > 4,
    "method where": lambda b, h, q, kv: q.where(q > kv, kv - 3) > 1,
    "tensor's method where": lambda b, h, q, kv: THREE.where(q > kv, kv) > 2,
    "logical": lambda b, h, q, kv: torch.logical_and(q > 2, torch.logical_not(torch.logical_or(kv > 5, kv < 1))),
    "logical on integers": lambda b, h, q, kv: torch.logical_and(q, kv) | q.logical_xor(kv),
    "bit operations": lambda b, h, q, kv: ((q & 3) | (kv ^ 5)) == 7,
    "bit functions": lambda b, h, q, kv: torch.bitwise_and(q, 6) == torch.bitwise_xor(kv, torch.bitwise_or(q, 1)),
    "bit not": lambda b, h, q, kv: (~q) < -kv,
    "shifts": lambda b, h, q, kv: (q << 1 > kv) & ((1 << q) > kv) | (kv >> 1 == q),
    "reflected shifts": lambda b, h, q, kv: (64 >> q) > (THREE << kv),
    "shift functions": lambda b, h, q, kv: torch.bitwise_left_shift(q, 1) == torch.bitwise_right_shift(kv, 1),
    "floor_divide": lambda b, h, q, kv: torch.floor_divide(q - kv, 2) == -1,
    "remainder": lambda b, h, q, kv: torch.remainder(q - kv, 3) == 2,
    "remainder of a number": lambda b, h, q, kv: torch.remainder(7, q + 1) == 2,
    "div trunc": lambda b, h, q, kv: torch.div(q - kv, 2, rounding_mode="trunc") == -1,
    "div floor": lambda b, h, q, kv: torch.div(q - kv, 2, rounding_mode="floor") == -1,
    "fmod": lambda b, h, q, kv: torch.fmod(q - kv, 3) == -1,
    "fmod of reals": lambda b, h, q, kv: torch.fmod((q - kv) * 0.7, 0.3) < 0.1,
    "rsub": lambda b, h, q, kv: torch.rsub(q, kv) > 1,
    "isin": lambda b, h, q, kv: torch.isin(q, torch.tensor([1, 3])) | torch.isin(kv, torch.tensor([0]), invert=True),
    "power": lambda b, h, q, kv: q**2 > kv**3 - (q + 1.0) ** -1,
    "float base": lambda b, h, q, kv: 2.0**q > kv * 3,
    "square, sign": lambda b, h, q, kv: (torch.square(q - kv) < 5) & (torch.sign(q - kv) >= 0),
    "sqrt, exp": lambda b, h, q, kv: (q + 1).float().sqrt() > torch.exp(-kv * 0.1),
    "rounding": lambda b, h, q, kv: torch.round(q / 2) + torch.floor(q / 3) - torch.ceil(kv / 2) > torch.trunc(kv / 3),
    "bool sum": lambda b, h, q, kv: ((q > kv) + (kv > 2)).bool(),
    "bool sum as integers": lambda b, h, q, kv: ((q > kv).int() + (kv > 2)) > 1,
    "bool product": lambda b, h, q, kv: (q > kv) * (kv > 2),
    "bool equality": lambda b, h, q, kv: (q > kv) == (kv > 2),
    "bool inequality": lambda b, h, q, kv: (q > kv) != True,  # noqa: E712
    "xor": lambda b, h, q, kv: (q > kv) ^ (kv > 2),
    "tensor on the left": lambda b, h, q, kv: (THREE >= q) | (THREE < kv) & (q != THREE),
    "tensor minus position": lambda b, h, q, kv: (THREE - q) > kv - THREE,
    "tensor // position": lambda b, h, q, kv: THREE // (q + 1) >= kv % THREE,
    "tensor % position": lambda b, h, q, kv: (THREE % (q + 1)) >= kv - 2,
    "tensor method": lambda b, h, q, kv: THREE.sub(q) > kv.sub(THREE),
    "bool tensor": lambda b, h, q, kv: (YES & (q > kv)) | ((q < 2) & ~YES),
    "only a tensor": lambda b, h, q, kv: YES & (q > -1),
    "captured [n]": lambda b, h, q, kv: TABLE[q] > TABLE[kv],
    "captured [b, n]": lambda b, h, q, kv: IDS[b, q] == IDS[b, kv],
    "captured [b][n]": lambda b, h, q, kv: IDS[b][q] == IDS[b][kv],
    "captured [b, h, n]": lambda b, h, q, kv: CUBE[b, h, q] >= CUBE[b][h, kv],
    "captured bool": lambda b, h, q, kv: KEEP[kv] & ~KEEP[q],
    "captured real": lambda b, h, q, kv: REAL[q] * 2 > REAL[kv] + 0.1,
    "captured int32": lambda b, h, q, kv: SMALL[q] - SMALL[kv] < 2,
    "negative index": lambda b, h, q, kv: TABLE[q - kv] > 2,
    "number in an index": lambda b, h, q, kv: IDS[1, q] == IDS[-1, kv],
    "index of an index": lambda b, h, q, kv: TABLE[TABLE[q]] == kv,
    "index cast": lambda b, h, q, kv: TABLE[(q / 2).long()] == TABLE[(q > kv).int()],
    "table computed inside": lambda b, h, q, kv: (TABLE + 1)[q] > kv,
    "transposed table": lambda b, h, q, kv: IDS.T[q, b] == 1,
    "casts": lambda b, h, q, kv: (q.float() / 2 > kv.to(torch.float32)) | q.to(torch.int32).bool(),
    "to a python type": lambda b, h, q, kv: (q & 1).to(bool) & (q.to(float) / 2 > kv.to(int)),
    "to device and dtype of another": lambda b, h, q, kv: q.to("cpu").to(REAL) > kv.type(torch.float64),
    "type_as": lambda b, h, q, kv: (q / 2).type_as(kv) == kv,
    "ones_like": lambda b, h, q, kv: torch.ones_like(q, dtype=bool),
    "zeros_like": lambda b, h, q, kv: torch.zeros_like(q, dtype=torch.bool) | (q > kv),
    "new_ones": lambda b, h, q, kv: q.new_ones((), dtype=torch.bool) & (kv > 1),
    "full_like": lambda b, h, q, kv: torch.full_like(q, 3) > kv,
    "new_tensor": lambda b, h, q, kv: q.new_tensor(3) > kv,
    "numpy number on the left": lambda b, h, q, kv: (np.int64(5) - q > kv) | (np.int64(6) < q),
    "numpy real on the left": lambda b, h, q, kv: np.float64(2.5) * q > kv,
    "head and batch": lambda b, h, q, kv: (h == 1) & (q >= kv) | (b == 1) & (h == 0),
    "view of one number": lambda b, h, q, kv: q.view(()) > kv,
    "noop": noop_mask,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", MASK_MODS)
def test_traced_mask_is_torchs(name: str) -> None:
    fn = MASK_MODS[name]
    wanted = create_mask(fn, B, H, Q, KV, device="cpu")
    assert torch.equal(fs.from_mask_mod(fn).dense(Q, KV, batch=B, heads=H), wanted)


def causal(b, h, q, kv):
    return q >= kv


def window(size):
    def near(b, h, q, kv):
        return q - kv <= size

    return near


def same(ids):
    return lambda b, h, q, kv: ids[b, q] == ids[b, kv]


class Documents:
    def __init__(self, ids):
        self.ids = ids

    def mod(self, b, h, q, kv):
        return self.ids[b, q] == self.ids[b, kv]

    def __call__(self, b, h, q, kv):
        return self.mod(b, h, q, kv) & (q >= kv)


def scaled(factor, b, h, q, kv, *, shift=0):
    return q * factor + shift >= kv


COMPOSED = {
    "and_masks": and_masks(causal, window(3), same(IDS)),
    "or_masks of and_masks": or_masks(and_masks(causal, same(IDS)), window(-4), same(IDS.flip(0))),
    "partial": functools.partial(scaled, 2, shift=-1),
    "partial of partial": functools.partial(functools.partial(scaled, 2), shift=3),
    "method": Documents(IDS).mod,
    "callable object": Documents(IDS),
    "two objects": and_masks(Documents(IDS).mod, Documents(IDS.flip(1)).mod),
    "flexspec mask inside": and_masks(fs.from_mask_mod(same(IDS)), fs.from_mask_mod(same(IDS.flip(0)))),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_composed_mask_mods(name: str) -> None:
    fn = COMPOSED[name]
    plain = and_masks(same(IDS), same(IDS.flip(0))) if name == "flexspec mask inside" else fn

    def four(b, h, q, kv):  # torch counts `self` among a method's positions
        return plain(b, h, q, kv)

    wanted = create_mask(four, B, H, Q, KV, device="cpu")
    assert torch.equal(fs.from_mask_mod(fn).dense(Q, KV, batch=B, heads=H), wanted)


@pytest.mark.parametrize("value", [True, False, 1, 0])
def test_a_constant_is_a_mask(value: object) -> None:
    made = fs.from_mask_mod(lambda b, h, q, kv: value)
    assert made.dense(2).tolist() == [[[[bool(value)] * 2] * 2]]


def test_a_zero_dim_tensor_is_a_mask() -> None:
    assert fs.from_mask_mod(lambda b, h, q, kv: YES).dense(2).all()


def test_captured_tensors_are_named_as_in_the_predicate() -> None:
    document_ids = IDS
    made = fs.from_mask_mod(lambda b, h, q, kv: document_ids[b, q] == document_ids[b, kv])
    assert set(made.tensors) == {"document_ids"}
    assert made.tensors["document_ids"] is IDS


def test_a_captured_name_that_means_something_is_changed() -> None:
    min = q_len = IDS[0]  # noqa: A001
    made = fs.from_mask_mod(lambda b, h, q, kv: min[q] == TABLE[kv])
    assert torch.equal(made.dense(9)[0, 0], IDS[0][:, None] == TABLE[None])
    assert not set(made.tensors) & {"min", "q_len"}
    assert fs.parse(str(made.expr)) is made.expr
    assert q_len is min


def test_one_tensor_is_captured_once() -> None:
    made = fs.from_mask_mod(lambda b, h, q, kv: (TABLE[q] > 1) & (TABLE[kv] > 1))
    assert list(made.tensors) == ["TABLE"]


def test_masks_in_a_predicate_keep_tensors_and_defaults() -> None:
    ids = IDS[0]
    inner = fs.from_mask_mod(lambda b, h, q, kv: ids[q] == ids[kv])

    @fs.mask
    def near(q, kv, *, window=2):
        return (q - kv).abs() < window

    def outer(b, h, q, kv, ids=IDS[1]):
        return inner(b, h, q, kv) & (ids[q] == ids[kv]) | near(b, h, q, kv)

    def same_row(row):
        return row[:, None] == row[None]

    at = torch.arange(9)
    wanted = same_row(IDS[0]) & same_row(IDS[1]) | ((at[:, None] - at).abs() < 2)
    assert torch.equal(fs.from_mask_mod(outer).dense(9)[0, 0], wanted)


def test_a_mask_in_a_predicate_at_other_positions() -> None:
    causal_mask = fs.mask(lambda q, kv: q >= kv)
    flipped = fs.from_mask_mod(lambda b, h, q, kv: causal_mask(b, h, kv, q))
    assert torch.equal(flipped.dense(4)[0, 0], torch.ones(4, 4).triu().bool())


def test_score_mods_are_torchs() -> None:
    bias = torch.randn(9, generator=torch.Generator().manual_seed(0))

    def mod(score, b, h, q, kv):
        return torch.tanh(score / 20.0) * 20.0 + bias[q] - torch.exp2(-(h + 1) * 8.0 / H) * (q - kv)

    made = fs.from_score_mod(mod)
    values = {name: torch.tensor(number) for name, number in {"b": 1, "h": 2, "q": 3, "kv": 5}.items()}
    score = torch.tensor(1.5)
    from flexspec.evaluate import evaluate

    found = evaluate(made.expr, {"score": score, **made.tensors, **values})
    assert torch.equal(found, mod(score, *values.values()))


def test_a_param_and_an_input_inside_a_mask_mod() -> None:
    width, ids = fs.Param("width"), fs.Input("ids", dims=("batch", "sequence"))
    made = fs.from_mask_mod(lambda b, h, q, kv: (q - kv < width) & (ids[b, q] == ids[b][kv]))
    wanted = create_mask(lambda b, h, q, kv: (q - kv < 2) & (IDS[b, q] == IDS[b, kv]), B, 1, 9, 9, device="cpu")
    assert torch.equal(made.dense(9, width=2, ids=IDS), wanted)
