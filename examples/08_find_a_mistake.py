"""Write a new pattern twice and let `equals` find the planted mistake among a million million pairs."""

from pathlib import Path

import flexspec as fs


@fs.mask
def chunk_and_previous(q, kv, *, chunk=256):
    """Causal; a query sees its own chunk and the one before."""
    return (q >= kv) & (q // chunk - kv // chunk <= 1)


@fs.mask
def by_window(q, kv, *, chunk=256):
    """The same as a window whose length depends on the query, with a mistake: `<` should be `<=`."""
    return (q >= kv) & (q - kv < q % chunk + chunk)


length = 1_000_000
proof = fs.equals(chunk_and_previous, by_window, length)
print(proof)
assert not proof and proof.counterexample is not None
b, h, q, kv = proof.counterexample
for mask in (chunk_and_previous, by_window):
    blocks = fs.block_map(mask, length)
    print(f"{mask}: keeps (q={q}, kv={kv})? {bool(blocks.tokens(q, q + 1, kv, kv + 1))}")
blocks = fs.block_map(chunk_and_previous ^ by_window, 2048)
print("where they differ:", blocks.show(Path("out") / "08_difference.png", region=(0, 768, 0, 768)))


@fs.mask
def corrected(q, kv, *, chunk=256):
    return (q >= kv) & (q - kv <= q % chunk + chunk)


assert fs.equals(chunk_and_previous, corrected, length)
print("corrected: equal on all", f"{length**2:,}", "pairs")
