"""The gallery: every pattern with its pictures, code, formula, source and densities, written to docs/patterns.md;
some of them as a table in README.md.

`python bench/patterns.py`; counts only, so the machine does not matter. A pattern is drawn with the `picture` beside
its definition, else with its example where that fits; one that has neither is shown without a picture.
"""

from __future__ import annotations

import re
import textwrap
from contextlib import chdir, suppress
from importlib import import_module
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
HEADER = ["| pattern | picture | keeps | code | pairs | blocks |", "| --- | --- | --- | --- | --- | --- |"]
WHOLE_WORDS = {"break_long_words": False, "break_on_hyphens": False}
INTRODUCTION = f"""# Patterns

Each drawn at {LENGTH} tokens in blocks of {BLOCK}, one pixel a pair, its last head: queries downwards, keys rightwards.
Blue pairs are kept in full blocks, orange ones in partial blocks, where light ones are computed and dropped; white is
skipped. Densities count kept pairs, and blocks that are not empty. On a canvas a second picture has the keys of one
query, frame by frame. The formula is the traced expression, which `fs.parse` reads. A source's own definition may
differ: the docstring says where. What q and k choose is drawn for two random walks. Made by `python bench/patterns.py`.
"""
AT_RUN_TIME = """## Values that are given when it runs

Ids, labels, types, slopes, tables and gains are tensors that a pattern holds, or that each call gives: leave the tensor
out where the pattern has an input of its own, or put an `fs.Input` in its place. Numbers are `fs.Param`. New values of
the same shapes compile nothing. One batch entry, or one head, serves all.

```python
bias = fs.scores.relative_bias(fs.Input("table", ("heads", 257), float))
attend = fs.compile(fs.Attention(fs.token_types(window=64), [bias]))
out = attend(q, k, v, table=table, types=types, last_global=fs.last_global(types))
```
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


def value_of(code: str) -> Any:
    return eval(code, {"fs": fs, "torch": torch})  # only what stands beside the definitions


def block_map(mask: fs.Mask, order: str) -> fs.BlockMap:
    values = {"q": walk(0), "k": walk(1)} if mask.selections else {}
    values |= {each.given: walk(2)[:, :, None, :, 0] for each in mask.selections.values() if each.given}
    laid = value_of(order) if order else None
    return fs.block_map(mask, LENGTH, heads=2, block_size=BLOCK, order=laid, **values)


def walk(seed: int) -> torch.Tensor:
    """Tokens of two heads for patterns that choose by q and k: neighbours are alike, as in text and video."""
    steps = torch.randn(1, 2, LENGTH, 16, generator=torch.Generator().manual_seed(seed))
    return steps.cumsum(2) / 8


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


def said(entry: Any, what: str, end: str = ".") -> str:
    """What stands after `what` and a colon in the pattern's docstring, up to one of `end`; else nothing."""
    text = re.search(rf"{what}:\s+(.+?)[{end}](?=\s|$)", entry.make.__doc__ or "", re.S)
    return re.sub(r"\s+", " ", text[1]) if text else ""


def heading(family: str) -> str:
    """The first words of a family's file."""
    return re.split(r"[:.]", import_module(f"flexspec.patterns.{family}").__doc__ or family)[0]


def code_of(entry: Any) -> str:
    """What makes the pattern in Python: the picture's code, else the example's."""
    plain = entry.example.count("(") == 1 and "{" not in entry.example
    return entry.picture or (
        f"fs.{entry.example}" if plain else entry.example and f"fs.parse_pattern({entry.example!r})"
    )


class Shown:
    """One pattern of the gallery: its code, its mask, and its block map where that can be drawn."""

    def __init__(self, entry: Any) -> None:
        self.entry, self.order, self.code = entry, entry.order, code_of(entry)
        self.mask: fs.Mask | None = value_of(self.code) if self.code else None
        self.blocks: fs.BlockMap | None = None
        if self.mask is not None:
            with suppress(*([] if entry.picture else [fs.FlexSpecError])):  # an example may be open, or larger
                self.blocks = block_map(self.mask, self.order)

    @property
    def pictures(self) -> list[str]:
        if self.blocks is None:
            return []
        return [f"{self.entry.name}.png"] + ([f"{self.entry.name}_query.png"] if self.mask.canvas else [])

    def draw(self, folder: Path) -> None:
        if self.blocks is not None:
            thumbnail(self.blocks, folder / self.pictures[0])
        if self.pictures[1:]:
            keys = fs.kept_keys(self.mask, query_of(self.mask.canvas), heads=2, h=1)
            small(keys.show(folder / self.pictures[1]))

    def densities(self) -> str:
        if self.blocks is None:
            return ""
        text = f" Keeps {self.blocks.token_density:.1%} of the pairs, in {self.blocks.density:.1%} of the blocks"
        return text + (f" ({block_map(self.mask, '').density:.1%} in row-major order)." if self.order else ".")

    def section(self) -> str:
        name, meaning, source = self.entry.name, self.entry.meaning, said(self.entry, "Source")
        images = [
            f'<img src="pictures/{picture}" width="{width}" alt="{name}">'
            for picture, width in zip(self.pictures, (256, 540), strict=False)
        ]
        text = f"{meaning[0].upper()}{meaning[1:]}.{self.densities()}"
        text += f" Source: {source}." if source else ""
        lines = [f"### {name}", "", *([" ".join(images), ""] if images else [])]
        lines += [*textwrap.wrap(text, 118, **WHOLE_WORDS), ""]
        if self.mask is not None:
            code = f"order = {self.order}\n{self.code}" if self.order else self.code
            wrapped = textwrap.wrap(str(self.mask.expr), 110, **WHOLE_WORDS)
            lines += ["```python", code, "```", "", "```text", *wrapped, "```", ""]
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
    return {entry.name: Shown(entry) for entry in track(entries, transient=True)}


def page(shown: dict[str, Shown]) -> str:
    """docs/patterns.md."""
    parts = [INTRODUCTION]
    for family, some in groupby(shown.values(), key=lambda one: one.entry.family):
        parts += [f"## {heading(family)}\n", *(one.section() for one in some)]
    lines = ["## Scores", "", "| score mod | does |", "| --- | --- |"]
    lines += [f"| `{e.name}` | {e.meaning} |" for e in fs.CATALOG.values() if e.kind == "score"]
    lines += ["", "## Weights", "", *WEIGHTS, "", "| weight | is | lse |", "| --- | --- | --- |"]
    lines += [
        f"| `{e.name}` | {e.meaning} | {said(e, 'lse', '.;')} |" for e in fs.CATALOG.values() if e.kind == "weight"
    ]
    return "\n".join([*parts, AT_RUN_TIME, ORDERS, *lines, "", (DOCS / "windows.md").read_text()])


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
