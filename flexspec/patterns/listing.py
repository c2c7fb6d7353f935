"""The families, and the patterns as a command line lists them: read from the source, so that nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

FAMILIES: Mapping[str, str] = {
    "sequence": "mask",
    "heads": "mask",
    "documents": "mask",
    "tokens": "mask",
    "grid": "mask",
    "video": "mask",
    "mixed": "mask",
    "selectors": "mask",
    "scores": "score",
    "weights": "weight",
}
"""The files with patterns, in reading order, and the kind of what they define."""


class Listed(NamedTuple):
    """A pattern as text: what `flexspec.patterns.Entry` says of it, without the pattern."""

    name: str
    kind: str
    family: str
    example: str
    meaning: str


@cache
def listing() -> list[Listed]:
    """Every pattern in reading order, as `CATALOG` has them. Imports neither torch nor the rest of flexspec.

    >>> listing()[2]
    Listed(name='causal', kind='mask', family='sequence', example='causal()', \
meaning='keys up to the query, moved by an offset')
    """
    return [listed for family, kind in FAMILIES.items() for listed in _family(family, kind)]


def _family(family: str, kind: str) -> list[Listed]:
    """The patterns of one file, in the order of its `__all__`."""
    tree = ast.parse((Path(__file__).parent / f"{family}.py").read_text(encoding="utf-8"))
    names: list[str] = []
    texts: dict[str, list[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "__all__" and node.value is not None:
            names = ast.literal_eval(node.value)
        elif isinstance(node, ast.FunctionDef):
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "pattern":
                    texts[node.name] = [ast.literal_eval(argument) for argument in call.args]
    return [Listed(name, kind, family, *texts[name]) for name in names if name in texts]
