"""The catalog: every pattern by name with its example, the same list read from the source, and all docstrings."""

from __future__ import annotations

import ast
import doctest
import importlib
import math
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from flexspec import patterns as p
from flexspec.canvas import Canvas
from flexspec.errors import CODES
from flexspec.patterns.about import about_of
from flexspec.patterns.listing import FAMILIES, listing

HOME = Path(p.__file__).parent
BESIDE = {"CATALOG", "Entry", "TOKEN_TYPES", "last_global", "t5_buckets"}
"""Public names that are no patterns."""


def tree_of(name):
    return ast.parse((HOME / f"{name}.py").read_text(encoding="utf-8"))


def test_the_catalog_lists_every_pattern():
    assert {*p.__all__} - BESIDE == {*p.CATALOG}
    for name, entry in p.CATALOG.items():
        assert entry.name == name and entry.make is getattr(p, name)
        assert entry.kind == {"scores": "score", "weights": "weight"}.get(entry.family, "mask")
        assert entry.meaning and (entry.example == "" or entry.example.startswith(f"{name}("))


def test_reading_order():
    names = [*p.CATALOG]
    assert names[:3] == ["everything", "nothing", "causal"] and names[-1] == "identity_mix"
    assert list(dict.fromkeys(entry.family for entry in p.CATALOG.values())) == [*FAMILIES]


def test_the_listing_is_the_catalog():
    keys = ("name", "kind", "family", "example", "meaning")
    assert [one._asdict() for one in listing()] == [
        {key: getattr(entry, key) for key in keys} for entry in p.CATALOG.values()
    ]


def test_the_listing_imports_nothing_of_flexspec_and_is_quick():
    code = f"""
        import sys, time
        sys.path.insert(0, {str(HOME)!r})
        start = time.perf_counter()
        from listing import listing
        listed = listing()
        print(len(listed), time.perf_counter() - start, [n for n in ("torch", "flexspec", "numpy") if n in sys.modules])
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    count, seconds, heavy = run.stdout.split(maxsplit=2)
    assert int(count) == len(p.CATALOG) and heavy.strip() == "[]"
    assert float(seconds) < 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_lists_the_patterns_that_it_defines(family):
    module = importlib.import_module(f"flexspec.patterns.{family}")
    functions = [node.name for node in tree_of(family).body if isinstance(node, ast.FunctionDef)]
    patterns = [name for name in functions if about_of(getattr(module, name))]
    assert sorted(patterns) == sorted({*module.__all__} - BESIDE)
    assert len({*module.__all__}) == len(module.__all__)


def test_type_checkers_see_every_family():
    stub = ast.parse((HOME / "__init__.pyi").read_text(encoding="utf-8")).body
    stars = [node.module for node in stub if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"]
    assert sorted(stars) == sorted(FAMILIES)
    for family in FAMILIES:
        lists = [node for node in tree_of(family).body if isinstance(node, ast.AnnAssign)]
        lists = [node for node in lists if ast.unparse(node.target) == "__all__"]
        assert len(lists) == 1 and all(isinstance(name, ast.Constant) for name in lists[0].value.elts)


def test_names_come_from_the_families_at_their_first_use():
    code = """
        import sys, flexspec.patterns as p
        assert "causal_window" not in vars(p) or "flexspec.patterns.sequence" in sys.modules
        names = {}
        exec("from flexspec.patterns import *", names)
        assert set(p.__all__) <= names.keys() and names["causal_window"] is p.causal_window
        try:
            p.causal_windw
        except AttributeError as error:
            print(error)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "module 'flexspec.patterns' has no attribute 'causal_windw'"


def test_examples_of_the_catalog_make_their_pattern():
    names = {name: entry.make for name, entry in p.CATALOG.items()} | {"canvas": Canvas}
    names |= {axis: axis for axis in ("t", "h", "w")}
    for name, entry in p.CATALOG.items():
        if entry.example:
            made = eval(entry.example, {"__builtins__": {}}, names)
            assert repr(made).startswith(name) and made.expr is not None


NO_ERRORS = {"everything", "nothing", "log_sparse", "t5_buckets", "taylor_weight", "signed_weight"}


def docstring(make):
    predicate = getattr(make, "predicate", None)
    return predicate.fn.__doc__ if predicate is not None else make.__doc__


@pytest.mark.parametrize("name", [*p.CATALOG, "t5_buckets", "last_global"])
def test_docstrings(name):
    text = docstring(getattr(p, name))
    names = {each: getattr(p, each) for each in p.__all__}
    names |= {"torch": torch, "Canvas": Canvas, "math": math}
    test = doctest.DocTestParser().get_doctest(text, names, name, None, 0)
    assert test.examples, f"{name} shows no example"
    failures: list[str] = []
    assert doctest.DocTestRunner().run(test, out=failures.append).failed == 0, "".join(failures)
    plain = " ".join(text.split())
    if name not in NO_ERRORS:
        assert {*re.findall(r"FS\d{3}", plain.partition("Raises ")[2])} & CODES.keys()
    assert not re.search(r"FS\d{3} to FS\d{3}", plain)


@pytest.mark.parametrize("name", p.CATALOG)
def test_docstrings_have_a_line_for_each_argument(name):
    make = getattr(p, name)
    predicate = getattr(make, "predicate", None)
    if predicate is None:
        arguments = list(make.__code__.co_varnames[: make.__code__.co_argcount])
    else:
        arguments = [*predicate.parameters]
    lines = [line.strip() for line in docstring(make).splitlines()]
    assert not [each for each in arguments if not any(line.startswith(f"{each}: ") for line in lines)]
