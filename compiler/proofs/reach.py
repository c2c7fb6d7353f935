"""Receptive fields: which keys can influence which queries after several layers, by blocks, between two bounds.

Influence flows along kept pairs, and along the residual stream: a token always influences itself. A layer is then a
relation on tokens (`q` sees `kv`, or `q == kv`), and layers compose as boolean matrices do. What is known of a relation
by blocks is kept as packed bits, and a product costs two operations per run of blocks and row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from flexspec.errors import FlexSpecError
from flexspec.expr import Expr, apply
from flexspec.inputs import check_length
from flexspec.mask import Mask, from_mask_mod
from flexspec.user_line import user_caret

from ..blocks.block_map import BlockMap
from ..blocks.classify import classify
from ..blocks.tensor_ranges import TensorRanges
from ..evaluation.points import Array
from ..maps import block_map
from ..simplify.rules import simplify
from .relation import Relation, identity, relation, unpack

MOST_BLOCKS = 1 << 13
"""Most blocks on a side: their relation fills 8 MiB of bits."""
NEVER = np.uint16(0xFFFF)


@dataclass(frozen=True, eq=False)
class Reach:
    """Which keys can influence which queries, layer by layer. Made by `fs.reach`.

    possible: uint16 [blocks, blocks], the first layer after which some key of a block may influence some query of
    another (`NEVER` where not in `layers` layers); before it surely none does. sure: the same for "every key surely
    influences every query". Rows are blocks of queries. With `block_size=1` both are the same, and exact.
    layers_to_full: (at least, at most) so many layers until every query sees itself and everything before it. At least
    None: never. At most None: not to be told from blocks of this size; take a smaller block_size.
    """

    label: str
    length: int
    block_size: int
    layers: int
    possible: Array
    sure: Array
    layers_to_full: tuple[int | None, int | None]

    def outer(self, layer: int | None = None) -> torch.Tensor:
        """bool [blocks, blocks]: may some key of a block influence some query? layer: 0 to `layers`. FS030."""
        return torch.from_numpy(self.possible <= self._layer(layer))

    def inner(self, layer: int | None = None) -> torch.Tensor:
        """bool [blocks, blocks]: does every key of a block surely influence every query? FS030."""
        return torch.from_numpy(self.sure <= self._layer(layer))

    def fraction(self, layer: int | None = None) -> tuple[float, float]:
        """The share of all (query, key) pairs with an influence after `layer` layers: at least, at most. FS030.

        Of a causal mask it ends near one half: nothing sees ahead.
        """
        least, most = self._pairs[:, self._layer(layer)]
        return float(least / self.length**2), float(most / self.length**2)

    def last_query(self, layer: int | None = None) -> tuple[int, int]:
        """How many keys influence the last query after `layer` layers: at least, at most. FS030."""
        sizes = self._sizes
        sure, possible = (first[-1] <= self._layer(layer) for first in (self.sure, self.possible))
        return int(sizes[sure].sum()) + int(not sure[-1]), int(sizes[possible].sum())

    def _layer(self, layer: int | None) -> int:
        if layer is not None and not 0 <= layer <= self.layers:
            message = f"layer is {layer}; the reach is known after 0 to {self.layers} layers"
            raise FlexSpecError("FS030", message, fix=f"give layers={layer} to fs.reach", where=user_caret())
        return self.layers if layer is None else layer

    @cached_property
    def _sizes(self) -> Array:
        blocks = len(self.possible)
        return np.minimum(self.block_size, self.length - self.block_size * np.arange(blocks))

    @cached_property
    def _pairs(self) -> Array:
        """float64 [2, layers + 1]: pairs with an influence, at least and at most."""
        weights = np.multiply.outer(self._sizes, self._sizes)
        # A token always sees itself, also in a block of which not all is sure. Those pairs count from the start.
        itself = np.where(np.eye(len(self._sizes), dtype=bool), self._sizes[:, None], 0)
        counts = []
        for first, at_start in ((self.sure, itself), (self.possible, 0 * itself)):
            layer = np.minimum(first, self.layers + 1).reshape(-1)
            gained = np.bincount(layer, (weights - at_start).reshape(-1), self.layers + 2)
            counts.append(at_start.sum() + np.cumsum(gained)[:-1])
        return np.stack(counts)

    def __repr__(self) -> str:
        least, most = self.fraction()
        share = f"{least:.2%}" if least == most else f"{least:.2%} to {most:.2%}"
        known = f"{self.length:,} tokens in blocks of {self.block_size}, {share} of pairs after {self.layers} layers"
        return f"Reach({self.label}: {known}, {self.full_text()})"

    def full_text(self) -> str:
        """`layers_to_full` in words."""
        least, most = self.layers_to_full
        if least is None:
            return "never everything before a query"
        count = f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
        return f"everything before a query after {count} layer{'' if count == '1' else 's'}"

    def show(self, path: str | Path) -> Path:
        """Draw when each block is first reached, and how the last query's reach grows; the file's path. FS054."""
        from ..draw import reach as drawing

        return drawing.save(self, path)


def reach(
    masks: Mask | Callable[..., Any] | Sequence[Mask | Callable[..., Any]],
    length: int,
    layers: int = 1,
    *,
    block_size: int = 128,
    batch: int | None = None,
    heads: int | None = None,
    b: int = 0,
    **inputs: Any,
) -> Reach:
    """Which keys can influence which queries after `layers` layers of attention with a residual stream.

    masks: one mask for every layer, or a list: layer i (the first is 0) uses `masks[i % len(masks)]`.
    length: tokens.
    layers: at most 65,534.
    block_size: tokens; the bounds are as fine as it is, and a window is seen as sure only where it spans whole blocks.
    batch, heads: needed where a mask depends on them and no input says it.
    b: which sequence of the batch.
    inputs: run-time values by name, for the masks that take them.

    A layer keeps a pair when any of its heads does, as all heads write to one residual stream.

    Raises FS020 (a value is missing), FS021, FS022, FS023, FS025 (one is unknown or does not fit), FS030, FS031, FS032
    (no mask, lengths, layers, too many blocks, batch and heads, a canvas), FS024 (an index leaves its tensor), FS034
    (integers past 64 bits), FS035 (a division by zero), and what `from_mask_mod` raises for a function.

    >>> import flexspec as fs
    >>> fs.reach(fs.causal_window(1024), 65_536, layers=4)
    Reach(causal_window(window=1024): 65,536 tokens in blocks of 128, 5.32% to 6.24% of pairs after 4 layers, \
everything before a query after 64 to 73 layers)
    >>> fs.reach(fs.power_window(window=1, block=1), 64, layers=3, block_size=1).last_query()
    (42, 42)
    """
    several = list(masks) if isinstance(masks, Sequence) else [masks]
    if not several:
        raise FlexSpecError(
            "FS030", "there are no masks", fix="give one mask, or one for each layer", where=user_caret()
        )
    length, layers, block_size = _checked(length, layers, block_size)
    traced = [from_mask_mod(mask) for mask in several]
    known = [mask.expr.names | mask.defaults.keys() for mask in traced]
    relations: list[Relation] = []
    for mask, names in zip(traced, known, strict=True):
        # A name that no mask knows goes to the first, which says so.
        own = {name: x for name, x in inputs.items() if name in names or not any(name in other for other in known)}
        blocks = block_map(mask, length, batch=batch, heads=heads, block_size=block_size, **own)
        relations.append(relation(_any_head(blocks, b)))
    history = _history(relations, layers, length, block_size)
    return Reach(", ".join(mask.label for mask in traced), length, block_size, layers, *history)


def _checked(length: int, layers: int, block_size: int) -> tuple[int, int, int]:
    length, layers = check_length("length", length), check_length("layers", layers)
    block_size = check_length("block_size", block_size)  # queries and keys are the same tokens, in the same blocks
    if -(-length // block_size) > MOST_BLOCKS or layers >= NEVER:
        message = f"{length:,} tokens in blocks of {block_size}, {layers:,} layers"
        fix = f"at most {MOST_BLOCKS:,} blocks and {NEVER - 1:,} layers; give a larger block_size"
        raise FlexSpecError("FS030", message, fix=fix, where=user_caret())
    return length, layers, block_size


def _any_head(block_map: BlockMap, b: int) -> BlockMap:
    """The map of the pairs that any head keeps, in the sequence `b` of the batch."""
    runs = block_map.of(b)
    heads = list(dict.fromkeys(block_map.exprs[which] for which in block_map.index[b if block_map.batch > 1 else 0]))
    if len(heads) > 1:
        while len(heads) > 1:  # in pairs, so that the depth grows slowly
            heads = [reduce(_either, heads[first : first + 2]) for first in range(0, len(heads), 2)]
        runs = classify(simplify(heads[0]), block_map.grid, TensorRanges(block_map.tensors))
    return replace(block_map, maps=(runs,), exprs=(heads[0],), index=np.zeros((1, 1), np.int64))


def _either(left: Expr, right: Expr) -> Expr:
    return apply("or", left, right)


class History(NamedTuple):
    """The first layer of each block, possible and sure; and the layers to see everything, at least and at most.

    As in `Reach`.
    """

    possible: Array
    sure: Array
    layers_to_full: tuple[int | None, int | None]


def _history(relations: list[Relation], layers: int, length: int, block_size: int) -> History:
    """Layer after layer. As each token sees itself, what is seen only grows: a block once reached stays reached."""
    sizes = np.diff(np.append(np.arange(0, length, block_size), length))
    seen = identity(sizes)
    possible, sure = (np.where(unpack(matrix), np.uint16(0), NEVER) for matrix in (seen.some, seen.full))
    tests = (Relation.possibly_all_before, Relation.surely_all_before)
    full = [0 if test(seen) else None for test in tests]
    for layer in range(1, layers + 1):
        before, seen = seen, relations[(layer - 1) % len(relations)].after(seen)
        if seen.same(before) and len(relations) == 1:
            break
        for first, matrix in ((possible, seen.some), (sure, seen.full)):
            first[unpack(matrix) & (first == NEVER)] = layer
        full = [layer if known is None and test(seen) else known for known, test in zip(full, tests, strict=True)]
    turn = layers % len(relations)
    for side, test in enumerate(tests):
        if full[side] is None and (more := _until(test, seen, relations[turn:] + relations[:turn])) is not None:
            full[side] = layers + more
    least, most = full
    return History(possible, sure, (least or int(length > 1) if least is not None else None, most))


def _until(test: Callable[[Relation], bool], seen: Relation, relations: list[Relation]) -> int | None:
    """How many layers more until `test` holds, which stays true; None: never. By doubling, then by halving."""
    # What is seen after 1, 2, 4, ... rounds of all layers grows until it equals its own square; then it grows no more.
    # The number of rounds before `test` holds is then found bit by bit, as a sum of these powers.
    whole = reduce(lambda earlier, later: later.after(earlier), relations)
    powers = [whole]
    while not test(powers[-1].after(seen)):
        square = powers[-1].after(powers[-1])
        if square.same(powers[-1]):
            return None
        powers.append(square)
    rounds = 0
    for k in reversed(range(len(powers) - 1)):
        further = powers[k].after(seen)
        if not test(further):
            seen, rounds = further, rounds + (1 << k)
    for count, layer in enumerate(relations, 1):
        seen = layer.after(seen)
        if test(seen):
            return rounds * len(relations) + count
    # Bounds may be sharper in one order of products than in another; what was shown by doubling holds.
    return len(relations) << (len(powers) - 1)
