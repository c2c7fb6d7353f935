"""The reference as a backend: float64, by rows, with gradients; slow, and right."""

from __future__ import annotations

import torch

from ..reference import by_rows
from . import Call


class ReferenceBackend:
    """Runs everything that has a meaning."""

    name = "reference"

    def reasons_against(self, call: Call) -> list[str]:
        return []

    def run(self, call: Call) -> tuple[torch.Tensor, torch.Tensor | None]:
        call = call.unpaged()
        attention = call.attention
        out, lse = by_rows(
            call.mask, call.score, attention.scale, call.bound, call.q, call.k, call.v, attention.weighing
        )
        return out.to(call.q.dtype), lse.to(torch.float32) if call.return_lse else None
