"""Tile sizes, warps and pipeline stages of each kernel."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...bounds import Grid


class Config(NamedTuple):
    """Queries and keys of a tile, warps, stages of the software pipeline."""

    block_m: int
    block_n: int
    warps: int
    stages: int


def config_of(kernel: str, grid: Grid, q: torch.Tensor, v: torch.Tensor) -> Config:
    """A choice that compiles everywhere: tiles divide the map's blocks."""
    wide = max(q.shape[3], v.shape[3]) > 128 or q.dtype == torch.float32
    if kernel == "decode":  # its tile of queries is as high as the call needs
        row = max(q.shape[3], v.shape[3]) * q.element_size()
        return Config(16, divisor(grid.block_kv, 64 if row <= 128 else 32 if row <= 256 else 16), 4, 3)
    block_m, block_n = (64, 32) if wide else (128, 64)
    if kernel != "forward":  # which hold two products: small tiles and 8 warps, so that no register is spilled
        block_m, block_n = (32, 32) if wide else (64, 64)
        if kernel == "backward_kv" and not wide:
            block_m, block_n = (32, 128) if max(q.shape[3], v.shape[3]) <= 64 else (64, 32)
        return Config(divisor(grid.block_q, block_m), divisor(grid.block_kv, block_n), 8, 2)
    return Config(divisor(grid.block_q, block_m), divisor(grid.block_kv, block_n), 4 if block_m < 128 else 8, 2)


def divisor(block: int, most: int) -> int:
    """The largest power of two that divides a block, up to `most`."""
    return min(block & -block, most)
