"""Derivatives against torch's autograd, which differentiates the evaluated expression."""

from __future__ import annotations

import pytest
import torch
from flexspec.compiler.simplify.derivative import DERIVATIVES, derivative, loads_of

import flexspec as fs
from flexspec.evaluate import evaluate
from flexspec.expr import apply, const, input_, load, var
from flexspec.ops import OPS, Type
from flexspec.syntax import parse

SCORE = var("score")
OTHER = load(input_("other", ("n",), Type.FLOAT), (var("q"),))
# zeros, ties, halves, both signs
POINTS = [-3.5, -2.0, -1.25, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.25]


def values_at(left, right):
    """Every pair of these numbers, as leaves that want gradients."""
    pairs = torch.cartesian_prod(torch.tensor(left), torch.tensor(right)).double()
    score, other = (x.contiguous().requires_grad_() for x in pairs.unbind(1))
    return {"score": score, "other": other, "q": torch.arange(len(pairs))}


def check(expr, values, wanted):
    """Derivatives by the score and by each tensor in `wanted`, against autograd."""
    out = evaluate(expr, values, precise=True)
    leaves = [values[name] for name in wanted]
    if out.requires_grad:
        exact = torch.autograd.grad(out.sum(), leaves, allow_unused=True, materialize_grads=True)
    else:
        exact = [torch.zeros_like(leaf) for leaf in leaves]
    with torch.no_grad():
        for name, leaf, gradient in zip(wanted, leaves, exact, strict=True):
            if name == "score":
                found = evaluate(derivative(expr, SCORE), values, precise=True).expand_as(leaf)
            else:
                found = torch.zeros_like(leaf)
                for place in loads_of(expr, name):
                    part = evaluate(derivative(expr, place), values, precise=True).expand_as(out)
                    at = torch.broadcast_tensors(*(evaluate(i, values) for i in place.index), out.long())[:-1]
                    found.index_put_(at, part, accumulate=True)
            torch.testing.assert_close(found, gradient, equal_nan=True, rtol=1e-6, atol=1e-6)


def test_every_operator_has_a_rule():
    assert DERIVATIVES.keys() == OPS.keys()


def is_float(name):
    try:
        return OPS[name].signature((Type.FLOAT,) * OPS[name].arity)[1] > Type.INT
    except TypeError:
        return name == "where"


@pytest.mark.parametrize("name", [name for name in OPS if is_float(name) and name != "floordiv"])
def test_operators(name):
    positive = name in ("sqrt", "log", "log2")
    left = [x for x in POINTS if x > 0] if positive else POINTS
    right = [x for x in POINTS if x] if name in ("div", "mod", "floordiv") else POINTS
    args = {1: (SCORE,), 2: (SCORE, OTHER), 3: (apply("gt", SCORE, OTHER), SCORE, OTHER)}[OPS[name].arity]
    if name == "pow":  # autograd has no derivative by an exponent where the power is none
        check(apply("pow", SCORE, const(2.0)), values_at(POINTS, [1.0]), ["score"])
        check(apply("pow", SCORE, const(0.0)), values_at(POINTS, [1.0]), ["score"])
        left = [x for x in POINTS if x >= 0]
    values = values_at(left, right)
    check(apply(name, *args), values, ["score", "other"][: len(args)])
    # inside and outside of another function: the chain rule
    inner = apply(name, *(apply("add", arg, apply("mul", arg, const(0.5))) if arg is SCORE else arg for arg in args))
    check(apply("mul", inner, apply("sin", SCORE)), values, ["score"])


TEXTS = [
    "score * q",
    "q * kv * score - kv",
    "(score * q) * kv",
    "where(q > 2, score * score, exp(score)) + float(int(score))",
    "max(min(score, 1.0), -1.0) * abs(score)",
    "score % 0.75 + score % (score + 4.0)",
    "5.0 * tanh(score / 5.0) * double(score)",
    "score / (q + 1) + floor(score) + sqrt(abs(score) + 1.0)",
]


@pytest.mark.parametrize("text", TEXTS)
def test_expressions(text):
    values = values_at(POINTS, [0.5, 1.0])
    check(parse(text), values | {"kv": torch.arange(len(values["q"])) * 3}, ["score"])


CANVAS = fs.Canvas(h=3, w=3)
SHIPPED = {
    "alibi": fs.alibi([0.5, 0.1]),
    "default alibi": fs.alibi(),
    "softcap": fs.softcap(2.0),
    "relative bias": fs.relative_bias(torch.randn(2, 7)),
    "t5 bias": fs.t5_bias(torch.randn(8, 2), max_distance=6),
    "swin bias": fs.swin_bias(CANVAS, torch.randn(25, 2)),
    "distance scale": fs.distance_scale(lambda kv_len: torch.log(kv_len)),
    "key gain": fs.key_gain(torch.rand(2, 9) + 0.1),
    "several": fs.softcap(2.0) + fs.key_gain(torch.rand(9) + 0.1) + fs.softcap(1.0),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_scores(name):
    mod, shape = SHIPPED[name], (1, 2, 9, 9)
    values = {**mod.defaults, "heads": 2, "batch": 1, "q_len": 9, "kv_len": 9}
    values["score"] = torch.randn(shape, dtype=torch.float64).requires_grad_()
    for axis, position in enumerate(("b", "h", "q", "kv")):
        values[position] = torch.arange(shape[axis]).view([-1 if axis == at else 1 for at in range(4)])
    floats = [key for key, tensor in mod.tensors.items() if tensor.is_floating_point()]
    tensors = {key: x.double().requires_grad_() if key in floats else x for key, x in mod.tensors.items()}
    check(mod.flat, values | tensors, ["score", *floats])


def test_what_does_not_depend_on_it_is_zero():
    assert derivative(parse("floor(score) + q"), SCORE) is const(0.0)
    assert derivative(parse("score // 0.5"), SCORE) is const(0.0)  # torch has no derivative of it
    assert derivative(parse("score + q / 3"), SCORE) is const(1.0)
