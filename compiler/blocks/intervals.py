"""How each operator bounds its result: from intervals of the operands to an interval of the result.

An interval is a pair of arrays (lo, hi), both ends included, of the operand's numpy type. An integer that may
pass `FAR` is any integer, as 64 bits wrap; a float end that is nan means "unknown". A boolean interval
(False, True) is undecided.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np

from flexspec.errors import FlexSpecError
from flexspec.ops import OPS, Type

from ..evaluation.points import Array

Interval = tuple[Array, Array]
Rule = Callable[..., Interval]
FAR = 2**61
_LEAST, _MOST = -(2**63), 2**63 - 1
_TINY = 4
"""Ends of transcendental functions move outward by this many units in the last place."""


def convert(x: Interval, old: Type, new: Type) -> Interval:
    """An interval as another type: every conversion is monotone."""
    if old is new:
        return x
    lo, hi = x
    if new is Type.BOOL:
        zero = (lo <= 0) & (hi >= 0)
        return ~(zero | (lo != lo) | (hi != hi)), ~((lo == 0) & (hi == 0))
    if new is Type.INT:
        if old is Type.BOOL:
            return lo.astype(np.int64), hi.astype(np.int64)
        bad = ~(np.isfinite(lo) & np.isfinite(hi) & (np.abs(lo) < FAR) & (np.abs(hi) < FAR))
        low, high = (np.trunc(np.where(bad, 0, end)).astype(np.int64) for end in x)
        return _hide(bad, (low, high))
    if old is Type.INT:
        low, high = lo.astype(new.numpy), hi.astype(new.numpy)
        return np.where(lo <= -FAR, -np.inf, low).astype(new.numpy), np.where(hi >= FAR, np.inf, high).astype(new.numpy)
    return lo.astype(new.numpy), hi.astype(new.numpy)


def _is_int(x: Interval) -> bool:
    return bool(x[0].dtype == np.int64)


def _unknown(like: Array) -> Interval:
    return np.full_like(like, np.nan), np.full_like(like, np.nan)


def _far(x: Interval) -> Array:
    return (x[0] <= -FAR) | (x[1] >= FAR)


def _hide(bad: Array, x: Interval) -> Interval:
    """`x`, but any integer, or nan, where `bad`."""
    if not bad.any():
        return x
    if _is_int(x):
        return np.where(bad, _LEAST, x[0]), np.where(bad, _MOST, x[1])
    lost = x[0].dtype.type(np.nan)
    return np.where(bad, lost, x[0]), np.where(bad, lost, x[1])


def add(a: Interval, b: Interval) -> Interval:
    total = a[0] + b[0], a[1] + b[1]
    if not _is_int(a):  # inf - inf is nan, inside the ends
        return _hide(((a[1] == np.inf) & (b[0] == -np.inf)) | ((a[0] == -np.inf) & (b[1] == np.inf)), total)
    return _hide(_far(a) | _far(b) | _far(total), total)  # past 64 bits a sum starts again at the other end


def neg(a: Interval) -> Interval:
    ends = -a[1], -a[0]
    return _hide(_far(a), ends) if _is_int(a) else ends


def sub(a: Interval, b: Interval) -> Interval:
    return add(a, neg(b))


def _corners(function: Callable[[Array, Array], Array], a: Interval, b: Interval) -> Interval:
    values = [function(x, y) for x in a for y in b]
    lo = np.minimum(np.minimum(values[0], values[1]), np.minimum(values[2], values[3]))
    return lo, np.maximum(np.maximum(values[0], values[1]), np.maximum(values[2], values[3]))


def mul(a: Interval, b: Interval) -> Interval:
    if not _is_int(a):  # 0 * inf is nan, inside the ends
        endless = [np.isinf(x[0]) | np.isinf(x[1]) for x in (a, b)]
        return _hide((_holds_zero(a) & endless[1]) | (_holds_zero(b) & endless[0]), _corners(np.multiply, a, b))
    low, high = _corners(lambda x, y: x.astype(np.float64) * y.astype(np.float64), a, b)
    far = _far(a) | _far(b)
    large = (low <= -FAR) | (high >= FAR)
    if bool((large & ~far).any()):
        size = float(max(abs(low).max(), abs(high).max()))
        message = f"a product of positions reaches {size:.3g}, past 64-bit integers"
        raise FlexSpecError("FS034", message, fix="use smaller factors, or floats")
    lo, hi = _corners(np.multiply, a, b)
    return _hide(far, (lo, hi))


def _holds_zero(x: Interval) -> Array:
    return (x[0] <= 0) & (x[1] >= 0)


def div(a: Interval, b: Interval) -> Interval:
    lo, hi = _corners(np.true_divide, a, b)
    return _hide(_holds_zero(b), (lo, hi))


def floordiv(a: Interval, b: Interval) -> Interval:
    if not _is_int(a):
        return _unknown(a[0] + b[0])
    zero = _holds_zero(b)
    safe = (np.where(zero, 1, b[0]), np.where(zero, 1, b[1]))
    lo, hi = _corners(np.floor_divide, a, safe)
    return _hide(zero | _far(a) | _far(b), (lo, hi))


def mod(a: Interval, b: Interval) -> Interval:
    if not _is_int(a):
        lo, hi = np.broadcast_arrays(a[0] + 0 * b[0], a[1] + b[1])
        ok = np.isfinite(lo) & np.isfinite(hi) & (b[0] > 0)
        ok &= np.isfinite(absolute(a)[1] / np.where(b[0] > 0, b[0], 1))  # torch gives nan past it
        return np.where(ok, 0, np.nan).astype(lo.dtype), np.where(ok, b[1], np.nan).astype(lo.dtype)
    one = (b[0] == b[1]) & (b[0] != 0) & ~_far(a)
    step = np.where(one, b[0], 1)
    same = one & (a[0] // step == a[1] // step)
    inside = (a[0] >= 0) & (a[1] < b[0])
    low = np.where(b[0] < 0, b[0] + 1, 0)
    high = np.where(b[1] > 0, b[1] - 1, 0)
    high = np.where((a[0] >= 0) & (b[0] > 0), np.minimum(high, a[1]), high)
    low, high = np.where(inside, a[0], low), np.where(inside, a[1], high)
    first, last = a[0] % step, a[1] % step
    return np.where(same, first, low), np.where(same, last, high)


def absolute(a: Interval) -> Interval:
    lo, hi = np.abs(a[0]), np.abs(a[1])
    size = np.where(_holds_zero(a), np.zeros_like(lo), np.minimum(lo, hi)), np.maximum(lo, hi)
    return _hide(_far(a), size) if _is_int(a) else size


def minimum(a: Interval, b: Interval) -> Interval:
    return np.minimum(a[0], b[0]), np.minimum(a[1], b[1])


def maximum(a: Interval, b: Interval) -> Interval:
    return np.maximum(a[0], b[0]), np.maximum(a[1], b[1])


def lt(a: Interval, b: Interval) -> Interval:
    return a[1] < b[0], ~(a[0] >= b[1])


def le(a: Interval, b: Interval) -> Interval:
    return a[1] <= b[0], ~(a[0] > b[1])


def eq(a: Interval, b: Interval) -> Interval:
    apart = (a[1] < b[0]) | (a[0] > b[1])
    return (a[0] == a[1]) & (b[0] == b[1]) & (a[0] == b[0]), ~apart


def negation(a: Interval) -> Interval:
    return (~a[1], ~a[0])


def _mask_above(x: Array) -> Array:
    """The least `2**k - 1` that is not below x >= 0, or the greatest integer; a size past 64 bits is negative."""
    large = (x >= 2**52) | (x < 0)
    bits = np.ceil(np.log2(np.where(large, 0, x).astype(np.float64) + 2))
    return np.where(large, _MOST, (2.0**bits).astype(np.int64) - 1)


def _shared_bits(a: Interval) -> Array:
    """The leading bits that all values of a range >= 0 share, the others 0."""
    varying = a[0] ^ a[1]
    return np.where(varying >= 2**52, 0, a[0] & ~_mask_above(np.maximum(varying, 0)))


def _bits(logical: Callable[[Array, Array], Array], exact_max: bool) -> Rule:
    def rule(a: Interval, b: Interval) -> Interval:
        if a[0].dtype == np.bool_:
            return logical(a[0], b[0]), logical(a[1], b[1])
        both = (a[0] >= 0) & (b[0] >= 0)
        one = (a[0] == a[1]) & (b[0] == b[1])
        wide = reduce(np.maximum, [_mask_above(np.abs(end)) for end in (*a, *b)])
        hi = np.minimum(a[1], b[1]) if exact_max else wide
        value = logical(a[0], b[0])
        least = _shared_bits(a) & _shared_bits(b) if exact_max else 0
        lo = np.where(both, least, -wide - 1)
        return np.where(one, value, lo), np.where(one, value, np.where(both, hi, wide))

    return rule


def xor(a: Interval, b: Interval) -> Interval:
    if a[0].dtype != np.bool_:
        return _bits(np.bitwise_xor, False)(a, b)
    known = (a[0] == a[1]) & (b[0] == b[1])
    value = a[0] ^ b[0]
    return known & value, ~known | value


def lshift(a: Interval, b: Interval) -> Interval:
    size = np.maximum(np.abs(a[0]), np.abs(a[1])).astype(np.float64) * 2.0 ** np.clip(b[1], 0, 64)
    bad = (b[0] < 0) | (b[1] > 60) | (size >= FAR) | _far(a)
    lo, hi = _corners(np.left_shift, a, (np.where(bad, 0, b[0]), np.where(bad, 0, b[1])))
    return _hide(bad, (lo, hi))


def rshift(a: Interval, b: Interval) -> Interval:
    bad = (b[0] < 0) | (b[1] > 63) | _far(a)
    lo, hi = _corners(np.right_shift, a, (np.where(bad, 0, b[0]), np.where(bad, 0, b[1])))
    return _hide(bad, (lo, hi))


def where(condition: Interval, a: Interval, b: Interval) -> Interval:
    lo, hi = np.minimum(a[0], b[0]), np.maximum(a[1], b[1])
    yes, no = condition[0], ~condition[1]
    return np.where(yes, a[0], np.where(no, b[0], lo)), np.where(yes, a[1], np.where(no, b[1], hi))


def _widen(lo: Array, hi: Array) -> Interval:
    for _ in range(_TINY):
        lo, hi = np.nextafter(lo, -np.inf, dtype=lo.dtype), np.nextafter(hi, np.inf, dtype=hi.dtype)
    return lo, hi


def sign(a: Interval) -> Interval:
    if _is_int(a):
        return np.sign(a[0]), np.sign(a[1])
    lost = np.isnan(a[0]) | np.isnan(a[1])  # unknown, but torch's sign of nan is 0
    one = a[0].dtype.type(1)
    return np.where(lost, -one, np.sign(a[0])), np.where(lost, one, np.sign(a[1]))


def _rising(name: str, exact: bool) -> Rule:
    def rule(a: Interval) -> Interval:
        lo, hi = OPS[name].numpy(a[0]), OPS[name].numpy(a[1])
        return (lo, hi) if exact else _widen(lo, hi)

    return rule


def _wave(a: Interval) -> Interval:
    known = np.isfinite(a[0]) & np.isfinite(a[1])
    lo, hi = np.where(known, -1, np.nan), np.where(known, 1, np.nan)
    return lo.astype(a[0].dtype), hi.astype(a[0].dtype)


def power(a: Interval, b: Interval) -> Interval:
    lo, hi = _widen(*_corners(np.power, a, b))
    bad = ~(a[0] > 0)
    return np.where(bad, np.nan, lo).astype(lo.dtype), np.where(bad, np.nan, hi).astype(lo.dtype)


def _swap(rule: Rule) -> Rule:
    return lambda a, b: rule(b, a)


RULES: dict[str, Rule] = {
    "lt": lt,
    "le": le,
    "gt": _swap(lt),
    "ge": _swap(le),
    "eq": eq,
    "ne": lambda a, b: negation(eq(a, b)),
    "and": _bits(np.bitwise_and, True),
    "or": _bits(np.bitwise_or, False),
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
    **{name: _rising(name, False) for name in ("sqrt", "exp", "exp2", "log", "log2", "tanh", "sigmoid")},
    "sin": _wave,
    "cos": _wave,
    "pow": power,
    **{kind.text: lambda a: a for kind in Type},
}
"""By operator name, on operands already converted to the operand types (a cast converts its operand itself)."""

_CASTS = {kind.text for kind in Type}


def bound(op: str, args: list[Interval], types: tuple[Type, ...]) -> Interval:
    """The interval of `op` on operands of `types`."""
    if op in _CASTS:
        return convert(args[0], types[0], Type[op.upper()])
    kinds, _ = OPS[op].signature(types)
    operands = [convert(arg, old, new) for arg, old, new in zip(args, types, kinds, strict=True)]
    lo, hi = RULES[op](*operands)
    if lo.dtype.kind == "f":  # one unknown end is an unknown value: it may be nan, which compares as false
        bad = np.isnan(lo) | np.isnan(hi)
        lo, hi = np.where(bad, lo.dtype.type(np.nan), lo), np.where(bad, hi.dtype.type(np.nan), hi)
    return lo, hi
