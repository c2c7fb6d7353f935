"""Questions about masks that have exact answers, as `fs.proofs`. The compiler answers them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compiler.proofs.diff import Diff, diff
    from .compiler.proofs.proof import Proof, equals, every_query_attends, implies, is_causal, is_empty
    from .compiler.proofs.reach import Reach, reach

__all__ = [
    "Diff",
    "Proof",
    "Reach",
    "diff",
    "equals",
    "every_query_attends",
    "implies",
    "is_causal",
    "is_empty",
    "reach",
]


def __getattr__(name: str) -> Any:
    """A name through the package's one door to the compiler."""
    if name in __all__:
        return getattr(import_module(__package__ or "flexspec"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
