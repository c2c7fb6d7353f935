"""What masks and score mods share: an expression with the values that it already holds."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Self, get_args, get_origin, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError

from .canvas import Canvas
from .errors import FlexSpecError, choices
from .expr import (
    SIZES,
    Expr,
    Input,
    Load,
    Param,
    const,
    input_,
    inputs_of,
    load,
    param,
    params_of,
    substitute,
    transform,
    var,
    walk,
)
from .inputs import Bound, Sizes, bind, check_tensor, number_for
from .ops import Type
from .order import flatten
from .trace import Traced, run
from .user_line import function_place, user_caret

NAMES = {"b": "b", "h": "h", "q": "q", "kv": "kv", "q_idx": "q", "kv_idx": "kv"} | {name: name for name in SIZES}


@dataclass(frozen=True)
class Parameter:
    """A pattern's own number: its default (None: must be given) and the check of its annotation."""

    default: Any = None
    adapter: TypeAdapter[Any] | None = None
    type: Type = Type.INT

    def check(self, name: str, value: Any) -> Any:
        """The value, validated by the annotation; FS025 with pydantic's reason."""
        if self.adapter is None or isinstance(value, (Traced, torch.Tensor)):
            return value
        try:
            return self.adapter.validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise FlexSpecError("FS025", f"{name} is {value!r}: {reason}", where=user_caret()) from None


@dataclass(frozen=True)
class Predicate:
    """The Python function behind a formula, its parameters, and those bound so far."""

    fn: Callable[..., Any]
    positions: tuple[str, ...]
    parameters: dict[str, Parameter]
    bound: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        name = getattr(self.fn, "__name__", type(self.fn).__name__)
        return "predicate" if name == "<lambda>" else name


@dataclass(frozen=True, eq=False, repr=False)
class Formula:
    """A value: an expression, a label for people, and what it holds. Two are equal when all of that is the same."""

    expr: Expr
    label: str
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    canvas: Canvas | None = None
    predicate: Predicate | None = None
    noun: ClassVar[str] = "a formula"
    """What it is, for people."""
    argument: ClassVar[str] = ""
    """Where `fs.Attention` takes it."""

    def __post_init__(self) -> None:
        named: dict[str, Input | Param] = {}
        for node in walk(self.expr):
            leaf = node.input if isinstance(node, Load) else node
            if isinstance(leaf, (Input, Param)) and named.setdefault(leaf.name, leaf) is not leaf:
                message = f"`{leaf.name}` is both {_kind(named[leaf.name])} and {_kind(leaf)}"
                raise FlexSpecError("FS026", message, fix="rename one of them", where=user_caret())
        if self.predicate is not None and self.predicate.fn.__doc__:
            object.__setattr__(self, "__doc__", self.predicate.fn.__doc__)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the expression, which says everything, and no Python function."""
        parameters = {name: replace(item, adapter=None) for name, item in self.parameters.items()}
        return {**vars(self), "predicate": None, "parameters": parameters}

    def _key(self) -> tuple[Any, ...]:
        held = tuple(sorted((name, id(tensor)) for name, tensor in self.tensors.items()))
        return type(self), self.expr, held, tuple(sorted(self.defaults.items())), self.canvas

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Formula) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return self.label

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as YAML or JSON (see `spec.save`). FS053, FS054."""
        from .spec import save  # files are built on masks, so they are met here and not above

        save(self, path)  # type: ignore[arg-type]

    @property
    def defaults(self) -> dict[str, Any]:
        """Values of the parameters that a call may leave out."""
        return {name: p.default for name, p in self.parameters.items() if p.default is not None}

    @property
    def flat(self) -> Expr:
        """The expression with coordinates written as arithmetic on positions."""
        return flatten(self.expr, self.canvas)

    def bind(self, sizes: Sizes, given: Mapping[str, Any], *, assume_one: bool = False) -> Bound:
        """All values that one call needs (see `inputs.bind`). FS020 to FS025, FS031, FS032."""
        if self.canvas is not None and {self.canvas.size} != {sizes.q_len, sizes.kv_len}:
            lengths = f"q_len {sizes.q_len:,} and kv_len {sizes.kv_len:,}"
            message = f"{self.canvas} has {self.canvas.size:,} tokens; the call has {lengths}"
            fix = f"give {self.canvas.size:,} tokens; for text beside them see fs.with_text"
            raise FlexSpecError("FS032", message, fix=fix, where=user_caret())
        for name in given.keys() & self.parameters.keys():
            self.parameters[name].check(name, given[name])
        return bind(self.expr, self.tensors, self.defaults, given, sizes, assume_one=assume_one)

    def given(self, *args: Any, **values: Any) -> Self:
        """The same formula with parameters (and inputs) bound. FS021, FS023, FS025."""
        own = self.predicate.parameters if self.predicate else self.parameters
        names = list(own)
        if len(args) > len(names):
            message = f"`{self.label}` takes {len(names)} parameters ({choices(names)}), got {len(args)}"
            raise FlexSpecError("FS021", message, where=user_caret())
        twice = set(names[: len(args)]) & values.keys()
        if twice:
            raise FlexSpecError("FS021", f"`{choices(sorted(twice))}` is given twice", where=user_caret())
        values = dict(zip(names, args, strict=False)) | values
        open_tensors = inputs_of(self.expr).keys() - self.tensors.keys()
        for name in values.keys() - set(names) - open_tensors:
            known = sorted({*names, *open_tensors})
            message = f"`{self.label}` has no parameter `{name}`"
            raise FlexSpecError("FS021", message, fix=f"it takes {choices(known)}", where=user_caret())
        nodes = inputs_of(self.expr)
        tensors = {name: check_tensor(nodes[name], values.pop(name)) for name in open_tensors & values.keys()}
        for name, value in values.items():
            own[name].check(name, value)
        changed = self._rebound(values) if values else self
        return replace(changed, tensors={**changed.tensors, **tensors}) if tensors else changed

    def _rebound(self, values: Mapping[str, Any]) -> Self:
        if self.predicate is not None:
            bound = self.predicate.bound | dict(values)
            made = type(self).from_predicate(replace(self.predicate, bound=bound), self.canvas)
            return replace(made, tensors={**self.tensors, **made.tensors})
        kinds = {name: node.type for name, node in params_of(self.expr).items()}
        exprs = {
            name: value.expr if isinstance(value, Traced) else const(number_for(name, kinds[name], value))
            for name, value in values.items()
            if name in kinds
        }
        left = {name: p for name, p in self.parameters.items() if name not in values}
        shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
        label = f"({self.label})({shown})"
        return replace(self, expr=substitute(self.expr, exprs), parameters=left, label=label)

    def named(self, name: str, **shown: Any) -> Self:
        """The same formula under a pattern's name, with the parameters that its repr shows."""
        return replace(self, label=f"{name}({', '.join(f'{k}={_show(v)}' for k, v in shown.items())})")

    @classmethod
    def from_predicate(cls, predicate: Predicate, canvas: Canvas | None) -> Self:
        """Trace a predicate: bound parameters are Python values, open ones stay symbolic."""
        arguments: dict[str, Any] = {name: var(NAMES.get(name, name)) for name in predicate.positions}
        left: dict[str, Parameter] = {}
        for name, item in predicate.parameters.items():
            if name in predicate.bound:
                value = predicate.bound[name]
                if isinstance(value, Traced):
                    left |= {key: Parameter() for key in value.expr.names if key in params_of(value.expr)}
            elif item.default is None or isinstance(item.default, (int, float)):
                value, left[name] = param(name, item.type), item
            else:
                value = item.default
            arguments[name] = value
        expr, tensors = run(predicate.fn, arguments, positional=False, axes=canvas.names if canvas else ())
        left |= {name: Parameter() for name in params_of(expr).keys() - left.keys()}
        shown = ", ".join(f"{name}={_show(value)}" for name, value in predicate.bound.items())
        label = f"{predicate.name}({shown})"
        return cls(cls.check_result(expr, predicate.fn), label, tensors, left, canvas, predicate)

    @staticmethod
    def check_result(expr: Expr, fn: object) -> Expr:
        """The expression as this kind of formula needs it, else FS007."""
        raise NotImplementedError


def _kind(node: Input | Param) -> str:
    """A named value as the text form declares it."""
    return node.type.text if isinstance(node, Param) else f"{node.type.text}[{', '.join(node.dims)}]"


def _show(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"<{str(value.dtype).removeprefix('torch.')}{list(value.shape)}>"
    return f"<{value.expr.names and next(iter(value.expr.names))}>" if isinstance(value, Traced) else repr(value)


def read_signature(fn: Callable[..., Any], extra: tuple[str, ...] = ()) -> Predicate:
    """The positions and parameters that a predicate takes, by name. FS001 lists every wrong one."""
    legal = [*extra, *NAMES]
    errors: list[FlexSpecError] = []
    positions: list[str] = []
    parameters: dict[str, Parameter] = {}
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError) as error:
        raise FlexSpecError("FS001", f"the signature cannot be read: {error}") from None
    try:
        hints = get_type_hints(fn, include_extras=True)
    except (TypeError, NameError):  # annotations that only a type checker can read check nothing here
        hints = {}
    for name, item in signature.parameters.items():
        if item.kind is item.KEYWORD_ONLY and name not in legal:
            default = None if item.default is item.empty else item.default
            adapter = TypeAdapter(hints[name]) if name in hints else None
            parameters[name] = Parameter(default, adapter, _number_type(default, hints.get(name)))
        elif item.kind in (item.POSITIONAL_ONLY, item.VAR_POSITIONAL, item.VAR_KEYWORD) or name not in legal:
            what = ("*" if item.kind is item.VAR_POSITIONAL else "**" if item.kind is item.VAR_KEYWORD else "") + name
            fix = f"positions are named {choices(legal[: len(extra) + 6])}; put the pattern's own after `*`"
            message = f"parameter `{what}` is no position"
            errors.append(FlexSpecError("FS001", message, fix=fix, where=function_place(fn)))
        else:
            positions.append(name)
    for short, long in (("q", "q_idx"), ("kv", "kv_idx")):
        if short in positions and long in positions:
            message = f"`{short}` and `{long}` are the same position"
            errors.append(FlexSpecError("FS001", message, fix="take one", where=function_place(fn)))
    if "score" in extra and "score" not in positions and not errors:
        errors.append(FlexSpecError("FS001", "a score mod takes `score`", where=function_place(fn)))
    if errors:
        raise FlexSpecError.collect(errors)
    return Predicate(fn, tuple(positions), parameters)


def _number_type(default: Any, hint: Any) -> Type:
    """The type of a run-time parameter: of its annotation, else of its default, else int."""
    base = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if base in (bool, int, float):
        return {bool: Type.BOOL, int: Type.INT, float: Type.FLOAT}[base]
    return Type.of_value(default) if isinstance(default, (int, float)) else Type.INT


def operand(label: str) -> str:
    """A label as an operand: in parentheses where it is a combination itself."""
    depth = 0
    for character in label:
        depth += (character in "([{<") - (character in ")]}>")
        if character == " " and not depth:
            return f"({label})"
    return label


def joined(a: Formula, symbol: str, b: Formula) -> str:
    """The label of two formulas combined; a chain of one associative operator needs no parentheses."""
    left = a.label if symbol in "&|^+" and f" {symbol} " in a.label and _only(a.label, symbol) else operand(a.label)
    return f"{left} {symbol} {operand(b.label)}"


def _only(label: str, symbol: str) -> bool:
    return not any(f" {other} " in label for other in "&|^-+" if other != symbol)


def merged(cls: type[Any], expr_of: Callable[[Expr, Expr], Expr], a: Any, b: Any, label: str) -> Any:
    """Two formulas as one: names shared, captured tensors kept apart, canvases equal. FS026, FS032."""
    if a.canvas and b.canvas and a.canvas != b.canvas:
        message = f"the two sides are on different canvases: {a.canvas} and {b.canvas}"
        raise FlexSpecError("FS032", message, where=user_caret())
    b = _apart(a, b)
    a = _apart(b, a, held_only=True)
    ours, theirs = inputs_of(a.expr), inputs_of(b.expr)
    for name in ours.keys() & theirs.keys():
        if ours[name] is not theirs[name]:
            message = f"`{name}` is {ours[name]} on one side and {theirs[name]} on the other"
            raise FlexSpecError("FS026", message, fix="rename one of the inputs", where=user_caret())
    parameters = dict(a.parameters)
    for name, item in b.parameters.items():
        mine = parameters.get(name, item)
        if None not in (mine.default, item.default) and mine.default != item.default:
            message = f"`{name}` has the default {mine.default} on one side and {item.default} on the other"
            fix = f"bind it on one side, e.g. pattern({name}={mine.default})"
            raise FlexSpecError("FS026", message, fix=fix, where=user_caret())
        parameters[name] = mine if mine.default is not None or mine.adapter else item
    return cls(expr_of(a.expr, b.expr), label, {**a.tensors, **b.tensors}, parameters, a.canvas or b.canvas)


def _apart(a: Any, b: Any, held_only: bool = False) -> Any:
    """`b` with each held tensor renamed whose name means another tensor in `a`."""
    taken = {**dict.fromkeys([*inputs_of(a.expr), *params_of(a.expr)]), **a.tensors}
    new: dict[str, str] = {}
    for name, tensor in b.tensors.items():
        if name in taken and taken[name] is not tensor and not (held_only and taken[name] is not None):
            number = 2
            while f"{name}_{number}" in {*taken, *b.tensors, *new.values()}:
                number += 1
            new[name] = f"{name}_{number}"
    return renamed(b, new) if new else b


def renamed(formula: Any, new: Mapping[str, str]) -> Any:
    """The formula with its inputs renamed."""

    def visit(node: Expr) -> Expr:
        if isinstance(node, Load) and node.input.name in new:
            return load(input_(new[node.input.name], node.input.dims, node.input.type), node.index)
        return node

    tensors = {new.get(name, name): tensor for name, tensor in formula.tensors.items()}
    return replace(formula, expr=transform(formula.expr, visit), tensors=tensors, predicate=None)
