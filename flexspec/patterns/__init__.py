"""The patterns that ship with flexspec, one family a file, and `CATALOG`, their list in reading order.

All families are imported at the first use of any name, and not before: `listing` needs no torch. A new pattern is a
definition with `@pattern(example, meaning)` and its name in the file's `__all__`; a new family is a line in
`listing.FAMILIES`, and what type checkers read of it below.
"""

# ruff: noqa: F403 - type checkers read what __getattr__ gives

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import documents, grid, heads, mixed, scores, sequence, tokens, video, weights
    from .catalog import CATALOG, Entry
    from .documents import *
    from .grid import *
    from .heads import *
    from .mixed import *
    from .scores import *
    from .sequence import *
    from .tokens import *
    from .video import *
    from .weights import *

    __all__ = ["CATALOG", "Entry"]
    __all__ += documents.__all__
    __all__ += grid.__all__
    __all__ += heads.__all__
    __all__ += mixed.__all__
    __all__ += scores.__all__
    __all__ += sequence.__all__
    __all__ += tokens.__all__
    __all__ += video.__all__
    __all__ += weights.__all__
else:

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
