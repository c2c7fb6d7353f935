"""Patterns and orders as text."""

from __future__ import annotations

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flexspec as fs
from flexspec.errors import CODES, FlexSpecError
from flexspec.expr import param
from flexspec.order import as_order
from flexspec.patterns import (
    CATALOG,
    alibi,
    causal,
    causal_window,
    sink,
    sliding_tile,
    sliding_window,
    softcap,
)
from flexspec.text import parse_order, parse_pattern
from flexspec.traced import Traced

VIDEO = fs.Canvas(t=2, h=4, w=6)
SMALL = fs.Canvas(h=2, w=3)
SAME = {
    "causal": causal,
    "causal()": causal(),
    "causal_window": causal_window,
    "causal_window(4)": causal_window(4),
    "causal_window(window=4)": causal_window(4),
    "causal & (causal_window(1024) | sink(4))": causal & (causal_window(1024) | sink(4)),
    "~causal - sink(2)": ~causal - sink(2),
    "causal ^ sink(2) & sliding_window(3)": causal ^ (sink(2) & sliding_window(3)),
    "causal | sink(2) ^ sliding_window(3)": causal | (sink(2) ^ sliding_window(3)),
    "causal & ~(sink(2) | sink(3))": causal & ~(sink(2) | sink(3)),
    "causal & (q - kv < 100)": causal & fs.mask(lambda q, kv: q - kv < 100),
    "(q - kv < 100) & causal": fs.mask(lambda q, kv: q - kv < 100) & causal,
    "causal & True": causal & fs.Mask.constant(True),
    "q >= kv": fs.mask(lambda q, kv: q >= kv),
    "q - kv < window": fs.mask(lambda q, kv, *, window: q - kv < window),
    "abs(q - kv) <= -(-3)": fs.mask(lambda q, kv: abs(q - kv) <= 3),
    "causal_window(2 * 3 - 1)": causal_window(5),
    "causal_window(w)": causal_window(Traced(param("w"))),
    "softcap(30.0) + alibi": softcap(30.0) + alibi(),
    "softcap(30.0) + alibi()": softcap(30.0) + alibi(),
    "softcap(2.0) + (score * 0.5)": softcap(2.0) + fs.score(lambda score: score * 0.5),
    "score * 0.5": fs.score(lambda score: score * 0.5),
    "sliding_tile(canvas(t=2, h=4, w=6), window={t: 2, h: 4, w: 2}, tile={t: 1, h: 2, w: 2})": sliding_tile(
        VIDEO, window={"t": 2, "h": 4, "w": 2}, tile={"t": 1, "h": 2, "w": 2}
    ),
    "sliding_tile(canvas(t=2, h=4, w=6), window=2, tile=2) & (q.t >= kv.t)": sliding_tile(VIDEO, 2, 2)
    & fs.mask(canvas=VIDEO)(lambda q, kv: q.t >= kv.t),
}


IMAGE, CLIP = fs.Canvas(h=4, w=6), fs.Canvas(t=2, h=4, w=6)
SIDES = "q: canvas(h=4, w=6); kv: canvas(t=2, h=4, w=6); "
NEAR = fs.mask(q_canvas=IMAGE, kv_canvas=CLIP)(lambda q, kv: abs(q.h - kv.h) <= 1)
SAME |= {
    "causal.T": causal().T,
    "causal_window(4).T.T & causal": causal_window(4) & causal,
    "(causal() | sink(n=2)).T": (causal() | sink(2)).T,
    "~(q - kv < 2).T": ~fs.mask(lambda q, kv: q - kv < 2).T,
    SIDES + "abs(q.h - kv.h) <= 1": NEAR,
    SIDES + "(abs(q.h - kv.h) <= 1).T": NEAR.T,
    "q: canvas(t=2, h=4, w=6); kv: canvas(h=4, w=6); abs(kv.h - q.h) <= 1": NEAR.T,
    SIDES + "n: int; causal & (q.w < n)": causal & fs.mask(q_canvas=IMAGE, kv_canvas=CLIP)(lambda q, kv, *, n: q.w < n),
    "kv: canvas(h=4, w=6); q // 4 == kv.h": fs.mask(kv_canvas=IMAGE)(lambda q, kv: q // 4 == kv.h),
    "q: canvas(h=4, w=6); kv: canvas(h=4, w=6); q.h == kv.h": fs.mask(canvas=IMAGE)(lambda q, kv: q.h == kv.h),
    SIDES + "score - 0.5 * kv.t": fs.score(q_canvas=IMAGE, kv_canvas=CLIP)(lambda score, kv: score - 0.5 * kv.t),
}


@pytest.mark.parametrize("text", SAME)
def test_text_is_the_pattern(text: str) -> None:
    made = parse_pattern(f"  {text} ")
    assert made == SAME[text]
    assert made.label == text


@pytest.mark.parametrize("mask", [NEAR, NEAR.T, NEAR & ~fs.document(), (fs.document() & NEAR).T])
def test_a_mask_on_two_canvases_is_the_text_of_its_canvases_and_its_expression(mask: fs.Mask) -> None:
    text = "".join(f"{side}: {mask.canvases.side(side)}; " for side in ("q", "kv")) + str(mask.expr)
    assert parse_pattern(text) == mask


def test_declared_inputs_are_bound_when_it_runs() -> None:
    text = "document_id: int[batch, sequence]; causal & (document_id[b, q] == document_id[b, kv])"
    made = parse_pattern(text)
    ids = torch.tensor([[0, 0, 1]])
    assert made.dense(3, document_id=ids)[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]


def test_declared_names_hide_patterns() -> None:
    made = parse_pattern("sink: int; q - kv < sink")
    assert made == fs.mask(lambda q, kv, *, sink: q - kv < sink)


@pytest.mark.parametrize("entry", CATALOG.values(), ids=CATALOG)
def test_every_example_of_the_catalog_is_text(entry: object) -> None:
    if entry.example:
        made = parse_pattern(entry.example)
        assert isinstance(made, fs.Mask if entry.kind == "mask" else fs.ScoreMod)
        assert made.label == entry.example


# text, code, column, part of the message, part of the fix
MISTAKES = [
    (
        "casual & sink(2)",
        "FS051",
        0,
        "`casual` is no pattern",
        "did you mean `causal`? flexspec.patterns.CATALOG",
    ),
    ("causal & casual", "FS051", 9, "`casual`", "`causal`"),
    ("~casual", "FS051", 1, "`casual`", "`causal`"),
    ("casual", "FS051", 0, "`casual`", "`causal`"),
    ("(q > kv) | casual", "FS051", 11, "`casual`", "`causal`"),
    ("causal - casual", "FS051", 9, "`casual`", "`causal`"),
    ("foo & bar", "FS051", 0, "`foo`", "CATALOG lists all"),
    ("softcap(2.0) + alibbi", "FS051", 15, "`alibbi`", "`alibi`"),
    ("causal & zzz(3)", "FS051", 9, "`zzz` is no pattern", "CATALOG lists all"),
    ("__import__('os')", "FS051", 0, "`__import__`", "CATALOG"),
    ("causal.__class__", "FS050", 0, "no coordinate", ""),
    ("causal & (q", "FS050", 11, "expected `)`", ""),
    ("causal and sink(2)", "FS050", 7, "`and` is not an operator", "write `&`"),
    ("causal & (0 < q < kv)", "FS005", 16, "chained", "(a < b) & (b < c)"),
    ("causal_window(0)", "FS025", 0, "window is 0", ""),
    ("causal & causal_window('a')", "FS025", 9, "window is 'a'", ""),
    ("causal_window(1, 2)", "FS021", 0, "takes 1 parameters", ""),
    ("causal_window(size=2)", "FS021", 0, "no parameter `size`", "it takes window"),
    ("causal_window(window=2, window=3)", "FS050", 24, "given twice", ""),
    ("sliding_tile(canvas(w=4))", "FS020", 0, "missing", ""),
    ("neighborhood(window=3)", "FS020", 0, "missing", "canvas(t=30, h=48, w=80) first"),
    ("neighborhood(canvas(h=4, w=4), window=(3, 3))", "FS050", 38, "a tuple is not read", "{t: 18, h: 24, w: 24}"),
    ("neighborhood(canvas(h=4, w=4), window=dict(h=3, w=3))", "FS050", 38, "`dict` is not read", "in braces"),
    ("sliding_tile(canvas(w=4), 2, 2, 2, 2)", "FS021", 0, "too many", ""),
    ("sliding_tile(3, window=2, tile=2)", "FS032", 0, "needs a canvas", ""),
    ("sliding_tile", "FS020", 0, "missing", ""),
    (
        "causal & sliding_tile(canvas(w=0), window=2, tile=2)",
        "FS032",
        22,
        "axis `w` has length 0",
        "at least 1",
    ),
    ("sliding_tile(canvas(w=4), window={h: 2}, tile=2)", "FS011", 0, "the canvas has the axes w", ""),
    ("canvas(3)", "FS021", 0, "positional", ""),
    ("canvas(w=3)", "FS007", 0, "is a canvas, not a pattern", "write a mask"),
    ("3", "FS007", 0, "is a number", ""),
    ("'causal'", "FS007", 0, "is a string", ""),
    ("None", "FS007", 0, "is a None", ""),
    ("{w: 3}", "FS007", 0, "is a dict", ""),
    ("q - kv", "FS007", 2, "this is int, not a mask", "write a comparison"),
    ("q - sink < 4", "FS007", 0, "this is int", "declared in front"),
    ("q < sink", "FS007", 0, "this is int", "declared in front"),
    ("abs(sink) < 4", "FS010", 4, "a mask stands where a number is needed", "declare it in front"),
    ("causal & 3", "FS007", 9, "this is int", ""),
    ("causal + sink(2)", "FS010", 7, "does not join patterns", ""),
    ("causal & softcap(2.0)", "FS010", 7, "do not join", "fs.Attention"),
    ("softcap(2.0) & alibi", "FS010", 13, "does not join", ""),
    ("-causal", "FS010", 1, "a mask stands", ""),
    ("q.t == kv.t", "FS011", 7, "nothing here has a canvas", ""),
    ("q.T > 3", "FS011", 0, "nothing here has a canvas", ""),
    ("softcap(3.0).T", "FS010", 12, "this is a score mod", ""),
    ("casual.T", "FS051", 0, "`casual` is no pattern", "did you mean `causal`"),
    ("(q - kv).T", "FS007", 3, "this is int, not a mask", ""),
    ("(q, 3)", "FS050", 0, "a tuple is not read here", ""),
    ("q: canvas(h=2); q: canvas(h=3); q.h < 1", "FS050", 16, "declared twice", ""),
    ("z: canvas(h=2); causal", "FS050", 0, "`z` is declared as a call", "write `q: canvas"),
    ("q: dict(h=2); causal", "FS050", 0, "`q` is declared as a call", ""),
    ("q: canvas(h=2); q.w < 3", "FS011", 16, "the canvas has h", ""),
    ("q: canvas(h=0); q.h < 3", "FS032", 3, "axis `h` has length 0", ""),
    ("q: canvas(h=2); (q.h < 1).T & (q.h < 1)", "FS032", 28, "different canvases", ""),
    ("sliding_tile(canvas(w=4), window=2, tile=2) & (q.h > 1)", "FS011", 47, "the canvas has w", ""),
    ("ids[q] > 1", "FS050", 0, "only a declared tensor", "declare it in front"),
    ("ids: int[_]; ids > q", "FS010", 13, "a tensor stands", "index it"),
    ("ids: int[_]; causal & ids", "FS010", 22, "a tensor stands", "index it"),
    ("min(q, kv, 3) < 1", "FS010", 0, "2 operands", ""),
    ("min(a=q) < 1", "FS050", 6, "takes no named values", ""),
    ("causal & (q + 9223372036854775808 > kv)", "FS034", 14, "64 bits", ""),
    ("causal_window(4611686018427387904 * 4)", "FS034", 34, "64 bits", ""),
    ("(w: int; q < w)", "FS050", 2, "expected `)`", ""),
    ("", "FS050", 0, "found the end", ""),
]


@pytest.mark.parametrize(("text", "code", "column", "message", "fix"), MISTAKES, ids=[item[0] for item in MISTAKES])
def test_a_mistake_gets_a_caret_into_the_text(text: str, code: str, column: int, message: str, fix: str) -> None:
    with pytest.raises(FlexSpecError) as caught:
        parse_pattern(text)
    error = caught.value
    assert error.code == code, str(error)
    assert message in error.message and fix in (error.fix or ""), str(error)
    assert error.where == f"    {text}\n    {' ' * column}^", str(error)


HOSTILE = [
    "(" * 50_000,
    "~" * 50_000 + "causal",
    "causal" + " & causal" * 20_000,
    "q < 1" + " & (q < 1)" * 20_000,
    "sink(" * 9_999,
    "sink({a:" * 9_999,
    "causal & " * 300 + "causal",
    "x" * 300_000,
    "-" * 9_999 + "1",
    "causal" + ".T" * 9_999,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_deep_or_long_text_is_refused(text: str) -> None:
    with pytest.raises(FlexSpecError) as caught:
        parse_pattern(text)
    assert caught.value.code == "FS053"


_WORDS = (
    "causal sink causal_window softcap alibi canvas sliding_tile q kv w score ( ) ( ) & | ~ ^ - + * < "
    ">= 2 4 0 1.5 { } t = : , ; ids [ ] int True None 'a' q.t document sink_window "
    ". T q:canvas(t=2); kv:canvas(t=2,w=2); kv.t"
)
WORDS = st.sampled_from(_WORDS.split())


@settings(max_examples=400, deadline=None)
@given(st.lists(WORDS, max_size=14).map(" ".join))
def test_any_text_is_a_pattern_or_refused_with_a_code(text: str) -> None:
    try:
        made = parse_pattern(text)
    except FlexSpecError as error:
        assert error.code in CODES
    else:
        assert isinstance(made, (fs.Mask, fs.ScoreMod))


def test_nothing_is_evaluated() -> None:
    from flexspec import grammar, text

    for module in (grammar, text):
        source = inspect.getsource(module)
        assert not any(f"{word}(" in source.replace(f".{word}(", "") for word in ("eval", "exec", "compile"))


ORDERS = {
    "row_major": fs.row_major(VIDEO),
    "row_major()": fs.row_major(VIDEO),
    "axes(h, w, t)": fs.axes(VIDEO, "h", "w", "t"),
    "tiled(t=1, h=2, w=3)": fs.tiled(VIDEO, t=1, h=2, w=3),
    "tiled(h=2)": fs.tiled(VIDEO, h=2),
    "tiled(2)": fs.tiled(VIDEO, 2),
    "tiled({h: 2, w: 3, t: 1})": fs.tiled(VIDEO, h=2, w=3),
    "tiled({t: 2, h: 4, w: 4}, {h: 2, w: 2})": fs.tiled(VIDEO, {"t": 2, "h": 4, "w": 4}, {"h": 2, "w": 2}),
    "tiled(4, 2)": fs.tiled(VIDEO, 4, 2),
    "dilated(2)": fs.dilated(VIDEO, 2),
    "dilated(w=3)": fs.dilated(VIDEO, w=3),
    "morton": fs.morton(VIDEO),
    "hilbert": fs.hilbert(VIDEO),
    "striped(4)": fs.striped(4),
    "zigzag(3)": fs.zigzag(3),
    "(hilbert, None)": as_order((fs.hilbert(VIDEO), None)),
    "(None, striped(4))": as_order((None, fs.striped(4))),
    "(axes(w, t, h), tiled(canvas(h=2, w=3), h=2))": as_order((fs.axes(VIDEO, "w", "t", "h"), fs.tiled(SMALL, h=2))),
    "concatenated(7, tiled(h=2), hilbert, 1)": fs.concatenated(7, fs.tiled(VIDEO, h=2), fs.hilbert(VIDEO), 1),
}


@pytest.mark.parametrize("text", ORDERS)
def test_orders_as_text(text: str) -> None:
    assert parse_order(text, VIDEO) == ORDERS[text]
    assert "canvas" in text or parse_order(str(ORDERS[text]), VIDEO) == ORDERS[text]


ORDER_MISTAKES = [
    ("tilde(2)", "FS051", "`tilde` is no order"),
    ("3", "FS051", "a number is no order"),
    ("causal", "FS051", "`causal` is no order"),
    ("axes(h)", "FS033", "axes are h"),
    ("axes(1)", "FS050", "an axis is named here"),
    ("axes(t, h, w, w)", "FS033", "axes are"),
    ("tiled(t=0)", "FS033", "side on `t` is 0"),
    ("tiled(x=2)", "FS011", "the canvas has the axes"),
    ("striped", "FS020", "missing"),
    ("striped(0)", "FS033", "ranks is 0"),
    ("row_major(2)", "FS021", "too many"),
    ("w: int; striped(w)", "FS050", "declares nothing"),
    ("striped(4", "FS050", "expected `)`"),
    ("hilbret", "FS051", "`hilbret` is no order"),
    ("tiled({h: 4}, {h: 3})", "FS033", "inner tile's side on `h` is 3, the outer one's 4"),
    ("tiled(2, h=2)", "FS033", "given twice"),
    ("dilated(2, h=2)", "FS033", "given twice"),
    ("dilated(h=0)", "FS033", "the dilation on `h` is 0"),
    ("zigzag(0)", "FS033", "ranks is 0"),
    ("concatenated", "FS033", "no segments"),
    ("concatenated(0, morton)", "FS033", "a segment is 0"),
    ("concatenated(7, striped(2))", "FS033", "striped(2) is of any number of tokens"),
    ("concatenated(7, causal)", "FS051", "`causal` is no order"),
    ("by_label(labels)", "FS051", "takes a tensor"),
    ("morton(2)", "FS021", "too many"),
    ("(None, None)", "FS033", "neither side has an order"),
    ("(morton, None, None)", "FS033", "is a pair"),
    ("concatenated(7, (morton, None))", "FS051", "a tuple is no order"),
]


@pytest.mark.parametrize(("text", "code", "message"), ORDER_MISTAKES)
def test_a_mistake_in_an_order(text: str, code: str, message: str) -> None:
    with pytest.raises(FlexSpecError) as caught:
        parse_order(text, VIDEO)
    assert caught.value.code == code
    assert message in caught.value.message
    assert (caught.value.where or "").startswith(f"    {text}\n")


def test_the_orders_of_two_sides_are_of_their_canvases() -> None:
    made = parse_order("(axes(w, h), morton)", NEAR.on)
    assert made == as_order((fs.axes(IMAGE, "w", "h"), fs.morton(CLIP)))


def test_orders_of_a_canvas_need_one() -> None:
    assert parse_order("concatenated(3, hilbert(canvas(h=2, w=3)))") == fs.concatenated(3, fs.hilbert(SMALL))
    assert parse_order("tiled(canvas(h=2, w=3), h=2)", VIDEO) == fs.tiled(SMALL, h=2)
    assert parse_order("axes(canvas(h=2, w=3), w, h)") == fs.axes(SMALL, "w", "h")
    for text in ("row_major", "axes(h, w)", "tiled(h=2)", "tiled(2)", "morton", "hilbert", "dilated(2)"):
        with pytest.raises(FlexSpecError) as caught:
            parse_order(text)
        assert caught.value.code == "FS033", str(caught.value)
