"""The patterns that ship with flexspec, one family a file, and `CATALOG`, their list in reading order.

All families are imported at the first use of any name, and not before: `listing` needs no torch. A new pattern is a
definition with `@pattern(example, meaning)` and its name in the file's `__all__`; a new family is a line in
`listing.FAMILIES` and in `__init__.pyi`, which type checkers read.
"""

from __future__ import annotations

from importlib import import_module


def __getattr__(name: str) -> object:
    if name == "__all__" or not name.startswith("_"):
        catalog = import_module("flexspec.patterns.catalog")
        names = {"CATALOG": catalog.CATALOG, "Entry": catalog.Entry}
        for family in catalog.FAMILIES:
            names |= catalog.public_names(family)
        globals().update(names, __all__=sorted(names))
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
