"""What tensors hold where: minimum and maximum, by block of positions and by aligned cells of indices.

One `TensorRanges` serves as long as its tensors keep their values, for any expression over them. Threads may share it:
what two of them compute at once is equal, and an entry is whole when it is there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from flexspec.expr import Expr, Load, substitute, var
from flexspec.inputs import Bound

from ..evaluation.points import Array, along, as_array
from .intervals import Interval, as_interval

KEPT = 64
"""TensorRanges by block that are kept; parameters that change inside an index make a new one each."""

_ENTRIES = 4
"""Boxes are looked through where they hold at most one in so many of a tensor's entries."""


@dataclass(slots=True)
class TensorRanges:
    """Minimum and maximum tables of `tensors`, made when they are first asked for."""

    tensors: Mapping[str, Array]
    _blocks: dict[tuple[Expr, int, int], Interval] = field(default_factory=dict)
    _levels: dict[tuple[str, int], Interval] = field(default_factory=dict)

    def by_block(self, node: Expr, side: str, length: int, block: int) -> Interval:
        """Least and greatest value of a one-sided expression in every block of its side, exact."""
        key = (substitute(node, {side: var("q")}), length, block)  # what both sides read is read once
        kept = self._blocks.get(key)
        if kept is not None:
            return kept
        values = along(node, side, length, self.tensors)
        whole = length // block * block
        parts = values[:whole].reshape(-1, block)
        lo, hi = parts.min(1), parts.max(1)
        if whole < length:
            lo, hi = np.append(lo, values[whole:].min()), np.append(hi, values[whole:].max())
        if len(self._blocks) >= KEPT:
            self._blocks.clear()
        self._blocks[key] = lo, hi
        return lo, hi

    def over(self, node: Load, index: list[Interval]) -> Interval:
        """Minimum and maximum of a tensor over boxes of indices: entry by entry where they hold few of a large tensor,
        else from a pyramid of its aligned cells.

        Level `l` of the pyramid holds the extremes of cells of `2**l` entries along every axis, at multiples of that.
        A range of at most `2**l` indices touches one such cell or two neighbours: the cells of its two ends. So the
        2 ** axes cells at the corners of a box of indices cover the box, and their extremes enclose what it holds. They
        may cover more, which makes the answer wider and never wrong.
        """
        tensor = self.tensors[node.input.name]
        ends = [_within(part, size) for part, size in zip(index, tensor.shape, strict=True)]
        shape = np.broadcast_shapes(*(end.shape for pair in ends for end in pair))
        sides = [int((hi - lo).max(initial=0)) + 1 for lo, hi in ends]
        if math.prod(sides) == 1 or math.prod(sides) * math.prod(shape) <= tensor.size // _ENTRIES:
            return as_interval(_every(tensor, ends, sides), node.type)
        widest = np.max([np.broadcast_to(hi - lo, shape) for lo, hi in ends], axis=0)
        top = max(size - 1 for size in tensor.shape).bit_length()
        level_of = np.minimum(np.ceil(np.log2(widest + 1)).astype(np.int64), top)
        low = np.empty(shape, tensor.dtype)
        high = np.empty(shape, tensor.dtype)
        for level in np.unique(level_of):
            chosen = level_of == level
            cells = [[np.broadcast_to(end, shape)[chosen] >> level for end in pair] for pair in ends]
            low[chosen], high[chosen] = _extremes(self._level(node.input.name, int(level)), cells)
        return low.astype(node.type.numpy), high.astype(node.type.numpy)

    def _level(self, name: str, level: int) -> Interval:
        if level == 0:
            return self.tensors[name], self.tensors[name]
        kept = self._levels.get((name, level))
        if kept is None:
            lo, hi = self._level(name, level - 1)
            for axis in range(lo.ndim):
                lo, hi = pairs(np.minimum, lo, axis), pairs(np.maximum, hi, axis)
            kept = self._levels[name, level] = lo, hi
        return kept


def pairs(function: np.ufunc, values: Array, axis: int = 0) -> Array:
    """`function` of each two neighbours along an axis; a last one without a neighbour stays."""
    size = values.shape[axis]
    if size == 1:
        return values
    before = (slice(None),) * axis
    result: Array = function(values[(*before, slice(0, size - 1, 2))], values[(*before, slice(1, None, 2))])
    return result if size % 2 == 0 else np.concatenate([result, values[(*before, slice(size - 1, None))]], axis)


def _every(tensor: Array, ends: list[Interval], sides: list[int]) -> Interval:
    """Minimum and maximum of all entries in boxes of at most `sides` entries."""
    steps = np.ix_(*map(np.arange, sides))
    inside = tuple(
        np.minimum(lo[..., *[None] * len(sides)] + step, hi[..., *[None] * len(sides)])
        for (lo, hi), step in zip(ends, steps, strict=True)
    )
    entries = tensor[inside]
    axes = tuple(range(-len(sides), 0))
    least = entries.min(axes)
    return (least, least) if entries.size == least.size else (least, entries.max(axes))


def _within(index: Interval, size: int) -> Interval:
    """An index range inside the tensor. Below 0 it counts from the back, and is taken as all indices.

    Ends past the tensor are cut off, as the range may be wider than what the index really takes, and that is inside
    (see `defined`).
    """
    lo, hi = (np.asarray(end, dtype=np.int64) for end in index)
    wraps = lo < 0
    low, high = np.where(wraps, 0, lo), np.where(wraps, size - 1, hi)
    return np.clip(low, 0, size - 1), np.clip(high, 0, size - 1)


def _extremes(level: Interval, cells: list[list[Array]]) -> Interval:
    """Minimum and maximum over the at most two cells that each axis' range touches."""
    lo, hi = level
    lows, highs = [], []
    for corner in range(2 ** len(cells)):
        at_corner = tuple(cell[corner >> axis & 1] for axis, cell in enumerate(cells))
        lows.append(lo[at_corner])
        highs.append(hi[at_corner])
    return np.minimum.reduce(lows), np.maximum.reduce(highs)


def ranges_of(bound: Bound) -> TensorRanges:
    """The tensors of a binding as arrays, with tables of what they hold."""
    return TensorRanges(arrays_of(bound.tensors))


def arrays_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """Tensors as arrays, by name; reading one from a device waits for it."""
    return {name: as_array(tensor) for name, tensor in tensors.items()}


def by_content(tensor: torch.Tensor) -> bool:
    """Is a tensor known by what it holds? On the CPU anyone may write to its memory unseen by torch."""
    return tensor.device.type == "cpu" or tensor.is_inference()


def state_of(tensor: torch.Tensor) -> Any:
    """What a tensor holds, for a key: its content on the CPU, where anyone may write to its memory unseen by torch.

    On a device it is the tensor (of a view, the one that it looks into) and torch's count of its changes: reading it
    would wait for the device. Tensors that were made in inference mode have no such count, so they are read there too.
    """
    if not by_content(tensor):
        whole = tensor if tensor._base is None else tensor._base
        return id(whole), tensor._version, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
    content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return tensor.dtype, tuple(tensor.shape), hashlib.blake2b(content, digest_size=16).digest()
