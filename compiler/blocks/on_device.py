"""Block kinds without waiting for the device: bounds of the mask in torch, where its tensors are.

No value is read back and no shape depends on one, so the device's queue never drains and a CUDA graph can hold it. What
bounds leave open stays PARTIAL: the attention is the same, and some blocks evaluate a mask that is known elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch

from flexspec.evaluate import evaluate
from flexspec.expr import Apply, Expr, Var
from flexspec.inputs import Bound
from flexspec.mask import Mask
from flexspec.ops import Type
from flexspec.order import Order, in_memory

from ..evaluation.points import needed, one_sided
from ..pipeline import mask_mod_of
from ..simplify.specialise import specialise_each
from .classify import classify
from .grid import BlockSize, Grid, make_grid
from .intervals import LEAST, MOST, Interval, bound
from .runs import Runs
from .tensor_ranges import TensorRanges


@dataclass(frozen=True)
class DeviceMap:
    """As a `BlockMap`, for index lists only: kinds that were bounded on the device."""

    grid: Grid
    found: torch.Tensor
    print_mask_mod: Callable[[], Any]
    lists: dict[Any, Any] = field(default_factory=dict, repr=False)
    """torch's index lists, once they are made."""

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

    def kinds(self) -> torch.Tensor:
        """uint8 [batch | 1, heads | 1, q_blocks, kv_blocks] of `BlockKind`; PARTIAL where undecided."""
        return self.found.clone()


def map_on_device(
    mask: Mask, bound: Bound, block_size: BlockSize, order: Order | None, device: torch.device
) -> DeviceMap:
    """The kinds of a mask's blocks with its values on `device`. FS030, FS033.

    Indices are not checked here, as nothing is read back: one outside its tensor is an error of the device.
    """
    grid = make_grid(bound.sizes, block_size, order)
    expr = in_memory(mask.expr, order, mask.canvas, bound.sizes.q_len, bound.sizes.kv_len)
    surely, possibly = _Blocks(expr, grid, bound, device).interval()
    shape = torch.broadcast_shapes(surely.shape, (1, 1, grid.q_blocks, grid.kv_blocks))
    kinds = (surely.to(torch.uint8) + possibly.to(torch.uint8)).expand(shape).contiguous()
    return DeviceMap(grid, kinds, mask_mod_of(expr, bound, device))


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
            elif node.type is Type.BOOL and not node.names & self.bound.tensors.keys() and node not in leaves:
                leaves[node] = self._on_host
        done: dict[Expr, Interval] = {}
        for node in needed(self.expr, leaves):
            if node in leaves:
                done[node] = leaves[node](node)
            elif isinstance(node, Var):
                done[node] = self._position(node.name)
            elif isinstance(node, Apply):
                done[node] = bound(node.op, [done[arg] for arg in node.args], tuple(arg.type for arg in node.args))
            else:  # a load by both sides
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
        return evaluate(node, values, checked=False)

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
