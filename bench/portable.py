"""Attention on a CPU by plain torch operations, beside torch's own: `python bench/portable.py`.

One process for each row: a forward pass and a training step (forward and backward) of `backend="blocks"`, of
`scaled_dot_product_attention` with the dense mask, and the forward pass of compiled FlexAttention, in turn, so that a
busy machine slows all alike; the smallest time of each counts. Peak memory is that of a training step in a process of
its own, above q, k, v. One query is a step of decoding against the whole cache.
Options: --tokens 2048 8192, --runs 3, --threads 2, --masks window causal documents tiles one_query, --memory 32768.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import report
from torch.nn.functional import scaled_dot_product_attention

import flexspec as fs

HEADS, HEAD_DIM, WINDOW = 8, 64, 256


def problem(mask: str, tokens: int) -> tuple[Any, Any, dict[str, Any]]:
    """The pattern, its order and its values."""
    if mask == "documents":
        sizes = torch.randint(64, 1025, (tokens // 64,), generator=torch.Generator().manual_seed(0))
        ids = torch.bucketize(torch.arange(tokens), sizes.cumsum(0), right=True)
        return fs.document() & fs.causal(), None, {"document_id": ids[None]}
    if mask == "tiles":
        video = fs.Canvas(t=tokens // 256, h=16, w=16)
        tile = {"t": 2, "h": 8, "w": 8}
        window = {"t": 6, "h": 8, "w": 8}
        return fs.sliding_tile(video, window=window, tile=tile), fs.tiled(video, **tile), {}
    return (fs.causal_window(WINDOW) if mask in ("window", "one_query") else fs.causal()), None, {}


def tensors(mask: str, tokens: int) -> list[torch.Tensor]:
    queries = 1 if mask == "one_query" else tokens
    return [torch.randn(1, HEADS, n, HEAD_DIM) for n in (queries, tokens, tokens)]


def step(function: Callable[..., torch.Tensor], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    function(*leaves).sum().backward()


def contenders(mask: str, tokens: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    spec, order, values = problem(mask, tokens)
    q, k, v = tensors(mask, tokens)
    blocks, flex = (fs.compile(spec, order=order, backend=name) for name in ("blocks", "flex"))
    if mask == "one_query":
        spec = fs.causal(offset=tokens - 1) & fs.mask(lambda q, kv: kv > tokens - 1 - WINDOW)
        blocks = fs.compile(spec, backend="blocks")
        return {
            "blocks forward": lambda: blocks(q, k, v),
            "sdpa forward": lambda: scaled_dot_product_attention(q, k, v),
        }
    dense = spec.dense(tokens, **values)

    def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return blocks(q, k, v, **values)

    def torchs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=dense)

    return {
        "blocks forward": lambda: ours(q, k, v),
        "sdpa forward": lambda: torchs(q, k, v),
        "flex forward": lambda: flex(q, k, v, **values),
        "blocks step": lambda: step(ours, q, k, v),
        "sdpa step": lambda: step(torchs, q, k, v),
    }


def measure(mask: str, tokens: int, runs: int, threads: int, send: Any) -> None:
    torch.set_num_threads(threads)
    times: dict[str, list[float]] = {}
    timed = contenders(mask, tokens)
    for run in range(runs + 1):  # the first holds block maps and compilation
        for name, function in timed.items():
            start = time.perf_counter()
            for _ in range(repeats := 50 if mask == "one_query" and run else 1):
                function()
            times.setdefault(name, []).append((time.perf_counter() - start) / repeats)
    send.send({name: {"first": each[0], "best": min(each[1:])} for name, each in times.items()})


def memory(mask: str, tokens: int, threads: int, send: Any) -> None:
    """MiB of the peak of a training step above q, k, v, and MiB of q, k, v, out."""
    import resource

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    torch.set_num_threads(threads)
    spec, order, values = problem(mask, tokens)
    attend = fs.compile(spec, order=order, backend="blocks")
    given = tensors(mask, tokens)
    with torch.no_grad():
        attend(*tensors(mask, 256)) if mask in ("window", "causal") else None  # imports are not counted
        before = peak()
        attend(*given, **values)
        forward = peak() - before
    step(lambda *x: attend(*x, **values), *given)
    size = sum(x.nbytes for x in given) / 2**20
    send.send({"inputs": size, "forward": forward + size, "step": peak() - before + size, "qkvo": size * 4 / 3})


def apart(function: Callable[..., None], *args: Any) -> dict[str, Any]:
    """What `function` sends, from a process of its own."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(False)
    process = context.Process(target=function, args=(*args, send))
    process.start()
    result: dict[str, Any] = receive.recv()
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--masks", nargs="+", default=["window", "documents", "causal", "tiles", "one_query"])
    parser.add_argument("--memory", type=int, default=32_768)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    busy, rows, data = os.getloadavg()[0], [], []
    for tokens in given.tokens:
        for mask in given.masks:
            found = apart(measure, mask, tokens, given.runs, given.threads)
            data.append({"mask": mask, "tokens": tokens, **found})
            rows.append([mask, f"{tokens:,}", *_cells(found), "-"])
            print(rows[-1], flush=True)
    if given.memory:
        found = apart(memory, "window", given.memory, given.threads)
        data.append({"mask": "window", "tokens": given.memory, "memory": found})
        ratios = f"{found['forward'] / found['qkvo']:.2f}x forward, {found['step'] / found['qkvo']:.2f}x step"
        rows.append(["window", f"{given.memory:,}", *["-"] * 8, ratios])
    columns = ["mask", "tokens", "blocks first", "blocks forward", "SDPA forward", "flex forward", "flex first"]
    columns += ["blocks step", "SDPA step", "step: SDPA / blocks", "peak / (q, k, v, out)"]
    command = " ".join(["python bench/portable.py", *sys.argv[1:]])
    report("portable", f"{command} (load average {busy:.1f} at the start)", columns, rows, data)


def _cells(found: dict[str, Any]) -> list[str]:
    def shown(name: str, which: str = "best") -> str:
        return f"{found[name][which] * 1e3:,.1f} ms" if name in found else "-"

    cells = [shown("blocks forward", "first"), *(shown(f"{name} forward") for name in ("blocks", "sdpa", "flex"))]
    cells += [shown("flex forward", "first"), shown("blocks step"), shown("sdpa step")]
    ratio = found["sdpa step"]["best"] / found["blocks step"]["best"] if "blocks step" in found else None
    return [*cells, "-" if ratio is None else f"{ratio:.1f}x"]


if __name__ == "__main__":
    main()
