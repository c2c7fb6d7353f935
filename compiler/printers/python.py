"""Print an expression as the Python of a FlexAttention mask_mod or score_mod, and make the function.

The function captures tensors only (parameters and sizes as zero-dim ones), so a new value never recompiles.
"""

from __future__ import annotations

import hashlib
import keyword
import linecache
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch

from flexspec.expr import POSITIONS, Apply, Const, Expr, Load, Param, Var, inputs_of, params_of
from flexspec.ops import CASTS, NEGATED, Type

from ..simplify.rules import simplify
from .base import Printer
from .names import Names

ARGUMENTS = {"mask_mod": POSITIONS, "score_mod": ("score", *POSITIONS)}
"""What torch passes, by the kind of the function."""
OWN = frozenset({*keyword.kwlist, "super", "torch", "float", "make", *ARGUMENTS, *ARGUMENTS["score_mod"]})
"""Python's words, with the builtin that its compiler treats as one, and what the source means by a name."""


class PythonPrinter(Printer):
    """Prints torch calls on zero-dim tensors."""

    language = "torch"

    def variable(self, node: Var) -> str:
        return node.name if node.name in ARGUMENTS["score_mod"] else self.names.of(node.name)

    def parameter(self, node: Param) -> str:
        return self.names.of(node.name)

    def load(self, node: Load) -> str:
        tensor = self.names.of(node.input.name)
        index = ", ".join(self.cast(part, Type.INT) for part in node.index)
        return f"{tensor}[{index}]" if index else tensor

    def cast_text(self, text: str, kind: Type) -> str:
        return f"{text}.to({kind.torch})"

    def conversion(self, node: Apply, arg: Expr) -> str:
        if isinstance(arg, Const):
            return f"torch.full_like(q, {self.number(arg.value)}, dtype={node.type.torch})"
        return f"({self.operand(node, arg, arg.type)}).to({node.type.torch})"

    def operator(self, node: Apply, args: tuple[Expr, ...], kinds: tuple[Type, ...], operands: list[str]) -> str:
        if node.op in ("min", "max"):
            for inner, limit in ((0, 1), (1, 0)):
                if isinstance(args[limit], Const):
                    end = "max" if node.op == "min" else "min"
                    return f"torch.clamp({operands[inner]}, {end}={operands[limit]})"
        return super().operator(node, args, kinds, operands)

    def operand(self, node: Apply, arg: Expr, kind: Type) -> str:
        """An operand as the operator takes it: torch's promotion counts bits and defaults; the language does not."""
        if isinstance(arg, Load):
            if kind is Type.FLOAT and not any("score" in other.names for other in node.args):
                return self.cast_text(self.text[arg], kind)  # 16-bit floats
            exact = node.op in CASTS or (node.op in NEGATED and not any(_is_long(other) for other in node.args))
            if kind is Type.INT and arg.type is Type.INT and not exact:
                return self.cast_text(self.text[arg], kind)  # 32-bit integers
        return self.cast(arg, kind)


def _is_long(node: Expr) -> bool:
    return isinstance(node, Const) and abs(node.value) >= 2**31


def source_of(expr: Expr, *, kind: str, wide: bool = False, last_query: bool = False) -> str:
    """The source of `make(<values>)`, which returns the mask_mod or score_mod (`kind`) over those values.

    wide: compute positions in 64 bits, also where the kernel's are 32. last_query: rows past `q_len` repeat the last.
    """
    expr = simplify(expr)  # without constants that torch would need as tensors
    values = value_names(expr, last_query)
    names = Names(OWN, values)
    printer = PythonPrinter(expr, names)
    head = [f"def make({', '.join(map(names.of, values))}):", f"    def {kind}({', '.join(ARGUMENTS[kind])}):"]
    body = []
    if wide:
        body += [f"{name} = {name}.to(torch.int64)" for name in POSITIONS if name in expr.names]
    if last_query:
        body.append(f"q = torch.minimum(q, {names.of('q_len')} - 1)")
    body += printer.statements
    result = printer.result
    if isinstance(expr, Const) and kind == "mask_mod":
        result = f"torch.{'ones' if expr.value else 'zeros'}_like(q, dtype=torch.bool)"
    elif not expr.names & {*ARGUMENTS["score_mod"]}:  # a function of no position still gives one value for each
        same = "torch.ones_like(q, dtype=torch.bool) &" if kind == "mask_mod" else "torch.zeros_like(score) +"
        result = f"{same} {result}"
    if kind == "score_mod" and expr.type is Type.DOUBLE:  # torch's kernels read the score back as they gave it
        result = f"({result}).to(score.dtype)"
    inner = [f"        {line}" for line in (*body, f"return {result}")]
    return "\n".join([*head, *inner, f"    return {kind}", ""])


def value_names(expr: Expr, last_query: bool = False) -> list[str]:
    """What `make` takes, in its order: every name in the (simplified) expression but what torch passes."""
    names = expr.names - {*ARGUMENTS["score_mod"]}
    return sorted(names | {"q_len"}) if last_query else sorted(names)


@lru_cache(maxsize=1024)
def _maker(source: str) -> Callable[..., Any]:
    return run_source(source)["make"]


def run_source(source: str, **names: Any) -> dict[str, Any]:
    """Run printed source under a file name of its own, so that tracebacks and dynamo can show it."""
    filename = f"<flexspec {hashlib.sha256(source.encode()).hexdigest()[:12]}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    scope: dict[str, Any] = {"torch": torch, **names}
    exec(compile(source, filename, "exec"), scope)
    return scope


def function_of(
    expr: Expr, values: Mapping[str, Any], *, kind: str, device: torch.device, **options: bool
) -> Callable[..., Any]:
    """The mask_mod or score_mod of `expr` over tensors and numbers by name, on `device`."""
    source = source_of(expr, kind=kind, **options)
    simple = simplify(expr)
    kinds = {name: node.type for name, node in (*params_of(simple).items(), *inputs_of(simple).items())}
    names = value_names(simple, options.get("last_query", False))
    return _maker(source)(*(_captured(values[name], device, kinds.get(name, Type.INT)) for name in names))


def _captured(value: Any, device: torch.device, kind: Type) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        if value.dtype == torch.float64 and kind is Type.FLOAT:  # beside a score, torch would take the sum for 64 bits
            return value.to(device, torch.float32)
        narrow = value.dtype in (torch.int8, torch.uint8, torch.int16)
        return value.to(device, torch.int64 if narrow else value.dtype)
    return torch.full((), value, dtype=kind.torch, device=device)  # unlike tensor(), it waits for no device
