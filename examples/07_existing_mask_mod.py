"""A FlexAttention mask_mod as it is, captured tensors included: the same block mask, derived and not evaluated."""

from pathlib import Path

import torch
from torch.nn.attention import flex_attention as flex

import flexspec as fs

lengths = torch.tensor([900, 300, 848])
document_id = torch.repeat_interleave(torch.arange(3), lengths)
prefix = torch.tensor([64, 32, 100])


def prefix_lm_documents(b, h, q_idx, kv_idx):
    same = document_id[q_idx] == document_id[kv_idx]
    start = torch.where(document_id[kv_idx] == 0, 0, torch.where(document_id[kv_idx] == 1, 900, 1200))
    return same & ((q_idx >= kv_idx) | (kv_idx - start < prefix[document_id[kv_idx]]))


ours = fs.create_block_mask(prefix_lm_documents, None, None, 2048, 2048, device="cpu")
theirs = flex.create_block_mask(prefix_lm_documents, None, None, 2048, 2048, device="cpu")
for field in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_indices", "full_q_indices"):
    assert torch.equal(getattr(ours, field), getattr(theirs, field)), field
print("the block mask equals torch's, field by field:", ours.shape)

mask = fs.from_mask_mod(prefix_lm_documents)
print("what flexspec read:", mask.expr)
print("picture:", fs.block_map(mask, 2048).show(Path("out") / "07_mask_mod.png"))
