"""What masks and score mods share: an expression with the values that it already holds."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch

from .canvas import AnyCanvas, Canvas, CanvasPair, placed
from .errors import FlexSpecError, choices
from .expr import (
    Expr,
    Input,
    Load,
    Param,
    const,
    inputs_of,
    param,
    params_of,
    renamed_inputs,
    substitute,
    var,
    walk,
)
from .files import write_document
from .inputs import Bound, Sizes, bind, check_tensor, number_for
from .order import flatten
from .predicate import NAMES, Parameter, Predicate
from .selection import Selection
from .trace import trace
from .traced import Traced
from .user_line import user_caret

VERSION = 1
"""Of the documents that formulas and attentions are written as."""
MAX_ELEMENTS = 65_536
"""Most elements of a held tensor in a document (FS053)."""


@dataclass(frozen=True, eq=False, repr=False)
class Formula:
    """A value: an expression, a label for people, and what it holds. Two are equal when all of that is the same."""

    expr: Expr
    label: str
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    canvas: Canvas | None = None
    predicate: Predicate | None = None
    canvases: CanvasPair | None = None
    """Where the sides are on different canvases; `canvas` is None then."""
    selections: Mapping[str, Selection] = field(default_factory=dict)
    """How a call makes the tables of chosen blocks that the expression reads, by their names."""
    noun: ClassVar[str] = "a formula"
    """What it is, for people."""
    argument: ClassVar[str] = ""
    """Where `fs.Attention` takes it."""
    document_kind: ClassVar[str | None] = None
    """What a file of such a formula says that it holds; None: no file holds one alone."""

    def __post_init__(self) -> None:
        one_meaning_each([self.expr])
        if self.predicate is not None and self.predicate.fn.__doc__:
            object.__setattr__(self, "__doc__", self.predicate.fn.__doc__)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the expression, which says everything, and no Python function."""
        parameters = {name: replace(item, adapter=None) for name, item in self.parameters.items()}
        return {**vars(self), "predicate": None, "parameters": parameters}

    def _key(self) -> tuple[Any, ...]:
        held = tuple(sorted((name, id(tensor)) for name, tensor in self.tensors.items()))
        return type(self), self.expr, held, tuple(sorted(self.defaults.items())), self.on, frozenset(self.selections)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Formula) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return self.label

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as YAML (.yaml, .yml) or JSON (.json), whole or not at all; `fs.load` reads it.

        path: where to write it.

        Raises FS023 (a weight, which is saved in its attention), FS053 (a tensor of more than 65,536 elements, a file
        of more than 16 MiB) and FS054 (another suffix, or a place that cannot be written).
        """
        if self.document_kind is None:
            message = f"a spec is a Mask, a ScoreMod or an Attention, got {type(self).__name__}"
            raise FlexSpecError("FS023", message, where=user_caret())
        write_document({"version": VERSION, "kind": self.document_kind, **self.stored()}, path)

    def stored(self) -> dict[str, Any]:
        """The formula as plain data, its tensors with their values. FS053 (a tensor of too many elements)."""
        nodes = inputs_of(self.expr)
        held = {name: check_tensor(nodes[name], t) for name, t in self.tensors.items() if name in nodes}
        for name, tensor in held.items():
            if tensor.numel() > MAX_ELEMENTS:
                message = f"`{name}` has {tensor.numel():,} elements; a spec holds up to {MAX_ELEMENTS:,}"
                fix = f'make it a run-time input: fs.Input("{name}", dims=...)'
                raise FlexSpecError("FS053", message, fix=fix, where=user_caret())
        tensors = {
            name: {
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": list(tensor.shape),
                "values": [_portable(value) for value in tensor.detach().cpu().reshape(-1).tolist()],
            }
            for name, tensor in held.items()
        }
        stored: dict[str, Any] = {"expr": str(self.expr), "label": self.label}
        optional = {
            "canvas": self.canvas.lengths if self.canvas else None,
            "canvases": self.canvases.lengths if self.canvases else None,
            "parameters": self.defaults,
            "tensors": tensors,
            "selections": {name: each.stored() for name, each in self.selections.items() if name in self.expr.names},
        }
        return stored | {key: value for key, value in optional.items() if value}

    @property
    def defaults(self) -> dict[str, Any]:
        """Values of the parameters that a call may leave out."""
        return {name: p.default for name, p in self.parameters.items() if p.default is not None}

    @property
    def flat(self) -> Expr:
        """The expression with coordinates written as arithmetic on positions."""
        return flatten(self.expr, self.on)

    @property
    def on(self) -> AnyCanvas | None:
        """The canvas of both sides, or those of the sides."""
        return self.canvases or self.canvas

    def bind(self, sizes: Sizes, given: Mapping[str, Any], *, assume_one: bool = False) -> Bound:
        """All values that one call needs (see `bind_all`)."""
        return self.bind_all([self.expr], sizes, given, assume_one=assume_one)

    def bind_all(
        self, exprs: Sequence[Expr], sizes: Sizes, given: Mapping[str, Any], *, assume_one: bool = False
    ) -> Bound:
        """All values that these expressions need in one call, of those that this formula holds and the given ones.

        exprs: this formula's, or of several that `together` made to hold the same.
        sizes: of the call.
        given: run-time values by name.
        assume_one: one batch entry and one head where nothing says how many.

        Raises FS032 (a canvas of another length), FS025 (a number that its annotation refuses), and what
        `inputs.bind` raises.
        """
        self._check_canvas(sizes)
        for name in given.keys() & self.parameters.keys():
            self.parameters[name].check(name, given[name])
        self._check_chosen(exprs, given)
        return bind(exprs, self.tensors, self.defaults, given, sizes, assume_one=assume_one)

    def _check_chosen(self, exprs: Sequence[Expr], given: Mapping[str, Any]) -> None:
        """FS020 where a table of chosen blocks is read that nothing has made."""
        for name, selection in self.selections.items():
            if name not in given and name not in self.tensors and any(name in expr.names for expr in exprs):
                message = f"`{self.label}` chooses blocks by q and k"
                fix = "give q=... and k=..."
                if selection.given is not None:
                    message, fix = f"`{selection.given}` has no value", f"give {selection.given}=..."
                raise FlexSpecError("FS020", message, fix=fix, where=user_caret())

    def _check_canvas(self, sizes: Sizes) -> None:
        if self.canvas is not None and {self.canvas.size} != {sizes.q_len, sizes.kv_len}:
            lengths = f"q_len {sizes.q_len:,} and kv_len {sizes.kv_len:,}"
            message = f"{self.canvas} has {self.canvas.size:,} tokens; the call has {lengths}"
            fix = f"give {self.canvas.size:,} tokens; for text beside them see fs.with_text"
            if sizes.q_len != sizes.kv_len:
                fix += "; for sides that differ give q_canvas and kv_canvas"
            raise FlexSpecError("FS032", message, fix=fix, where=user_caret())
        for side, length in (("q", sizes.q_len), ("kv", sizes.kv_len)):
            on = self.canvases.side(side) if self.canvases else None
            if on is not None and on.size != length:
                message = f"the {side} side's {on} has {on.size:,} tokens; the call has {side}_len {length:,}"
                fix = f"give {side}_canvas of {length:,} tokens"
                raise FlexSpecError("FS032", message, fix=fix, where=user_caret())

    def given(self, /, *args: Any, **values: Any) -> Self:
        """The same formula with parameters and inputs bound.

        args: parameters in the order of their definition.
        values: parameters and inputs by name.

        Raises FS021 (an unknown name, one given twice, too many), FS022 and FS023 (a tensor or a number of another
        shape or type) and FS025 (a number that its annotation refuses).
        """
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
        chosen_by = {name for each in self.selections.values() for name in each.forced_reads}
        for name in values.keys() - set(names) - open_tensors - chosen_by:
            known = sorted({*names, *open_tensors - self.selections.keys(), *chosen_by})
            message = f"`{self.label}` has no parameter `{name}`"
            raise FlexSpecError("FS021", message, fix=f"it takes {choices(known)}", where=user_caret())
        nodes = inputs_of(self.expr)
        forced = {name: value for name, value in values.items() if name in chosen_by}
        values = {name: value for name, value in values.items() if name in own or name in open_tensors}
        tensors = {name: check_tensor(nodes[name], values.pop(name)) for name in open_tensors & values.keys()}
        for name, value in values.items():
            own[name].check(name, value)
        changed = self._rebound(values) if values else self
        changed = changed._reselected(forced) if forced else changed
        return replace(changed, tensors={**changed.tensors, **tensors}) if tensors else changed

    def _reselected(self, values: Mapping[str, Any]) -> Self:
        """The same formula with values of its selections' forced masks bound."""
        new: dict[str, Selection] = {}
        for name, selection in self.selections.items():
            own = {each: value for each, value in values.items() if each in selection.forced_reads}
            new[name] = replace(selection, forced=selection.forced.given(**own)) if own else selection
        expr = renamed_inputs(self.expr, {name: each.name for name, each in new.items()})
        return replace(self, expr=expr, selections={each.name: each for each in new.values()}, predicate=None)

    def _rebound(self, values: Mapping[str, Any]) -> Self:
        if self.predicate is not None:
            bound = self.predicate.bound | dict(values)
            traced = type(self).from_predicate(replace(self.predicate, bound=bound), self.on)
            return replace(traced, tensors={**self.tensors, **traced.tensors})
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
    def from_predicate(cls, predicate: Predicate, canvas: AnyCanvas | None) -> Self:
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
        expr, tensors = trace(predicate.fn, arguments, positional=False, axes=_axes_of(canvas))
        left |= {name: Parameter() for name in params_of(expr).keys() - left.keys()}
        shown = ", ".join(f"{name}={_show(value)}" for name, value in predicate.bound.items())
        label = f"{predicate.name}({shown})"
        return cls(cls.check_result(expr, predicate.fn), label, tensors, left, predicate=predicate, **placed(canvas))

    @staticmethod
    def check_result(expr: Expr, fn: object) -> Expr:
        """The expression as this kind of formula needs it, else FS007."""
        raise NotImplementedError


def _axes_of(canvas: AnyCanvas | None) -> dict[str, tuple[str, ...]]:
    """The names of the axes, by side."""
    sides = {side: canvas.side(side) if canvas else None for side in ("q", "kv")}
    return {side: on.names for side, on in sides.items() if on is not None}


def _kind(node: Input | Param) -> str:
    """A named value as the text form declares it."""
    return node.type.text if isinstance(node, Param) else f"{node.type.text}[{', '.join(node.dims)}]"


def _show(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"<{str(value.dtype).removeprefix('torch.')}{list(value.shape)}>"
    return f"<{value.expr.names and next(iter(value.expr.names))}>" if isinstance(value, Traced) else repr(value)


def one_meaning_each(exprs: Iterable[Expr]) -> None:
    """FS026 where a name is two of an input and parameters in these expressions."""
    meanings: dict[str, Input | Param] = {}
    for expr in exprs:
        for node in walk(expr):
            leaf = node.input if isinstance(node, Load) else node
            if isinstance(leaf, (Input, Param)) and meanings.setdefault(leaf.name, leaf) is not leaf:
                message = f"`{leaf.name}` is both {_kind(meanings[leaf.name])} and {_kind(leaf)}"
                raise FlexSpecError("FS026", message, fix="rename one of them", where=user_caret())


def _portable(value: Any) -> Any:
    """Infinities and nan as words: JSON has no numbers for them."""
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)
