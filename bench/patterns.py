"""The gallery: every pattern with its pictures, code, formula, source and densities, written to docs/patterns.md;
some of them as a table in README.md.

`python bench/patterns.py`; counts only, so the machine does not matter.
"""

from __future__ import annotations

import re
import textwrap
from contextlib import chdir
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from matplotlib.image import imsave
from PIL import Image
from rich.progress import track

import flexspec as fs

DOCS = Path(__file__).parent.parent / "docs"
LENGTH, BLOCK = 512, 16
IMAGE = "fs.Canvas(h=16, w=32)"
VIDEO = "fs.Canvas(t=8, h=8, w=8)"
SLIDING = "window=dict(t=6, h=4, w=6), tile=dict(t=2, h=4, w=2)"
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
    "sliding_tile": (f"fs.sliding_tile({VIDEO}, {SLIDING})", f"fs.tiled({VIDEO}, t=2, h=4, w=2)"),
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
FAMILIES = {
    "sequence": "Along a sequence",
    "heads": "By head",
    "documents": "Documents, segments, tokens of several kinds",
    "grid": "On a canvas",
}
WHOLE_WORDS = {"break_long_words": False, "break_on_hyphens": False}
INTRODUCTION = f"""# Patterns

Each drawn at {LENGTH} tokens in blocks of {BLOCK}, one pixel a pair, its last head: queries downwards, keys rightwards.
Blue pairs are kept in full blocks, orange ones in partial blocks, where light ones are computed and dropped; white is
skipped. Densities count kept pairs, and blocks that are not empty. On a canvas a second picture has the keys of one
query, frame by frame. The formula is the traced expression, which `fs.parse` reads. A source's own definition may
differ: the docstring says where. Made by `python bench/patterns.py`.
"""
ORDERS = """## Orders

An order says where a token lies in memory. It never changes what a mask keeps, only which blocks the mask fills.

<img src="pictures/orders.png" width="760" alt="the blocks of one mask under two orders">

```python
video = fs.Canvas(t=30, h=48, w=80)
tiles = fs.sliding_tile(video, window=dict(t=18, h=24, w=24), tile=dict(t=6, h=8, w=8))
fs.show_orders(tiles, [fs.row_major(video), fs.tiled(video, t=6, h=8, w=8)], "orders.png", block_size=384)
```
"""


def made(code: str):
    return eval(code, {"fs": fs, "torch": torch})  # only the samples above


def block_map(code: str, order: str | None) -> fs.BlockMap:
    return fs.block_map(made(code), LENGTH, heads=2, block_size=BLOCK, order=order and made(order))


def thumbnail(blocks: fs.BlockMap, path: Path) -> None:
    """One pixel for each pair of the last head: kept dark, dropped in a partial block light, in an empty one white."""
    h = blocks.heads - 1
    kinds = blocks.kinds()[0, h].repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    kinds = kinds[: blocks.q_len, : blocks.kv_len]
    kept = blocks.tokens(0, blocks.q_len, 0, blocks.kv_len, h=h)
    shades = torch.where(kept, torch.where(kinds == fs.BlockKind.FULL, 3, 2), (kinds > 0).long())
    colours = torch.tensor([[255, 255, 255], [253, 236, 200], [196, 118, 0], [11, 66, 117]], dtype=torch.uint8)
    imsave(path, colours[shades].numpy())


def small(path: Path) -> None:
    """A picture in 64 colours: a third of the bytes."""
    Image.open(path).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def query_of(canvas: fs.Canvas) -> dict[str, int]:
    """The query whose keys are drawn: two thirds of the way along each axis."""
    return {name: 2 * length // 3 for name, length in canvas.axes}


def source_of(entry: Any) -> str:
    """The first sentence after "Source:" in the pattern's docstring, or nothing."""
    found = re.search(r"Source:\s+(.+?)\.(?=\s|$)", entry.make.__doc__ or "", re.S)
    return re.sub(r"\s+", " ", found[1]) if found else ""


class Shown:
    """One pattern of the gallery: its sample, its block map, its text and its pictures."""

    def __init__(self, entry: Any) -> None:
        sample = SAMPLES[entry.name]
        self.entry = entry
        self.code, self.order = sample if isinstance(sample, tuple) else (sample, None)
        self.mask, self.blocks = made(self.code), block_map(self.code, self.order)

    @property
    def pictures(self) -> list[str]:
        return [f"{self.entry.name}.png"] + ([f"{self.entry.name}_query.png"] if self.mask.canvas else [])

    def draw(self, folder: Path) -> None:
        thumbnail(self.blocks, folder / self.pictures[0])
        if self.mask.canvas:
            found = fs.kept_keys(self.mask, query_of(self.mask.canvas), heads=2, h=1)
            small(found.show(folder / self.pictures[1]))

    def densities(self) -> str:
        text = f"Keeps {self.blocks.token_density:.1%} of the pairs, in {self.blocks.density:.1%} of the blocks"
        return text + (f" ({block_map(self.code, None).density:.1%} in row-major order)" if self.order else "")

    def section(self) -> str:
        name, meaning, source = self.entry.name, self.entry.meaning, source_of(self.entry)
        widths = (256, 540)
        images = [
            f'<img src="pictures/{picture}" width="{width}" alt="{name}">'
            for picture, width in zip(self.pictures, widths, strict=False)
        ]
        code = f"order = {self.order}\n{self.code}" if self.order else self.code
        wrapped = textwrap.wrap(str(self.mask.expr), 110, **WHOLE_WORDS)
        text = f"{meaning[0].upper()}{meaning[1:]}. {self.densities()}."
        text += f" Source: {source}." if source else ""
        lines = [
            f"### {name}",
            "",
            " ".join(images),
            "",
            *textwrap.wrap(text, 118, break_long_words=False, break_on_hyphens=False),
        ]
        lines += ["", "```python", code, "```", "", "```text", *wrapped, "```", ""]
        return "\n".join(lines)

    def row(self) -> str:
        """Its line of the table in README.md."""
        code = f"{self.code}` in order `{self.order}" if self.order else self.code
        picture = f'<img src="docs/pictures/{self.pictures[0]}" width="170" alt="{self.entry.name}">'
        density = f"{self.blocks.token_density:.1%} | {self.blocks.density:.1%}"
        return f"| `{self.entry.name}` | {picture} | {self.entry.meaning} | `{code}` | {density} |"


def gallery() -> dict[str, Shown]:
    """Every mask of the catalog, in reading order."""
    entries = [entry for entry in fs.CATALOG.values() if entry.kind == "mask"]
    missing = {entry.name for entry in entries} ^ SAMPLES.keys()
    assert not missing, missing
    return {entry.name: Shown(entry) for entry in track(entries, transient=True)}


def page(shown: dict[str, Shown]) -> str:
    """docs/patterns.md."""
    parts = [INTRODUCTION]
    for family, some in groupby(shown.values(), key=lambda one: one.entry.family):
        parts += [f"## {FAMILIES.get(family, family)}\n", *(one.section() for one in some)]
    lines = ["## Scores", "", "| score mod | does |", "| --- | --- |"]
    lines += [f"| `{e.name}` | {e.meaning} |" for e in fs.CATALOG.values() if e.kind == "score"]
    lines += ["", "## Weights", "", *WEIGHTS, "", "| weight | is | lse |", "| --- | --- | --- |"]
    lines += [f"| `{e.name}` | {e.meaning} | {LSE[e.name]} |" for e in fs.CATALOG.values() if e.kind == "weight"]
    return "\n".join([*parts, ORDERS, *lines, "", (DOCS / "windows.md").read_text()])


def write_table(shown: dict[str, Shown], path: Path) -> None:
    """The chosen patterns between the two marks in README.md."""
    begin, end = "<!-- gallery: written by bench/patterns.py -->", "<!-- end of gallery -->"
    before, _, rest = path.read_text().partition(begin)
    table = "\n".join([begin, *HEADER, *(shown[name].row() for name in IN_README), end])
    path.write_text(before + table + rest.partition(end)[2])


def main() -> None:
    folder = DOCS / "pictures"
    folder.mkdir(exist_ok=True)
    shown = gallery()
    for one in track(shown.values(), transient=True):
        one.draw(folder)
    with chdir(folder):
        for code in re.findall(r"```python\n(.*?)```", ORDERS, re.S):
            exec(code, {"fs": fs})
        for name in re.findall(r'src="pictures/(.*?)"', ORDERS):
            small(Path(name))
    (DOCS / "patterns.md").write_text(page(shown))
    write_table(shown, DOCS.parent / "README.md")
    print(f"{len(shown)} patterns drawn:", DOCS / "patterns.md")


if __name__ == "__main__":
    main()
