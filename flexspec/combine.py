"""Formulas put together: names shared where they mean the same, captured tensors kept apart, labels joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .canvas import placed
from .errors import FlexSpecError
from .expr import Expr, inputs_of, params_of, renamed_inputs
from .formula import Formula
from .predicate import Parameter
from .selection import Selection
from .user_line import user_caret


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
    (mine, theirs), held = together(a, b)
    return cls(expr_of(mine, theirs), label, **held)


def together(first: Formula, *others: Formula) -> tuple[list[Expr], dict[str, Any]]:
    """The expressions of several formulas, a name meaning one thing in all of them, and what they hold then.

    A captured tensor whose name means something else in another formula gets a name of its own; inputs and parameters
    of one name are one. The second value has `tensors`, `parameters` and `canvas`, as a `Formula` takes them.

    Raises FS026 (an input of two kinds, a parameter with two defaults) and FS032 (two canvases).
    """
    group, parameters, canvas = [first], dict(first.parameters), first.on
    for other in others:
        if canvas and other.on and canvas != other.on:
            message = f"the two sides are on different canvases: {canvas} and {other.on}"
            raise FlexSpecError("FS032", message, where=user_caret())
        [other] = _apart(group, [other])
        group = _apart([other], group, held_only=True)
        _same_inputs(group, other)
        parameters = _shared_parameters(parameters, other.parameters)
        canvas = canvas or other.on
        group.append(other)
    tensors = {name: tensor for each in group for name, tensor in each.tensors.items()}
    selections = _same_selections(group)
    held = {"tensors": tensors, "parameters": parameters, "selections": selections}
    return [each.expr for each in group], {**held, **placed(canvas)}


def _same_inputs(group: Sequence[Formula], other: Formula) -> None:
    theirs = inputs_of(other.expr)
    for each in group:
        ours = inputs_of(each.expr)
        for name in ours.keys() & theirs.keys():
            if ours[name] is not theirs[name]:
                message = f"`{name}` is {ours[name]} on one side and {theirs[name]} on the other"
                raise FlexSpecError("FS026", message, fix="rename one of the inputs", where=user_caret())


def _same_selections(group: Sequence[Formula]) -> dict[str, Selection]:
    """How the tables of all are made. FS026 where one of the caller's is of blocks of two sizes."""
    found: dict[str, Selection] = {}
    for name, each in ((name, each) for formula in group for name, each in formula.selections.items()):
        other = found.setdefault(name, each)
        if other.block != each.block:
            message = f"`{name}` is of blocks {other.block} on one side and {each.block} on the other"
            raise FlexSpecError("FS026", message, fix="rename one of the choices", where=user_caret())
    return found


def _shared_parameters(ours: Mapping[str, Parameter], theirs: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """The parameters of both sides, a default of one side serving the other."""
    shared = dict(ours)
    for name, item in theirs.items():
        mine = shared.get(name, item)
        if None not in (mine.default, item.default) and mine.default != item.default:
            message = f"`{name}` has the default {mine.default} on one side and {item.default} on the other"
            fix = f"bind it on one side, e.g. pattern({name}={mine.default})"
            raise FlexSpecError("FS026", message, fix=fix, where=user_caret())
        shared[name] = mine if mine.default is not None or mine.adapter else item
    return shared


def _apart(others: Sequence[Formula], group: Sequence[Formula], held_only: bool = False) -> list[Formula]:
    """`group` with each held tensor renamed whose name means another tensor in `others`.

    held_only: rename only where the name is no held tensor of `others`, but one that is given when it runs.
    """
    taken: dict[str, torch.Tensor | None] = {}
    for each in others:
        taken |= {**dict.fromkeys(_open_or_held(each)), **each.tensors}
    held = {name: tensor for each in group for name, tensor in each.tensors.items()}
    used = {*taken, *held, *(name for each in group for name in _open_or_held(each))}
    new: dict[str, str] = {}
    for name, tensor in held.items():
        if name in taken and taken[name] is not tensor and not (held_only and taken[name] is not None):
            number = 2
            while f"{name}_{number}" in used:
                number += 1
            new[name] = f"{name}_{number}"
            used.add(new[name])
    return [renamed(each, new) for each in group] if new else list(group)


def _open_or_held(formula: Formula) -> list[str]:
    """The names of the tensors and parameters that a formula reads."""
    return [*inputs_of(formula.expr), *params_of(formula.expr)]


def renamed(formula: Any, new: Mapping[str, str]) -> Any:
    """The formula with its inputs renamed."""
    tensors = {new.get(name, name): tensor for name, tensor in formula.tensors.items()}
    return replace(formula, expr=renamed_inputs(formula.expr, new), tensors=tensors, predicate=None)
