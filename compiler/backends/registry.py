"""The backends that come with flexspec."""

from __future__ import annotations

from functools import lru_cache

from flexspec.errors import FlexSpecError, choices
from flexspec.user_line import user_caret

from .base import Backend


@lru_cache(1)
def backends() -> dict[str, Backend]:
    """All backends by name, best first."""
    from .flex import FlexBackend  # each backend's library loads when one is needed, not with the package
    from .reference import ReferenceBackend
    from .triton import TritonBackend

    found: list[Backend] = [FlexBackend(), ReferenceBackend(), TritonBackend()]
    return {backend.name: backend for backend in found}


NAMES = ("auto", "flex", "triton", "reference")


def check_backend(name: str) -> str:
    """FS041 for a name that is no backend."""
    if name not in NAMES:
        message = f"there is no backend {name!r}"
        raise FlexSpecError("FS041", message, fix=f"choose {choices(NAMES)}", where=user_caret())
    return name
