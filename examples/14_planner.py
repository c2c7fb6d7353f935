"""The planner: which order and which blocks a mask should run in, from exact counts."""

from pathlib import Path

import torch

import flexspec as fs

video = fs.Canvas(t=12, h=24, w=32)  # 9,216 tokens
near = fs.neighborhood(video, window={"t": 5, "h": 9, "w": 9})

plans = fs.plan(near, heads=24, hardware="h100", moved=False)  # the model moves its tokens once, at its entrance
print(plans)
best = plans.best
blocks = fs.block_map(near, video.size, block_size=best.block_size, order=best.order)
drawn = blocks.show(Path("out") / "14_planned.png")
print("picture:", drawn)

small = fs.Canvas(t=4, h=8, w=8)  # two kinds of heads, each with an order of its own
heads = fs.per_head([fs.axial(small, "t"), fs.axial(small, "w")])
print(*(f"heads {group.heads}: {group.plans.best.order}" for group in fs.plan(heads, heads=2).by_head), sep="\n")

attend = fs.compile(heads, order="auto", backend="reference")
torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 2, small.size, 16).unbind(0)
error = (attend(q, k, v) - fs.reference_attention(heads, q, k, v)).abs().max()
print(f"{attend}\nlargest difference from the reference: {error:.1e}")
assert error < 1e-5
