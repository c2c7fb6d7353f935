"""What the times of `bench/attention.py` say: rows, goals, the static model's bound, the planner's constants.

A record is a case's fields with what was measured: seconds by way, density, flops, and problems by way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from cases import DTYPE, MISSION, PRECISIONS, Runs
from flexspec.compiler.backends.triton.loops import CHANNELS
from flexspec.compiler.planning.block_counts import of_runs
from flexspec.compiler.planning.cost import ATTAINED, PARTIAL_COST, Shape, attention_seconds
from flexspec.compiler.planning.hardware import Hardware

Record = dict[str, Any]
COLUMNS = ["case", "tokens", "head_dim", "heads", "blocks", "ours", "TFLOP/s", "MFU", "flex / ours", "FLASH / ours"]
COLUMNS += ["both tuned", "cudnn causal / ours", "flash2 causal / ours", "flash_attn / ours", "dense mask / ours"]
COLUMNS += ["int8 / ours", "fp8 / ours"]
COLUMNS += ["efficiency", "failed"]
LEGEND = """MFU: FLOP/s of the blocks that are computed, over the data sheet's peak. efficiency: time of the fastest
dense kernel x block density / ours. flash2: SDPA's flash kernel. flash_attn: Dao's own package, FA3 where there is
one. int8, fp8: our kernels in 8 bits, a forward with the time to quantise, a step of decoding over `fs.quantise`'s."""
GOALS = {"forward": (1.2, 1.0), "backward": (1.1, 0.0), "decode": (1.3, 0.0)}
"""FlexAttention's time over ours: in geometric mean over the mission's patterns, and of every case."""
EFFICIENCY = 0.8
MODEL = ["case", "tokens", "head_dim", "kernels", "bound", "limit", "measured", "measured / bound"]


def row(record: Record, peak: float) -> list[str]:
    """A record as text; one that did not run has its reason and nothing else."""

    def ratio(name: str, to: str = "ours") -> str:
        return f"{record[name] / record[to]:.2f}x" if name in record and to in record else "-"

    heads = f"{record['heads']}" + (f":{record['kv_heads']}" if record["heads"] != record["kv_heads"] else "")
    head = [f"{record['what']} {record['pattern']}", f"{record['tokens']:,}", f"{record['head_dim']}", heads]
    failed = "; ".join(f"{name}: {reason[:140]}" for name, reason in record["problems"].items())
    if "ours" not in record:
        return [*head, *["-"] * (len(COLUMNS) - len(head) - 1), failed]
    rate = record["flops"] / record["ours"]
    return [
        *(*head, f"{record['density']:.1%}", f"{record['ours'] * 1e3:.3f} ms", f"{rate / 1e12:.3g}"),
        *(f"{rate / peak:.1%}", ratio("flex"), ratio("flash"), ratio("flex tuned", "tuned")),
        *map(ratio, ("cudnn causal", "flash2 causal", "flash_attn", "sdpa masked", *PRECISIONS)),
        *(f"{efficiency(record):.2f}" if dense(record) else "-", failed),
    ]


def dense(record: Record) -> float | None:
    """Seconds of the fastest dense kernel."""
    return min((record[name] for name in ("cudnn dense", "flash2 dense") if name in record), default=None)


def efficiency(record: Record) -> float:
    return (dense(record) or math.nan) * record["density"] / record["ours"]


def goals(records: list[Record]) -> Iterator[str]:
    """What was reached beside what was wanted."""
    judged = [each for each in records if each["pattern"] in MISSION or each["what"] == "decode"]
    for what, (mean_goal, least_goal) in GOALS.items():
        for rival, theirs, mine in (
            ("FlexAttention", "flex", "ours"),
            ("FlexAttention, both tuned", "flex tuned", "tuned"),
            ("FlexAttention's FLASH", "flash", "ours"),
        ):
            ratios = [
                each[theirs] / each[mine] for each in judged if each["what"] == what and {theirs, mine} <= {*each}
            ]
            if not ratios:
                yield f"{what}: nothing was measured beside {rival}"
                continue
            mean = _mean(ratios)
            met = "met" if mean >= mean_goal and min(ratios) >= least_goal else "missed"
            least = f" and {least_goal}x at least" if least_goal else ""
            goal = "" if theirs == "flash" else f"; goal {mean_goal}x{least}: {met}"
            yield (f"{what}: {mean:.2f}x {rival} in geometric mean of {len(ratios)}, {min(ratios):.2f}x at least{goal}")
    shares = [efficiency(each) for each in judged if each["what"] == "forward" and "ours" in each and dense(each)]
    if shares:
        met = "met" if _mean(shares) >= EFFICIENCY else "missed"
        yield f"sparse efficiency, forward: {_mean(shares):.2f} in geometric mean; goal {EFFICIENCY}: {met}"


def _mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def bound_of(runs: Runs, target: str, peak: float) -> Record:
    """Seconds in which the static model says the kernels cannot be beaten, and what limits them.

    The sum over kernels and kinds of blocks of products needed / (bound x peak). Starts of runs, waits and memory cost
    nothing in it, so that a kernel far from its bound names what the model does not see.
    """
    case = runs.case
    report = runs.attend.aot(
        target, dtype=DTYPE, head_dim=case.head_dim, heads=case.heads, kv_heads=case.kv_heads, q_len=case.tokens,
        kv_len=case.tokens, backward=case.what == "backward",
    )  # fmt: skip
    named = ("backward_q", "backward_kv") if case.what == "backward" else ("forward",)
    kernels = [kernel.facts() for kernel in report.kernels if kernel.name in named]
    seconds = sum(kernel_seconds(facts, runs.pairs(), case.head_dim, peak) for facts in kernels)
    limits = [f"{facts['name']} {facts['loops']['full']['limit']}" for facts in kernels]
    return {"bound": seconds, "limits": limits, "kernels": kernels}


def kernel_seconds(facts: Record, pairs: tuple[float, float], head_dim: int, peak: float) -> float:
    """Of one kernel by the bounds of its two loops. pairs: of full and of partial blocks."""
    products, loops = sum(CHANNELS[facts["name"]]), facts["loops"]
    bounds = (loops["full"]["bound"], loops.get("partial", loops["full"])["bound"])
    return sum(
        2 * products * count * head_dim / (bound * peak) for count, bound in zip(pairs, bounds, strict=True) if count
    )


def model_row(record: Record) -> list[str]:
    """The bound beside the measurement, in TFLOP/s of the blocks that are computed."""
    head = [f"{record['what']} {record['pattern']}", f"{record['tokens']:,}", f"{record['head_dim']}"]
    if "bound" not in record:
        return [*head, "-", "-", "-", "-", record["problems"].get("model", "not reached")[:120]]
    tiles = [
        "{name} {block_m}x{block_n}, {warps}, {stages}, {registers} registers".format(**each)
        for each in record["kernels"]
    ]
    bound, measured = (record["flops"] / record[name] / 1e12 for name in ("bound", "ours"))
    share = record["bound"] / record["ours"]
    return [*head, "; ".join(tiles), f"{bound:.0f}", "; ".join(record["limits"]), f"{measured:.3g}", f"{share:.1%}"]


def predicted(runs: Runs, hardware: Hardware) -> float:
    """Seconds of a forward pass by the planner's cost model."""
    case, blocks = runs.case, runs.blocks
    shape = Shape(case.tokens, case.tokens, 1, case.heads, case.kv_heads, case.head_dim)
    counts = [of_runs(each) for each in blocks.maps]
    sides = (blocks.block_q, blocks.block_kv)
    return attention_seconds(counts, case.heads // len(counts), sides, shape, hardware)


def constants(records: list[Record], hardware: Hardware) -> Iterator[str]:
    """The constants of the planner's cost model beside those that fit the forward passes best."""
    seen = [each for each in records if each["what"] == "forward" and "predicted" in each]
    if len(seen) < 2:
        yield "cost model: fewer than two forward passes to fit"
        return
    ratios = [each["ours"] / each["predicted"] for each in seen]
    yield (
        f"cost model on {hardware.name}: measured / predicted {_mean(ratios):.2f} in geometric mean of {len(ratios)}, "
        f"{min(ratios):.2f} to {max(ratios):.2f}; only the order of plans hangs on their spread"
    )
    flops = np.array([[4.0 * pairs * each["head_dim"] for pairs in each["pairs"]] for each in seen])
    seconds = np.array([each["ours"] for each in seen])
    (full, partial), *_ = np.linalg.lstsq(flops / seconds[:, None], np.ones(len(seen)), rcond=None)
    if not full > 0 or not partial > 0:
        yield "cost model: full and partial blocks of these cases are too alike to tell their times apart"
        return
    yield (
        f"cost model: ATTAINED fits {1 / (full * hardware.flops):.3g} (assumed {ATTAINED}), "
        f"PARTIAL_COST {partial / full:.3g} (assumed {PARTIAL_COST})"
    )
