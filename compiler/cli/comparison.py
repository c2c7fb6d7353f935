"""`flexspec check`: two patterns compared, as data and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flexspec as fs
from flexspec.errors import FlexSpecError
from flexspec.mask import Mask

from ..draw import diff as diff_drawing
from ..proofs.diff import Diff
from ..proofs.proof import Proof
from . import values as cli_values


@dataclass(frozen=True)
class Comparison:
    """Two patterns and the proof that they keep the same pairs, or the first pair on which they differ.

    names: the patterns as they were typed. sizes: q_len and kv_len. given: batch, heads and run-time values.
    """

    names: tuple[str, str]
    masks: tuple[Mask, Mask]
    sizes: tuple[int, int]
    given: Mapping[str, Any]
    proof: Proof

    @property
    def equal(self) -> bool:
        return self.proof.holds

    @property
    def pair(self) -> dict[str, int]:
        """The first pair on which they differ."""
        assert self.proof.counterexample is not None
        b, h, q, kv = self.proof.counterexample
        assert kv is not None
        return {"b": b, "h": h, "q": q, "kv": kv}

    @cached_property
    def implications(self) -> tuple[Proof, Proof]:
        """Does the pattern imply the other, and the other the pattern?"""
        a, b = self.masks
        return fs.proofs.implies(a, b, *self.sizes, **self.given), fs.proofs.implies(b, a, *self.sizes, **self.given)

    @property
    def kept_by(self) -> str:
        """The side that keeps the pair."""
        return self.names[0 if self.proof.counterexample == self.implications[0].counterexample else 1]

    @property
    def region(self) -> str:
        """A region around the pair, as `show --region` takes it."""
        return cli_values.region_around(self.pair["q"], self.pair["kv"], *self.sizes)

    @cached_property
    def difference(self) -> Diff:
        """All pairs on which they differ, counted."""
        return fs.diff(*self.masks, *self.sizes, **self.given)

    def facts(self) -> dict[str, Any]:
        """The answer as JSON-able data."""
        (pattern, against), (q_len, kv_len) = self.names, self.sizes
        answer = {"equal": self.equal, "pattern": pattern, "against": against, "q_len": q_len, "kv_len": kv_len}
        if self.equal:
            return answer
        forth, back = self.implications
        sides = {"a": "pattern", "b": "against"}
        regions = [region._asdict() for region in self.difference.regions]
        return answer | {
            "counterexample": self.pair,
            "kept_by": self.kept_by,
            "region": self.region,
            "pattern_implies_against": forth.holds,
            "against_implies_pattern": back.holds,
            "only_pattern": self.difference.only_a,
            "only_against": self.difference.only_b,
            "regions": [region | {"only": sides[region["only"]]} for region in regions],
        }

    def verdict(self) -> str:
        """Equal, or the first pair on which they differ and which side keeps it."""
        size = f"{self.sizes[0]:,} queries x {self.sizes[1]:,} keys"
        if self.equal:
            return f"equal: both keep the same pairs of {size}"
        pair = ", ".join(f"{name}={index:,}" for name, index in self.pair.items())
        a_in_b, b_in_a = ("yes" if proof.holds else "no" for proof in self.implications)
        return (
            f"different at {pair}, of {size}\n"
            f"  kept by      {self.kept_by}\n"
            f"  not kept by  {self.names[1] if self.kept_by == self.names[0] else self.names[0]}\n"
            f"  a implies b: {a_in_b}, b implies a: {b_in_a}"
        )

    def details(self) -> str:
        """How many pairs only one side keeps, where they lie, and the command that draws the first."""
        q_len, kv_len = self.sizes
        size = f"--length {q_len}" + (f" --kv-length {kv_len}" if kv_len != q_len else "")
        width = cli_values.terminal_width()
        drawing = diff_drawing.draw(self.difference, b=self.pair["b"], h=self.pair["h"], width=width)
        see = f"see: flexspec show {cli_values.quoted(self.names[0])} {size} -o mask.png --region {self.region}"
        return "\n".join([*str(self.difference).splitlines()[1:], drawing, see])


def compare(
    pattern: str,
    against: str,
    lengths: tuple[int | None, int | None],
    values: Sequence[str] | None,
    counts: Mapping[str, int | None],
) -> Comparison:
    """Compare two patterns as they are typed.

    lengths: queries and keys, None where left out.
    values: run-time values as words.
    counts: batch and heads.

    Raises FS023 where scores or weights differ, and what reading patterns and proofs raise.
    """
    sides = cli_values.load(pattern), cli_values.load(against)
    q_len, kv_len = cli_values.lengths(*lengths, *sides)
    if (sides[0].scores, sides[0].weight) != (sides[1].scores, sides[1].weight):
        message = "the two sides have different scores or weights, and only masks can be compared"
        raise FlexSpecError("FS023", message, fix="check patterns without scores")
    masks = sides[0].mask, sides[1].mask
    given = {**counts, **cli_values.inputs(values, *masks)}
    sizes = q_len, q_len if kv_len is None else kv_len
    return Comparison((pattern, against), masks, sizes, given, fs.equals(*masks, *sizes, **given))
