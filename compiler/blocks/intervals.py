"""How each operator bounds its result: from intervals of the operands to an interval of the result.

An interval is a pair of arrays (lo, hi), both ends included, of the operand's type: numpy's on the host, torch's where
`on_device` bounds. The rules are the same: they use what both libraries have, under its common name, and never ask an
array on a device for a value. A boolean interval (False, True) is undecided.

Why ends suffice. A rule must hold every value that the operator takes on the box of its operands' intervals.

- Integers: 64 bits wrap, so arithmetic is monotone only while nothing leaves them. An integer that may pass `FAR` is
  therefore any integer: sums of two ends below `FAR` stay below 2**62 and cannot have wrapped unseen.
- Floats: torch rounds each result to nearest, and rounding is monotone: x <= y gives round(x) <= round(y). So where
  the true function is monotone in an operand, the rounded function at the ends bounds all rounded values, to the last
  bit. Library functions such as `exp` are not always rounded to nearest; their ends move outward (`_TINY`).
- nan compares as false with everything and lies between no two ends. A float that may be nan has nan as both ends,
  "unknown". A comparison is decided only by comparisons of ends that hold, and none of nan holds.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from flexspec.errors import FlexSpecError
from flexspec.ops import CASTS, OPS, Type

Ends = Any
"""An array of numpy or of torch."""
Interval = tuple[Ends, Ends]
Rule = Callable[..., Interval]
FAR = 2**61
LEAST, MOST = -(2**63), 2**63 - 1
_TINY = 4
"""Ends of transcendental functions move outward by this many units in the last place."""


def library(ends: Ends) -> Any:
    """Whose functions compute on an array: numpy or torch."""
    return torch if isinstance(ends, torch.Tensor) else np


def as_type(ends: Ends, kind: Type) -> Ends:
    return ends.to(kind.torch) if isinstance(ends, torch.Tensor) else ends.astype(kind.numpy, copy=False)


def as_interval(x: Interval, kind: Type) -> Interval:
    """Ends of a narrower type as a type's own. One array twice stays one."""
    lo = as_type(x[0], kind)
    return lo, lo if x[1] is x[0] else as_type(x[1], kind)


def _is(x: Interval, kind: Type) -> bool:
    return bool(x[0].dtype == (kind.torch if isinstance(x[0], torch.Tensor) else kind.numpy))


def _unknown(like: Ends) -> Interval:
    lost = library(like).full_like(like, np.nan)
    return lost, lost


def _far(x: Interval) -> Ends:
    return (x[0] <= -FAR) | (x[1] >= FAR)


def _hide(bad: Ends, x: Interval) -> Interval:
    """`x`, but any integer, or nan, where `bad`."""
    if isinstance(bad, np.ndarray) and not bad.any():  # a device is not asked
        return x
    where = library(x[0]).where
    if _is(x, Type.INT):
        return where(bad, LEAST, x[0]), where(bad, MOST, x[1])
    return where(bad, np.nan, x[0]), where(bad, np.nan, x[1])


def convert(x: Interval, old: Type, new: Type) -> Interval:
    """An interval as another type: every conversion is monotone."""
    if old is new:
        return x
    lo, hi = x
    xp = library(lo)
    if new is Type.BOOL:  # nan is not 0, so it is True
        zero = (lo <= 0) & (hi >= 0)
        return ~(zero | (lo != lo) | (hi != hi)), ~((lo == 0) & (hi == 0))
    if new is Type.INT and old > Type.INT:  # what no integer is near is undefined, and differs by device
        bad = ~(xp.isfinite(lo) & xp.isfinite(hi) & (abs(lo) < FAR) & (abs(hi) < FAR))
        low, high = (as_type(xp.trunc(xp.where(bad, 0, end)), Type.INT) for end in x)
        return _hide(bad, (low, high))
    low, high = as_type(lo, new), as_type(hi, new)
    if old is Type.INT and new > Type.INT:
        return xp.where(lo <= -FAR, -np.inf, low), xp.where(hi >= FAR, np.inf, high)
    return low, high


def add(a: Interval, b: Interval) -> Interval:
    """Rising in both operands."""
    total = a[0] + b[0], a[1] + b[1]
    if not _is(a, Type.INT):  # inf - inf is nan, inside the ends
        return _hide(((a[1] == np.inf) & (b[0] == -np.inf)) | ((a[0] == -np.inf) & (b[1] == np.inf)), total)
    return _hide(_far(a) | _far(b) | _far(total), total)  # past 64 bits a sum starts again at the other end


def neg(a: Interval) -> Interval:
    """Falling. Only the least integer has no negative."""
    ends = -a[1], -a[0]
    return _hide(_far(a), ends) if _is(a, Type.INT) else ends


def sub(a: Interval, b: Interval) -> Interval:
    return add(a, neg(b))


def _corners(function: Callable[[Ends, Ends], Ends], a: Interval, b: Interval) -> Interval:
    """Of a function that is monotone in each operand while the other stands still: along either, the extremes are at
    its ends, so those of the box are at its corners.
    """
    values = [function(x, y) for x in a for y in b]
    least, most = library(values[0]).minimum, library(values[0]).maximum
    low = least(least(values[0], values[1]), least(values[2], values[3]))
    return low, most(most(values[0], values[1]), most(values[2], values[3]))


def mul(a: Interval, b: Interval) -> Interval:
    """Monotone in each operand, rising or falling by the other's sign."""
    if not _is(a, Type.INT):  # 0 * inf is nan, inside the ends
        endless = [library(x[0]).isinf(x[0]) | library(x[1]).isinf(x[1]) for x in (a, b)]
        return _hide((_holds_zero(a) & endless[1]) | (_holds_zero(b) & endless[0]), _corners(operator.mul, a, b))
    # in doubles, which cannot wrap: rounding moves a product of 61 bits by less than one part in 2**52
    low, high = _corners(lambda x, y: as_type(x, Type.DOUBLE) * as_type(y, Type.DOUBLE), a, b)
    far, large = _far(a) | _far(b), (low <= -FAR) | (high >= FAR)
    if isinstance(large, np.ndarray) and bool((large & ~far).any()):
        size = float(np.where(far, 0, np.maximum(abs(low), abs(high))).max())
        message = f"a product of positions reaches {size:.3g}, past 64-bit integers"
        raise FlexSpecError("FS034", message, fix="use smaller factors, or floats")
    return _hide(far | large, _corners(operator.mul, a, b))


def _holds_zero(x: Interval) -> Ends:
    return (x[0] <= 0) & (x[1] >= 0)


def div(a: Interval, b: Interval) -> Interval:
    """Monotone in each operand where the divisor keeps its sign."""
    return _hide(_holds_zero(b), _corners(operator.truediv, a, b))


def floordiv(a: Interval, b: Interval) -> Interval:
    """Of integers as `div`, and rounding down is monotone. Of floats torch rounds step by step: unknown."""
    if not _is(a, Type.INT):
        return _unknown(a[0] + b[0])
    bad = _holds_zero(b) | _far(a) | _far(b)
    where = library(bad).where
    return _hide(bad, _corners(operator.floordiv, a, (where(bad, 1, b[0]), where(bad, 1, b[1]))))


def mod(a: Interval, b: Interval) -> Interval:
    """Between 0 and the divisor. Of integers it is `a` where that lies between them already, and it rises with `a`
    where all of `a` has one and the same quotient by one divisor.
    """
    xp = library(a[0])
    if not _is(a, Type.INT):  # a float remainder may round up to the divisor itself
        finite = xp.isfinite(a[0] + 0 * b[0]) & xp.isfinite(a[1] + b[1]) & (b[0] > 0)
        finite &= xp.isfinite(absolute(a)[1] / xp.where(b[0] > 0, b[0], 1))  # torch gives nan past it
        return xp.where(finite, xp.zeros_like(b[0]), np.nan), xp.where(finite, b[1], np.nan)
    one = (b[0] == b[1]) & (b[0] != 0) & ~_far(a)
    step = xp.where(one, b[0], 1)
    same = one & (a[0] // step == a[1] // step)
    inside = (a[0] >= 0) & (a[1] < b[0])
    low = xp.where(b[0] < 0, b[0] + 1, 0)
    high = xp.where(b[1] > 0, b[1] - 1, 0)
    high = xp.where((a[0] >= 0) & (b[0] > 0), xp.minimum(high, a[1]), high)
    low, high = xp.where(inside, a[0], low), xp.where(inside, a[1], high)
    return xp.where(same, a[0] % step, low), xp.where(same, a[1] % step, high)


def absolute(a: Interval) -> Interval:
    """Falling up to 0, then rising."""
    xp = library(a[0])
    lo, hi = abs(a[0]), abs(a[1])
    size = xp.where(_holds_zero(a), xp.zeros_like(lo), xp.minimum(lo, hi)), xp.maximum(lo, hi)
    return _hide(_far(a), size) if _is(a, Type.INT) else size


def minimum(a: Interval, b: Interval) -> Interval:
    """Rising in both operands; nan if one is."""
    least = library(a[0]).minimum
    return least(a[0], b[0]), least(a[1], b[1])


def maximum(a: Interval, b: Interval) -> Interval:
    """Rising in both operands; nan if one is."""
    most = library(a[0]).maximum
    return most(a[0], b[0]), most(a[1], b[1])


def lt(a: Interval, b: Interval) -> Interval:
    """Surely where all of `a` is below all of `b`; possibly unless all of `a` is at or above all of `b`."""
    return a[1] < b[0], ~(a[0] >= b[1])


def le(a: Interval, b: Interval) -> Interval:
    return a[1] <= b[0], ~(a[0] > b[1])


def eq(a: Interval, b: Interval) -> Interval:
    """Surely where both are one and the same value; possibly where they overlap."""
    apart = (a[1] < b[0]) | (a[0] > b[1])
    return (a[0] == a[1]) & (b[0] == b[1]) & (a[0] == b[0]), ~apart


def negation(a: Interval) -> Interval:
    """Falling: of booleans, and of bits, where `~x` is `-x - 1`."""
    return ~a[1], ~a[0]


def _mask_above(x: Ends) -> Ends:
    """The least `2**k - 1` that is not below x >= 0, or the greatest integer; a size past 64 bits is negative."""
    xp = library(x)
    large = (x >= 2**52) | (x < 0)
    bits = xp.ceil(xp.log2(as_type(xp.where(large, 0, x), Type.DOUBLE) + 2))
    return xp.where(large, MOST, as_type(2.0**bits, Type.INT) - 1)


def _shared_bits(a: Interval) -> Ends:
    """The leading bits that all values of a range >= 0 share, the others 0."""
    varying = a[0] ^ a[1]
    return library(varying).where((varying >= 2**52) | (varying < 0), 0, a[0] & ~_mask_above(varying))


def _bits(logical: Callable[[Ends, Ends], Ends], conjunction: bool) -> Rule:
    """`and`, `or` and, of integers, `xor`. Of booleans they rise. Of integers no result is longer than the longest end:
    with its k bits it is in [-2**k, 2**k). A conjunction of numbers >= 0 is above neither, and has the leading bits
    that all values of both ranges share.
    """

    def rule(a: Interval, b: Interval) -> Interval:
        if _is(a, Type.BOOL):
            return logical(a[0], b[0]), logical(a[1], b[1])
        xp = library(a[0])
        both = (a[0] >= 0) & (b[0] >= 0)
        one = (a[0] == a[1]) & (b[0] == b[1])
        in_a, in_b = (xp.maximum(_mask_above(abs(x[0])), _mask_above(abs(x[1]))) for x in (a, b))
        wide = xp.maximum(in_a, in_b)
        high = xp.minimum(a[1], b[1]) if conjunction else wide
        value = logical(a[0], b[0])
        least = _shared_bits(a) & _shared_bits(b) if conjunction else 0
        low = xp.where(both, least, -wide - 1)
        return xp.where(one, value, low), xp.where(one, value, xp.where(both, high, wide))

    return rule


def xor(a: Interval, b: Interval) -> Interval:
    if not _is(a, Type.BOOL):
        return _bits(operator.xor, False)(a, b)
    known = (a[0] == a[1]) & (b[0] == b[1])
    value = a[0] ^ b[0]
    return known & value, ~known | value


def lshift(a: Interval, b: Interval) -> Interval:
    """`a * 2**b`, monotone in each; the size that it may reach is taken in doubles."""
    xp = library(a[0])
    steps = as_type(xp.clip(b[1], 0, 64), Type.DOUBLE)
    size = as_type(xp.maximum(abs(a[0]), abs(a[1])), Type.DOUBLE) * 2.0**steps
    bad = (b[0] < 0) | (b[1] > 60) | (size >= FAR) | _far(a)
    return _hide(bad, _corners(operator.lshift, a, (xp.where(bad, 0, b[0]), xp.where(bad, 0, b[1]))))


def rshift(a: Interval, b: Interval) -> Interval:
    """`a // 2**b`, monotone in each."""
    where = library(a[0]).where
    bad = (b[0] < 0) | (b[1] > 63) | _far(a)
    return _hide(bad, _corners(operator.rshift, a, (where(bad, 0, b[0]), where(bad, 0, b[1]))))


def where(condition: Interval, a: Interval, b: Interval) -> Interval:
    """One of the two where the condition is decided, else the hull of both."""
    xp = library(a[0])
    if _is(a, Type.BOOL):
        lo, hi = a[0] & b[0], a[1] | b[1]
    else:
        lo, hi = xp.minimum(a[0], b[0]), xp.maximum(a[1], b[1])
    yes, no = condition[0], ~condition[1]
    return xp.where(yes, a[0], xp.where(no, b[0], lo)), xp.where(yes, a[1], xp.where(no, b[1], hi))


def sign(a: Interval) -> Interval:
    """Rising."""
    xp = library(a[0])
    ends = xp.sign(a[0]), xp.sign(a[1])
    if _is(a, Type.INT):
        return ends
    lost = xp.isnan(a[0]) | xp.isnan(a[1])  # unknown, but torch's sign of nan is 0
    return xp.where(lost, -1, ends[0]), xp.where(lost, 1, ends[1])


def _widen(x: Interval) -> Interval:
    lo, hi = x
    xp = library(lo)
    down, up = xp.full_like(lo, -np.inf), xp.full_like(hi, np.inf)
    for _ in range(_TINY):
        lo, hi = xp.nextafter(lo, down), xp.nextafter(hi, up)
    return lo, hi


def _evaluated(name: str, *ends: Ends) -> Ends:
    """An operator itself, as either library has it."""
    return (OPS[name].torch if isinstance(ends[0], torch.Tensor) else OPS[name].numpy)(*ends)


def _rising(name: str, exact: bool) -> Rule:
    """A function that never falls: its ends are those at the operand's ends, exact if it always rounds to nearest."""

    def rule(a: Interval) -> Interval:
        ends = _evaluated(name, a[0]), _evaluated(name, a[1])
        return ends if exact else _widen(ends)

    return rule


def _wave(a: Interval) -> Interval:
    """Sine and cosine: anywhere between -1 and 1, and nan of no finite number."""
    xp = library(a[0])
    unknown = ~(xp.isfinite(a[0]) & xp.isfinite(a[1]))
    return _hide(unknown, (xp.full_like(a[0], -1), xp.full_like(a[1], 1)))


def power(a: Interval, b: Interval) -> Interval:
    """Of a base above 0 monotone in each operand: in the base by the exponent's sign, in the exponent by the base's
    being above or below 1.
    """
    return _hide(~(a[0] > 0), _widen(_corners(lambda x, y: _evaluated("pow", x, y), a, b)))


def _swap(rule: Rule) -> Rule:
    return lambda a, b: rule(b, a)


BOUNDS: dict[str, Rule] = {
    "lt": lt,
    "le": le,
    "gt": _swap(lt),
    "ge": _swap(le),
    "eq": eq,
    "ne": lambda a, b: negation(eq(a, b)),
    "and": _bits(operator.and_, True),
    "or": _bits(operator.or_, False),
    "xor": xor,
    "not": negation,
    "lshift": lshift,
    "rshift": rshift,
    "add": add,
    "sub": sub,
    "mul": mul,
    "div": div,
    "floordiv": floordiv,
    "mod": mod,
    "neg": neg,
    "abs": absolute,
    "min": minimum,
    "max": maximum,
    "where": where,
    "sign": sign,
    **{name: _rising(name, True) for name in ("floor", "ceil", "round", "trunc")},
    **{name: _rising(name, False) for name in ("sqrt", "exp", "exp2", "log", "log2", "tanh", "sigmoid", "erf")},
    "sin": _wave,
    "cos": _wave,
    "pow": power,
    **dict.fromkeys(CASTS, lambda a: a),
}
"""By operator name, on operands already converted to the operand types (a cast converts its operand itself)."""


def bound(op: str, args: list[Interval], types: tuple[Type, ...]) -> Interval:
    """The interval of `op` on operands of `types`."""
    if op in CASTS:
        return convert(args[0], types[0], CASTS[op])
    kinds, result = OPS[op].signature(types)
    lo, hi = BOUNDS[op](*(convert(arg, old, new) for arg, old, new in zip(args, types, kinds, strict=True)))
    if result > Type.INT:  # one unknown end is an unknown value: it may be nan, which compares as false
        return _hide((lo != lo) | (hi != hi), (lo, hi))
    return lo, hi
