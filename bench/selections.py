"""Maps of tables that are chosen at run time, against an argsort of the same table: `python bench/selections.py`.

exact: `fs.block_map` on the host. bounded: the map as `exact=False` makes it in torch, here on CPU tensors. lists: of
that map, both sides, for FlexAttention. argsort: `torch.argsort(table, dim=-1, descending=True, stable=True)`, by which
torch makes lists of one side. Medians of several runs on one thread. Options: --dry (tiny tables), --results FOLDER in
place of bench/results.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from flexspec.compiler.blocks.flex_lists import dense_lists
from flexspec.compiler.pipeline import map_on_device
from harness import RESULTS, report, seconds

import flexspec as fs
from flexspec.inputs import make_sizes


class Case(NamedTuple):
    """A mask, its table, tokens, block size and heads."""

    mask: fs.Mask
    table: torch.Tensor
    tokens: int
    block: int
    heads: int


def choice(heads: int, blocks: int) -> Case:
    """A tenth of all blocks of 64 tokens, for each head."""
    chosen = torch.rand(1, heads, blocks, blocks, generator=made()) < 0.1
    mask = fs.from_mask_mod(lambda b, h, q, kv: chosen[b, h, q // 64, kv // 64])
    return Case(mask, chosen, 64 * blocks, 64, heads)


def gate(heads: int, tokens: int) -> Case:
    """16 blocks of 64 keys for each query, as in MoBA."""
    chosen = torch.rand(1, heads, tokens, tokens // 64, generator=made()) < 16 * 64 / tokens
    mask = fs.from_mask_mod(lambda b, h, q, kv: chosen[b, h, q, kv // 64] & (q >= kv))
    return Case(mask, chosen, tokens, 64, heads)


def graph(heads: int, tokens: int) -> Case:
    """8 neighbours of each token, at most 200 tokens away."""
    near = torch.randint(-200, 201, (tokens, 8), generator=made())
    keys = (torch.arange(tokens)[:, None] + near).clamp(0, tokens - 1)
    mask = fs.adjacency((torch.arange(0, 8 * tokens + 1, 8), keys.flatten()))
    return Case(mask, mask.tensors["neighbours"], tokens, 128, heads)


def made() -> torch.Generator:
    return torch.Generator().manual_seed(0)


CASES: dict[str, tuple[Callable[[int, int], Case], int, int]] = {
    "choice of blocks, 24 heads x 1,800 x 1,800": (choice, 24, 1800),
    "gate of tokens, 8 heads x 32,768 x 512": (gate, 8, 32_768),
    "adjacency, 32,768 tokens": (graph, 1, 32_768),
}


def measured(case: Case) -> dict[str, float]:
    """Median seconds of each step."""
    sizes = {"batch": 1, "heads": case.heads}
    bound = case.mask.bind(make_sizes(case.tokens, case.tokens, **sizes), {})
    bounded = lambda: map_on_device(case.mask, bound, case.block, None, torch.device("cpu"))  # noqa: E731
    found = bounded()
    steps = {
        "exact": lambda: fs.block_map(case.mask, case.tokens, block_size=case.block, **sizes),
        "bounded": bounded,
        "lists": lambda: dense_lists(found.kinds(), found.grid, None, None, True, decided=found.decided),
        "argsort": lambda: torch.argsort(case.table, dim=-1, descending=True, stable=True),
    }
    return {name: statistics.median(seconds(step, 5)) for name, step in steps.items()}


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--dry", action="store_true")
    options.add_argument("--results", type=Path, default=RESULTS)
    given = options.parse_args()
    torch.set_num_threads(1)
    rows, data = [], []
    for name, (make, heads, size) in CASES.items():
        times = measured(make(*((2, 256) if given.dry else (heads, size))))
        both = times["bounded"] + times["lists"]
        parts = [f"{1e3 * times[step]:.0f} ms" for step in ("exact", "bounded", "lists", "argsort")]
        rows.append([name, *parts, *(f"{time / times['argsort']:.2f}" for time in (times["exact"], both))])
        data.append({"case": name, **times})
    titles = ["table", "exact", "bounded", "lists", "argsort", "exact / argsort", "(bounded + lists) / argsort"]
    report("selections", "python bench/selections.py", titles, rows, data, given.results)


if __name__ == "__main__":
    main()
