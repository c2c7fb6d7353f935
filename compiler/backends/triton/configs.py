"""Tile sizes, warps and pipeline stages of each kernel."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch

from ...blocks.grid import Grid


class Config(NamedTuple):
    """Queries and keys of a tile, warps, stages of the software pipeline, and the most registers that a thread may take
    (on NVIDIA; nothing: as many as it wants), so that a second block fits beside the first.

    tma: the tiles of the other side come by descriptors where their memory allows it. late: and p v a pass late; of
    `forward` only.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int
    max_registers: int | None = None
    tma: bool = False
    late: bool = False

    def options(self) -> dict[str, Any]:
        """As Triton's compiler takes them."""
        limit = {} if self.max_registers is None else {"maxnreg": self.max_registers}
        return {"num_warps": self.warps, "num_stages": self.stages} | limit


C = Config
FORWARD: dict[str, dict[int, Config]] = {
    "sm_80": {
        32: C(128, 64, 4, 3),
        64: C(128, 64, 8, 3, 128),
        128: C(128, 32, 8, 3, 128),
        192: C(128, 32, 8, 3),
        256: C(64, 32, 4, 3),
    },
    "sm_86": {32: C(128, 64, 4, 3), 64: C(128, 64, 8, 3, 128), 128: C(128, 64, 8, 3), 256: C(32, 32, 4, 3)},
    "sm_90": {
        32: C(128, 64, 4, 3),
        64: C(128, 64, 8, 3, 128, tma=True),
        80: C(64, 64, 4, 3, 168, tma=True),
        96: C(128, 128, 8, 3, tma=True, late=True),
        128: C(128, 32, 8, 4, 128, tma=True),
        192: C(128, 64, 8, 3, tma=True, late=True),
        256: C(128, 32, 8, 3, tma=True, late=True),
    },
    "sm_100": {
        64: C(128, 64, 4, 4, tma=True),
        128: C(128, 64, 8, 3, tma=True),
        256: C(128, 32, 8, 3, tma=True),
    },
    "gfx": {64: C(128, 32, 4, 2), 128: C(128, 32, 4, 2), 256: C(64, 32, 4, 2)},
    "float32": {64: C(64, 32, 8, 3), 128: C(64, 16, 8, 3), 256: C(32, 16, 8, 3)},
}
"""By family of GPUs and most channels, chosen from the loops that `attend.aot` reports: each product done once, loads
two groups ahead, no local operation in the full loop, and of those the fastest in a model of the instructions' own
waits. Where 128 registers a thread suffice, two blocks share a multiprocessor: one multiplies while the other takes
exponentials, and p v a pass late gains nothing; where one block fills it, as at 256 channels, that pays. (On "sm_80" at
128 channels a second block is worth two local operations with some masks.)

A GPU without a row takes "sm_86", which needs at most 99 KB of shared memory. No tensor core multiplies float32.
"""

BACKWARD_Q: dict[str, dict[int, Config]] = {
    "sm_80": {32: C(128, 64, 8, 3, 128), 64: C(64, 32, 4, 4), 128: C(128, 64, 8, 3), 256: C(32, 32, 4, 3)},
    "sm_80, lists": {128: C(64, 64, 4, 3)},
    "sm_86": {32: C(128, 64, 8, 3, 128), 64: C(64, 32, 4, 3), 128: C(128, 32, 8, 3), 256: C(32, 32, 4, 3)},
    "sm_90": {
        32: C(64, 64, 4, 3, tma=True),
        64: C(128, 64, 8, 3, 128, tma=True),
        128: C(128, 32, 8, 3, 128, tma=True),
        256: C(128, 32, 8, 3, tma=True),
    },
    "sm_100": {128: C(128, 64, 4, 3, tma=True), 256: C(128, 16, 8, 3, tma=True)},
    "gfx": {256: C(32, 32, 4, 2)},
    "float32": {32: C(64, 32, 8, 3), 64: C(32, 32, 4, 3), 128: C(32, 16, 8, 3), 256: C(16, 16, 8, 3)},
}
"""As `FORWARD`. Four warps of an sm_90 multiply 64 rows at once, a warp of an older GPU 16: rows of queries here, of
keys in `BACKWARD_KV`. With fewer, warps beside each other do the same products. By descriptors 128 rows of queries take
so few registers that two blocks share a multiprocessor. "lists": over lists of tiles, whose loops hold other values,
where another tile is better."""

BACKWARD_KV: dict[str, dict[int, Config]] = {
    "sm_80": {32: C(64, 64, 4, 3), 64: C(64, 64, 4, 4), 128: C(32, 128, 8, 3), 256: C(32, 32, 4, 3)},
    "sm_80, lists": {128: C(32, 64, 4, 3)},
    "sm_86": {32: C(64, 64, 4, 3), 64: C(32, 64, 4, 3), 128: C(32, 128, 8, 3), 256: C(32, 32, 4, 3)},
    "sm_90": {
        32: C(64, 64, 4, 3),
        96: C(64, 64, 4, 3, tma=True),
        128: C(32, 64, 4, 3, tma=True),
        192: C(16, 64, 4, 3, tma=True),
        256: C(32, 32, 4, 3),
    },
    "sm_100": {
        64: C(64, 128, 4, 3, tma=True),
        128: C(64, 128, 8, 3, tma=True),
        256: C(16, 64, 8, 3, tma=True),
    },
    "gfx": {256: C(32, 32, 4, 2)},
    "float32": {32: C(32, 64, 8, 3), 64: C(32, 32, 4, 3), 128: C(16, 32, 8, 3), 256: C(16, 16, 8, 3)},
}
"""As `BACKWARD_Q`. At 256 channels of an sm_90 the sums of 64 keys and their values would fill all registers of four
warps, and eight would do products twice; 32 keys take the older products of a warp."""

LOW_PRECISION: dict[str, dict[int, Config]] = {
    "sm_80": {64: C(128, 64, 4, 3), 128: C(128, 32, 4, 3), 256: C(32, 32, 2, 3)},
    "sm_86": {64: C(128, 64, 4, 3), 128: C(128, 32, 4, 3), 256: C(64, 32, 4, 3)},
    "sm_90": {64: C(128, 64, 4, 3), 128: C(64, 64, 4, 3), 256: C(64, 32, 4, 3)},
    "sm_100": {64: C(128, 64, 4, 3), 128: C(128, 64, 8, 3), 256: C(128, 32, 8, 3)},
    "gfx": {64: C(128, 64, 4, 2), 128: C(128, 64, 8, 2), 256: C(64, 32, 4, 2)},
}
"""As `FORWARD`; int8 and fp8 take the same tiles. Most are short of issued instructions or exponentials, not products,
so rows wide enough for few instructions count for more than warps. Keys: at most `quantised.KEYS`, of one scale."""

BACKWARD_FUSED: dict[str, dict[int, Config]] = {
    "sm_90": {80: C(64, 64, 4, 3, tma=True), 96: C(32, 64, 4, 3, tma=True), 128: C(32, 64, 4, 3)},
    "float32": {64: C(32, 64, 8, 3), 128: C(16, 32, 8, 3), 256: C(16, 16, 8, 3)},
}
"""As `BACKWARD_KV`, where its loops promise more than those of the two kernels together. Elsewhere five products take
more registers than there are, and what has no row here keeps the two."""

TABLES = {
    "forward": FORWARD,
    "low_precision": LOW_PRECISION,
    "backward_q": BACKWARD_Q,
    "backward_kv": BACKWARD_KV,
    "backward_fused": BACKWARD_FUSED,
}
BY_KEYS = frozenset({"backward_kv", "backward_fused"})
"""The kernels in which a program has a tile of keys; in others one of queries."""


LEAST_SUM = 32
"""Channels, or keys, that a product of 8-bit numbers adds up."""
ROWS_OF_A_WARP = 16
"""In a product of the tensor core, alone on GPUs before sm_90 and as a fourth of 64 from there on."""


def config_of(kernel: str, arch: str, grid: Grid, q: torch.Tensor, v: torch.Tensor, listed: bool = False) -> Config:
    """The choice for a GPU; tiles divide the map's blocks. kernel: one of `TABLES`, or decode. listed: over lists."""
    if kernel == "decode":  # its tile of queries is as high as the call needs
        row = max(q.shape[3], v.shape[3]) * v.element_size()
        return Config(16, divisor(grid.block_kv, 64 if row <= 128 else 32 if row <= 512 else 16), 4, 3)
    table = _rows(kernel, arch, q, listed)
    chosen = table[min(most for most in table if most >= max(q.shape[3], v.shape[3]))]
    block_m, block_n = divisor(grid.block_q, chosen.block_m), divisor(grid.block_kv, chosen.block_n)
    if q.dtype == torch.float32:
        return chosen._replace(block_m=block_m, block_n=block_n)  # where threads multiply, rows need not be so many
    own, whole = (block_n, chosen.block_n) if kernel in BY_KEYS else (block_m, chosen.block_m)
    warps = chosen.warps if own == whole else min(chosen.warps, most_warps(own))
    limit = chosen.max_registers if warps == chosen.warps else None  # fewer warps have room as they are
    wide = warps >= 4  # older products, which fewer warps do, would wait for each tile that a descriptor brings
    tma, late = chosen.tma and wide, chosen.late and wide
    return Config(block_m, block_n, warps, chosen.stages, limit, tma, late)


def has_fused(arch: str, q: torch.Tensor, v: torch.Tensor) -> bool:
    """Is there a choice for `backward_fused`?"""
    return max(q.shape[3], v.shape[3]) <= max(_rows("backward_fused", arch, q, False), default=0)


def _rows(kernel: str, arch: str, q: torch.Tensor, listed: bool) -> dict[int, Config]:
    """A kernel's choices for a GPU, by most channels."""
    family = "gfx" if arch.startswith("gfx") else {"sm_103": "sm_100"}.get(arch, arch)
    tables = TABLES[kernel]
    if q.dtype == torch.float32:
        return tables["float32"]
    return tables.get(family, tables.get("sm_86", {})) | (tables.get(f"{family}, lists", {}) if listed else {})


def most_warps(rows: int) -> int:
    """That share out the products of a tile with so many rows of its own side, and do none twice: 16 rows each."""
    return max(1, rows // ROWS_OF_A_WARP)


def padded(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


def parts_of(channels: int, arch: str) -> tuple[int, ...]:
    """Powers of two, one or two, that hold the channels with the least room left: 80 are 64 and 16. One on an sm_100,
    on which Triton pipelines no loop that sums up two products: by pointers or descriptors, it waits for each tile.
    """
    whole = padded(channels)
    parts = whole // 2, padded(channels - whole // 2)
    return parts if whole > 16 and sum(parts) < whole and not arch.startswith("sm_10") else (whole,)


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
