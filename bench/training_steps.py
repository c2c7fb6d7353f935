"""Masks over training steps, ours and torch's compiled `create_block_mask`: `python bench/training_steps.py`.

Each step has fresh documents, a fresh window, or a fresh length. Both make a BlockMask in the same step; their kv lists
are compared at every one. Each case runs in a process of its own with a cold cache, and "first" holds the compilation.
torch's mask_mod is a closure over this step's values, as its documentation writes it.
Options: --tokens 16384, --steps 100.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import report

import flexspec as fs

SHORTEST, LONGEST = 64, 4096
"""Tokens of a document or of a window."""


def documents(length: int, made: torch.Generator) -> torch.Tensor:
    """Ids [length] of documents of random lengths."""
    sizes = torch.randint(SHORTEST, LONGEST + 1, (length // SHORTEST + 1,), generator=made)
    return torch.bucketize(torch.arange(length), sizes.cumsum(0), right=True)


def step_of(case: str, tokens: int, made: torch.Generator) -> tuple[int, Callable[[], Any], Callable[..., Any]]:
    """The length of a fresh step, our block mask of it as a function, and torch's mask_mod."""
    if case == "windows":
        window = int(torch.randint(SHORTEST, LONGEST, (), generator=made))
        mine = lambda: fs.block_map(fs.causal_window(window), tokens).to_flex()  # noqa: E731
        return tokens, mine, lambda b, h, q, kv: (q >= kv) & (q - kv < window)
    length = tokens if case == "documents" else int(torch.randint(tokens // 2, tokens + 1, (), generator=made))
    ids = documents(length, made)
    mine = lambda: fs.block_map(PACKED, length, document_id=ids[None]).to_flex()  # noqa: E731
    return length, mine, lambda b, h, q, kv: (ids[q] == ids[kv]) & (q >= kv)


PACKED = fs.document() & fs.causal()


def same_lists(ours: Any, theirs: Any) -> bool:
    """Do the kv lists name the same blocks? What stands past a row's count means nothing."""
    for full in ("", "full_"):
        count, wanted = (getattr(x, f"{full}kv_num_blocks") for x in (ours, theirs))
        mine, named = (getattr(x, f"{full}kv_indices") for x in (ours, theirs))
        used = torch.arange(mine.shape[-1]) < count[..., None]
        if not torch.equal(count, wanted) or not torch.equal(mine[used], named[used]):
            return False
    return True


def run(case: str, tokens: int, steps: int, send: Any) -> None:
    from torch._dynamo.utils import counters
    from torch.nn.attention.flex_attention import create_block_mask

    fs.block_map(fs.causal(), 128).to_flex()  # the imports are not timed, here or at the peer's
    compiled = torch.compile(create_block_mask)
    made = torch.Generator().manual_seed(0)
    found: dict[str, Any] = {"ours": [], "torch": [], "compiling": [], "equal": 0, "error": ""}
    for step in range(steps):
        length, mine, mask_mod = step_of(case, tokens, made)
        start = time.perf_counter()
        ours = mine()
        middle = time.perf_counter()
        graphs = counters["stats"]["unique_graphs"]
        try:
            theirs = compiled(mask_mod, None, None, length, length, device="cpu")
        except Exception as error:  # the peer's failure is a result
            found["error"] = f"step {step + 1}: {type(error).__name__}"
            break
        found["torch"].append(time.perf_counter() - middle)
        found["ours"].append(middle - start)
        if counters["stats"]["unique_graphs"] > graphs:
            found["compiling"].append(step + 1)
        found["equal"] += same_lists(ours, theirs)
    send.send(found)


def in_cold_process(case: str, tokens: int, steps: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(False)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        process = context.Process(target=run, args=(case, tokens, steps, send))
        process.start()
        found: dict[str, Any] = receive.recv()
        process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    rows, data, busy = [], [], os.getloadavg()[0]
    for case in ("documents", "windows", "lengths"):
        found = in_cold_process(case, given.tokens, given.steps)
        data.append({"case": case, "tokens": given.tokens, **found})
        rows.append(_row(case, found))
    columns = ["fresh each step", "steps", "equal lists", "ours first", "ours median", "ours total"]
    columns += ["torch first", "torch median", "torch total", "torch compiles at steps", "ratio median", "ratio total"]
    command = f"python bench/training_steps.py --tokens {given.tokens} --steps {given.steps}"
    command += f" (load average {busy:.1f} at the start)"
    report("training_steps", command, columns, rows, data)


def _row(case: str, found: dict[str, Any]) -> list[str]:
    times = [found[who] for who in ("ours", "torch")]
    if not times[0]:
        return [case, "0", *["-"] * 9, found["error"]]
    facts = [(each[0], sorted(each)[len(each) // 2], sum(each)) for each in times]
    cells = [f"{value * 1e3:,.1f} ms" for each in facts for value in each]
    compiling = ", ".join(map(str, found["compiling"])) + (f"; fails at {found['error']}" if found["error"] else "")
    ratios = [f"{theirs / mine:,.0f}x" for mine, theirs in list(zip(*facts, strict=True))[1:]]
    return [case, str(len(times[0])), str(found["equal"]), *cells, compiling, *ratios]


if __name__ == "__main__":
    main()
