"""Our Triton kernels beside FlexAttention and SDPA on a GPU, in one run.

`python bench/attention.py [--quick] [--only forward|backward|decode]` needs CUDA; `--smoke` runs tiny sizes anywhere,
without a GPU in Triton's interpreter, to see that the command works. Times are medians of CUDA events. "efficiency" is
dense SDPA's time x block density / our time. Every timed case is checked first: against FlexAttention, and some
queries against float64.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

SMOKE = "--smoke" in sys.argv
if SMOKE and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

from harness import report  # noqa: E402
from rich.progress import Progress  # noqa: E402
from torch.nn.attention.flex_attention import flex_attention  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention  # noqa: E402

import flexspec as fs  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16
VIDEO = fs.Canvas(t=30, h=48, w=80)
TILED = fs.tiled(VIDEO, t=6, h=8, w=8)
SIZES = {"t": 18, "h": 24, "w": 24}


@dataclass(frozen=True)
class Case:
    what: str
    pattern: str
    tokens: int
    head_dim: int
    heads: int = 16
    kv_heads: int = 16


def documents(tokens: int) -> torch.Tensor:
    """Ids of 16 documents of random lengths, int64 [1, tokens]."""
    cuts = torch.randperm(tokens - 1, generator=torch.Generator().manual_seed(0))[:15].sort().values + 1
    return torch.bucketize(torch.arange(tokens), cuts, right=True)[None]


def spec_of(pattern: str, tokens: int) -> fs.Attention:
    window = min(1024, tokens // 4)
    masks: dict[str, Callable[[], fs.Mask]] = {
        "dense": fs.everything,
        "causal": fs.causal,
        "window 1024": lambda: fs.causal_window(window),
        "window 4096": lambda: fs.causal_window(4 * window),
        "sink + window": lambda: fs.sink_window(sink=4, window=window),
        "documents": lambda: fs.causal() & fs.document(documents(tokens)),
        "sliding tile": lambda: fs.sliding_tile(VIDEO, window=SIZES, tile={"t": 6, "h": 8, "w": 8}),
        "neighborhood": lambda: fs.neighborhood(VIDEO, window=SIZES),
        "dilated window": lambda: fs.dilated_window(window // 4, 4),
        "causal, new tokens": lambda: fs.causal(offset=tokens - 1),
        "window, new tokens": lambda: fs.mask(lambda q, kv: kv >= tokens - window),
    }
    scores = {"alibi": [fs.alibi()], "softcap": [fs.softcap(50.0)]}.get(pattern, [])
    return fs.Attention(mask=masks[pattern]() if pattern in masks else fs.causal(), scores=scores)


def cases(quick: bool, only: str | None) -> Iterator[Case]:
    lines = ["dense", "causal", "window 1024", "window 4096", "sink + window", "documents", "dilated window"]
    lines += ["alibi", "softcap"]
    lengths = [256] if SMOKE else [16_384] if quick else [4096, 16_384, 65_536, 131_072]
    dims = [64] if SMOKE or quick else [64, 128]
    for what in ("forward", "backward"):
        if only not in (None, what):
            continue
        for head_dim in dims:
            for tokens in lengths:
                yield from (Case(what, name, tokens, head_dim, *_heads(tokens)) for name in lines)
                yield Case(what, "causal", tokens, head_dim, _heads(tokens)[0], _heads(tokens)[0] // 4)
            if not SMOKE:
                yield from (Case(what, name, VIDEO.size, head_dim, 4, 4) for name in ("sliding tile", "neighborhood"))
    if only in (None, "decode"):
        for tokens in [600] if SMOKE else [16_384, 131_072]:
            for name in ("causal, new tokens", "window, new tokens"):
                yield Case("decode", name, tokens, dims[-1], 32 if not SMOKE else 4, 8 if not SMOKE else 1)


def _heads(tokens: int) -> tuple[int, int]:
    """As many heads as keep dense attention at a few seconds."""
    heads = 4 if SMOKE else max(4, min(16, 16 * 65_536 // tokens))
    return heads, heads


class Runs:
    """The ways to run one case: functions without arguments."""

    def __init__(self, case: Case) -> None:
        self.case, self.spec = case, spec_of(case.pattern, case.tokens)
        self.order = TILED if case.tokens == VIDEO.size else None
        q_len = 1 if case.what == "decode" else case.tokens
        generator = torch.Generator(DEVICE).manual_seed(0)
        shapes = ((case.heads, q_len), (case.kv_heads, case.tokens), (case.kv_heads, case.tokens))
        made = [torch.randn(1, *s, case.head_dim, generator=generator, device=DEVICE, dtype=DTYPE) for s in shapes]
        self.q, self.k, self.v = (x.requires_grad_(case.what == "backward") for x in made)
        self.gradient = torch.randn_like(self.q)
        self.attend = fs.compile(self.spec, backend="triton", order=self.order)
        self.blocks = self.attend.block_map(q_len, case.tokens, batch=1, heads=case.heads, device=DEVICE)

    def ours(self) -> torch.Tensor:
        return self.attend(self.q, self.k, self.v, inputs="ordered")

    def flex(self, mode: str | None) -> Callable[[], torch.Tensor]:
        lists = self.blocks.to_flex(compact=False)
        attend = torch.compile(flex_attention, mode=mode, fullgraph=True)
        scored = fs.compile(self.spec, backend="flex", order=self.order).score_mod if self.spec.scores else None
        gqa = self.case.heads != self.case.kv_heads
        return lambda: attend(self.q, self.k, self.v, score_mod=scored, block_mask=lists, enable_gqa=gqa)

    def dense(self, causal: bool = False) -> torch.Tensor:
        gqa = self.case.heads != self.case.kv_heads
        return scaled_dot_product_attention(self.q, self.k, self.v, is_causal=causal, enable_gqa=gqa)

    def timed(self, run: Callable[[], torch.Tensor]) -> float:
        """Seconds of a forward, a decoding step, or a backward alone."""
        if SMOKE and DEVICE == "cpu":
            return math.nan
        from triton.testing import do_bench

        if self.case.what != "backward":
            return do_bench(run, warmup=50, rep=300, return_mode="median") / 1e3
        out = run()
        leaves = [self.q, self.k, self.v]
        step = lambda: torch.autograd.grad(out, leaves, self.gradient, retain_graph=True)  # noqa: E731
        return do_bench(step, warmup=50, rep=300, return_mode="median") / 1e3

    @property
    def flops(self) -> float:
        """Of the blocks that are computed: two products forward, five backward."""
        counts = self.blocks.counts()
        share = (counts[fs.BlockKind.FULL] + counts[fs.BlockKind.PARTIAL]) * self.case.heads / self.blocks.heads
        products = 5 if self.case.what == "backward" else 2
        return 2 * products * share * self.blocks.block_q * self.blocks.block_kv * self.case.head_dim

    def check(self) -> float:
        """The largest error of a few queries against float64 (masks without scores)."""
        with torch.no_grad():
            out = self.ours()
        if self.spec.scores:
            return math.nan
        worst = 0.0
        for at in torch.linspace(0, self.q.shape[2] - 1, 5).long().tolist():
            for h in (0, self.case.heads - 1):
                kept = self.blocks.tokens(at, at + 1, 0, self.case.tokens, h=min(h, self.blocks.heads - 1))[0].to(
                    DEVICE
                )
                if not kept.any():
                    continue
                group = h * self.case.kv_heads // self.case.heads
                keys, values = (x[0, group][kept].double() for x in (self.k, self.v))
                share = torch.softmax(keys @ self.q[0, h, at].double() / math.sqrt(self.case.head_dim), 0)
                worst = max(worst, float((share @ values - out[0, h, at].double()).abs().max()))
        return worst


def measured(case: Case) -> dict[str, Any]:
    """One case: seconds of each way, errors, density."""
    runs = Runs(case)
    found: dict[str, Any] = {"error": runs.check(), "density": runs.blocks.density, "flops": runs.flops}
    if not found["error"] < 0.05 and not runs.spec.scores:
        raise SystemExit(f"{case}: wrong by {found['error']}")
    found["ours"] = runs.timed(runs.ours)
    if DEVICE == "cpu":
        return found
    for name, mode in (("flex", None), ("flex autotuned", "max-autotune-no-cudagraphs")):
        torch._dynamo.reset()
        peer = runs.flex(mode)
        apart = float((peer().float() - runs.ours().float()).abs().max())
        if apart > 0.05:
            raise SystemExit(f"{case}: {apart} from {name}")
        found[name] = runs.timed(peer)
    found["dense"] = runs.timed(runs.dense)
    if case.pattern == "causal" and case.what != "decode":
        found["sdpa causal"] = runs.timed(lambda: runs.dense(causal=True))
    return found


def _row(case: Case, found: dict[str, Any]) -> list[str]:
    def ratio(name: str) -> str:
        return f"{found[name] / found['ours']:.2f}x" if name in found else "-"

    efficiency = found["dense"] * found["density"] / found["ours"] if "dense" in found else math.nan
    heads = f"{case.heads}" if case.heads == case.kv_heads else f"{case.heads}:{case.kv_heads}"
    return [
        f"{case.what} {case.pattern}",
        f"{case.tokens:,}",
        f"{case.head_dim}",
        heads,
        f"{found['density']:.1%}",
        f"{found['ours'] * 1e3:.3f} ms",
        f"{found['flops'] / found['ours'] / 1e12:.0f}",
        ratio("flex"),
        ratio("flex autotuned"),
        ratio("sdpa causal"),
        f"{efficiency:.2f}",
    ]


COLUMNS = ["case", "tokens", "head_dim", "heads", "blocks", "ours", "TFLOP/s", "flex / ours", "autotuned / ours"]
COLUMNS += ["sdpa causal / ours", "efficiency"]


def main() -> None:
    if DEVICE == "cpu" and not SMOKE:
        raise SystemExit("bench/attention.py times kernels on a CUDA device, and finds none; --smoke runs it without")
    only = sys.argv[sys.argv.index("--only") + 1] if "--only" in sys.argv else None
    chosen = list(cases("--quick" in sys.argv, only))
    rows, data = [], []
    with Progress(transient=True) as progress:
        task = progress.add_task("cases", total=len(chosen))
        for case in chosen:
            found = measured(case)
            data.append({**vars(case), **found})
            rows.append(_row(case, found))
            progress.advance(task)
    for what in ("forward", "backward", "decode"):
        ratios = [x["flex"] / x["ours"] for x in data if x["what"] == what and "flex" in x]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            print(f"{what}: {mean:.2f}x FlexAttention in geometric mean, {min(ratios):.2f}x at least")
    if SMOKE:
        print(f"{len(rows)} cases are right")
    else:
        report("attention", "python bench/attention.py", COLUMNS, rows, data)


if __name__ == "__main__":
    main()
