"""Expressions pickled and copied: always the object that equal expressions share, whatever its depth and sharing."""

from __future__ import annotations

import copy
import math
import multiprocessing
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

import flexspec as fs
from flexspec.expr import MAX_DEPTH, Expr, apply, const, input_, load, param, var
from flexspec.ops import Type


def deep(left: bool) -> Expr:
    """As deep as an expression may be, on its left or on its right."""
    expr: Expr = var("q")
    for number in range(MAX_DEPTH - 1):
        expr = apply("add", expr, const(number)) if left else apply("sub", const(number), expr)
    return expr


def shared(levels: int) -> Expr:
    """A small graph whose text doubles with each level."""
    expr: Expr = apply("sub", var("q"), var("kv"))
    for number in range(levels):
        expr = apply("min", apply("add", expr, const(number)), expr)
    return expr


TABLE = input_("table", ("batch", "_"), Type.FLOAT)
EXPRESSIONS = {
    "bool": const(True),
    "int that equals a bool": const(1),
    "float that equals an int": const(1.0),
    "double": const(1.0, Type.DOUBLE),
    "minus zero": const(-0.0),
    "nan": const(math.nan),
    "minus infinity": const(-math.inf),
    "int64": const(-(2**63)),
    "position": var("kv"),
    "coordinate": var("q.t"),
    "score": var("score"),
    "parameter": param("window"),
    "float parameter of the same name": param("window", Type.FLOAT),
    "input": TABLE,
    "load": load(TABLE, (var("b"), load(input_("at", ("_",)), (var("q"),)))),
    "an input at the root and below": apply(
        "add", load(TABLE, (var("b"), const(0))), load(TABLE, (const(0), var("q")))
    ),
    "deep on the left": deep(left=True),
    "deep on the right": deep(left=False),
    "shared": shared(60),
    "pattern": (fs.causal_window(64) | fs.sink(4)).expr,
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_pickle_is_the_same_object(name: str, protocol: int) -> None:
    expr = EXPRESSIONS[name]
    assert pickle.loads(pickle.dumps(expr, protocol)) is expr


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_copy_is_the_same_object(name: str) -> None:
    expr = EXPRESSIONS[name]
    assert copy.copy(expr) is expr and copy.deepcopy(expr) is expr
    assert copy.deepcopy({"of": [expr, expr]}) == {"of": [expr, expr]}


def test_depth_needs_no_recursion() -> None:
    limit, frames = sys.getrecursionlimit(), 0
    frame = sys._getframe()
    while frame is not None:
        frame, frames = frame.f_back, frames + 1
    expr = deep(left=True)
    sys.setrecursionlimit(frames + 40)
    try:
        same = pickle.loads(pickle.dumps(expr)) is expr and copy.deepcopy([expr])[0] is expr
    finally:
        sys.setrecursionlimit(limit)
    assert same


def test_a_pickle_is_as_large_as_the_graph() -> None:
    """Its text would have 2**60 parts."""
    assert len(pickle.dumps(shared(60))) < 60 * len(pickle.dumps(shared(1)))


def test_an_expression_that_nobody_holds_is_made_again() -> None:
    data = pickle.dumps(apply("mul", var("q"), const(123_457)))
    assert pickle.loads(data) is apply("mul", var("q"), const(123_457))


def answer(expr: Expr, mask: fs.Mask, attention: fs.Attention) -> tuple[Expr, str, torch.Tensor, fs.Attention]:
    """In a process of its own: what came, and what it says there."""
    return expr, str(expr), mask.dense(5), attention


def test_another_process_gives_the_same_objects_back() -> None:
    mask = fs.document(torch.tensor([0, 0, 1, 1, 1])) & fs.causal()
    attention = fs.Attention(mask=fs.causal(), scores=[fs.softcap(3.0)], weight=fs.sigmoid_weight(-1.0))
    _ = attention.parts
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        expr, text, dense, came_back = pool.submit(answer, deep(left=True), mask, attention).result(120)
    assert expr is deep(left=True) and text == str(expr)
    assert dense.equal(mask.dense(5))
    assert came_back.parts.exprs == attention.parts.exprs and came_back == attention
