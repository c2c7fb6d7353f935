"""Blocks chosen by q and k at each call: published selectors at one budget, on the same q and k, and one's own."""

from pathlib import Path

import torch

import flexspec as fs

OUT = Path("out")
LENGTH, HEADS, BLOCK = 1024, 4, 32
causal = fs.causal()

torch.manual_seed(0)
topics = torch.randn(8, 16)  # tokens come in runs of one topic, and look for their own
topic = torch.arange(LENGTH) // 64 % 8
q, k = (2.5 * topics[topic] / 4 + 0.7 * torch.randn(1, HEADS, LENGTH, 16) for _ in range(2))
v = torch.randn(1, HEADS, LENGTH, 16)


@fs.selector
def by_last_query(q, k, *, block):
    """The last query of each block speaks for it: blocks of keys by the largest product with one of their tokens."""
    last = q[:, :, block - 1 :: block]
    products = (last @ k.mT).unflatten(-1, (-1, block))
    return products.amax(-1)


MASKS = {
    "moba": fs.moba(BLOCK, 6),
    "nsa": fs.nsa(BLOCK, 6),
    "vsa": causal & (fs.vsa(BLOCK, 5) | fs.causal_window(1)),
    "nabla": causal & fs.nabla(BLOCK, 0.55),
    "draft": causal & fs.draft(BLOCK, 0.68),
    "xattention": fs.xattention(BLOCK, 8, 0.4),
    "region_topk": causal & fs.region_topk(BLOCK, 6),
    "quest": fs.quest(BLOCK, 6),
    "by_last_query": causal & (by_last_query(block=BLOCK, rule=fs.top_k(5)) | fs.causal_window(1)),
    "window, no choice": fs.causal_window(6 * BLOCK),
}

full, lse = fs.compile(causal)(q, k, v, return_lse=True)
print(f"{'':>18}  pairs  blocks  recall  error")
for name, mask in MASKS.items():
    given = {"q": q, "k": k} if mask.selections else {}
    blocks = fs.block_map(mask, LENGTH, block_size=BLOCK, **given)
    pairs = mask.dense(LENGTH, **given).float().mean() / causal.dense(LENGTH).float().mean()  # of the causal ones
    share = fs.recall(mask, q, k, within=causal, lse=lse).share.mean()
    out = fs.compile(mask, block_size=BLOCK)(q, k, v)  # the choice is made again, from this call's q and k
    error = (out - full).norm() / full.norm()
    print(f"{name:>18}  {pairs:5.1%}  {blocks.density:6.1%}  {share:6.1%}  {error:5.3f}")
    if name == "moba":
        print("picture:", blocks.show(OUT / "19_moba.png"))

assert fs.moba(BLOCK, 6).is_causal(LENGTH, heads=HEADS)  # whatever is chosen
assert fs.moba(BLOCK, 6).every_query_attends(LENGTH, heads=HEADS)

# Decoding: one query, pages of a cache, the choice of each step over the keys so far.
step = fs.compile(fs.quest(BLOCK, 6))
token = step(q[:, :, -1:], k, v, offset=LENGTH - 1)
torch.testing.assert_close(token, fs.compile(fs.quest(BLOCK, 6))(q, k, v)[:, :, -1:])

# Video: tiles in memory, the paper's selector beside a sliding tile. Training goes through what was chosen.
video = fs.Canvas(t=4, h=16, w=16)
tile = {"t": 4, "h": 4, "w": 4}
both = fs.nabla(64, 0.5) | fs.sliding_tile(video, window={"t": 4, "h": 12, "w": 12}, tile=tile)
attend = fs.compile(both, order=fs.tiled(video, **tile), block_size=64)
leaves = [x.requires_grad_() for x in (q, k, v)]
attend(*leaves).square().sum().backward()
print(f"{both}: gradients of norm {', '.join(f'{x.grad.norm():.0f}' for x in leaves)}")
