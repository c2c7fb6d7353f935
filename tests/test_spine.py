"""Imports go one way, from module to module, and nothing hides one: not a function, not a type checker's guard."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from spine import COMPUTED, circles, imports_of, modules_of, without_doors, wrong_ways

LANGUAGE = (
    "errors user_line value_types ops expr grammar syntax captures narrow_dtypes evaluate canvas "
    "orders.base orders.digits orders.ranks orders.curves orders.lookup orders.sides orders session torch_calls traced "
    "trace inputs order predicate files selection formula combine questions proofs mask selecting score weight "
    "attention positions spec patterns text compiler __init__ compiler.cli"
).split()
"""Each imports only what stands to its left. Nothing but the command line imports the package itself."""

COMPILER = (
    "evaluation simplify blocks printers pipeline map_cache selecting maps backends operator attend planning proofs "
    "explain compiled planned compile fitting kept_keys measuring merging draw cli"
).split()
"""The rooms of compiler/: each imports only what stands to its left."""

DRAW = ["flexspec.compiler.draw"]
DOORS = {
    "flexspec": [],  # imports the compiler's public names at their first use
    "flexspec.patterns.catalog": [],  # imports the families, by their names in `listing`
    "flexspec.questions": ["flexspec.compiler.proofs"],  # what the compiler answers, asked through `flexspec`
    "flexspec.proofs": ["flexspec.compiler.proofs"],  # the same questions as functions
    "flexspec.compiler.blocks.block_map": DRAW,  # `show` of each opens the room that draws
    "flexspec.compiler.proofs.diff": DRAW,
    "flexspec.compiler.proofs.reach": DRAW,
    "flexspec.compiler.fitting.fit": DRAW,
    "flexspec.compiler.kept_keys": DRAW,
    "flexspec.compiler.measuring.measure": DRAW,
    "flexspec.compiler.measuring.recall": DRAW,
    "flexspec.compiler.measuring.rollout": DRAW,
}
"""The modules that may import a computed name, and what else they may see."""

IMPORTS = without_doors(imports_of(modules_of()), DOORS)


def test_the_language_imports_to_the_left_only() -> None:
    assert wrong_ways(IMPORTS, LANGUAGE) == []


def test_the_compiler_imports_to_the_left_only() -> None:
    inside = {
        module: {name for name in names if name.startswith("flexspec.compiler.")}
        for module, names in IMPORTS.items()
        if module.startswith("flexspec.compiler.")
    }
    assert wrong_ways(inside, COMPILER, inside="flexspec.compiler") == []


@pytest.mark.parametrize("module", [name for name, rooms in DOORS.items() if rooms is DRAW])
def test_only_show_opens_the_room_that_draws(module: str) -> None:
    tree = ast.parse(modules_of()[module].read_text(encoding="utf-8"))
    inside = {id(node) for each in ast.walk(tree) if getattr(each, "name", "") == "show" for node in ast.walk(each)}
    opened = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "draw" in (node.module or "")]
    assert opened and all(id(node) in inside for node in opened)


def test_no_module_imports_itself_round_about() -> None:
    assert circles(IMPORTS) == []


def house(folder: Path, files: dict[str, str]) -> dict[str, set[str]]:
    """The imports of a house with these files, by their paths."""
    for name, text in {"__init__": "", **files}.items():
        path = folder / "flexspec" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return imports_of(modules_of(folder))


HIDDEN = {
    "plain": "from .right import name",
    "the module itself": "from . import right",
    "by its full name": "import flexspec.right as other",
    "of the package": "from flexspec import right",
    "in a function": "def f():\n    from .right import name",
    "for types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .right import name",
    "in a method of a class": "class A:\n    def f(self):\n        if self:\n            from .right import name",
    "by a text": "from importlib import import_module\nimport_module('flexspec.right')",
}


@pytest.mark.parametrize("how", HIDDEN)
def test_an_import_to_the_right_is_seen(how: str, tmp_path: Path) -> None:
    imports = house(tmp_path, {"left": HIDDEN[how], "right": "name = 1"})
    assert imports["flexspec.left"] == {"flexspec.right"}
    assert wrong_ways(imports, ["left", "right"]) == ["flexspec.left -> flexspec.right"]
    assert wrong_ways(imports, ["right", "left"]) == []


def test_rooms_may_be_packages_and_the_longest_name_counts(tmp_path: Path) -> None:
    files = {
        "room/__init__": "from .inner import name",
        "room/inner": "from ..first import name",
        "room/later": "from .inner import name\nfrom ..middle import name",
        "first": "name = 1",
        "middle": "from .room.inner import name",
    }
    imports = house(tmp_path, files)
    assert wrong_ways(imports, ["first", "room.inner", "middle", "room"]) == []
    assert wrong_ways(imports, ["first", "room", "middle"]) == ["flexspec.room.later -> flexspec.middle"]
    assert wrong_ways(imports, ["first", "room"]) == [
        "flexspec.middle stands in no room",
        "flexspec.room.later -> flexspec.middle",
    ]


def test_nothing_imports_the_package_or_a_name_that_is_computed(tmp_path: Path) -> None:
    text = "import flexspec\nimport importlib\nimportlib.import_module(f'flexspec.{flexspec}')"
    imports = house(tmp_path, {"left": text})
    assert wrong_ways(imports, ["left"]) == [f"flexspec.left -> {name}" for name in sorted((COMPUTED, "flexspec"))]
    assert wrong_ways(without_doors(imports, {"flexspec.left": ["flexspec"]}), ["left"]) == []


def test_the_package_itself_stands_where_it_is_named(tmp_path: Path) -> None:
    imports = house(tmp_path, {"__init__": "from .left import name", "left": "", "program": "import flexspec"})
    assert wrong_ways(imports, ["left", "__init__", "program"]) == []
    assert wrong_ways(imports, ["program", "left", "__init__"]) == ["flexspec.program -> flexspec"]
    assert wrong_ways(imports, ["__init__", "left", "program"]) == ["flexspec -> flexspec.left"]


def test_a_door_opens_on_what_is_stated_only(tmp_path: Path) -> None:
    imports = house(tmp_path, {"left": "from .right import name\nfrom .other import name", "right": "", "other": ""})
    seen = without_doors(imports, {"flexspec.left": ["flexspec.right"]})
    assert wrong_ways(seen, ["left", "right", "other"]) == ["flexspec.left -> flexspec.other"]


def test_circles_are_seen_inside_a_room_and_round_about(tmp_path: Path) -> None:
    files = {
        "a": "def f():\n    from .b import f",
        "b": "from .c import f",
        "c": "from .a import f",
        "d": "from .a import f",
    }
    imports = house(tmp_path, files)
    assert circles(imports) == [("flexspec.a", "flexspec.b", "flexspec.c")]
    imports["flexspec.c"].clear()
    assert circles(imports) == []
