"""What do heads look at? Entropy, mass on sets of keys, distances, sinks, recall and rollout, with no map of pairs."""

from pathlib import Path

import torch

import flexspec as fs

OUT = Path("out")
video = fs.Canvas(t=8, h=12, w=16)  # 1,536 tokens
HABITS = {  # how sharply each head looks for its own coordinates; "the first token" looks for nothing but that
    "near": {"t": 9, "h": 9, "w": 9},
    "own frame": {"t": 12},
    "own place in all frames": {"h": 12, "w": 12},
    "the first token": {},
}


@fs.mask(canvas=video)
def own_frame(q, kv):
    return q.t == kv.t


def heads():
    """Queries and keys of a head for each habit: [1, 4, 1536, 8]."""
    q, k = 0.3 * torch.randn(2, 1, len(HABITS), video.size, 8)
    places = torch.meshgrid(*(torch.arange(size) / size for _, size in video.axes), indexing="ij")
    angles = dict(zip(video.names, (torch.pi * place.flatten() for place in places), strict=True))
    for head, habit in enumerate(HABITS.values()):
        for number, (name, sharpness) in enumerate(habit.items()):
            features = sharpness * torch.stack([angles[name].cos(), angles[name].sin()], -1)
            for x in (q, k):
                x[:, head, :, 2 * number : 2 * number + 2] += features
    q[:, 3, :, 0] = k[:, 3, 0, 0] = 6.0
    return q, k


torch.manual_seed(0)
q, k = heads()
sets = {"own frame": own_frame, "first token": torch.arange(video.size) == 0}
found = fs.measure(fs.everything(), q, k, mass=sets, canvas=video)
print(found)
print(" " * 22 + "  ".join(HABITS))
for name, means in found.by_head().items():
    cells = [f"{mean:{len(habit)}.2f}" for habit, mean in zip(HABITS, means.tolist(), strict=True)]
    print(f"{name:>20}  " + "  ".join(cells))
print("sinks, head and key:", found.sinks()[0].nonzero().tolist())
print("picture:", found.show(OUT / "17_measures.png"))

full = None
for mask in (fs.neighborhood(video, window={"t": 5, "h": 7, "w": 9}), own_frame, fs.axial(video, "t")):
    kept = fs.recall(mask, q, k, lse=full)  # the lse of full attention is computed once
    full = kept.lse
    print(kept)
print("picture:", kept.show(OUT / "17_recall.png"))

layers = [heads() for _ in range(6)]
tokens = [0, video.size // 2]
flow = fs.rollout([own_frame, fs.axial(video, "t")], layers, tokens)  # frames and lines in turn
print(flow)
print("picture:", flow.show(OUT / "17_rollout.png"))

# The same with matrices of all pairs, which fit here.
total = torch.eye(video.size)
for layer, (q, k) in reversed(list(enumerate(layers))):
    keep = (own_frame, fs.axial(video, "t"))[layer % 2].dense(video.size)
    weights = torch.softmax((q @ k.mT / 8**0.5).masked_fill(~keep, -torch.inf), -1).mean(1)
    total = total @ (0.5 * torch.eye(video.size) + 0.5 * weights[0])
error = (flow.shares[0] - total[tokens]).abs().max()
print(f"largest difference from the product of matrices: {error:.1e}")
assert error < 1e-5
