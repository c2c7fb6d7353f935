"""Host time of decode steps whose keys stand at true positions: `python bench/positions.py`.

A ring buffer and a static cache: at each step one key is written and a map is made for the new positions. blocks: a
whole step. triton: a step whose kernels are not started, so that what is timed is the way there. Compared are the
first and the last quarter of the steps, after a warm-up of 10: that time does not grow is what is measured.
Options: --steps 200, --dry (40 steps), --results FOLDER in place of bench/results.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # so that the Triton backend takes tensors on a CPU

import torch
from harness import RESULTS, report
from triton.runtime.interpreter import InterpretedFunction

import flexspec as fs

HEADS, KEY_HEADS, DIM, WARM_UP = 8, 2, 64, 10
CASES: dict[str, tuple[Any, int, int, int]] = {
    "ring of 512": (fs.causal_window(512), 512, 1, 1),
    "ring of 4,096": (fs.causal_window(4096), 4096, 1, 1),
    "static cache of 4,096": (fs.causal(), 4096, 1, 1),
    "4,096 slots by key head, batch 4": (fs.causal(), 4096, 4, KEY_HEADS),
}
"""Mask, slots, batch, and the heads that have positions of their own."""


def steps_of(case: str, backend: str, steps: int) -> tuple[list[float], int]:
    """Seconds of each step, and the maps that are kept at the end."""
    mask, slots, batch, heads = CASES[case]
    attend = fs.compile(mask, backend=backend)
    q = torch.randn(batch, HEADS, 1, DIM)
    keys, values = torch.randn(2, batch, KEY_HEADS, slots, DIM)
    positions = torch.full((batch if heads > 1 else 1, heads, slots), -1, dtype=torch.int32)
    times = []
    for step in range(steps + WARM_UP):
        positions[..., step % slots] = step
        start = time.perf_counter()
        attend(q, keys, values, q_positions=torch.tensor([[step]]), kv_positions=positions)
        times.append(time.perf_counter() - start)
    return times[WARM_UP:], len(attend._cache._lowered)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--dry", action="store_true")
    options.add_argument("--results", type=Path, default=RESULTS)
    given = options.parse_args()
    steps = 40 if given.dry else given.steps
    torch.set_num_threads(1)
    InterpretedFunction.__getitem__ = lambda kernel, grid: lambda *args, **constants: None
    rows, data = [], []
    for case in list(CASES)[: 1 if given.dry else None]:
        for backend in ("blocks", "triton"):
            times, kept = steps_of(case, backend, steps)
            first, last = (1e3 * statistics.median(part) for part in (times[: steps // 4], times[-steps // 4 :]))
            rows.append([case, backend, f"{first:.2f} ms", f"{last:.2f} ms", f"{last / first:.2f}", str(kept)])
            data.append({"case": case, "backend": backend, "first": first, "last": last, "maps kept": kept})
    titles = ["cache", "backend", "a step, first quarter", "last quarter", "last / first", "maps kept"]
    report("positions", f"python bench/positions.py --steps {steps}", titles, rows, data, given.results)


if __name__ == "__main__":
    main()
