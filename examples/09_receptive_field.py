"""How far does a token see after several layers? A window adds a window a layer; power blocks double what is seen."""

from pathlib import Path

import flexspec as fs

LENGTH, LAYERS = 65_536, 9
for name, mask in (
    ("window", fs.causal_window(1024)),
    ("power", fs.power_window(window=512, block=128)),
    ("alternating", [fs.causal_window(512), fs.dilated_window(64, 128) & fs.causal()]),
):
    made = fs.reach(mask, LENGTH, LAYERS)
    print(made)
    for layer in (1, 3, 9):
        least, most = made.last_query(layer)
        print(f"  after {layer} layers the last query is influenced by {least:,} to {most:,} of {LENGTH:,} keys")
    print("  picture:", made.show(Path("out") / f"09_reach_{name}.png"))

# The same with blocks of one token is exact: after d layers, every token at a distance below 2**(d + 1) - 1.
power = fs.reach(fs.power_window(window=1, block=1), 1024, 10, block_size=1)
for layer in range(1, 11):
    seen = power.outer(layer)[-1].flip(0).int()  # by distance from the last query
    unbroken = int(seen.cumprod(0).sum())
    print(f"{layer:>2} layers: {int(seen.sum()):>5} keys, {unbroken:>5} of them without a gap")
    assert unbroken == min(1024, 2 ** (layer + 1) - 1)
assert power.layers_to_full == (10, 10)
