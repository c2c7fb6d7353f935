"""The text of expressions, both ways, and precedence with Python's own parser as the judge."""

from __future__ import annotations

import ast
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flexspec as fs
from flexspec.errors import FlexSpecError
from flexspec.evaluate import evaluate
from flexspec.expr import MAX_DEPTH, Expr, apply, const, input_, load, param, var
from flexspec.ops import INFIX, OPS, Type
from flexspec.syntax import parse

NUMBERS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([-0.0, 0.0, -1, 0, 1e16, 1e-7, -math.inf, math.inf, math.nan, -(2**63), 2**63 - 1]),
)
DIMS = [(), ("sequence",), ("batch", "sequence"), ("batch", "heads", "_")]
INPUTS = [input_(f"t{len(dims)}_{kind.text}", dims, kind) for dims in DIMS for kind in Type]
VARS = ["b", "h", "q", "kv", "q.t", "kv.width", "batch", "heads", "q_len", "kv_len", "score"]
LEAVES = st.one_of(
    NUMBERS.map(const),
    st.sampled_from([var(name) for name in VARS]),
    st.sampled_from([param(f"p_{kind.text}", kind) for kind in Type]),
)


def _applied(draw: st.DrawFn, below: st.SearchStrategy[Expr]) -> Expr:
    if draw(st.integers(0, 4)) == 0:
        source = draw(st.sampled_from(INPUTS))
        index = [draw(below) for _ in source.dims]
        return load(source, tuple(apply("int", part) if part.type > Type.INT else part for part in index))
    op = OPS[draw(st.sampled_from(sorted(OPS)))]
    args = [draw(below) for _ in range(op.arity)]
    try:
        return apply(op.name, *args)
    except FlexSpecError:  # ill-typed: cast what must be boolean or whole
        kinds = [Type.BOOL, Type.INT, Type.INT] if op.name == "where" else [Type.INT] * 3
        return apply(op.name, *(apply(kind.text, arg) for kind, arg in zip(kinds, args, strict=False)))


EXPRESSIONS = st.recursive(LEAVES, lambda below: st.composite(_applied)(below), max_leaves=25)


@settings(max_examples=400, deadline=None)
@given(EXPRESSIONS)
def test_text_and_expression_are_one(expr: Expr) -> None:
    assert parse(str(expr)) is expr


@pytest.mark.parametrize("name", sorted(OPS))
def test_every_operator_prints_and_parses(name: str) -> None:
    op = OPS[name]
    operands = [apply("lt", var("q"), var("kv")), var("q"), var("kv")]
    expr = apply(name, *(operands if name == "where" else operands[1:])[: op.arity])
    assert parse(str(expr)) is expr
    negated = apply("neg", expr)
    assert parse(str(negated)) is negated


PYTHON = st.recursive(
    st.sampled_from(["q", "kv", "1", "2", "7", "(-3)"]),
    lambda below: st.one_of(
        st.tuples(below, st.sampled_from(["+", "-", "*", "//", "%", "&", "|", "^"]), below).map(" ".join),
        below.map("-{}".format),
        below.map("~{}".format),
        below.map("({})".format),
        below.map("abs({})".format),
    ),
    max_leaves=9,
)


def _python(text: str, **names: int) -> object:
    return eval(compile(ast.parse(text, mode="eval"), "text", "eval"), {"abs": abs}, names)


@settings(max_examples=400, deadline=None)
@given(
    PYTHON,
    st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
    PYTHON,
    st.integers(-5, 9),
    st.integers(-5, 9),
)
def test_precedence_is_pythons(left: str, compare: str, right: str, q: int, kv: int) -> None:
    for text in (left, f"{left} {compare} {right}"):
        try:
            wanted = _python(text, q=q, kv=kv)
        except ZeroDivisionError:
            continue
        assert evaluate(parse(text), {"q": q, "kv": kv}).item() == wanted
        assert evaluate(parse(str(parse(text))), {"q": q, "kv": kv}).item() == wanted


@pytest.mark.parametrize("text", ["1 << q + 2", "1 << 2 << q", "64 >> 1 >> q", "1 | 2 << q & 7", "-q - -kv", "- -q"])
def test_precedence_of_shifts_and_signs(text: str) -> None:
    assert evaluate(parse(text), {"q": 1, "kv": 5}).item() == _python(text, q=1, kv=5)


def test_subtraction_and_division_keep_their_parentheses() -> None:
    q, kv = var("q"), var("kv")
    assert str(apply("sub", q, apply("sub", kv, q))) == "q - (kv - q)"
    assert str(apply("sub", apply("sub", q, kv), q)) == "q - kv - q"
    assert str(apply("floordiv", q, apply("mul", kv, q))) == "q // (kv * q)"
    assert str(apply("neg", const(5))) == "-(5)"
    assert parse("-(5)") is apply("neg", const(5))
    assert parse("-5") is const(-5)


def test_equal_expressions_are_one_object() -> None:
    assert parse("(q>=kv)&(q-kv<4)") is parse(" (q >= kv) & ( q - kv < 4 ) ")
    assert parse("0.0") is not parse("-0.0")
    assert parse("1") is not parse("1.0")
    assert parse("True") is not parse("1")
    assert parse("1_000") is parse("1000")


def test_undeclared_names_are_integer_parameters() -> None:
    assert parse("window") is param("window")
    assert str(parse("w: float; w * 2")) == "w: float; w * 2"


# text, code, column of the caret, part of the message
MISTAKES = [
    ("q <", "FS050", 3, "found the end"),
    ("q < kv)", "FS050", 6, "`)` does not continue"),
    ("(q < kv", "FS050", 7, "expected `)`, found the end"),
    ("q $ kv", "FS050", 2, "`$` has no meaning"),
    ("q = kv", "FS050", 2, "`=` does not continue"),
    ("q and kv", "FS050", 2, "`and` is not an operator"),
    ("q or kv", "FS050", 2, "`or` is not an operator"),
    ("not q", "FS050", 0, "`not` is not an operator"),
    ("q < kv < 3", "FS005", 7, "chained"),
    ("ids[q]", "FS050", 0, "`ids` is not a declared tensor"),
    ("ids: int[_]; ids[q, kv]", "FS010", 13, "1 dims"),
    ("ids: int[_]; ids[q / 2]", "FS010", 13, "indexed by a float"),
    ("ids: text[_]; ids[q]", "FS050", 0, "`text` is no type"),
    ("w: int; w: float; w", "FS050", 8, "declared twice"),
    ("sum(q)", "FS050", 0, "`sum` is no function"),
    ("min(q)", "FS010", 0, "2 operands"),
    ("h.t == 1", "FS050", 0, "only q and kv have axes"),
    ("q.t.u == 1", "FS050", 0, "only q and kv have axes"),
    ("(q < kv) - 1.5 & 2", "FS010", 15, "takes integers"),
    ("where(q, 1, 2)", "FS010", 0, "boolean"),
    ("{t: 2}", "FS050", 0, "a dict has no meaning"),
    ("'q'", "FS050", 0, "a string has no meaning"),
    ("abs(x=q)", "FS050", 0, "a call has no meaning"),
    ("q + 9223372036854775808", "FS034", 4, "64 bits"),
    ("q + 123456789012345678901234567890", "FS034", 4, "64 bits"),
    ("(q + 1)[2]", "FS050", 3, "no meaning"),
    ("(q + 1)(2)", "FS050", 7, "cannot be called"),
    ("(q + 1).t", "FS050", 7, "only a position has axes"),
    ("", "FS050", 0, "found the end"),
    ("q\n+ $", "FS050", 2, "`$` has no meaning"),
]


@pytest.mark.parametrize(("text", "code", "column", "message"), MISTAKES)
def test_a_mistake_gets_a_caret(text: str, code: str, column: int, message: str) -> None:
    with pytest.raises(FlexSpecError) as caught:
        parse(text)
    assert caught.value.code == code
    assert message in caught.value.message
    assert caught.value.where is not None
    line, marks = caught.value.where.split("\n")
    assert line[4:] == text.split("\n")[-1]
    assert marks == " " * (4 + column) + "^"


HOSTILE = [
    "(" * 50_000,
    "~" * 50_000 + "q",
    "-" * 9_999 + "q",
    "q" + "+q" * 20_000,
    "abs(" * 9_999,
    "q[" * 9_999,
    "q" + "[q]" * 9_999,
    "{a:" * 9_999,
    "f(a=" * 9_999,
    "x" * 300_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_deep_or_long_text_is_refused(text: str) -> None:
    with pytest.raises(FlexSpecError) as caught:
        parse(text)
    assert caught.value.code == "FS053"


def test_what_can_be_built_can_be_read() -> None:
    q = var("q")
    for grow in (
        lambda e: apply("abs", e),
        lambda e: apply("sub", e, q),
        lambda e: apply("sub", q, e),
        lambda e: apply("neg", e),
    ):
        expr: Expr = q
        for _ in range(MAX_DEPTH - 1):
            expr = grow(expr)
        assert parse(str(expr)) is expr
        with pytest.raises(FlexSpecError, match="FS053"):
            grow(expr)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="qkvbh019.()[]{}<>=!&|^~+-*/%,:; \n'\"abswhere_intf", max_size=40))
def test_any_text_is_read_or_refused_with_a_code(text: str) -> None:
    try:
        expr = parse(text)
    except FlexSpecError as error:
        assert error.code in fs.errors.CODES
    else:
        assert parse(str(expr)) is expr


def test_infix_operators_are_known_by_symbol() -> None:
    assert {op.name for op in INFIX.values()} == {op.name for op in OPS.values() if op.symbol and op.arity == 2}
