"""Rewrite rules: their text, and the affine normal form against sympy."""

import pytest
import sympy
from flexspec.compiler.simplify import linear, simplify
from hypothesis import given, settings
from hypothesis import strategies as st

import flexspec as fs
from flexspec.syntax import formula

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
}


@pytest.mark.parametrize("text", REWRITES)
def test_rewrites(text):
    assert formula(simplify(fs.parse(text))) == REWRITES[text]
    assert simplify(simplify(fs.parse(text))) is simplify(fs.parse(text))


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
