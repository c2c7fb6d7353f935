"""How long proofs take: every shipped 1-D pattern, and pairs of masks that differ in one token, at a million tokens.

`python bench/proofs.py`; writes bench/results/proofs.md. Times are the median of three runs; "no" means that there
is a counterexample.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from harness import report, seconds

import flexspec as fs

LENGTH = 1 << 20
AT = torch.arange(LENGTH)
LEFT_OUT = ("adjacency",)  # its table has a bit for each pair
# Patterns whose catalog entry needs a tensor or a table.
GIVEN: dict[str, Callable[[], fs.Mask]] = {
    "per_head": lambda: fs.per_head([fs.causal_window(1024), fs.causal()]),
    "scaled_span": lambda: fs.scaled_span([16, 1024], [0.125, 0.0], sink=4),
    "document": lambda: fs.document(AT // 777),
    "padding": lambda: fs.padding([LENGTH - 300]),
    "same_label": lambda: fs.same_label(AT // 1000),
    "token_types": lambda: fs.token_types(AT % 50 % 3, window=32),
    "shared_prefix": lambda: fs.shared_prefix(4096, AT // 9600),
    "tree": lambda: fs.tree([(i - 1) // 2 for i in range(LENGTH)]),
    "bridge": lambda: fs.bridge(chunk=64, memory_ids=AT < 8, window=48),
    "block_diffusion": lambda: fs.block_diffusion(block=32, n=LENGTH // 2),
    "segments": lambda: fs.segments(
        {"text": 4096, "image": LENGTH - 4096},
        {("text", "text"): fs.causal(), ("image", "text"): True, ("image", "image"): fs.sliding_window(400)},
    ),
}


def planted() -> dict[str, tuple[fs.Mask, fs.Mask]]:
    """Pairs of masks that differ in one place."""
    flipped = fs.mask(lambda q, kv: (q == 777_777) & (kv == 777_000))
    window, ids = fs.causal_window(1024), AT // 777
    wrong = ids.clone()
    wrong[700_001] += 1
    heads = [fs.causal_window(size) for size in (64, 512, 1024, 4096)]
    return {
        "causal_window, one pair flipped": (window, window ^ flipped),
        "the same, written in another way": (fs.causal() & fs.sliding_window(1023), window ^ flipped),
        "documents, one token's id": (fs.document(ids), fs.document(wrong)),
        "heads, one window off by one": (fs.per_head(heads), fs.per_head([*heads[:3], fs.causal_window(4097)])),
    }


QUESTIONS: dict[str, Callable[..., fs.Proof]] = {
    "implies(causal)": lambda mask, **sizes: mask.implies(fs.causal(), LENGTH, **sizes),
    "is_causal": lambda mask, **sizes: mask.is_causal(LENGTH, **sizes),
    "every_query_attends": lambda mask, **sizes: mask.every_query_attends(LENGTH, **sizes),
    "is_empty": lambda mask, **sizes: mask.is_empty(LENGTH, **sizes),
}


def pattern(entry: fs.patterns.Entry) -> fs.Mask:
    return GIVEN[entry.name]() if entry.name in GIVEN else fs.parse_pattern(entry.example)


def timed(ask: Callable[..., fs.Proof], *masks: fs.Mask, **sizes: int) -> tuple[float, fs.Proof]:
    """The median of three runs (a run over two seconds counts alone), and the answer."""
    start = time.perf_counter()
    proof = ask(*masks, **sizes)
    first = time.perf_counter() - start
    return first if first > 2 else median([first, *seconds(lambda: ask(*masks, **sizes), 2, 0.0)]), proof


def main() -> None:
    rows, data = [], {}
    for entry in fs.CATALOG.values():
        if entry.kind != "mask" or entry.family in ("grid", "video", "mixed") or entry.name in LEFT_OUT:
            continue
        mask, sizes = pattern(entry), {"heads": 4} if entry.name == "shifted_groups" else {}
        found = {name: timed(ask, mask, **sizes) for name, ask in QUESTIONS.items()}
        data[entry.name] = {name: [spent, str(proof)] for name, (spent, proof) in found.items()}
        rows.append([entry.name, *(f"{spent:.3f} {'yes' if proof else 'no'}" for spent, proof in found.values())])
        print(*rows[-1], flush=True)
    for name, (a, b) in planted().items():
        spent, proof = timed(lambda a, b: a.equals(b, LENGTH), a, b)
        data[name] = {"equals": [spent, str(proof)]}
        rows.append([f"{name}: equals", f"{spent:.3f} no, at {proof.counterexample}", "", "", ""])
        print(*rows[-1], flush=True)
    report("proofs", "python bench/proofs.py", ["seconds at 1,048,576 tokens", *QUESTIONS], rows, data)


if __name__ == "__main__":
    main()
