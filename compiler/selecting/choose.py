"""A selection's table of chosen blocks, from q and k."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flexspec.errors import FlexSpecError
from flexspec.selection import Selection
from flexspec.user_line import user_caret

from ..blocks.runs import BlockKind
from . import rules
from .scores import Scores, Side, antidiagonals, scores_of, softmax

AT_ONCE = 1 << 25
"""Scores of pairs of blocks that are held at a time, where a rule looks at single rows."""


@dataclass(frozen=True)
class Around:
    """What the rest of the mask says of blocks: uint8 of BlockKind [batch | 1, heads | 1, q_blocks, kv_blocks].

    rest: with the selection's choice left open. forced: of the forced mask. groups: as rest, in blocks of the stride.
    """

    rest: Tensor
    forced: Tensor | None = None
    groups: Tensor | None = None


def choose(
    selection: Selection, q: Side, k: Side, around: Around, kv_heads: int, given: Tensor | None = None
) -> Tensor:
    """bool [batch, heads | 1, q_blocks, kv_blocks]: the blocks that are chosen.

    q, k: in memory order. kv_heads: of the call, which k may repeat. given: the scores, or the choice, that a call
        gives or a selector of the user's own made.
    """
    open_ = around.rest != BlockKind.EMPTY
    candidates = around.rest == BlockKind.FULL if selection.complete else open_
    forced = None if around.forced is None else open_ & (around.forced != BlockKind.EMPTY)
    if selection.similarity is not None:
        alike = [side.similarity() > selection.similarity for side in (q, k)]
        group = q.x.shape[1] // k.x.shape[1]
        candidates = candidates & alike[1].repeat_interleave(group, 1).unsqueeze(2)
        diverse = open_ & ~(alike[0].unsqueeze(3) & alike[1].repeat_interleave(group, 1).unsqueeze(2))
        forced = diverse if forced is None else forced | diverse
    scores = _scores(selection, q, k, candidates, around, kv_heads, given)
    sizes = (q.x.shape[0], q.x.shape[1], *around.rest.shape[2:])
    step = sizes[2]
    if selection.rule is not None and selection.rule.over == "row":
        step = max(1, AT_ONCE // (sizes[0] * sizes[1] * sizes[3]))
    parts = []
    for first in range(0, sizes[2], step):
        rows = slice(first, min(first + step, sizes[2]))
        allowed = candidates[:, :, rows]
        found, allowed = _shared(selection, scores(rows, allowed), allowed, kv_heads)
        must = None if forced is None else _shared_choice(selection, forced[:, :, rows], kv_heads)
        assert selection.rule is not None
        counted = must.expand(found.shape) if must is not None and selection.counted else None
        part = rules.chosen(selection.rule, found, allowed.expand(found.shape), counted)
        parts.append(part if must is None else part | must)
    table = torch.cat(parts, 2)
    return table.repeat_interleave(sizes[1] // table.shape[1], 1) if selection.shared == "group" else table


def _scores(
    selection: Selection, q: Side, k: Side, candidates: Tensor, around: Around, kv_heads: int, given: Tensor | None
) -> Scores:
    scale = q.x.shape[-1] ** -0.5 if selection.scale is None else selection.scale
    if given is not None:
        wanted = (q.x.shape[0], q.x.shape[1], *candidates.shape[2:])
        table = fitted(given, wanted, kv_heads).to(q.x.dtype)
        return lambda rows, _: table[:, :, rows]
    if selection.summary == "antidiagonal":
        assert around.groups is not None and selection.stride is not None
        by_group = antidiagonals(selection, q, k, scale)
        blocks, inside = candidates.shape[2:], (q.block // selection.stride, k.block // selection.stride)
        open_ = around.groups != BlockKind.EMPTY
        lacking = [n * per - have for n, per, have in zip(blocks, inside, open_.shape[2:], strict=True)]
        open_ = torch.nn.functional.pad(open_, (0, lacking[1], 0, lacking[0]))
        return lambda rows, _: by_group(rows, open_[:, :, rows.start * inside[0] : rows.stop * inside[0]])
    plain = scores_of(selection, q, k, scale)
    return (lambda rows, some: softmax(plain(rows, some), some)) if selection.softmax else plain


def fitted(table: Tensor, sizes: tuple[int, ...], kv_heads: int) -> Tensor:
    """A table [batch | 1, heads | kv_heads | 1, q_blocks, kv_blocks] as [batch, heads, q_blocks, kv_blocks]. FS022.

    Where all queries are one block, it may come without that dim.
    """
    table = table.unsqueeze(2) if table.dim() == 3 and sizes[2] == 1 else table
    shape = tuple(table.shape)
    fits = len(shape) == 4 and shape[0] in (1, sizes[0]) and shape[1] in (1, kv_heads, sizes[1])
    if not fits or shape[2:] != sizes[2:]:
        message = f"the table of blocks has shape {list(shape)}; the call's is {list(sizes)}"
        fix = "give [batch | 1, heads | kv_heads | 1, q_blocks, kv_blocks]"
        raise FlexSpecError("FS022", message, fix=fix, where=user_caret())
    if 1 < shape[1] < sizes[1]:
        table = table.repeat_interleave(sizes[1] // shape[1], 1)
    return table.expand(sizes)


def _shared(selection: Selection, scores: Tensor, candidates: Tensor, kv_heads: int) -> tuple[Tensor, Tensor]:
    """Scores and candidates of heads that have one choice: of all, or one for each group of heads, or one."""
    if selection.shared == "head":
        return scores, candidates
    allowed = candidates.expand(scores.shape)
    scores = scores.masked_fill(~allowed, 0.0)
    if selection.shared == "all":
        return scores.mean(1, keepdim=True), allowed.any(1, keepdim=True)
    return scores.unflatten(1, (kv_heads, -1)).sum(2), _shared_choice(selection, allowed, kv_heads)


def _shared_choice(selection: Selection, chosen: Tensor, kv_heads: int) -> Tensor:
    """A choice of each head as that of the heads that share it: what any of them has."""
    if selection.shared == "head" or chosen.shape[1] == 1:
        return chosen
    if selection.shared == "all":
        return chosen.any(1, keepdim=True)
    return chosen.unflatten(1, (kv_heads, -1)).any(2)
