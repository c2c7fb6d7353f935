"""What the command line's words mean: patterns from text and files, lengths, orders, values, regions."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import flexspec as fs
from flexspec.attention import as_attention
from flexspec.canvas import AnyCanvas, CanvasPair
from flexspec.errors import FlexSpecError, choices
from flexspec.expr import inputs_of
from flexspec.formula import Formula
from flexspec.order import Order
from flexspec.patterns import CATALOG
from flexspec.spec import load as load_spec
from flexspec.text import parse_order, parse_pattern
from flexspec.user_line import Place

from .arrays import number, tensor_of

DIGITS = "[0-9]{1,19}"
"""An integer without a sign that nearly fits 64 bits: what is larger is no size of anything."""
AROUND = 64  # tokens on each side of a counterexample in the region that is suggested


def load(text: str, catalog: Mapping[str, Any] = CATALOG) -> fs.Attention:
    """A pattern from text (over a catalog), a spec file or `file.py:name`. FS023, FS050 to FS054, those of its file."""
    named = re.fullmatch(r"(?P<path>.+\.py)(?::(?P<name>\w*))?", text)
    if named:
        return as_attention(_object_in(Path(named["path"]), named["name"] or ""))
    if Path(text).suffix.lower() in (".yaml", ".yml", ".json"):
        return as_attention(load_spec(text))
    return as_attention(parse_pattern(text, catalog))


def formulas(attention: fs.Attention) -> tuple[Formula, ...]:
    """Its mask, its scores and its weight."""
    return attention.mask, *attention.scores, *([attention.weight] if attention.weight else [])


def _object_in(path: Path, name: str) -> Any:
    module = _run(path)
    if name and hasattr(module, name):
        return getattr(module, name)
    kinds = (fs.Mask, fs.ScoreMod, fs.Attention)
    own = [
        key
        for key, value in vars(module).items()
        if isinstance(value, kinds) or getattr(value, "__module__", None) == module.__name__ and callable(value)
    ]
    message = f"{path} has no `{name}`" if name else f"{path} is named without one of its patterns"
    raise FlexSpecError("FS051", message, fix=f"give {path}:NAME with {choices(own)}")


def _run(path: Path) -> ModuleType:
    """The user's own file as a module. FS054 where it is not there, FS052 where it raises."""
    if not os.path.isfile(path):  # False where Path.is_file raises, as of a name that is too long
        raise FlexSpecError("FS054", f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"_of_the_user_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except FlexSpecError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too, and what else a file may raise
        message = f"{path} stopped with {type(error).__name__}: {error}"
        raise FlexSpecError("FS052", message, where=_line_of(error, path)) from None
    finally:
        sys.path.pop(0)
    return module


def _line_of(error: BaseException, path: Path) -> str | None:
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).resolve() == path.resolve():
            line = trace.tb_lineno
        trace = trace.tb_next
    return Place(str(path), line, 0, line, 10_000).caret() if line else None


def lengths(length: int | None, kv_length: int | None, *attentions: fs.Attention) -> tuple[int, int | None]:
    """Query and key lengths; those of the canvas, or of each side's, where none is given. FS020."""
    on = _on(*attentions)
    q_canvas = on.side("q") if on else None
    if length is None and q_canvas is None:
        raise FlexSpecError("FS020", "the length is not given", fix="add --length 4096")
    if kv_length is None and isinstance(on, CanvasPair) and on.kv is not None:
        kv_length = on.kv.size
    return (length if length is not None else q_canvas.size if q_canvas else 0), kv_length


def _on(*attentions: fs.Attention) -> AnyCanvas | None:
    every = (each.on for attention in attentions for each in formulas(attention))
    return next((canvas for canvas in every if canvas is not None), None)


def block_size(text: str) -> int | tuple[int, int]:
    """`128` or `128x64`. FS030."""
    sides = re.fullmatch(rf"({DIGITS})(?:\s*[x×,]\s*({DIGITS}))?", text.strip())
    if not sides:
        raise FlexSpecError("FS030", f"the block size is {text!r}", fix="give --block-size 128 or 128x64")
    return (int(sides[1]), int(sides[2])) if sides[2] else int(sides[1])


def dtype(text: str) -> Any:
    """`bfloat16` as torch's dtype. FS023."""
    import torch

    names = ("bfloat16", "float16", "float32")
    if text not in names:
        raise FlexSpecError("FS023", f"the dtype is {text!r}", fix=f"choose {choices(names)}")
    return getattr(torch, text)


def order(text: str | None, attention: fs.Attention) -> Order | None:
    """The order that the text says of the pattern's canvases. FS033, FS050, FS051."""
    return None if text is None else parse_order(text, _on(attention))


def region(text: str) -> tuple[int, int, int, int]:
    """`0:512,1024:1536` as (q_start, q_stop, kv_start, kv_stop). FS050."""
    ends = re.fullmatch(rf"\s*({DIGITS}):({DIGITS})\s*,\s*({DIGITS}):({DIGITS})\s*", text.replace("_", ""))
    if not ends:
        message = f"the region {text!r} cannot be read"
        raise FlexSpecError("FS050", message, fix="give queries and keys, e.g. --region 0:512,1024:1536")
    q_start, q_stop, kv_start, kv_stop = (int(part) for part in ends.groups())
    return q_start, q_stop, kv_start, kv_stop


def query(text: str) -> int | dict[str, int]:
    """A query's coordinates `t=2,h=3,w=5`, or its logical position `300`. FS050."""
    plain = text.replace("_", "").replace(" ", "")
    if re.fullmatch(f"-?{DIGITS}", plain):
        return int(plain)
    parts = [re.fullmatch(rf"(\w+)=(-?{DIGITS})", part) for part in plain.split(",")]
    place = {part[1]: int(part[2]) for part in parts if part}
    if len(place) < len(parts):
        message = f"the query {text!r} cannot be read"
        raise FlexSpecError("FS050", message, fix="name each axis once, e.g. --query t=2,h=3,w=5, or give a position")
    return place


def region_around(q: int, kv: int, q_len: int, kv_len: int) -> str:
    """A region with the pair (q, kv) in its middle, as `--region` takes it."""
    sides = ((q, q_len), (kv, kv_len))
    return ",".join(f"{max(0, index - AROUND)}:{min(length, index + AROUND)}" for index, length in sides)


def inputs(texts: Sequence[str] | None, *read_by: Formula) -> dict[str, Any]:
    """Run-time values from `name=value` words, as the tensors and numbers that are read. FS023, FS050."""
    nodes = {name: node for formula in read_by for name, node in inputs_of(formula.expr).items()}
    given: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier() or not value.strip():
            raise FlexSpecError("FS050", f"{text!r} is no value", fix="give -p window=512 or -p document_id=0,0,1")
        node = nodes.get(name.strip())
        given[name.strip()] = tensor_of(node, value) if node else number(name, value)
    return given


def terminal_width() -> int:
    """Columns to draw in, at most 100."""
    return min(100, shutil.get_terminal_size((72, 24)).columns)


def quoted(text: str) -> str:
    """A word as the shell takes it."""
    return shlex.quote(text)
