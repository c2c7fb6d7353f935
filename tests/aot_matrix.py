"""Compile the mission patterns for one GPU and print what is known of each kernel; `test_aot` runs this.

It is a program of its own because the other tests have Triton interpret its kernels, which is decided for a process.
"""

import json
import re
import sys

import torch
from flexspec.compiler.backends.triton import autograd, launch

import flexspec as fs

VIDEO = fs.Canvas(t=30, h=48, w=80)
IMAGE = fs.Canvas(h=64, w=64)
SIDES = {"window": {"t": 18, "h": 24, "w": 24}, "tile": {"t": 6, "h": 8, "w": 8}}
PATTERNS = {
    "sliding tile": (fs.sliding_tile(VIDEO, **SIDES), fs.tiled(VIDEO, t=6, h=8, w=8)),
    "dilated neighborhood": (fs.neighborhood(IMAGE, window=9, dilation=3), None),
    "sink and window": (fs.sink_window(sink=4, window=1024), None),
    "documents": (fs.causal() & fs.document((torch.arange(4096) // 700)[None]), None),
    "causal, striped": (fs.causal(), fs.striped(8)),
}
HEAD_DIMS = (64, 128)
TARGETS = ("sm_80", "sm_90")


def loops(ttgir: str) -> list[list[str]]:
    """Operations of each innermost loop that multiplies tiles, in the compiler's last form that has loops."""
    found, lines = [], ttgir.splitlines()
    for start, line in enumerate(lines):
        if "scf.for" in line:
            end = f"{line[: len(line) - len(line.lstrip())]}}}"
            body = lines[start + 1 : next(at for at in range(start + 1, len(lines)) if lines[at].startswith(end))]
            ops = [op for each in body for op in re.findall(r"\b(?:arith|math|scf|tt|ttg|ttng)\.\w+", each)[:1]]
            if "scf.for" not in ops and any("dot" in op or "mma" in op for op in ops):
                found.append(ops)
    return found


def main(target: str) -> None:
    rows, listed = [], {}
    choose = launch.takes_lists

    def takes_lists(block_map, kernel="forward"):
        listed[kernel] = choose(block_map, kernel)
        return listed[kernel]

    launch.takes_lists = autograd.takes_lists = takes_lists
    for name, (pattern, order) in PATTERNS.items():
        for head_dim in HEAD_DIMS:
            report = fs.compile(pattern, order=order).aot(target, head_dim=head_dim)
            rows += [
                {
                    "pattern": name,
                    "head_dim": head_dim,
                    "lists": listed.get(each.name, False),
                    "operations": loops(str(each.files["ttgir"])),
                    **each.facts(),
                }
                for each in report.kernels
            ]
    print(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1])
