"""Prove that a rewritten mask is the old one; where it is not, see by how much and where."""

from pathlib import Path

import flexspec as fs

LENGTH = 1_000_000


@fs.mask
def old(q, kv, *, window=1024, sink=4):
    """A window of keys and a sink, as comparisons."""
    return (q >= kv) & ((q - kv < window) | (kv < sink))


@fs.mask
def new(q, kv, *, window=1024, sink=4):
    """The same in two parts, but with a sink of whole chunks of 8 tokens."""
    return (q >= kv) & (kv > q - window) | (q >= kv) & (kv // 8 == sink // 8)


for name, proof in {
    "old sees no later key": old.is_causal(LENGTH),
    "every query of old keeps a key": old.every_query_attends(LENGTH),
    "new keeps all that old keeps": old.implies(new, LENGTH),
    "old keeps all that new keeps": new.implies(old, LENGTH),
    "they are equal": old.equals(new, LENGTH),
    "they are equal with a sink of 8": old(sink=8).equals(new(sink=0), LENGTH),
}.items():
    print(f"{name}: {proof}")

difference = old.diff(new, 100_000)
print(difference)
assert difference and difference.only_a == 0
first = old.diff(new, 2048, block_size=64)
first.show()
print("picture:", first.show(Path("out") / "10_difference.png"))
