"""Text to expressions: `parse(str(e)) is e`.

Positions, sizes and operators need no declaration; tensors and parameters are declared in front:
`document_id: int[batch, sequence]; document_id[b, q] == document_id[b, kv]`.
"""

from __future__ import annotations

import math

from .errors import FlexSpecError, choices
from .expr import (
    POSITIONS,
    SIZES,
    Expr,
    Input,
    apply,
    const,
    input_,
    load,
    param,
    var,
)
from .grammar import Declaration, Node, read, text_error
from .ops import OPS, Type

TYPES = {kind.text: kind for kind in Type}
CONSTANTS = {"True": True, "False": False, "inf": math.inf, "nan": math.nan}


def parse(text: str) -> Expr:
    """The expression that `text` writes; `parse(str(e)) is e`.

    text: declarations such as `ids: int[batch, sequence];`, then a formula in Python's syntax. A name that is neither a
        position, a size nor declared is an integer parameter.

    Raises FS050 (what has no meaning, with a caret), FS005 (a chained comparison), FS010 (operands of wrong types),
    FS034 (an integer past 64 bits) and FS053 (too long, or too deep).

    >>> str(parse("(q >= kv) & (q - kv < window)"))
    'window: int; (q >= kv) & (q - kv < window)'
    """
    declared, node = read(text)
    names = declared_names(text, declared)
    try:
        return _build(text, node, names)
    except RecursionError:
        raise FlexSpecError("FS053", "the text nests too deep") from None


def declared_names(text: str, declared: list[Declaration]) -> dict[str, Expr]:
    """What each declared name stands for; FS050 where one is declared twice."""
    names: dict[str, Expr] = {}
    for item in declared:
        if item.name in names:
            raise text_error(text, item.at, f"`{item.name}` is declared twice")
        names[item.name] = _declared(text, item)
    return names


def _declared(text: str, item: Declaration) -> Expr:
    if item.type not in TYPES or item.made is not None:
        shown = f"{item.type}(...)" if item.made else item.type
        raise text_error(text, item.at, f"`{shown}` is no type: {choices(TYPES)}")
    if leaf(item.name):
        raise text_error(text, item.at, f"`{item.name}` already has a meaning", "take another name")
    kind = TYPES[item.type]
    return param(item.name, kind) if item.dims is None else input_(item.name, item.dims, kind)


def leaf(name: str) -> Expr | None:
    """A constant, position, coordinate or size by name; None for any other name."""
    if name in CONSTANTS:
        return const(CONSTANTS[name])
    if name in POSITIONS or name in SIZES or name == "score":
        return var(name)
    head, dot, _ = name.partition(".")
    return var(name) if dot and head in ("q", "kv") and name.count(".") == 1 else None


def _build(text: str, node: Node, names: dict[str, Expr]) -> Expr:
    def go(part: Node) -> Expr:
        return _build(text, part, names)

    name = str(node.value)
    if node.kind == "name":
        meaning = names.get(name) or leaf(name)
        if meaning is None and "." in name:
            raise text_error(text, node.at, f"`{name}` is no coordinate: only q and kv have axes")
        return meaning or param(name)
    try:
        if node.kind == "number":
            assert not isinstance(node.value, str)
            return const(node.value)
        if node.kind == "index" and node.parts[0].kind == "name":
            tensor = names.get(str(node.parts[0].value))
            if isinstance(tensor, Input):
                return load(tensor, tuple(go(part) for part in node.parts[1:]))
            fix = f"write `{node.parts[0].value}: int[batch, sequence]; ...` in front"
            raise text_error(text, node.at, f"`{node.parts[0].value}` is not a declared tensor", fix)
        if node.kind in ("unary", "binary"):
            return apply(name, *(go(part) for part in node.parts))
        if node.kind == "call" and name in OPS and OPS[name].symbol is None and not node.keywords:
            return apply(name, *(go(part) for part in node.parts))
    except FlexSpecError as error:
        if error.where:
            raise
        raise text_error(text, node.at, error.message, error.fix, error.code) from None
    calls = [name for name, op in OPS.items() if op.symbol is None]
    if node.kind == "call" and name not in calls:
        raise text_error(text, node.at, f"`{name}` is no function: {choices(calls)}")
    raise text_error(text, node.at, f"a {node.kind} has no meaning in an expression")
