"""What the loops of a kernel do for one tile, and what the best that a multiprocessor can make of it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .binary import parsed, product_loops
from .configs import LEAST_SUM, Config, padded, parts_of
from .gpus import GPUS

CHANNELS = {
    "forward": (1, 1),
    "decode": (1, 1),
    "low_precision": (1, 1),
    "backward_q": (2, 1),
    "backward_kv": (2, 2),
    "backward_fused": (3, 2),
}
"""Products of a kernel for each pair of a tile: so many over the channels of q and k, so many over those of v."""
BLOCK = 128 * 128
"""Pairs for which instructions and cycles are given, so that tiles of all sizes compare."""
ISSUED, EXPONENTIALS, SHARED = 4, 16, 128
"""Of a multiprocessor in a cycle: instructions of a warp, exponentials, bytes of shared memory."""
ASSUMPTIONS = (
    "bound: products needed over what the busiest resource allows. A multiprocessor issues "
    f"{ISSUED} instructions a cycle, takes {EXPONENTIALS} exponentials, moves {SHARED} bytes of shared memory "
    "and multiplies at the rate of its data sheet, 8-bit numbers twice as fast as 16-bit ones; all resources "
    "overlap, and latencies, waits, bank conflicts, L2 and memory cost nothing."
)


@dataclass(frozen=True)
class LoopReport:
    """One loop of a kernel, `part` full or partial; both compare by what they do for 128 x 128 pairs.

    instructions: of a warp in one pass. products: done over needed, for the channels that there are. padding: what of
    it comes of channels rounded up to powers of two. per_block: instructions of all warps for 128 x 128 pairs, and
    classes the same by class. wait_depth: groups of asynchronous loads that may be under way at the strictest wait,
    None without such loads. overlap: the share of the exponentials that are taken while products are under way, None
    where products make a warp wait for them. least_n, least_n_a_shared: of the products that shared memory feeds, and
    of those whose left operand lies there too. local: instructions in the loop that reach spilt values. cycles: of a
    multiprocessor for 128 x 128 pairs, by resource. bound: see `ASSUMPTIONS`, from 0 to 1.
    """

    part: str
    instructions: int
    products: float
    padding: float
    per_block: int
    classes: dict[str, int]
    wait_depth: int | None
    overlap: float | None
    least_n: int | None
    least_n_a_shared: int | None
    local: int
    cycles: dict[str, int]
    bound: float

    @property
    def limit(self) -> str:
        """The resource that is busiest."""
        return max(self.cycles, key=lambda name: self.cycles[name])

    def facts(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {**asdict(self), "limit": self.limit}


def loops_of(
    name: str, listing: str, config: Config, head_dims: tuple[int, int], target: str, buffers: int = 1
) -> tuple[LoopReport, ...]:
    """The full loop and the partial one of a kernel; nothing for a kernel that multiplies no tiles.

    listing: of `cuobjdump -sass`. head_dims: channels of q and k, and of v. buffers: as `product_loops` takes them. Of
    loops that multiply, full runs have the one with fewest instructions, partial runs the one with most.
    """
    if name not in CHANNELS:
        return ()
    gpu, counted = GPUS[target], product_loops(parsed(listing), config.warps, buffers)
    pairs = config.block_m * config.block_n
    needed, rounded = (
        2 * pairs * sum(count * size for count, size in zip(CHANNELS[name], sizes, strict=True))
        for sizes in (head_dims, _rounded(name, head_dims, target))
    )
    reports = []
    for part, loop in zip(
        ("full", "partial"), counted if len(counted) < 2 else (counted[0], counted[-1]), strict=False
    ):
        scale, classes = BLOCK / pairs, loop.classes
        rate: float = gpu.tensor if classes.get("tensor core") else gpu.float32
        if loop.narrow_flops:
            rate *= loop.flops / (loop.flops - loop.narrow_flops / 2)
        cycles = {
            "products": loop.flops / rate,
            "issue": loop.instructions * config.warps / ISSUED,
            "exponentials": classes.get("exp2", 0) * config.warps * 32 / EXPONENTIALS,
            "shared memory": loop.shared_bytes / SHARED,
        }
        reports.append(
            LoopReport(
                part,
                loop.instructions,
                round(loop.flops / needed, 3),
                round(rounded / needed, 3),
                round(loop.instructions * config.warps * scale),
                {kind: round(count * config.warps * scale) for kind, count in classes.items()},
                loop.wait_depth,
                loop.overlap,
                loop.least_n,
                loop.least_n_a_shared,
                classes.get("local", 0),
                {resource: round(each * scale) for resource, each in cycles.items()},
                round(needed / rate / max(cycles.values()), 3),
            )
        )
    return tuple(reports)


def _rounded(name: str, head_dims: tuple[int, int], target: str) -> list[int]:
    """Channels as a kernel multiplies them."""
    if name == "low_precision":
        return [max(LEAST_SUM, padded(head_dims[0])), padded(head_dims[1])]
    return [padded(size) if name == "decode" else sum(parts_of(size, target)) for size in head_dims]
