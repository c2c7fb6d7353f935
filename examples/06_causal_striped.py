"""Causal attention over ranks: in the striped order every rank has the same work, and the meaning is unchanged."""

from pathlib import Path

import torch

import flexspec as fs

LENGTH, RANKS = 8192, 4


def work(order):
    """Blocks that each rank's queries compute against each rank's keys: [ranks, ranks]."""
    kinds = fs.block_map(fs.causal(), LENGTH, order=order).kinds()[0, 0]
    share = kinds.shape[0] // RANKS
    return (kinds > 0).view(RANKS, share, RANKS, share).sum((1, 3))


for name, order in (("contiguous", None), ("striped", fs.striped(RANKS))):
    print(f"{name}: blocks per (query rank, key rank)\n{work(order).tolist()}")

attend = fs.compile(fs.causal(), order=fs.striped(RANKS))
torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 1, 2048, 32).unbind(0)
error = (attend(q, k, v) - fs.reference_attention(fs.causal(), q, k, v)).abs().max()
print(f"largest difference from the reference: {error:.1e}")
assert error < 1e-5
print("picture:", attend.block_map(2048).show(Path("out") / "06_striped.png"))
