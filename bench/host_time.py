"""Host time of a repeated call, above the kernel: `python bench/host_time.py`.

flex: a whole call, less the compiled function called alone with the arguments that the call gave it, in turns.
triton: a whole call whose kernels are not started, so that what is timed is the way there.
Nothing new is lowered or compiled in a repeated call. Options: --repeat 300, --dry (one case, three calls, flex not
compiled), --results FOLDER in place of bench/results.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # so that the Triton backend takes tensors on a CPU

import torch
from flexspec.compiler.backends import flex
from harness import RESULTS, report
from triton.runtime.interpreter import InterpretedFunction

import flexspec as fs

LENGTH = 512
IDS = torch.arange(LENGTH)[None] // 100
CASES: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "causal": (fs.causal(), LENGTH, {}),
    "documents": (fs.causal() & fs.document(), LENGTH, {"document_id": IDS}),
    "causal + alibi": (fs.Attention(fs.causal(), [fs.alibi()]), LENGTH, {}),
    "decode": (fs.causal(offset=LENGTH - 1), 1, {}),
}


def microseconds(runs: list[Callable[[], Any]], repeat: int) -> list[float]:
    """Median of each, run in turns after a warm-up."""
    times: list[list[float]] = [[] for _ in runs]
    warm_up = min(20, repeat)
    for turn in range(repeat + warm_up):
        for run, kept in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if turn >= warm_up:
                kept.append(time.perf_counter() - start)
    return [1e6 * statistics.median(kept) for kept in times]


def flex_call(spec: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, values: Any, repeat: int) -> list[float]:
    """A whole call, and its compiled function alone."""
    attend = fs.compile(spec, backend="flex")
    seen: list[tuple[Any, ...]] = []
    real = flex._run
    flex._run = lambda function, args: seen.append((function, args)) or real(function, args)
    attend(q, k, v, **values)
    flex._run = real
    function, args = seen[-1]
    return microseconds([lambda: attend(q, k, v, **values), lambda: function(*args)], repeat)


def triton_call(spec: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, values: Any, repeat: int) -> float:
    """A whole call that starts no kernel."""
    attend = fs.compile(spec, backend="triton")
    return microseconds([lambda: attend(q, k, v, **values)], repeat)[0]


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--repeat", type=int, default=300)
    options.add_argument("--dry", action="store_true")
    options.add_argument("--results", type=Path, default=RESULTS)
    given = options.parse_args()
    repeat = 3 if given.dry else given.repeat
    if given.dry:
        torch.compile = lambda function, **_: function
    InterpretedFunction.__getitem__ = lambda kernel, grid: lambda *args, **constants: None
    rows, data = [], []
    for name, (spec, q_len, values) in list(CASES.items())[: 1 if given.dry else None]:
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(1, 2, length, 16, generator=generator) for length in (q_len, LENGTH, LENGTH))
        whole, kernel = flex_call(spec, q, k, v, values, repeat)
        launched = triton_call(spec, q, k, v, values, repeat)
        rows.append([name, f"{whole:.0f} us", f"{kernel:.0f} us", f"{whole - kernel:.0f} us", f"{launched:.0f} us"])
        data.append({"case": name, "flex": whole, "flex kernel": kernel, "triton": launched})
    titles = ["case", "flex, whole call", "its compiled function alone", "above it", "triton, to the launch"]
    report("host_time", f"python bench/host_time.py --repeat {repeat}", titles, rows, data, given.results)


if __name__ == "__main__":
    main()
