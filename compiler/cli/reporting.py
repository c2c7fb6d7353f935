"""A mistake as a message on the command line: in its own words, with the user's own lines only, or as JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from flexspec.errors import FlexSpecError

FOREIGN = re.compile(r'\n?  File "(?P<file>[^"]+)", line \d+(\n    .*\n    [ ]*\^+)?')


@contextmanager
def reporting(as_json: bool, *patterns: str) -> Iterator[None]:
    """A FlexSpecError inside becomes a message and exit code 2; of code, the user's own lines are shown.

    as_json: print one JSON document.
    patterns: as the user wrote them; files that they name are the user's own.
    """
    try:
        yield
    except FlexSpecError as error:
        _report(error, as_json, patterns)
        raise typer.Exit(2) from None
    except SystemExit as error:
        _report(FlexSpecError("FS052", f"the pattern's own code stopped with SystemExit: {error}"), as_json, patterns)
        raise typer.Exit(2) from None


def _report(error: FlexSpecError, as_json: bool, patterns: Sequence[str]) -> None:
    text = as_options(without_foreign_lines(str(error), patterns))
    if as_json:
        several = str(error) != error.describe()
        message = text.removeprefix(f"[{error.code}] ") if several else error.message
        fix = as_options(error.fix) if error.fix else None
        print_json({"error": {"code": error.code, "message": message, "fix": fix}})
        return
    from rich.console import Console
    from rich.text import Text

    head, _, rest = text.partition("\n")
    console = Console(stderr=True, soft_wrap=True)
    console.print(Text(head, style="bold red"))
    if rest:
        console.print(Text(rest))


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def as_options(text: str) -> str:
    """A fix in the command line's own words."""
    text = re.sub(r"\bgive (batch|heads)=<count>", r"add --\1 <count>", text)
    text = re.sub(r"\bgive (\w+)=<", r"add -p \1=<", text)
    return text.replace("flexspec.patterns.CATALOG lists all", "`flexspec patterns` lists all")


def without_foreign_lines(text: str, patterns: Sequence[str]) -> str:
    """An error's text without the lines of code that are not in a file which the user named."""
    own = {os.path.abspath(re.sub(r"\.py:\w*$", ".py", pattern)) for pattern in patterns}
    return FOREIGN.sub(lambda place: place[0] if os.path.abspath(place["file"]) in own else "", text)
