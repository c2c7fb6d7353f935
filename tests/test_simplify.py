"""Rewrite rules: their text, and the affine normal form against sympy."""

import pytest
import sympy
from flexspec.compiler.simplify.linear import linear
from flexspec.compiler.simplify.rules import simplify
from hypothesis import given, settings
from hypothesis import strategies as st

import flexspec as fs
from flexspec.expr import infix_text

REWRITES = {
    "q + 3 >= kv + 5": "q - kv >= 2",
    "q - kv + kv < 4": "q < 4",
    "2 * q - 2 * kv < 5": "q - kv < 3",
    "2 * q == 2 * kv + 1": "False",
    "3 > kv": "kv < 3",
    "-kv <= -4": "kv >= 4",
    "~(q < kv)": "q - kv >= 0",
    "~(q / 2 < kv / 3)": "~(q / 2 < kv / 3)",
    "q // 4 // 6 == kv // 24": "q // 24 - kv // 24 == 0",
    f"q // {2**40} // {2**40} == kv": f"q // {2**40} // {2**40} - kv == 0",
    f"q // {2**40} % {2**40} * {2**40} + q % {2**40} == kv": f"q // {2**40} % {2**40} * {2**40} + q % {2**40} == kv",
    "q % 12 % 4 == 0": "q % 4 == 0",
    "q % 12 % 5 == 0": "q % 12 % 5 == 0",
    "where(q >= kv, True, True)": "True",
    "(q < 3) & True | (q < 3)": "q < 3",
    "(q < 3) ^ (q < 3)": "False",
    "min(q, q) == q": "True",
    "bool(q)": "q != 0",
    "(q < 3) == (kv < 3)": "~((q < 3) ^ (kv < 3))",
    "q % 0 == 3 % 0": "q % 0 - 3 % 0 == 0",
    "0 * q < 1": "True",
    "(q // 24 * 6 + q % 12 // 2) // 6 == kv": "q // 24 - kv == 0",
    "(q // 24 * 6 + q % 12 // 2) % 6 == kv": "q % 12 // 2 - kv == 0",
    "(q % 5 * 8 + kv + 19) // 8 == 0": "q % 5 + (kv + 3) // 8 == -2",
    "(8 * q + kv % 7 * 2) // 8 == kv": "q + kv % 7 * 2 // 8 - kv == 0",
    "(q % 8 - 1) // 8 == kv": "(q % 8 + 7) // 8 - kv == 1",
    "max(q % 4, 1) // 4 == kv": "kv == 0",
    "h % 9 % 16 == kv": "h % 9 - kv == 0",
    "q // 30 * 30 + q % 30 == kv": "q - kv == 0",
    "q // 60 * 60 + q % 60 // 30 * 30 + q % 30 == kv": "q - kv == 0",
    "q // 60 * 2 + q % 60 // 30 == kv": "q // 30 - kv == 0",
    "q // 5 % 7 * 5 + q % 5 == kv": "q % 35 - kv == 0",
    "(q - kv) // 7 * 14 + (q - kv) % 7 * 2 < 6": "q - kv < 3",
    "q // 30 * 60 + q % 30 == kv": "q // 30 * 60 + q % 30 - kv == 0",
    "q // 6 + q % 6 // 4 == kv": "q // 6 + q % 6 // 4 - kv == 0",
    "q // 30 * 30 + q % 15 == kv": "q // 30 * 30 + q % 15 - kv == 0",
    "q % 70 // 30 * 30 + q % 30 == kv": "q % 70 // 30 * 30 + q % 30 - kv == 0",
}


@pytest.mark.parametrize("text", REWRITES)
def test_rewrites(text):
    assert infix_text(simplify(fs.parse(text))) == REWRITES[text]
    assert simplify(simplify(fs.parse(text))) is simplify(fs.parse(text))


divided = st.tuples(*[st.integers(-9, 9)] * 3, st.integers(1, 9), st.sampled_from(["//", "%"]), st.integers(1, 9))


@settings(max_examples=300, deadline=None)
@given(divided, st.sampled_from(["kv", "kv % 5", "kv // 3 % 4", "min(kv, 3)", "-kv", "int(kv > 2)"]))
def test_digits_keep_the_value(numbers, part):
    a, b, c, m, op, n = numbers
    text = f"({a} * q + {b} * ({part}) + {c}) {op} {m} * 5 - q % 3 * 2 {op} {n} == kv"
    before, after = fs.Mask(fs.parse(text), "before"), fs.Mask(simplify(fs.parse(text)), "after")
    assert before.dense(12, 20).equal(after.dense(12, 20))


@settings(max_examples=300, deadline=None)
@given(*[st.sampled_from([1, 2, 3, 4, 6, 12, 24])] * 5, st.integers(-3, 3), st.sampled_from(["q", "kv - q", "q % 36"]))
def test_joined_digits_keep_the_value(low, high, stride, step, modulus, times, number):
    digits = f"({number}) % {modulus} // {step} * {high * times} + ({number}) % {low} // {stride} * {times}"
    text = f"{digits} + ({number}) // {modulus} * {modulus * times} == kv"
    before, after = fs.Mask(fs.parse(text), "before"), fs.Mask(simplify(fs.parse(text)), "after")
    assert before.dense(40, 30).equal(after.dense(40, 30))


sums = st.recursive(
    st.sampled_from(["q", "kv", "h", "7", "1", "-3"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-"), inner).map(lambda x: f"({x[0]} {x[1]} {x[2]})"),
        st.tuples(st.integers(-5, 5), inner).map(lambda x: f"({x[0]} * {x[1]})"),
        inner.map(lambda x: f"-({x})"),
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(sums)
def test_sums_against_sympy(text):
    terms, constant = linear(fs.parse(text))
    wanted = sympy.expand(sympy.sympify(text, {name: sympy.Symbol(name) for name in ("q", "kv", "h")}))
    mine = sum((count * sympy.Symbol(str(term)) for term, count in terms.items()), sympy.Integer(constant))
    assert sympy.expand(wanted - mine) == 0
