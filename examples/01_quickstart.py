"""Write a pattern, compile it, check it against the reference, look at it."""

from pathlib import Path

import torch

import flexspec as fs


@fs.mask
def local(q, kv, *, window):
    """The last `window` keys; `window` stays open and is given when it runs."""
    return (q >= kv) & (q - kv < window)


pattern = local & fs.document()  # document ids are given when it runs, too
attend = fs.compile(pattern)

length = 4096
ids = torch.tensor([0, 1, 2]).repeat_interleave(torch.tensor([1500, 700, 1896]))[None]  # three packed documents
values = {"window": 512, "document_id": ids}
print(attend.explain(length, heads=4, **values))

torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 4, length, 32).unbind(0)
print("\ncompiling for the CPU, about ten seconds the first time ...")
out = attend(q, k, v, **values)
error = (out - fs.reference_attention(pattern, q, k, v, **values)).abs().max()
print(f"\nlargest difference from the float64 reference: {error:.1e}")
assert error < 1e-5

blocks = attend.block_map(length, **values)
print(blocks)
blocks.show()
print("picture:", blocks.show(Path("out") / "01_quickstart.png"))
