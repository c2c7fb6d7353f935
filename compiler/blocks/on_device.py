"""Block kinds without waiting for the device: bounds of the mask in torch, where its tensors are.

No value is read back and no shape depends on one, so the device's queue never drains and a CUDA graph can hold it. What
bounds leave open stays PARTIAL: the attention is the same, and some blocks evaluate a mask that is known elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
import torch

from flexspec.errors import FlexSpecError
from flexspec.evaluate import evaluate
from flexspec.expr import Apply, Expr, Var
from flexspec.inputs import Bound
from flexspec.ops import OPS, Type
from flexspec.user_line import user_caret

from ..evaluation.points import needed, one_sided
from ..simplify.specialise import specialise_each
from .block_map import BlockMap
from .classify import classify
from .derived import Derives
from .flex_lists import Lists, dense_lists
from .grid import Grid
from .intervals import FAR
from .runs import BlockKind, Runs, of_table
from .tensor_ranges import TensorRanges

Interval = tuple[torch.Tensor, torch.Tensor]
"""Least and greatest value on each block, both ends included, broadcasting to [batch, heads, q_blocks, kv_blocks]."""


@dataclass(frozen=True, eq=False, repr=False)
class DeviceMap(Derives):
    """As a `BlockMap`, for index lists only: kinds that were bounded on the device.

    Nothing is read back until somebody asks: `counts`, `density` and the repr wait for the device.
    """

    grid: Grid
    found: torch.Tensor
    """uint8 [batch | 1, heads | 1, q_blocks, kv_blocks] of `BlockKind`."""
    print_mask_mod: Callable[[], Any]

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
    return dense_lists(device_map.kinds(), device_map.grid, batch, heads, separate_full_blocks)


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


def kinds_on_device(expr: Expr, grid: Grid, bound: Bound, device: torch.device) -> torch.Tensor:
    """The kinds of a mask's blocks with its values on `device`: uint8 [batch | 1, heads | 1, q_blocks, kv_blocks].

    Nothing is read back. So an index that is computed from another tensor is checked as far as its arithmetic bounds it
    (`clamp`, a remainder); beyond that, one outside its tensor is an error of the device, which torch reports later.
    """
    surely, possibly = _Blocks(expr, grid, bound, device).interval()
    shape = torch.broadcast_shapes(surely.shape, (1, 1, grid.q_blocks, grid.kv_blocks))
    return (surely.to(torch.uint8) + possibly.to(torch.uint8)).expand(shape).contiguous()


@dataclass
class _Blocks:
    """Bounds of one expression on every block of a grid."""

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
            elif node.type is Type.BOOL and not node.names & self.bound.tensors.keys() and node not in leaves:
                leaves[node] = self._on_host
        done: dict[Expr, Interval | None] = {}
        for node in needed(self.expr, leaves):
            if node in leaves:
                done[node] = leaves[node](node)
            elif isinstance(node, Var):
                done[node] = self._position(node.name)
            elif isinstance(node, Apply):
                done[node] = _bound(node, [done[arg] for arg in node.args])
            else:
                done[node] = None
            if done[node] is None and node.type is Type.BOOL:
                done[node] = tuple(torch.full((1, 1, 1, 1), end, device=self.device) for end in (False, True))
        found = done[self.expr]
        assert found is not None
        return found

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
        try:
            return evaluate(node, values, checked=False)
        except IndexError as error:  # on a CPU, where torch looks at once
            fix = "clamp the index, or give a larger tensor"
            raise FlexSpecError("FS024", f"in `{node}`, {error}", fix=fix, where=user_caret()) from None

    def _of_side(self, node: Expr) -> Interval:
        """Exactly: the value at each position of its side, then the least and greatest of each block."""
        side = next(iter(node.names & {"q", "kv"}))
        length, block = self.grid.side(side)
        blocks = -(-length // block)
        at = torch.arange(blocks * block, device=self.device).clamp(max=length - 1)
        values = self._evaluated(node, {side: at.view(1, 1, -1)})
        values = values.expand(*values.shape[:-1], blocks * block).unflatten(-1, (blocks, block))
        ends = (values.all(-1), values.any(-1)) if node.type is Type.BOOL else (values.amin(-1), values.amax(-1))
        return self._along(side, ends[0]), self._along(side, ends[1])

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


def _bound(node: Apply, args: list[Interval | None]) -> Interval | None:
    """The interval of an operator that depends on both sides; None: unknown."""
    rule = RULES.get(node.op)
    if rule is None or any(arg is None for arg in args):
        return None
    kinds, _ = OPS[node.op].signature(tuple(arg.type for arg in node.args))
    if node.op in _LOGIC and node.type is not Type.BOOL or node.op in _SUMS and node.type is not Type.INT:
        return None
    if node.op == "int" and node.args[0].type > Type.INT:
        return None
    return rule(*((x[0].to(kind.torch), x[1].to(kind.torch)) for x, kind in zip(args, kinds, strict=True) if x))


def _within(size: int, x: Interval, *parts: Interval) -> Interval:
    """`x`, or any integer where an end of it or of `parts` is past `size`: there sums of 64 bits start again."""
    far = x[0] > x[1]
    for low, high in (x, *parts):
        far = far | (low <= -size) | (high >= size)
    return torch.where(far, -(2**63), x[0]), torch.where(far, 2**63 - 1, x[1])


def _add(a: Interval, b: Interval) -> Interval:
    return _within(FAR, (a[0] + b[0], a[1] + b[1]), a, b)


def _neg(a: Interval) -> Interval:
    return _within(FAR, (-a[1], -a[0]), a)


def _mul(a: Interval, b: Interval) -> Interval:
    ends = [x * y for x in a for y in b]
    low, high = torch.stack(torch.broadcast_tensors(*ends)).aminmax(dim=0)
    return _within(1 << 61, (low, high), *(_within(1 << 30, x) for x in (a, b)))


def _lt(a: Interval, b: Interval) -> Interval:
    return a[1] < b[0], ~(a[0] >= b[1])


def _le(a: Interval, b: Interval) -> Interval:
    return a[1] <= b[0], ~(a[0] > b[1])


def _eq(a: Interval, b: Interval) -> Interval:
    return (a[0] == b[1]) & (a[1] == b[0]), ~((a[1] < b[0]) | (a[0] > b[1]))


def _not(a: Interval) -> Interval:
    return ~a[1], ~a[0]


def _xor(a: Interval, b: Interval) -> Interval:
    unlike, alike = (a[0] & ~b[1]) | (b[0] & ~a[1]), (a[0] & b[0]) | (~a[1] & ~b[1])
    return unlike, ~alike


def _where(condition: Interval, a: Interval, b: Interval) -> Interval:
    if a[0].dtype == torch.bool:
        low, high = a[0] & b[0], a[1] | b[1]
    else:
        low, high = torch.minimum(a[0], b[0]), torch.maximum(a[1], b[1])
    yes, no = condition[0], ~condition[1]
    return torch.where(yes, a[0], torch.where(no, b[0], low)), torch.where(yes, a[1], torch.where(no, b[1], high))


_LOGIC = {"and", "or", "xor", "not"}
_SUMS = {"add", "sub", "neg", "mul"}
RULES: dict[str, Callable[..., Interval]] = {
    "and": lambda a, b: (a[0] & b[0], a[1] & b[1]),
    "or": lambda a, b: (a[0] | b[0], a[1] | b[1]),
    "xor": _xor,
    "not": _not,
    "lt": _lt,
    "le": _le,
    "gt": lambda a, b: _lt(b, a),
    "ge": lambda a, b: _le(b, a),
    "eq": _eq,
    "ne": lambda a, b: _not(_eq(a, b)),
    "add": _add,
    "sub": lambda a, b: _add(a, _neg(b)),
    "neg": _neg,
    "mul": _mul,
    "min": lambda a, b: (torch.minimum(a[0], b[0]), torch.minimum(a[1], b[1])),
    "max": lambda a, b: (torch.maximum(a[0], b[0]), torch.maximum(a[1], b[1])),
    "where": _where,
    "int": lambda a: (a[0].to(torch.int64), a[1].to(torch.int64)),
}
"""By operator name, on ends of the operand types. nan ends (a float tensor may hold them) decide nothing."""
