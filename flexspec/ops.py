"""The one table of operators: a row holds everything about an operator that is data.

What must be code stands in one table each, under the same names; a test compares their keys with the rows:
`BOUNDS` (compiler/blocks/intervals), `LIMITS` and `DERIVATIVES` (compiler/simplify). A language that expressions are
printed in is one column, a key of `printed`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .errors import FlexSpecError
from .user_line import user_caret
from .value_types import (
    Dtype,
    Signature,
    Type,
    comparison,
    conversion,
    integer,
    logical,
    number,
    real,
    selection,
)

COMPARE, OR, XOR, AND, SHIFT, SUM, PRODUCT, UNARY, ATOM = range(1, 10)
Form = str | tuple[str, str]
"""A template for every operand type, or two: for integers and booleans, for floats."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Op:
    """One operator. `torch` and `numpy` evaluate on operands already converted to the operand types."""

    name: str
    arity: int
    symbol: str | None = None
    """Infix or prefix text; None: printed as a call `name(...)`."""
    precedence: int = ATOM
    signature: Signature
    """Operand types to (types to convert the operands to, result type); TypeError where illegal."""
    torch: Callable[..., Any]
    numpy: Callable[..., Any]
    printed: Mapping[str, tuple[str, str]]
    """By language: templates over printed operands, for integers and booleans, for floats. Read them by `source`."""
    traced: tuple[str, ...] = ()
    """Names of the torch functions and tensor methods that mean it, beside its own."""
    method: str | None = None
    """Python's special method, without its underscores."""
    negated: str | None = None
    """Of a comparison: the one that is true where this is false; not where an operand is nan."""
    swapped: str | None = None
    """Of a comparison: the one that says the same of exchanged operands."""
    exact_in: frozenset[Dtype] = frozenset()
    """The dtypes of 8 and 16 bits in which torch computes what the language does in 32 and 64."""
    wraps: bool = False
    """May an integer result leave 64 bits where no operand does?"""
    sympy: str | Callable[..., Any] | None = None
    """The name of sympy's function, or a function of sympy's values; None: printed as a call."""

    def source(self, language: str, kind: Type) -> str:
        """The template in "torch" or "triton" for operands of a type. FS042 where the language has none."""
        if language not in self.printed:
            message = f"`{self.symbol or self.name}` cannot be printed as {language}"
            raise FlexSpecError("FS042", message, fix="take another backend", where=user_caret())
        return self.printed[language][kind > Type.INT]


HALF = frozenset((torch.float16, torch.bfloat16))
SIGNED = frozenset((torch.int8, torch.int16))
SHORT = SIGNED | {torch.uint8}
NARROW = SHORT | HALF


def _op(
    name: str,
    arity: int,
    signature: Signature,
    t: Any,
    n: Any,
    *,
    languages: Mapping[str, Form],
    traced: str = "",
    **row: Any,
) -> Op:
    """A row. t, n: what evaluates it in torch and in numpy."""
    printed = {language: (form, form) if isinstance(form, str) else form for language, form in languages.items()}
    names = tuple(traced.split())
    return Op(name=name, arity=arity, signature=signature, torch=t, numpy=n, printed=printed, traced=names, **row)


def _infix(name: str, symbol: str, precedence: int, signature: Signature, t: Any, n: Any, **row: Any) -> Op:
    """Between its operands; in Triton too, unless its symbol means something else there (`triton=`)."""
    form = f"({{0}} {symbol} {{1}})"
    languages = {"torch": form, "triton": row.pop("triton", form)}
    row = {"method": name} | row
    return _op(name, 2, signature, t, n, symbol=symbol, precedence=precedence, languages=languages, **row)


def _compare(name: str, symbol: str, t: Any, n: Any, sympy: str, **row: Any) -> Op:
    """No comparison rounds or wraps, in any dtype."""
    return _infix(name, symbol, COMPARE, comparison, t, n, sympy=sympy, exact_in=NARROW, **row)


def _prefix(name: str, symbol: str, signature: Signature, t: Any, n: Any, **row: Any) -> Op:
    languages = dict.fromkeys(("torch", "triton"), f"({symbol}{{0}})")
    return _op(name, 1, signature, t, n, symbol=symbol, precedence=UNARY, languages=languages, **row)


def _call(name: str, arity: int, signature: Signature, t: Any, n: Any, triton: Form, **row: Any) -> Op:
    """A call, in torch's source of the very function that evaluates it."""
    operands = ", ".join(f"{{{place}}}" for place in range(arity))
    languages = {"torch": f"torch.{t.__name__}({operands})", "triton": triton}
    return _op(name, arity, signature, t, n, languages=languages, **row)


def _rounding(name: str, n: Any, triton: str, **row: Any) -> Op:
    """To a whole number, which every float dtype holds; an integer is one already."""
    return _call(name, 1, number, getattr(torch, name), n, ("{0}", triton), exact_in=NARROW, **row)


def _function(name: str, triton: str, **row: Any) -> Op:
    """A function of a real number; that of a short integer torch computes in 32 bits."""
    return _call(name, 1, real, getattr(torch, name), _rounded(name), triton, exact_in=SHORT, **row)


def _cast(to: Type, traced: str = "") -> Op:
    """A conversion. A Triton kernel's integers have 32 or 64 bits, so its printer writes conversions itself."""
    return _op(
        to.text,
        1,
        conversion(to),
        lambda x: x.to(to.torch),
        lambda x: np.asarray(x).astype(to.numpy),
        languages={"torch": f"({{0}}).to({to.torch})"},
        traced=traced,
    )


def _rounded(name: str) -> Callable[..., Any]:
    """torch's own function on numpy arrays: libraries differ in a last bit or a zero's sign, and that decides pairs."""
    function = getattr(torch, name)
    return lambda *args: function(*(torch.from_numpy(np.array(arg)) for arg in args)).numpy()


def _as_torch(name: str, whole: Callable[..., Any]) -> Callable[..., Any]:
    """`whole` on integers, torch's own function on floats."""
    floating = _rounded(name)
    return lambda *args: floating(*args) if np.asarray(args[0]).dtype.kind == "f" else whole(*args)


def sqrt(x: torch.Tensor) -> torch.Tensor:
    """Rounded to nearest, as on a GPU and in compiled code. On a CPU torch's own may miss that by a bit, depending on
    how many numbers it takes at once; the root in 64 bits is never so near to the middle of two floats that it matters.
    """
    return torch.sqrt(x.double()).to(x.dtype if x.is_floating_point() else torch.float32)


_MIN = ("tl.minimum({0}, {1})", "tl.minimum({0}, {1}, tl.PropagateNan.ALL)")
_MAX = ("tl.maximum({0}, {1})", "tl.maximum({0}, {1}, tl.PropagateNan.ALL)")
_DOWN = ("floor_div({0}, {1})", "float_floor_div({0}, {1})")
_REST = ("floor_mod({0}, {1})", "float_mod({0}, {1})")
_minimum, _maximum = _as_torch("minimum", np.minimum), _as_torch("maximum", np.maximum)
_floor_divide, _remainder = _as_torch("floor_divide", np.floor_divide), _as_torch("remainder", np.remainder)
_left, _right = torch.bitwise_left_shift, torch.bitwise_right_shift

# fmt: off
_ROWS = [
    _compare("lt", "<", torch.lt, np.less, "StrictLessThan", traced="less", negated="ge", swapped="gt"),
    _compare("le", "<=", torch.le, np.less_equal, "LessThan", traced="less_equal", negated="gt", swapped="ge"),
    _compare("gt", ">", torch.gt, np.greater, "StrictGreaterThan", traced="greater", negated="le", swapped="lt"),
    _compare("ge", ">=", torch.ge, np.greater_equal, "GreaterThan", traced="greater_equal", negated="lt", swapped="le"),
    _compare("eq", "==", torch.eq, np.equal, "Equality", negated="ne", swapped="eq"),
    _compare("ne", "!=", torch.ne, np.not_equal, "Unequality", traced="not_equal", negated="eq", swapped="ne"),
    _infix("or", "|", OR, logical, torch.bitwise_or, np.bitwise_or, traced="bitwise_or", exact_in=SHORT, sympy="Or"),
    _infix("xor", "^", XOR, logical, torch.bitwise_xor, np.bitwise_xor, traced="bitwise_xor", exact_in=SHORT,
           sympy="Xor"),
    _infix("and", "&", AND, logical, torch.bitwise_and, np.bitwise_and, traced="bitwise_and", exact_in=SHORT,
           sympy="And"),
    _infix("lshift", "<<", SHIFT, integer, _left, np.left_shift, traced="bitwise_left_shift", wraps=True),
    _infix("rshift", ">>", SHIFT, integer, _right, np.right_shift, traced="bitwise_right_shift", exact_in=SHORT),
    _infix("add", "+", SUM, number, torch.add, np.add, wraps=True, sympy=operator.add),
    _infix("sub", "-", SUM, number, torch.sub, np.subtract, traced="subtract", wraps=True, sympy=operator.sub),
    _infix("mul", "*", PRODUCT, number, torch.mul, np.multiply, traced="multiply", wraps=True, sympy=operator.mul),
    _infix("div", "/", PRODUCT, real, torch.true_divide, np.true_divide, triton="divide({0}, {1})",
           traced="true_divide", method="truediv", exact_in=SHORT, sympy=operator.truediv),
    _infix("floordiv", "//", PRODUCT, number, torch.floor_divide, _floor_divide, triton=_DOWN,
           traced="floor_divide", exact_in=SHORT, wraps=True, sympy=operator.floordiv),
    _infix("mod", "%", PRODUCT, number, torch.remainder, _remainder, triton=_REST,
           traced="remainder", exact_in=SHORT, sympy="Mod"),
    _prefix("neg", "-", number, torch.neg, np.negative, traced="negative", method="neg", exact_in=HALF, wraps=True,
            sympy=operator.neg),
    _prefix("not", "~", logical, torch.bitwise_not, np.invert, traced="bitwise_not", method="invert", exact_in=SIGNED,
            sympy="Not"),
    _call("abs", 1, number, torch.abs, np.abs, "tl.abs({0})", traced="absolute", method="abs", exact_in=HALF,
          wraps=True, sympy="Abs"),
    _call("min", 2, number, torch.minimum, _minimum, _MIN, traced="minimum", exact_in=NARROW, sympy="Min"),
    _call("max", 2, number, torch.maximum, _maximum, _MAX, traced="maximum", exact_in=NARROW, sympy="Max"),
    _call("where", 3, selection, torch.where, np.where, "tl.where({0}, {1}, {2})", exact_in=NARROW),
    _rounding("floor", np.floor, "tl.floor({0})", sympy="floor"),
    _rounding("ceil", np.ceil, "tl.ceil({0})", sympy="ceiling"),
    _rounding("round", np.round, "round_even({0})"),
    _rounding("trunc", np.trunc, "trunc({0})"),
    _call("sign", 1, number, torch.sign, _as_torch("sign", np.sign), "sign({0})", exact_in=NARROW, sympy="sign"),
    _call("sqrt", 1, real, sqrt, np.sqrt, "root({0})", exact_in=SHORT, sympy="sqrt"),
    _function("exp", "tl.exp({0})", sympy="exp"),
    _function("exp2", "tl.exp2({0})", traced="special_exp2"),
    _function("log", "tl.log({0})", sympy="log"),
    _function("log2", "tl.log2({0})"),
    _function("sin", "tl.sin({0})", sympy="sin"),
    _function("cos", "tl.cos({0})", sympy="cos"),
    _function("tanh", "tanh({0})", sympy="tanh"),
    _function("sigmoid", "tl.sigmoid({0})", traced="special_expit"),
    _function("erf", "tl.erf({0})", traced="special_erf", sympy="erf"),
    _call("pow", 2, real, torch.pow, _rounded("pow"), "power({0}, {1})", sympy=operator.pow),
    _cast(Type.BOOL),
    _cast(Type.INT, traced="long"),
    _cast(Type.FLOAT),
    _cast(Type.DOUBLE),
]
# fmt: on

OPS: dict[str, Op] = {op.name: op for op in _ROWS}
INFIX: dict[str, Op] = {op.symbol: op for op in _ROWS if op.symbol and op.arity == 2}
CASTS: dict[str, Type] = {kind.text: kind for kind in Type}
NEGATED: dict[str, str] = {op.name: op.negated for op in _ROWS if op.negated}
SWAPPED: dict[str, str] = {op.name: op.swapped for op in _ROWS if op.swapped}
