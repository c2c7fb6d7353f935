"""What a multiprocessor of each GPU holds, and how many warps of a kernel fit on one."""

from __future__ import annotations

from typing import NamedTuple


class Gpu(NamedTuple):
    """Limits of a multiprocessor (a compute unit on AMD).

    warps: resident ones. blocks: resident ones. registers: 32-bit ones, for all threads. shared: bytes for all blocks.
    block_shared: bytes for one block, at most. reserved: bytes of shared memory that each block takes beside its own.
    """

    warps: int
    blocks: int
    registers: int
    shared: int
    block_shared: int
    reserved: int = 1024
    threads: int = 32
    """In a warp."""


KB = 1024
_AMD = {"warps": 32, "blocks": 32, "registers": 4 * 512 * 64, "reserved": 0, "threads": 64}

# NVIDIA: CUDA C++ Programming Guide, "Compute Capabilities". AMD: CDNA instruction set guides; each of four SIMDs has
# 512 vector registers a lane, which at most 8 warps share.
GPUS = {
    "sm_80": Gpu(64, 32, 65536, 164 * KB, 163 * KB),
    "sm_86": Gpu(48, 16, 65536, 100 * KB, 99 * KB),
    "sm_89": Gpu(48, 24, 65536, 100 * KB, 99 * KB),
    "sm_90": Gpu(64, 32, 65536, 228 * KB, 227 * KB),
    "sm_100": Gpu(64, 32, 65536, 228 * KB, 227 * KB),
    "sm_103": Gpu(64, 32, 65536, 228 * KB, 227 * KB),
    "sm_120": Gpu(48, 24, 65536, 100 * KB, 99 * KB),
    "gfx90a": Gpu(shared=64 * KB, block_shared=64 * KB, **_AMD),
    "gfx942": Gpu(shared=64 * KB, block_shared=64 * KB, **_AMD),
    "gfx950": Gpu(shared=160 * KB, block_shared=160 * KB, **_AMD),
}

TENSOR_COLUMNS = 512
"""Of tensor memory in a multiprocessor of compute capability 10; its kernels allocate some."""


def occupancy(gpu: Gpu, warps: int, registers: int, shared: int, columns: int = 0) -> float:
    """Resident warps over the most that there may be; 0 where a block does not fit.

    warps: of a block. registers: of a thread. shared: bytes of a block. columns: of tensor memory, of a block.

    >>> occupancy(GPUS["sm_90"], warps=8, registers=128, shared=64 * 1024)
    0.25
    """
    if shared > gpu.block_shared:
        return 0.0
    each = -(-registers // 8) * 8 * gpu.threads  # registers are handed out to a warp by eights of a thread
    fit = [gpu.blocks, gpu.warps // warps, gpu.registers // each // warps if each else gpu.blocks]
    fit.append(gpu.shared // (shared + gpu.reserved) if shared + gpu.reserved else gpu.blocks)
    if columns:
        fit.append(TENSOR_COLUMNS // columns)
    return min(fit) * warps / gpu.warps
