"""Documents as YAML and JSON files: plain data, read within limits and written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

from .errors import FlexSpecError, choices
from .user_line import user_caret

MAX_BYTES = 16 * 2**20
"""Largest file (FS053)."""
MAX_NESTING = 20
"""Deepest nesting of a document (FS053)."""

_SUFFIXES = (".yaml", ".yml", ".json")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def document_path(path: str | os.PathLike[str]) -> Path:
    """The path of a document, its form told by its suffix. FS054."""
    target = Path(path)
    if target.suffix not in _SUFFIXES:
        message = f"`{target.name}` is neither YAML nor JSON by its name"
        raise FlexSpecError("FS054", message, fix=f"end it in {choices(_SUFFIXES)}", where=user_caret())
    return target


def write_document(document: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write plain data as YAML (.yaml, .yml) or JSON (.json): a reader sees the old file or the new one.

    document: mappings, lists, texts and numbers; neither infinities nor nan.
    path: where to write it.

    Raises FS053 (larger than `MAX_BYTES`) and FS054 (another suffix, or a place that cannot be written).
    """
    target = document_path(path)
    if target.suffix == ".json":
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    else:
        text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)
    if len(text.encode()) > MAX_BYTES:
        fix = "make the tensors run-time inputs: fs.Input"
        raise FlexSpecError("FS053", f"the file would be larger than {MAX_BYTES:,} bytes", fix=fix, where=user_caret())
    _replace(target, text)


def _replace(target: Path, text: str) -> None:
    """Write beside the target, then move."""
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


def read_document(path: str | os.PathLike[str]) -> Any:
    """The plain data of a file, its size, nesting and form checked before anything is built.

    Raises FS052 (neither YAML nor JSON, a key twice, an alias), FS053 (larger than `MAX_BYTES`, nested deeper than
    `MAX_NESTING`) and FS054 (another suffix, or a file that cannot be read).
    """
    target = document_path(path)
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
        raise broken("the document", " ".join(str(error).split())) from None


def broken(where: str, message: str) -> FlexSpecError:
    """FS052, with the place in the document."""
    return FlexSpecError("FS052", f"{where}: {message}", where=user_caret())


def _unreadable(target: Path, done: str, error: Exception) -> FlexSpecError:
    reason = getattr(error, "strerror", None) or str(error)
    return FlexSpecError("FS054", f"`{target.name}` cannot be {done}: {reason}", where=user_caret())


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
            raise broken("the document", "anchors and aliases are not read")
        if tag := getattr(event, "tag", None):
            raise broken("the document", f"tags such as {tag} are not read")
        if isinstance(event, yaml.CollectionStartEvent):
            levels.append([isinstance(event, yaml.MappingStartEvent), 0, set()])
            if len(levels) > MAX_NESTING:
                raise _too_deep()
        elif isinstance(event, yaml.CollectionEndEvent):
            levels.pop()
    return yaml.load(text, Loader=_Loader)
