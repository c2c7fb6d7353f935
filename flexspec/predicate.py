"""The Python function behind a formula: which positions it takes, and which parameters of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError

from .errors import FlexSpecError, choices
from .expr import SIZES
from .ops import Type
from .syntax import leaf
from .traced import Traced
from .user_line import function_place, user_caret

NAMES = {"b": "b", "h": "h", "q": "q", "kv": "kv", "q_idx": "q", "kv_idx": "kv"} | {name: name for name in SIZES}
"""Each position and size by the names that a predicate may give it."""


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


def read_signature(fn: Callable[..., Any], extra: tuple[str, ...] = ()) -> Predicate:
    """The positions and parameters that a predicate takes, by name. FS001 lists every wrong one, FS021 names in use."""
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
            if leaf(name) or not name.isascii():
                message = f"`{name}` {'already has a meaning' if leaf(name) else 'is not in ASCII'}"
                errors.append(FlexSpecError("FS021", message, fix="take another name", where=function_place(fn)))
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
            if item.default is not item.empty and item.default is not None:
                message = f"`{name}` is given by the call, so its default {item.default!r} would not be used"
                fix = f"give the pattern's own value another name, after `*`, or write {name}=None"
                errors.append(FlexSpecError("FS021", message, fix=fix, where=function_place(fn)))
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
