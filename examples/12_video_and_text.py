"""A video beside its text: text sees all, each pixel its tiles and the text; only the video is put in tile order."""

from pathlib import Path

import torch

import flexspec as fs

video = fs.Canvas(t=4, h=16, w=16)  # 1,024 tokens
TEXT = 64  # places for text; how many hold text is known when it runs
pattern = fs.sliding_tile(video, window={"t": 2, "h": 12, "w": 12}, tile={"t": 2, "h": 4, "w": 4})
order = fs.tiled(video, t=2, h=4, w=4)
lengths = torch.tensor([20, 64])

reading = fs.with_text(pattern, TEXT)  # the video in reading order
tiles = fs.with_text(pattern, TEXT, order=order)
for name, mask in (("reading order", reading), ("tile order", tiles)):
    blocks = fs.block_map(mask, video.size + TEXT, block_size=32, text_lengths=lengths)
    print(f"video in {name:>13}: {blocks.density:.1%} of the blocks for {blocks.token_density:.1%} of the pairs")
print("picture:", blocks.show(Path("out") / "12_video_and_text.png"))

torch.manual_seed(0)
q, k, v = torch.randn(3, 2, 1, video.size + TEXT, 32).unbind(0)


def split(x):
    return x[:, :, : video.size], x[:, :, video.size :]


moved = [torch.cat([order.apply(pixels), text], dim=2) for pixels, text in map(split, (q, k, v))]
out = fs.compile(tiles, block_size=32)(*moved, text_lengths=lengths)
pixels, text = split(out)
out = torch.cat([order.undo(pixels), text], dim=2)

error = (out - fs.reference_attention(reading, q, k, v, text_lengths=lengths)).abs().max()
print(f"largest difference from the reference in reading order: {error:.1e}")
assert error < 1e-5

# The same by hand, with a mask of its own between each two parts of the sequence:
text_length = fs.Input("text_lengths", dims=("batch",))
real = fs.mask(lambda b, kv: kv < text_length[b])
asking = fs.mask(lambda b, q: q < text_length[b])
by_hand = fs.segments(
    {"video": video.size, "text": TEXT},
    {("video", "video"): pattern, ("video", "text"): real, ("text", "video"): asking, ("text", "text"): asking & real},
)
print("by hand:", by_hand.equals(reading, video.size + TEXT, text_lengths=lengths))
