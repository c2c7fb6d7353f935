"""What each torch function and tensor method means on traced values."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch

from .errors import FlexSpecError
from .ops import Type
from .user_line import user_caret

MAX_ISIN = 256
"""Most values that `torch.isin` may list; more belong into a boolean table."""

_PYTHON_TYPES: dict[type, torch.dtype] = {bool: torch.bool, int: torch.int64, float: torch.float64}
_RANDOM = ("rand", "bernoulli", "multinomial", "normal", "dropout", "poisson", "uniform", "exponential_")
_HINTS = {
    "sum": "a mask sees one pair; compute sums before and index the result",
    "cumsum": "compute it before, into a tensor, and index that",
    "any": "combine conditions with `|`",
    "all": "combine conditions with `&`",
    "item": "use the value itself; a run-time number is fs.Param",
    "tolist": "use the value itself",
    "bucketize": "compute it before, into a tensor, and index that",
    "searchsorted": "compute it before, into a tensor, and index that",
    "stack": "index one tensor by expressions",
    "cat": "index one tensor by expressions",
    "gather": "index the tensor: t[b, q]",
    "index_select": "index the tensor: t[q]",
    "take": "index the tensor: t[q]",
}


def _build(op: str, *args: Any) -> Any:
    from .trace import build  # trace calls this table and this table builds traced values

    return build(op, *args)


def unknown(name: str) -> FlexSpecError:
    """FS008 for a call without a translation."""
    fix = _HINTS.get(name, "write it with arithmetic, comparisons, torch.where and indexing")
    return FlexSpecError("FS008", f"`{name}` cannot be traced in a predicate", fix=fix, where=user_caret())


def refuse_random(name: str) -> None:
    """FS009 for torch's random functions."""
    if any(name.startswith(start) for start in _RANDOM):
        message = f"`{name}` draws random numbers inside a predicate"
        fix = "draw them before, into a tensor, and index that"
        raise FlexSpecError("FS009", message, fix=fix, where=user_caret())


def _type(x: Any) -> Type:
    from .trace import lift

    return lift(x, getattr(x, "session", None)).type


def _op(name: str) -> Callable[..., Any]:
    arity = 1 if name in _UNARY else 2

    def call(*args: Any, **kwargs: Any) -> Any:
        values = [*args, *(kwargs.pop(key) for key in ("input", "other", "exponent") if key in kwargs)]
        if kwargs.get("out", 0) is None:
            kwargs.pop("out")
        if kwargs or len(values) != arity:
            raise unknown(name)
        return _build(name, *values)

    return call


def _logical(op: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        return _build(op, *(truth(arg) for arg in args))

    return call


def truth(x: Any) -> Any:
    """`x != 0` as a boolean."""
    return x if _type(x) is Type.BOOL else _build("ne", x, 0)


def clamp(x: Any, min: Any = None, max: Any = None) -> Any:  # noqa: A002 - torch's own names
    if min is not None:
        x = _build("max", x, min)
    return _build("min", x, max) if max is not None else x


def _extreme(op: str) -> Callable[..., Any]:
    def call(x: Any, other: Any = None, **kwargs: Any) -> Any:
        if other is None or kwargs or isinstance(other, int):  # max(x, 0) reduces along a dim
            raise unknown(op)
        return _build(op, x, other)

    return call


def where(condition: Any, x: Any = None, other: Any = None, **kwargs: Any) -> Any:
    x, other = kwargs.get("input", x), kwargs.get("other", other)
    if x is None or other is None:
        raise unknown("where")
    return _build("where", truth(condition), x, other)


def divide(x: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is None:
        return _build("div", x, other)
    if rounding_mode == "floor":
        return _build("floordiv", x, other)
    if rounding_mode != "trunc":
        raise unknown(f"rounding_mode={rounding_mode!r}")
    if max(_type(x), _type(other)) > Type.INT:
        return _build("trunc", _build("div", x, other))
    size = _build("floordiv", _build("abs", x), _build("abs", other))
    opposite = _build("xor", _build("lt", x, 0), _build("lt", other, 0))
    return _build("where", opposite, _build("neg", size), size)


def fmod(x: Any, other: Any) -> Any:
    """The remainder with the sign of `x`."""
    size = _build("mod", _build("abs", x), _build("abs", other))
    return _build("where", _build("lt", x, 0), _build("neg", size), size)


def power(x: Any, exponent: Any) -> Any:
    """Whole powers are products, so that integers stay integers."""
    if isinstance(exponent, int) and not isinstance(exponent, bool) and 0 <= exponent <= 8:
        return reduce(lambda a, b: _build("mul", a, b), [x] * exponent) if exponent else ones_like(x)
    if max(_type(x), _type(exponent)) <= Type.INT:  # torch's are 64-bit and wrap; `pow` of the table is real
        message = "a power of integers is traced only for whole exponents from 0 to 8"
        fix = "write `1 << n` for powers of two, or a float base"
        raise FlexSpecError("FS008", message, fix=fix, where=user_caret())
    return _build("pow", x, exponent)


def isin(elements: Any, test_elements: Any, *, invert: bool = False, assume_unique: bool = False) -> Any:
    from .trace import Traced

    if isinstance(test_elements, Traced):
        raise unknown("isin")
    values = test_elements.reshape(-1).tolist() if isinstance(test_elements, torch.Tensor) else [test_elements]
    if len(values) > MAX_ISIN:
        message = f"isin lists {len(values)} values, more than {MAX_ISIN}"
        raise FlexSpecError("FS008", message, fix="index a boolean table: keep[kv]", where=user_caret())
    tests = [_build("eq", elements, value) for value in sorted(set(values))] or [zeros_like(elements, dtype=torch.bool)]
    found = balanced("or", tests)
    return _build("not", found) if invert else found


def balanced(op: str, parts: list[Any]) -> Any:
    """Combine many parts pairwise, so that the expression stays shallow."""
    while len(parts) > 1:
        pairs = [_build(op, a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + ([parts[-1]] if len(parts) % 2 else [])
    return parts[0]


def _dtype(kind: Any) -> Any:
    """Python's types as torch reads them."""
    return _PYTHON_TYPES.get(kind, kind) if isinstance(kind, type) else kind


def cast(x: Any, dtype: torch.dtype) -> Any:
    if dtype in (torch.int8, torch.uint8, torch.int16, torch.float16, torch.bfloat16):
        fix = "keep it 32-bit or 64-bit; flexspec computes in int64 and float32"
        raise FlexSpecError("FS008", f"a cast to {dtype} would lose values", fix=fix, where=user_caret())
    kind = Type.of_dtype(dtype)
    if kind is not _type(x):
        return _build(kind.text, x)
    return type(x)(x.expr, x.session) if getattr(x, "narrow", None) else x  # wide from here on


def to(x: Any, *args: Any, **kwargs: Any) -> Any:
    """`.to(dtype)`, `.to(device)`, `.to(other)`: only a dtype changes anything."""
    for value in map(_dtype, (*args, *kwargs.values())):
        if isinstance(value, torch.dtype):
            return cast(x, value)
        if hasattr(value, "dtype"):
            return cast(x, value.dtype)
    return x


def as_type(x: Any, kind: Any, *_: Any, **__: Any) -> Any:
    if isinstance(kind, str):
        raise unknown(f"type({kind!r})")
    return to(x, kind)


def _caster(dtype: torch.dtype) -> Callable[..., Any]:
    return lambda x, *_, **__: cast(x, dtype)


def full_like(x: Any, fill_value: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Any:
    """A constant of x's type, or of `dtype`."""
    from .expr import const
    from .trace import Traced

    kind = Type.of_dtype(_dtype(dtype)) if dtype else _type(x)
    if isinstance(fill_value, Traced):
        return cast(fill_value, kind.torch)
    value = (bool, int, float, float)[kind](fill_value)
    return Traced(const(value), getattr(x, "session", None))


def ones_like(x: Any, **kwargs: Any) -> Any:
    return full_like(x, 1, **kwargs)


def zeros_like(x: Any, **kwargs: Any) -> Any:
    return full_like(x, 0, **kwargs)


def _new(value: int) -> Callable[..., Any]:
    return lambda x, *_, dtype=None, **__: full_like(x, value, dtype=dtype)


def _same(x: Any, *args: Any, **__: Any) -> Any:
    if any(isinstance(arg, torch.dtype) for arg in args):
        raise unknown("view(dtype)")
    return x


_UNARY = "neg not abs floor ceil round trunc sign sqrt exp exp2 log log2 sin cos tanh sigmoid".split()
_COMPARISONS = {"less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge", "not_equal": "ne"}
_BITS = {"bitwise_and": "and", "bitwise_or": "or", "bitwise_xor": "xor"}
_SHIFTS = {"bitwise_left_shift": "lshift", "bitwise_right_shift": "rshift"}
_OTHERS = {"subtract": "sub", "multiply": "mul", "floor_divide": "floordiv", "remainder": "mod", "negative": "neg"}
_LONG = {"invert": "not", "bitwise_not": "not", "absolute": "abs", "minimum": "min", "maximum": "max"}
_NAMED = _COMPARISONS | _BITS | _SHIFTS | _OTHERS | _LONG
_PLAIN = [*_UNARY, *"lt le gt ge eq ne add sub mul floordiv mod and or xor lshift rshift".split()]

CALLS: dict[str, Callable[..., Any]] = {
    **{name: _op(name) for name in _PLAIN},
    **{name: _op(op) for name, op in _NAMED.items()},
    **{f"logical_{op}": _logical(op) for op in ("and", "or", "xor")},
    "logical_not": lambda x: _build("not", truth(x)),
    **dict.fromkeys(("clamp", "clip"), clamp),
    "clamp_min": lambda x, min: clamp(x, min=min),  # noqa: A006
    "clamp_max": lambda x, max: clamp(x, max=max),  # noqa: A006
    "min": _extreme("min"),
    "max": _extreme("max"),
    "where": where,
    **dict.fromkeys(("div", "divide"), divide),
    **{name: lambda a, b: _build("div", a, b) for name in ("true_divide", "truediv")},
    "rsub": lambda a, b: _build("sub", b, a),
    "fmod": fmod,
    "pow": power,
    "square": lambda x: power(x, 2),
    "rsqrt": lambda x: _build("div", 1.0, _build("sqrt", x)),
    "reciprocal": lambda x: _build("div", 1.0, x),
    "relu": lambda x: _build("max", x, 0),
    "isin": isin,
    "to": to,
    "type": as_type,
    "type_as": to,
    "int": _caster(torch.int32),
    "long": _caster(torch.int64),
    "float": _caster(torch.float32),
    "double": _caster(torch.float64),
    "bool": truth,
    "ones_like": ones_like,
    "zeros_like": zeros_like,
    "full_like": full_like,
    "new_ones": _new(1),
    "new_zeros": _new(0),
    "new_full": lambda x, size, fill_value, dtype=None, **_: full_like(x, fill_value, dtype=dtype),
    "new_tensor": lambda x, data, dtype=None, **_: full_like(x, data, dtype=dtype),
    **dict.fromkeys(("clone", "detach", "contiguous", "cpu", "cuda", "squeeze", "view", "reshape"), _same),
}

METHODS: dict[str, Callable[..., Any]] = {
    "where": lambda x, condition, other: where(condition, x, other),
}
"""Tensor methods whose operands stand in another order than the function's."""

ATTRIBUTES: dict[str, Callable[[Any], Any]] = {
    "dtype": lambda x: _type(x).torch,
    "device": lambda x: torch.device("cpu"),
    "shape": lambda x: torch.Size([]),
    "ndim": lambda x: 0,
    "requires_grad": lambda x: False,
}
