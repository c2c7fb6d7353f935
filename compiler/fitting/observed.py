"""An observed attention map, read in chunks of rows: checked, normalised by row, and summed up once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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

    def chunks(self) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Row by row: which rows, their weights float64 [heads, rows, columns], how many have any, int64 [heads].

        Each row with weight sums to 1, and batches are added up. FS025 for what is no weight.
        """
        rows = self.weights.shape[2]
        for start in range(0, rows, self.step):
            some = slice(start, min(rows, start + self.step))
            part = self.weights[:, :, some].detach().to("cpu", torch.float64, copy=True)
            if self.softmax:
                top = part.amax(-1, keepdim=True)
                part.sub_(torch.where(top == -torch.inf, 0.0, top)).exp_()
            total = part.sum(-1, keepdim=True)
            if not bool(torch.isfinite(total).all()) or float(part.min()) < 0:
                raise _no_weight(part)
            part.div_(torch.where(total > 0, total, 1.0))
            yield some, part[0] if len(part) == 1 else part.sum(0), (total > 0).sum((0, 2, 3))


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
        far = np.zeros(max(len(ahead), len(back)) + 1)  # by distance
        far[1 : len(ahead) + 1] += ahead
        far[1 : len(back) + 1] += back
        excess = [far[stride::stride].sum() - far[1:].sum() / stride for stride in range(2, len(far) // 2)]
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
    for some, part, weighted in observed.chunks():
        counted += weighted
        by_key += part.sum(1)
        padded = torch.nn.functional.pad(part, (0, -columns % wide)) if columns % wide else part
        padded = padded.unflatten(-1, (-1, wide)).sum(-1)
        for row, at in enumerate(range(some.start, some.stop)):
            diagonals.numpy()[:, rows - 1 - at : rows - 1 - at + columns] += part[:, row].numpy()
            picture.numpy()[:, at // tall] += padded[:, row].numpy()
    causal = not bool(diagonals[:, rows:].any())
    if observed.pooled:
        last_query = torch.arange(1, rows + 1).mul(observed.cell[0]).clamp(max=observed.q_len) - 1
        later = torch.arange(columns) * observed.cell[1] > last_query[:, None]
        causal = not any(bool(part.mul(later[some]).any()) for some, part, _ in observed.chunks())
    return Survey(counted.double(), by_key, diagonals, picture, causal)
