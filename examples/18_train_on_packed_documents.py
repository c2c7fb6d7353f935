"""Train a small GPT on packed documents for 200 steps on a CPU, beside the same model with dense masks.

Each step packs other pieces of a file, so the mask changes at every step. Both models begin with the same weights and
see the same bytes: their losses stay together.
"""

import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import flexspec as fs

torch.set_num_threads(1)  # which is quickest for tensors as small as these
STEPS, BATCH, LENGTH, WIDTH, HEADS, LAYERS, PIECE = 200, 2, 512, 64, 4, 2, 200
TEXT = torch.frombuffer(bytearray(Path(os.__file__).read_bytes() * 2), dtype=torch.uint8).long()


def packed(generator):
    """Bytes of random pieces of a file, the number of each one's piece, and its place there: [batch, length + 1]."""
    number = LENGTH // 20 + 1
    lengths = torch.randint(20, PIECE, (BATCH, number), generator=generator)
    starts = lengths.cumsum(1) - lengths
    ids = (torch.arange(LENGTH + 1)[None, :, None] >= starts[:, None]).sum(2) - 1
    places = torch.arange(LENGTH + 1) - starts.gather(1, ids)
    origins = torch.randint(len(TEXT) - PIECE, (BATCH, number), generator=generator)
    return TEXT[origins.gather(1, ids) + places], ids, places


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x, attend):
        q, k, v = self.qkv(self.before(x)).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(attend(q, k, v).transpose(1, 2).flatten(2))
        return x + self.feed(self.after(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(PIECE, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))

    def forward(self, text, places, attend):
        x = self.bytes(text) + self.places(places)
        for block in self.blocks:
            x = block(x, attend)
        return self.head(x)


compiled = fs.compile(fs.causal & fs.document())


def with_flexspec(ids):
    return lambda q, k, v: compiled(q, k, v, document_id=ids)


def with_dense_masks(ids):
    mask = (ids[:, None, :, None] == ids[:, None, None]) & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def train(attention):
    """Losses of all steps [steps], and seconds."""
    torch.manual_seed(0)
    model, generator = Model(), torch.Generator().manual_seed(1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses, begin = [], time.perf_counter()
    for _ in range(STEPS):
        text, ids, places = packed(generator)
        logits = model(text[:, :-1], places[:, :-1], attention(ids[:, :-1].contiguous()))
        asked = ids[:, 1:] == ids[:, :-1]  # not the first byte of the next piece
        loss = F.cross_entropy(logits[asked], text[:, 1:][asked])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return torch.tensor(losses), time.perf_counter() - begin


(mine, seconds), (dense, dense_seconds) = train(with_flexspec), train(with_dense_masks)
for step in (0, 49, 99, 199):
    print(f"step {step + 1:3}: loss {mine[step]:.4f} with flexspec, {dense[step]:.4f} with dense masks")
print(f"{seconds:.0f} seconds, {dense_seconds:.0f} with dense masks; losses differ by {(mine - dense).abs().max():.1e}")
assert mine[-20:].mean() < 0.6 * mine[0]
torch.testing.assert_close(mine[:50], dense[:50], atol=1e-3, rtol=0)  # rounding grows with the steps
torch.testing.assert_close(mine[-20:].mean(), dense[-20:].mean(), atol=0.02, rtol=0)
