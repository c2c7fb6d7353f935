"""Errors of attention in 8 bits against float64, and what its binaries say: `python bench/precision.py`.

q, k and v are bfloat16, and so is each output, as in a model. int8 and fp8 are computed by the reference, on the CPU;
tests/test_low_precision.py compares the kernel with it. "kept": k and v alone, by `fs.quantise`, with the mean of the
first eighth of the tokens, as a prompt that long would give it. Inputs: normal numbers; k with an offset that all
tokens share in some channels and q large in some of them, as SageAttention (arXiv 2410.02367, figure 4) shows of
models; and some keys that are large themselves. Options: --tokens 2048, --heads 4, --seed 0.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # in which Triton compiles nothing

import torch
from flexspec.compiler.backends.quantised import PRECISIONS, quantised, restored
from flexspec.compiler.backends.reference import by_rows
from harness import report, table
from torch.nn.functional import scaled_dot_product_attention

import flexspec as fs
from flexspec.inputs import make_sizes

HEAD_DIMS = (64, 128)
TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100")


def inputs(kind: str, heads: int, tokens: int, head_dim: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, heads, tokens, head_dim, generator=generator) for _ in range(3))
    if kind == "offset channels":
        chosen = torch.randperm(head_dim, generator=generator)[: head_dim // 16]
        k[..., chosen] += 12.0 * torch.randn(len(chosen), generator=generator).sign()
        q[..., chosen[:2]] *= 6.0
    if kind == "large keys":
        k[:, :, torch.rand(tokens, generator=generator) < 1 / 128] *= 8.0
    return [x.bfloat16() for x in (q, k, v)]


def low(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, precision: str, centred: bool) -> torch.Tensor:
    """Causal attention as the reference rounds it."""
    parts = fs.Attention(mask=fs.causal()).parts
    bound = parts.bind(make_sizes(q.shape[2], k.shape[2], q.shape[0], q.shape[1]), {})
    scale = q.shape[3] ** -0.5
    numbers = restored(quantised(q, k, v, precision, centred=centred), q.shape[2], k.shape[2])
    return by_rows(parts.mask.flat, parts.score.flat, scale, bound, *numbers, precision=precision)[0].to(q.dtype)


def ways(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    yield "bfloat16, torch", scaled_dot_product_attention(q, k, v, is_causal=True)
    for precision in PRECISIONS:
        yield precision, low(q, k, v, precision, centred=True)
        yield f"{precision}, mean left in", low(q, k, v, precision, centred=False)
        prompt = k[:, :, : k.shape[2] // 8].mean(2, keepdim=True, dtype=torch.float32)
        stored = fs.quantise(k, v, precision, mean=prompt)
        restored = (x.restored(torch.float64) for x in stored)
        yield f"{precision}, kept", fs.reference_attention(fs.causal(), q.double(), *restored).to(q.dtype)


def errors(found: torch.Tensor, exact: torch.Tensor) -> dict[str, float]:
    found, off = found.double(), (found.double() - exact)
    cosine = torch.cosine_similarity(found.flatten(), exact.flatten(), dim=0)
    return {"relative": float(off.norm() / exact.norm()), "most": float(off.abs().max()), "cosine": float(cosine)}


def binaries(tokens: int) -> list[list[str]]:
    """The full loop of each kernel beside that of the forward kernel in bfloat16."""
    rows = []
    for target in TARGETS:
        for head_dim in HEAD_DIMS:
            for precision in (None, *PRECISIONS):
                if (target, precision) == ("sm_80", "fp8"):
                    continue
                attend = fs.compile(fs.causal(), backend="triton", precision=precision)
                kernel = attend.aot(target, head_dim=head_dim, q_len=tokens, backward=False).kernels[-1]
                full, config = kernel.loops[0], kernel.config
                rows.append(
                    [
                        *(target, str(head_dim), precision or "bfloat16"),
                        *(", ".join(kernel.tensor_cores), f"{config.block_m}x{config.block_n}, {config.warps}"),
                        *(f"{full.products:.2f}", f"{full.per_block:,}", str(full.wait_depth), str(full.local)),
                        *(f"{full.cycles[name]:,}" for name in ("products", "issue", "exponentials", "shared memory")),
                    ]
                )
    return rows


def steps(tokens: int) -> list[list[str]]:
    """The decode kernel: one query of each of 8 heads in a tile of 16 rows, against 64 keys."""
    rows = []
    for target in TARGETS:
        for head_dim in HEAD_DIMS:
            for precision in (None, *PRECISIONS):
                if (target, precision) == ("sm_80", "fp8"):
                    continue
                attend = fs.compile(fs.causal(tokens - 1), backend="triton", precision=precision)
                sizes = {"heads": 32, "kv_heads": 4, "q_len": 1, "kv_len": tokens}
                kernel = attend.aot(target, head_dim=head_dim, **sizes).kernels[0]
                full = kernel.loops[0]
                needed = 64 * 2 * (head_dim * 2 if precision is None else head_dim + 4)
                issue = full.cycles["issue"] * 16 * 64 // 128**2
                rows.append(
                    [
                        *(target, str(head_dim), precision or "bfloat16", ", ".join(kernel.tensor_cores)),
                        *(str(kernel.config.block_n), str(kernel.registers), str(full.wait_depth), str(full.local)),
                        *(f"{needed:,}", f"{issue:,}", f"{needed / issue:.1f}"),
                    ]
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rows, data = [], []
    for kind in ("normal", "offset channels", "large keys"):
        for head_dim in HEAD_DIMS:
            q, k, v = inputs(kind, given.heads, given.tokens, head_dim, given.seed)
            exact = fs.reference_attention(fs.causal(), q, k, v)
            for name, out in ways(q, k, v):
                found = errors(out, exact)
                data.append({"inputs": kind, "head_dim": head_dim, "way": name, **found})
                rows.append(
                    [kind, str(head_dim), name, f"{found['relative']:.2%}", f"{found['most']:.4f}"]
                    + [f"{found['cosine']:.6f}"]
                )
    titles = ["target", "head_dim", "precision", "tensor core", "tile, warps", "products", "per block", "wait", "local"]
    titles += [f"cycles: {name}" for name in ("products", "issue", "exponentials", "shared memory")]
    made: Any = binaries(given.tokens)
    notes = ["The full loops of the kernels, causal, for 128 x 128 pairs (columns as in `attend.aot`):", ""]
    kept: Any = steps(given.tokens)
    decode = ["target", "head_dim", "k and v", "tensor core", "keys of a tile", "registers", "wait", "local"]
    decode += ["bytes", "cycles: issue", "bytes a cycle"]
    said = "The full loop of the decode kernel for 8 query heads and 64 keys: bytes that it reads, cycles to issue it:"
    more = [said, "", *table(decode, kept)]
    command = " ".join(["python bench/precision.py", *sys.argv[1:]])
    columns = ["inputs", "head_dim", "way", "relative L2 error", "largest error", "cosine"]
    data = {"errors": data, "binaries": [dict(zip(titles, row, strict=True)) for row in made]}
    data["steps"] = [dict(zip(decode, row, strict=True)) for row in kept]
    report("precision", command, columns, rows, data, notes="\n".join([*notes, *table(titles, made), "", *more]))


if __name__ == "__main__":
    main()
