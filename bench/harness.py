"""What every benchmark shares: timing, peak memory of a fresh process, the machine, and results as files."""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
VERSIONS = ("triton", "flash-attn-4", "flash-attn-3", "flash-attn")
"""Packages whose versions a result depends on, where they are installed."""


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    installed = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    return {
        "date": date.today().isoformat(),
        "cpu": f"{len(names) or '?'} x {names[0] if names else platform.processor()}",
        "gpu": gpu,
        "python": platform.python_version(),
        "cuda": torch.version.cuda or "none",
        "torch": torch.__version__,
        **{name: installed[name] for name in VERSIONS if name in installed},
    }


def seconds(run: Callable[[], Any], at_least: int = 3, budget: float = 1.0) -> list[float]:
    """Times of several runs: at least `at_least`, more while `budget` seconds last."""
    times: list[float] = []
    while len(times) < at_least or (sum(times) < budget and len(times) < 200):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "FLEXSPEC_CACHE": "flexspec"}


def _measure(make: Callable[[], Callable[[], Any]], at_least: int, cache: Path | None, send: Any) -> None:
    with tempfile.TemporaryDirectory() as empty:  # nothing compiled in an earlier run
        os.environ |= {name: str((cache or Path(empty)) / folder) for name, folder in CACHES.items()}
        send.send(_times(make(), at_least))


def _times(run: Callable[[], Any], at_least: int) -> dict[str, float]:
    before = _peak()
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    peak = _peak() - before
    times = sorted(seconds(run, at_least))
    warm = times[len(times) // 2]
    return {"first": first, "warm": warm, "best": times[0], "peak_mib": peak, "runs": len(times)}


def in_fresh_process(
    make: Callable[[], Callable[[], Any]], at_least: int = 3, cache: Path | None = None
) -> dict[str, float]:
    """First call, warm median and best in seconds, and MiB above the imports, of `make()()` in a process of its own.

    cache: the folder of what the compilers keep on disk, an empty one where left out.
    """
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(False)
    process = context.Process(target=_measure, args=(make, at_least, cache, send))
    process.start()
    send.close()
    try:
        result: dict[str, float] = receive.recv()
    except EOFError:
        result = {}
    process.join()
    return result


def report(
    name: str,
    command: str,
    columns: list[str],
    rows: list[list[str]],
    data: Any,
    folder: Path = RESULTS,
    notes: str = "",
) -> None:
    """Write a table as JSON and Markdown into a folder, and print it. notes: what is said below it."""
    print(written(name, command, columns, rows, data, folder, notes))


def written(
    name: str, command: str, columns: list[str], rows: list[list[str]], data: Any, folder: Path, notes: str
) -> str:
    """The files of `report`; returns the Markdown."""
    where = machine()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"command": command, "machine": where, "data": data}, indent=1))
    lines = [f"# {name}", "", f"`{command}`; " + ", ".join(f"{k} {v}" for k, v in where.items()), ""]
    lines += table(columns, rows)
    text = "\n".join([*lines, *(["", notes] if notes else []), ""])
    (folder / f"{name}.md").write_text(text)
    return text


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    whole = ["| " + " | ".join(cells).replace("\n", " ") + " |" for cells in (columns, *rows)]
    return [whole[0], "|" + " --- |" * len(columns), *whole[1:]]
