"""From a new predicate to the first result: `python bench/first_result.py [--tokens 16384] [--runs 3]`.

Each figure is the median of fresh processes. "cold": nothing of flexspec, Triton or inductor on disk; "from disk": what
the cold process left there. Imports of torch and flexspec, and CUDA's start, are not timed; all else is: the trace, the
block map, the source, the compilers (whose own imports are lazy), the kernel.

On CUDA both ours and compiled FlexAttention run. Without a GPU there is no first result: the ahead-of-time part is
timed alone, which is the trace, the block map, the source, and Triton's compilation of the forward kernel for sm_90.
"report removed" is from disk too, but for our report: what Triton's own cache is worth.
Python should keep bytecode, as after an installation: unset PYTHONDONTWRITEBYTECODE.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import in_fresh_process, report

import flexspec as fs

HEADS, HEAD_DIM = 8, 128
CUDA = torch.cuda.is_available()


def window(tokens: int) -> Any:
    return lambda b, h, q, kv: (q >= kv) & ((q - kv < 1024) | (kv < 4))


def documents(tokens: int) -> Any:
    ids = torch.arange(tokens, device="cuda" if CUDA else "cpu") // 1000
    return lambda b, h, q, kv: (q >= kv) & (ids[q] == ids[kv])


PATTERNS = {"sink and window": window, "causal documents": documents}


def qkv(tokens: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, HEADS, tokens, HEAD_DIM, device="cuda", dtype=torch.bfloat16) for _ in range(3)]


def ours(pattern: str, tokens: int) -> Callable[[], Any]:
    tensors = qkv(tokens)

    def run() -> None:
        fs.compile(PATTERNS[pattern](tokens), backend="triton")(*tensors)
        torch.cuda.synchronize()

    return run


def flex(pattern: str, tokens: int) -> Callable[[], Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    tensors = qkv(tokens)

    def run() -> None:
        blocks = create_block_mask(PATTERNS[pattern](tokens), None, None, tokens, tokens, device="cuda")
        torch.compile(flex_attention)(*tensors, block_mask=blocks)
        torch.cuda.synchronize()

    return run


def ahead_of_time(pattern: str, tokens: int) -> Callable[[], Any]:
    def run() -> None:
        attend = fs.compile(PATTERNS[pattern](tokens), backend="triton")
        attend.aot("sm_90", heads=HEADS, head_dim=HEAD_DIM, q_len=tokens, backward=False)

    return run


WAYS = {"ours": ours, "flex": flex} if CUDA else {"ours, ahead of time": ahead_of_time}
HOW = ("cold", "from disk", *(() if CUDA else ("report removed",)))


def timed(pattern: str, tokens: int, runs: int) -> dict[str, float]:
    """Seconds by way and by what is on disk."""
    found: dict[str, float] = {}
    for name, way in WAYS.items():
        times: dict[str, list[float]] = {how: [] for how in HOW}
        for _ in range(runs):
            with tempfile.TemporaryDirectory() as cache:
                for how in HOW:
                    if how == "report removed":
                        shutil.rmtree(Path(cache) / "flexspec" / "reports")
                    times[how].append(in_fresh_process(partial(way, pattern, tokens), 1, Path(cache))["first"])
        found |= {f"{name}, {how}": median(each) for how, each in times.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    busy = os.getloadavg()[0]
    data = {pattern: timed(pattern, given.tokens, given.runs) for pattern in PATTERNS}
    names = list(next(iter(data.values())))
    columns, rows = ["pattern", *names], []
    for pattern, found in data.items():
        rows.append([pattern, *(f"{found[name]:.2f} s" for name in names)])
        if CUDA:
            rows[-1] += [f"{found[f'flex, {how}'] / found[f'ours, {how}']:.1f}x" for how in HOW]
        else:
            rows[-1].append(f"{found[names[2]] / found[names[1]]:.1f}x")
    columns += ["flex / ours, cold", "flex / ours, from disk"] if CUDA else ["report removed / from disk"]
    command = f"python bench/first_result.py --tokens {given.tokens} --runs {given.runs}"
    command += "" if CUDA else ", without a GPU: the ahead-of-time part of the forward kernel for sm_90"
    report("first_result", f"{command} (load average {busy:.1f} at the start)", columns, rows, data)


if __name__ == "__main__":
    main()
