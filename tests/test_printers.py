"""What all printers share: temporaries, languages, operators in every column, text that only people read."""

import ast
import re

import pytest
import torch
from flexspec.compiler.backends.triton import arithmetic
from flexspec.compiler.backends.triton.functions import functions
from flexspec.compiler.printers.base import CASTS, Printer, form_of
from flexspec.compiler.printers.latex import to_latex
from flexspec.compiler.printers.names import Names
from test_printed_names import EVERY, JAVASCRIPT, LENGTH, by_definition, legal, run_time_number
from test_triton import qkv

import flexspec as fs
from flexspec.ops import OPS, Type

HELPERS = [name for name in vars(arithmetic) if not name.startswith("_")]
LABELS = [
    '"""',
    "\\N{",
    "two\nlines\r\x0cmore\u2028more\x00",
    "# -*- coding: utf-7 -*-",
    "{title} {0} %s",
    "Größe \U0001f600",
    "\ud800",
    "x" * 5000,
    "'''",
]


@pytest.mark.parametrize("label", LABELS, ids=range(len(LABELS)))
def test_a_label_is_only_read_by_people(label):
    """It heads the generated file, in which nothing but the title changes."""
    expr = fs.parse("(q >= kv) & (q % 3 != kv % 3)")
    texts = []
    for title in (label, "plain"):
        with open(functions(expr, None, False, title).file, encoding="utf-8", newline="") as file:
            texts.append(file.read())
    assert texts[0].split("\n")[1:] == texts[1].split("\n")[1:]
    tree = ast.parse(texts[0])
    assert isinstance(tree.body[0], ast.Expr) and isinstance(tree.body[1], ast.Import)
    q, k, v = (x.cpu() for x in qkv(LENGTH, batch=1))
    wanted = torch.tensor([[q >= kv and q % 3 != kv % 3 for kv in range(LENGTH)] for q in range(LENGTH)])
    out = fs.compile(fs.Mask(expr, label), backend="triton", block_size=16)(q, k, v)
    torch.testing.assert_close(out.double(), by_definition(q, k, v, wanted, {}, []), atol=2e-5, rtol=2e-5)


def test_coordinates_and_parameters_differ_in_latex():
    step = fs.Param("q_t")
    mask = fs.mask(canvas=fs.Canvas(t=3, h=4))(lambda q, kv: q.t - step < kv.h)
    assert to_latex(mask.expr) == "q.t - q_{t} < kv.h"


def test_names_are_handed_out():
    given = ["plain", "t0", "t2", "torch", "torch_", "make_", "__make", "größe", "_2x"]
    names = Names({"torch", "make"}, given)
    shown = ["plain", "t0", "t2", "torch_2", "torch_", "make_", "make_2", "value_2", "value_"]
    assert [names.of(name) for name in given] == shown
    assert [names.temporary() for _ in range(3)] == ["t1", "t3", "t4"]


class Script(Printer):
    """Another language, as one may be added: statements of its own, words of its own."""

    language = "torch"  # whose infix operators it shares

    def variable(self, node):
        return node.name

    def parameter(self, node):
        return self.names.of(node.name)

    def load(self, node):
        return f"{self.names.of(node.input.name)}[{', '.join(self.cast(part, Type.INT) for part in node.index)}]"

    def cast_text(self, text, kind):
        return f"Number({text})"

    def statement(self, name, text, kind):
        return f"const {name} = {text};"


class Unknown(Script):
    language = "klingon"


def test_a_language_stands_on_the_base():
    reserved = {*JAVASCRIPT.split(), "q", "kv", "Number"}
    for name in legal(EVERY):
        script = Script(run_time_number(name)[0].expr, Names(reserved, [name]))
        temporaries = [re.fullmatch(r"const (t\d+) = .*;", line)[1] for line in script.statements]
        own = {*temporaries, script.names.of(name)}
        assert len(temporaries) >= 2 and len(own) == len(temporaries) + 1 and not own & reserved
    expr = fs.parse("function: int; flags: bool[_]; (q - kv < function) & (function + flags[q] > 3)")
    script = Script(expr, Names(reserved, ["flags", "function"]))
    assert script.result == "(((q - kv) < function_) & ((function_ + Number(flags[q])) > 3))"


def test_an_operator_that_a_language_lacks_is_an_error():
    with pytest.raises(fs.FlexSpecError, match="FS042.*cannot be printed.*klingon"):
        Unknown(fs.parse("q < kv"), Names(()))


@pytest.mark.parametrize("language", ["torch", "triton"])
def test_every_operator_is_in_every_language(language):
    """On all types that it takes; and what a form calls exists."""
    scope = {"torch": {"torch"}, "triton": {"tl", *HELPERS}}[language]
    for op in (op for op in OPS.values() if op.name not in CASTS):
        for kind in Type:
            types = (Type.BOOL, kind, kind) if op.name == "where" else (kind,) * op.arity
            try:
                kinds, _ = op.signature(types)
            except TypeError:
                continue
            form = form_of(op.name, language, kinds[-1]).format(*"abc")
            called = {node.id for node in ast.walk(ast.parse(form)) if isinstance(node, ast.Name)} - set("abc")
            assert called <= scope, (op.name, form)
