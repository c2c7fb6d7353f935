"""What waits for a GPU runs to its end without one, so that no slip is met on the day that there is one."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command, folder):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command, "--dry", "--results", str(folder)], cwd=ROOT, env=env, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def bench(monkeypatch):
    """A module of bench/ by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))

    def module(name):
        return importlib.import_module(name)

    yield module
    for name in ("attention", "cases", "gpu", "harness", "summary"):
        sys.modules.pop(name, None)


def test_everything_for_a_gpu_in_a_dry_run(tmp_path):
    """All steps, all kinds of cases, all ways: each gave a time, or a reason that is one."""
    status, text = run("bench/gpu.py", folder=tmp_path)
    assert status == 0, text
    steps = json.loads((tmp_path / "gpu.json").read_text())["data"]
    assert [step[:2] for step in steps] == [[name, "done"] for name in ("tests", "sanitizer", "attention", "host_time")]
    records = json.loads((tmp_path / "attention.json").read_text())["data"]
    assert {each["what"] for each in records} == {"forward", "backward", "decode"}
    assert all(each["ours"] > 0 and math.isfinite(each["ours"]) for each in records)
    problems = {name: reason for each in records for name, reason in each["problems"].items()}
    assert problems.keys() <= {"flex", "flash", "flash_attn", "model", "flex tuned"}, problems
    assert "NVIDIA GPU" in problems["flash"] and "does not support backward on CPU" in problems["flex"]
    assert any("bound" in each and 0 < each["bound"] < each["ours"] for each in records), problems
    assert all("flex" in each for each in records if each["what"] != "backward")
    assert {"tuned", "flex tuned"} <= {*records[0]}
    low = {(each["what"], each["pattern"], each["head_dim"]) for each in records if {"int8", "fp8"} <= {*each}}
    assert low >= {("forward", "causal", 64), ("forward", "sliding tile", 16), ("decode", "causal, new tokens", 16)}
    page = (tmp_path / "attention.md").read_text()
    for said in (
        "FlexAttention, both tuned in geometric mean",
        "cost model on generic",
        "measured / bound",
        "efficiency",
    ):
        assert said in page


def test_decode_steps_at_true_positions_in_a_dry_run(tmp_path):
    status, text = run("bench/positions.py", folder=tmp_path)
    assert status == 0, text
    records = json.loads((tmp_path / "positions.json").read_text())["data"]
    assert [each["backend"] for each in records] == ["blocks", "triton"]
    assert all(0 < each["maps kept"] <= 32 and each["last"] > 0 for each in records)


def test_tables_chosen_at_run_time_in_a_dry_run(tmp_path):
    status, text = run("bench/selections.py", folder=tmp_path)
    assert status == 0, text
    records = json.loads((tmp_path / "selections.json").read_text())["data"]
    assert len(records) == 3 and all(min(each[step] for step in ("exact", "bounded", "lists")) > 0 for each in records)


def test_blocks_chosen_by_q_and_k_in_a_dry_run(tmp_path):
    status, text = run("bench/choosing.py", folder=tmp_path)
    assert status == 0, text
    records = json.loads((tmp_path / "choosing.json").read_text())["data"]
    assert len(records) == 5 and all(min(each[step] for step in ("choice", "map", "step")) > 0 for each in records)


def test_a_step_that_fails_is_a_row_and_the_next_one_runs(bench, tmp_path, monkeypatch):
    gpu = bench("gpu")
    python = sys.executable
    broken = {
        "tests": lambda _: [python, "-c", "print('one'); raise SystemExit(3)"],
        "sanitizer": lambda _: [python, "-c", "import time; time.sleep(60)"],
        "attention": lambda minutes: [python, "-c", f"print('after', {minutes} > 0)"],
    }
    monkeypatch.setattr(gpu, "commands", lambda given: broken)
    monkeypatch.setattr(gpu, "SHARES", {"tests": 1.0, "sanitizer": 0.05, "attention": 1.0})
    steps = ["--steps", *broken]
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry", "--minutes", "0.5", "--results", str(tmp_path), *steps])
    with pytest.raises(SystemExit) as error:
        gpu.main()
    assert error.value.code == 1
    rows = json.loads((tmp_path / "gpu.json").read_text())["data"]
    assert rows[0][1::2] == ["failed with 3", "one"] and rows[1][1].startswith("stopped after 1 s")
    assert rows[2][1::2] == ["done", "after True"]


def test_a_step_without_its_packages_or_its_gpu_says_so(bench, monkeypatch):
    gpu = bench("gpu")
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    assert gpu.reason_against("tests", False) == "torch sees no CUDA device"
    assert gpu.reason_against("host_time", False) is None
    monkeypatch.setattr(gpu, "NEEDED", ("numpy", "no_such_package", "no_such.module"))
    assert gpu.reason_against("attention", True) == "python has no no_such_package, no_such.module"


def test_the_cases_of_the_goals_come_first(bench):
    cases = bench("cases")
    order = cases.cases(cases.FULL, None, None)
    first = order[: 2 * len(cases.MISSION)]
    assert {case.pattern for case in first} <= {*cases.MISSION, "causal, new tokens", "window, new tokens"}
    assert {case.head_dim for case in first} == {128}
    assert {case.what for case in first} == {"forward", "backward", "decode"}
    assert len(order) == len(set(order)) > 100


def test_goals_by_hand(bench):
    """Ratios 2 and 0.5 have the mean 1; a pattern outside the mission does not count."""
    summary = bench("summary")
    case = {"what": "forward", "ours": 1.0, "density": 0.5, "problems": {}}
    records = [
        {**case, "pattern": "causal", "flex": 2.0, "cudnn dense": 1.0, "flash2 dense": 3.0},
        {**case, "pattern": "documents", "flex": 0.5, "cudnn dense": 4.0},
        {**case, "pattern": "dilated window", "flex": 100.0},
    ]
    lines = list(summary.goals(records))
    assert lines[0] == (
        "forward: 1.00x FlexAttention in geometric mean of 2, 0.50x at least; goal 1.2x and 1.0x at least: missed"
    )
    assert lines[-1] == "sparse efficiency, forward: 1.00 in geometric mean; goal 0.8: met"


def test_the_cost_models_constants_are_found_again(bench):
    """Times made of known constants give them back."""
    summary = bench("summary")
    hardware = summary.Hardware("made", flops=100e12, bandwidth=1e12, sms=100)
    pairs = [(1e9, 1e8), (1e8, 2e8), (5e8, 0.0)]
    seconds = [4.0 * 128 * (full + 2.5 * partial) / (0.4 * hardware.flops) for full, partial in pairs]
    records = [
        {"what": "forward", "pairs": each, "head_dim": 128, "ours": time, "predicted": time / 2}
        for each, time in zip(pairs, seconds, strict=True)
    ]
    ratio, fit = summary.constants(records, hardware)
    assert "measured / predicted 2.00 in geometric mean of 3, 2.00 to 2.00" in ratio
    assert fit.startswith("cost model: ATTAINED fits 0.4 (") and "PARTIAL_COST 2.5 (" in fit


def test_the_bound_of_a_kernel_by_hand(bench):
    """Two products of 2 x 64 FLOPs for 1000 pairs at half the peak, and for 100 at a fourth."""
    summary = bench("summary")
    facts = {"name": "forward", "loops": {"full": {"bound": 0.5}, "partial": {"bound": 0.25}}}
    assert summary.kernel_seconds(facts, (1000.0, 100.0), 64, 1e6) == pytest.approx(0.512 + 0.1024)
    assert summary.kernel_seconds({**facts, "name": "backward_kv"}, (1000.0, 0.0), 64, 1e6) == pytest.approx(1.024)
