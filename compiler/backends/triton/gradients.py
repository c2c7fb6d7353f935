"""The functions that the backward kernels take from a score: its derivative, and what its tensors receive.

`dscore(s, b, h, q, kv, values)` is the derivative by the score. `gather(s, ds, keep, b, h, q, kv, values, sums)` adds
`ds` times the derivative by each load to the place that the load reads, in a float32 tensor of `sums`.
"""

from __future__ import annotations

from functools import lru_cache

from flexspec.expr import Expr, Load, infix_text, var
from flexspec.ops import Type

from ...simplify.derivative import ONE, derivative, loads_of
from ...simplify.linear import cast
from ...simplify.rules import simplify
from .source import Function, module_of, slots, source_of


@lru_cache(256)
def gradient_functions(
    score: Expr, names: tuple[str, ...], wide: bool, title: str
) -> tuple[Function | None, Function | None]:
    """`dscore`, None where it is 1, and `gather` for the tensors `names`, None where there are none."""
    score = simplify(score)
    places = slots(score)
    slope = derivative(score, var("score"))
    sources = []
    if slope is not ONE:
        sources.append(source_of(cast(slope, Type.FLOAT), kind="dscore", wide=wide, places=places))
    loads = [(at, load) for at, name in enumerate(names) for load in loads_of(score, name)]
    lines = []
    for count, (at, load) in enumerate(loads):
        printed, line = _one(count, at, load, score, wide)
        sources += [source_of(x, kind=kind, wide=wide, places=places, offset=x is load) for kind, x in printed.items()]
        lines.append(line)
    if lines:
        head = "@triton.jit\ndef gather(s, ds, keep, b, h, q, kv, values, sums):\n    "
        sources.append(head + "\n    ".join(lines) + "\n")
    if not sources:
        return None, None
    module = module_of(sources, f"Derivatives of {title}", infix_text(score))
    return getattr(module, "dscore", None), getattr(module, "gather", None)


def _one(count: int, at: int, load: Load, score: Expr, wide: bool) -> tuple[dict[str, Expr], str]:
    """The functions of one load by name, and the line that adds what it receives."""
    slope = derivative(score, load)
    printed: dict[str, Expr] = {f"place_{count}": load}
    share = "ds"
    if slope is not ONE:
        printed[f"slope_{count}"] = cast(slope, Type.FLOAT)
        share = f"only(ds * slope_{count}(s, b, h, q, kv, values), keep)"
    names = frozenset().union(*(part.names for part in load.index))
    by_q, by_kv = (bool(names & {side, "score"}) for side in ("q", "kv"))
    return printed, f"add_to(sums[{at}] + place_{count}(s, b, h, q, kv, values), {share}, {by_q}, {by_kv})"
