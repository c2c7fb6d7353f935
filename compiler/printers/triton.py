"""Print an expression as a Triton function of positions and values.

A function takes `b`, `h` (scalars), `q` [M, 1], `kv` [1, N] and `values`, a tuple: the numbers and tensors that the
expression reads, a tensor as its pointer and the sizes of its dims. Positions may pass the end. As values have places
and not names, no name of the user's is in the source.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from functools import lru_cache

from flexspec.expr import POSITIONS, Apply, Expr, Load, Param, Var, inputs_of, var, walk
from flexspec.ops import OPS, Type

from ..simplify.limits import limits
from ..simplify.rules import simplify
from .base import Printer
from .names import Names

OWN = frozenset({*keyword.kwlist, *POSITIONS, "tl", "triton", "float", "s", "score", "values"})
"""Python's words, and what the source means by a name. Helpers of the backend's are called in full words."""
MASK_TAKES = "b, h, q, kv"
SCORE_TAKES = "s, b, h, q, kv"


class TritonPrinter(Printer):
    """Prints Triton's language. wide: integers have 64 bits. places: where `values` has each value."""

    language = "triton"

    def __init__(self, root: Expr, wide: bool, places: Mapping[str, int]) -> None:
        self.integer = "tl.int64" if wide else "tl.int32"
        self.places = places
        super().__init__(root, Names(OWN))

    def variable(self, node: Var) -> str:
        if node.name in self.places:  # a size
            return self.cast_text(f"values[{self.places[node.name]}]", node.type)
        return node.name

    def parameter(self, node: Param) -> str:
        value = f"values[{self.places[node.name]}]"
        if node.type is Type.DOUBLE:  # as its bits: numbers arrive as 32-bit floats
            return f"tl.cast(tl.cast({value}, tl.int64), tl.float64, bitcast=True)"
        return self.cast_text(value, node.type)

    def load(self, node: Load) -> str:
        pointer = f"values[{self.places[node.input.name]}]"
        return self.cast_text(f"tl.load({pointer} + {self.offset(node)})", node.type)

    def offset(self, node: Load) -> str:
        """Where in its tensor an element lies; an index past its dim's end is taken for the last."""
        first_size = self.places[node.input.name] + 1
        offset = "0"
        for axis, part in enumerate(node.index):
            index, size = self.cast(part, Type.INT), f"values[{first_size + axis}]"
            if part not in (var("b"), var("h")):
                if limits(part)[0] < 0:
                    index = f"tl.where({index} < 0, {index} + {size}, {index})"
                least = index if isinstance(part, Var) else f"tl.maximum({index}, 0)"
                index = f"tl.minimum({least}, {size} - 1)"
            offset = f"({offset}) * {size} + {index}" if axis else index
        return offset

    def operator(self, node: Apply, args: tuple[Expr, ...], kinds: tuple[Type, ...], operands: list[str]) -> str:
        divides = node.op in ("floordiv", "mod") and kinds[0] <= Type.INT
        if divides and limits(args[0])[0] >= 0 and limits(args[1])[0] > 0:  # rounding toward zero is rounding down
            return f"({operands[0]} {OPS[node.op].symbol} {operands[1]})"
        if node.op == "div" and "score" in node.names:  # whose last bits decide nothing
            return f"({operands[0]} / {operands[1]})"
        return super().operator(node, args, kinds, operands)

    def number(self, value: float, kind: Type | None = None) -> str:
        number = super().number(value)
        return f"tl.full([1, 1], {number}, tl.float64)" if kind is Type.DOUBLE else number

    def cast_text(self, text: str, kind: Type) -> str:
        if kind is Type.BOOL:
            return f"({text} != 0)"
        to = {Type.INT: self.integer, Type.FLOAT: "tl.float32", Type.DOUBLE: "tl.float64"}[kind]
        return f"tl.cast({text}, {to})"


@lru_cache(maxsize=512)
def may_fuse(mask: Expr) -> bool:
    """May the compiler make one operation of a product and a sum? Not where a mask multiplies floats: it would round
    unlike torch, and a pair on the edge would not be of its block's kind.
    """
    products = (node for node in walk(mask) if isinstance(node, Apply) and node.op == "mul")
    return all(node.type <= Type.INT for node in products)


def slots(expr: Expr) -> dict[str, int]:
    """Where each number and tensor of an expression starts in `values`; a tensor takes 1 + its rank places."""
    places: dict[str, int] = {}
    inputs, place = inputs_of(expr), 0
    for name in sorted(expr.names - {*POSITIONS, "score"}):
        places[name] = place
        place += 1 + len(inputs[name].dims) if name in inputs else 1
    return places


def source_of(
    expr: Expr,
    *,
    kind: str,
    wide: bool,
    places: Mapping[str, int] | None = None,
    offset: bool = False,
    takes: str = SCORE_TAKES,
) -> str:
    """The source of one jitted function: `kind` is its name, `takes` its arguments before `values`.

    places: where `values` has each value, else `slots(expr)`. offset: of a load, where it reads and not what.
    """
    expr = simplify(expr)
    printer = TritonPrinter(expr, wide, slots(expr) if places is None else places)
    head = ["@triton.jit", f"def {kind}({takes}, values):"]
    names = [name for name in POSITIONS if name in expr.names] if wide else []
    body = [f"{name} = {name}.to(tl.int64)" for name in names]
    if "score" in expr.names:
        body.append("score = s")
    result = printer.offset(expr) if offset and isinstance(expr, Load) else printer.result
    if not offset and takes == SCORE_TAKES and "score" not in expr.names:  # a tile all the same
        result = f"({result}) + tl.zeros_like(s)"
    elif not offset and not expr.names & {"q", "kv", "score"}:
        result = f"({result}) + 0 * {takes.split()[-1]}"
    lines = [f"    {line}" for line in (*body, *printer.statements, f"return {result}")]
    return "\n".join([*head, *lines, ""])
