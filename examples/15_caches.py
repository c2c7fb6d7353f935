"""True positions: a ring buffer, a half-filled cache, evictions and gathered keys are one idea, with one mask each."""

from pathlib import Path

import torch

import flexspec as fs

HEADS, KEY_HEADS, LENGTH, DIM = 4, 2, 200, 32
torch.manual_seed(0)
q, k, v = (torch.randn(1, heads, LENGTH, DIM) for heads in (HEADS, KEY_HEADS, KEY_HEADS))


def whole(keep):
    """Attention over the whole sequence, every key at its place, by torch's own."""
    rows, columns = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)
    mask = keep(rows, columns) & (rows >= columns)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def decode(attend, slots, slot_of, wanted, name):
    """Every token is a step against a cache of `slots` keys; `slot_of` says where its own key goes."""
    keys, values = torch.zeros(2, 1, KEY_HEADS, slots, DIM)
    positions = torch.full((1, slots), -1)  # nothing is there
    for step in range(LENGTH):
        slot = slot_of(step)
        keys[:, :, slot], values[:, :, slot], positions[:, slot] = k[:, :, step], v[:, :, step], step
        out = attend(q[:, :, step : step + 1], keys, values, q_positions=torch.tensor([[step]]), kv_positions=positions)
        torch.testing.assert_close(out, wanted[:, :, step : step + 1], rtol=1e-4, atol=1e-5)
    print(f"{name}: {LENGTH} steps, each the same as over the whole sequence")
    return positions


attend = fs.compile(fs.causal_window(64), block_size=16)
ring = decode(attend, 64, lambda step: step % 64, whole(lambda q, kv: q - kv < 64), "a ring buffer of 64 slots")

attend = fs.compile(fs.causal(), block_size=16)
decode(attend, 512, lambda step: step, whole(lambda q, kv: q >= kv), "a static cache of 512 slots, 200 of them filled")

attend = fs.compile(fs.sink_window(4, 60), block_size=16)
sinks = decode(
    attend,
    64,
    lambda step: step if step < 4 else 4 + (step - 4) % 60,
    whole(lambda q, kv: (q - kv < 60) | (kv < 4)),
    "sinks that stay, and a ring (StreamingLLM)",
)

# Each key head keeps the 40 keys that it likes best: gathered, they still know where they stood.
best = torch.randn(1, KEY_HEADS, LENGTH).topk(40).indices.sort().values
gathered = [torch.take_along_dim(x, best[..., None], 2) for x in (k, v)]
attend = fs.compile(fs.causal() & fs.sliding_window(100), block_size=16)
out = attend(q, *gathered, kv_positions=best)
kept = torch.zeros(1, KEY_HEADS, 1, LENGTH, dtype=torch.bool).scatter_(3, best[:, :, None], True)
wanted = whole(lambda q, kv: (q - kv <= 100) & kept.repeat_interleave(HEADS // KEY_HEADS, 1))
rows = kept[0, :, 0].int().cumsum(-1).amin(0) > 0  # a query before the first kept key keeps nothing: 0, torch gives nan
torch.testing.assert_close(out[:, :, rows], wanted[:, :, rows].nan_to_num(), rtol=1e-4, atol=1e-5)
print("gathered keys of each head: the same as over the whole sequence with the other keys dropped")

# A summary for each 25 tokens, appended: positions of a segment of its own, after all tokens.
TOKENS, CHUNK = LENGTH, 25


@fs.mask
def compressed(q, kv):
    """The last 16 tokens, and the summary of every chunk that is over."""
    summary = kv >= TOKENS
    return (~summary & (q >= kv) & (q - kv < 16)) | (summary & ((kv - TOKENS + 1) * CHUNK <= q))


summaries = [x.unflatten(2, (-1, CHUNK)).mean(3) for x in (k, v)]
positions = torch.cat([torch.arange(150, 166), TOKENS + torch.arange(LENGTH // CHUNK)])[None]
cache = [torch.cat([x[:, :, 150:166], summary], 2) for x, summary in zip((k, v), summaries, strict=True)]
out = fs.compile(compressed, block_size=16)(
    q[:, :, 165:166], *cache, q_positions=torch.tensor([[165]]), kv_positions=positions
)
few = [torch.cat([x[:, :, :16], x[:, :, 16 : 16 + 165 // CHUNK]], 2) for x in cache]
wanted = torch.nn.functional.scaled_dot_product_attention(q[:, :, 165:166], *few, enable_gqa=True)
torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
print("a window and summaries: the same as attention to them alone")

attend = fs.compile(fs.sink_window(4, 60), block_size=16)
blocks = attend.block_map(LENGTH, 64, kv_positions=sinks)
print("picture:", blocks.show(Path("out") / "15_caches.png"))
