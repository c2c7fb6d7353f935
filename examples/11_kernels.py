"""Compile a pattern's kernels for a GPU that is not here, and see what they need."""

import os

os.environ.pop("TRITON_INTERPRET", None)  # in which Triton runs kernels in Python and compiles nothing

import flexspec as fs  # noqa: E402

attend = fs.compile(fs.sink_window(sink=4, window=1024), backend="triton")

for target in ("sm_80", "sm_90"):
    report = attend.aot(target, head_dim=128, folder=f"out/kernels/{target}")
    print(report, "\n")

kernel = report.kernels[0]
print(
    f"{kernel.name}: {len(kernel.ptx.splitlines()):,} lines of PTX, {len(kernel.cubin):,} bytes of code, in out/kernels"
)
print(report.source)
