"""The table of operators: every place that knows operators knows them all, and what a row says is what torch does."""

import inspect
import itertools
import math

import numpy as np
import pytest
import sympy
import torch
from flexspec.compiler.blocks.intervals import BOUNDS
from flexspec.compiler.printers.latex import to_latex
from flexspec.compiler.simplify.derivative import DERIVATIVES
from flexspec.compiler.simplify.limits import LIMITS, limits
from test_triton import qkv, same_as_reference
from torch.nn.attention.flex_attention import create_mask

import flexspec as fs
from flexspec.ops import CASTS, NEGATED, OPS, SIGNED, SWAPPED, Type
from flexspec.syntax import parse
from flexspec.traced import CALLS, Traced

TABLES = {"BOUNDS": BOUNDS, "DERIVATIVES": DERIVATIVES, "LIMITS": LIMITS}


@pytest.mark.parametrize("name", TABLES)
def test_every_operator_stands_in_every_table(name):
    assert TABLES[name].keys() == OPS.keys()


@pytest.mark.parametrize("language", ["torch", "triton"])
def test_every_operator_is_printed_in_every_language(language):
    own = CASTS.keys() if language == "triton" else set()  # whose integers have 32 or 64 bits
    for op in OPS.values():
        if op.name in own:
            continue
        for kind in (Type.INT, Type.FLOAT):
            text = op.source(language, kind).format(*(f"<{place}>" for place in range(op.arity)))
            assert all(f"<{place}>" in text for place in range(op.arity))
            assert language == "torch" or "torch." not in text


def test_an_operator_without_a_printed_form_is_an_error():
    with pytest.raises(fs.FlexSpecError, match="FS042.*`erf` cannot be printed as cute"):
        OPS["erf"].source("cute", Type.FLOAT)
    with pytest.raises(fs.FlexSpecError, match="FS042.*`bool` cannot be printed as triton"):
        OPS["bool"].source("triton", Type.INT)


def test_names_are_torchs_and_sympys():
    for op in OPS.values():
        for name in op.traced:
            special = getattr(torch.special, name.removeprefix("special_"), None)
            assert hasattr(torch, name) or hasattr(torch.Tensor, name) or callable(special)
        assert not isinstance(op.sympy, str) or callable(getattr(sympy, op.sympy))
        for name in (op.name, *op.traced):
            assert name in CALLS
        if op.method:
            assert callable(inspect.getattr_static(Traced, f"__{op.method}__"))


VALUES = [-3, -1, 0, 1, 2, 7]


def test_negated_and_swapped_comparisons():
    pairs = torch.cartesian_prod(torch.tensor(VALUES), torch.tensor(VALUES)).T
    assert NEGATED.keys() == SWAPPED.keys() == {"lt", "le", "gt", "ge", "eq", "ne"}
    for name, other in NEGATED.items():
        assert torch.equal(OPS[name].torch(*pairs), ~OPS[other].torch(*pairs))
        assert torch.equal(OPS[name].torch(*pairs), OPS[SWAPPED[name]].torch(*pairs.flip(0)))


def operands(op, dtype):
    """All numbers of a dtype, or all pairs of some of them with its ends."""
    if dtype.is_floating_point:
        some = torch.tensor([-40000.0, -3.5, -2.0, -0.3, 0.0, 0.5, 1.5, 2.5, 7.1, 60000.0]).to(dtype)
    else:
        least, most = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        some = torch.tensor(sorted({least, least + 1, -7, -2, -1, 0, 1, 2, 5, 7, most - 1, most})).clamp(least, most)
        some = some.to(dtype)
    columns = torch.cartesian_prod(*[some] * min(op.arity, 2)).view(-1, min(op.arity, 2)).T
    if op.name in ("mod", "floordiv"):
        columns = columns[:, columns[1] != 0]
    if op.name == "rshift":
        columns = columns[:, columns[1] >= 0]
    return ([columns[0] > columns[1]] if op.arity == 3 else []) + list(columns)


ROWS = [(op, dtype) for op in OPS.values() for dtype in sorted(op.exact_in, key=str)]


@pytest.mark.parametrize(("op", "dtype"), ROWS, ids=lambda x: getattr(x, "name", str(x)))
def test_torch_is_exact_in_few_bits_where_a_row_says_so(op, dtype):
    """The torch function in 8 or 16 bits, against itself in 32 or 64."""
    narrow = operands(op, dtype)
    if op.name == "floordiv" and dtype in SIGNED:  # refused where the divisor may be -1
        keep = narrow[1] != -1
        narrow = [column[keep] for column in narrow]
    wide = [x if x.dtype == torch.bool else x.to(Type.of_dtype(dtype).torch) for x in narrow]
    kinds, _ = op.signature(tuple(Type.of_dtype(x.dtype) for x in wide))
    wide = [x.to(kind.torch) for x, kind in zip(wide, kinds, strict=True)]
    torch.testing.assert_close(
        op.torch(*narrow).to(torch.float64), op.torch(*wide).to(torch.float64), rtol=0, atol=0, equal_nan=True
    )


I8 = torch.tensor([-128, 44, 7, -1, 3, 100, 127, 0], dtype=torch.int8)
MINUS = torch.tensor([-1, 3, -1, 2, 1, -1, 5, 7], dtype=torch.int8)


@pytest.mark.parametrize(
    "fn",
    [
        lambda b, h, q, kv: I8[q] == 300,  # torch compares with 44
        lambda b, h, q, kv: I8[q] % 300 == kv,
        lambda b, h, q, kv: I8[q] / 300 > kv,  # by 44 under torch.vmap
        lambda b, h, q, kv: I8[q] & 255 == kv,
        lambda b, h, q, kv: I8[q] // -1 > kv,  # 128 has no place
        lambda b, h, q, kv: I8[q] // MINUS[kv] > kv,
        lambda b, h, q, kv: -7 // MINUS[q] > I8[kv],
    ],
)
def test_few_bits_that_wrap_are_refused(fn):
    with pytest.raises(fs.FlexSpecError, match="FS008.*wraps or rounds"):
        fs.from_mask_mod(fn)


@pytest.mark.parametrize(
    "fn",
    [
        lambda b, h, q, kv: I8[q] // 5 > I8[kv] // -2,
        lambda b, h, q, kv: (I8[q] == 127) | (I8[kv] < -127) | (I8[q] / 100 > kv),
        lambda b, h, q, kv: I8[q].long() // MINUS[kv].long() > kv,
        lambda b, h, q, kv: I8[q].long() == 300,
    ],
)
def test_few_bits_that_hold_are_taken(fn):
    assert torch.equal(fs.from_mask_mod(fn).dense(8), create_mask(fn, 1, 1, 8, 8, device="cpu"))


BIG = torch.tensor([2**63 - 1, 2**62, 5, 2**63 - 2] * 2)


def test_only_rows_that_wrap_are_refused_past_64_bits():
    """A sum with a remainder by a large divisor is as large as that."""
    kept = fs.mask(lambda q, kv: BIG[q] % 7 + kv > 3)
    wanted = torch.tensor([[x % 7 + kv > 3 for kv in range(8)] for x in BIG.tolist()])
    assert torch.equal(fs.block_map(kept, 8, block_size=1).kinds()[0, 0] == 2, wanted)
    with pytest.raises(fs.FlexSpecError, match="FS034"):
        fs.block_map(fs.mask(lambda q, kv: (q - kv) % BIG[kv] + 5 > 3), 8, block_size=1)


SMALL = [(lo, hi) for lo in range(-4, 5) for hi in range(lo, 5)]


@pytest.mark.parametrize("name", [op.name for op in OPS.values() if op.arity < 3])
def test_limits_hold_every_value(name):
    """Over all small ranges, and with either end left open."""
    op = OPS[name]
    try:
        kinds, result = op.signature((Type.INT,) * op.arity)
    except TypeError:
        return
    if result > Type.INT or kinds[0] > Type.INT:
        return
    for ranges in itertools.product(SMALL, repeat=op.arity):
        members = [range(lo, hi + 1) for lo, hi in ranges]
        columns = [np.array(column) for column in zip(*itertools.product(*members), strict=True)]
        if name in ("floordiv", "mod"):
            columns = [column[columns[1] != 0] for column in columns]
        if name in ("lshift", "rshift"):
            columns = [column[columns[1] >= 0] for column in columns]
        if not len(columns[0]):
            continue
        values = op.numpy(*columns)
        for ends in (ranges, tuple((lo, np.inf) for lo, _ in ranges), tuple((-np.inf, hi) for _, hi in ranges)):
            low, high = LIMITS[name](*ends)
            assert low != low or high != high or (low <= values.min() and values.max() <= high), (ends, low, high)


def test_limits_of_expressions():
    assert limits(parse("(q + 3) % 7 - 2")) == (-2, 4)
    assert limits(parse("q // 4 * 2 + int(q > kv)")) == (0, float("inf"))
    assert limits(parse("min(q - kv, 5)"))[1] == 5


ERF_TABLE = torch.tensor([0.0, -0.4, 1.3, -2.0, 0.7, 3.0, float("inf"), float("-inf")])
ERF = {
    "function": lambda b, h, q, kv: torch.erf((q - kv) / 8) > 0.2,
    "method": lambda b, h, q, kv: ((q - kv) * 0.3).erf() + 0.5 > 0,
    "special": lambda b, h, q, kv: torch.special.erf(ERF_TABLE[q % 8]) >= torch.erf(kv / 4),
}


@pytest.mark.parametrize("name", ERF)
def test_an_operator_of_one_row(name):
    """erf, traced, bounded, printed and evaluated."""
    mask = fs.from_mask_mod(ERF[name])
    wanted = create_mask(ERF[name], 1, 1, 24, 24, device="cpu")
    assert torch.equal(mask.dense(24), wanted)
    made = fs.block_map(mask, 24, block_size=(8, 4))
    tiles = wanted[0, 0].reshape(3, 8, 6, 4)
    kinds = tiles.any(3).any(1).to(torch.uint8) + tiles.all(3).all(1).to(torch.uint8)
    assert torch.equal(made.kinds()[0, 0], kinds)
    assert torch.equal(create_mask(made.mask_mod, 1, 1, 24, 24, device="cpu"), wanted)
    assert parse(str(mask.expr)) is mask.expr


LATEX = {
    "erf(q / 2)": r"\operatorname{erf}{\left(\frac{q}{2} \right)}",
    "q // 3 <= kv % 5": r"\left\lfloor{\frac{q}{3}}\right\rfloor \leq kv \bmod 5",
    "~(q > 1)": r"q \leq 1",
    "exp2(q)": r"\operatorname{exp}_{2}{\left(q \right)}",
    "q & 3": r"\operatorname{and}{\left(q,3 \right)}",
}


@pytest.mark.parametrize("text", LATEX)
def test_latex_of_rows(text):
    assert to_latex(parse(text)) == LATEX[text]


def test_an_operator_of_one_row_in_a_kernel():
    mask = fs.mask(lambda q, kv: torch.erf((q - kv) / 8) > 0.2)
    score = fs.score(lambda score, q, kv: torch.erf(score) * 2 + torch.erf((q - kv) / 50))
    same_as_reference(fs.Attention(mask=mask | fs.sink(2), scores=[score]), *qkv(40, heads=1, kv_heads=1, batch=1))
    q, k, v = (x.requires_grad_() for x in qkv(40, heads=1, kv_heads=1, batch=1))
    attend = fs.compile(fs.Attention(mask=fs.causal(), scores=[score]), backend="triton", block_size=16)
    found = torch.autograd.grad(attend(q, k, v).sin().sum(), (q, k, v))
    q_idx, kv_idx = torch.arange(40).view(-1, 1), torch.arange(40)
    scores = q @ k.transpose(-1, -2) / 4
    scores = (torch.erf(scores) * 2 + torch.erf((q_idx - kv_idx) / 50)).masked_fill(kv_idx > q_idx, -torch.inf)
    wanted = torch.autograd.grad((scores.softmax(-1) @ v).sin().sum(), (q, k, v))
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=2e-5)


def test_roots_are_rounded_to_nearest():
    """However many are taken at once; the exact integer says which float is nearest."""
    numbers = torch.arange(1, 3001, dtype=torch.float32) * 0.37
    for root in (OPS["sqrt"].torch(numbers), torch.from_numpy(OPS["sqrt"].numpy(numbers.numpy()))):
        for number, found in zip(numbers.tolist(), root.tolist(), strict=True):
            mantissa, exponent = math.frexp(found)
            unit = math.ldexp(1.0, exponent - 24)
            low, high = (found - unit / 2) ** 2, (found + unit / 2) ** 2
            assert low <= number <= high
