"""Our Triton kernels beside FlexAttention (Triton and FLASH), SDPA and flash_attn on a GPU, in one run.

`python bench/attention.py` needs CUDA. Options: `--minutes N` (no new case after that; the most important come first),
`--quick` (16k tokens), `--only forward|backward|decode`, `--head-dim N`, `--plain` (no autotuning, theirs or ours).
`--dry` goes through everything with tiny sizes on any machine, without a GPU in Triton's interpreter, and its times say
nothing. `--results FOLDER` takes the place of bench/results.

Times are medians of CUDA events. Every case is checked before it is timed: some queries against float64, outputs and
gradients against FlexAttention (without a GPU against the reference). What fails is a row with the reason; the exit
status is 1 where a result was wrong. Results are written after every case.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

if "--dry" in sys.argv and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

from cases import DEVICE, DRY, FULL, Case, Run, Runs, cases  # noqa: E402
from flexspec.compiler.planning.hardware import hardware_at  # noqa: E402
from harness import RESULTS, table, written  # noqa: E402
from summary import (  # noqa: E402
    COLUMNS,
    GOALS,
    LEGEND,
    MODEL,
    Record,
    bound_of,
    constants,
    goals,
    model_row,
    predicted,
    row,
)

NEAR = {"int8": 0.1, "fp8": 0.2}
"""Of the largest entry; two ways to compute in bfloat16 differ by less than `BFLOAT16`."""
BFLOAT16 = 0.05
HARDWARE = hardware_at(torch.device(DEVICE))


class Wrong(Exception):
    """A result that is not what another way computes."""


def tried(record: Record, name: str, step: Callable[[], Any]) -> Any:
    """The result of a step, or None and the reason in the record's problems."""
    try:
        return step()
    except Exception as error:  # what cannot run is a result
        kind = "WRONG" if isinstance(error, Wrong) else type(error).__name__
        record["problems"][name] = f"{kind}: {' '.join(str(error).split())}"[:300]
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
        return None


def apart(results: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The largest difference of two results over the largest entry."""
    pairs = zip(results, wanted, strict=True)
    return max(float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-6)) for a, b in pairs)


def near(distance: float, what: str) -> None:
    if not distance < NEAR.get(what, BFLOAT16):  # nan too
        raise Wrong(f"{distance} from {what}")


def measured(record: Record, runs: Runs) -> None:
    """Seconds of ours and of the other ways, into the record."""
    ours = runs.by("triton")
    results = runs.results(ours)
    if not runs.spec.scores:
        near(runs.error(results[0]), "float64")
    if DEVICE == "cpu":
        near(apart(results, runs.results(runs.by("reference"))), "the reference")
    record |= {"density": runs.blocks.density, "flops": runs.flops, "pairs": runs.pairs()}
    record["ours"] = runs.timed(ours)
    for name, make in runs.ways().items():
        tried(record, name, lambda name=name, make=make: _timed(record, runs, name, make(), results))


def _timed(record: Record, runs: Runs, name: str, run: Run, results: list[torch.Tensor]) -> None:
    """Seconds of one way. What computes the same as ours must agree with it."""
    if "dense" not in name and not ("causal" in name and runs.case.kv_heads != runs.case.heads):
        near(apart(results, runs.results(run)), name)
    record[name] = runs.timed(run)


def tuned(record: Record, runs: Runs) -> None:
    results = runs.results(runs.by("triton"))
    for name, make in runs.tuned_ways().items():
        tried(record, name, lambda name=name, make=make: _timed(record, runs, name, make(), results))


def modelled(record: Record, runs: Runs) -> None:
    """The static model's bound, and the planner's seconds."""
    if record["what"] == "decode" or "ours" not in record:
        return
    if record["what"] == "forward":
        record["predicted"] = predicted(runs, HARDWARE)
    if DEVICE == "cuda":
        target = "sm_" + "".join(map(str, torch.cuda.get_device_capability()))
        bound = tried(record, "model", lambda: bound_of(runs, target, HARDWARE.flops))
    else:
        bound = tried(record, "model", lambda: _bound_elsewhere(record))
    record |= bound or {}


def _bound_elsewhere(record: Record) -> Record:
    """In a process without the interpreter, in which nothing is compiled; one case will do for a dry run."""
    if (record["what"], record["pattern"], record["kv_heads"]) != ("forward", "causal", 2):
        raise NotImplementedError("a dry run compiles one case")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, __file__, "--bound", json.dumps({name: record[name] for name in Case.__annotations__})]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


STEPS: dict[str, Callable[[Record, Runs], None]] = {"measured": measured, "modelled": modelled, "tuned": tuned}
"""All cases take the first, then those of the goals the others: minutes that remain go to what says least."""


class Session:
    """Records in the order of the cases, written after each step."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.start = given, time.monotonic()
        self.setting = DRY if given.dry else FULL
        self.chosen = cases(self.setting, given.only, given.head_dim, given.quick)
        self.records: list[Record] = []

    def run(self) -> None:
        for case in self.chosen:
            if self.over():
                break
            self.records.append({**vars(case), "problems": {}})
            self.step("measured", self.records[-1], case)
        most = {"modelled": None, "tuned": 0 if self.given.plain else 1 if self.given.dry else None}
        for name, count in most.items():
            for record, case in zip(self.records[:count], self.chosen, strict=False):
                if not self.over():
                    self.step(name, record, case)

    def over(self) -> bool:
        return time.monotonic() - self.start > 60 * self.given.minutes

    def step(self, name: str, record: Record, case: Case) -> None:
        tried(record, name, lambda: STEPS[name](record, Runs(case, self.setting)))
        print(f"{name}: " + "  ".join(row(record, HARDWARE.flops)), flush=True)
        self.write()

    def write(self) -> str:
        rows = [row(each, HARDWARE.flops) for each in self.records]
        compared = [model_row(each) for each in self.records if each["what"] != "decode" and "ours" in each]
        lines = [LEGEND, "", *goals(self.records), "", *table(MODEL, compared), ""]
        lines += [*constants(self.records, HARDWARE), "", f"{len(rows)} of {len(self.chosen)} cases"]
        command = " ".join(["python bench/attention.py", *sys.argv[1:]])
        text = "\n".join(lines)
        return written("attention", command, COLUMNS, rows, self.records, self.given.results, text)

    @property
    def wrong(self) -> list[str]:
        return [
            f"{each['what']} {each['pattern']} {each['tokens']}: {name}: {reason}"
            for each in self.records
            for name, reason in each["problems"].items()
            if reason.startswith("WRONG") or name == "measured"
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for flag in ("--dry", "--quick", "--plain"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--only", choices=GOALS)
    parser.add_argument("--head-dim", type=int)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--bound", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.bound:
        print(json.dumps(bound_of(Runs(Case(**given.bound), DRY), "sm_90", HARDWARE.flops)))
        return
    if DEVICE == "cpu" and not given.dry:
        raise SystemExit("bench/attention.py times kernels on a CUDA device, and finds none; --dry runs it without")
    session = Session(given)
    session.run()
    print(session.write())
    if session.wrong:
        raise SystemExit("\n".join(["wrong or not run:", *session.wrong]))


if __name__ == "__main__":
    main()
