"""The command line: `flexspec patterns | show | explain | check | build | plan`. Exit 0: fine, 1: differs, 2: wrong."""

from __future__ import annotations

import io
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

import flexspec as fs
from flexspec.errors import FlexSpecError
from flexspec.patterns.listing import listing

from .reporting import print_json, reporting

app = typer.Typer(
    help="Attention patterns: draw them, explain them, compare them. A PATTERN is text such as "
    "'causal_window(window=1024) | sink(4)', a spec file (.yaml, .yml, .json), or file.py:name.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Pattern = Annotated[str, typer.Argument(help="Pattern text, a spec file, or file.py:name.", show_default=False)]
Length = Annotated[
    int | None, typer.Option("--length", "--q-len", help="Queries, in tokens. A canvas' own size where left out.")
]
KvLength = Annotated[
    int | None, typer.Option("--kv-length", "--kv-len", help="Keys, in tokens. As many as queries where left out.")
]
BlockSize = Annotated[str, typer.Option(help="Tokens in a block: N, or QxKV such as 128x64.")]
OrderText = Annotated[
    str | None, typer.Option("--order", help="Where tokens lie in memory, e.g. 'tiled(t=6, h=8, w=8)'.")
]
Heads = Annotated[int | None, typer.Option(help="How many heads there are, where the pattern depends on them.")]
Batch = Annotated[int | None, typer.Option(help="How many batch entries there are, where it depends on them.")]
Values = Annotated[
    list[str] | None,
    typer.Option("-p", "--set", metavar="NAME=VALUE", help="A run-time value: 7, 0.5, true, 0,0,1,1 or ids.npy."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, also for a mistake.")]

SHOW_EXAMPLES = """[bold]Examples[/bold]

flexspec show 'causal_window(window=512) | sink(4)' --length 8192

flexspec show my_masks.py:pattern --length 100000 -o mask.png

flexspec show 'neighborhood(canvas(t=4, h=8, w=8), window=5)' --query t=2,h=3,w=5

flexspec show 'q: canvas(h=8, w=8); kv: canvas(t=4, h=8, w=8); abs(q.w - kv.w) <= 1' --order '(axes(w, h), None)'

flexspec show 'document()' --length 8 --block-size 2 -p document_id=0,0,0,1,1,2,2,2"""
EXPLAIN_EXAMPLES = """[bold]Examples[/bold]

flexspec explain 'causal()' --length 4096

flexspec explain spec.yaml --length 131072 --json"""
CHECK_EXAMPLES = """[bold]Examples[/bold]

flexspec check 'causal_window(window=8)' --against 'causal() & sliding_window(window=7)' --length 100

flexspec check old.py:mask_mod --against new.yaml --length 65536 --heads 8"""
BUILD_EXAMPLES = """[bold]Examples[/bold]

flexspec build 'causal()' --target sm_90

flexspec build spec.yaml --target sm_80 --dtype float16 --head-dim 64 -o kernels"""
PLAN_EXAMPLES = """[bold]Examples[/bold]

flexspec plan 'neighborhood(window={t: 18, h: 24, w: 24})' --canvas 30x48x80 --heads 24

flexspec plan 'causal_window(1024)' --length 65536 --hardware a100 --json"""


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            print(f"flexspec {metadata.version('flexspec')}")
        except metadata.PackageNotFoundError:
            print("flexspec (not installed)")
        raise typer.Exit


@app.callback()
def _whole(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command(epilog="[bold]Example[/bold]\n\nflexspec patterns --json")
def patterns(as_json: Json = False) -> None:
    """List the patterns that pattern text and spec files know."""
    if as_json:
        print_json([pattern._asdict() for pattern in listing()])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "meaning", "example"):
        table.add_column(title, overflow="fold")
    family = None
    for pattern in listing():
        if family not in (None, pattern.family):
            table.add_section()
        family = pattern.family
        table.add_row(Text(pattern.name, style="cyan"), Text(pattern.meaning), Text(pattern.example, style="dim"))
    Console().print(table)


@app.command(epilog=SHOW_EXAMPLES)
def show(
    pattern: Pattern,
    length: Length = None,
    kv_length: KvLength = None,
    block_size: BlockSize = "128",
    order: Annotated[
        list[str] | None,
        typer.Option(help="Where tokens lie in memory, e.g. 'tiled(t=6, h=8, w=8)'; several are drawn side by side."),
    ] = None,
    heads: Heads = None,
    head: Annotated[int, typer.Option(help="Which head is drawn.")] = 0,
    batch: Batch = None,
    values: Values = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A .png, .svg or .pdf file.")] = None,
    region: Annotated[
        str | None, typer.Option(metavar="Q:Q,KV:KV", help="Draw the pairs of this part, e.g. 0:512,0:512.")
    ] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(help="Draw the keys that this query keeps on the canvas, e.g. t=2,h=3,w=5; once or more."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw which blocks are empty, partial or full, or the keys of a query: here, or into a picture with -o."""
    with reporting(as_json, pattern):
        from . import pictures
        from . import values as cli_values

        attention = cli_values.load(pattern)
        q_len, kv_len = cli_values.lengths(length, kv_length, attention)
        part = cli_values.region(region) if region else None
        if part and output is None:
            fix = "add -o mask.png"
            raise FlexSpecError("FS020", "a region is drawn into a picture, and no file is named", fix=fix)
        if part and (query or len(order or ()) > 1):
            raise FlexSpecError("FS030", "a region is drawn of one block map", fix="give one order, and no query")
        given = {"batch": batch, "heads": heads, **cli_values.inputs(values, attention.mask)}
        if query:
            if kv_len not in (None, q_len):
                message = f"a query's keys are drawn among as many as there are queries, not {kv_len:,} of {q_len:,}"
                raise FlexSpecError("FS030", message, fix="leave --kv-length out")
            places = [cli_values.query(text) for text in query]
            facts, drawing = pictures.of_queries(attention.mask, places, q_len, head, output, given)
        else:
            given["block_size"] = cli_values.block_size(block_size)
            orders = [cli_values.order(text, attention) for text in order or ()] or [None]
            maps = [fs.block_map(attention.mask, q_len, kv_len, order=each, **given) for each in orders]
            facts, drawing = pictures.of_maps(maps, head, output, part)
        if as_json:
            print_json(facts)
        else:
            print(drawing())


@app.command(epilog=EXPLAIN_EXAMPLES)
def explain(
    pattern: Pattern,
    length: Length = None,
    kv_length: KvLength = None,
    block_size: BlockSize = "128",
    order: OrderText = None,
    heads: Heads = None,
    batch: Batch = None,
    values: Values = None,
    latex: Annotated[bool, typer.Option("--latex", help="Write the formula as LaTeX.")] = False,
    as_json: Json = False,
) -> None:
    """Say what a pattern means, what it costs, and what is proved about it."""
    with reporting(as_json, pattern):
        from . import values as cli_values

        attention = cli_values.load(pattern)
        q_len, kv_len = cli_values.lengths(length, kv_length, attention)
        size, given_order = cli_values.block_size(block_size), cli_values.order(order, attention)
        attend = fs.compile(attention, order=given_order, block_size=size)
        given = {"batch": batch, "heads": heads, **cli_values.inputs(values, *cli_values.formulas(attention))}
        if as_json:
            print_json(attend.facts(q_len, kv_len, **given))
        else:
            print(attend.explain(q_len, kv_len, latex=latex, **given))


@app.command(epilog=CHECK_EXAMPLES)
def check(
    pattern: Pattern,
    against: Annotated[str, typer.Option(help="The pattern to compare with.", show_default=False)],
    length: Length = None,
    kv_length: KvLength = None,
    heads: Heads = None,
    batch: Batch = None,
    values: Values = None,
    as_json: Json = False,
) -> None:
    """Prove that two patterns keep the same pairs (exit code 0), or show a pair on which they differ (1)."""
    with reporting(as_json, pattern, against):
        from .comparison import compare

        comparison = compare(pattern, against, (length, kv_length), values, {"batch": batch, "heads": heads})
        if as_json:
            print_json(comparison.facts())
        else:
            print(comparison.verdict(), flush=True)  # counting may take longer
            if not comparison.equal:
                print(comparison.details())
    raise typer.Exit(0 if comparison.equal else 1)


@app.command(epilog=BUILD_EXAMPLES)
def build(
    pattern: Pattern,
    target: Annotated[str, typer.Option(help="The GPU: sm_80, sm_90, sm_100, gfx942, ...")],
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    head_dim: Annotated[int, typer.Option(help="Channels of a head.")] = 128,
    heads: Annotated[int, typer.Option(help="Query heads.")] = 8,
    kv_heads: Annotated[int | None, typer.Option(help="Key heads. As many as query heads where left out.")] = None,
    length: Length = None,
    kv_length: KvLength = None,
    block_size: BlockSize = "128",
    order: OrderText = None,
    precision: Annotated[str | None, typer.Option(help="int8 or fp8.")] = None,
    batch: Annotated[int, typer.Option(help="Batch entries.")] = 1,
    deterministic: Annotated[
        bool | None, typer.Option("--deterministic/--any-order", help="Must gradients be the same bits at each call?")
    ] = None,
    values: Values = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A folder for the kernels.")] = None,
    as_json: Json = False,
) -> None:
    """Compile the Triton kernels of a pattern for a GPU, with none at hand, and report on them."""
    with reporting(as_json, pattern):
        from . import values as cli_values

        attention = cli_values.load(pattern)
        size, given_order = cli_values.block_size(block_size), cli_values.order(order, attention)
        options = {"block_size": size, "precision": precision, "deterministic": deterministic}
        report = fs.compile(attention, order=given_order, **options).aot(
            target,
            dtype=cli_values.dtype(dtype),
            head_dim=head_dim,
            heads=heads,
            kv_heads=kv_heads,
            q_len=length,
            kv_len=kv_length,
            batch=batch,
            folder=output,
            **cli_values.inputs(values, *cli_values.formulas(attention)),
        )
        if as_json:
            print_json(report.facts() | ({"folder": str(output)} if output else {}))
        else:
            print(report)


@app.command(epilog=PLAN_EXAMPLES)
def plan(
    pattern: Pattern,
    canvas: Annotated[str | None, typer.Option(help="Sides, e.g. 30x48x80 (t, h, w) or 64x64 (h, w).")] = None,
    length: Length = None,
    kv_length: KvLength = None,
    block_size: Annotated[list[str] | None, typer.Option(help="Blocks to try, N or QxKV, several times.")] = None,
    hardware: Annotated[str, typer.Option(help="a100, h100, h200, b200 or generic.")] = "h100",
    heads: Heads = None,
    head_dim: Annotated[int, typer.Option(help="Channels of a head.")] = 128,
    batch: Batch = None,
    values: Values = None,
    top: Annotated[int, typer.Option(min=1, help="Plans that are printed.")] = 10,
    as_json: Json = False,
) -> None:
    """Rank orders of the tokens and block sizes by what they would cost."""
    with reporting(as_json, pattern):
        from . import plans as cli_plans

        given = {"hardware": hardware, "heads": heads, "head_dim": head_dim, "batch": batch, "values": values}
        given["block_sizes"] = cli_plans.sizes(block_size)
        plans = cli_plans.table(pattern, canvas, (length, kv_length), given)
        if as_json:
            print_json(plans.facts(top))
        else:
            print(plans.describe(top))


def main() -> None:
    """The `flexspec` command. A letter that the terminal's encoding lacks is written as its number."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()
