"""Membership in a row of a captured tensor: a list of key blocks for each query block, judged by Python's `in`."""

import pytest
import torch
from random_masks import block_kinds
from test_triton import qkv, same_as_reference
from torch.nn.attention.flex_attention import create_mask

import flexspec as fs

B, H, LENGTH, BLOCK = 2, 3, 22, 4
BLOCKS = -(-LENGTH // BLOCK)


def chosen(width, dtype=torch.int32):
    """Blocks of keys for each (batch, head, block of queries); -1 where a row holds fewer, and some twice."""
    made = torch.Generator().manual_seed(width)
    return torch.randint(-1, BLOCKS, (B, H, BLOCKS, width), generator=made).to(dtype)


idx = chosen(3)
FORMS = {
    "isin": lambda b, h, q, kv: torch.isin(kv // BLOCK, idx[b, h, q // BLOCK]),
    "isin, index by index": lambda b, h, q, kv: torch.isin(kv // BLOCK, idx[b][h, q // BLOCK]),
    "isin, all of the last dim": lambda b, h, q, kv: torch.isin(kv // BLOCK, idx[b, h, q // BLOCK, :]),
    "isin, not": lambda b, h, q, kv: ~torch.isin(kv // BLOCK, idx[b, h, q // BLOCK], invert=True),
    "any": lambda b, h, q, kv: (idx[b, h, q // BLOCK] == kv // BLOCK).any(-1),
    "any of all": lambda b, h, q, kv: (kv // BLOCK == idx[b, h, q // BLOCK, ...]).any(),
    "torch.any": lambda b, h, q, kv: torch.any(torch.eq(idx[b, h, q // BLOCK], kv // BLOCK), dim=-1),
    "all": lambda b, h, q, kv: ~(idx[b, h, q // BLOCK] != kv // BLOCK).all(dim=-1),
    "joined": lambda b, h, q, kv: ((idx[b, h, q // BLOCK] == kv // BLOCK) & (idx[b, h, q // BLOCK] >= 0)).any(-1),
    "a loop": lambda b, h, q, kv: sum((kv // BLOCK == one for one in idx[b, h, q // BLOCK]), False),
}


def truth(rows):
    kept = torch.zeros(B, H, LENGTH, LENGTH, dtype=torch.bool)
    for place in torch.cartesian_prod(*map(torch.arange, kept.shape)).tolist():
        b, h, q, kv = place
        kept[b, h, q, kv] = kv // BLOCK in rows[b, h, q // BLOCK].tolist()
    return kept


def judged(fn, wanted):
    """The predicate, its block map at unequal blocks, and the printed mask_mod."""
    mask = fs.from_mask_mod(fn)
    assert torch.equal(mask.dense(LENGTH, batch=B, heads=H), wanted)
    made = fs.block_map(mask, LENGTH, block_size=(4, 3), batch=B, heads=H)
    assert torch.equal(made.kinds(), block_kinds(wanted, 4, 3))
    assert torch.equal(create_mask(made.mask_mod, B, H, LENGTH, LENGTH, device="cpu"), wanted)


@pytest.mark.parametrize("name", FORMS)
def test_every_way_to_write_it(name):
    judged(FORMS[name], truth(idx))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int64])
@pytest.mark.parametrize("width", [1, 2, 7, 64])
def test_rows_of_any_width_and_dtype(width, dtype):
    rows = chosen(width, dtype)
    judged(lambda b, h, q, kv: torch.isin(kv // BLOCK, rows[b, h, q // BLOCK]), truth(rows))


def test_the_widest_row_stays_shallow():
    rows = torch.arange(256).repeat(4, 1)
    mask = fs.mask(lambda q, kv: torch.isin(kv * 2, rows[q % 4]))
    assert mask.expr.depth < 20
    assert torch.equal(mask.dense(200)[0, 0, 0], torch.arange(200) * 2 < 256)


def test_a_number_of_no_position_is_a_member():
    assert fs.mask(lambda q, kv: torch.isin(2, idx[0, 0, q // BLOCK])).dense(LENGTH)[0, 0, :, 0].tolist() == [
        2 in idx[0, 0, q // BLOCK].tolist() for q in range(LENGTH)
    ]


def test_rows_are_compared_element_by_element():
    """torch's own meaning of a comparison of two rows."""
    left, right = torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([[1, 9], [9, 4], [6, 5]])
    mask = fs.mask(lambda q, kv: (left[q] == right[kv]).any(-1))
    assert torch.equal(mask.dense(3)[0, 0], (left[:, None] == right[None]).any(-1))


def test_membership_in_a_kernel():
    mask = fs.from_mask_mod(FORMS["any"]) & fs.causal() | fs.sink(1)
    same_as_reference(mask, *qkv(LENGTH, heads=H, kv_heads=1, batch=B), block_size=16)


def test_an_input_that_says_its_width_lists_its_rows():
    blocks = fs.Input("blocks", ("batch", "heads", "_", 3))
    mask = fs.mask(lambda b, h, q, kv: torch.isin(kv // 4, blocks[b, h, q // 4]))
    ids = torch.randint(0, 5, (1, 2, 5, 3), generator=torch.Generator().manual_seed(0))
    by_block = (ids[..., None] == torch.arange(5)).any(-2)
    kept = by_block.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(mask.dense(20, blocks=ids), kept)
    assert torch.equal(fs.block_map(mask, 20, block_size=4, blocks=ids).kinds() == 2, by_block)
    with pytest.raises(fs.FlexSpecError, match=r"FS008.*\n.*\n.*\n.*\n.*as in \('batch', 'heads', '_', 8\)"):
        fs.mask(lambda b, h, q, kv: torch.isin(kv, fs.Input("row", ("batch", "heads", "_", "_"))[b, h, q]))
