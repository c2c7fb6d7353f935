"""What the binaries of all kernels say, compiled ahead of time for GPUs that need not be there.

`python bench/kernels.py`; writes bench/results/kernels.md. Columns as in the report of `attend.aot`; flaws are what a
better tile would mend. --targets, --dtypes, --head-dims and --patterns take a part of the matrix. What is compiled is
kept in results/kernels.json, and not compiled again unless --anew.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # in which Triton compiles nothing

import torch
import triton
from harness import RESULTS, report

import flexspec as fs

TOKENS, HEADS, KV_HEADS = 4096, 16, 4
PATTERNS: dict[str, Callable[[], fs.Mask]] = {
    "causal": fs.causal,
    "window": lambda: fs.causal() & fs.sliding_window(1024),
    "documents": lambda: fs.causal() & fs.document((torch.arange(TOKENS) // 700)[None]),
}
TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100")
DTYPES = ("bfloat16", "float16", "float32")
HEAD_DIMS = (32, 64, 80, 96, 128, 192, 256)
COLUMNS = ("kernel", "tile, warps, stages", "registers", "blocks by registers, shared", "products", "per block")
COLUMNS += ("partial", "wait", "least N", "local", "bound", "flaws")


def compiled(target: str, dtype: str, head_dim: int, pattern: str) -> list[dict[str, Any]]:
    """Facts of the kernels of a training step, of its backward in one pass, and of those that decode one query."""
    given: dict[str, Any] = {"dtype": getattr(torch, dtype), "head_dim": head_dim, "heads": HEADS}
    whole = fs.compile(PATTERNS[pattern](), backend="triton").aot(target, **given)
    fused = fs.compile(PATTERNS[pattern](), backend="triton", deterministic=False).aot(target, **given)
    one = fs.compile(fs.causal(offset=TOKENS - 1), backend="triton")
    few = one.aot(target, **given, kv_heads=KV_HEADS, q_len=1, kv_len=TOKENS)
    found = [*whole.kernels, *(kernel for kernel in fused.kernels if kernel.name == "backward_fused"), *few.kernels]
    return [kernel.facts() for kernel in found if kernel.loops]


def row(case: str, facts: dict[str, Any]) -> list[str]:
    full, partial = facts["loops"]["full"], facts["loops"]["partial"]
    limit = f", {facts['max_registers']} registers" if facts["max_registers"] else ""
    tile = f"{facts['block_m']}x{facts['block_n']}, {facts['warps']}, {facts['stages']}{limit}"
    blocks = "{registers}, {shared}".format(**facts["resident"])
    least = full["least_n_a_shared"]
    return [
        *(f"{case} {facts['name']}", tile, str(facts["registers"]), blocks, f"{full['products']:.2f}"),
        *(f"{full['per_block']:,}", f"{partial['per_block']:,}", str(full["wait_depth"]), str(least or "")),
        *(str(full["local"]), f"{full['bound']:.0%} {full['limit']}", ", ".join(facts["flaws"])),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, choices in {"targets": TARGETS, "dtypes": DTYPES, "head-dims": HEAD_DIMS, "patterns": PATTERNS}.items():
        few = ["causal"] if name == "patterns" else [str(each) for each in choices]
        parser.add_argument(f"--{name}", nargs="+", default=few, choices=[str(each) for each in choices])
    parser.add_argument("--anew", action="store_true", help="compile what is in results/kernels.json too")
    given = parser.parse_args()
    path = RESULTS / "kernels.json"
    data = json.loads(path.read_text())["data"] if path.exists() and not given.anew else {}
    RESULTS.mkdir(exist_ok=True)
    dtypes = "" if given.dtypes == list(DTYPES) else f" --dtypes {' '.join(given.dtypes)}"
    command = f"python bench/kernels.py{dtypes}, with Triton {triton.__version__}"
    for target in given.targets:
        for dtype in given.dtypes:
            for head_dim in given.head_dims:
                for pattern in given.patterns:
                    case = f"{target} {dtype} {head_dim} {pattern}"
                    if case not in data:
                        data[case] = compiled(target, dtype, int(head_dim), pattern)
                        print(*(" | ".join(row(case, facts)) for facts in data[case]), sep="\n", flush=True)
                        path.write_text(json.dumps({"data": data}))  # the rest may not come
    order = sorted(data, key=lambda case: (TARGETS.index(case.split()[0]), DTYPES.index(case.split()[1])))
    rows = [row(case, facts) for case in order for facts in data[case]]
    report("kernels", command, list(COLUMNS), rows, data)


if __name__ == "__main__":
    main()
