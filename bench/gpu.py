"""Everything that waits for a GPU, in one command: `make gpu`, or `python bench/gpu.py --minutes 8`.

Steps: what is there (versions, packages that lack), `pytest -m gpu`, the kernels under compute-sanitizer where there is
one, `bench/attention.py`, `bench/host_time.py`. Each has a share of the minutes; one that fails or runs out of its time
is a row with the reason, and the next one runs. Output of each step: <results>/gpu/<step>.log; the table: gpu.md.
Nothing is fetched. `--steps` takes some; `--dry` goes through all of them with tiny sizes, without a GPU.
Arguments after `--` go to `bench/attention.py`. The exit status is 1 where a step failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from harness import RESULTS, written

ROOT = Path(__file__).parent.parent
NEEDED = ("numpy", "sympy", "pydantic", "yaml", "triton")
"""Imported by any spec that is compiled."""
OF_TESTS = ("pytest", "hypothesis", "typer", "rich", "matplotlib")
OPTIONAL = ("flash_attn.cute", "flash_attn_interface", "flash_attn")
SHARES = {"tests": 0.3, "sanitizer": 0.15, "attention": 0.8, "host_time": 1.0}
"""Of the time that is left when a step starts."""
SPARE = 30.0
"""Seconds that a benchmark with a limit of its own may run over it, to finish a case."""


def missing(names: tuple[str, ...]) -> list[str]:
    def lacks(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is None
        except ImportError:
            return True

    return [name for name in names if lacks(name)]


def commands(given: argparse.Namespace) -> dict[str, Callable[[float], list[str]]]:
    """By step, what is run with so many minutes."""
    python, folder = [sys.executable], ["--results", str(given.results)]
    dry = ["--dry"] if given.dry else []
    chosen = ["--collect-only", "tests/test_triton.py"] if given.dry else []
    tool = ["env", "TRITON_INTERPRET=1"] if given.dry else ["compute-sanitizer", "--error-exitcode", "1"]

    def benchmark(minutes: float) -> list[str]:
        limit = ["--minutes", f"{minutes:.2f}"] if math.isfinite(minutes) else []
        return [*python, "bench/attention.py", *folder, *dry, *limit, *given.attention]

    return {
        "tests": lambda _: [*python, "-m", "pytest", "-m", "gpu", *chosen],
        "sanitizer": lambda _: [*tool, *python, "tests/sanitized.py"],
        "attention": benchmark,
        "host_time": lambda _: [*python, "bench/host_time.py", *folder, *dry],
    }


def reason_against(step: str, dry: bool) -> str | None:
    """Why a step cannot run here."""
    lacking = missing(NEEDED + (OF_TESTS if step == "tests" else ()))
    if lacking:
        return f"python has no {', '.join(lacking)}"
    if not dry and step != "host_time" and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if step == "sanitizer" and not dry and shutil.which("compute-sanitizer") is None:
        return "there is no compute-sanitizer"
    return None


def run(command: list[str], log: Path, seconds: float) -> str:
    """The outcome of a command, whose output goes to a file. It and what it started end with its time."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(seconds if math.isfinite(seconds) else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"stopped after {seconds:.0f} s"
    return "done" if status == 0 else f"failed with {status}"


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:160].replace("|", "/") if lines else ""


def tabled(rows: list[list[str]], folder: Path) -> str:
    """The table so far, written: the next step may be the last that the machine lives to see."""
    note = f"Rivals that are not installed: {', '.join(missing(OPTIONAL)) or 'none'}."
    command = " ".join(["python bench/gpu.py", *sys.argv[1:]])
    return written("gpu", command, ["step", "outcome", "time", "last line"], rows, rows, folder, note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--steps", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("attention", nargs="*", help="arguments of bench/attention.py, after --")
    given = parser.parse_args()
    given.results = given.results.resolve()  # steps run in the repository
    logs = given.results / "gpu"
    logs.mkdir(parents=True, exist_ok=True)
    start, rows, text = time.monotonic(), [], ""
    for step, command in commands(given).items():
        if step not in given.steps:
            continue
        began = time.monotonic()
        left = 60 * given.minutes - (began - start)
        seconds, log = max(left, 0) * SHARES[step], logs / f"{step}.log"
        outcome = reason_against(step, given.dry) or ("no time is left" if seconds < 1 else None)
        if outcome is None:
            print(f"{step}: {log}", flush=True)
            outcome = run(command(seconds / 60), log, seconds + (SPARE if step == "attention" else 0))
            said = last_line(log)
        else:
            said = ""
        rows.append([step, outcome, f"{time.monotonic() - began:.0f} s", said])
        text = tabled(rows, given.results)
    print(text)
    if any(outcome.startswith(("failed", "stopped")) for _, outcome, *_ in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
