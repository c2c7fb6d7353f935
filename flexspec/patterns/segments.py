"""Sequences of named segments, and lists of neighbours: masks that are given as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch

from ..errors import FlexSpecError, choices
from ..expr import Expr, Load, apply, const, input_, inputs_of, load, substitute, transform, var
from ..inputs import Input
from ..mask import Mask, from_mask_mod, mask
from ..user_line import user_caret
from .checks import as_tensor, whole
from .heads import united

BITS = 32
"""Keys in one word of `adjacency`'s table."""


def segments(lengths: Mapping[str, int], table: Mapping[tuple[str, str], Any]) -> Mask:
    """A sequence of named segments, and between each two of them a mask of its own.

    lengths: tokens of each segment, in the order in which they stand. table: for (query segment, key segment)
    a mask, True (everything) or False (nothing, as for pairs that are not named). A mask inside sees
    positions from 0 in its two segments and their lengths as q_len and kv_len: a canvas in it has as many
    tokens as the segment, and a tensor in it as many entries (an open input's dim `sequence` is called
    `<segment>_tokens`). For tensors over the whole sequence, combine outside: `segments(...) & document()`.
    Tokens after the last segment see nothing.

    Source: multimodal language models, video with text. Raises FS021 (a segment that has no length), FS022,
    FS023, FS025, FS026 (an open input read in segments of two lengths), FS032.

    >>> from flexspec import causal
    >>> kept = segments({"text": 2, "video": 2}, {("text", "text"): causal(), ("video", "video"): True})
    >>> kept.dense(4).int()[0, 0].tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    """
    _check_lengths(lengths)
    if not isinstance(table, Mapping):
        message = f"the table is a {type(table).__name__}"
        raise FlexSpecError("FS023", message, fix='{("text", "video"): mask}', where=user_caret())
    starts = dict(zip(lengths, accumulate(lengths.values(), initial=0), strict=False))
    parts: list[Mask] = []
    for pair, value in table.items():
        if not isinstance(pair, tuple) or len(pair) != 2 or any(name not in lengths for name in pair):
            message = f"the table names {pair!r}"
            fix = f"give (query segment, key segment) of {choices(lengths)}"
            raise FlexSpecError("FS021", message, fix=fix, where=user_caret())
        item = _as_mask(pair, value)
        inside = _inside(starts[pair[0]], lengths[pair[0]], starts[pair[1]], lengths[pair[1]])
        if item == Mask.constant(True):
            parts.append(inside)
        elif item != Mask.constant(False):
            parts.append(inside & _moved(item, pair, lengths, starts))
    made = united(parts) if parts else Mask.constant(False)
    return made.named("segments", lengths=dict(lengths), table=dict(table))


def _check_lengths(lengths: Any) -> None:
    if not isinstance(lengths, Mapping) or not lengths:
        message = f"lengths is {lengths!r}"
        raise FlexSpecError("FS023", message, fix='give {"text": 77, "video": 3600}', where=user_caret())
    for name, length in lengths.items():
        if not isinstance(name, str) or not name.isidentifier():
            message = f"{name!r} is no name for a segment"
            raise FlexSpecError("FS023", message, fix="give an identifier", where=user_caret())
        whole(f"the length of `{name}`", length)


def _as_mask(pair: tuple[str, str], value: Any) -> Mask:
    if value is None or isinstance(value, bool):
        return Mask.constant(bool(value))
    if not callable(value):
        message = f"between {pair[0]} and {pair[1]} stands a {type(value).__name__}"
        raise FlexSpecError("FS023", message, fix="give a mask, True or False", where=user_caret())
    return from_mask_mod(value)


def _inside(q_start: int, q_length: int, kv_start: int, kv_length: int) -> Mask:
    def region(q: Any, kv: Any) -> Any:
        rows = (q >= q_start) & (q < q_start + q_length)
        return rows & (kv >= kv_start) & (kv < kv_start + kv_length)

    return mask(region)


def _moved(item: Mask, pair: tuple[str, str], lengths: Mapping[str, int], starts: Mapping[str, int]) -> Mask:
    """The mask over local positions, as one over positions of the whole sequence.

    Outside its segment a local position is negative or too large. There the mask is cut off by the region,
    but a tensor would still be read: indices are clamped.
    """
    q_length, kv_length = lengths[pair[0]], lengths[pair[1]]
    if item.canvas is not None and {item.canvas.size} != {q_length, kv_length}:
        lengths_text = f"{pair[0]} {q_length:,} and {pair[1]} {kv_length:,}"
        message = f"{item.canvas} has {item.canvas.size:,} tokens, {lengths_text}"
        raise FlexSpecError("FS032", message, where=user_caret())
    longer = pair[0] if q_length >= kv_length else pair[1]
    dims = {"sequence": longer, "q_len": pair[0], "kv_len": pair[1]}
    _check_held(item, {dim: lengths[name] for dim, name in dims.items()})

    def clamp_index(node: Expr) -> Expr:
        if not isinstance(node, Load):
            return node
        names = tuple(f"{dims[dim]}_tokens" if dim in dims else dim for dim in node.input.dims)
        index = tuple(substitute(part, {"q": var("q.in"), "kv": var("kv.in")}) for part in node.index)
        return load(input_(node.input.name, names, node.input.type), index)

    values: dict[str, Expr] = {"q_len": const(q_length), "kv_len": const(kv_length)}
    for side, name in zip(("q", "kv"), pair, strict=True):
        local = apply("sub", var(side), const(starts[name])) if starts[name] else var(side)
        clamped = apply("min", apply("max", local, const(0)), const(lengths[name] - 1))
        values |= {side: local, f"{side}.in": clamped}
    expr = substitute(transform(item.flat, clamp_index), values)
    return replace(item, expr=expr, canvas=None, predicate=None)


def _check_held(item: Mask, sizes: Mapping[str, int]) -> None:
    """FS022 where a held tensor does not fit the segments."""
    for name, node in inputs_of(item.expr).items():
        if name not in item.tensors or item.tensors[name].dim() != len(node.dims):
            continue
        for dim, size in zip(node.dims, item.tensors[name].shape, strict=True):
            if size != sizes.get(dim, size):
                message = f"`{name}` in {item.label} has {size} entries, its segment {sizes[dim]} tokens"
                raise FlexSpecError("FS022", message, fix="give values of the segment's tokens", where=user_caret())


def adjacency(csr: Any) -> Mask:
    """A query keeps the keys in its list of neighbours: as many as its row has entries.

    csr: a torch sparse CSR tensor [q_len, kv_len] (every stored entry is a neighbour, whatever its value), or
    a pair (row pointers, key indices) of a square graph. The lists become a table of one bit for each pair,
    computed here once: `q_len * kv_len / 8` bytes. Source: mesh transformers, graph attention (GAT). Raises
    FS022, FS023, FS025 (pointers that do not ascend, indices outside).

    >>> adjacency((torch.tensor([0, 2, 3, 3]), torch.tensor([0, 2, 1]))).dense(3).int()[0, 0].tolist()
    [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    """
    pointers, keys, columns = _read_csr(csr)
    counts = pointers.diff()
    if int(pointers[0]) != 0 or int(pointers[-1]) != len(keys) or bool((counts < 0).any()):
        message = f"row pointers go from {int(pointers[0])} to {int(pointers[-1])}, there are {len(keys)} indices"
        raise FlexSpecError("FS025", message, fix="ascend from 0 to the number of indices", where=user_caret())
    if len(keys) and (int(keys.min()) < 0 or int(keys.max()) >= columns):
        message = f"key indices go from {int(keys.min())} to {int(keys.max())}, of {columns} keys"
        raise FlexSpecError("FS025", message, where=user_caret())
    words = -(-columns // BITS)
    rows = torch.repeat_interleave(torch.arange(len(counts), device=keys.device), counts)
    pairs = torch.unique(rows * (words * BITS) + keys)  # an entry that is listed twice sets its bit once
    table = torch.zeros(len(counts) * words, dtype=torch.int64, device=keys.device)
    table.scatter_add_(0, pairs // BITS, 1 << (pairs % BITS))
    table = table.to(torch.int32).view(len(counts), words)  # the highest bit becomes the sign
    neighbours = Input("neighbours", ("q_len", "_"))
    made = mask(lambda q, kv: (neighbours[q, kv // BITS] >> (kv % BITS)) & 1 == 1)
    return made(neighbours=table).named("adjacency", rows=len(counts), entries=len(keys))


def _read_csr(csr: Any) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Row pointers, key indices and the number of keys."""
    if isinstance(csr, torch.Tensor) and csr.layout is torch.sparse_csr and csr.dim() == 2:
        return csr.crow_indices().long(), csr.col_indices().long(), csr.shape[1]
    if not isinstance(csr, (tuple, list)) or len(csr) != 2:
        message = f"csr is a {type(csr).__name__}"
        fix = "give tensor.to_sparse_csr(), or (row pointers, key indices)"
        raise FlexSpecError("FS023", message, fix=fix, where=user_caret())
    pointers = as_tensor("the row pointers", csr[0], [1]).long()
    if len(pointers) < 2:
        raise FlexSpecError("FS022", "there is one row pointer", fix="give rows + 1 of them", where=user_caret())
    keys = csr[1] if isinstance(csr[1], torch.Tensor) else torch.as_tensor(csr[1])
    keys = as_tensor("the key indices", keys, [1]).long() if keys.numel() else keys.long().reshape(0)
    return pointers, keys, len(pointers) - 1
