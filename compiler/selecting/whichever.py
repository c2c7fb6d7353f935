"""Questions about masks whose choice is not known: what holds whichever blocks are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from itertools import product
from typing import Any

import torch

from flexspec.errors import FlexSpecError
from flexspec.expr import Expr, apply, inputs_of, params_of
from flexspec.inputs import Sizes
from flexspec.mask import Mask
from flexspec.selection import Selection
from flexspec.user_line import user_caret

from ..blocks.runs import BlockKind
from .choices import Choices, only_adds, opened


class Whichever:
    """The selections of a mask that no value decides. Each pair is asked on its own, and a block may be chosen or not,
    but for forced ones: so every answer is that of the mask with all blocks chosen, or with the forced ones alone.
    """

    def __init__(self, mask: Mask, given: Mapping[str, Any], sizes: Sizes) -> None:
        self.mask, self.sizes = mask, sizes
        self.choices = Choices(mask)
        self.given = dict(given)
        known = {*given, *mask.tensors}
        by_scores = {name: each for name, each in self.choices.selections.items() if name not in known}
        self.open = {name: each for name, each in by_scores.items() if each.given is None or each.given not in known}

    def __bool__(self) -> bool:
        return bool(self.open)

    def values(self, exact: bool = True) -> dict[str, Any]:
        """The given values, and if exact a table of the forced blocks for each open selection that has any."""
        forced = {name: each for name, each in self.open.items() if exact and each.forced is not None}
        return self.choices.beside(self.given) | {name: self._forced(each) for name, each in forced.items()}

    def _forced(self, selection: Selection) -> torch.Tensor:
        cpu = torch.device("cpu")
        kinds = self.choices.kinds(selection.forced, selection.block, self.sizes, self.given, cpu)
        return kinds != BlockKind.EMPTY

    def breaks(self, expr: Expr, exact: bool = True) -> Expr:
        """Where an expression over the mask's names keeps a pair for some choice; if not exact, in more places too."""
        names = [*self.open]
        every = [dict(zip(names, each, strict=True)) for each in product((True, False), repeat=len(names))]
        return reduce(lambda a, b: apply("or", a, b), [opened(expr, self._told(each, exact)) for each in every])

    def least(self, expr: Expr, exact: bool = True) -> Expr:
        """What a mask keeps for every choice; if not exact, perhaps less. FS020 where choosing more keeps less."""
        if not only_adds(expr, self.open):
            message = f"`{self.mask.label}` keeps fewer pairs where more blocks are chosen"
            raise FlexSpecError("FS020", message, fix="give q=... and k=...", where=user_caret())
        forced = {} if exact else {name: each.forced.flat for name, each in self.open.items() if self._plain(each)}
        return opened(expr, self._told(dict.fromkeys(self.open, False), exact) | forced)

    def _plain(self, selection: Selection) -> bool:
        """May the forced mask stand in the mask's expression? It reads no tensors, and only numbers of the mask."""
        forced = selection.forced
        if forced is None or inputs_of(forced.expr) or forced.on is not None:
            return False
        mine, own = self.mask.parameters, forced.defaults
        return all(name in mine and mine[name].default == own.get(name) for name in params_of(forced.expr))

    def _told(self, choices: Mapping[str, bool], exact: bool) -> dict[str, Any]:
        """Without the selections of which the table of forced blocks is read."""
        return {name: taken for name, taken in choices.items() if taken or not exact or self.open[name].forced is None}

    def reaches_each_query(self) -> bool:
        """Does some selection give each query a key, whichever blocks it chooses? It does where its rule chooses a
        block of each row, and in any block that may be chosen all queries of the row keep a key.
        """
        return any(self._reaches_each(name, each) for name, each in self.open.items())

    def _reaches_each(self, name: str, selection: Selection) -> bool:
        rule = selection.rule
        if rule is None or rule.kind == "threshold" or rule.over != "row" or selection.given or selection.function:
            return False
        if selection.complete or selection.similarity is not None or self.choices.turned[name] != {False}:
            return False
        if rule.kind == "top_p" and not selection.softmax:  # scores below 0 may have no sum to reach
            return False
        alone = opened(self.mask.expr, dict.fromkeys(self.choices.selections, False) | {name: True})
        masks = self.choices.rest, replace(self.choices.rest, expr=alone)
        may, kept = (
            self.choices.kinds(each, selection.block, self.sizes, self.given, torch.device("cpu")) for each in masks
        )
        may = may != BlockKind.EMPTY
        may = may if selection.shared == "head" else may.any(1, keepdim=True)
        enough = kept != BlockKind.EMPTY if selection.block[0] == 1 else kept == BlockKind.FULL
        return bool((enough | ~may).all()) and bool(may.any(-1).all())
