"""What each torch function and tensor method means on traced values: operators of the table, and calls made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch

from .errors import FlexSpecError
from .expr import Expr
from .ops import CASTS, NARROW, OPS, Op, Type
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


def _dtype(kind: Any) -> Any:
    """Python's types as torch reads them."""
    return _PYTHON_TYPES.get(kind, kind) if isinstance(kind, type) else kind


def _same(x: Any, *args: Any, **__: Any) -> Any:
    if any(isinstance(arg, torch.dtype) for arg in args):
        raise unknown("view(dtype)")
    return x


def _joined(name: str) -> Callable[..., Any]:
    """`any` and `all`, which join the comparisons of a row and nothing else."""

    def call(x: Any, dim: int | None = None) -> Any:
        if not hasattr(type(x), "parts"):
            raise unknown(name)
        return getattr(x, name)(dim)

    return call


@dataclass(frozen=True)
class TorchCalls:
    """The calls, by what makes values of them."""

    build: Callable[..., Any]
    """Apply an operator of the table, by its name, to traced values and numbers."""
    lift: Callable[[Any, Any], Expr]
    """The expression of a value in its session."""
    constant: Callable[[float, Any], Any]
    """A number as a traced value, in the session of another value."""

    def type_of(self, x: Any) -> Type:
        return self.lift(x, getattr(x, "session", None)).type

    def operator(self, name: str, op: Op) -> Callable[..., Any]:
        """The torch function `name`, which means an operator of the table."""

        def call(*args: Any, **kwargs: Any) -> Any:
            values = [*args, *(kwargs.pop(key) for key in ("input", "other", "exponent") if key in kwargs)]
            if kwargs.get("out", 0) is None:
                kwargs.pop("out")
            if kwargs or len(values) != op.arity:
                raise unknown(name)
            return self.build(op.name, *values)

        return call

    def logical(self, op: str) -> Callable[..., Any]:
        return lambda *args: self.build(op, *(self.truth(arg) for arg in args))

    def truth(self, x: Any) -> Any:
        """`x != 0` as a boolean."""
        return x if self.type_of(x) is Type.BOOL else self.build("ne", x, 0)

    def clamp(self, x: Any, min: Any = None, max: Any = None) -> Any:  # noqa: A002 - torch's own names
        if min is not None:
            x = self.build("max", x, min)
        return self.build("min", x, max) if max is not None else x

    def extreme(self, op: str) -> Callable[..., Any]:
        def call(x: Any, other: Any = None, **kwargs: Any) -> Any:
            if other is None or kwargs or isinstance(other, int):  # max(x, 0) reduces along a dim
                raise unknown(op)
            return self.build(op, x, other)

        return call

    def where(self, condition: Any, x: Any = None, other: Any = None, **kwargs: Any) -> Any:
        x, other = kwargs.get("input", x), kwargs.get("other", other)
        if x is None or other is None:
            raise unknown("where")
        return self.build("where", self.truth(condition), x, other)

    def divide(self, x: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
        build = self.build
        if rounding_mode is None:
            return build("div", x, other)
        if rounding_mode == "floor":
            return build("floordiv", x, other)
        if rounding_mode != "trunc":
            raise unknown(f"rounding_mode={rounding_mode!r}")
        if max(self.type_of(x), self.type_of(other)) > Type.INT:
            return build("trunc", build("div", x, other))
        size = build("floordiv", build("abs", x), build("abs", other))
        opposite = build("xor", build("lt", x, 0), build("lt", other, 0))
        return build("where", opposite, build("neg", size), size)

    def fmod(self, x: Any, other: Any) -> Any:
        """The remainder with the sign of `x`."""
        size = self.build("mod", self.build("abs", x), self.build("abs", other))
        return self.build("where", self.build("lt", x, 0), self.build("neg", size), size)

    def power(self, x: Any, exponent: Any) -> Any:
        """Whole powers are products, so that integers stay integers."""
        if isinstance(exponent, int) and not isinstance(exponent, bool) and 0 <= exponent <= 8:
            return reduce(partial(self.build, "mul"), [x] * exponent) if exponent else self.full_like(x, 1)
        if max(self.type_of(x), self.type_of(exponent)) <= Type.INT:  # torch's wrap; `pow` of the table is real
            message = "a power of integers is traced only for whole exponents from 0 to 8"
            fix = "write `1 << n` for powers of two, or a float base"
            raise FlexSpecError("FS008", message, fix=fix, where=user_caret())
        return self.build("pow", x, exponent)

    def isin(self, elements: Any, test_elements: Any, *, invert: bool = False, assume_unique: bool = False) -> Any:
        """Membership in a row of a captured tensor, in a tensor that no position indexes, or in a number."""
        if hasattr(type(test_elements), "expr"):  # one traced number
            raise unknown("isin")
        if hasattr(test_elements, "elements"):
            values = test_elements.elements()
        else:
            listed = isinstance(test_elements, torch.Tensor)
            values = sorted(set(test_elements.reshape(-1).tolist() if listed else [test_elements]))
        if len(values) > MAX_ISIN:
            message = f"isin lists {len(values)} values, more than {MAX_ISIN}"
            raise FlexSpecError("FS008", message, fix="index a boolean table: keep[kv]", where=user_caret())
        tests = [self.build("eq", elements, value) for value in values]
        found = self.balanced("or", tests) if tests else self.full_like(elements, 0, dtype=torch.bool)
        return self.build("not", found) if invert else found

    def balanced(self, op: str, parts: list[Any]) -> Any:
        """Combine many parts pairwise, so that the expression stays shallow."""
        while len(parts) > 1:
            pairs = [self.build(op, a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
            parts = pairs + ([parts[-1]] if len(parts) % 2 else [])
        return parts[0]

    def cast(self, x: Any, dtype: torch.dtype) -> Any:
        if dtype in NARROW:
            fix = "keep it 32-bit or 64-bit; flexspec computes in int64 and float32"
            raise FlexSpecError("FS008", f"a cast to {dtype} would lose values", fix=fix, where=user_caret())
        kind = Type.of_dtype(dtype)
        if kind is not self.type_of(x):
            return self.build(kind.text, x)
        return x.wide() if getattr(x, "narrow", None) else x

    def to(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """`.to(dtype)`, `.to(device)`, `.to(other)`: only a dtype changes anything."""
        for value in map(_dtype, (*args, *kwargs.values())):
            if isinstance(value, torch.dtype):
                return self.cast(x, value)
            if hasattr(value, "dtype"):
                return self.cast(x, value.dtype)
        return x

    def as_type(self, x: Any, kind: Any, *_: Any, **__: Any) -> Any:
        if isinstance(kind, str):
            raise unknown(f"type({kind!r})")
        return self.to(x, kind)

    def caster(self, dtype: torch.dtype) -> Callable[..., Any]:
        return lambda x, *_, **__: self.cast(x, dtype)

    def full_like(self, x: Any, fill_value: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Any:
        """A constant of x's type, or of `dtype`."""
        kind = Type.of_dtype(_dtype(dtype)) if dtype else self.type_of(x)
        if hasattr(type(fill_value), "expr"):
            return self.cast(fill_value, kind.torch)
        return self.constant((bool, int, float, float)[kind](fill_value), x)

    def calls(self) -> dict[str, Callable[..., Any]]:
        """What each torch function and tensor method means, by its name."""
        build, full_like = self.build, self.full_like
        names = {name: op for op in OPS.values() for name in (op.name, op.method, *op.traced) if name}
        casts = {name: self.caster(CASTS[op.name].torch) for name, op in names.items() if op.name in CASTS}
        return {
            **{name: self.operator(name, op) for name, op in names.items()},
            **casts,
            "bool": self.truth,
            **{f"logical_{op}": self.logical(op) for op in ("and", "or", "xor", "not")},
            **dict.fromkeys(("clamp", "clip"), self.clamp),
            "clamp_min": lambda x, min: self.clamp(x, min=min),  # noqa: A006
            "clamp_max": lambda x, max: self.clamp(x, max=max),  # noqa: A006
            "min": self.extreme("min"),
            "max": self.extreme("max"),
            "where": self.where,
            **dict.fromkeys(("div", "divide"), self.divide),
            "rsub": lambda a, b: build("sub", b, a),
            "fmod": self.fmod,
            "pow": self.power,
            "square": lambda x: self.power(x, 2),
            "rsqrt": lambda x: build("div", 1.0, build("sqrt", x)),
            "reciprocal": lambda x: build("div", 1.0, x),
            "relu": lambda x: build("max", x, 0),
            "isin": self.isin,
            **{name: _joined(name) for name in ("any", "all")},
            **dict.fromkeys(("to", "type_as"), self.to),
            "type": self.as_type,
            "ones_like": lambda x, **kwargs: full_like(x, 1, **kwargs),
            "zeros_like": lambda x, **kwargs: full_like(x, 0, **kwargs),
            "full_like": full_like,
            "new_ones": lambda x, *_, dtype=None, **__: full_like(x, 1, dtype=dtype),
            "new_zeros": lambda x, *_, dtype=None, **__: full_like(x, 0, dtype=dtype),
            "new_full": lambda x, size, fill_value, dtype=None, **_: full_like(x, fill_value, dtype=dtype),
            "new_tensor": lambda x, data, dtype=None, **_: full_like(x, data, dtype=dtype),
            **dict.fromkeys(("clone", "detach", "contiguous", "cpu", "cuda", "squeeze", "view", "reshape"), _same),
        }
