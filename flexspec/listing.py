"""The names of the patterns that ship, read from their source: the list is there without importing torch."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

CATALOG = Path(__file__).parent / "patterns" / "catalog.py"


@dataclass(frozen=True)
class Listed:
    """A pattern as the catalog describes it."""

    name: str
    kind: str
    family: str
    example: str
    meaning: str


def listing() -> list[Listed]:
    """Every pattern of the catalog, in its order.

    >>> listing()[0]
    Listed(name='everything', kind='mask', family='sequence', example='everything()', meaning='every pair')
    """
    texts: dict[str, str] = {}
    tables: dict[str, ast.expr] = {}
    for statement in ast.parse(CATALOG.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            texts[statement.targets[0].id] = _text(statement.value, texts)
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
            tables[statement.target.id] = statement.value
    masks = tables["_MASKS"]
    assert isinstance(masks, ast.Dict)
    rows = [
        (_row(row, texts), "mask", _text(family, texts))
        for family, value in zip(masks.keys, masks.values, strict=True)
        for row in value.elts  # type: ignore[attr-defined]
    ]
    for table, kind in (("_SCORES", "score"), ("_WEIGHTS", "weight")):
        rows += [(_row(row, texts), kind, f"{kind}s") for row in tables[table].elts]  # type: ignore[attr-defined]
    return [Listed(row[0], kind, family, row[1] if row[2:] else "", row[-1]) for row, kind, family in rows]


def _row(node: ast.expr, texts: dict[str, str]) -> list[str]:
    return [_text(part, texts) for part in node.elts]  # type: ignore[attr-defined]


def _text(node: ast.expr | None, texts: dict[str, str]) -> str:
    """A string, the last part of a dotted name, or an f-string over `texts`."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    assert isinstance(node, ast.JoinedStr)
    return "".join(
        texts[part.value.id]  # type: ignore[attr-defined]
        if isinstance(part, ast.FormattedValue)
        else _text(part, texts)
        for part in node.values
    )
