"""The house keeps its order: imports go one way, files and functions stay short, importing stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LANGUAGE = sorted((ROOT / "flexspec").rglob("*.py"))
COMPILER = sorted((ROOT / "compiler").rglob("*.py"))
FILES = LANGUAGE + COMPILER


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path, nodes: list[ast.AST]) -> set[str]:
    """Absolute names of what `nodes` import; a relative import counts from the file's package."""
    package = ["flexspec", *path.relative_to(ROOT).with_suffix("").parts[:-1]]
    package = package[1:] if package[1:2] == ["flexspec"] else package
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {item.name for item in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{item.name}" for item in node.names}
    return found


@pytest.mark.parametrize("path", LANGUAGE, ids=name_of)
def test_the_language_does_not_import_the_compiler(path: Path) -> None:
    tree = tree_of(path)
    typed = {id(node) for guard in ast.walk(tree) if _is_typing_guard(guard) for node in ast.walk(guard)}
    nodes = [node for node in ast.walk(tree) if id(node) not in typed]
    assert not [name for name in imported(path, nodes) if "compiler" in name.split(".")]


def _is_typing_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@pytest.mark.parametrize("path", [p for p in LANGUAGE if p.parent.name == "flexspec"], ids=name_of)
def test_the_core_does_not_import_the_patterns(path: Path) -> None:
    if path.name not in ("__init__.py", "text.py"):
        names = imported(path, list(ast.walk(tree_of(path))))
        assert not [name for name in names if name.startswith("flexspec.patterns")]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


@pytest.mark.parametrize("path", LANGUAGE, ids=name_of)
def test_nothing_is_run_from_text(path: Path) -> None:
    calls = [node.func for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    assert not [call.id for call in calls if isinstance(call, ast.Name) and call.id in ("eval", "exec", "__import__")]


HEAVY = ["matplotlib", "typer", "rich", "flexspec.compiler", "torch._inductor.compile_fx"]


def test_importing_is_light() -> None:
    code = f"import sys, flexspec; print([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "[]"


def test_compiling_a_spec_imports_no_compiler_of_models() -> None:
    code = "import sys, flexspec as fs; fs.compile(fs.causal()); print('torch._dynamo' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "False"


def test_every_room_is_in_the_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(["flexspec", *path.parent.relative_to(ROOT / "flexspec").parts]) for path in LANGUAGE}
    found |= {".".join(["flexspec", *path.parent.relative_to(ROOT).parts]) for path in COMPILER}
    assert sorted(listed) == sorted(found)
