"""Block maps against torch's compiled `create_block_mask`, in one run: `python bench/block_map.py [--quick]`.

Each figure comes from a process of its own. "first" is the first call after the imports (for torch, with its
compilation from an empty cache); "warm" is the median of later calls; MiB is the peak above the imports.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from harness import in_fresh_process, report
from rich.progress import Progress

import flexspec as fs

VIDEO = {"t": 30, "h": 48, "w": 80}
FRAME = 48 * 80
LINES = ["causal", "causal window", "sink + window", "documents", "dilated window"]
CANVASES = ["sliding tile", "neighborhood", "radial"]
BLOCKS = 2048


def documents(lengths: torch.Tensor) -> fs.Mask:
    ids = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return fs.from_mask_mod(lambda b, h, q, kv: (ids[q] == ids[kv]) & (q >= kv))


def random_lengths(total: int, count: int = 100) -> torch.Tensor:
    ends = torch.randperm(total - 1, generator=torch.Generator().manual_seed(0))[: count - 1].sort().values + 1
    return torch.diff(ends, prepend=torch.tensor([0]), append=torch.tensor([total]))


def long_documents() -> torch.Tensor:
    """32 lengths of 10k to 33k tokens, 800k in total."""
    lengths = torch.linspace(10_000, 33_000, 32)[torch.randperm(32, generator=torch.Generator().manual_seed(0))]
    lengths = (lengths * (800_000 / lengths.sum())).long()
    lengths[0] += 800_000 - lengths.sum()
    return lengths


def radial(block: int = 128) -> fs.Mask:
    """Radial Attention's token predicate on the canvas, row-major, with decay 1 and the first frame as sink."""
    spans = [2 ** FRAME.bit_length() / 2 ** d.bit_length() for d in range(VIDEO["t"])]
    width = torch.tensor([max(int(span), block) for span in spans])
    width[0] = FRAME
    chosen = torch.tensor([span >= block or d % int(block / span) == 0 for d, span in enumerate(spans)])

    @fs.mask
    def radial(q, kv):
        d = (q // FRAME - kv // FRAME).abs()
        return ((q % FRAME - kv % FRAME).abs() <= width[d]) & chosen[d] | (kv < FRAME)

    return radial


def table() -> torch.Tensor:
    return torch.rand(BLOCKS, BLOCKS, generator=torch.Generator().manual_seed(0)) < 0.3


def pattern(name: str, length: int) -> fs.Mask:
    """The masks that are timed."""
    made: dict[str, Callable[[], fs.Mask]] = {
        "causal": fs.causal,
        "causal window": lambda: fs.causal_window(1024),
        "sink + window": lambda: fs.sink_window(sink=4, window=1024),
        "documents": lambda: documents(random_lengths(length)),
        "dilated window": lambda: fs.dilated_window(256, 4),
        "sliding tile": lambda: fs.sliding_tile(
            fs.Canvas(**VIDEO), window={"t": 18, "h": 24, "w": 24}, tile={"t": 6, "h": 8, "w": 8}
        ),
        "neighborhood": lambda: fs.neighborhood(fs.Canvas(**VIDEO), window={"t": 18, "h": 24, "w": 24}),
        "radial": radial,
        "32 long documents": lambda: documents(long_documents()),
        "4 kinds of heads": lambda: fs.per_head([head(kind) for kind in range(4)] * 8),
        "table of blocks": lambda: by_table(table()),
    }
    return made[name]()


def head(kind: int) -> fs.Mask:
    return [fs.causal(), fs.causal_window(1024), fs.sink_window(sink=4, window=4096), fs.dilated_window(256, 4)][kind]


def by_table(chosen: torch.Tensor) -> fs.Mask:
    return fs.from_mask_mod(lambda b, h, q, kv: chosen[q // 128, kv // 128])


def order_of(name: str) -> fs.Order | None:
    return fs.tiled(fs.Canvas(**VIDEO), t=6, h=8, w=8) if name == "sliding tile" else None


def ours(name: str, length: int) -> Callable[[], Any]:
    mask = pattern(name, length)
    fs.block_map  # noqa: B018 - the import is not timed, here or at the peer's
    heads = 32 if "heads" in name else None
    return functools.partial(fs.block_map, mask, length, heads=heads, order=order_of(name))


def theirs(name: str, length: int) -> Callable[[], Any]:
    from torch.nn.attention.flex_attention import create_block_mask

    mask_mod = by_hand(name, length) or fs.block_map(pattern(name, length), length, order=order_of(name)).mask_mod
    compiled = torch.compile(create_block_mask)
    return functools.partial(compiled, mask_mod, None, None, length, length, device="cpu")


def by_hand(name: str, length: int) -> Callable[..., Any] | None:
    """The mask_mod that one writes for torch."""
    if name == "documents":
        ids = torch.repeat_interleave(torch.arange(100), random_lengths(length))
        return lambda b, h, q, kv: (ids[q] == ids[kv]) & (q >= kv)
    written: dict[str, Callable[..., Any]] = {
        "causal": lambda b, h, q, kv: q >= kv,
        "causal window": lambda b, h, q, kv: (q >= kv) & (q - kv < 1024),
        "sink + window": lambda b, h, q, kv: (q >= kv) & ((q - kv < 1024) | (kv < 4)),
        "dilated window": lambda b, h, q, kv: ((q - kv).abs() <= 1024) & ((q - kv) % 4 == 0),
    }
    return written.get(name)


def four_maps(length: int) -> Callable[[], Any]:
    masks = [head(kind) for kind in range(4)]
    fs.block_map  # noqa: B018
    return lambda: [fs.block_map(mask, length) for mask in masks]


def lists_of_table() -> Callable[[], Any]:
    """The table to BlockMask's counts and indices, as torch does: a sum and a stable argsort."""
    chosen = table()
    return lambda: (chosen.sum(-1), torch.argsort(chosen.int(), dim=-1, descending=True, stable=True))


@dataclass
class Case:
    name: str
    tokens: int
    beside: str = "-"
    """What is timed beside it."""
    make: Callable[[], Callable[[], Any]] | None = None


def cases(quick: bool) -> list[Case]:
    def against_torch(name: str, tokens: int, theirs_at: int) -> Case:
        return Case(name, tokens, f"create_block_mask, {theirs_at:,}", functools.partial(theirs, name, theirs_at))

    if quick:
        return [against_torch(name, 16_384, 16_384) for name in LINES]
    return [
        *(against_torch(name, 65_536, 65_536) for name in LINES),
        *(against_torch(name, 115_200, 115_200) for name in CANVASES),
        *(against_torch(name, 1_048_576, 16_384) for name in LINES),
        *(Case(name, 16_777_216) for name in ("causal", "causal window")),
        Case("32 long documents", 800_000),
        Case("4 kinds of heads", 65_536, "four maps", functools.partial(four_maps, 65_536)),
        Case("table of blocks", BLOCKS * 128, "sum and argsort of the table", lists_of_table),
    ]


def main() -> None:
    rows, data = [], []
    chosen = cases("--quick" in sys.argv)
    with Progress(transient=True) as progress:
        task = progress.add_task("cases", total=len(chosen))
        for case in chosen:
            mine = in_fresh_process(functools.partial(ours, case.name, case.tokens))
            other = in_fresh_process(case.make, 2) if case.make else {}
            data.append({"case": case.name, "tokens": case.tokens, "flexspec": mine, case.beside: other})
            rows.append(_row(case, mine, other))
            progress.advance(task)
    columns = ["case", "tokens", "first", "warm", "MiB", "beside", "its first", "its warm", "its MiB"]
    report("block_map", "python bench/block_map.py", [*columns, "ratio warm", "ratio first"], rows, data)


def _row(case: Case, mine: dict[str, float], other: dict[str, float]) -> list[str]:
    cells = [case.name, f"{case.tokens:,}", *(_ms(mine[k]) for k in ("first", "warm")), f"{mine['peak_mib']:.0f}"]
    cells.append(case.beside)
    if not other:
        return cells + ["-"] * 5
    cells += [*(_ms(other[k]) for k in ("first", "warm")), f"{other['peak_mib']:.0f}"]
    return cells + [_ratio(other[k] / mine[k]) for k in ("warm", "first")]


def _ms(value: float) -> str:
    return f"{value * 1e3:,.1f} ms"


def _ratio(value: float) -> str:
    return f"{value:,.0f}x" if value >= 10 else f"{value:.2g}x"


if __name__ == "__main__":
    main()
