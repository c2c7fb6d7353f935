"""A canvas and an order for each side, and for each head: a new frame over a cache of frames, six axis orders."""

from pathlib import Path

import torch

import flexspec as fs

torch.manual_seed(0)
frame, cache = fs.Canvas(h=12, w=16), fs.Canvas(t=6, h=12, w=16)


@fs.mask(q_canvas=frame, kv_canvas=cache)
def columns(q, kv):
    """The columns around a token's own, in every frame of the cache."""
    return (q.w - kv.w).abs() <= 1


q, k, v = torch.randn(1, 2, frame.size, 32), *torch.randn(2, 1, 2, cache.size, 32)
truth = fs.reference_attention(columns, q, k, v)
orders = fs.axes(frame, "w", "h"), fs.axes(cache, "w", "t", "h")
for name, order in (("as they are", None), ("queries and keys by columns", orders)):
    attend = fs.compile(columns, order=order, block_size=16)
    error = (attend(q, k, v) - truth).abs().max()
    density = attend.block_map(frame.size, cache.size).density
    print(f"{name}: density {density:.1%}, largest difference from the reference {error:.0e}")
    assert error < 1e-5

best = fs.plan(columns, block_sizes=[16], moved=False).best
print(f"the planner's choice for each side: {best.order}, density {best.density:.1%}")

# Each head attends along one axis; in an order of its own its keys are side by side.
video = fs.Canvas(t=8, h=8, w=8)
pairs = [("t", "h"), ("t", "w"), ("h", "w"), ("h", "t"), ("w", "t"), ("w", "h")]


def line(first, second):
    """Tokens that share two coordinates."""
    return fs.mask(canvas=video)(
        lambda q, kv: (getattr(q, first) == getattr(kv, first)) & (getattr(q, second) == getattr(kv, second))
    )


mask = fs.per_head([line(*pair) for pair in pairs])
orders = [fs.axes(video, *pair, next(name for name in video.names if name not in pair)) for pair in pairs]
q, k, v = torch.randn(3, 1, len(pairs), video.size, 32)
truth = fs.reference_attention(mask, q, k, v)
for name, order in (("one order for all heads", None), ("an order for each head", orders)):
    attend = fs.compile(mask, order=order, block_size=16)
    error = (attend(q, k, v) - truth).abs().max()
    density = attend.block_map(video.size, heads=len(pairs)).density
    print(f"{name}: density {density:.1%}, largest difference from the reference {error:.0e}")
    assert error < 1e-5

labels = torch.randint(0, 8, (1, len(pairs), video.size))  # clusters, by head
same = fs.mask(lambda b, h, q, kv: labels[b, h, q] == labels[b, h, kv])
for name, order in (("clusters as they lie", None), ("clusters side by side", fs.orders.by_label(labels))):
    attend = fs.compile(same, order=order, block_size=16)
    error = (attend(q, k, v) - fs.reference_attention(same, q, k, v)).abs().max()
    density = attend.block_map(video.size, batch=1, heads=len(pairs)).density
    print(f"{name}: density {density:.1%}, largest difference from the reference {error:.0e}")
    assert error < 1e-5
print(
    "picture:", attend.block_map(video.size, batch=1, heads=len(pairs)).show(Path("out") / "16_orders_by_side.png", h=2)
)
