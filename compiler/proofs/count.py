"""How many pairs a mask of one sequence keeps, as a formula in its length `n` (q_len = kv_len = n), with a proof.

Take a mask whose integers are sums of positions with rational factors and of parts that repeat (constants, `% c`, the
fraction that `// c` drops), with a common period p, and whose comparisons are of `q`, of `kv` or of `q - kv` with such
a part. Then there are two numbers, `edge` and `near`, such that whether a pair is kept depends only on the residues of
`q` and `kv` modulo p; on `q` itself where `q < edge`, on `kv` itself where `kv < edge`; and on `q - kv` itself where
that is at most `near` on either side, else on its sign.

The pairs of one such class in the square n x n are those of a lattice on a point, a line or a triangle. Once
`n > edge + near`, a line gains one pair when n grows by p, and a triangle gains a number that itself grows by one each
time. So the count is a quadratic polynomial for such n of one residue, and three exact counts determine it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from math import floor, lcm
from typing import Any, NamedTuple

import numpy as np

from flexspec.expr import Apply, Const, Expr, Var, walk
from flexspec.ops import NEGATED, Type

from ..evaluation.points import Array, evaluate_at
from ..simplify.rules import simplify

BUDGET = 1 << 25
"""Most pairs that are evaluated for one formula: a chunk of 4,096 tokens, one on each side of a pair."""
_AT_ONCE = 1 << 22
_PIECES = 6
_BRANCHES = 16
_LARGE = 1 << 31  # past it, numbers times positions might leave 64 bits


class Pairs(NamedTuple):
    """The kept pairs as a sympy expression in `n`, and the smallest length from which on it holds."""

    formula: Any
    least: int

    def __str__(self) -> str:
        import sympy  # slow to import

        text, notes = self.formula, [f"n >= {self.least:,}"] if self.least > 1 else []
        for residue in self.formula.atoms(sympy.Mod):  # at most one
            text = text.xreplace({residue: sympy.Symbol("r")})
            notes = [f"r = n % {residue.args[1]}", *notes]
        return f"{text}  ({', '.join(notes)})" if notes else str(text)


class _Unknown(Exception):
    """The expression is not of the kind that is counted."""


class _Branch(NamedTuple):
    """An integer as `q * by_q + kv * by_kv` plus a part between `low` and `high` that repeats."""

    by_q: Fraction
    by_kv: Fraction
    low: Fraction
    high: Fraction


@dataclass
class _Shape:
    """What the counting needs to know of an expression: see the head of this file."""

    period: int = 1
    edge: int = 0
    near: int = 0
    done: dict[Expr, list[_Branch]] = field(default_factory=dict)


def pairs_formula(expr: Expr) -> Pairs | None:
    """The number of kept pairs of a mask of `q` and `kv` in a square of side `n`; None where it is not derived.

    expr: boolean, everything but `q` and `kv` filled in. It holds for every `n` from `least` on, which is the smallest.
    None: tensors, heads, sizes, floats, bits, a sum such as `q + kv`, or too many pairs to evaluate.

    >>> import flexspec as fs
    >>> print(pairs_formula(fs.parse("(q >= kv) & (q - kv < 256)")))
    256*n - 32640  (n >= 255)
    >>> print(pairs_formula(fs.parse("q // 512 == kv // 512")))
    512*n + r**2 - 512*r  (r = n % 512)
    """
    expr = simplify(expr)
    try:
        shape = _shape(expr)
    except _Unknown:
        return None
    start = shape.edge + shape.near + 1
    lengths = start + 3 * shape.period
    if shape.period * (shape.near + 1 + shape.period) + shape.edge * lengths > BUDGET:
        return None
    counts = _counts(expr, shape, lengths)
    period = shape.period
    # From `start` on the count is a quadratic for each residue of n, and a quadratic is known by three of its values.
    terms = [_through(counts[n : n + 3 * period : period].tolist(), n, period) for n in range(start, start + period)]
    terms = _shortest([terms[(residue - start) % period] for residue in range(period)])  # by n % period
    formula = _formula(terms)
    return None if formula is None else Pairs(formula, _holds_from(terms, counts, start))


def _shape(expr: Expr) -> _Shape:
    """Bound every integer of the expression from the leaves up. Raises _Unknown."""
    if expr.type is not Type.BOOL or expr.names - {"q", "kv"}:
        raise _Unknown
    shape = _Shape()
    for node in walk(expr):
        if node.type is Type.BOOL:
            shape.done[node] = [_Branch(Fraction(0), Fraction(0), Fraction(0), Fraction(1))]
            if isinstance(node, Apply) and node.op in NEGATED:
                for left, right in product(*(shape.done[arg] for arg in node.args)):
                    _compared(shape, _minus(left, right))
            elif isinstance(node, Apply) and node.op == "bool":
                for branch in shape.done[node.args[0]]:
                    _compared(shape, branch)
            elif isinstance(node, Apply) and node.op not in ("and", "or", "xor", "not", "where"):
                raise _Unknown
        elif node.type is Type.INT:
            shape.done[node] = list(dict.fromkeys(_branches(shape, node)))
        else:
            raise _Unknown
        if len(shape.done[node]) > _BRANCHES or any(
            abs(part) > _LARGE for branch in shape.done[node] for part in branch
        ):
            raise _Unknown
    return shape


def _branches(shape: _Shape, node: Expr) -> Iterator[_Branch]:
    """What an integer node may be; which of them it is follows from comparisons that the shape has taken in."""
    if isinstance(node, Const):
        yield _constant(int(node.value))
    elif isinstance(node, Var):
        yield _Branch(Fraction(node.name == "q"), Fraction(node.name == "kv"), Fraction(0), Fraction(0))
    elif isinstance(node, Apply) and node.op == "where":
        yield from shape.done[node.args[1]] + shape.done[node.args[2]]
    elif isinstance(node, Apply) and node.op in _INTEGER:
        for parts in product(*(shape.done[arg] for arg in node.args)):
            yield from _INTEGER[node.op](shape, *parts)
    else:
        raise _Unknown


def _constant(value: int) -> _Branch:
    return _Branch(Fraction(0), Fraction(0), Fraction(value), Fraction(value))


def _plus(left: _Branch, right: _Branch) -> _Branch:
    return _Branch(*(a + b for a, b in zip(left, right, strict=True)))


def _times(branch: _Branch, factor: Fraction) -> _Branch:
    low, high = sorted((branch.low * factor, branch.high * factor))
    return _Branch(branch.by_q * factor, branch.by_kv * factor, low, high)


def _minus(left: _Branch, right: _Branch) -> _Branch:
    return _plus(left, _times(right, Fraction(-1)))


def _value(branch: _Branch) -> int:
    """The constant that a branch is. Raises _Unknown."""
    if branch.by_q or branch.by_kv or branch.low != branch.high:
        raise _Unknown
    return int(branch.low)


def _compared(shape: _Shape, difference: _Branch) -> None:
    """Take in a comparison of `difference` with 0. Raises _Unknown where it follows a sum such as `q + kv`."""
    by_q, by_kv, low, high = difference
    if not by_q and not by_kv:
        return
    # Further out than this the position outweighs the repeating part, so the sign of the difference is the position's:
    # there the comparison says the same of all pairs.
    reach = floor(max(abs(low), abs(high)) / abs(by_q or by_kv))
    if by_q == -by_kv:
        shape.near = max(shape.near, reach)
    elif not by_q or not by_kv:
        shape.edge = max(shape.edge, reach + 1)
    else:
        raise _Unknown


def _multiply(_: _Shape, left: _Branch, right: _Branch) -> list[_Branch]:
    for a, b in ((left, right), (right, left)):
        if not b.by_q and not b.by_kv:
            if b.low == b.high:
                return [_times(a, b.low)]
            if not a.by_q and not a.by_kv:
                ends = [a_end * b_end for a_end in (a.low, a.high) for b_end in (b.low, b.high)]
                return [_Branch(Fraction(0), Fraction(0), min(ends), max(ends))]
    raise _Unknown


def _divide(shape: _Shape, branch: _Branch, by: _Branch) -> list[_Branch]:
    divisor = _value(by)
    if divisor <= 0:
        raise _Unknown
    quotient = _times(branch, Fraction(1, divisor))
    # The dropped fraction repeats when a period moves the quotient by whole numbers.
    shape.period = lcm(shape.period, quotient.by_q.denominator, quotient.by_kv.denominator)
    return [quotient._replace(low=quotient.low - Fraction(divisor - 1, divisor))]


def _remainder(shape: _Shape, branch: _Branch, by: _Branch) -> list[_Branch]:
    _divide(shape, branch, by)  # for its period
    return [_Branch(Fraction(0), Fraction(0), Fraction(0), Fraction(_value(by) - 1))]


def _either(shape: _Shape, left: _Branch, right: _Branch) -> list[_Branch]:
    _compared(shape, _minus(left, right))
    return [left, right]


_INTEGER: dict[str, Any] = {
    "add": lambda _, a, b: [_plus(a, b)],
    "sub": lambda _, a, b: [_minus(a, b)],
    "neg": lambda _, a: [_times(a, Fraction(-1))],
    "mul": _multiply,
    "floordiv": _divide,
    "mod": _remainder,
    "lshift": lambda _, a, b: [_times(a, Fraction(1 << _shift(b)))],
    "rshift": lambda shape, a, b: _divide(shape, a, _constant(1 << _shift(b))),
    "min": _either,
    "max": _either,
    "abs": lambda shape, a: _either(shape, a, _times(a, Fraction(-1))),
    "int": lambda _, a: [a],
}


def _shift(by: _Branch) -> int:
    if not 0 <= _value(by) < 32:
        raise _Unknown
    return _value(by)


def _counts(expr: Expr, shape: _Shape, lengths: int) -> Array:
    """int64 [lengths]: the kept pairs of squares of side 0, 1, ..., by what each side's last row and column add.

    Before `edge` every pair is evaluated; past it, a pair stands for all of its residues and distance, and past `near`
    the distances repeat.
    """
    edge, near, period = shape.edge, shape.near, shape.period
    added = np.zeros(lengths, np.int64)
    far = -(-(near + 1 + period + edge) // period) * period
    for last, other, own in (("q", "kv", 1), ("kv", "q", 0)):  # the corner of a square belongs to its row
        before = np.arange(edge)
        for rows in _chunks(lengths, edge):
            corner = np.arange(lengths)[rows, None]
            added[rows] += (_kept(expr, {last: corner, other: before}) & (before < corner + own)).sum(1)
        for residues in _chunks(period, near + 1 + period):
            # One position of each residue, so far along that no pair has a side below `edge`, at all distances that
            # differ: up to `near`, and one period more. A longer row is these, and that last period over again.
            corner = np.arange(far, far + period)[residues, None]
            kept = _kept(expr, {last: corner, other: corner - np.arange(near + 1 + period)})
            kept[:, 0] &= bool(own)
            total = np.cumsum(kept, axis=1, dtype=np.int32)
            ends = np.arange(edge, lengths)
            ends = ends[(ends % period >= residues.start) & (ends % period < residues.stop)]
            row, turns = ends % period - residues.start, np.maximum(0, ends - edge - near) // period
            added[ends] += total[row, ends - edge - turns * period] + turns * (total[row, -1] - total[row, near])
    return np.concatenate([[0], np.cumsum(added)])


def _kept(expr: Expr, where: dict[str, Array]) -> Array:
    shape = np.broadcast_shapes(*(positions.shape for positions in where.values()))
    return np.broadcast_to(evaluate_at(expr, where, {}), shape).copy()


def _chunks(count: int, size: int) -> list[slice]:
    """`count` rows of `size` pairs in parts that are evaluated at once."""
    step = max(1, _AT_ONCE // max(1, size))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


Quadratic = tuple[Fraction, Fraction, Fraction]
"""The coefficients of 1, n and n * n."""


def _through(values: list[Any], start: int, step: int) -> Quadratic:
    """The polynomial through one to three values at `start`, `start + step` and so on."""
    first, *rest = (Fraction(value) for value in values)
    slope = (rest[0] - first) / step if rest else Fraction(0)
    bend = (rest[1] - 2 * rest[0] + first) / (2 * step * step) if len(rest) > 1 else Fraction(0)
    slope -= bend * step  # in Newton's form: first + (n - start) * (slope + bend * (n - start))
    return first - start * slope + bend * start * start, slope - 2 * bend * start, bend


def _value_at(n: int, terms: Quadratic) -> Fraction:
    return terms[0] + n * (terms[1] + n * terms[2])


def _shortest(terms: list[Quadratic]) -> list[Quadratic]:
    """One period of what repeats."""
    divisors = (size for size in range(1, len(terms) + 1) if len(terms) % size == 0)
    return next(terms[:size] for size in divisors if terms == terms[:size] * (len(terms) // size))


def _formula(terms: list[Quadratic]) -> Any:
    """The sympy expression in `n` of a quadratic for each residue of n; None where it has too many pieces.

    A piece is a range of residues over which each coefficient is a quadratic of the residue itself.
    """
    pieces: list[tuple[int, list[Quadratic]]] = []
    start = 0
    while start < len(terms):
        if len(pieces) == _PIECES:
            return None
        parts = [_through([quadratic[k] for quadratic in terms[start : start + 3]], start, 1) for k in range(3)]
        while start < len(terms) and terms[start] == tuple(_value_at(start, part) for part in parts):
            start += 1
        pieces.append((start, parts))
    import sympy  # slow to import

    n = sympy.Symbol("n", integer=True, positive=True)
    residue = sympy.Mod(n, len(terms)) if len(terms) > 1 else sympy.Integer(0)

    def of(parts: list[Quadratic]) -> Any:
        by_power = [sum(sympy.Rational(c) * residue**i for i, c in enumerate(part)) for part in parts]
        whole = sympy.expand(sum(c * n**i for i, c in enumerate(by_power)))
        return whole if whole.has(sympy.Mod) or whole.subs(n, 0) else sympy.factor(whole)

    if len(pieces) == 1:
        return of(pieces[0][1])
    return sympy.Piecewise(*((of(parts), residue < stop) for stop, parts in pieces[:-1]), (of(pieces[-1][1]), True))


def _holds_from(terms: list[Quadratic], counts: Array, start: int) -> int:
    """The smallest length from which on the terms give the counts; from `start` on they are known to."""
    while start > 1 and _value_at(start - 1, terms[(start - 1) % len(terms)]) == int(counts[start - 1]):
        start -= 1
    return start
