"""Write a pattern, compile it, check it against the reference, look at it."""

from pathlib import Path

import torch

import flexspec as fs


@fs.mask
def sink_window(q, kv, *, window=1024, sink=4):
    """Every query sees the last `window` tokens and the first `sink`."""
    return (q >= kv) & ((q - kv < window) | (kv < sink))


pattern = sink_window(window=512) & fs.document()  # document ids are given when it runs
attend = fs.compile(pattern)

length = 4096
ids = torch.tensor([0, 1, 2]).repeat_interleave(torch.tensor([1500, 700, 1896]))[None]  # three packed documents
print(attend.explain(length, heads=4, document_id=ids))

torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 4, length, 32).unbind(0)
out = attend(q, k, v, document_id=ids)  # FlexAttention, compiled, on the CPU
error = (out - fs.reference_attention(pattern, q, k, v, document_id=ids)).abs().max()
print(f"\nlargest difference from the float64 reference: {error:.1e}")
assert error < 1e-5

blocks = attend.block_map(length, document_id=ids)
print(blocks)
blocks.show()
print("picture:", blocks.show(Path("out") / "01_quickstart.png"))
