"""Bounds are sound: every operator over every small interval holds every value that evaluation gives."""

import itertools
import math

import numpy as np
import pytest
from flexspec.compiler.intervals import FAR, RULES, bound

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
    assert RULES.keys() == OPS.keys()


@pytest.mark.parametrize(("op", "kinds"), list(signatures()))
def test_every_value_lies_within(op, kinds):
    """All intervals at once: one array entry for each combination of intervals."""
    combinations = list(itertools.product(*(DOMAINS[kind] for kind in kinds)))
    if len(combinations) > 3000:
        combinations = combinations[:: len(combinations) // 3000]
    ends = [
        (np.array([c[i][0] for c in combinations], kind.numpy), np.array([c[i][1] for c in combinations], kind.numpy))
        for i, kind in enumerate(kinds)
    ]
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


def test_products_past_64_bits_are_an_error_and_no_wrong_map():
    with pytest.raises(fs.FlexSpecError) as caught:
        fs.block_map(fs.Mask(fs.parse("q * q * q * q * q >= 0"), "fifth power"), 100_000)
    assert caught.value.code == "FS034"
    edge = fs.Mask(fs.parse("q * 1_000_000_000_000 - kv * 1_000_000_000_000 >= 0"), "large")
    assert fs.equals(edge, fs.causal(), 100_000)


def test_unknown_floats_decide_nothing():
    root = fs.Mask(fs.parse("sqrt(float(q - kv)) < 100.0"), "root")  # nan above the diagonal: not kept
    assert fs.equals(root, fs.causal() & fs.causal_window(10_000), 20_000)
