"""The cases of `bench/attention.py`, the most important first, and the ways to run one."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

import flexspec as fs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16
MISSION = ("causal", "window 1024", "sink + window", "documents", "sliding tile")
"""The patterns of the goals."""
LINES = ["dense", "causal", "window 1024", "window 4096", "sink + window", "documents", "dilated window"]
LINES += ["alibi", "softcap"]
IN_8_BITS = ("causal", "documents", "sliding tile", "causal, new tokens")
"""The patterns that are timed in 8 bits too, not backward and not at all lengths."""
PRECISIONS = ("int8", "fp8")
MOST_PAIRS = 1 << 28
"""Of a dense mask for SDPA: bytes."""
Run = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Setting:
    """What all cases share. dry: tiny sizes, one run each."""

    dry: bool
    video: fs.Canvas
    tile: dict[str, int]
    window: dict[str, int]

    @property
    def order(self) -> fs.Order:
        return fs.tiled(self.video, **self.tile)


FULL = Setting(False, fs.Canvas(t=30, h=48, w=80), {"t": 6, "h": 8, "w": 8}, {"t": 18, "h": 24, "w": 24})
DRY = Setting(True, fs.Canvas(t=2, h=8, w=16), {"t": 2, "h": 4, "w": 8}, {"t": 2, "h": 4, "w": 8})


@dataclass(frozen=True)
class Case:
    """One row: what is `forward`, `backward` or `decode`."""

    what: str
    pattern: str
    tokens: int
    head_dim: int
    heads: int = 16
    kv_heads: int = 16


def cases(setting: Setting, only: str | None, head_dim: int | None, quick: bool = False) -> list[Case]:
    """All cases; those of the goals at 16k tokens and 128 channels first, then by kind, size and pattern."""
    if setting.dry:
        each = [Case("forward", name, 256, 16, 1, 1) for name in ("documents", "sliding tile")]
        each += [Case("forward", "causal", 256, 64, 2, 2), Case("forward", "softcap", 256, 16, 2, 1)]
        each += [Case("backward", "causal", 256, 16, 1, 1), Case("decode", "causal, new tokens", 600, 16, 2, 1)]
    else:
        each = list(_all(setting, [head_dim] if head_dim else [64, 128], [16_384] if quick else []))
    return sorted((case for case in each if only in (None, case.what)), key=_importance)


def _all(setting: Setting, dims: list[int], lengths: list[int]) -> Iterator[Case]:
    for dim in dims:
        for what in ("forward", "backward"):
            for tokens in lengths or [4096, 16_384, 65_536, 131_072]:
                heads = max(4, min(16, 16 * 65_536 // tokens))  # dense attention takes a few seconds at most
                yield from (Case(what, name, tokens, dim, heads, heads) for name in LINES)
                yield Case(what, "causal", tokens, dim, heads, heads // 4)
            yield from (Case(what, name, setting.video.size, dim, 4, 4) for name in ("sliding tile", "neighborhood"))
        for tokens in (16_384, 131_072):
            yield from (Case("decode", f"{name}, new tokens", tokens, dim, 32, 8) for name in ("causal", "window"))


def _importance(case: Case) -> tuple[Any, ...]:
    of_goals = case.pattern in MISSION and case.heads == case.kv_heads or case.what == "decode"
    usual = case.tokens == 16_384 or case.pattern == "sliding tile"
    return not (of_goals and usual), case.head_dim != 128, not of_goals, not usual, case.tokens


def spec_of(case: Case, setting: Setting) -> fs.Attention:
    tokens, window = case.tokens, window_of(case.tokens)
    masks: dict[str, Callable[[], fs.Mask]] = {
        "dense": fs.everything,
        "causal": fs.causal,
        "window 1024": lambda: fs.causal_window(window),
        "window 4096": lambda: fs.causal_window(4 * window),
        "sink + window": lambda: fs.sink_window(sink=4, window=window),
        "documents": lambda: fs.causal() & fs.document(documents(tokens).to(DEVICE)),
        "sliding tile": lambda: fs.sliding_tile(setting.video, window=setting.window, tile=setting.tile),
        "neighborhood": lambda: fs.neighborhood(setting.video, window=setting.window),
        "dilated window": lambda: fs.dilated_window(window // 4, 4),
        "causal, new tokens": lambda: fs.causal(offset=tokens - 1),
        "window, new tokens": lambda: fs.mask(lambda q, kv: kv >= tokens - window),
    }
    scores = {"alibi": [fs.alibi()], "softcap": [fs.softcap(50.0)]}.get(case.pattern, [])
    return fs.Attention(mask=masks[case.pattern]() if case.pattern in masks else fs.causal(), scores=scores)


def window_of(tokens: int) -> int:
    return min(1024, tokens // 4)


def documents(tokens: int) -> torch.Tensor:
    """Ids of 16 documents of random lengths, int64 [1, tokens]."""
    cuts = torch.randperm(tokens - 1, generator=torch.Generator().manual_seed(0))[:15].sort().values + 1
    return torch.bucketize(torch.arange(tokens), cuts, right=True)[None]


class Runs:
    """The ways to run one case: functions without arguments."""

    def __init__(self, case: Case, setting: Setting) -> None:
        self.case, self.dry, self.spec = case, setting.dry, spec_of(case, setting)
        self.order = setting.order if case.pattern in ("sliding tile", "neighborhood") else None
        self.q_len = 1 if case.what == "decode" else case.tokens
        generator = torch.Generator(DEVICE).manual_seed(0)
        shapes = ((case.heads, self.q_len), (case.kv_heads, case.tokens), (case.kv_heads, case.tokens))
        drawn = [torch.randn(1, *s, case.head_dim, generator=generator, device=DEVICE, dtype=DTYPE) for s in shapes]
        self.leaves = [tensor.requires_grad_(case.what == "backward") for tensor in drawn]
        self.gradient = torch.randn_like(self.leaves[0])
        self.gqa = {"enable_gqa": True} if case.heads != case.kv_heads else {}
        self.attend = fs.compile(self.spec, backend="triton", order=self.order)
        self.blocks = self.attend.block_map(self.q_len, case.tokens, batch=1, heads=case.heads, device=DEVICE)

    def by(self, backend: str, **options: Any) -> Run:
        attend = fs.compile(self.spec, backend=backend, order=self.order, **options)
        return lambda: attend(*self.leaves, inputs="ordered")

    def in_8_bits(self, precision: str) -> Run:
        """A forward that quantises q, k and v; a step of decoding that reads a cache in 8 bits."""
        if self.case.what == "forward":
            return self.by("triton", precision=precision)
        q, *keys = self.leaves
        stored = fs.quantise(*keys, precision)
        return lambda: self.attend(q, *stored, inputs="ordered")

    def flex(self, mode: str | None) -> Run:
        """FlexAttention by torch's own lists; eager in a dry run, whose compiler would take minutes."""
        torch._dynamo.reset()  # the ninth mask function of a process would run in eager
        lists = self.blocks.to_flex(compact=False)
        attend = flex_attention if self.dry else torch.compile(flex_attention, mode=mode, fullgraph=True)
        scored = fs.compile(self.spec, backend="flex", order=self.order).score_mod if self.spec.scores else None
        return lambda: attend(*self.leaves, score_mod=scored, block_mask=lists, **self.gqa)

    def flash(self) -> Run:
        """FlexAttention's FLASH kernels through our lists; Blackwell's take two tiles of queries a block."""
        newer = DEVICE == "cuda" and torch.cuda.get_device_capability()[0] >= 10
        return self.by("flash", block_size=(256, 128) if newer else 128)

    def sdpa(self, backend: SDPBackend, causal: bool = False, masked: bool = False) -> Run:
        mask = self.dense_mask() if masked else None

        def run() -> torch.Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(*self.leaves, attn_mask=mask, is_causal=causal, **self.gqa)

        return run

    def dense_mask(self) -> torch.Tensor:
        if self.q_len * self.case.tokens > MOST_PAIRS:
            raise ValueError(f"a dense mask of {self.q_len:,} x {self.case.tokens:,} pairs is left out")
        return self.blocks.tokens(0, self.q_len, 0, self.case.tokens).to(DEVICE)

    def flash_attn(self) -> Run:
        """Dao's own interface, FA3 before FA2, which has causal masks and windows."""
        module = _imported("flash_attn_interface", "flash_attn")
        times = {"window 1024": 1, "window 4096": 4}.get(self.case.pattern)
        size = (times * window_of(self.case.tokens) - 1, 0) if times else (-1, -1)
        causal = self.case.pattern in ("causal", "causal, new tokens")

        def run() -> torch.Tensor:
            q, k, v = (tensor.transpose(1, 2) for tensor in self.leaves)
            out = module.flash_attn_func(q, k, v, causal=causal, window_size=size)
            return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

        return run

    def ways(self) -> dict[str, Callable[[], Run]]:
        """What ours is compared with, by name: functions that make a way to run the case."""
        ways: dict[str, Callable[[], Run]] = {"flex": lambda: self.flex(None), "flash": self.flash}
        kernels = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash2": SDPBackend.FLASH_ATTENTION}
        if self.dry and DEVICE == "cpu":
            kernels = {"flash2": SDPBackend.MATH}
        for name, kernel in kernels.items():
            ways[f"{name} dense"] = lambda kernel=kernel: self.sdpa(kernel)
            if self.case.pattern == "causal" and self.case.what != "decode":
                ways[f"{name} causal"] = lambda kernel=kernel: self.sdpa(kernel, causal=True)
        if not self.spec.scores and self.blocks.heads == 1:
            masked = SDPBackend.MATH if DEVICE == "cpu" else SDPBackend.EFFICIENT_ATTENTION
            ways["sdpa masked"] = lambda: self.sdpa(masked, masked=True)
        if self.case.pattern in ("dense", "causal", "window 1024", "window 4096", "causal, new tokens"):
            ways["flash_attn"] = self.flash_attn
        usual = self.case.what == "decode" or self.case.tokens == 16_384 or self.order is not None or self.dry
        if self.case.pattern in IN_8_BITS and self.case.what != "backward" and usual:
            ways |= {each: lambda each=each: self.in_8_bits(each) for each in PRECISIONS}
        return ways

    def tuned_ways(self) -> dict[str, Callable[[], Run]]:
        """Both with their tiles by timing: minutes for a few cases."""
        return {
            "flex tuned": lambda: self.flex("max-autotune-no-cudagraphs"),
            "tuned": lambda: self.by("triton", autotune=True),
        }

    def results(self, run: Run) -> list[torch.Tensor]:
        """The output, and in a backward case the gradients."""
        out = run()
        if self.case.what != "backward":
            return [out]
        return [out.detach(), *torch.autograd.grad(out, self.leaves, self.gradient)]

    def timed(self, run: Run) -> float:
        """Seconds of a forward, a decoding step, or a backward alone."""
        if self.case.what == "backward":
            out = run()
            run = lambda: torch.autograd.grad(out, self.leaves, self.gradient, retain_graph=True)[0]  # noqa: E731
        if DEVICE == "cpu":
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        from triton.testing import do_bench

        return do_bench(run, warmup=50, rep=300, return_mode="median") / 1e3

    def pairs(self) -> tuple[float, float]:
        """Query-key pairs of full and of partial blocks, over all heads."""
        counts, area = self.blocks.counts(), self.blocks.block_q * self.blocks.block_kv
        share = area * self.case.heads / self.blocks.heads
        return counts[fs.BlockKind.FULL] * share, counts[fs.BlockKind.PARTIAL] * share

    @property
    def flops(self) -> float:
        """Of the blocks that are computed: two products forward, five backward."""
        return 2 * (5 if self.case.what == "backward" else 2) * sum(self.pairs()) * self.case.head_dim

    def error(self, out: torch.Tensor) -> float:
        """The largest error of a few queries against float64 (masks without scores)."""
        q, k, v = (tensor.detach() for tensor in self.leaves)
        worst = 0.0
        for q_idx in torch.linspace(0, q.shape[2] - 1, 5).long().tolist():
            for h in (0, self.case.heads - 1):
                tokens = self.blocks.tokens(q_idx, q_idx + 1, 0, self.case.tokens, h=min(h, self.blocks.heads - 1))
                kept = tokens[0].to(DEVICE)
                if not kept.any():
                    continue
                group = h * self.case.kv_heads // self.case.heads
                keys, values = (tensor[0, group][kept].double() for tensor in (k, v))
                share = torch.softmax(keys @ q[0, h, q_idx].double() / math.sqrt(self.case.head_dim), 0)
                worst = max(worst, float((share @ values - out[0, h, q_idx].double()).abs().max()))
        return worst


def _imported(*names: str) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError(f"none of {', '.join(names)} can be imported")
