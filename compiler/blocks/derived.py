"""What is computed from a block map once and kept as long as the map: index lists, runs on a device, tuned tiles."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Derives:
    """A value that keeps what is derived from it."""

    _derived: dict[tuple[Hashable, ...], Any] = field(default_factory=dict, init=False, repr=False)

    def derive(self, function: Callable[..., Result], *key: Hashable, **given: Any) -> Result:
        """`function(self, *key, **given)`, computed at the first call with this function and key.

        given: what the function needs beside and what does not change its result while the key is the same.
        """
        whole_key = (function, *key)
        if whole_key not in self._derived:
            self._derived[whole_key] = function(self, *key, **given)
        result: Result = self._derived[whole_key]
        return result
