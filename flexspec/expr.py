"""Expressions: frozen, hash-consed nodes. Equal expressions are the same object.

Six kinds: `Const`, `Var` (a position, an axis coordinate, a size or the score), `Param` (a run-time number),
`Input` (a named tensor), `Load` (an element of one) and `Apply` (an operator on expressions).
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from .errors import FlexSpecError
from .ops import ATOM, COMPARE, OPS, Type

POSITIONS = ("b", "h", "q", "kv")
SIZES = ("batch", "heads", "q_len", "kv_len")
MAX_DEPTH = 200
"""Deepest nesting of an expression; past it tracing, parsing and loading refuse (FS053)."""

_interned: weakref.WeakValueDictionary[tuple[Any, ...], Any] = weakref.WeakValueDictionary()
_lock = threading.Lock()
N = TypeVar("N", bound="Expr")


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Expr:
    """A node. `type` is its value's type, `depth` its height, `names` the names of the leaves below it."""

    type: Type
    depth: int
    names: frozenset[str]

    @property
    def children(self) -> tuple[Expr, ...]:
        return ()

    def __str__(self) -> str:
        """Declarations, then the formula; `syntax.parse` reads it back."""
        return to_text(self)

    __repr__ = __str__

    def __copy__(self) -> Expr:
        return self

    def __deepcopy__(self, memo: Any) -> Expr:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as one row for each distinct node: what is shared stays shared, and depth needs no recursion."""
        return _from_rows, (_rows_of(self),)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Const(Expr):
    value: bool | int | float


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Var(Expr):
    """`b`, `h`, `q`, `kv`; a coordinate such as `q.t`; a size such as `kv_len`; or `score`."""

    name: str


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Param(Expr):
    """A number that is given when the pattern runs."""

    name: str


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Input(Expr):
    """A tensor that is given when the pattern runs. A dim named `_` may have any size."""

    name: str
    dims: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Load(Expr):
    input: Input
    index: tuple[Expr, ...]

    @property
    def children(self) -> tuple[Expr, ...]:
        return self.index


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Apply(Expr):
    op: str
    args: tuple[Expr, ...]

    @property
    def children(self) -> tuple[Expr, ...]:
        return self.args


def _intern(cls: type[N], key: tuple[Any, ...], make: Callable[[], N]) -> N:
    full = (cls, *key)
    with _lock:
        node = _interned.get(full)
        if node is None:
            node = _interned[full] = make()
        return node


def const(value: bool | int | float, kind: Type | None = None) -> Const:
    """A constant, of the value's own type unless `kind` is DOUBLE. FS034 (an integer past 64 bits)."""
    kind = kind if kind is Type.DOUBLE else Type.of_value(value)
    if kind is Type.INT and not -(2**63) <= value < 2**63:
        raise FlexSpecError("FS034", f"the integer {value} does not fit 64 bits")
    key = repr(value) if kind > Type.INT else value  # -0.0, nan and 0.0 are three constants
    return _intern(Const, (kind, key), lambda: Const(kind, 1, frozenset(), value))


def var(name: str) -> Var:
    kind = Type.FLOAT if name == "score" else Type.INT
    return _intern(Var, (name,), lambda: Var(kind, 1, frozenset([name]), name))


def param(name: str, kind: Type = Type.INT) -> Param:
    return _intern(Param, (name, kind), lambda: Param(kind, 1, frozenset([name]), name))


def input_(name: str, dims: tuple[str, ...], kind: Type = Type.INT) -> Input:
    return _intern(Input, (name, dims, kind), lambda: Input(kind, 1, frozenset([name]), name, dims))


def _grown(children: tuple[Expr, ...]) -> tuple[int, frozenset[str]]:
    depth = 1 + max((child.depth for child in children), default=0)
    if depth > MAX_DEPTH:
        raise FlexSpecError(
            "FS053",
            f"the expression nests deeper than {MAX_DEPTH} operators",
            fix="index a tensor by position instead of listing cases",
        )
    return depth, frozenset().union(*(child.names for child in children))


def load(source: Input, index: tuple[Expr, ...]) -> Load:
    """An element of `source`.

    source: the tensor.
    index: an integer expression for each of its dims.

    Raises FS010 (too few or too many, or a float) and FS053 (deeper than `MAX_DEPTH`).
    """
    if len(index) != len(source.dims):
        seen = f"{source.name} has {len(source.dims)} dims {source.dims}, indexed by {len(index)}"
        raise FlexSpecError("FS010", seen, fix="give one index for each dim")
    if any(part.type > Type.INT for part in index):
        raise FlexSpecError("FS010", f"{source.name} is indexed by a float", fix="convert it with .int()")
    depth, names = _grown(index)
    names |= {source.name}
    return _intern(Load, (source, index), lambda: Load(source.type, depth, names, source, index))


def apply(op: str, *args: Expr) -> Apply:
    """An operator on expressions, typed by the table; nothing is simplified.

    op: a key of `OPS`.
    args: as many as it takes.

    Raises FS010 (operands that it does not take) and FS053 (deeper than `MAX_DEPTH`).
    """
    entry = OPS[op]
    if len(args) != entry.arity:
        raise FlexSpecError("FS010", f"{op} takes {entry.arity} operands, got {len(args)}")
    try:
        _, kind = entry.signature(tuple(arg.type for arg in args))
    except TypeError as wrong:
        kinds = ", ".join(arg.type.text for arg in args)
        raise FlexSpecError("FS010", f"`{entry.symbol or op}` {wrong}, got {kinds}") from None
    depth, names = _grown(args)
    return _intern(Apply, (op, args), lambda: Apply(kind, depth, names, op, args))


def rebuild(node: Expr, children: tuple[Expr, ...]) -> Expr:
    """`node` over other children."""
    if children == node.children:
        return node
    if isinstance(node, Load):
        return load(node.input, children)
    assert isinstance(node, Apply)
    return apply(node.op, *children)


def transform(root: Expr, visit: Callable[[Expr], Expr]) -> Expr:
    """Rebuild bottom-up, calling `visit` once on each distinct node after its children."""
    done: dict[Expr, Expr] = {}
    for node in walk(root):
        done[node] = visit(rebuild(node, tuple(done[child] for child in node.children)))
    return done[root]


def renamed_inputs(expr: Expr, names: Mapping[str, str]) -> Expr:
    """The expression with its tensors under other names."""

    def visit(node: Expr) -> Expr:
        if isinstance(node, Load) and node.input.name in names:
            return load(input_(names[node.input.name], node.input.dims, node.input.type), node.index)
        return node

    return transform(expr, visit) if any(new != old for old, new in names.items()) else expr


def walk(root: Expr) -> Iterator[Expr]:
    """Each distinct node once, children before parents."""
    seen: set[Expr] = set()
    stack: list[tuple[Expr, bool]] = [(root, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(node.children))


def substitute(root: Expr, values: Mapping[str, Expr]) -> Expr:
    """Replace variables and parameters by name, all at once."""

    def visit(node: Expr) -> Expr:
        return values.get(node.name, node) if isinstance(node, (Var, Param)) else node

    return transform(root, visit) if root.names & values.keys() else root


def fixed_size(dim: str) -> int | None:
    """The size that a dim such as `_257` has, or None."""
    return int(dim[1:]) if dim[0] == "_" and dim[1:].isdecimal() else None


@lru_cache(1024)
def inputs_of(root: Expr) -> Mapping[str, Input]:
    """The named tensors below `root`, in reading order; kept, because every call asks."""
    return {node.input.name: node.input for node in walk(root) if isinstance(node, Load)}


@lru_cache(1024)
def params_of(root: Expr) -> Mapping[str, Param]:
    """The run-time numbers below `root`, in reading order."""
    return {node.name: node for node in walk(root) if isinstance(node, Param)}


def _rows_of(root: Expr) -> list[tuple[Any, ...]]:
    """A row for each distinct node, children first: its constructor, its own values, the numbers of its parts' rows."""
    rows: list[tuple[Any, ...]] = []
    numbers: dict[Expr, int] = {}

    def add(node: Expr, make: Callable[..., Expr], values: tuple[Any, ...], parts: tuple[Expr, ...] = ()) -> None:
        numbers[node] = len(rows)
        rows.append((make, values, tuple(numbers[part] for part in parts)))

    for node in walk(root):
        match node:
            case Const():
                add(node, const, (node.value, node.type))
            case Var():
                add(node, var, (node.name,))
            case Param():
                add(node, param, (node.name, node.type))
            case Input():
                add(node, input_, (node.name, node.dims, node.type))
            case Load():
                if node.input not in numbers:
                    add(node.input, input_, (node.input.name, node.input.dims, node.input.type))
                add(node, _load_from, (), (node.input, *node.index))
            case Apply():
                add(node, apply, (node.op,), node.args)
    return rows


def _load_from(source: Input, *index: Expr) -> Load:
    return load(source, index)


def _from_rows(rows: list[tuple[Any, ...]]) -> Expr:
    """The expression that `_rows_of` wrote down: its constructors give the node that equal expressions share."""
    nodes: list[Expr] = []
    for make, values, parts in rows:
        nodes.append(make(*values, *(nodes[number] for number in parts)))
    return nodes[-1]


def to_text(expr: Expr) -> str:
    """The full text: declarations, then the formula."""
    lines = [f"{node.name}: {node.type.text}; " for node in params_of(expr).values()]
    for node in [expr] if isinstance(expr, Input) else inputs_of(expr).values():
        lines.append(f"{node.name}: {node.type.text}[{', '.join(node.dims)}]; ")
    return "".join(lines) + infix_text(expr)


def infix_text(expr: Expr) -> str:
    """The formula alone, without declarations, as Python would write it."""
    return _infix(expr)[0]


def _infix(expr: Expr) -> tuple[str, int]:
    """Text and precedence of its outermost operator."""
    if isinstance(expr, Const):
        return _constant(expr)
    if isinstance(expr, (Var, Param, Input)):
        return expr.name, ATOM
    if isinstance(expr, Load):
        return f"{expr.input.name}[{', '.join(infix_text(part) for part in expr.index)}]", ATOM
    assert isinstance(expr, Apply)
    op = OPS[expr.op]
    if op.symbol is None:
        return f"{op.name}({', '.join(infix_text(arg) for arg in expr.args)})", ATOM
    if op.arity == 1:
        text, inner = _infix(expr.args[0])
        bare = inner >= op.precedence and not isinstance(expr.args[0], Const)
        return op.symbol + (text if bare else f"({text})"), op.precedence
    (left, a), (right, b) = _infix(expr.args[0]), _infix(expr.args[1])
    if a < op.precedence or (a == op.precedence == COMPARE):
        left = f"({left})"
    if b <= op.precedence or (b == COMPARE):
        right = f"({right})"
    if a == COMPARE and left[0] != "(":
        left = f"({left})"
    return f"{left} {op.symbol} {right}", op.precedence


def _constant(expr: Const) -> tuple[str, int]:
    value = expr.value
    if isinstance(value, float) and not math.isfinite(value):
        return ("nan" if math.isnan(value) else "inf" if value > 0 else "-inf"), ATOM
    return repr(value), ATOM
