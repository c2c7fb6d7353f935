"""What stands beside a pattern's definition: an example, its meaning in one line, and what the gallery draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Maker = TypeVar("Maker", bound=Callable[..., Any])


@dataclass(frozen=True)
class About:
    """What people read of a pattern.

    example: pattern text, "" where the pattern needs a tensor or a table. meaning: one line. picture: Python code of
    512 tokens that the gallery draws in the place of the example. order: code of the order that it is drawn in.
    """

    example: str
    meaning: str
    picture: str = ""
    order: str = ""


def pattern(example: str, meaning: str, /, *, picture: str = "", order: str = "") -> Callable[[Maker], Maker]:
    """Put an `About` beside a function that defines a pattern, nearest to it: `@mask` and `@score` stand above.

    `listing` reads example and meaning without running anything: write them as plain literals.
    """

    def beside(make: Maker) -> Maker:
        make.__pattern__ = About(example, meaning, picture, order)  # type: ignore[attr-defined]
        return make

    return beside


def about_of(make: Any) -> About | None:
    """What stands beside a definition, or None where it is no pattern."""
    predicate = getattr(make, "predicate", None)
    return getattr(make if predicate is None else predicate.fn, "__pattern__", None)
