"""Find the user's own line behind a call, and name the Python construct that asked for a truth value."""

from __future__ import annotations

import ast
import functools
import linecache
import sys
from dataclasses import dataclass
from types import FrameType, FunctionType, TracebackType

_OWN = {"flexspec", "torch", "functools"}
"""Packages whose frames are not the user's. By name: an editable install may put the files anywhere."""


@dataclass(frozen=True, slots=True)
class Place:
    """A span in a source file; lines count from 1, columns (in UTF-8 bytes) from 0."""

    filename: str
    line: int
    column: int
    end_line: int
    end_column: int

    def caret(self) -> str:
        """`file:line`, the line itself and carets under the span."""
        text = linecache.getline(self.filename, self.line).rstrip("\n")
        if not text:
            return f'  File "{self.filename}", line {self.line}'
        indent = len(text) - len(text.lstrip())
        start = max(_characters(text, self.column), indent)
        end = _characters(text, self.end_column) if self.end_line == self.line else len(text)
        marks = " " * (start - indent) + "^" * max(1, end - start)
        return f'  File "{self.filename}", line {self.line}\n    {text.strip()}\n    {marks}'


def _characters(text: str, column: int) -> int:
    """A column in UTF-8 bytes as one in characters."""
    return len(text.encode()[:column].decode(errors="ignore"))


def _is_own(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] in _OWN


def _place(frame: FrameType) -> Place:
    positions = list(frame.f_code.co_positions())
    line, end_line, column, end_column = positions[frame.f_lasti // 2]
    line = line or frame.f_lineno
    return Place(frame.f_code.co_filename, line, column or 0, end_line or line, end_column or 0)


def user_place() -> Place | None:
    """The innermost place on the call stack outside flexspec, torch and functools."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not _is_own(frame):
            return _place(frame)
        frame = frame.f_back
    return None


def user_level() -> int:
    """The `stacklevel` that has `warnings.warn`, called from the same function, name the user's line."""
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and _is_own(frame):
        frame, level = frame.f_back, level + 1
    return level


def user_caret() -> str | None:
    """`user_place().caret()`, or None where no user line is found."""
    place = user_place()
    return place.caret() if place else None


def function_place(fn: object) -> str | None:
    """The line on which a function (also of a partial or a method) is defined, with carets, or None without source."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    fn = getattr(fn, "__func__", fn)
    code = getattr(fn, "__code__", None)
    if not isinstance(fn, FunctionType) or code is None:
        return None
    line = code.co_firstlineno
    while linecache.getline(code.co_filename, line).lstrip().startswith("@"):
        line += 1
    text = linecache.getline(code.co_filename, line).rstrip("\n")
    return Place(code.co_filename, line, 0, line, len(text)).caret()


def raised_at(traceback: TracebackType | None) -> str | None:
    """The innermost line of a traceback outside flexspec and torch, with carets."""
    caret = None
    while traceback is not None:
        frame = traceback.tb_frame
        if not _is_own(frame):
            line = traceback.tb_lineno
            caret = Place(frame.f_code.co_filename, line, 0, line, 10**6).caret()
        traceback = traceback.tb_next
    return caret


def truth_construct(place: Place | None) -> str:
    """Which construct at `place` asked for a truth value: and, or, not, if, while, chain or bool."""
    if place is None:
        return "bool"
    try:
        tree = ast.parse("".join(linecache.getlines(place.filename)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "bool"
    start, end = (place.line, place.column), (place.end_line, place.end_column)
    best: tuple[tuple[int, int], str] | None = None
    for node in ast.walk(tree):
        kind = _kind(node)
        if kind is None:
            continue
        span = _span(node)
        if not (span[0] <= start and end <= span[1]):
            continue
        tested = kind in ("if", "while") and not isinstance(node, ast.Assert)
        if tested and not _within(node.test, start, end):  # type: ignore[attr-defined]
            continue
        size = (span[1][0] - span[0][0], span[1][1] - span[0][1])
        if best is None or size <= best[0]:
            best = (size, kind)
    return best[1] if best else "bool"


def _span(node: ast.AST) -> tuple[tuple[int, int], tuple[int, int]]:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]


def _within(node: ast.AST, start: tuple[int, int], end: tuple[int, int]) -> bool:
    span = _span(node)
    return span[0] <= start and end <= span[1]


def _kind(node: ast.AST) -> str | None:
    if isinstance(node, ast.BoolOp):
        return "and" if isinstance(node.op, ast.And) else "or"
    if isinstance(node, ast.Compare) and len(node.ops) > 1:
        joined = (ast.BitAnd, ast.BitOr, ast.BitXor)
        tight = any(isinstance(part, ast.BinOp) and isinstance(part.op, joined) for part in node.comparators)
        return "tight" if tight else "chain"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return "not"
    if isinstance(node, (ast.If, ast.IfExp, ast.Assert)):
        return "if"
    return "while" if isinstance(node, ast.While) else None
