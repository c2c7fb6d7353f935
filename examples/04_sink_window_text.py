"""Attention sinks and a window over a long text; the window changes without a recompile."""

import argparse
from pathlib import Path

import torch

import flexspec as fs

text = Path(argparse.__file__).read_bytes()[:20_000]  # real text: a module of the standard library, as bytes
tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
torch.manual_seed(0)
table = torch.randn(256, 3 * 2 * 32) / 4
q, k, v = table[tokens].view(1, len(tokens), 3, 2, 32).permute(2, 0, 3, 1, 4).contiguous().unbind(0)

pattern = fs.sink_window(sink=4)
attend = fs.compile(pattern)  # the window stays a run-time parameter
start = len(tokens) - 500
tail = fs.from_mask_mod(lambda b, h, q_idx, kv_idx: pattern(b, h, q_idx + start, kv_idx))  # of the last 500 queries
for window in (256, 1024, 4096):
    out = attend(q, k, v, window=window)
    blocks = attend.block_map(len(tokens), window=window)
    wanted = fs.reference_attention(tail, q[:, :, start:], k, v, window=window)
    error = (out[:, :, start:] - wanted).abs().max()
    print(f"window {window:>5}: {blocks.density:6.2%} of the blocks, difference {error:.1e}")
    assert error < 1e-5
print("picture:", blocks.show(Path("out") / "04_sink_window.png"))
