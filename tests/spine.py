"""Who imports whom, read from the source: every import counts, inside functions and under TYPE_CHECKING too."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMPUTED = "a name computed at run time"
"""What `import_module` of anything but a text imports."""

Imports = dict[str, set[str]]
Doors = Mapping[str, Sequence[str]]


def modules_of(root: Path = ROOT) -> dict[str, Path]:
    """The file of each module of flexspec/ and compiler/, by the name under which it is imported."""
    modules: dict[str, Path] = {}
    for folder, package in (("flexspec", "flexspec"), ("compiler", "flexspec.compiler")):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            modules[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return modules


def imports_of(modules: Mapping[str, Path]) -> Imports:
    """The modules that each module imports, of those given."""
    return {name: {seen for seen in _imports(name, path, modules) if seen != name} for name, path in modules.items()}


def _imports(module: str, path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names if item.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for item in node.names:
                yield from [name for name in (f"{source}.{item.name}", source) if name in modules][:1]
        elif isinstance(node, ast.Call) and _name(node.func) in ("import_module", "__import__"):
            text = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
            yield from [COMPUTED] if not isinstance(text, str) else [text] if text in modules else []


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def without_doors(imports: Imports, doors: Doors) -> Imports:
    """The same without what a door may import: computed names, and the modules or packages that it is stated with."""

    def stated(door: str, name: str) -> bool:
        return name == COMPUTED or any(f"{name}.".startswith(f"{room}.") for room in doors[door])

    return {
        module: {name for name in names if not (module in doors and stated(module, name))}
        for module, names in imports.items()
    }


def wrong_ways(imports: Imports, rooms: Sequence[str], inside: str = "flexspec") -> list[str]:
    """Imports that go to the right, as `a -> b`, and modules that stand in no room.

    imports: see `imports_of`.
    rooms: modules or packages, without the name of the package that they are in, which is `__init__` itself. Each may
    import itself and what stands to its left.
    inside: that package. Only its modules are judged, by what they import of it. Names that are computed, the packages
    around it and, where no room is `__init__`, itself are imported by nobody.
    """

    def room_of(module: str) -> int:
        fitting = [room for room in rooms if f"{module}.".startswith(f"{inside}.{room}.")]
        own = ["__init__"] if module == inside and "__init__" in rooms else []
        return rooms.index(max(fitting + own, key=len)) if fitting or own else len(rooms)

    def is_judged(name: str) -> bool:
        return f"{name}.".startswith(f"{inside}.") or f"{inside}.".startswith(f"{name}.") or name == COMPUTED

    judged = {name: seen for name, seen in imports.items() if f"{name}.".startswith(f"{inside}.")}
    homeless = [f"{name} stands in no room" for name in judged if name != inside and room_of(name) == len(rooms)]
    return homeless + [
        f"{module} -> {name}"
        for module, names in judged.items()
        for name in sorted(names)
        if is_judged(name) and room_of(name) > room_of(module)
    ]


def circles(imports: Imports) -> list[tuple[str, ...]]:
    """Modules that import each other, round about too: the strongly connected sets of more than one (Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found: list[tuple[str, ...]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        path.append(module)
        for name in sorted(imports.get(module, ())):
            if name not in order:
                visit(name)
            if name in path:
                lowest[module] = min(lowest[module], lowest[name])
        if lowest[module] == order[module]:
            circle = path[path.index(module) :]
            del path[path.index(module) :]
            if len(circle) > 1:
                found.append(tuple(sorted(circle)))

    for module in sorted(imports):
        if module not in order:
            visit(module)
    return sorted(found)
