"""Formulas for the number of kept pairs, against counting pair by pair in plain Python."""

import subprocess
import sys

import oracle
import pytest
import sympy
from flexspec.compiler.proofs import count
from flexspec.compiler.proofs.count import pairs_formula
from flexspec.compiler.simplify.specialise import specialise
from hypothesis import given, settings
from hypothesis import strategies as st
from random_masks import DECLARED, Written, masks, tables, truth

import flexspec as fs

N = sympy.Symbol("n", integer=True, positive=True)


def formula_of(mask, **values):
    return pairs_formula(specialise(mask.expr, {**mask.defaults, **values}, {}))


def counted(kept):
    """Kept pairs of the squares of side 0, 1, ... in the corner of a dense mask."""
    return [int(kept[:n, :n].sum()) for n in range(len(kept) + 1)]


def check(pairs, counts):
    """The formula gives every count from `least` on, and not the one before."""
    assert pairs.least < len(counts) - 1, "the dense mask is too small to judge"
    wrong = [n for n in range(1, len(counts)) if pairs.formula.subs(N, n) != counts[n]]
    assert max(wrong, default=0) == pairs.least - 1, pairs


PATTERNS = {
    "n*(n + 1)/2": fs.causal(),
    "n**2": fs.everything(),
    "0": fs.nothing(),
    "n**2/2 + 7*n/2 - 6  (n >= 3)": fs.causal(3),
    "n**2/2 - 9*n/2 + 10  (n >= 4)": fs.causal(-5),
    "7*n - 21  (n >= 6)": fs.causal_window(7),
    "11*n - 30  (n >= 5)": fs.sliding_window(5),
    "4*n  (n >= 4)": fs.sink(4),
    "9*n - 36  (n >= 8)": fs.sink_window(sink=4, window=5),
    "7*n - 48  (n >= 12)": fs.dilated_window(3, 4),
    "6*n - 9  (n >= 3)": fs.global_tokens(3),
    "n**2/2 + n/2 + 10  (n >= 5)": fs.prefix_lm(5),
    "7*n + r**2 - 7*r  (r = n % 7)": fs.chunked(7),
    "n**2/2 + 2*n + r**2/2 - 2*r  (r = n % 4)": fs.chunk_causal(4),
    "n**2/10 + 9*n/2 - r**2/10 + r/2 - 10  (r = n % 5, n >= 4)": fs.strided(5),
    "n**2/5 + 2*n + 3*r**2/10 - 3*r/2  (r = n % 5)": fs.fixed(stride=5, summary=2),
    "n**2/6 + 3*n/2 + r**2/3 - r  (r = n % 3)": fs.hidden_decoding(3),
    "4*n + r**2/2 - 7*r/2  (r = n % 7)": fs.chunked(7) & fs.causal(),
    "13*n - 42  (n >= 6)": fs.sliding_window(4) | fs.global_tokens(2),
}


@pytest.mark.parametrize("text", PATTERNS)
def test_formulas_of_patterns(text):
    mask = PATTERNS[text]
    pairs = formula_of(mask)
    assert str(pairs) == text
    check(pairs, counted(mask.dense(40)[0, 0]))


def test_a_formula_against_the_oracle_that_knows_no_expressions():
    keep = [[oracle.strided(q, kv, 5) for kv in range(60)] for q in range(60)]
    pairs = formula_of(fs.strided(5))
    assert all(pairs.formula.subs(N, n) == sum(map(sum, (row[:n] for row in keep[:n]))) for n in range(pairs.least, 61))


@pytest.mark.parametrize("window, sink", [(1, 1), (3, 0), (8, 2)])
def test_the_window_of_a_textbook(window, sink):
    """n * w - w * (w - 1) / 2 for a causal window; a sink adds s keys to each query past the window, fewer before."""
    whole = formula_of(fs.causal_window(window)).formula
    assert sympy.expand(whole - (N * window - sympy.Rational(window * (window - 1), 2))) == 0
    more = formula_of(fs.sink_window(sink=sink, window=window)).formula - whole
    assert sympy.expand(more - (sink * (N - window) - sympy.Rational(sink * (sink - 1), 2))) == 0


LENGTH = 56
places = st.sampled_from([Written(text, text) for text in ("q", "kv", "q - kv", "q - kv", "kv - q", "2 * q - 2 * kv")])
small = st.integers(1, 5)
terms = st.one_of(
    places,
    st.tuples(places, st.sampled_from(["//", "%"]), small).map(
        lambda x: Written(*(f"(({side}) {x[1]} {x[2]})" for side in (x[0].ours, x[0].python)))
    ),
    st.tuples(places, small).map(lambda x: Written(*(f"abs({side} - {x[1]})" for side in (x[0].ours, x[0].python)))),
    st.tuples(places, small, small).map(
        lambda x: Written(*(f"min(({side}) % {x[1]} + 1, ({side}) // {x[2]})" for side in (x[0].ours, x[0].python)))
    ),
)
compared = st.tuples(terms, st.sampled_from(["<", ">=", "==", "!="]), st.integers(-4, 9)).map(
    lambda x: Written(*(f"({side} {x[1]} {x[2]})" for side in (x[0].ours, x[0].python)))
)
chunks = st.tuples(small, small, st.sampled_from(["<", "<=", "=="])).map(
    lambda x: Written(*(2 * [f"((q + {x[1]}) // {x[0]} {x[2]} (kv + {x[1]}) // {x[0]})"]))
)
simple = st.recursive(
    st.one_of(compared, compared, chunks),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("&|^"), inner).map(
            lambda x: Written(*(f"({a} {x[1]} {b})" for a, b in ((x[0].ours, x[2].ours), (x[0].python, x[2].python))))
        ),
        inner.map(lambda x: Written(f"(~{x.ours})", f"(not {x.python})")),
    ),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(simple)
def test_random_masks_against_plain_python(written):
    pairs = pairs_formula(fs.parse(written.ours))
    if pairs is not None and pairs.least < LENGTH - 1:
        check(pairs, counted(truth(written, {}, (1, 1, LENGTH, LENGTH))[0, 0]))


@settings(max_examples=100, deadline=None)
@given(masks)
def test_any_mask_has_a_right_formula_or_none(written):
    pairs = pairs_formula(fs.parse(DECLARED + written.ours))
    if pairs is not None and pairs.least < LENGTH - 1:
        check(pairs, counted(truth(written, tables(LENGTH, 1, 1, 0), (1, 1, LENGTH, LENGTH))[0, 0]))


def test_most_random_masks_of_this_kind_have_one():
    """So that the test above tests something."""
    seen = []
    settings(max_examples=100, database=None, derandomize=True)(
        given(simple)(lambda written: seen.append(pairs_formula(fs.parse(written.ours)) is not None))
    )()
    assert sum(seen) > 0.7 * len(seen)


@pytest.mark.parametrize(
    "text",
    [
        "q + kv < 10",
        "2 * q >= kv",
        "q * kv < 9",
        "ids: int[sequence]; ids[q] == ids[kv]",
        "q - kv < h",
        "q - kv < kv_len",
        "(q - kv) & (q - kv - 1) == 0",
        "q / 3 < 2.5",
        "q // (kv + 1) == 2",
        "q % -3 == 0",
        "(q < 3) | (q - kv < 4_000_000_000)",
        "q // 100_000 == kv // 100_000",
    ],
)
def test_what_is_not_derived(text):
    assert pairs_formula(fs.parse(text)) is None


def test_too_many_pieces_are_not_written_out():
    several = " | ".join(f"(q % 97 == {at * at})" for at in range(9))
    assert pairs_formula(fs.parse(several)) is None
    assert formula_of(fs.mask(lambda q: q % 97 < 30)) is not None


@pytest.mark.parametrize("at_once", [1, 7, 100])
def test_counts_do_not_depend_on_the_chunks(at_once, monkeypatch):
    mask = (fs.strided(5) | fs.sink(7)) & ~fs.chunked(3)
    whole = formula_of(mask)
    monkeypatch.setattr(count, "_AT_ONCE", at_once)
    assert formula_of(mask) == whole


def test_long_windows_take_no_square():
    pairs = formula_of(fs.sink_window(sink=4, window=131_072))
    length = 131_072 + 4 + 1000
    assert pairs.formula.subs(N, length) == fs.block_map(fs.sink_window(sink=4, window=131_072), length).kept_pairs


def test_explain_shows_it_where_it_is_one():
    assert "  pairs  7*n - 21  (n >= 6)" in fs.compile(fs.causal_window(7)).explain(100).splitlines()
    assert "pairs" not in fs.compile(fs.causal_window(7)).explain(50, 100).split("SIMPLIFIED")[0]
    assert "pairs" not in fs.compile(fs.log_sparse()).explain(100).split("SIMPLIFIED")[0]


def test_sympy_is_imported_only_for_a_formula():
    code = (
        "import sys, flexspec as fs, flexspec.compiler.proofs.count as count\n"
        "before = 'sympy' in sys.modules\n"
        "count.pairs_formula(fs.log_sparse().expr)\n"
        "assert ('sympy' in sys.modules) == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
