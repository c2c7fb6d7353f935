"""The one table of operators: arity, text form, result type, and how each evaluates and prints.

How an operator bounds intervals stands in `flexspec.compiler.blocks.intervals`, under the same names; a test
compares the two tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
import torch

Dtype: TypeAlias = torch.dtype


class Type(IntEnum):
    """What a node's value is. The order is that of promotion; INT is 64-bit, FLOAT 32-bit as in torch."""

    BOOL = 0
    INT = 1
    FLOAT = 2
    DOUBLE = 3

    @property
    def text(self) -> str:
        return self.name.lower()

    @property
    def numpy(self) -> Any:
        return (np.bool_, np.int64, np.float32, np.float64)[self]

    @property
    def torch(self) -> Dtype:
        return (torch.bool, torch.int64, torch.float32, torch.float64)[self]

    @staticmethod
    def of_dtype(dtype: Dtype) -> Type:
        """The type of a load from a tensor of `dtype`; TypeError for complex and quantized ones."""
        if dtype == torch.bool:
            return Type.BOOL
        if dtype == torch.float64:
            return Type.DOUBLE
        if dtype.is_floating_point:
            return Type.FLOAT
        if dtype.is_complex or "q" in str(dtype):
            raise TypeError(str(dtype))
        return Type.INT

    @staticmethod
    def of_value(value: object) -> Type:
        """The type of a Python bool, int or float; TypeError for anything else."""
        if isinstance(value, bool):
            return Type.BOOL
        if isinstance(value, int):
            return Type.INT
        if isinstance(value, float):
            return Type.FLOAT
        raise TypeError(type(value).__name__)


Types = tuple[Type, ...]
Signature = Callable[[Types], tuple[Types, Type]]


def _promote(types: Types, least: Type = Type.BOOL) -> Type:
    return max(*types, least)


def _number(types: Types) -> tuple[Types, Type]:
    result = _promote(types, Type.INT)
    return (result,) * len(types), result


def _any(types: Types) -> tuple[Types, Type]:
    result = _promote(types, Type.BOOL)
    return (result,) * len(types), result


def _real(types: Types) -> tuple[Types, Type]:
    result = _promote(types, Type.FLOAT)
    return (result,) * len(types), result


def _whole(types: Types) -> tuple[Types, Type]:
    if _promote(types) > Type.INT:
        raise TypeError("takes integers or booleans")
    return _any(types)


def _integer(types: Types) -> tuple[Types, Type]:
    if _promote(types) > Type.INT:
        raise TypeError("takes integers")
    return (Type.INT,) * len(types), Type.INT


def _compare(types: Types) -> tuple[Types, Type]:
    return (_promote(types),) * len(types), Type.BOOL


def _select(types: Types) -> tuple[Types, Type]:
    if types[0] != Type.BOOL:
        raise TypeError("takes a boolean as its first operand")
    result = _promote(types[1:])
    return (Type.BOOL, result, result), result


def _cast(to: Type) -> Signature:
    return lambda types: (types, to)


@dataclass(frozen=True, slots=True)
class Op:
    """One operator. `torch` and `numpy` evaluate on operands already converted to the operand types."""

    name: str
    arity: int
    symbol: str | None
    """Infix or prefix text; None: printed as a call `name(...)`."""
    precedence: int
    signature: Signature
    """Operand types to (types to convert the operands to, result type); TypeError where illegal."""
    torch: Callable[..., Any]
    numpy: Callable[..., Any]
    torch_source: str
    """Template over printed operands, as FlexAttention traces it."""
    triton_source: tuple[str, str] = ("", "")
    """The same for Triton: on integers and booleans, on floats. Helpers stand in the backend's `arithmetic`."""


COMPARE, OR, XOR, AND, SHIFT, SUM, PRODUCT, UNARY, ATOM = range(1, 10)


def _infix(name: str, symbol: str, precedence: int, signature: Signature, t: Any, n: Any) -> Op:
    return Op(name, 2, symbol, precedence, signature, t, n, f"({{0}} {symbol} {{1}})")


def _call(name: str, arity: int, signature: Signature, t: Any, n: Any, source: str) -> Op:
    return Op(name, arity, None, ATOM, signature, t, n, source)


def _rounded(name: str) -> Callable[..., Any]:
    """torch's own function on numpy arrays: libraries differ in a last bit or a zero's sign, and that decides pairs."""
    function = getattr(torch, name)
    return lambda *args: function(*(torch.from_numpy(np.array(arg)) for arg in args)).numpy()


def _as_torch(name: str, whole: Callable[..., Any]) -> Callable[..., Any]:
    """`whole` on integers, torch's own function on floats."""
    floating = _rounded(name)
    return lambda *args: floating(*args) if np.asarray(args[0]).dtype.kind == "f" else whole(*args)


def _torch_cast(to: Type) -> Callable[[Any], Any]:
    return lambda x: x.to(to.torch)


def _numpy_cast(to: Type) -> Callable[[Any], Any]:
    return lambda x: np.asarray(x).astype(to.numpy)


def _unary(name: str, signature: Signature, numpy: Any) -> Op:
    return _call(name, 1, signature, getattr(torch, name), numpy, f"torch.{name}({{0}})")


def _cast_op(to: Type) -> Op:
    source = f"({{0}}).to({to.torch})"
    return _call(to.text, 1, _cast(to), _torch_cast(to), _numpy_cast(to), source)


_TABLE = [
    _infix("lt", "<", COMPARE, _compare, torch.lt, np.less),
    _infix("le", "<=", COMPARE, _compare, torch.le, np.less_equal),
    _infix("gt", ">", COMPARE, _compare, torch.gt, np.greater),
    _infix("ge", ">=", COMPARE, _compare, torch.ge, np.greater_equal),
    _infix("eq", "==", COMPARE, _compare, torch.eq, np.equal),
    _infix("ne", "!=", COMPARE, _compare, torch.ne, np.not_equal),
    _infix("or", "|", OR, _whole, torch.bitwise_or, np.bitwise_or),
    _infix("xor", "^", XOR, _whole, torch.bitwise_xor, np.bitwise_xor),
    _infix("and", "&", AND, _whole, torch.bitwise_and, np.bitwise_and),
    _infix("lshift", "<<", SHIFT, _integer, torch.bitwise_left_shift, np.left_shift),
    _infix("rshift", ">>", SHIFT, _integer, torch.bitwise_right_shift, np.right_shift),
    _infix("add", "+", SUM, _number, torch.add, np.add),
    _infix("sub", "-", SUM, _number, torch.sub, np.subtract),
    _infix("mul", "*", PRODUCT, _number, torch.mul, np.multiply),
    _infix("div", "/", PRODUCT, _real, torch.true_divide, np.true_divide),
    _infix("floordiv", "//", PRODUCT, _number, torch.floor_divide, _as_torch("floor_divide", np.floor_divide)),
    _infix("mod", "%", PRODUCT, _number, torch.remainder, _as_torch("remainder", np.remainder)),
    Op("neg", 1, "-", UNARY, _number, torch.neg, np.negative, "(-{0})"),
    Op("not", 1, "~", UNARY, _whole, torch.bitwise_not, np.invert, "(~{0})"),
    _unary("abs", _number, np.abs),
    _call("min", 2, _number, torch.minimum, _as_torch("minimum", np.minimum), "torch.minimum({0}, {1})"),
    _call("max", 2, _number, torch.maximum, _as_torch("maximum", np.maximum), "torch.maximum({0}, {1})"),
    _call("where", 3, _select, torch.where, np.where, "torch.where({0}, {1}, {2})"),
    _unary("floor", _number, np.floor),
    _unary("ceil", _number, np.ceil),
    _unary("round", _number, np.round),
    _unary("trunc", _number, np.trunc),
    _unary("sign", _number, _as_torch("sign", np.sign)),
    _unary("sqrt", _real, _rounded("sqrt")),
    _unary("exp", _real, _rounded("exp")),
    _unary("exp2", _real, _rounded("exp2")),
    _unary("log", _real, _rounded("log")),
    _unary("log2", _real, _rounded("log2")),
    _unary("sin", _real, _rounded("sin")),
    _unary("cos", _real, _rounded("cos")),
    _unary("tanh", _real, _rounded("tanh")),
    _unary("sigmoid", _real, _rounded("sigmoid")),
    _call("pow", 2, _real, torch.pow, _rounded("pow"), "torch.pow({0}, {1})"),
    *(_cast_op(to) for to in Type),
]

_TRITON = {
    "floordiv": ("floor_div({0}, {1})", "float_floor_div({0}, {1})"),
    "mod": ("floor_mod({0}, {1})", "float_mod({0}, {1})"),
    "min": ("tl.minimum({0}, {1})", "tl.minimum({0}, {1}, tl.PropagateNan.ALL)"),
    "max": ("tl.maximum({0}, {1})", "tl.maximum({0}, {1}, tl.PropagateNan.ALL)"),
    "where": ("tl.where({0}, {1}, {2})",) * 2,
    "sign": ("sign({0})",) * 2,
    "pow": ("power({0}, {1})",) * 2,
    "round": ("{0}", "round_even({0})"),
    "trunc": ("{0}", "trunc({0})"),
    "tanh": ("tanh({0})",) * 2,
    "div": ("divide({0}, {1})",) * 2,
    "sqrt": ("root({0})",) * 2,
    **{name: ("{0}", f"tl.{name}({{0}})") for name in ("floor", "ceil")},
    **{name: (f"tl.{name}({{0}})",) * 2 for name in ("abs", "exp", "exp2", "log", "log2", "sin", "cos", "sigmoid")},
}

OPS: dict[str, Op] = {op.name: replace(op, triton_source=_TRITON.get(op.name, (op.torch_source,) * 2)) for op in _TABLE}
INFIX: dict[str, Op] = {op.symbol: op for op in _TABLE if op.symbol and op.arity == 2}
NEGATED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}
SWAPPED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}
