"""What a multiprocessor of each GPU holds, and how many warps of a kernel fit on one."""

from __future__ import annotations

from typing import NamedTuple


class Gpu(NamedTuple):
    """Limits of a multiprocessor (a compute unit on AMD).

    warps: resident ones. blocks: resident ones. registers: 32-bit ones, for all threads. shared: bytes for all blocks.
    block_shared: bytes for one block, at most. tensor, float32: floating-point operations a cycle, of 16-bit numbers by
    the tensor cores and of 32-bit ones by fused multiply-adds. reserved: bytes of shared memory that each block takes
    beside its own.
    """

    warps: int
    blocks: int
    registers: int
    shared: int
    block_shared: int
    tensor: int = 0
    float32: int = 256
    reserved: int = 1024
    threads: int = 32
    """In a warp."""


KB = 1024
_AMD = {"warps": 32, "blocks": 32, "registers": 4 * 512 * 64, "reserved": 0, "threads": 64}

# NVIDIA: CUDA C++ Programming Guide, "Compute Capabilities". AMD: CDNA instruction set guides; each of four SIMDs has
# 512 vector registers a lane, which at most 8 warps share. Operations a cycle: NVIDIA's architecture whitepapers,
# dense, with float32 sums, of the data-centre and workstation GPUs.
GPUS = {
    "sm_80": Gpu(64, 32, 65536, 164 * KB, 163 * KB, 2048, 128),
    "sm_86": Gpu(48, 16, 65536, 100 * KB, 99 * KB, 1024),
    "sm_89": Gpu(48, 24, 65536, 100 * KB, 99 * KB, 1024),
    "sm_90": Gpu(64, 32, 65536, 228 * KB, 227 * KB, 4096),
    "sm_100": Gpu(64, 32, 65536, 228 * KB, 227 * KB, 8192),
    "sm_103": Gpu(64, 32, 65536, 228 * KB, 227 * KB, 8192),
    "sm_120": Gpu(48, 24, 65536, 100 * KB, 99 * KB, 1024),
    "gfx90a": Gpu(shared=64 * KB, block_shared=64 * KB, **_AMD),
    "gfx942": Gpu(shared=64 * KB, block_shared=64 * KB, **_AMD),
    "gfx950": Gpu(shared=160 * KB, block_shared=160 * KB, **_AMD),
}

TENSOR_COLUMNS = 512
"""Of tensor memory in a multiprocessor of compute capability 10; its kernels allocate some."""


class Resident(NamedTuple):
    """Blocks that fit on a multiprocessor by each of its limits."""

    registers: int
    shared: int
    others: int

    @property
    def blocks(self) -> int:
        return min(self)


def resident(gpu: Gpu, warps: int, registers: int, shared: int, columns: int = 0) -> Resident:
    """How many blocks fit. warps: of a block. registers: of a thread. shared: bytes of a block. columns: of tensor
    memory, of a block.

    >>> resident(GPUS["sm_90"], warps=8, registers=128, shared=64 * 1024)
    Resident(registers=2, shared=3, others=8)
    """
    each = -(-registers // 8) * 8 * gpu.threads  # registers are handed out to a warp by eights of a thread
    by_registers = gpu.registers // each // warps if each else gpu.blocks
    by_shared = gpu.shared // (shared + gpu.reserved) if shared + gpu.reserved else gpu.blocks
    others = [gpu.blocks, gpu.warps // warps, *([TENSOR_COLUMNS // columns] if columns else [])]
    return Resident(by_registers, by_shared if shared <= gpu.block_shared else 0, min(others))


def occupancy(gpu: Gpu, warps: int, registers: int, shared: int, columns: int = 0) -> float:
    """Resident warps over the most that there may be, from what `resident` takes; 0 where a block does not fit.

    >>> occupancy(GPUS["sm_90"], warps=8, registers=128, shared=64 * 1024)
    0.25
    """
    return resident(gpu, warps, registers, shared, columns).blocks * warps / gpu.warps
