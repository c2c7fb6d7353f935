"""Bounds are sound: every operator over every small interval holds every value that evaluation gives."""

import itertools
import math

import numpy as np
import pytest
import torch
from flexspec.compiler.blocks.intervals import BOUNDS, FAR, bound
from torch._subclasses.fake_tensor import FakeTensorMode

import flexspec as fs
from flexspec.ops import OPS, Type

INTS = [(lo, hi) for lo in range(-5, 6) for hi in range(lo, 6)]
BOOLS = [(False, False), (False, True), (True, True)]
REALS = [-math.inf, -3.5, -1.0, -0.0, 0.25, 1.0, 2.0, 7.5, math.inf, math.nan]
FLOATS = [(lo, hi) for lo in REALS for hi in REALS if lo <= hi] + [(math.nan, math.nan)]  # the last: unknown
DOMAINS = {Type.BOOL: BOOLS, Type.INT: INTS, Type.FLOAT: FLOATS}


def members(kind, ends):
    lo, hi = ends
    if kind is Type.FLOAT:
        return [x for x in REALS if lo != lo or lo <= x <= hi]
    return [x for x in ([False, True] if kind is Type.BOOL else range(lo, hi + 1)) if lo <= x <= hi]


def signatures():
    for op in OPS.values():
        for kinds in itertools.product(DOMAINS, repeat=op.arity):
            try:
                op.signature(kinds)
            except TypeError:
                continue
            yield pytest.param(op, kinds, id=f"{op.name}-{'-'.join(kind.text for kind in kinds)}")


def test_every_operator_has_a_rule():
    assert BOUNDS.keys() == OPS.keys()


def ends_of(kinds):
    """Combinations of intervals, and the arrays of their ends: one entry for each combination."""
    combinations = list(itertools.product(*(DOMAINS[kind] for kind in kinds)))
    if len(combinations) > 3000:
        combinations = combinations[:: len(combinations) // 3000]
    return combinations, [
        (np.array([c[i][0] for c in combinations], kind.numpy), np.array([c[i][1] for c in combinations], kind.numpy))
        for i, kind in enumerate(kinds)
    ]


def on_torch(ends):
    return [(torch.from_numpy(lo), torch.from_numpy(hi)) for lo, hi in ends]


@pytest.mark.parametrize(("op", "kinds"), list(signatures()))
def test_every_value_lies_within(op, kinds):
    """All intervals at once."""
    combinations, ends = ends_of(kinds)
    with np.errstate(all="ignore"):
        lo, hi = (np.broadcast_to(end, len(combinations)) for end in bound(op.name, ends, kinds))
        operand_kinds, _ = op.signature(kinds)
        for at, combination in enumerate(combinations):
            values = list(itertools.product(*(members(kind, c) for kind, c in zip(kinds, combination, strict=True))))
            columns = [
                np.array([value[i] for value in values], kind.numpy).astype(operand_kinds[i].numpy)
                for i, kind in enumerate(kinds)
            ]
            if op.name in ("floordiv", "mod") and columns[1].dtype == np.int64:
                columns = [column[columns[1] != 0] for column in columns]
            if op.name in ("lshift", "rshift"):
                columns = [column[columns[1] >= 0] for column in columns]
            if not len(columns[0]):
                continue
            result = op.numpy(*columns)
            unknown = lo[at] != lo[at] or (lo.dtype == np.int64 and lo[at] <= -FAR)
            if op.name == "int" and kinds[0] is Type.FLOAT:
                result = result[np.isfinite(columns[0])]
            assert unknown or ((lo[at] <= result) & (result <= hi[at])).all(), (combination, lo[at], hi[at], result)


@pytest.mark.parametrize(("op", "kinds"), list(signatures()))
def test_the_rules_are_the_same_in_torch(op, kinds):
    """On the device each end is the host's, and of the same type."""
    _, ends = ends_of(kinds)
    with np.errstate(all="ignore"):
        host = bound(op.name, ends, kinds)
    for wanted, found in zip(host, bound(op.name, on_torch(ends), kinds), strict=True):
        assert found.numpy().dtype == wanted.dtype
        np.testing.assert_array_equal(found.numpy(), wanted)


@pytest.mark.parametrize(("op", "kinds"), list(signatures()))
def test_nothing_is_read_back_from_a_device(op, kinds):
    """Under fake tensors there is no value to read: anything that needs one raises."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        ends = [(torch.zeros(3, 1, dtype=kind.torch), torch.ones(1, 4, dtype=kind.torch)) for kind in kinds]
        low, high = bound(op.name, ends, kinds)
    _, result = op.signature(kinds)
    assert low.dtype == high.dtype == result.torch and low.numel() > 0


LEAST, MOST = -(2**63), 2**63 - 1
EDGES = [LEAST, LEAST + 1, -FAR, -3, 0, 1, 2**31, FAR, MOST]
INT_OPS = [op for op in OPS.values() if op.name in BOUNDS and op.name not in ("where",)]


@pytest.mark.parametrize("op", INT_OPS, ids=lambda op: op.name)
def test_at_the_ends_of_64_bits_bounds_hold_or_refuse(op):
    """Values wrap as the kernels' do; whatever they become lies within, or the expression is refused (FS034)."""
    kinds = (Type.INT,) * op.arity
    try:
        operand_kinds, _ = op.signature(kinds)
    except TypeError:
        return
    intervals = list(itertools.combinations_with_replacement(EDGES, 2))
    refused = 0
    for combination in itertools.product(intervals, repeat=op.arity):
        ends = [(np.array([lo], np.int64), np.array([hi], np.int64)) for lo, hi in combination]
        inside = [[x for x in EDGES if lo <= x <= hi] for lo, hi in combination]
        columns = [np.array(column, np.int64) for column in zip(*itertools.product(*inside), strict=True)]
        if op.name in ("floordiv", "mod"):
            columns = [column[columns[1] != 0] for column in columns]
        if op.name in ("lshift", "rshift"):
            columns = [column[(columns[1] >= 0) & (columns[1] < 64)] for column in columns]
        with np.errstate(all="ignore"):
            try:
                lo, hi = bound(op.name, ends, kinds)
            except fs.FlexSpecError as error:
                assert error.code == "FS034"
                assert [end.item() for end in bound(op.name, on_torch(ends), kinds)] == [LEAST, MOST]  # nobody to tell
                refused += 1
                continue
            result = op.numpy(*(column.astype(kind.numpy) for column, kind in zip(columns, operand_kinds, strict=True)))
            for host, device in zip((lo, hi), bound(op.name, on_torch(ends), kinds), strict=True):
                np.testing.assert_array_equal(device.numpy(), host)
        unknown = lo[0] != lo[0]
        assert unknown or ((lo <= result) & (result <= hi)).all(), (combination, lo, hi, result)
    assert refused == 0 or op.name == "mul"


def test_products_past_64_bits_are_an_error_and_no_wrong_map():
    with pytest.raises(fs.FlexSpecError) as caught:
        fs.block_map(fs.Mask(fs.parse("q * q * q * q * q >= 0"), "fifth power"), 100_000)
    assert caught.value.code == "FS034"
    edge = fs.Mask(fs.parse("q * 1_000_000_000_000 - kv * 1_000_000_000_000 >= 0"), "large")
    assert fs.equals(edge, fs.causal(), 100_000)


def test_unknown_floats_decide_nothing():
    root = fs.Mask(fs.parse("sqrt(float(q - kv)) < 100.0"), "root")  # nan above the diagonal: not kept
    assert fs.equals(root, fs.causal() & fs.causal_window(10_000), 20_000)
