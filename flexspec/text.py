"""Patterns and orders as text: `causal & (causal_window(1024) | sink(4))`. Text is read, never run.

A name is a declared value, a pattern of the catalog, a position, or an integer parameter, in this order. Raw
predicates mix in: `causal & (q - kv < 100)`. They are on the canvases that the text declares for its sides:
`q: canvas(h=4, w=6); kv: canvas(t=2, h=4, w=6); q.h == kv.h`. `causal.T` has queries and keys exchanged.
"""

from __future__ import annotations

import difflib
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import order as orders
from .canvas import AnyCanvas, Canvas, canvas_or_pair, placed
from .errors import FlexSpecError, choices
from .expr import Const, Expr, Input, Load, apply, const, infix_text, load, param, params_of
from .formula import Formula
from .grammar import BY_AXIS, Declaration, Node, read, text_error
from .mask import Mask
from .ops import OPS, Type
from .order import Order
from .patterns import CATALOG
from .predicate import Parameter
from .score import ScoreMod
from .syntax import declared_names, leaf
from .traced import Traced
from .weight import Weight

_JOIN = {"and": operator.and_, "or": operator.or_, "xor": operator.xor, "sub": operator.sub}
_FOLD = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}
_LIST = "flexspec.patterns.CATALOG lists all"


def parse_pattern(text: str, catalog: Mapping[str, Any] = CATALOG) -> Mask | ScoreMod:
    """The mask or score mod that `text` writes, labelled by it.

    text: as in Python, without `fs.`.
    catalog: patterns by name, each with a `make`: a pattern, or a function that returns one.

    Raises FS050 (no syntax), FS051 (an unknown pattern), FS053 (too long or too deep), FS007, FS010 (what does not
    join), FS011 (a coordinate that no canvas has), FS020, FS021, FS023 (values of a pattern), and what the patterns
    themselves raise; each has a caret into the text.

    >>> parse_pattern("causal & (q - kv < 2)").dense(3).int().tolist()[0][0]
    [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    declared, node = read(text)
    canvases = [item for item in declared if item.made is not None]
    reading = _Reading(text, declared_names(text, [item for item in declared if item.made is None]), catalog)
    try:
        return replace(reading, on=_canvases(reading, canvases)).whole(node)
    except RecursionError:
        raise FlexSpecError("FS053", "the text nests too deep") from None


def parse_order(text: str, canvas: AnyCanvas | None = None) -> Order:
    """The order that `text` writes, as in Python without the canvas: `axes(h, w, t)`, `tiled(t=6, h=8, w=8)`.

    Tiles of tiles are `tiled({t: 6, h: 8, w: 8}, {h: 4, w: 4})`, segments `concatenated(77, tiled(h=8, w=8))`, orders
    for each side `(hilbert, None)`.

    text: the order.
    canvas: what it orders where the text names none, as `hilbert(canvas(h=48, w=80))` does, or a canvas for each side;
        orders over ranks need none.

    Raises FS011, FS033 (what the order does not take), FS020, FS021, FS023 (its values), FS050 (no syntax), FS051 (an
    unknown order), FS053 (too long or too deep).

    >>> parse_order("tiled(h=2, w=2)", Canvas(h=4, w=6))
    tiled(h=2, w=2)
    """
    declared, node = read(text)
    if declared:
        raise text_error(text, declared[0].at, "an order declares nothing")
    reading = _Reading(text, {}, {})
    try:
        if node.kind != "tuple":
            return _order(reading, node, canvas if isinstance(canvas, Canvas) else None)
        if len(node.parts) != 2:
            raise text_error(text, node.at, "an order for each side is a pair", "write (hilbert, None)", "FS033")
        sides = zip(node.parts, ("q", "kv"), strict=True)
        pair = [_side_order(reading, part, canvas.side(side) if canvas else None) for part, side in sides]
        order = orders.as_order(tuple(pair))
        if order is None:
            raise text_error(text, node.at, "neither side has an order", code="FS033")
        return order
    except RecursionError:
        raise FlexSpecError("FS053", "the text nests too deep") from None


_ORDERS = {
    "row_major": "row_major",
    "axes": "axes(h, w, t)",
    "tiled": "tiled(t=6, h=8)",
    "morton": "morton",
    "hilbert": "hilbert",
    "dilated": "dilated(h=2, w=2)",
    "striped": "striped(4)",
    "zigzag": "zigzag(4)",
    "concatenated": "concatenated(77, tiled(h=8, w=8))",
}


def _order(reading: _Reading, node: Node, canvas: Canvas | None) -> Order:
    makers: dict[str, Callable[..., Order]] = {name: getattr(orders, name) for name in _ORDERS}
    if node.value == "by_label" and node.kind in ("name", "call"):
        raise text_error(reading.text, node.at, "an order by labels takes a tensor", "make it in Python", "FS051")
    if node.kind not in ("name", "call") or node.value not in makers:
        raise _unknown(reading.text, node, "order", makers, f"write {choices(_ORDERS.values())}")
    name, parts = str(node.value), list(node.parts)
    given = {key: reading.value(part) for key, part in node.keywords}
    if name in ("striped", "zigzag"):
        args: list[Any] = [reading.value(part) for part in parts]
    elif name == "concatenated":
        args = [reading.value(part) if part.kind == "number" else _order(reading, part, canvas) for part in parts]
    else:
        if parts and parts[0].kind == "call" and parts[0].value == "canvas":
            canvas = reading.value(parts.pop(0))
        wrong = next((part for part in parts if part.kind != "name"), None) if name == "axes" else None
        if wrong is not None:
            raise text_error(reading.text, wrong.at, "an axis is named here")
        args = [canvas, *(part.value if name == "axes" else reading.value(part) for part in parts)]
    order: Order = reading.construct(node, makers[name], args, given)
    return order


def _side_order(reading: _Reading, node: Node, canvas: Canvas | None) -> Order | None:
    return None if node.kind == "name" and node.value == "None" else _order(reading, node, canvas)


def _canvases(reading: _Reading, declared: Iterable[Declaration]) -> AnyCanvas | None:
    """The canvases that a text declares for its sides."""
    sides: dict[str, Canvas] = {}
    for item in declared:
        assert item.made is not None
        if item.name not in ("q", "kv") or item.made.value != "canvas":
            fix = "write `q: canvas(h=48, w=80);` or `kv: ...`"
            raise text_error(reading.text, item.at, f"`{item.name}` is declared as a call", fix)
        if item.name in sides:
            raise text_error(reading.text, item.at, f"`{item.name}` is declared twice")
        sides[item.name] = reading.value(item.made)
    return canvas_or_pair(None, sides.get("q"), sides.get("kv"))


def _unknown(text: str, node: Node, what: str, known: Iterable[str], otherwise: str) -> FlexSpecError:
    shown = f"`{node.value}`" if node.kind in ("name", "call") else f"a {node.kind}"
    near = difflib.get_close_matches(str(node.value), list(known), 1)
    fix = f"did you mean `{near[0]}`? {otherwise}" if near else otherwise
    return text_error(text, node.at, f"{shown} is no {what}", fix, "FS051")


@dataclass(frozen=True, slots=True)
class _Reading:
    """One text, what its names mean, and how its tree becomes values."""

    text: str
    names: Mapping[str, Expr]
    catalog: Mapping[str, Any]
    on: AnyCanvas | None = None

    def whole(self, node: Node) -> Mask | ScoreMod:
        """The value of the whole text, which must be a pattern."""
        if self.is_unknown(node):
            raise self.unknown(node)
        value = self.value(node)
        if isinstance(value, (bool, Expr)):
            value = self.as_formula(node, value)
        if not isinstance(value, (Mask, ScoreMod)):
            message = f"the text is a {_kind(value)}, not a pattern"
            raise text_error(self.text, node.at, message, "write a mask, a comparison or a score mod", "FS007")
        if value.on is None:
            value = replace(value, **placed(self.on))
        for name in sorted(value.expr.names):
            head, dot, axis = name.partition(".")
            on = value.on.side(head) if value.on else None
            axes = on.names if on else ()
            if dot and axis not in (*axes, "memory"):
                has = f"the canvas has {choices(axes)}" if axes else "nothing here has a canvas"
                raise text_error(self.text, max(0, self.text.find(name)), f"`{name}`: {has}", code="FS011")
        return replace(value, label=self.text.strip())

    def value(self, node: Node) -> Any:
        """A formula, an expression, a canvas, a dict, or a plain Python value."""
        if node.kind == "number":
            assert not isinstance(node.value, str)
            self.located(node, const, node.value)
            return node.value
        if node.kind == "string":
            return node.value
        if node.kind == "dict":
            return {name: self.value(part) for name, part in node.keywords}
        if node.kind == "name":
            return self.name(node, str(node.value))
        if node.kind == "index":
            return self.index(node)
        if node.kind == "call":
            return self.call(node, str(node.value))
        if node.kind == "tuple":
            raise text_error(self.text, node.at, "a tuple is not read here", BY_AXIS)
        if node.kind == "transpose":
            return self.transpose(node)
        return self.unary(node) if node.kind == "unary" else self.binary(node)

    def name(self, node: Node, name: str) -> Any:
        if name in self.names:
            return self.names[name]
        if name == "None":
            return None
        if name in self.catalog:
            make = self.catalog[name].make
            return make if isinstance(make, Formula) else self.construct(node, make, [], {})
        meaning = leaf(name)
        if meaning is None and "." in name:
            raise text_error(self.text, node.at, f"`{name}` is no coordinate: only q and kv have axes")
        if isinstance(meaning, Const):
            return meaning.value
        return meaning or param(name)

    def is_unknown(self, node: Node) -> bool:
        """Is it a name that means nothing but an undeclared integer parameter?"""
        name = str(node.value)
        known = name in self.names or name in self.catalog or name == "None" or leaf(name) is not None
        return node.kind == "name" and not known and "." not in name

    def unknown(self, node: Node) -> FlexSpecError:
        known = [*self.catalog, "canvas"]
        return _unknown(self.text, node, "pattern", known, _LIST)

    def index(self, node: Node) -> Expr:
        tensor = self.names.get(str(node.parts[0].value)) if node.parts[0].kind == "name" else None
        if not isinstance(tensor, Input):
            fix = "declare it in front: `ids: int[batch, sequence]; ...`"
            raise text_error(self.text, node.at, "only a declared tensor is indexed", fix)
        parts = tuple(self.expr(part, self.value(part)) for part in node.parts[1:])
        entry: Expr = self.located(node, load, tensor, parts)
        return entry

    def call(self, node: Node, name: str) -> Any:
        known = name == "canvas" or name in self.catalog
        if name == "dict":
            raise text_error(self.text, node.at, "`dict` is not read here", BY_AXIS)
        if not known and (name not in OPS or OPS[name].symbol is not None):
            raise self.unknown(node)
        args = [self.value(part) for part in node.parts]
        given = {key: self.value(part) for key, part in node.keywords}
        if known:
            make = Canvas if name == "canvas" else self.catalog[name].make
            return self.construct(node, make, args, given)
        if given:
            raise text_error(self.text, node.keywords[0][1].at, f"`{name}` takes no named values")
        lifted = [self.expr(part, arg) for part, arg in zip(node.parts, args, strict=True)]
        return self.located(node, apply, name, *lifted)

    def unary(self, node: Node) -> Any:
        part = node.parts[0]
        if node.value == "not" and self.is_unknown(part):
            raise self.unknown(part)
        value = self.value(part)
        if isinstance(value, Mask) and node.value == "not":
            return ~value
        if isinstance(value, (int, float)) and not isinstance(value, bool) and node.value == "neg":
            return -value
        return self.located(node, apply, str(node.value), self.expr(part, value))

    def transpose(self, node: Node) -> Mask:
        part = node.parts[0]
        if self.is_unknown(part):
            raise self.unknown(part)
        turned = self.as_formula(part, self.value(part))
        if not isinstance(turned, Mask):
            raise text_error(
                self.text, node.at, f"`.T` exchanges the sides of a mask; this is {turned.noun}", code="FS010"
            )
        return turned.T

    def binary(self, node: Node) -> Any:
        op = str(node.value)
        sides = [self.value(part) for part in node.parts]
        boolean = [isinstance(v, (Formula, bool)) or getattr(v, "type", None) is Type.BOOL for v in sides]
        for part, other, decides in zip(node.parts, reversed(node.parts), reversed(boolean), strict=True):
            joins = op in _JOIN and op != "sub" and (decides or self.is_unknown(other))
            if self.is_unknown(part) and (joins or any(isinstance(v, Formula) for v in sides)):
                raise self.unknown(part)
        if any(isinstance(value, Formula) for value in sides):
            return self.join(node, op, sides)
        if op in _FOLD and all(type(value) is int for value in sides):
            folded = _FOLD[op](*sides)
            self.located(node, const, folded)
            return folded
        lifted = [self.expr(part, value) for part, value in zip(node.parts, sides, strict=True)]
        return self.located(node, apply, op, *lifted)

    def join(self, node: Node, op: str, sides: list[Any]) -> Formula:
        """Two patterns, or a pattern and a raw expression, as one pattern."""
        a, b = (self.as_formula(part, side) for part, side in zip(node.parts, sides, strict=True))
        if type(a) is not type(b):
            fix = f"keep them apart: fs.Attention({', '.join(sorted({a.argument, b.argument}))})"
            raise text_error(self.text, node.at, f"{a.noun} and {b.noun} do not join", fix, "FS010")
        join = _JOIN.get(op) if isinstance(a, Mask) else {"add": operator.add}.get(op)
        if join is None:
            way = "masks join with `&`, `|`, `^` and `-`, score mods with `+`"
            message = f"`{OPS[op].symbol}` does not join patterns: {way}"
            fix = "if a number is meant, declare it in front: `sink: int; ...`"
            raise text_error(self.text, node.at, message, fix, "FS010")
        both: Formula = self.located(node, join, a, b)
        return both

    def as_formula(self, node: Node, value: Any) -> Formula:
        """A raw expression as a mask or a score mod."""
        if isinstance(value, Formula):
            return value
        expr = self.expr(node, value)
        kind = ScoreMod if expr.type > Type.INT and "score" in expr.names else Mask
        if kind is Mask and expr.type is not Type.BOOL:
            message = f"this is {expr.type.text}, not a mask"
            fix = "write a comparison; a number named like a pattern is declared in front: `sink: int; ...`"
            raise text_error(self.text, node.at, message, fix, "FS007")
        parameters = {name: Parameter() for name in params_of(expr)}
        raw: Formula = self.located(node, kind, expr, infix_text(expr), parameters=parameters, **placed(self.on))
        return raw

    def expr(self, node: Node, value: Any) -> Expr:
        """A value as an expression, else FS010."""
        if isinstance(value, Expr) and not isinstance(value, Input):
            return value
        if isinstance(value, (bool, int, float)):
            return const(value)
        fix = "index it, as in ids[b, q]" if isinstance(value, Input) else "write a number or a position"
        if isinstance(value, Formula):
            fix = f"if a number is meant, declare it in front: `{node.value}: int; ...`"
        raise text_error(self.text, node.at, f"a {_kind(value)} stands where a number is needed", fix, "FS010")

    def construct(self, node: Node, make: Callable[..., Any], args: list[Any], given: dict[str, Any]) -> Any:
        """What a constructor makes of values; its errors get a caret into the text."""
        args = [Traced(arg) if isinstance(arg, Expr) else arg for arg in args]
        given = {key: Traced(arg) if isinstance(arg, Expr) else arg for key, arg in given.items()}
        try:
            inspect.signature(getattr(make, "given", make)).bind(*args, **given)
        except TypeError as error:
            code = "FS020" if "missing" in str(error) else "FS021"
            fix = "write canvas(t=30, h=48, w=80) first" if "'canvas'" in str(error) else None
            raise text_error(self.text, node.at, f"`{node.value}`: {error}", fix, code) from None
        return self.located(node, make, *args, **given)

    def located(self, node: Node, make: Callable[..., Any], /, *args: Any, **given: Any) -> Any:
        try:
            return make(*args, **given)
        except FlexSpecError as error:
            raise text_error(self.text, node.at, error.message, error.fix, error.code) from None
        except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
            message = f"`{node.value}` does not take these values: {error}"
            raise text_error(self.text, node.at, message, code="FS023") from None


def _kind(value: object) -> str:
    names = {
        Mask: "mask",
        ScoreMod: "score mod",
        Weight: "weight",
        Canvas: "canvas",
        Input: "tensor",
        str: "string",
        Load: "number",
    }
    if isinstance(value, (Expr, int, float)):
        return names.get(type(value), "number")
    return names.get(type(value), "dict" if isinstance(value, dict) else "None")
