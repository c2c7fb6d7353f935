"""Names in the printed source: the user's and ours never meet.

A user may call a parameter or a tensor anything: `t0`, `torch`, `float`, `lambda`. A language lists what is its own,
which gives way to nobody; the user's names come next and stay as they are where they can; temporaries take the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


class Names:
    """The names of one printed function. What is given decides them all, so equal expressions print alike.

    reserved: the language's words, and all that the source around the expression means by a name. given: the user's.

    >>> names = Names(reserved={"torch", "make"}, given=["torch", "window", "t0"])
    >>> names.of("window"), names.of("torch"), names.temporary(), names.temporary()
    ('window', 'torch_', 't1', 't2')
    """

    def __init__(self, reserved: Iterable[str], given: Iterable[str] = ()) -> None:
        own, given = frozenset(reserved), sorted(set(given))
        self._taken = {*own, *given}
        self._printed = {name: self._other(name) if name in own or not _is_plain(name) else name for name in given}
        self._temporaries = 0

    def of(self, name: str) -> str:
        """The printed name of a given one."""
        return self._printed[name]

    def temporary(self) -> str:
        """A name that nothing has yet."""
        while (name := f"t{self._temporaries}") in self._taken:
            self._temporaries += 1
        self._taken.add(name)
        return name

    def _other(self, name: str) -> str:
        """A free name that is like `name`."""
        stem = re.sub("_+", "_", name).strip("_") if name.isascii() else ""
        stem = stem if stem.isidentifier() else "value"
        number, other = 2, f"{stem}_"
        while other in self._taken:
            number, other = number + 1, f"{stem}_{number}"
        self._taken.add(other)
        return other


def _is_plain(name: str) -> bool:
    """May it stand in any language? Other alphabets may not; underscores in front or in pairs are the language's."""
    return name.isascii() and name.isidentifier() and not name.startswith("_") and "__" not in name
