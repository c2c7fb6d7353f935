"""`CATALOG`, the patterns in reading order: what the gallery shows and what pattern text may name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from .about import about_of
from .listing import FAMILIES


@dataclass(frozen=True)
class Entry:
    """A pattern: `make(...)` makes it, kind is "mask", "score" or "weight", and family the file that defines it.

    example: pattern text of it, "" where it needs a tensor or a table. meaning: one line. picture, order: code of
    what the gallery draws and of the order that it is drawn in, "" for the example in the order of the tokens.
    """

    name: str
    make: Callable[..., Any]
    kind: str
    family: str
    example: str
    meaning: str
    picture: str = ""
    order: str = ""


def public_names(family: str) -> dict[str, Any]:
    """What a family's `__all__` lists, by name."""
    module = import_module(f"{__package__}.{family}")
    return {name: getattr(module, name) for name in module.__all__}


def _catalog() -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for family, kind in FAMILIES.items():
        for name, make in public_names(family).items():
            about = about_of(make)
            if about is not None:
                entries[name] = Entry(
                    name, make, kind, family, about.example, about.meaning, about.picture, about.order
                )
    return entries


CATALOG: Mapping[str, Entry] = _catalog()
"""Every pattern by name, in reading order."""
