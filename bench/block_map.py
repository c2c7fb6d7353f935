"""Block maps against torch's compiled `create_block_mask`, in one run: `python bench/block_map.py [--quick]`.

Each case runs in a process of its own. "first" is the first call after the imports (for torch, with its compilation);
"warm" is the median of later calls.
"""

from __future__ import annotations

import functools
import sys

import torch
from harness import in_fresh_process, report
from rich.progress import Progress

import flexspec as fs

VIDEO = {"t": 30, "h": 48, "w": 80}


def documents(length: int, count: int = 100) -> torch.Tensor:
    ends = torch.randperm(length - 1, generator=torch.Generator().manual_seed(0))[: count - 1].sort().values + 1
    return torch.bucketize(torch.arange(length), ends, right=True)


def pattern(name: str, length: int) -> fs.Mask:
    """The masks that are timed."""
    if name == "documents":
        ids = documents(length)
        return fs.from_mask_mod(lambda b, h, q, kv: (ids[q] == ids[kv]) & (q >= kv))
    if name == "sliding tile":
        return fs.sliding_tile(fs.Canvas(**VIDEO), window={"t": 18, "h": 24, "w": 24}, tile={"t": 6, "h": 8, "w": 8})
    if name == "neighborhood":
        return fs.neighborhood(fs.Canvas(**VIDEO), window={"t": 18, "h": 24, "w": 24})
    made = {
        "causal": fs.causal(),
        "causal window": fs.causal_window(1024),
        "sink + window": fs.sink_window(sink=4, window=1024),
        "dilated window": fs.dilated_window(256, 4),
    }
    return made[name]


def ours(name: str, length: int):
    order = fs.tiled(fs.Canvas(**VIDEO), t=6, h=8, w=8) if name == "sliding tile" else None
    mask = pattern(name, length)
    fs.block_map  # noqa: B018 - the import is not timed, here or at the peer's
    return functools.partial(fs.block_map, mask, length, order=order)


def theirs(name: str, length: int):
    from torch.nn.attention.flex_attention import create_block_mask

    order = fs.tiled(fs.Canvas(**VIDEO), t=6, h=8, w=8) if name == "sliding tile" else None
    mask_mod = fs.block_map(pattern(name, length), length, order=order).mask_mod
    compiled = torch.compile(create_block_mask)
    return functools.partial(compiled, mask_mod, None, None, length, length, device="cpu")


def main() -> None:
    quick = "--quick" in sys.argv
    names = ["causal", "causal window", "sink + window", "documents", "dilated window"]
    cases = [(name, 16_384 if quick else 65_536, True) for name in names]
    if not quick:
        cases += [("sliding tile", 115_200, True), ("neighborhood", 115_200, True)]
        cases += [(name, 1_048_576, False) for name in names]
        cases += [(name, 16_777_216, False) for name in names[:2]]
    rows, data = [], []
    with Progress(transient=True) as progress:
        task = progress.add_task("cases", total=len(cases))
        for name, length, with_peer in cases:
            mine = in_fresh_process(functools.partial(ours, name, length))
            peer = in_fresh_process(functools.partial(theirs, name, length), 2) if with_peer else {}
            data.append({"case": name, "tokens": length, "flexspec": mine, "torch": peer})
            rows.append(_row(name, length, mine, peer))
            progress.advance(task)
    columns = ["case", "tokens", "ours first", "ours warm", "ours MiB", "torch first", "torch warm", "torch MiB"]
    report("block_map", "python bench/block_map.py", [*columns, "ratio warm", "ratio first"], rows, data)


def _row(name: str, length: int, mine: dict[str, float], peer: dict[str, float]) -> list[str]:
    cells = [name, f"{length:,}", *(_ms(mine[k]) for k in ("first", "warm")), f"{mine['peak_mib']:.0f}"]
    if not peer:
        return cells + ["-"] * 5
    cells += [*(_ms(peer[k]) for k in ("first", "warm")), f"{peer['peak_mib']:.0f}"]
    return cells + [f"{peer[k] / mine[k]:,.0f}x" for k in ("warm", "first")]


def _ms(value: float) -> str:
    return f"{value * 1e3:,.1f} ms"


if __name__ == "__main__":
    main()
