"""Keys and values in pages: a page table says which page holds which tokens of a sequence."""

from __future__ import annotations

from typing import Any

import torch

from flexspec.errors import FlexSpecError
from flexspec.inputs import check_length
from flexspec.user_line import user_caret

INTEGERS = (torch.int32, torch.int64)


def as_seen(pages: Any, page_table: torch.Tensor, kv_len: int) -> Any:
    """The shape [batch, kv_heads, kv_len, head_dim] that pages [pages, page_size, kv_heads, head_dim] stand for: a view
    for checks, whose values mean nothing.
    """
    if not isinstance(pages, torch.Tensor) or pages.dim() != 4 or 0 in pages.shape:
        return pages  # check_qkv says what is wrong
    return pages[:1, :1].transpose(1, 2).expand(page_table.shape[0], -1, kv_len, -1)


def check_pages(k: Any, v: Any, page_table: Any, kv_len: Any) -> None:
    """FS020, FS022, FS023, FS030, FS040 where a page table does not fit its pages."""
    if kv_len is None:
        fix = "give kv_len=<tokens so far>"
        raise FlexSpecError("FS020", "a page table does not say how many keys there are", fix=fix, where=user_caret())
    check_length("kv_len", kv_len)
    if page_table is None:
        fix = "give page_table=<int32 tensor>, or k[:, :, :kv_len] and v[:, :, :kv_len]"
        raise FlexSpecError("FS020", "kv_len is given without a page table", fix=fix, where=user_caret())
    if not isinstance(page_table, torch.Tensor) or page_table.dtype not in INTEGERS:
        seen = page_table.dtype if isinstance(page_table, torch.Tensor) else type(page_table).__name__
        fix = "give an int32 tensor"
        raise FlexSpecError("FS023", f"page_table is {seen}", fix=fix, where=user_caret())
    if page_table.dim() != 2:
        message = f"page_table has shape {tuple(page_table.shape)}; its dims are [batch, pages of a sequence]"
        raise FlexSpecError("FS022", message, where=user_caret())
    if not all(isinstance(x, torch.Tensor) and x.dim() == 4 for x in (k, v)):
        return
    if k.shape[:3] != v.shape[:3]:
        message = f"k {list(k.shape)}, v {list(v.shape)}: they are [pages, page_size, kv_heads, head_dim] both"
        raise FlexSpecError("FS040", message, where=user_caret())
    room = page_table.shape[1] * k.shape[1]
    if page_table.device != k.device or room < kv_len:
        message = f"kv_len is {kv_len:,}; {page_table.shape[1]:,} pages of {k.shape[1]:,} tokens hold {room:,}"
        if room >= kv_len:
            message = f"page_table is on {page_table.device}, the pages on {k.device}"
        raise FlexSpecError("FS040", message, where=user_caret())


def gathered(pages: torch.Tensor, page_table: torch.Tensor, kv_len: int) -> torch.Tensor:
    """[batch, kv_heads, kv_len, head_dim] from pages [pages, page_size, kv_heads, head_dim]: a copy."""
    entries = page_table[:, : -(-kv_len // pages.shape[1])].long()
    return pages[entries].flatten(1, 2)[:, :kv_len].transpose(1, 2)
