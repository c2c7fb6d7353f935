"""Specs as files: masks, score mods and attentions in YAML or JSON. Loading reads text, it runs nothing."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .attention import Attention
from .canvas import Canvas
from .errors import FlexSpecError, choices
from .expr import Expr, Input, inputs_of, params_of
from .formula import Formula, Parameter
from .inputs import check_tensor
from .mask import Mask
from .ops import Type
from .score import ScoreMod
from .syntax import parse
from .user_line import user_caret
from .weight import KINDS, Weight

VERSION = 1
MAX_ELEMENTS = 65_536
"""Most elements of a held tensor (FS053)."""
MAX_BYTES = 16 * 2**20
"""Largest file (FS053)."""
MAX_NESTING = 20
"""Deepest nesting of a document (FS053)."""

_SUFFIXES = (".yaml", ".yml", ".json")
_DTYPES = "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64".split()  # noqa: SIM905
_SPECIAL = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z_0-9]*$", max_length=200)]
_Number = bool | int | float | Literal["inf", "-inf", "nan"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Tensor(_Model):
    dtype: Literal[tuple(_DTYPES)]  # type: ignore[valid-type]
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=16)]
    values: Annotated[list[_Number], Field(max_length=MAX_ELEMENTS)]


class _Formula(_Model):
    expr: str
    label: str
    canvas: dict[_Name, Annotated[int, Field(ge=1)]] | None = None
    parameters: dict[_Name, bool | int | float] = {}
    tensors: dict[_Name, _Tensor] = {}


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
    """Write a spec as YAML (.yaml, .yml) or JSON (.json), whole or not at all.

    Held tensors are written with their values. Raises FS023 (no spec), FS053 (a tensor of more than 65,536
    elements), FS054 (another suffix, or a place that cannot be written).
    """
    target = _path(path)
    document: dict[str, Any] = {"version": VERSION}
    if isinstance(spec, Attention):
        scores = [_stored(score) for score in spec.scores]
        document |= {"kind": "attention", "mask": _stored(spec.mask), "scores": scores, "scale": spec.scale}
        document |= {"weight": {"kind": spec.weight.kind} | _stored(spec.weight)} if spec.weight else {}
    elif isinstance(spec, (Mask, ScoreMod)):
        document |= {"kind": "mask" if isinstance(spec, Mask) else "score"} | _stored(spec)
    else:
        message = f"a spec is a Mask, a ScoreMod or an Attention, got {type(spec).__name__}"
        raise FlexSpecError("FS023", message, where=user_caret())
    if target.suffix == ".json":
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    else:
        text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)
    if len(text.encode()) > MAX_BYTES:
        fix = "make the tensors run-time inputs: fs.Input"
        raise FlexSpecError("FS053", f"the file would be larger than {MAX_BYTES:,} bytes", fix=fix, where=user_caret())
    _write(target, text)


def _stored(formula: Formula) -> dict[str, Any]:
    nodes = inputs_of(formula.expr)
    held = {name: check_tensor(nodes[name], t) for name, t in formula.tensors.items() if name in nodes}
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
    stored: dict[str, Any] = {"expr": str(formula.expr), "label": formula.label}
    optional = {
        "canvas": formula.canvas.lengths if formula.canvas else None,
        "parameters": formula.defaults,
        "tensors": tensors,
    }
    return stored | {key: value for key, value in optional.items() if value}


def _portable(value: Any) -> Any:
    """Infinities and nan as words: JSON has no numbers for them."""
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def load(path: str | os.PathLike[str]) -> Mask | ScoreMod | Attention:
    """Read a spec that `save` wrote. Raises FS052 (broken, with the place in the document), FS053, FS054."""
    target = _path(path)
    document = _read(target)
    whole = isinstance(document, dict) and document.get("kind") == "attention"
    try:
        model = (_Whole if whole else _One).model_validate(document)
    except ValidationError as error:
        found = error.errors()[0]
        where = ".".join(str(part) for part in found["loc"]) or "the document"
        raise _broken(where, found["msg"][0].lower() + found["msg"][1:]) from None
    if isinstance(model, _One):
        made: Mask | ScoreMod = _made(model, Mask if model.kind == "mask" else ScoreMod, "")
        return made
    scores = [_made(item, ScoreMod, f"scores.{i}.") for i, item in enumerate(model.scores)]
    weight = _made(model.weight, Weight, "weight.").of_kind(model.weight.kind) if model.weight else None
    return _at("scale", lambda: Attention(_made(model.mask, Mask, "mask."), scores, model.scale, weight))


def _made(model: _Formula, kind: type[Any], at: str) -> Any:
    """The formula of a checked model; FS052 where its parts do not fit each other."""
    expr = _at(f"{at}expr", lambda: parse(model.expr))
    if (expr.type is Type.BOOL) != (kind is Mask) or expr.type is Type.INT:
        wanted = "a mask" if kind is Mask else "a score" if kind is ScoreMod else "a number"
        raise _broken(f"{at}expr", f"this is {expr.type.text}, not {wanted}")
    sides = model.canvas or {}
    canvas = _at(f"{at}canvas", lambda: Canvas(**sides)) if sides else None
    _check_names(expr, canvas, kind, at)
    nodes = inputs_of(expr)
    tensors: dict[str, torch.Tensor] = {}
    for name, item in model.tensors.items():
        place = f"{at}tensors.{name}"
        if name not in nodes:
            raise _broken(place, "the expression reads no such tensor")
        if math.prod(item.shape) != len(item.values):
            raise _broken(f"{place}.shape", f"{item.shape} does not hold {len(item.values)} values")
        if len(item.shape) != len(nodes[name].dims):
            dims = ", ".join(nodes[name].dims)
            raise _broken(f"{place}.shape", f"{item.shape} does not fit the dims [{dims}] of the expression")
        tensors[name] = _at(place, partial(_fitting, nodes[name], item))
    names = {**dict.fromkeys(params_of(expr)), **model.parameters}
    for name in names.keys() & nodes.keys():
        raise _broken(f"{at}parameters.{name}", "this is a tensor of the expression")
    parameters = {name: Parameter(default) for name, default in names.items()}
    return _at(f"{at}expr", lambda: kind(expr, model.label, tensors, parameters, canvas))


def _check_names(expr: Expr, canvas: Canvas | None, kind: type[Any], at: str) -> None:
    for name in sorted(expr.names):
        _, dot, axis = name.partition(".")
        if dot and axis not in (canvas.names if canvas else ()):
            has = f"the axes {choices(canvas.names)}" if canvas else "no axes: there is none"
            raise _broken(f"{at}canvas", f"the expression uses `{name}`; the canvas has {has}")
        if name == "score" and kind is Mask:
            raise _broken(f"{at}expr", "a mask cannot depend on the score")
        if kind is Weight and name.partition(".")[0] in ("b", "q", "kv", "score"):
            raise _broken(f"{at}expr", f"a weight's number cannot depend on `{name}`")


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


def _broken(where: str, message: str) -> FlexSpecError:
    return FlexSpecError("FS052", f"{where}: {message}", where=user_caret())


def _at(where: str, make: Callable[[], Any]) -> Any:
    """`make()`, its error with the place in the document in front."""
    try:
        return make()
    except FlexSpecError as error:
        if error.code in ("FS052", "FS053"):
            raise
        broken = f"{where}: {error.message} [{error.code}]"
        raise FlexSpecError("FS052", broken, fix=error.fix, where=error.where or user_caret()) from None


def _path(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.suffix not in _SUFFIXES:
        message = f"`{target.name}` is neither YAML nor JSON by its name"
        raise FlexSpecError("FS054", message, fix=f"end it in {choices(_SUFFIXES)}", where=user_caret())
    return target


def _write(target: Path, text: str) -> None:
    """Write beside the target, then move: a reader sees the old file or the new one."""
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise _unreadable(target, "written", error) from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except OSError as error:
        os.unlink(temporary)
        raise _unreadable(target, "written", error) from None


def _unreadable(target: Path, done: str, error: Exception) -> FlexSpecError:
    reason = getattr(error, "strerror", None) or str(error)
    return FlexSpecError("FS054", f"`{target.name}` cannot be {done}: {reason}", where=user_caret())


def _read(target: Path) -> Any:
    """The document of a file, its size, nesting and form checked before anything is built."""
    try:
        with open(target, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            message = f"`{target.name}` is larger than {MAX_BYTES:,} bytes"
            raise FlexSpecError("FS053", message, where=user_caret())
        text = data.decode("utf-8")
        return _read_json(text) if target.suffix == ".json" else _read_yaml(text)
    except FlexSpecError:
        raise
    except RecursionError:
        raise _too_deep() from None
    except (OSError, UnicodeError) as error:
        raise _unreadable(target, "read", error) from None
    except (ValueError, yaml.YAMLError) as error:
        raise _broken("the document", " ".join(str(error).split())) from None


def _too_deep() -> FlexSpecError:
    return FlexSpecError("FS053", f"the document nests deeper than {MAX_NESTING}", where=user_caret())


def _read_json(text: str) -> Any:
    depth, inside, escaped = 0, False, False
    for letter in text:
        if inside:
            inside = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
        elif letter == '"':
            inside = True
        elif letter in "[{":
            depth += 1
            if depth > MAX_NESTING:
                raise _too_deep()
        elif letter in "]}":
            depth -= 1

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(pairs) > len(dict(pairs)):
            raise ValueError("a key is given twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


def _read_yaml(text: str) -> Any:
    levels: list[list[Any]] = []  # of each open collection: is it a mapping, nodes so far, keys
    for event in yaml.parse(text, Loader=_Loader):
        if levels and isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            mapping, count, keys = levels[-1]
            levels[-1][1] = count + 1
            if mapping and count % 2 == 0 and isinstance(event, yaml.ScalarEvent):
                if event.value in keys:
                    raise ValueError(f"the key `{event.value}` is given twice")
                keys.add(event.value)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _broken("the document", "anchors and aliases are not read")
        if tag := getattr(event, "tag", None):
            raise _broken("the document", f"tags such as {tag} are not read")
        if isinstance(event, yaml.CollectionStartEvent):
            levels.append([isinstance(event, yaml.MappingStartEvent), 0, set()])
            if len(levels) > MAX_NESTING:
                raise _too_deep()
        elif isinstance(event, yaml.CollectionEndEvent):
            levels.pop()
    return yaml.load(text, Loader=_Loader)
