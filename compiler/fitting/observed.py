"""An observed attention map, read in chunks of rows: checked, normalised by row, and summed up once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from flexspec.errors import FlexSpecError
from flexspec.inputs import check_length
from flexspec.user_line import user_caret

CHUNK = 1 << 24
"""Most weights that are held as float64 at once: 128 MiB."""
ROWS = 128
"""Most rows that are read at once."""
CELLS = 96
"""Most cells a side of the picture."""


class Chunk(NamedTuple):
    """Some rows of a map, batches added up.

    rows: which. weights: float64 [heads, rows, columns], each row with weight summing to 1 for each batch entry.
    weighted: int64 [heads], how many of the rows have any weight, over all batch entries.
    """

    rows: slice
    weights: torch.Tensor
    weighted: torch.Tensor


@dataclass(frozen=True, eq=False)
class Observed:
    """An attention map [batch, heads, rows, columns]; an entry stands for `cell` = (queries, keys) tokens."""

    weights: torch.Tensor
    q_len: int
    kv_len: int
    cell: tuple[int, int]
    softmax: bool

    @property
    def heads(self) -> int:
        return self.weights.shape[1]

    @property
    def pooled(self) -> bool:
        return self.cell != (1, 1)

    @property
    def step(self) -> int:
        """Rows that are read at once."""
        batch, heads, rows, columns = self.weights.shape
        return max(1, min(rows, ROWS, CHUNK // (batch * heads * columns)))

    def chunks(self) -> Iterator[Chunk]:
        """The whole map from the top. FS025 for what is no weight."""
        row_count = self.weights.shape[2]
        for start in range(0, row_count, self.step):
            rows = slice(start, min(row_count, start + self.step))
            part = self.weights[:, :, rows].detach().to("cpu", torch.float64, copy=True)
            if self.softmax:
                largest = part.amax(-1, keepdim=True)
                part.sub_(torch.where(largest == -torch.inf, 0.0, largest)).exp_()  # a row of -inf keeps no weight
            total = part.sum(-1, keepdim=True)
            if not bool(torch.isfinite(total).all()) or float(part.min()) < 0:
                raise _no_weight(part)
            part.div_(torch.where(total > 0, total, 1.0))
            yield Chunk(rows, part[0] if len(part) == 1 else part.sum(0), (total > 0).sum((0, 2, 3)))


def _no_weight(part: torch.Tensor) -> FlexSpecError:
    seen = "NaN" if bool(part.isnan().any()) else "negative" if float(part.min()) < 0 else "infinite"
    message = f"the attention map has {seen} entries"
    fix = "give weights of at least 0, or logits with softmax=True (-inf where masked)"
    return FlexSpecError("FS025", message, fix=fix, where=user_caret())


def read(attention: Any, cell: tuple[int, int], lengths: tuple[int | None, int | None], softmax: bool) -> Observed:
    """The map as [batch, heads, rows, columns]. FS022 on its shape, FS023 on its type, FS030 on the lengths."""
    if not isinstance(attention, torch.Tensor) or attention.is_complex():
        seen = f"dtype {attention.dtype}" if isinstance(attention, torch.Tensor) else type(attention).__name__
        message = f"the attention map is of {seen}"
        raise FlexSpecError("FS023", message, fix="give a torch.Tensor of floats or booleans", where=user_caret())
    if attention.dim() not in (2, 3, 4) or attention.numel() == 0:
        message = f"the attention map has shape {tuple(attention.shape)}"
        fix = "give [q, kv], [heads, q, kv] or [batch, heads, q, kv]"
        raise FlexSpecError("FS022", message, fix=fix, where=user_caret())
    weights = attention[(None,) * (4 - attention.dim())]
    sides = []
    for name, entries, tokens, given in zip(("q_len", "kv_len"), weights.shape[2:], cell, lengths, strict=True):
        length = entries * tokens if given is None else check_length(name, given)
        if -(-length // tokens) != entries:
            message = f"{name} is {length:,}; the map has {entries:,} entries of {tokens} tokens there"
            raise FlexSpecError("FS030", message, where=user_caret())
        sides.append(length)
    return Observed(weights, sides[0], sides[1], cell, softmax)


@dataclass(frozen=True, eq=False)
class Survey:
    """What one pass over a map tells, all float64.

    rows [heads]: rows with weight. columns [heads, columns]: weight of each key. diagonals [heads, rows + columns - 1]:
    weight of each `kv - q`, from `1 - rows` on. picture [heads, ...]: the map in at most 96 cells a side. causal: no
    weight lies on a later key.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    diagonals: torch.Tensor
    picture: torch.Tensor
    causal: bool

    def stride(self, head: int, rows: int, least: float = 0.05) -> int | None:
        """The stride whose multiples hold most weight over their share of all distances, if that is `least` of it."""
        ahead, back = self.diagonals[head, rows:].numpy(), self.diagonals[head, : rows - 1].flip(0).numpy()
        by_distance = np.zeros(max(len(ahead), len(back)) + 1)
        by_distance[1 : len(ahead) + 1] += ahead
        by_distance[1 : len(back) + 1] += back
        total, strides = by_distance[1:].sum(), range(2, len(by_distance) // 2)
        excess = [by_distance[stride::stride].sum() - total / stride for stride in strides]
        if not excess or max(excess) <= least * float(self.rows[head]):
            return None
        return 2 + int(np.argmax(excess))


def survey(observed: Observed) -> Survey:
    """One pass over the map; every entry is checked."""
    _, heads, rows, columns = observed.weights.shape
    counted = torch.zeros(heads, dtype=torch.int64)
    by_key = torch.zeros(heads, columns, dtype=torch.float64)
    diagonals = torch.zeros(heads, rows + columns - 1, dtype=torch.float64)
    tall, wide = -(-rows // CELLS), -(-columns // CELLS)
    picture = torch.zeros(heads, -(-rows // tall), -(-columns // wide), dtype=torch.float64)
    for chunk in observed.chunks():
        weights = chunk.weights
        counted += chunk.weighted
        by_key += weights.sum(1)
        padded = torch.nn.functional.pad(weights, (0, -columns % wide)) if columns % wide else weights
        cells = padded.unflatten(-1, (-1, wide)).sum(-1)
        for row, q_idx in enumerate(range(chunk.rows.start, chunk.rows.stop)):
            diagonals.numpy()[:, rows - 1 - q_idx : rows - 1 - q_idx + columns] += weights[:, row].numpy()
            picture.numpy()[:, q_idx // tall] += cells[:, row].numpy()
    causal = not bool(diagonals[:, rows:].any())
    if observed.pooled:
        last_query = torch.arange(1, rows + 1).mul(observed.cell[0]).clamp(max=observed.q_len) - 1
        later = torch.arange(columns) * observed.cell[1] > last_query[:, None]
        causal = not any(bool(chunk.weights.mul(later[chunk.rows]).any()) for chunk in observed.chunks())
    return Survey(counted.double(), by_key, diagonals, picture, causal)
