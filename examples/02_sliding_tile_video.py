"""Sliding tile attention on a video canvas: an order changes the blocks, never the meaning."""

from pathlib import Path

import torch

import flexspec as fs

video = fs.Canvas(t=30, h=48, w=80)  # 115,200 tokens
tiles = fs.sliding_tile(video, window={"t": 18, "h": 24, "w": 24}, tile={"t": 6, "h": 8, "w": 8})
order = fs.tiled(video, t=6, h=8, w=8)

for name, chosen in (("row-major", None), ("tiled", order)):
    blocks = fs.block_map(tiles, video.size, block_size=384, order=chosen)
    counts = {kind.name.lower(): count for kind, count in blocks.counts().items()}
    print(f"{name:>9}: block density {blocks.density:.2%}, {counts}")
both = fs.show_orders(tiles, [None, order], Path("out") / "02_sliding_tile.png", block_size=384)
keys = fs.kept_keys(tiles, {"t": 14, "h": 20, "w": 30})
print("pictures:", both, keys.show(Path("out") / "02_keys.png"), f"({keys.counts[0]:,} keys)")

small = fs.Canvas(t=4, h=16, w=24)  # the same idea, small enough to check against the reference
tiles = fs.sliding_tile(small, window={"t": 2, "h": 12, "w": 12}, tile={"t": 2, "h": 4, "w": 4})
attend = fs.compile(tiles, order=fs.tiled(small, t=2, h=4, w=4), block_size=32)
torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 2, small.size, 32).unbind(0)
error = (attend(q, k, v) - fs.reference_attention(tiles, q, k, v)).abs().max()
print(f"attention in tile order, largest difference from the reference: {error:.1e}")
assert error < 1e-5
