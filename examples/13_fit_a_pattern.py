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
observed = torch.stack([noise[i] * (habit.dense(video.size)[0, 0] + 0.01) for i, habit in enumerate(habits.values())])

fits = fs.fit(observed, budget=0.2, canvas=video, block_size=32)
print("\n".join(f"head {head}: {name}" for head, name in enumerate(habits)))
print(fits)
print("picture:", fits.show(Path("out") / "13_fit.png"))

print("\nThe same by hand: three candidates, one of them under two orders.")
tiles = fs.tiled(video, t=2, h=4, w=4)
print(fs.fit(observed, [fs.sliding_window, fs.axial(video, "t"), (fs.axial(video, "t"), tiles)], 0.2, block_size=32))

pattern = fs.per_head(fits.masks)
print("\nOne mask for all heads:", fs.block_map(pattern, video.size, heads=4, block_size=32))
