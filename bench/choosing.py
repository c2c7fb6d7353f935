"""Attention over blocks that q and k choose, beside dense attention on the same backend: `python bench/choosing.py`.

choice: the table of chosen blocks from q and k. map: its block map. step: a whole call with a new choice, in
`backend="blocks"`. dense: the same call without a mask. create_block_mask: torch's own, of the same table. Smallest of
several runs on one thread. Options: --tokens 8192, --attend 16384 (no attention beyond), --runs 3, --dry (256 tokens),
--results FOLDER.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flexspec.compiler.selecting.choices import Choices
from harness import RESULTS, report, seconds
from torch.nn.attention.flex_attention import create_block_mask

import flexspec as fs
from flexspec.inputs import make_sizes

HEADS, HEAD_DIM, BLOCK = 8, 64, 64
SHARES = (0.05, 0.1, 0.25)


def measured(mask: fs.Mask, tokens: int, attend: bool, runs: int) -> dict[str, float]:
    """Seconds of each step."""
    q, k, v = (torch.randn(1, HEADS, tokens, HEAD_DIM) for _ in range(3))
    sizes, choices = make_sizes(tokens, tokens, 1, HEADS), Choices(mask)

    def best(step: Callable[[], Any]) -> float:
        return min(seconds(step, runs, 0.0))

    choices.values(q, k, sizes, {})  # what may be chosen is known from then on
    (table,) = (values := choices.values(q, k, sizes, {})).values()
    block_map = fs.block_map(mask, tokens, batch=1, heads=HEADS, block_size=BLOCK, **values)
    found = {
        "density": block_map.density,
        "choice": best(lambda: choices.values(q, k, sizes, {})),
        "map": best(lambda: fs.block_map(mask, tokens, batch=1, heads=HEADS, block_size=BLOCK, **values)),
    }
    if attend:
        call, dense = (fs.compile(each, backend="blocks", block_size=BLOCK) for each in (mask, fs.everything()))
        mask_mod = block_map.mask_mod
        found["step"] = best(lambda: call(q.add_(0.01 * torch.randn_like(q)), k, v))
        found["dense"] = best(lambda: dense(q, k, v))
        sizes_of_torch = (1, HEADS, tokens, tokens)
        found["create_block_mask"] = best(
            lambda: create_block_mask(mask_mod, *sizes_of_torch, device="cpu", BLOCK_SIZE=BLOCK)
        )
        assert table.shape[1] == HEADS
    return found


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--tokens", type=int, nargs="+", default=[8192, 115_200])
    options.add_argument("--attend", type=int, default=16_384)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--dry", action="store_true")
    options.add_argument("--results", type=Path, default=RESULTS)
    given = options.parse_args()
    if given.dry:
        given.tokens, given.runs = [256], 1
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    rows, data = [], []
    for tokens in given.tokens:
        blocks = -(-tokens // BLOCK)
        masks = [fs.vsa(BLOCK, max(1, round(share * blocks))) for share in SHARES]
        masks += [fs.nabla(BLOCK, 0.1), fs.causal() & fs.vsa(BLOCK, max(1, round(0.1 * blocks)))]
        for mask in masks:
            found = measured(mask, tokens, tokens <= given.attend, given.runs)
            steps = ("choice", "map", "step", "dense", "create_block_mask")
            times = [f"{1e3 * found[step]:,.0f} ms" if step in found else "-" for step in steps]
            ratio = f"{found['step'] / found['dense']:.2f}" if "step" in found else "-"
            rows.append([repr(mask), f"{tokens:,}", f"{found['density']:.1%}", *times, ratio])
            data.append({"mask": repr(mask), "tokens": tokens, **found})
    titles = ["mask", "tokens", "blocks", "choice", "map", "step", "dense", "create_block_mask", "step / dense"]
    command = " ".join(["python bench/choosing.py", *sys.argv[1:]])
    report("choosing", command, titles, rows, data, given.results)


if __name__ == "__main__":
    main()
