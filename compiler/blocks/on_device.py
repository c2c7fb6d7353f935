"""Block kinds without waiting for the device: bounds of the mask in torch, where its tensors are.

No value is read back and no shape depends on one, so the device's queue never drains and a CUDA graph can hold it. What
bounds leave open stays PARTIAL: the attention is the same, and some blocks evaluate a mask that is known elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any, Protocol

import numpy as np
import torch

from flexspec.errors import FlexSpecError
from flexspec.evaluate import evaluate
from flexspec.expr import Apply, Const, Expr, Load, Var
from flexspec.inputs import Bound
from flexspec.ops import OPS, Type
from flexspec.user_line import user_caret

from ..evaluation.points import needed, one_sided
from ..simplify.specialise import specialise, specialise_each
from .block_map import BlockMap
from .classify import classify
from .derived import Derives
from .device_tables import Read, each, entries_by_arithmetic, extremes, read_of
from .flex_lists import Lists, dense_lists
from .grid import Grid
from .intervals import LEAST, MOST, Interval, as_interval, as_type, bound
from .runs import BlockKind, Runs, of_table
from .tensor_ranges import TensorRanges
from .two_sided import axes_by_side


@dataclass(frozen=True, eq=False, repr=False)
class DeviceMap(Derives):
    """As a `BlockMap`, for index lists only: kinds that were bounded on the device.

    Nothing is read back until somebody asks: `counts`, `density` and the repr wait for the device.
    """

    grid: Grid
    found: torch.Tensor
    """uint8 [batch | 1, heads | 1, q_blocks, kv_blocks] of `BlockKind`."""
    print_mask_mod: Callable[[], Any]
    decided: bool = False
    """Is it known beforehand that no block is PARTIAL?"""

    @cached_property
    def mask_mod(self) -> Any:
        """The mask as a FlexAttention mask_mod over memory positions."""
        return self.print_mask_mod()

    @property
    def batch(self) -> int:
        return self.found.shape[0]

    @property
    def heads(self) -> int:
        return self.found.shape[1]

    def __repr__(self) -> str:
        grid = self.grid
        shape = f"{grid.q_len:,} x {grid.kv_len:,} in blocks of {grid.block_q} x {grid.block_kv}"
        return f"DeviceMap({shape}, by bounds: {counted(self)})"

    def kinds(self) -> torch.Tensor:
        """uint8 [batch | 1, heads | 1, q_blocks, kv_blocks] of `BlockKind`; PARTIAL where undecided."""
        return self.found.clone()

    def counts(self) -> dict[BlockKind, int]:
        """Blocks of each kind over all (batch, head) of the map; a block that bounds leave open counts as partial."""
        numbers = torch.bincount(self.found.flatten(), minlength=len(BlockKind)).tolist()
        return {kind: numbers[kind] for kind in BlockKind}

    @property
    def density(self) -> float:
        """The fraction of blocks that a call computes."""
        counts = self.counts()
        return 1 - counts[BlockKind.EMPTY] / sum(counts.values())

    def flex_lists(self, batch: int | None, heads: int | None, *, compact: bool, separate_full_blocks: bool) -> Lists:
        """torch's index lists, kept (see `flex_lists.to_flex`): dense ones, as no width is read back."""
        return self.derive(_dense_lists, batch, heads, separate_full_blocks)


def _dense_lists(device_map: DeviceMap, batch: int | None, heads: int | None, separate_full_blocks: bool) -> Lists:
    kinds = device_map.kinds()
    return dense_lists(kinds, device_map.grid, batch, heads, separate_full_blocks, decided=device_map.decided)


class Counted(Protocol):
    """A map that counts its blocks, of each (batch, head), or of one that serves all."""

    @property
    def batch(self) -> int: ...

    @property
    def heads(self) -> int: ...

    @property
    def density(self) -> float: ...

    def counts(self) -> dict[BlockKind, int]: ...


def counted(blocks: Counted, copies: int = 1) -> str:
    """The blocks of as many copies of a map in words: "3 full, 2 partial, 4 empty, density 55.56%"."""
    counts = blocks.counts()
    kinds = ", ".join(f"{copies * counts[kind]:,} {kind.name.lower()}" for kind in sorted(BlockKind, reverse=True))
    return f"{kinds}, density {blocks.density:.2%}"


def report_lines(device_map: DeviceMap, exact: Counted) -> list[str]:
    """What a call with exact=False computes, beside what is kept: for a report, as it waits for the device.

    Either map may have one (batch, head) where the other tells them apart; the counts are of as many.
    """
    maps = {"by bounds on the device": device_map, "exact": exact}
    most = max(each.batch for each in maps.values()) * max(each.heads for each in maps.values())
    return [f"{name}: {counted(each, most // (each.batch * each.heads))}" for name, each in maps.items()]


def listed(device_map: DeviceMap, exact: BlockMap) -> BlockMap:
    """The exact map with the kinds that were bounded on the device: what a call computes. It waits for the device."""
    kinds = device_map.kinds().cpu().numpy()
    shape = np.broadcast_shapes(kinds.shape[:2], exact.index.shape)
    kinds = np.broadcast_to(kinds, (*shape, *kinds.shape[2:]))
    places = np.broadcast_to(exact.index, shape)
    ends = tuple(np.arange(count + 1) for count in kinds.shape[2:])
    number: dict[tuple[bytes, int], int] = {}
    index = np.empty(shape, np.int64)
    maps: list[Runs] = []
    exprs: list[Expr] = []
    for b, h in np.ndindex(shape):
        key = (kinds[b, h].tobytes(), int(places[b, h]))
        if key not in number:
            maps.append(of_table(kinds[b, h], *ends))
            exprs.append(exact.exprs[places[b, h]])
        index[b, h] = number.setdefault(key, len(number))
    return replace(exact, maps=tuple(maps), exprs=tuple(exprs), index=index)


def kinds_on_device(expr: Expr, grid: Grid, bound: Bound, device: torch.device) -> tuple[torch.Tensor, bool]:
    """The kinds of a mask's blocks with its values on `device`: uint8 [batch | 1, heads | 1, q_blocks, kv_blocks]. And
    whether none of them can be PARTIAL, as all that is read is one value in each block.

    Nothing is read back. So an index that is computed from another tensor is checked as far as its arithmetic bounds it
    (`clamp`, a remainder); beyond that, one outside its tensor is an error of the device, which torch reports later.
    """
    surely, possibly = _Blocks(expr, grid, bound, device).interval()
    shape = torch.broadcast_shapes(surely.shape, (1, 1, grid.q_blocks, grid.kv_blocks))
    return (surely.view(torch.uint8) + possibly.view(torch.uint8)).expand(shape).contiguous(), surely is possibly


@dataclass
class _Blocks:
    """Bounds of one expression on every block of a grid: ends that broadcast to [batch, heads, q_blocks, kv_blocks]."""

    expr: Expr
    grid: Grid
    bound: Bound
    device: torch.device

    def interval(self) -> Interval:
        """Is it surely, and possibly, true?"""
        leaves: dict[Expr, Callable[[Expr], Interval]] = dict.fromkeys(one_sided(self.expr), self._of_side)
        for node in needed(self.expr, leaves):
            if not node.names & {"q", "kv"}:
                leaves[node] = self._of_none
            elif isinstance(node, Load) and axes_by_side(node):
                leaves[node] = self._of_table
            elif node.type is Type.BOOL and not node.names & self.bound.tensors.keys() and node not in leaves:
                leaves[node] = self._on_host
        done: dict[Expr, Interval] = {}
        for node in needed(self.expr, leaves):
            if node in leaves:
                done[node] = leaves[node](node)
            elif isinstance(node, Var):
                done[node] = self._position(node.name)
            elif isinstance(node, Apply):
                done[node] = _applied(node, [done[arg] for arg in node.args])
            else:  # a load with an index by both sides
                done[node] = self._unknown(node.type)
        return done[self.expr]

    def _unknown(self, kind: Type) -> Interval:
        ends = {Type.BOOL: (False, True), Type.INT: (LEAST, MOST)}.get(kind, (math.nan, math.nan))
        low, high = (torch.full((1, 1, 1, 1), end, dtype=kind.torch, device=self.device) for end in ends)
        return low, high

    def _position(self, side: str) -> Interval:
        length, block = self.grid.side(side)
        low = torch.arange(0, length, block, device=self.device)
        return self._along(side, low), self._along(side, (low + block).clamp(max=length) - 1)

    def _along(self, side: str, values: torch.Tensor) -> torch.Tensor:
        """Values [..., blocks] of one side, to broadcast against the other side."""
        return values[..., None] if side == "q" else values[..., None, :]

    def _evaluated(self, node: Expr, positions: dict[str, torch.Tensor]) -> torch.Tensor:
        """A node at positions [1, 1, n] of one side: [batch | 1, heads | 1, n]."""
        sizes = self.bound.sizes
        b = torch.arange(sizes.batch or 1, device=self.device).view(-1, 1, 1)
        h = torch.arange(sizes.heads or 1, device=self.device).view(1, -1, 1)
        tensors = {name: _sent(x, self.device) for name, x in self.bound.tensors.items() if name in node.names}
        values = {"b": b, "h": h, **positions, **self.bound.all_numbers(), **tensors}
        return _inside(node, lambda: evaluate(node, values, checked=False))

    def _of_side(self, node: Expr) -> Interval:
        """Exactly: the value at each position of its side, then the least and greatest of each block."""
        side = next(iter(node.names & {"q", "kv"}))
        block, positions = self.grid.side(side)[1], self._padded(side)
        values = self._evaluated(node, positions)
        values = values.expand(*values.shape[:-1], positions[side].numel()).unflatten(-1, (-1, block))
        ends = (values.all(-1), values.any(-1)) if node.type is Type.BOOL else (values.amin(-1), values.amax(-1))
        return self._along(side, ends[0]), self._along(side, ends[1])

    def _of_table(self, node: Expr) -> Interval:
        """A load by both sides, each index by one: its least and greatest entry in each block."""
        assert isinstance(node, Load)
        axes, table = axes_by_side(node), _sent(self.bound.tensors[node.input.name], self.device)
        assert axes is not None
        reads = {side: self._read(node, axes[side], side) for side in ("q", "kv")}
        parts = {axis: specialise(node.index[axis], self.bound.all_numbers(), {}) for axis in axes[""]}
        index = {axis: self._entries(node, axis) for axis, part in parts.items() if not isinstance(part, Const)}
        for axis, part in parts.items():
            if isinstance(part, Const) or not table.stride(axis):  # where it was expanded, it is the same throughout
                table = table.narrow(axis, part.value % table.shape[axis] if isinstance(part, Const) else 0, 1)
        apart = [axis for axis in axes[""] if table.shape[axis] > 1]
        ones = [axis for axis in axes[""] if axis not in apart]
        sizes = [math.prod(table.shape[axis] for axis in axes[side]) for side in ("q", "kv")]
        table = table.permute(*apart, *ones, *axes["q"], *axes["kv"])
        table = table.reshape(*table.shape[: len(apart)], *sizes)
        pick = partial(self._of_heads, [parts[axis] for axis in apart], [index[axis] for axis in apart])
        if any(read.by_head for read in reads.values()):
            return as_interval(extremes(pick(table), reads), node.type)
        return as_interval(each(extremes(table, reads), pick), node.type)

    def _of_heads(self, parts: list[Expr], index: list[torch.Tensor], table: torch.Tensor) -> torch.Tensor:
        """Entries [..., m, n] at an index for each leading dim: [batch | 1, heads | 1, m, n]."""
        sizes = {"b": self.bound.sizes.batch or 1, "h": self.bound.sizes.heads or 1}
        by = [part.name if isinstance(part, Var) else "" for part in parts]
        shape = [sizes[name] if name in by else 1 for name in sizes]
        if by == [name for name in sizes if name in by] and list(table.shape[:-2]) == [sizes[name] for name in by]:
            return table.reshape(*shape, *table.shape[-2:])
        return table[tuple(at.squeeze(-1) for at in index)]

    def _read(self, node: Load, axes: list[int], side: str) -> Read:
        """The entries that the blocks of a side read along some axes, which are taken as one."""
        length, block = self.grid.side(side)
        sizes = tuple(self.bound.tensors[node.input.name].shape[axis] for axis in axes)
        parts = tuple(specialise(node.index[axis], self.bound.all_numbers(), {}) for axis in axes)
        if all(part.names <= {side} for part in parts):
            found = entries_by_arithmetic(parts, sizes, side, length, block)
            return read_of(found, math.prod(sizes), partial(_sent, device=self.device))
        ids = torch.zeros((), dtype=torch.int64, device=self.device)
        for axis, size in zip(axes, sizes, strict=True):
            ids = ids * size + self._entries(node, axis, **self._padded(side))
        return Read(-(-length // block), block, ids)

    def _entries(self, node: Load, axis: int, **positions: torch.Tensor) -> torch.Tensor:
        """The index of an axis, counted from the front: [batch | 1, heads | 1, n]."""
        at = self._evaluated(node.index[axis], positions).long()
        entries = torch.arange(self.bound.tensors[node.input.name].shape[axis], device=self.device)
        return _inside(node, lambda: entries[at.reshape((1,) * (3 - at.dim()) + at.shape)])

    def _padded(self, side: str) -> dict[str, torch.Tensor]:
        """All positions of a side, [1, 1, n], its last one repeated up to whole blocks."""
        length, block = self.grid.side(side)
        places = torch.arange(-(-length // block) * block, device=self.device)
        return {side: places.clamp(max=length - 1).view(1, 1, -1)}

    def _of_none(self, node: Expr) -> Interval:
        value = self._evaluated(node, {})
        value = value.reshape((1,) * (3 - value.dim()) + value.shape)[..., None]
        return value, value

    def _on_host(self, node: Expr) -> Interval:
        """A part that reads no tensor: classified exactly on the host, and sent."""
        each = specialise_each(node, self.bound, {})
        dense = np.stack([_runs(one, self.grid).dense(self.grid.kv_blocks) for one in each.flat])
        kinds = _sent(torch.from_numpy(dense.reshape(*each.shape, *dense.shape[1:])), self.device)
        return kinds == 2, kinds >= 1


def _applied(node: Apply, args: list[Interval]) -> Interval:
    """The interval of an operator; of operands that are one value in each block (one tensor twice) its own value."""
    types = tuple(arg.type for arg in node.args)
    if any(low is not high for low, high in args):
        return bound(node.op, args, types)
    kinds, _ = OPS[node.op].signature(types)
    value = OPS[node.op].torch(*(as_type(low, kind) for (low, _), kind in zip(args, kinds, strict=True)))
    return value, value


def _inside(node: Expr, look: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What `look` finds at the indices of a node. FS024 on a CPU, where torch checks them at once."""
    try:
        return look()
    except IndexError as error:
        fix = "clamp the index, or give a larger tensor"
        raise FlexSpecError("FS024", f"in `{node}`, {error}", fix=fix, where=user_caret()) from None


@lru_cache(maxsize=64)
def _runs(expr: Expr, grid: Grid) -> Runs:
    return classify(expr, grid, TensorRanges({}))


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on `device`; from pinned memory, as a copy from any other waits for the device."""
    if tensor.device == device:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu" and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
