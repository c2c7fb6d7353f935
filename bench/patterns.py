"""The gallery: every pattern with its picture, code, meaning and densities, written to docs/patterns.md and README.md.

`python bench/patterns.py`; counts only, so the machine does not matter.
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.image import imsave
from rich.progress import track

import flexspec as fs

DOCS = Path(__file__).parent.parent / "docs"
LENGTH, BLOCK = 512, 16
IMAGE = "fs.Canvas(h=16, w=32)"
VIDEO = "fs.Canvas(t=8, h=8, w=8)"
IDS = "torch.tensor([0, 1, 2]).repeat_interleave(torch.tensor([100, 250, 162]))"

# What each pattern is drawn with; a second part is the order.
SAMPLES: dict[str, str | tuple[str, str]] = {
    "everything": "fs.everything()",
    "nothing": "fs.nothing()",
    "causal": "fs.causal()",
    "sliding_window": "fs.sliding_window(48)",
    "causal_window": "fs.causal_window(96)",
    "sink": "fs.sink(16)",
    "sink_window": "fs.sink_window(sink=4, window=96)",
    "dilated_window": "fs.dilated_window(window=6, dilation=16)",
    "global_tokens": "fs.global_tokens(24)",
    "prefix_lm": "fs.prefix_lm(128)",
    "chunked": "fs.chunked(100)",
    "chunk_causal": "fs.chunk_causal(64)",
    "power_window": "fs.power_window(window=32, block=16)",
    "log_sparse": "fs.log_sparse()",
    "strided": "fs.strided(64)",
    "fixed": "fs.fixed(stride=64, summary=8)",
    "hidden_decoding": "fs.hidden_decoding(4)",
    "per_head": "fs.per_head([fs.causal_window(64), fs.causal()])",
    "scaled_span": "fs.scaled_span([16, 64], [0.125, 0.0], sink=4)",
    "shifted_groups": "fs.shifted_groups(128)",
    "document": f"fs.document({IDS})",
    "padding": "fs.padding([300])",
    "same_label": "fs.same_label(torch.arange(512) % 64 // 16)",
    "token_types": "fs.token_types(torch.arange(512) % 50 % 3, window=32)",
    "shared_prefix": "fs.shared_prefix(128, torch.arange(512) // 96)",
    "tree": "fs.tree([(i - 1) // 2 for i in range(512)])",
    "bridge": "fs.bridge(chunk=64, memory_ids=torch.arange(512) < 8, window=48)",
    "block_diffusion": "fs.block_diffusion(block=32, n=256)",
    "segments": (
        'fs.segments({"text": 128, "image": 384}, {("text", "text"): fs.causal(), '
        '("image", "text"): True, ("image", "image"): fs.sliding_window(40)})'
    ),
    "adjacency": "fs.adjacency(torch.eye(512).roll(100, 1).to_sparse_csr())",
    "neighborhood": (f"fs.neighborhood({IMAGE}, window=7)", f"fs.tiled({IMAGE}, h=4, w=4)"),
    "sliding_tile": (f"fs.sliding_tile({VIDEO}, window=12, tile=4)", f"fs.tiled({VIDEO}, t=4, h=4, w=4)"),
    "windows": (f"fs.windows({IMAGE}, size=8, shift=4)", f"fs.tiled({IMAGE}, h=4, w=4)"),
    "axial": f'fs.axial({VIDEO}, "t")',
    "halo": (f"fs.halo({IMAGE}, block=4, halo=2)", f"fs.tiled({IMAGE}, h=4, w=4)"),
    "any_shared": 'fs.any_shared(fs.Canvas(v=4, t=8, h=4, w=4), "v t")',
    "block_causal_2d": (f"fs.block_causal_2d({IMAGE}, block=4)", f"fs.tiled({IMAGE}, h=4, w=4)"),
    "first_frame": f"fs.first_frame({VIDEO})",
    "frame_window": f"fs.frame_window({VIDEO}, window=3, sink=1)",
    "spatial_head": f"fs.spatial_head({VIDEO}, width=48)",
    "temporal_head": f"fs.temporal_head({VIDEO}, width=32)",
    "radial": f"fs.radial({VIDEO}, decay=0.5, block=8)",
    "epipolar": (  # a line through the query's own pixel, steeper in each next view
        "fs.epipolar(fs.Canvas(v=4, h=8, w=16), torch.tensor([[[v / 4, 1.0, -(v / 4 * (i % 16) + i % 128 // 16)]"
        " for v in range(4)] for i in range(512)]), width=1.0)",
        "fs.tiled(fs.Canvas(v=4, h=8, w=16), h=4, w=4)",
    ),
    "reordered": f'fs.reordered(fs.temporal_head({VIDEO}, width=32), fs.axes({VIDEO}, "h", "w", "t"))',
    "with_text": "fs.with_text(fs.axial(fs.Canvas(t=7, h=8, w=8), 't'), text=64, lengths=[40])",
}


IN_README = (
    "sink_window",
    "dilated_window",
    "document",
    "per_head",
    "tree",
    "block_diffusion",
    "neighborhood",
    "sliding_tile",
)
WEIGHTS = [
    "`fs.Attention(mask=..., scores=[...], weight=fs.sink_logit(logits))` takes a weight other than the softmax's",
    "exponential, after the scores. The reference computes it from its definition; kernels run a softmax over",
    "`log w(s)` and multiply by `exp(lse)`, two where the weight has a sign. A query that keeps nothing has output 0.",
]
LSE = {
    "sigmoid_weight": "none",
    "relu_weight": "none",
    "squared_relu_weight": "none",
    "taylor_weight": "log of the sum of the weights",
    "signed_weight": "log of the sum of `exp(abs(s))`",
    "sink_logit": "with the extra column",
    "identity_mix": "the softmax's",
}
HEADER = ["| pattern | picture | keeps | code | pairs | blocks |", "| --- | --- | --- | --- | --- | --- |"]


def made(code: str):
    return eval(code, {"fs": fs, "torch": torch})  # only the samples above


def block_map(sample: str | tuple[str, str]) -> fs.BlockMap:
    code, order = sample if isinstance(sample, tuple) else (sample, None)
    return fs.block_map(made(code), LENGTH, heads=2, block_size=BLOCK, order=order and made(order))


def thumbnail(blocks: fs.BlockMap, path: Path) -> None:
    """One pixel for each pair of the last head: kept dark, dropped in a partial block light, in an empty one white."""
    h = blocks.heads - 1
    kinds = blocks.kinds()[0, h].repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    kept = blocks.tokens(0, blocks.q_len, 0, blocks.kv_len, h=h)
    shades = torch.where(kept, torch.where(kinds == fs.BlockKind.FULL, 3, 2), (kinds > 0).long())
    colours = torch.tensor([[255, 255, 255], [253, 236, 200], [196, 118, 0], [11, 66, 117]], dtype=torch.uint8)
    path.parent.mkdir(exist_ok=True)
    imsave(path, colours[shades].numpy())


def main() -> None:
    entries = [entry for entry in fs.CATALOG.values() if entry.kind == "mask"]
    missing = {entry.name for entry in entries} ^ SAMPLES.keys()
    assert not missing, missing
    pictures = DOCS / "pictures"
    rows = {}
    for entry in track(entries, transient=True):
        sample = SAMPLES[entry.name]
        blocks = block_map(sample)
        path = pictures / f"{entry.name}.png"
        thumbnail(blocks, path)
        code = sample if isinstance(sample, str) else f"{sample[0]}` in order `{sample[1]}"
        picture = f'<img src="pictures/{path.name}" width="170" alt="{entry.name}">'
        density = f"{blocks.token_density:.1%} | {blocks.density:.1%}"
        rows[entry.name] = f"| `{entry.name}` | {picture} | {entry.meaning} | `{code}` | {density} |"
    lines = [
        "# Patterns",
        "",
        f"Each drawn at {LENGTH} tokens in blocks of {BLOCK}, one pixel a pair, its last head. Blue pairs are kept in",
        "full blocks, orange ones in partial blocks, where light ones are computed and dropped; white is skipped.",
        "Densities count kept pairs, and blocks that are not empty. Made by `python bench/patterns.py`.",
        "",
        *HEADER,
        *rows.values(),
    ]
    lines += ["", "## Scores", "", "| score mod | does |", "| --- | --- |"]
    lines += [f"| `{e.name}` | {e.meaning} |" for e in fs.CATALOG.values() if e.kind == "score"]
    lines += ["", "## Weights", "", *WEIGHTS, "", "| weight | is | lse |", "| --- | --- | --- |"]
    lines += [f"| `{e.name}` | {e.meaning} | {LSE[e.name]} |" for e in fs.CATALOG.values() if e.kind == "weight"]
    lines += ["", *(DOCS / "windows.md").read_text().splitlines()]
    (DOCS / "patterns.md").write_text("\n".join(lines) + "\n")
    chosen = [rows[name].replace('src="', 'src="docs/') for name in IN_README]
    begin, end = "<!-- gallery: written by bench/patterns.py -->", "<!-- end of gallery -->"
    before, _, rest = (DOCS.parent / "README.md").read_text().partition(begin)
    table = "\n".join([begin, *HEADER, *chosen, end])
    (DOCS.parent / "README.md").write_text(before + table + rest.partition(end)[2])
    print(f"{len(entries)} patterns drawn:", DOCS / "patterns.md")


if __name__ == "__main__":
    main()
