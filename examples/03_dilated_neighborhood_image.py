"""Dilated neighborhood attention on a photograph: each pixel averages like pixels near it (a bilateral filter)."""

from pathlib import Path

import matplotlib.cbook
import matplotlib.image
import numpy as np
import torch

import flexspec as fs

with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
    photo = matplotlib.image.imread(file, format="jpg")[40:424:4, 64:448:4] / 255.0  # 96 x 96 pixels
height, width, _ = photo.shape
noisy = np.clip(photo + np.random.default_rng(0).normal(0, 0.08, photo.shape), 0, 1)

canvas = fs.Canvas(h=height, w=width)
pattern = fs.neighborhood(canvas, window=7, dilation=2)
attend = fs.compile(fs.Attention(mask=pattern, scale=1.0), order=fs.tiled(canvas, h=8, w=16))

pixels = torch.tensor(noisy, dtype=torch.float32).reshape(1, 1, -1, 3)
colours = torch.nn.functional.pad(pixels * 12 - 6, (0, 5))  # head_dim 8
length = (colours * colours).sum(-1, keepdim=True)
queries = torch.cat([colours[..., :3], torch.ones_like(length), torch.zeros_like(colours[..., 4:])], -1)
keys = torch.cat([colours[..., :3], -length / 2, torch.zeros_like(colours[..., 4:])], -1)  # scores -|q - k|**2 / 2

smooth = attend(queries, keys, pixels)
error = (smooth - fs.reference_attention(attend.spec, queries, keys, pixels)).abs().max()
print(f"largest difference from the reference: {error:.1e}")
assert error < 1e-4


def distance(image):
    return float(np.abs(np.asarray(image).reshape(photo.shape) - photo).mean())


print(f"mean error of the noisy photo {distance(noisy):.4f}, after attention {distance(smooth):.4f}")
out = Path("out")
out.mkdir(exist_ok=True)
both = np.concatenate([noisy, smooth.reshape(photo.shape).clamp(0, 1).numpy()], 1)
matplotlib.image.imsave(out / "03_photo.png", both)
print("pictures:", out / "03_photo.png", attend.block_map(canvas.size).show(out / "03_neighborhood.png"))
