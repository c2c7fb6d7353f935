"""Run a predicate on symbols and keep the expression that it computes.

`Traced` stands for a position (or anything computed from positions) while a predicate runs. A tensor that the
predicate indexes becomes a named input; Python numbers become constants.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from . import torch_calls
from .captures import tensor_names
from .errors import FlexSpecError
from .expr import Expr, Input, apply, const, input_, load, var
from .narrow_dtypes import narrow_dtype, narrow_result
from .ops import NEGATED, OPS, Type
from .syntax import CONSTANTS, leaf
from .user_line import Place, raised_at, truth_construct, user_caret, user_place

_TRUTH = {
    "and": ("FS002", "`and` between expressions keeps only one of them", "write `a & b`, each in parentheses"),
    "or": ("FS002", "`or` between expressions keeps only one of them", "write `a | b`, each in parentheses"),
    "not": ("FS003", "`not` on an expression", "write `~(...)`"),
    "if": ("FS004", "a condition that depends on positions or run-time values", "write `torch.where(cond, a, b)`"),
    "while": ("FS004", "a loop that depends on positions or run-time values", "write it without a loop"),
    "tight": ("FS005", "`&`, `|` and `^` bind tighter than comparisons", "write `(a < b) & (c < d)`"),
    "chain": ("FS005", "a chained comparison keeps only its last part", "write `(a < b) & (b < c)`"),
    "bool": ("FS006", "an expression used as True or False", "use `&`, `|`, `~`, torch.where or torch.isin"),
}


@dataclass(slots=True)
class Session:
    """What one trace collects: the captured tensors by name, and the mistakes."""

    fn: object
    axes: tuple[str, ...] = ()
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    mistakes: list[FlexSpecError] = field(default_factory=list)
    places: set[Place | None] = field(default_factory=set)
    taken: set[str] = field(default_factory=set)
    refused: FlexSpecError | None = None  # numpy replaces it by an error of its own
    adopted: dict[tuple[str, int], str] = field(default_factory=dict)
    as_torch: bool = False  # a mask_mod, which runs as it is: refuse what torch computes otherwise
    _known: dict[int, str] | None = None

    def capture(self, tensor: torch.Tensor) -> Input:
        """The input that stands for a tensor, named as the predicate names it."""
        own = {name: known for name, known in self.tensors.items() if name not in self.adopted.values()}
        name = next((name for name, known in own.items() if known is tensor), None)
        if name is None:
            if self._known is None:
                self._known = tensor_names(self.fn)
            base = self._known.get(id(tensor), "tensor")
            name = self.free_name(base if base.isascii() and base.isidentifier() else "tensor")
            self.tensors[name] = tensor
        return input_(name, ("_",) * tensor.dim(), _tensor_type(tensor))

    def free_name(self, base: str) -> str:
        """`base`, or `base_2` and so on where that name means something else."""
        name, number = base, 2
        while name in self.tensors.keys() | self.taken or name in OPS or name in CONSTANTS or leaf(name):
            name, number = f"{base}_{number}", number + 1
        return name

    def mistake(self, error: FlexSpecError, place: Place | None) -> None:
        """Keep a mistake and go on; the second visit of one place (a loop) ends the trace."""
        if place in self.places:
            raise FlexSpecError.collect(self.mistakes)
        self.places.add(place)
        self.mistakes.append(error)


def _tensor_type(tensor: torch.Tensor) -> Type:
    try:
        return Type.of_dtype(tensor.dtype)
    except TypeError:
        seen = f"a tensor of dtype {tensor.dtype} in a predicate"
        raise FlexSpecError("FS010", seen, fix="use bool, integer or real", where=user_caret()) from None


class Traced:
    """A value that a predicate computes with: an expression that looks like a zero-dim tensor."""

    __slots__ = ("expr", "session", "narrow")
    __array_ufunc__ = None  # so that a numpy number on the left leaves the operator to us

    def __init__(self, expr: Expr, session: Session | None = None, narrow: torch.dtype | None = None) -> None:
        self.expr = expr
        self.session = session
        self.narrow = narrow

    def __repr__(self) -> str:
        return f"<{self.expr}>"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return translate(func, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        return attribute(self, name)

    def __bool__(self) -> bool:
        place = user_place()
        code, message, fix = _TRUTH[truth_construct(place)]
        error = FlexSpecError(code, message, fix=fix, where=place.caret() if place else None)
        if self.session is None:
            raise error
        self.session.mistake(error, place)
        return True

    def _not_a_number(self, *_: object) -> Any:
        fix = "index torch tensors, not lists or arrays; loop over numbers that are bound, not traced"
        message = "a traced expression is used as a plain Python number, key or sequence"
        error = FlexSpecError("FS006", message, fix=fix, where=user_caret())
        if self.session is not None:
            self.session.refused = error
        raise error

    __index__ = __int__ = __float__ = __complex__ = __len__ = __iter__ = __hash__ = _not_a_number
    __contains__ = __round__ = __trunc__ = __floor__ = __ceil__ = _not_a_number

    def __getitem__(self, index: Any) -> Any:
        message = "a position is indexed: it is one number, not a tensor"
        raise FlexSpecError("FS010", message, where=user_caret())

    def __abs__(self) -> Traced:
        return build("abs", self)

    def __neg__(self) -> Traced:
        return build("neg", self)

    def __pos__(self) -> Traced:
        return self

    def __invert__(self) -> Traced:
        return build("not", self)

    def __pow__(self, other: Any) -> Any:
        return torch_calls.power(self, other)

    def __rpow__(self, other: Any) -> Any:
        return torch_calls.power(other, self)


def _operator(op: str, swapped: bool) -> Callable[[Any, Any], Traced]:
    def method(self: Traced, other: Any) -> Traced:
        return build(op, other, self) if swapped else build(op, self, other)

    return method


for _op in NEGATED:
    setattr(Traced, f"__{_op}__", _operator(_op, False))
for _op, _method in {"div": "truediv", "mod": "mod", "floordiv": "floordiv", "lshift": "lshift"}.items():
    setattr(Traced, f"__{_method}__", _operator(_op, False))
    setattr(Traced, f"__r{_method}__", _operator(_op, True))
for _op in ("add", "sub", "mul", "and", "or", "xor", "rshift"):
    setattr(Traced, f"__{_op}__", _operator(_op, False))
    setattr(Traced, f"__r{_op}__", _operator(_op, True))


class TracedTensor:
    """A captured or named tensor indexed by fewer positions than it has dims."""

    def __init__(self, source: Input, index: tuple[Expr, ...], session: Session | None) -> None:
        self.source, self.index, self.session = source, index, session

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        lifted = tuple(_index_part(part, self) for part in parts)
        session = next((s for s in map(session_of, parts) if s), self.session)
        full = (*self.index, *lifted)
        if len(full) < len(self.source.dims):
            return TracedTensor(self.source, full, session)
        held = session.tensors.get(self.source.name) if session else None
        narrow = None if held is None else narrow_dtype(held.dtype)
        return Traced(_located(lambda: load(self.source, full)), session, narrow)

    def _unfinished(self, *_: object) -> Any:
        name, dims = self.source.name, len(self.source.dims)
        message = f"`{name}` has {dims} dims and is used with {len(self.index)} indices"
        raise FlexSpecError("FS010", message, fix=f"index every dim, as in {name}[b, q]", where=user_caret())

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return next(arg for arg in args if isinstance(arg, TracedTensor))._unfinished()


for _method in "lt le gt ge eq ne add sub mul floordiv truediv mod and or xor invert neg abs bool index".split():
    setattr(TracedTensor, f"__{_method}__", TracedTensor._unfinished)
for _method in "add sub mul floordiv truediv mod and or xor".split():
    setattr(TracedTensor, f"__r{_method}__", TracedTensor._unfinished)
TracedTensor.__hash__ = object.__hash__  # type: ignore[method-assign]


def _index_part(part: Any, tensor: TracedTensor) -> Expr:
    if isinstance(part, slice) or part is None or part is Ellipsis or isinstance(part, (list, str)):
        message = f"{tensor.source.name} is indexed by {part!r}"
        raise FlexSpecError("FS008", message, fix="index every dim by one position", where=user_caret())
    return lift(part, tensor.session)


def session_of(value: Any) -> Session | None:
    return value.session if isinstance(value, (Traced, TracedTensor)) else None


def lift(value: Any, session: Session | None) -> Expr:
    """The expression of a traced value, a Python number or a zero-dim tensor. FS010 for anything else."""
    if isinstance(value, Traced):
        return value.expr
    if isinstance(value, (bool, int, float)):
        return const(value)
    if isinstance(value, torch.Tensor) and value.dim() == 0 and session is not None:
        return load(session.capture(value), ())
    if isinstance(value, torch.Tensor):
        message = f"a tensor of shape {tuple(value.shape)} is used without an index"
        raise FlexSpecError("FS010", message, fix="index it, as in ids[b, q]", where=user_caret())
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:  # a numpy number
        return const(value.item())
    kind = type(value).__name__
    fix = "index it by a position" if kind in ("Input", "TracedTensor") else "use numbers, positions and tensors"
    if kind == "Mask":
        fix = "combine masks outside predicates: mask & other"
    raise FlexSpecError("FS010", f"a {kind} stands where a number is needed", fix=fix, where=user_caret())


def _located(make: Callable[[], Expr]) -> Expr:
    try:
        return make()
    except FlexSpecError as error:
        if error.where is None:
            raise FlexSpecError(error.code, error.message, fix=error.fix, where=user_caret()) from None
        raise


def build(op: str, *args: Any) -> Traced:
    """Apply an operator of the table to traced values and numbers, as torch would."""
    session = next((s for s in map(session_of, args) if s), None)
    lifted = [lift(arg, session) for arg in args]
    if len(lifted) == 2 and all(part.type is Type.BOOL for part in lifted):
        op = {"add": "or", "mul": "and", "max": "or", "min": "and"}.get(op, op)  # torch on two booleans
        if op == "sub":
            message = "two booleans are subtracted"
            raise FlexSpecError("FS010", message, fix="write `a & ~b` or `a ^ b`", where=user_caret())
    narrow = narrow_result(op, args, [part.type for part in lifted]) if session and session.as_torch else None
    return Traced(_located(lambda: apply(op, *lifted)), session, narrow)


def attribute(traced: Traced, name: str) -> Any:
    """An axis (`q.t`), a tensor method (`q.abs()`) or a tensor attribute (`q.device`)."""
    session = traced.session
    expr = traced.expr
    if session is not None and name in session.axes and expr in (var("q"), var("kv")):
        return Traced(var(f"{expr}.{name}"), session)
    if name in torch_calls.ATTRIBUTES:
        return torch_calls.ATTRIBUTES[name](traced)
    if name in torch_calls.METHODS:
        return functools.partial(torch_calls.METHODS[name], traced)
    if name in torch_calls.CALLS:
        return functools.partial(torch_calls.CALLS[name], traced)
    if name.startswith("__"):
        raise AttributeError(name)
    if expr in (var("q"), var("kv")) and session is not None and len(name) < 3:
        has = f"its canvas has the axes {', '.join(session.axes)}" if session.axes else "it has no canvas"
        fix = "give the predicate a canvas: @fs.mask(canvas=fs.Canvas(t=..., h=..., w=...))"
        fix = "take one of these axes" if session.axes else fix
        raise FlexSpecError("FS011", f"`{expr}.{name}`: {has}", fix=fix, where=user_caret())
    raise torch_calls.unknown(name)


def _has_traced(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_has_traced(part) for part in value)
    return isinstance(value, (Traced, TracedTensor))


def translate(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """A torch function on traced values; FS008 with the line and a way out for what has no translation."""
    name = getattr(func, "__name__", str(func))
    if name in ("__getitem__", "getitem"):
        tensor, index = args
        if not isinstance(tensor, torch.Tensor):
            return tensor[index]
        parts = index if isinstance(index, tuple) else (index,)
        session = next((s for s in map(session_of, parts) if s), None)
        if session is None:
            raise torch_calls.unknown(name)
        return TracedTensor(session.capture(tensor), (), session)[index]
    bare = name.strip("_")
    reverse = name.startswith("__r") and bare[1:] in torch_calls.CALLS and bare != "rshift"
    if reverse:
        bare, args = bare[1:], args[::-1]
    method = func is torch.Tensor.where  # x.where(condition, other)
    call = torch_calls.METHODS[bare] if method else torch_calls.CALLS.get(bare)
    if call is None or name.endswith("_") != name.startswith("_"):  # `x.add_(q)` changes x
        raise torch_calls.unknown(bare)
    return call(*args, **kwargs)


class _Tracing(TorchFunctionMode):
    """Sees every torch call of a predicate, also `tensor[position]`, which no operand can intercept."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _has_traced(args) or any(_has_traced(value) for value in kwargs.values()):
            return translate(func, args, kwargs)
        torch_calls.refuse_random(getattr(func, "__name__", ""))
        return func(*args, **kwargs)


def run(
    fn: Callable[..., Any], arguments: Mapping[str, Any], *, positional: bool, axes: tuple[str, ...] = ()
) -> tuple[Expr, dict[str, torch.Tensor]]:
    """Trace `fn` on `arguments` (by name, or by position in their order).

    An `Expr` among the arguments is traced; anything else is passed as it is. Returns the expression and the
    captured tensors by name. Raises every mistake found, together.
    """
    first = _once(fn, arguments, positional, axes)
    second = _once(fn, arguments, positional, axes)
    if first[0] is not second[0] or not all(_same(first[1][name], second[1][name]) for name in first[1]):
        message = f"two runs of `{getattr(fn, '__name__', fn)}` computed different expressions"
        fix = "draw random values before, into a tensor, and index that"
        raise FlexSpecError("FS009", message, fix=fix)
    return first


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or torch.equal(a.nan_to_num(), b.nan_to_num())


def _once(
    fn: Callable[..., Any], arguments: Mapping[str, Any], positional: bool, axes: tuple[str, ...]
) -> tuple[Expr, dict[str, torch.Tensor]]:
    session = Session(fn, axes, as_torch=positional and "score" not in arguments)
    values = {k: Traced(v, session) if isinstance(v, Expr) else v for k, v in arguments.items()}
    try:
        with _Tracing():
            result = fn(*values.values()) if positional else fn(**values)
            expr = None if result is None else lift(result, session)
    except FlexSpecError as error:
        raise FlexSpecError.collect([*session.mistakes, error] if error not in session.mistakes else [error]) from None
    except Exception as error:
        if session.mistakes or session.refused:
            refused = [session.refused] if session.refused else []
            raise FlexSpecError.collect([*session.mistakes, *refused]) from error
        message = f"the predicate raised {type(error).__name__}: {error}"
        raise FlexSpecError("FS008", message, where=raised_at(error.__traceback__)) from error
    if session.mistakes:
        raise FlexSpecError.collect(session.mistakes)
    if expr is None:
        raise FlexSpecError("FS007", "the predicate returns nothing", fix="add a return statement")
    return expr, session.tensors
