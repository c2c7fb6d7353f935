"""Specs as files: masks, score mods and attentions in YAML or JSON. Loading reads text, it runs nothing."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .attention import Attention
from .canvas import AnyCanvas, Canvas, CanvasPair
from .errors import FlexSpecError, choices
from .expr import Expr, Input, inputs_of, params_of, renamed_inputs
from .files import broken, read_document
from .formula import MAX_ELEMENTS, VERSION
from .inputs import check_tensor
from .mask import Mask
from .ops import Type
from .predicate import Parameter
from .score import ScoreMod
from .selecting import checked
from .selection import Selection, rule_of
from .syntax import parse
from .user_line import user_caret
from .weight import KINDS, Weight

_DTYPES = "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64".split()  # noqa: SIM905
_SPECIAL = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z_0-9]*$", max_length=200)]
_Number = bool | int | float | Literal["inf", "-inf", "nan"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Tensor(_Model):
    dtype: Literal[tuple(_DTYPES)]  # type: ignore[valid-type]
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=16)]
    values: Annotated[list[_Number], Field(max_length=MAX_ELEMENTS)]


_Lengths = dict[_Name, Annotated[int, Field(ge=1)]]


class _Rule(_Model):
    kind: Literal["top_k", "top_p", "threshold", "share"]
    amount: float | int
    crossing: bool = True
    over: str = "row"


class _Selection(_Model):
    block: Annotated[list[int], Field(min_length=2, max_length=2)]
    rule: _Rule | None = None
    summary: str = "mean"
    scale: float | None = None
    softmax: bool = True
    stride: int | None = None
    similarity: float | None = None
    complete: bool = False
    shared: str = "head"
    forced: _Formula | None = None
    counted: bool = False
    given: _Name | None = None


class _Formula(_Model):
    expr: str
    label: str
    canvas: _Lengths | None = None
    canvases: dict[Literal["q", "kv"], _Lengths] | None = None
    parameters: dict[_Name, bool | int | float] = {}
    tensors: dict[_Name, _Tensor] = {}
    selections: dict[_Name, _Selection] = {}


class _Document(_Model):
    version: Annotated[int, Field(ge=VERSION, le=VERSION)]


class _One(_Document, _Formula):
    kind: Literal["mask", "score"]


class _Weight(_Formula):
    kind: Literal[tuple(KINDS)]  # type: ignore[valid-type]


class _Whole(_Document):
    kind: Literal["attention"]
    mask: _Formula
    scores: list[_Formula] = []
    scale: float | int | None = None
    weight: _Weight | None = None


def save(spec: Mask | ScoreMod | Attention, path: str | os.PathLike[str]) -> None:
    """Write a spec as YAML (.yaml, .yml) or JSON (.json), whole or not at all: `spec.save(path)`.

    spec: held tensors are written with their values.
    path: where to write it.

    Raises FS023 (no spec), FS053 (a tensor of more than 65,536 elements, a file of more than 16 MiB) and FS054
    (another suffix, or a place that cannot be written).
    """
    if not isinstance(spec, (Mask, ScoreMod, Attention)):
        message = f"a spec is a Mask, a ScoreMod or an Attention, got {type(spec).__name__}"
        raise FlexSpecError("FS023", message, where=user_caret())
    spec.save(path)


def load(path: str | os.PathLike[str]) -> Mask | ScoreMod | Attention:
    """Read a spec that `save` wrote. It reads text and runs nothing.

    path: of a .yaml, .yml or .json file.

    Raises FS052 (broken, with the place in the document), FS053 (too large, or nested too deep) and FS054 (another
    suffix, or a file that cannot be read).

    >>> import tempfile, flexspec as fs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fs.causal_window(64).save(f"{folder}/window.yaml")
    ...     fs.load(f"{folder}/window.yaml")
    causal_window(window=64)
    """
    document = read_document(path)
    whole = isinstance(document, dict) and document.get("kind") == "attention"
    try:
        model = (_Whole if whole else _One).model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise broken(where, first["msg"][0].lower() + first["msg"][1:]) from None
    if isinstance(model, _One):
        formula: Mask | ScoreMod = _formula(model, Mask if model.kind == "mask" else ScoreMod, "")
        return formula
    scores = [_formula(item, ScoreMod, f"scores.{i}.") for i, item in enumerate(model.scores)]
    weight = _formula(model.weight, Weight, "weight.").of_kind(model.weight.kind) if model.weight else None
    return _placed("scale", lambda: Attention(_formula(model.mask, Mask, "mask."), scores, model.scale, weight))


def _formula(model: _Formula, kind: type[Any], inside: str) -> Any:
    """The formula of a checked model, which lies `inside` of the document; FS052 where its parts do not fit."""
    expr = _placed(f"{inside}expr", lambda: parse(model.expr))
    if (expr.type is Type.BOOL) != (kind is Mask) or expr.type is Type.INT:
        wanted = "a mask" if kind is Mask else "a score" if kind is ScoreMod else "a number"
        raise broken(f"{inside}expr", f"this is {expr.type.text}, not {wanted}")
    sides = model.canvas or {}
    canvas = _placed(f"{inside}canvas", lambda: Canvas(**sides)) if sides else None
    pair = _pair(model.canvases or {}, inside)
    if canvas and pair:
        raise broken(f"{inside}canvases", "there is one canvas for both sides already")
    _check_names(expr, pair or canvas, kind, inside)
    nodes = inputs_of(expr)
    tensors: dict[str, torch.Tensor] = {}
    for name, item in model.tensors.items():
        place = f"{inside}tensors.{name}"
        if name not in nodes:
            raise broken(place, "the expression reads no such tensor")
        if math.prod(item.shape) != len(item.values):
            raise broken(f"{place}.shape", f"{item.shape} does not hold {len(item.values)} values")
        if len(item.shape) != len(nodes[name].dims):
            dims = ", ".join(nodes[name].dims)
            raise broken(f"{place}.shape", f"{item.shape} does not fit the dims [{dims}] of the expression")
        tensors[name] = _placed(place, partial(_fitting, nodes[name], item))
    names = {**dict.fromkeys(params_of(expr)), **model.parameters}
    for name in names.keys() & nodes.keys():
        raise broken(f"{inside}parameters.{name}", "this is a tensor of the expression")
    parameters = {name: Parameter(default) for name, default in names.items()}
    selections, expr = _selections(model, expr, inside)
    held = (tensors, parameters, canvas, None, pair, selections)
    return _placed(f"{inside}expr", lambda: kind(expr, model.label, *held))


def _selections(model: _Formula, expr: Expr, inside: str) -> tuple[dict[str, Selection], Expr]:
    """The selections of a model, and the expression that reads them by their names."""
    found, names = {}, {}
    for name, item in model.selections.items():
        place = f"{inside}selections.{name}"
        node = inputs_of(expr).get(name)
        if node is None or node.type is not Type.BOOL or len(node.dims) != 4:
            raise broken(place, "the expression reads no such table of blocks")
        said = item.model_dump(exclude={"rule", "forced"}) | {"block": tuple(item.block)}
        forced = None if item.forced is None else _formula(item.forced, Mask, f"{place}.forced.")
        rule = None if item.rule is None else _placed(place, partial(rule_of, **item.rule.model_dump()))
        made = _placed(place, partial(checked, **said, rule=rule, forced=forced))
        found[made.name], names[name] = made, made.name
    return found, renamed_inputs(expr, names)


def _pair(sides: dict[Any, dict[str, int]], inside: str) -> CanvasPair | None:
    """The canvases of the sides, of those that have one."""
    each = {side: _placed(f"{inside}canvases.{side}", partial(Canvas, **lengths)) for side, lengths in sides.items()}
    return CanvasPair(each.get("q"), each.get("kv")) if each else None


def _check_names(expr: Expr, canvas: AnyCanvas | None, kind: type[Any], inside: str) -> None:
    for name in sorted(expr.names):
        side, dot, axis = name.partition(".")
        on = canvas.side(side) if canvas else None
        if dot and axis not in (*(on.names if on else ()), "memory"):
            has = f"the axes {choices(on.names)}" if on else "no axes: there is none"
            raise broken(f"{inside}canvas", f"the expression uses `{name}`; the canvas has {has}")
        if name == "score" and kind is Mask:
            raise broken(f"{inside}expr", "a mask cannot depend on the score")
        if kind is Weight and name.partition(".")[0] in ("b", "q", "kv", "score"):
            raise broken(f"{inside}expr", f"a weight's number cannot depend on `{name}`")


def _fitting(node: Input, item: _Tensor) -> torch.Tensor:
    return check_tensor(node, _tensor(item))


def _tensor(item: _Tensor) -> torch.Tensor:
    values = [_SPECIAL.get(value, value) if isinstance(value, str) else value for value in item.values]
    legal = {"bool": (bool,), "f": (int, float)}.get("f" if "float" in item.dtype else item.dtype, (int,))
    wrong = next((v for v in values if not isinstance(v, legal) or isinstance(v, bool) != (bool in legal)), None)
    if wrong is not None:
        raise FlexSpecError("FS023", f"{wrong!r} is no {item.dtype}")
    dtype = getattr(torch, item.dtype)
    if "int" in item.dtype:
        limits = torch.iinfo(dtype)
        wrong = next((v for v in values if not limits.min <= v <= limits.max), None)
        if wrong is not None:
            raise FlexSpecError("FS023", f"{wrong} does not fit {item.dtype}")
    return torch.tensor(values, dtype=dtype).reshape(item.shape)


def _placed(where: str, make: Callable[[], Any]) -> Any:
    """`make()`, its error with the place in the document in front."""
    try:
        return make()
    except FlexSpecError as error:
        if error.code in ("FS052", "FS053"):
            raise
        broken = f"{where}: {error.message} [{error.code}]"
        raise FlexSpecError("FS052", broken, fix=error.fix, where=error.where or user_caret()) from None
