"""`flexspec plan`: the planner's table for a pattern as people type it, with a progress bar."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import flexspec as fs
from flexspec.errors import FlexSpecError
from flexspec.patterns import CATALOG

from . import values as cli_values

AXES = {1: "w", 2: "hw", 3: "thw"}


def table(
    pattern: str, canvas_text: str | None, lengths: tuple[int | None, int | None], given: Mapping[str, Any]
) -> fs.Plans:
    """The plans of a pattern. given: options of `fs.plan`, and run-time values as words under `values`."""
    from rich.console import Console
    from rich.progress import Progress

    canvas = read_canvas(canvas_text) if canvas_text else None
    attention = cli_values.load(pattern, catalog_on(canvas) if canvas else CATALOG)
    if canvas is not None and lengths[0] is not None:
        raise FlexSpecError("FS021", "a canvas and a length are given", fix="leave --length out")
    q_len, kv_len = (None, lengths[1]) if canvas else cli_values.lengths(*lengths, attention)
    options = dict(given)
    inputs = cli_values.inputs(options.pop("values"), *cli_values.formulas(attention))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("plans")

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        return fs.plan(attention, canvas or q_len, kv_len, progress=show, **options, **inputs)


def read_canvas(text: str) -> fs.Canvas:
    """`30x48x80` with the axes t, h, w; two are h, w. FS032."""
    sides = re.split(r"[x×]", text.strip())
    if len(sides) not in AXES or not all(re.fullmatch(cli_values.DIGITS, side) for side in sides):
        fix = "give --canvas 30x48x80 (t, h, w) or 64x64 (h, w), or write canvas(...) into the pattern"
        raise FlexSpecError("FS032", f"the canvas is {text!r}", fix=fix)
    return fs.Canvas(**dict(zip(AXES[len(sides)], map(int, sides), strict=True)))


def catalog_on(canvas: fs.Canvas) -> dict[str, Any]:
    """The catalog with this canvas where a pattern of canvases is given none."""
    return {name: replace(entry, make=_made_on(canvas, entry.make)) for name, entry in CATALOG.items()}


def _made_on(canvas: fs.Canvas, make: Callable[..., Any]) -> Callable[..., Any]:
    if next(iter(_parameters(make)), None) != "canvas":
        return make

    def make_on_canvas(*args: Any, **given: Any) -> Any:
        own = args and isinstance(args[0], fs.Canvas) or "canvas" in given
        return make(*args, **given) if own else make(canvas, *args, **given)

    return make_on_canvas


def _parameters(make: Callable[..., Any]) -> Iterable[str]:
    return inspect.signature(getattr(make, "given", make)).parameters


def sizes(texts: list[str] | None) -> list[Any] | None:
    """Block sizes as they are typed; None where none is. FS030."""
    return [cli_values.block_size(text) for text in texts] if texts else None
