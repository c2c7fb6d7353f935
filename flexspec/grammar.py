"""The text grammar that expressions and patterns share: characters to a tree of `Node`s, never to code.

text    : { name ":" type [ "[" dims "]" ] ";" | side ":" call ";" } expr
expr    : Python's operators with Python's precedence, calls, dicts `{t: 2}`, indexing, `q.t` and `mask.T`
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .errors import FlexSpecError
from .expr import MAX_DEPTH
from .ops import COMPARE, INFIX, UNARY

MAX_TEXT = 200_000
"""Longest text that is read, in characters (FS053)."""

_TOKEN = re.compile(
    r"(?P<space>[ \t\r\n]+)"
    r"|(?P<number>(?:\d[\d_]*\.\d*|\.\d+|\d[\d_]*)(?:[eE][+-]?\d+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z_0-9]*)"
    r"|(?P<string>'[^'\n]*'|\"[^\"\n]*\")"
    r"|(?P<symbol><<|>>|<=|>=|==|!=|//|[-+*/%&|^~<>()\[\]{},.:;=])"
)
_MISTAKES = {"and": "&", "or": "|", "not": "~"}
BY_AXIS = "write a value for each axis in braces: {t: 18, h: 24, w: 24}"


@dataclass(frozen=True, slots=True)
class Node:
    """A piece of text understood. `kind` is number, string, name, call, index, unary, binary, dict, tuple or transpose.

    value: the number, the (dotted) name, or the operator's name in `ops`.
    at: the character at which it starts.
    parts: operands.
    keywords: `name=value` of a call, `name: value` of a dict.
    """

    kind: str
    value: str | int | float
    at: int
    parts: tuple[Node, ...] = ()
    keywords: tuple[tuple[str, Node], ...] = ()
    depth: int = field(init=False, default=1)

    def __post_init__(self) -> None:
        below = [*self.parts, *(part for _, part in self.keywords)]
        object.__setattr__(self, "depth", 1 + max((part.depth for part in below), default=0))


@dataclass(frozen=True, slots=True)
class Declaration:
    """`name: type[dims]`, from character `at` on; no dims: a parameter. made: the call in `q: canvas(h=4, w=6)`."""

    name: str
    type: str
    dims: tuple[str, ...] | None
    at: int
    made: Node | None = None


@dataclass(slots=True)
class Reader:
    """One pass over the tokens of `text`."""

    text: str
    tokens: list[tuple[str, str, int]] = field(default_factory=list)
    position: int = 0
    depth: int = 0

    def fail(self, message: str, at: int, fix: str | None = None, code: str = "FS050") -> FlexSpecError:
        return text_error(self.text, at, message, fix, code)

    @property
    def here(self) -> tuple[str, str, int]:
        return self.tokens[self.position]

    def take(self, symbol: str) -> bool:
        if self.here[0] == "symbol" and self.here[1] == symbol:
            self.position += 1
            return True
        return False

    def expect(self, symbol: str) -> None:
        if not self.take(symbol):
            kind, seen, at = self.here
            raise self.fail(f"expected `{symbol}`, found {'the end' if kind == 'end' else f'`{seen}`'}", at)

    def name(self) -> str:
        kind, seen, at = self.here
        if kind != "name":
            raise self.fail(f"expected a name, found {f'`{seen}`' if seen else 'the end'}", at)
        self.position += 1
        return seen

    def declarations(self) -> list[Declaration]:
        declared = []
        while self.here[0] == "name" and self.tokens[self.position + 1][1] == ":":
            at = self.here[2]
            name = self.name()
            self.expect(":")
            where, kind = self.here[2], self.name()
            dims = tuple(self.names("]")) if self.take("[") else None
            made = self.call(Node("name", kind, where)) if dims is None and self.take("(") else None
            self.expect(";")
            declared.append(Declaration(name, kind, dims, at, made))
        return declared

    def names(self, end: str) -> list[str]:
        names: list[str] = []
        while not self.take(end):
            names.append(self.name())
            if not self.take(","):
                self.expect(end)
                break
        return names

    def expression(self, least: int = COMPARE) -> Node:
        self.depth += 1
        if self.depth > 2 * MAX_DEPTH + 2:  # a right operand in parentheses counts twice
            raise self.fail(f"the text nests deeper than {MAX_DEPTH}", self.here[2], code="FS053")
        left = self.prefix()
        compared = False
        while True:
            kind, symbol, at = self.here
            if kind == "name" and symbol in _MISTAKES:
                raise self.fail(f"`{symbol}` is not an operator here", at, f"write `{_MISTAKES[symbol]}`")
            op = INFIX.get(symbol) if kind == "symbol" else None
            if op is None or op.precedence < least:
                break
            if op.precedence == COMPARE and compared:
                raise self.fail("a chained comparison", at, "write `(a < b) & (b < c)`", "FS005")
            self.position += 1
            right = self.expression(op.precedence + 1)
            left = self.shallow(Node("binary", op.name, at, (left, right)))
            compared = op.precedence == COMPARE
        self.depth -= 1
        return left

    def prefix(self) -> Node:
        kind, symbol, at = self.here
        if kind == "symbol" and symbol in "-~":
            self.position += 1
            if symbol == "-" and (self.here[0] == "number" or self.here[1] == "inf"):
                return self.postfix(self.number(negative=True))
            operand = self.expression(UNARY)
            return Node("unary", "neg" if symbol == "-" else "not", at, (operand,))
        if kind == "name" and symbol == "not":
            raise self.fail("`not` is not an operator here", at, "write `~`")
        return self.postfix(self.atom())

    def number(self, negative: bool = False) -> Node:
        _, seen, at = self.here
        self.position += 1
        text = ("-" if negative else "") + seen.replace("_", "")
        whole = not set(text) & set(".eEf")
        if whole and len(text) > 20:
            raise self.fail("the integer does not fit 64 bits", at, code="FS034")
        return Node("number", int(text) if whole else float(text), at)

    def atom(self) -> Node:
        kind, seen, at = self.here
        if kind == "number":
            return self.number()
        if kind == "string":
            self.position += 1
            return Node("string", seen[1:-1], at)
        if kind == "name":
            return Node("name", self.name(), at)
        if self.take("("):
            inside = self.expression()
            parts = [inside]
            while self.take(","):
                parts.append(self.expression())
            self.expect(")")
            return inside if len(parts) == 1 else Node("tuple", "", at, tuple(parts))
        if self.take("{"):
            return Node("dict", "", at, (), self.pairs("}", ":"))
        raise self.fail(f"expected an expression, found {'the end' if kind == 'end' else f'`{seen}`'}", at)

    def postfix(self, node: Node) -> Node:
        while True:
            at = self.here[2]
            if self.take("."):
                name = self.name()
                if name == "T" and node.value not in ("q", "kv"):
                    node = self.shallow(Node("transpose", "T", at, (node,)))
                elif node.kind != "name":
                    raise self.fail("only a position has axes", at)
                else:
                    node = Node("name", f"{node.value}.{name}", node.at)
            elif self.take("("):
                if node.kind != "name":
                    raise self.fail("this cannot be called", at)
                node = self.call(node)
            elif self.take("["):
                parts: list[Node] = []
                while not self.take("]"):
                    parts.append(self.expression())
                    if not self.take(","):
                        self.expect("]")
                        break
                node = self.shallow(Node("index", "", node.at, (node, *parts)))
            else:
                return node

    def shallow(self, node: Node) -> Node:
        """The node, unless it nests too deep."""
        if node.depth > MAX_DEPTH:
            raise self.fail(f"the text nests deeper than {MAX_DEPTH}", node.at, code="FS053")
        return node

    def call(self, node: Node) -> Node:
        parts: list[Node] = []
        while not self.take(")"):
            if self.here[0] == "name" and self.tokens[self.position + 1][1] == "=":
                return Node("call", node.value, node.at, tuple(parts), self.pairs(")", "="))
            parts.append(self.expression())
            if not self.take(","):
                self.expect(")")
                break
        return Node("call", node.value, node.at, tuple(parts))

    def pairs(self, end: str, middle: str) -> tuple[tuple[str, Node], ...]:
        values: dict[str, Node] = {}
        while not self.take(end):
            at, name = self.here[2], self.name()
            if name in values:
                raise self.fail(f"`{name}` is given twice", at)
            self.expect(middle)
            values[name] = self.expression()
            if not self.take(","):
                self.expect(end)
                break
        return tuple(values.items())


def read(text: str) -> tuple[list[Declaration], Node]:
    """Text to its declarations and its tree.

    Raises, with a caret into the text, FS050 (what does not continue it), FS005 (a chained comparison), FS034 (an
    integer past 64 bits) and FS053 (longer than `MAX_TEXT`, or deeper than `MAX_DEPTH`).
    """
    if not isinstance(text, str):
        raise FlexSpecError("FS050", f"a text is needed, got {type(text).__name__}")
    if len(text) > MAX_TEXT:
        raise FlexSpecError("FS053", f"the text has {len(text):,} characters, more than {MAX_TEXT:,}")
    reader = Reader(text)
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise reader.fail(f"`{text[at]}` has no meaning here", at)
        if match.lastgroup != "space":
            reader.tokens.append((str(match.lastgroup), match.group(), at))
        at = match.end()
    reader.tokens += [("end", "", len(text))] * 2
    declared = reader.declarations()
    try:
        node = reader.expression()
    except RecursionError:
        raise reader.fail(f"the text nests deeper than {MAX_DEPTH}", reader.here[2], code="FS053") from None
    kind, seen, at = reader.here
    if kind != "end":
        chained = "write the comparison in parentheses" if seen == "=" else None
        raise reader.fail(f"`{seen}` does not continue an expression", at, chained)
    return declared, node


def text_error(text: str, at: int, message: str, fix: str | None = None, code: str = "FS050") -> FlexSpecError:
    """An error with a caret into a text, to be raised.

    text: all of it.
    at: the character under which the caret stands.
    message: what was seen.
    fix: what to write instead.
    code: of `errors.CODES`.
    """
    start = text.rfind("\n", 0, at) + 1
    end = text.find("\n", at)
    line = text[start : end if end >= 0 else len(text)]
    left = max(0, at - start - 60)
    where = f"    {line[left : left + 100]}\n    {' ' * (at - start - left)}^"
    return FlexSpecError(code, message, fix=fix, where=where)
