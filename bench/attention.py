"""Our Triton kernels beside FlexAttention and SDPA on a GPU, in one run.

`python bench/attention.py` needs CUDA. Options: `--quick` (16k tokens, head_dim 64), `--only forward|backward|decode`,
`--head-dim N`, `--plain` (no autotuning, theirs or ours), `--minutes N` (no new case after that). `--smoke` runs tiny
sizes anywhere, without a GPU in Triton's interpreter, to see that the command works.

Times are medians of CUDA events. "efficiency" is the time of the fastest dense SDPA x block density / ours. Every timed
case is checked first: some queries against float64, outputs and gradients against FlexAttention (in a smoke run against
the reference).
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

SMOKE = "--smoke" in sys.argv
if SMOKE and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

from harness import report  # noqa: E402
from rich.progress import Progress  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
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
        "documents": lambda: fs.causal() & fs.document(documents(tokens).to(DEVICE)),
        "sliding tile": lambda: fs.sliding_tile(VIDEO, window=SIZES, tile={"t": 6, "h": 8, "w": 8}),
        "neighborhood": lambda: fs.neighborhood(VIDEO, window=SIZES),
        "dilated window": lambda: fs.dilated_window(window // 4, 4),
        "causal, new tokens": lambda: fs.causal(offset=tokens - 1),
        "window, new tokens": lambda: fs.mask(lambda q, kv: kv >= tokens - window),
    }
    scores = {"alibi": [fs.alibi()], "softcap": [fs.softcap(50.0)]}.get(pattern, [])
    return fs.Attention(mask=masks[pattern]() if pattern in masks else fs.causal(), scores=scores)


def cases(quick: bool, only: str | None, head_dim: int | None) -> Iterator[Case]:
    lines = ["dense", "causal", "window 1024", "window 4096", "sink + window", "documents", "dilated window"]
    lines += ["alibi", "softcap"]
    lengths = [256] if SMOKE else [16_384] if quick else [4096, 16_384, 65_536, 131_072]
    dims = [head_dim] if head_dim else [64] if SMOKE or quick else [64, 128]
    for what in ("forward", "backward"):
        if only not in (None, what):
            continue
        for dim in dims:
            for tokens in lengths:
                yield from (Case(what, name, tokens, dim, *_heads(tokens)) for name in lines)
                yield Case(what, "causal", tokens, dim, _heads(tokens)[0], _heads(tokens)[0] // 4)
            if not SMOKE:
                yield from (Case(what, name, VIDEO.size, dim, 4, 4) for name in ("sliding tile", "neighborhood"))
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
        self.leaves = [x.requires_grad_(case.what == "backward") for x in made]
        self.gradient = torch.randn_like(self.leaves[0])
        self.gqa = {"enable_gqa": True} if case.heads != case.kv_heads else {}
        attend = fs.compile(self.spec, backend="triton", order=self.order)
        self.blocks = attend.block_map(q_len, case.tokens, batch=1, heads=case.heads, device=DEVICE)

    def by(self, backend: str, **options: bool) -> Callable[[], torch.Tensor]:
        attend = fs.compile(self.spec, backend=backend, order=self.order, **options)
        return lambda: attend(*self.leaves, inputs="ordered")

    def flex(self, mode: str | None) -> Callable[[], torch.Tensor]:
        torch._dynamo.reset()  # the ninth mask function of a process would run in eager
        lists = self.blocks.to_flex(compact=False)
        attend = torch.compile(flex_attention, mode=mode, fullgraph=True)
        scored = fs.compile(self.spec, backend="flex", order=self.order).score_mod if self.spec.scores else None
        return lambda: attend(*self.leaves, score_mod=scored, block_mask=lists, **self.gqa)

    def sdpa(self, backend: SDPBackend, causal: bool) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(*self.leaves, is_causal=causal, **self.gqa)

        return run

    def results(self, run: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        """The output, and in a backward case the gradients."""
        out = run()
        if self.case.what != "backward":
            return [out]
        return [out.detach(), *torch.autograd.grad(out, self.leaves, self.gradient)]

    def timed(self, run: Callable[[], torch.Tensor]) -> float:
        """Seconds of a forward, a decoding step, or a backward alone."""
        if SMOKE and DEVICE == "cpu":
            return math.nan
        from triton.testing import do_bench

        if self.case.what != "backward":
            return do_bench(run, warmup=50, rep=300, return_mode="median") / 1e3
        out = run()
        step = lambda: torch.autograd.grad(out, self.leaves, self.gradient, retain_graph=True)  # noqa: E731
        return do_bench(step, warmup=50, rep=300, return_mode="median") / 1e3

    @property
    def flops(self) -> float:
        """Of the blocks that are computed: two products forward, five backward."""
        counts = self.blocks.counts()
        share = (counts[fs.BlockKind.FULL] + counts[fs.BlockKind.PARTIAL]) * self.case.heads / self.blocks.heads
        products = 5 if self.case.what == "backward" else 2
        return 2 * products * share * self.blocks.block_q * self.blocks.block_kv * self.case.head_dim

    def error(self, out: torch.Tensor) -> float:
        """The largest error of a few queries against float64 (masks without scores)."""
        q, k, v = (x.detach() for x in self.leaves)
        worst = 0.0
        for at in torch.linspace(0, q.shape[2] - 1, 5).long().tolist():
            for h in (0, self.case.heads - 1):
                tokens = self.blocks.tokens(at, at + 1, 0, self.case.tokens, h=min(h, self.blocks.heads - 1))
                kept = tokens[0].to(DEVICE)
                if not kept.any():
                    continue
                group = h * self.case.kv_heads // self.case.heads
                keys, values = (x[0, group][kept].double() for x in (k, v))
                share = torch.softmax(keys @ q[0, h, at].double() / math.sqrt(self.case.head_dim), 0)
                worst = max(worst, float((share @ values - out[0, h, at].double()).abs().max()))
        return worst


NEAR = 0.05
"""Of the largest entry: two ways to compute in bfloat16 differ by less."""


def apart(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The largest difference of two results over the largest entry."""
    pairs = zip(found, wanted, strict=True)
    return max(float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-6)) for a, b in pairs)


def measured(case: Case, plain: bool) -> dict[str, Any]:
    """One case: seconds of each way, errors, density, and why a way has no time."""
    runs = Runs(case)
    ours = runs.by("triton")
    results = runs.results(ours)
    found: dict[str, Any] = {"density": runs.blocks.density, "flops": runs.flops, "problems": {}}
    if not runs.spec.scores:
        found["error"] = runs.error(results[0])
        if not found["error"] < NEAR:
            raise SystemExit(f"{case}: wrong by {found['error']}")
    if DEVICE == "cpu":
        found["apart"] = apart(results, runs.results(runs.by("reference")))
        if not found["apart"] < NEAR:
            raise SystemExit(f"{case}: {found['apart']} from the reference")
    found["ours"] = runs.timed(ours)
    if DEVICE == "cuda":
        for name, make in _others(runs, plain).items():
            try:
                run = make()
                if name.startswith(("flex", "tuned")) and not apart(results, runs.results(run)) < NEAR:
                    raise SystemExit(f"{case}: {apart(results, runs.results(run))} from {name}")
                found[name] = runs.timed(run)
            except Exception as error:  # a way that cannot is a result
                found["problems"][name] = f"{type(error).__name__}: {error}"[:300]
    dense = [found[name] for name in ("cudnn dense", "flash dense") if name in found]
    return found | ({"dense": min(dense)} if dense else {})


def _others(runs: Runs, plain: bool) -> dict[str, Callable[[], Callable[[], torch.Tensor]]]:
    """What ours is compared with, by name: functions that make a way to run the case."""
    ways: dict[str, Callable[[], Callable[[], torch.Tensor]]] = {"flex": lambda: runs.flex(None)}
    if not plain:
        ways["flex autotuned"] = lambda: runs.flex("max-autotune-no-cudagraphs")
        ways["tuned"] = lambda: runs.by("triton", autotune=True)
    kernels = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    for name, kernel in kernels.items():
        ways[f"{name} dense"] = lambda kernel=kernel: runs.sdpa(kernel, False)
        if runs.case.pattern == "causal" and runs.case.what != "decode":
            ways[f"{name} causal"] = lambda kernel=kernel: runs.sdpa(kernel, True)
    return ways


def _row(case: Case, found: dict[str, Any]) -> list[str]:
    def ratio(name: str, to: str = "ours") -> str:
        return f"{found[name] / found[to]:.2f}x" if name in found and to in found else "-"

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
        ratio("flex autotuned", "tuned"),
        ratio("cudnn causal"),
        ratio("flash causal"),
        f"{efficiency:.2f}",
    ]


COLUMNS = ["case", "tokens", "head_dim", "heads", "blocks", "ours", "TFLOP/s", "flex / ours", "both autotuned"]
COLUMNS += ["cudnn causal / ours", "flash causal / ours", "efficiency"]
GOALS = {"forward": (1.2, 1.0), "backward": (1.1, 0.0), "decode": (1.3, 0.0)}
"""FlexAttention's time over ours: in geometric mean, and of every case."""


def goals(data: list[dict[str, Any]]) -> Iterator[str]:
    """What was reached beside what was wanted."""
    for what, (mean_goal, least_goal) in GOALS.items():
        for who, theirs, mine in (("", "flex", "ours"), (", both autotuned", "flex autotuned", "tuned")):
            ratios = [x[theirs] / x[mine] for x in data if x["what"] == what and theirs in x and mine in x]
            if ratios:
                mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
                met = "met" if mean >= mean_goal and min(ratios) >= least_goal else "missed"
                least = f" and {least_goal}x at least" if least_goal else ""
                said = f"{mean:.2f}x FlexAttention in geometric mean of {len(ratios)}, {min(ratios):.2f}x at least"
                yield f"{what}{who}: {said}; goal {mean_goal}x{least}: {met}"
    shares = [x["dense"] * x["density"] / x["ours"] for x in data if x["what"] == "forward" and "dense" in x]
    if shares:
        mean = math.exp(sum(map(math.log, shares)) / len(shares))
        yield f"sparse efficiency, forward: {mean:.2f} in geometric mean, {min(shares):.2f} at least; goal 0.8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for flag in ("--smoke", "--quick", "--plain"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--only", choices=GOALS)
    parser.add_argument("--head-dim", type=int)
    parser.add_argument("--minutes", type=float, default=math.inf)
    given = parser.parse_args()
    if DEVICE == "cpu" and not SMOKE:
        raise SystemExit("bench/attention.py times kernels on a CUDA device, and finds none; --smoke runs it without")
    chosen = list(cases(given.quick, given.only, given.head_dim))
    rows, data, start = [], [], time.monotonic()
    with Progress(transient=True) as progress:
        for case in progress.track(chosen, description="cases"):
            if time.monotonic() - start > 60 * given.minutes:
                break
            found = measured(case, given.plain or SMOKE)
            data.append({**vars(case), **found})
            rows.append(_row(case, found))
            progress.console.print("  ".join(rows[-1]))
    for line in goals(data):
        print(line)
    print(f"{len(rows)} of {len(chosen)} cases, all right")
    if not SMOKE:
        report("attention", " ".join(["python bench/attention.py", *sys.argv[1:]]), COLUMNS, rows, data)


if __name__ == "__main__":
    main()
