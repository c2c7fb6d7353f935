"""What the printed languages share: the walk over an expression, temporaries, operands in the types that they need."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from typing import ClassVar

from flexspec.errors import FlexSpecError
from flexspec.expr import Apply, Const, Expr, Load, Param, Var, const, walk
from flexspec.ops import NEGATED, OPS, Type

from .names import Names

CASTS = frozenset(kind.text for kind in Type)
"""Operators that only change the type."""


def form_of(op: str, language: str, kind: Type) -> str:
    """How a language writes an operator on operands of a type: a template. FS042 where it has no such operator."""
    columns = {"torch": (OPS[op].torch_source,) * 2, "triton": OPS[op].triton_source}
    form = columns[language][kind > Type.INT] if language in columns else ""
    if not form or (language != "torch" and "torch." in form):
        raise FlexSpecError("FS042", f"`{op}` cannot be printed: {language} has no such operator")
    return form


class Printer(ABC):
    """Prints an expression in one language: statements for nodes that are used more than once, text for the others.

    A language is a subclass with a column in the table of operators. It says how leaves, conversions and statements are
    written, and which operators need more than their form.
    """

    language: ClassVar[str]
    """Its column in the table of operators."""

    def __init__(self, root: Expr, names: Names) -> None:
        self.names = names
        self.uses = Counter(child for node in walk(root) for child in node.children)
        self.statements: list[str] = []
        self.text: dict[Expr, str] = {}
        for node in walk(root):
            printed = self.printed(node)
            if self.uses[node] > 1 and node.children:
                name = names.temporary()
                self.statements.append(self.statement(name, printed, node.type))
                printed = name
            self.text[node] = printed
        self.result = self.text[root]

    def printed(self, node: Expr) -> str:
        """A node, of whose operands the text is known."""
        if isinstance(node, Const):
            return self.number(node.value)
        if isinstance(node, Var):
            return self.variable(node)
        if isinstance(node, Param):
            return self.parameter(node)
        if isinstance(node, Load):
            return self.load(node)
        assert isinstance(node, Apply)
        if node.op in CASTS:
            return self.conversion(node, node.args[0])
        args = self.compared(node) or node.args
        kinds, _ = OPS[node.op].signature(tuple(arg.type for arg in args))
        operands = [self.operand(node, arg, kind) for arg, kind in zip(args, kinds, strict=True)]
        return self.operator(node, args, kinds, operands)

    def compared(self, node: Apply) -> tuple[Expr, ...] | None:
        """`a - b == 0` printed as `a == b`: what tensors hold may have 32 bits, where a difference wraps."""
        left = node.args[0]
        if node.op not in NEGATED or not isinstance(left, Apply) or left.op != "sub" or left.type is not Type.INT:
            return None
        return left.args if node.args[1] is const(0) and self.uses[left] == 1 else None

    def operand(self, node: Apply, arg: Expr, kind: Type) -> str:
        """An operand of `node`, as `kind`."""
        return self.cast(arg, kind)

    def cast(self, arg: Expr, kind: Type) -> str:
        """A printed node as `kind`; a constant straight from its number."""
        if isinstance(arg, Const):
            return self.number((bool, int, float, float)[kind](arg.value), kind)
        return self.text[arg] if arg.type is kind else self.cast_text(self.text[arg], kind)

    def operator(self, node: Apply, args: tuple[Expr, ...], kinds: tuple[Type, ...], operands: list[str]) -> str:
        """An operator on printed operands. args, kinds: the operands and the types that they are printed in."""
        return form_of(node.op, self.language, kinds[-1]).format(*operands)

    def conversion(self, node: Apply, arg: Expr) -> str:
        """An operator that only changes the type."""
        return self.cast(arg, node.type)

    def number(self, value: float, kind: Type | None = None) -> str:
        """A constant; of `kind`, if the language must know."""
        return repr(value) if not isinstance(value, float) or math.isfinite(value) else f"float('{value}')"

    def statement(self, name: str, text: str, kind: Type) -> str:
        """A temporary of a type made."""
        return f"{name} = {text}"

    @abstractmethod
    def variable(self, node: Var) -> str:
        """A position, a size or the score."""

    @abstractmethod
    def parameter(self, node: Param) -> str:
        """A run-time number."""

    @abstractmethod
    def load(self, node: Load) -> str:
        """An element of a tensor."""

    @abstractmethod
    def cast_text(self, text: str, kind: Type) -> str:
        """What is printed as `text`, converted to `kind`."""
