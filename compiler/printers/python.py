"""Print an expression as the Python of a FlexAttention mask_mod or score_mod, and make the function.

The function captures tensors only (parameters and sizes as zero-dim ones), so a new value never recompiles.
"""

from __future__ import annotations

import hashlib
import linecache
import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch

from flexspec.expr import Apply, Const, Expr, Load, Param, Var, const, params_of, walk
from flexspec.ops import CASTS, NEGATED, OPS, Type

from ..simplify.rules import simplify

POSITIONS = ("b", "h", "q", "kv")


class Printer:
    """Statements for nodes that are used more than once, expressions for the others."""

    def __init__(self, root: Expr) -> None:
        self.uses = Counter(child for node in walk(root) for child in node.children)
        self.lines: list[str] = []
        self.text: dict[Expr, str] = {}
        for node in walk(root):
            printed = self.one(node)
            if self.uses[node] > 1 and node.children:
                name = f"t{len(self.lines)}"
                self.lines.append(f"{name} = {printed}")
                printed = name
            self.text[node] = printed
        self.result = self.text[root]

    def one(self, node: Expr) -> str:
        if isinstance(node, Const):
            return _number(node.value)
        if isinstance(node, (Var, Param)):
            return node.name
        if isinstance(node, Load):
            index = ", ".join(self.cast(part, Type.INT) for part in node.index)
            return f"{node.input.name}[{index}]" if index else node.input.name
        assert isinstance(node, Apply)
        if node.op in CASTS and isinstance(node.args[0], Const):
            return f"torch.full_like(q, {_number(node.args[0].value)}, dtype={node.type.torch})"
        args = self.difference(node) or node.args
        kinds, _ = OPS[node.op].signature(tuple(arg.type for arg in args))
        text = [self.operand(node, arg, kind) for arg, kind in zip(args, kinds, strict=True)]
        if node.op in ("min", "max"):
            for x, limit in ((0, 1), (1, 0)):
                if isinstance(args[limit], Const):
                    end = "max" if node.op == "min" else "min"
                    return f"torch.clamp({text[x]}, {end}={text[limit]})"
        return OPS[node.op].source("torch", kinds[-1]).format(*text)

    def difference(self, node: Apply) -> tuple[Expr, ...] | None:
        """`a - b == 0` printed as `a == b`: what tensors hold may have 32 bits, where a difference wraps."""
        left = node.args[0]
        if node.op not in NEGATED or not isinstance(left, Apply) or left.op != "sub" or left.type is not Type.INT:
            return None
        return left.args if node.args[1] is const(0) and self.uses[left] == 1 else None

    def operand(self, node: Apply, arg: Expr, kind: Type) -> str:
        """An operand as the operator takes it: torch's promotion counts bits and defaults; the language does not."""
        if isinstance(arg, Load):
            if kind is Type.FLOAT and not any("score" in other.names for other in node.args):
                return f"{self.text[arg]}.to({kind.torch})"  # 16-bit floats
            exact = node.op in CASTS or (node.op in NEGATED and not any(_is_long(other) for other in node.args))
            if kind is Type.INT and arg.type is Type.INT and not exact:
                return f"{self.text[arg]}.to({kind.torch})"  # 32-bit integers
        return self.cast(arg, kind)

    def cast(self, arg: Expr, kind: Type) -> str:
        if isinstance(arg, Const):
            return _number((bool, int, float, float)[kind](arg.value))
        return self.text[arg] if arg.type is kind else f"{self.text[arg]}.to({kind.torch})"


def _is_long(node: Expr) -> bool:
    return isinstance(node, Const) and abs(node.value) >= 2**31


def _number(value: float) -> str:
    return repr(value) if not isinstance(value, float) or math.isfinite(value) else f"float('{value}')"


def source_of(expr: Expr, *, kind: str, wide: bool = False, last_query: bool = False) -> str:
    """The source of `make(<values>)`, which returns the mask_mod or score_mod (`kind`) over those values.

    wide: compute positions in 64 bits, also where the kernel's are 32. last_query: rows past `q_len` repeat the last.
    """
    expr = simplify(expr)  # without constants that torch would need as tensors
    printer = Printer(expr)
    values = ", ".join(value_names(expr, last_query))
    head = [f"def make({values}):", f"    def {kind}({'score, ' if kind == 'score_mod' else ''}b, h, q, kv):"]
    body = []
    if wide:
        body += [f"{name} = {name}.to(torch.int64)" for name in POSITIONS if name in expr.names]
    if last_query:
        body.append("q = torch.minimum(q, q_len - 1)")
    body += printer.lines
    result = printer.result
    if isinstance(expr, Const) and kind == "mask_mod":
        result = f"torch.{'ones' if expr.value else 'zeros'}_like(q, dtype=torch.bool)"
    elif not expr.names & {*POSITIONS, "score"}:  # a function of no position still gives one value for each
        same = "torch.ones_like(q, dtype=torch.bool) &" if kind == "mask_mod" else "torch.zeros_like(score) +"
        result = f"{same} {result}"
    inner = [f"        {line}" for line in (*body, f"return {result}")]
    return "\n".join([*head, *inner, f"    return {kind}", ""])


def value_names(expr: Expr, last_query: bool = False) -> list[str]:
    """What `make` takes: every name in the (simplified) expression but the positions."""
    names = {name for name in expr.names if name not in (*POSITIONS, "score")}
    return sorted(names | {"q_len"}) if last_query else sorted(names)


@lru_cache(maxsize=1024)
def _made(source: str) -> Callable[..., Any]:
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
    kinds = {name: node.type for name, node in params_of(simple).items()}
    names = value_names(simple, options.get("last_query", False))
    return _made(source)(**{name: _captured(values[name], device, kinds.get(name, Type.INT)) for name in names})


def _captured(value: Any, device: torch.device, kind: Type) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        narrow = value.dtype in (torch.int8, torch.uint8, torch.int16)
        return value.to(device, torch.int64 if narrow else value.dtype)
    return torch.full((), value, dtype=kind.torch, device=device)  # unlike tensor(), it waits for no device
