"""Which pattern keeps most of an observed attention map at a budget? Four heads, each made with a habit of its own."""

from pathlib import Path

import torch

import flexspec as fs

video = fs.Canvas(t=8, h=8, w=12)
noise = torch.rand(4, video.size, video.size, generator=torch.Generator().manual_seed(0))
habits = {
    "near in the sequence": fs.sliding_window(40),
    "the first tokens": fs.sink(n=6) | fs.sliding_window(16),
    "the same place in every frame": fs.axial(video, "t"),
    "near on the canvas": fs.neighborhood(video, window={"t": 3, "h": 3, "w": 5}),
}
observed = torch.stack([noise[i] * (habit.dense(video.size)[0, 0] + 0.003) for i, habit in enumerate(habits.values())])

fits = fs.fit(observed, budget=0.2, canvas=video, block_size=32)
print("\n".join(f"head {head}: {name}" for head, name in enumerate(habits)))
print(fits)
print("picture:", fits.show(Path("out") / "13_fit.png"))

print("\nThe least density that keeps 70% of each head:")
print(fits.cheapest(0.7))

print("\nThe same with three candidates of one's own, one of them under another order:")
lines = (fs.axial(video, "t"), fs.axes(video, "h", "w", "t"))
print(fs.fit(observed, [fs.sliding_window, fs.sink_window(sink=6), lines], budget=0.2, block_size=32))

print("\nOne call for the heads that share an order:")
for order in dict.fromkeys(fits.orders):
    heads = [fit.head for fit in fits if fit.order == order]
    mask = fs.per_head([fits[head].mask for head in heads])
    made = fs.block_map(mask, video.size, heads=len(heads), order=order, block_size=32)
    print(f"heads {heads}, order {order}: {made.density:.1%} of the blocks")
