"""What published masks on canvases cost in each order: `python bench/orders.py`. Counts: the machine does not matter.

A share is computed pairs (the blocks that are not empty, padding included) over the pairs of dense attention; "tokens"
is the share that the mask keeps, below which no order goes. "bound" is one over the best share, "estimate" the
planner's roofline for an H100 with 24 heads of 128 channels, tokens moved once outside: not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness import report
from rich.progress import track

import flexspec as fs

HEADS, HEAD_DIM, HARDWARE = 24, 128, "h100"
KINDS = ("row_major", "axes", "tiled", "dilated", "morton", "hilbert")
"""Orders by the first word of their text. Residue classes are tried where the mask is dilated."""


@dataclass
class Case:
    name: str
    mask: fs.Mask
    tile: dict[str, int] | None = None
    """The published tile, if there is one."""
    block: int = 128
    published: float | None = None
    """The share that its paper gives (one minus its sparsity)."""


def cases() -> list[Case]:
    hunyuan, wan = fs.Canvas(t=30, h=48, w=80), fs.Canvas(t=21, h=45, w=80)
    short, cube = fs.Canvas(t=16, h=45, w=80), fs.Canvas(t=48, h=48, w=48)
    small, large, swin = fs.Canvas(h=64, w=64), fs.Canvas(h=128, w=128), fs.Canvas(h=56, w=56)
    tile, four = {"t": 6, "h": 8, "w": 8}, {"t": 4, "h": 4, "w": 4}
    narrow, wide = {"t": 18, "h": 24, "w": 24}, {"t": 30, "h": 40, "w": 40}
    return [
        Case("STA 30x48x80, window 18x24x24", fs.sliding_tile(hunyuan, narrow, tile), tile, 128, 1 - 0.91),
        Case("STA 30x48x80, window 30x40x40", fs.sliding_tile(hunyuan, wide, tile), tile, 128, 1 - 0.5833),
        Case("NA 30x48x80, window 18x24x24", fs.neighborhood(hunyuan, narrow), tile),
        Case("GNA 30x48x80, window 18x24x24, stride 6x8x8", fs.neighborhood(hunyuan, narrow, stride=tile), tile),
        Case("STA 48^3, window 12, tile 4", fs.sliding_tile(cube, 12, 4), four, 64, 0.0156),
        Case("STA 48^3, window 20, tile 4", fs.sliding_tile(cube, 20, 4), four, 64, 0.0723),
        Case("NA 48^3, window 11, tile 4", fs.neighborhood(cube, 11), four, 64),
        Case("NA 16x45x80, window 8x15x20", fs.neighborhood(short, {"t": 8, "h": 15, "w": 20})),
        Case("NA 21x45x80, window 9x15x20", fs.neighborhood(wan, {"t": 9, "h": 15, "w": 20})),
        Case("NA 64x64, window 7", fs.neighborhood(small, 7), block=64),
        Case("DiNA 64x64, window 7, dilation 4", fs.neighborhood(small, 7, dilation=4), block=64),
        Case("NA 128x128, window 25", fs.neighborhood(large, 25)),
        Case("GNA 128x128, window 32, stride 16", fs.neighborhood(large, 32, stride=16)),
        Case("Swin 56x56, window 7", fs.windows(swin, 7), {"h": 7, "w": 7}, 49),
        Case("Swin 56x56, window 7, shifted by 3", fs.windows(swin, 7, shift=3), {"h": 7, "w": 7}, 49),
    ]


def measure(case: Case) -> dict[str, Any]:
    """The shares of one case: of its tokens, and of its blocks in the best order of each kind."""
    options: dict[str, Any] = {"heads": HEADS, "head_dim": HEAD_DIM, "hardware": HARDWARE, "moved": False}
    tile = [fs.tiled(case.mask.canvas, case.tile)] if case.tile else []
    plans = fs.plan(case.mask, block_sizes=[case.block], more_orders=tile, **options)
    best: dict[str, fs.Plan] = {}
    for plan in sorted(plans, key=lambda plan: (plan.computed_pairs, plan.partial)):
        best.setdefault(str(plan.order).partition("(")[0], plan)
    own = next((plan for plan in plans if plan.order in tile), None)
    return {
        "case": case.name,
        "tokens": plans.shape.q_len,
        "block": case.block,
        "token_share": plans.best.kept_pairs / plans.best.dense_pairs,
        "published_share": case.published,
        "published_tile": facts(own) if own else None,
        "best": {name: facts(plan) for name, plan in best.items()},
        "first": facts(plans.best),
        "tried": len(plans),
    }


def facts(plan: fs.Plan) -> dict[str, Any]:
    return plan.facts() | {"share": 1 / plan.speedup, "full_share": plan.full / plan.possible}


def row(found: dict[str, Any]) -> list[str]:
    shares = [found["best"].get(kind) for kind in KINDS]
    own, published, best = found["published_tile"], found["published_share"], found["first"]
    return [
        found["case"],
        f"{found['tokens']:,}",
        str(found["block"]),
        _percent(found["token_share"]),
        "-" if published is None else _percent(published),
        "-" if own is None else f"{_percent(own['share'])} ({own['partial'] / max(1, own['blocks']):.0%} partial)",
        *("-" if plan is None else _percent(plan["share"]) for plan in shares),
        best["order"],
        f"{best['speedup']:.1f}x",
        f"{best['estimate']:.1f}x",
    ]


def _percent(share: float) -> str:
    return f"{share:.2%}"


def main() -> None:
    data = [measure(case) for case in track(cases(), description="cases", transient=True)]
    columns = ["case", "tokens in all", "block", "tokens", "published", "published tile", *KINDS]
    report("orders", "python bench/orders.py", [*columns, "planner", "bound", "estimate"], list(map(row, data)), data)


if __name__ == "__main__":
    main()
