"""Tile sizes, warps and pipeline stages of each kernel."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch

from ...blocks.grid import Grid


class Config(NamedTuple):
    """Queries and keys of a tile, warps, stages of the software pipeline, and the most registers that a thread may take
    (on NVIDIA; nothing: as many as it wants), so that a second block fits beside the first.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int
    max_registers: int | None = None

    def options(self) -> dict[str, Any]:
        """As Triton's compiler takes them."""
        limit = {} if self.max_registers is None else {"maxnreg": self.max_registers}
        return {"num_warps": self.warps, "num_stages": self.stages} | limit


FORWARD: dict[str, dict[int, Config]] = {
    "sm_80": {64: Config(128, 64, 8, 3), 128: Config(128, 32, 8, 3), 256: Config(64, 32, 8, 2)},
    "sm_90": {64: Config(128, 64, 8, 3), 128: Config(128, 64, 8, 2), 256: Config(64, 32, 8, 2)},
    "sm_100": {64: Config(128, 64, 8, 2), 128: Config(128, 32, 8, 2), 256: Config(64, 16, 8, 2)},
    "gfx": {64: Config(128, 32, 4, 2), 128: Config(128, 32, 4, 2), 256: Config(64, 32, 4, 2)},
    "float32": {64: Config(32, 32, 8, 2), 128: Config(64, 32, 8, 2), 256: Config(32, 16, 8, 2)},
}
"""By family of GPUs and most channels; chosen from the reports of `attend.aot`: the largest tiles that do not spill.

"sm_80" needs under 99 KB of shared memory, and serves every GPU that has no row. No tensor core multiplies float32.
"""

BACKWARD_Q: dict[str, dict[int, Config]] = {
    "sm_80": {64: Config(64, 32, 8, 2), 128: Config(64, 32, 8, 2), 256: Config(32, 32, 8, 2)},
    "sm_90": {64: Config(128, 64, 8, 2), 128: Config(128, 32, 8, 2), 256: Config(64, 32, 8, 2)},
    "sm_100": {64: Config(64, 64, 8, 2), 128: Config(64, 32, 8, 2), 256: Config(32, 32, 8, 2)},
    "gfx": {256: Config(32, 32, 4, 2)},
    "float32": {64: Config(32, 32, 4, 2), 128: Config(32, 32, 8, 2), 256: Config(16, 16, 8, 2)},
}
"""As `FORWARD`. Each four warps of an sm_90 multiply 64 rows at once: of queries here, of keys in `BACKWARD_KV`."""

BACKWARD_KV: dict[str, dict[int, Config]] = {
    "sm_80": {64: Config(32, 64, 8, 2), 128: Config(32, 64, 8, 2), 256: Config(32, 32, 8, 2)},
    "sm_90": {64: Config(32, 128, 8, 2), 128: Config(32, 64, 8, 2), 256: Config(32, 32, 8, 2)},
    "sm_100": {64: Config(64, 64, 8, 2), 128: Config(32, 64, 8, 2), 256: Config(32, 32, 8, 2)},
    "gfx": {256: Config(32, 32, 4, 2)},
    "float32": {64: Config(32, 32, 4, 2), 128: Config(32, 32, 8, 2), 256: Config(16, 16, 8, 2)},
}

TABLES = {"forward": FORWARD, "backward_q": BACKWARD_Q, "backward_kv": BACKWARD_KV}


def config_of(kernel: str, arch: str, grid: Grid, q: torch.Tensor, v: torch.Tensor) -> Config:
    """The choice for a GPU; tiles divide the map's blocks. kernel: one of `TABLES`, or decode."""
    if kernel == "decode":  # its tile of queries is as high as the call needs
        row = max(q.shape[3], v.shape[3]) * q.element_size()
        return Config(16, divisor(grid.block_kv, 64 if row <= 128 else 32 if row <= 256 else 16), 4, 3)
    family = "gfx" if arch.startswith("gfx") else {"sm_103": "sm_100"}.get(arch, arch)
    tables = TABLES[kernel]
    table = tables["float32"] if q.dtype == torch.float32 else tables.get(family, tables["sm_80"])
    channels = max(q.shape[3], v.shape[3])
    chosen = table[min(most for most in table if most >= channels)]
    block_m, block_n = divisor(grid.block_q, chosen.block_m), divisor(grid.block_kv, chosen.block_n)
    fits = (block_m, block_n) == (chosen.block_m, chosen.block_n)
    own = block_n if kernel == "backward_kv" else block_m
    return chosen if fits else Config(block_m, block_n, 8 if own >= 64 else 4, chosen.stages)


def divisor(block: int, most: int) -> int:
    """The largest power of two that divides a block, up to `most`."""
    return min(block & -block, most)


@lru_cache
def arch_of(device: torch.device) -> str:
    """`sm_90`, `gfx942`, or nothing where there is no GPU."""
    if device.type != "cuda":
        return ""
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
