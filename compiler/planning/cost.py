"""A roofline for block-sparse attention: counts of blocks to seconds. What is assumed is named here, once.

The counts are exact; the seconds are not measured. They order plans, and say nothing about a kernel's quality.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .block_counts import BlockCounts
from .hardware import Hardware

ATTAINED = 0.6
"""Assumed share of the tensor cores' peak that an attention kernel reaches on full blocks. Not measured."""
PARTIAL_COST = 1.5
"""Assumed time of a partial block, of a full one: the mask's arithmetic on each pair. Not measured."""
CACHE_SPEED = 2.0
"""Assumed speed of reads from the L2 cache, of device memory. Keys are read once for each tile of queries."""
TILE_Q = 128
"""Assumed queries that a kernel holds at once: longer blocks of queries are several tiles."""
BYTES = 2
"""Of a number: bf16."""


@dataclass(frozen=True)
class Shape:
    """The sizes of one attention call."""

    q_len: int
    kv_len: int
    batch: int
    heads: int
    kv_heads: int
    head_dim: int

    def length(self, side: str) -> int:
        return self.q_len if side == "q" else self.kv_len

    @property
    def bytes(self) -> int:
        """Of q, k, v and the output together."""
        return self.bytes_of("q") + self.bytes_of("kv")

    def bytes_of(self, side: str) -> int:
        """Of q and the output, or of k and v."""
        heads = self.heads if side == "q" else self.kv_heads
        return self.batch * 2 * heads * self.length(side) * self.head_dim * BYTES


def attention_seconds(
    counts: Sequence[BlockCounts], repeat: int, block: tuple[int, int], shape: Shape, hardware: Hardware
) -> float:
    """Seconds of a forward pass whose (batch, head) have these counts of blocks by row, each of them `repeat` times.

    A tile takes the larger of its arithmetic and its reads of keys and values. Tiles run on the SMs in waves: rounded
    up, and never shorter than the longest tile. Nor is the whole shorter than reading q, k, v and writing the output.
    """
    block_q, block_kv = block
    tile_q = min(block_q, TILE_Q)
    kept = np.concatenate([count.kept for count in counts])
    full = np.concatenate([count.full for count in counts])
    work = PARTIAL_COST * kept - (PARTIAL_COST - 1) * full
    arithmetic = work * (4.0 * tile_q * block_kv * shape.head_dim / (hardware.flops * ATTAINED))
    reads = kept * (2.0 * block_kv * shape.head_dim * BYTES / (hardware.bandwidth * CACHE_SPEED))
    tile = np.maximum(arithmetic, reads) * hardware.sms
    tiles = int((kept > 0).sum()) * repeat * -(-block_q // tile_q)
    if not tiles:
        return shape.bytes / hardware.bandwidth
    waves = -(-tiles // hardware.sms)
    running = max(float(tile.max()), waves * float(tile.sum()) / int((kept > 0).sum()))
    return max(running, shape.bytes / hardware.bandwidth)


def permutation_seconds(shape: Shape, hardware: Hardware, sides: Iterable[str] = ("q", "kv")) -> float:
    """Moving q, k, v into an order and the output out of it: each is read once and written once."""
    return 2 * sum(shape.bytes_of(side) for side in sides) / hardware.bandwidth
