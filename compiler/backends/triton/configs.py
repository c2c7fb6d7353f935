"""Tile sizes, warps and pipeline stages of each kernel."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ...bounds import Grid


class Config(NamedTuple):
    """Queries and keys of a tile, warps, stages of the software pipeline."""

    block_m: int
    block_n: int
    warps: int
    stages: int

    def options(self) -> dict[str, Any]:
        """As Triton's compiler takes them; it is told of fused products because its default is about to change."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


def config_of(kernel: str, arch: str, grid: Grid, q: torch.Tensor, v: torch.Tensor) -> Config:
    """A choice that compiles everywhere: tiles divide the map's blocks."""
    wide = max(q.shape[3], v.shape[3]) > 128 or q.dtype == torch.float32
    block_m, block_n = (64, 32) if wide else (128, 64)
    return Config(divisor(grid.block_q, block_m), divisor(grid.block_kv, block_n), 4 if block_m < 128 else 8, 2)


def divisor(block: int, most: int) -> int:
    """The largest power of two that divides a block, up to `most`."""
    return min(block & -block, most)


def arch_of(device: torch.device) -> str:
    """`sm_90`, `gfx942`, or nothing where there is no GPU."""
    if device.type != "cuda":
        return ""
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
