"""Questions that a mask answers by proof, as methods; the compiler has the proofs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compiler.proofs.diff import Diff
    from .compiler.proofs.proof import Proof


class Questions:
    """What may be asked of a mask: each answer is exact for the lengths given.

    length (or q_len), kv_len: tokens; a canvas' own size where left out, and kv_len defaults to length.
    given: batch and heads, where a mask depends on them, and run-time values by name.
    other: a mask or FlexAttention mask_mod.

    A `Proof` is true when it holds, and has the first counterexample (b, h, q, kv) otherwise.

    Raises FS020 (a value is missing), FS021, FS022, FS023, FS025 (one is unknown or does not fit), FS026 (names
    of the two masks disagree), FS030, FS031, FS032 (lengths, batch and heads, a canvas), FS024 (an index leaves its
    tensor), FS034 (integers past 64 bits), FS035 (a division by zero), and what `from_mask_mod` raises for `other`.
    """

    __slots__ = ()

    def implies(self, other: Callable[..., Any], length: int | None = None, **given: Any) -> Proof:
        """Does `other` keep every pair that this mask keeps? For the arguments see `Questions`.

        >>> import flexspec as fs
        >>> fs.causal_window(1024).implies(fs.causal(), 1_000_000)
        Proof(holds=True, boxes=0)
        """
        return _ask("implies", self, other, length=length, **given)

    def equals(self, other: Callable[..., Any], length: int | None = None, **given: Any) -> Proof:
        """Does `other` keep the same pairs? For the arguments see `Questions`.

        >>> import flexspec as fs
        >>> fs.causal().equals(lambda b, h, q_idx, kv_idx: q_idx > kv_idx, 1_000_000)
        Proof(holds=False, counterexample=(0, 0, 0, 0))
        """
        return _ask("equals", self, other, length=length, **given)

    def is_causal(self, length: int | None = None, **given: Any) -> Proof:
        """Does no query see a later key? For the arguments see `Questions`.

        >>> import flexspec as fs
        >>> fs.causal(offset=2).is_causal(1_000_000)
        Proof(holds=False, counterexample=(0, 0, 0, 1))
        """
        return _ask("is_causal", self, length=length, **given)

    def every_query_attends(self, length: int | None = None, **given: Any) -> Proof:
        """Does every query keep a key? A counterexample is the first that keeps none, with kv None.

        >>> import flexspec as fs
        >>> fs.padding([700]).every_query_attends(1000)
        Proof(holds=False, counterexample=(0, 0, 700, None))
        """
        return _ask("every_query_attends", self, length=length, **given)

    def is_empty(self, length: int | None = None, **given: Any) -> Proof:
        """Does the mask keep no pair at all? A counterexample is the first pair that it keeps.

        >>> import flexspec as fs
        >>> bool((fs.causal() - fs.causal_window(64)).is_empty(64))
        True
        """
        return _ask("is_empty", self, length=length, **given)

    def diff(self, other: Callable[..., Any], length: int | None = None, **given: Any) -> Diff:
        """Where this mask and `other` differ: see `fs.diff`.

        >>> import flexspec as fs
        >>> fs.causal().diff(fs.causal(offset=1), 1000).only_b
        999
        """
        return _ask("diff", self, other, length=length, **given)


def _ask(question: str, *masks: Any, **given: Any) -> Any:
    """A question to the compiler, through the package's one door to it."""
    return getattr(import_module(__package__ or "flexspec"), question)(*masks, **given)


def choose_blocks(mask: Any, order: Any, sizes: Any, values: Any) -> Any:
    """Sizes and values of a mask that chooses blocks by q and k, with the tables of its choice."""
    return import_module(__package__ or "flexspec").resolved(mask, order, sizes, values)
