"""The symbols that a predicate runs on, and how each operation on them becomes an expression.

`Traced` stands for a position (or anything computed from positions) while a predicate runs. A tensor that the
predicate indexes becomes a named input; Python numbers become constants. What torch calls mean stands in `torch_calls`,
which is given `build`, `lift` and `constant` and knows nothing of this file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from .errors import FlexSpecError
from .expr import Expr, Input, apply, const, fixed_size, load, var
from .narrow_dtypes import narrow_dtype, narrow_result
from .ops import NEGATED, OPS, Type
from .session import Session
from .torch_calls import MAX_ISIN, TorchCalls, unknown
from .user_line import truth_construct, user_caret, user_place

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

    def __pos__(self) -> Traced:
        return self

    def __pow__(self, other: Any) -> Any:
        return TORCH.power(self, other)

    def __rpow__(self, other: Any) -> Any:
        return TORCH.power(other, self)

    def wide(self) -> Traced:
        """The same, as torch has it in 32 or 64 bits."""
        return Traced(self.expr, self.session)


class TracedTensor:
    """A captured or named tensor indexed by fewer positions than it has dims."""

    def __init__(self, source: Input, index: tuple[Expr, ...], session: Session | None) -> None:
        self.source, self.index, self.session = source, index, session

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        while parts and (parts[-1] is Ellipsis or isinstance(parts[-1], slice) and parts[-1] == slice(None)):
            parts = parts[:-1]
        lifted = tuple(_index_part(part, self) for part in parts)
        session = next((s for s in map(session_of, parts) if s), self.session)
        full = (*self.index, *lifted)
        if len(full) < len(self.source.dims):
            return TracedTensor(self.source, full, session)
        held = session.tensors.get(self.source.name) if session else None
        narrow = None if held is None else narrow_dtype(held.dtype)
        return Traced(_located(lambda: load(self.source, full)), session, narrow)

    def elements(self) -> list[Traced]:
        """Each element of a row, which is a tensor without an index for its last dim. FS010, and FS008 for a row
        of none, of more than `MAX_ISIN` elements, or of nobody knows how many.
        """
        if len(self.source.dims) != len(self.index) + 1:
            raise self.unfinished()
        held = self.session.tensors.get(self.source.name) if self.session else None
        name, width = self.source.name, fixed_size(self.source.dims[-1]) if held is None else held.shape[-1]
        if width is not None and 1 <= width <= MAX_ISIN:
            return [self[place] for place in range(width)]
        if width is None:
            dims = (*self.source.dims[:-1], 8)
            message = f"the width of a row of `{name}` is not known: it is given when the pattern runs"
            fix = f"say it in the input's dims, as in {dims}, capture the tensor itself, or index a boolean table: "
            fix += f"{name}[b, h, q // block, kv // block]"
        else:
            message = f"a row of `{name}` has {width} elements; from 1 to {MAX_ISIN} can be listed"
            fix = "index a boolean table: keep[b, h, q // block, kv // block]"
        raise FlexSpecError("FS008", message, fix=fix, where=user_caret())

    def __iter__(self) -> Iterator[Traced]:
        return iter(self.elements())

    def __len__(self) -> int:
        return len(self.elements())

    def unfinished(self) -> FlexSpecError:
        """FS010 for a tensor where a number is needed."""
        name, dims = self.source.name, len(self.source.dims)
        message = f"`{name}` has {dims} dims and is used with {len(self.index)} indices"
        fix = f"index every dim, as in {name}[b, q]"
        if dims == len(self.index) + 1:
            fix += "; for membership in a row write torch.isin(kv, row) or (row == kv).any(-1)"
        return FlexSpecError("FS010", message, fix=fix, where=user_caret())

    def _refused(self, *_: object) -> Any:
        raise self.unfinished()

    __bool__ = __index__ = _refused
    __hash__ = object.__hash__

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return translate(func, args, kwargs or {})


class TracedRow:
    """A comparison with each element of a row, until `any` or `all` joins them to one value."""

    __slots__ = ("parts", "unjoined")

    def __init__(self, parts: list[Traced], unjoined: FlexSpecError) -> None:
        self.parts, self.unjoined = parts, unjoined
        if any(part.expr.type is not Type.BOOL for part in parts):
            raise unjoined

    def any(self, dim: int | None = None) -> Traced:
        return self._joined("or", dim)

    def all(self, dim: int | None = None) -> Traced:
        return self._joined("and", dim)

    def _joined(self, op: str, dim: int | None) -> Traced:
        if dim not in (None, -1, 0):  # a row has one
            raise self.unjoined
        joined: Traced = TORCH.balanced(op, self.parts)
        return joined

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name) if name.startswith("__") else self.unjoined

    def _refused(self, *_: object) -> Any:
        raise self.unjoined

    __bool__ = __index__ = __len__ = __iter__ = __getitem__ = _refused
    __hash__ = object.__hash__

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return translate(func, args, kwargs or {})


def _by_element(op: str, args: tuple[Any, ...]) -> TracedRow:
    """An operator on rows: a comparison of a tensor's row, or what joins the truths of such comparisons."""
    rows = [arg for arg in args if isinstance(arg, (TracedTensor, TracedRow))]
    unjoined = rows[0].unfinished() if isinstance(rows[0], TracedTensor) else rows[0].unjoined
    tensors = any(isinstance(row, TracedTensor) for row in rows)
    if op not in NEGATED and (tensors or op not in ("and", "or", "xor", "not")):
        raise unjoined
    columns = [row.elements() if isinstance(row, TracedTensor) else row.parts for row in rows]
    if len({len(column) for column in columns}) > 1:
        raise unjoined
    by_row = dict(zip(map(id, rows), columns, strict=True))
    places = range(len(columns[0]))
    return TracedRow([build(op, *(by_row[id(x)][i] if id(x) in by_row else x for x in args)) for i in places], unjoined)


def _operator(op: str, swapped: bool) -> Callable[..., Any]:
    def method(self: Any, *others: Any) -> Any:
        return build(op, *others, self) if swapped else build(op, self, *others)

    return method


for _op in OPS.values():
    for _class in (Traced, TracedTensor, TracedRow):
        if _op.method:
            setattr(_class, f"__{_op.method}__", _operator(_op.name, False))
        if _op.method and _op.arity == 2 and not _op.negated:
            setattr(_class, f"__r{_op.method}__", _operator(_op.name, True))


def _index_part(part: Any, tensor: TracedTensor) -> Expr:
    if isinstance(part, slice) or part is None or part is Ellipsis or isinstance(part, (list, str)):
        message = f"{tensor.source.name} is indexed by {part!r}"
        raise FlexSpecError("FS008", message, fix="index every dim by one position", where=user_caret())
    return lift(part, tensor.session)


def session_of(value: Any) -> Session | None:
    if isinstance(value, TracedRow):
        return session_of(value.parts[0])
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
    if isinstance(value, TracedTensor):
        raise value.unfinished()
    if isinstance(value, TracedRow):
        raise value.unjoined
    kind = type(value).__name__
    fix = "combine masks outside predicates: mask & other" if kind == "Mask" else "use numbers, positions and tensors"
    raise FlexSpecError("FS010", f"a {kind} stands where a number is needed", fix=fix, where=user_caret())


def _located(make: Callable[[], Expr]) -> Expr:
    try:
        return make()
    except FlexSpecError as error:
        if error.where is None:
            raise FlexSpecError(error.code, error.message, fix=error.fix, where=user_caret()) from None
        raise


def build(op: str, *args: Any) -> Any:
    """Apply an operator of the table to traced values and numbers, as torch would."""
    if any(isinstance(arg, (TracedTensor, TracedRow)) for arg in args):
        return _by_element(op, args)
    session = next((s for s in map(session_of, args) if s), None)
    lifted = [lift(arg, session) for arg in args]
    if len(lifted) == 2 and all(part.type is Type.BOOL for part in lifted):
        op = {"add": "or", "mul": "and", "max": "or", "min": "and"}.get(op, op)  # torch on two booleans
        if op == "sub":
            message = "two booleans are subtracted"
            raise FlexSpecError("FS010", message, fix="write `a & ~b` or `a ^ b`", where=user_caret())
    narrow = narrow_result(op, args, [part.type for part in lifted]) if session and session.as_torch else None
    return Traced(_located(lambda: apply(op, *lifted)), session, narrow)


def constant(value: float, like: Any) -> Traced:
    """A number as a traced value, in the trace that `like` belongs to."""
    return Traced(const(value), session_of(like))


TORCH = TorchCalls(build, lift, constant)
CALLS = TORCH.calls()
METHODS = {"where": lambda x, condition, other: TORCH.where(condition, x, other)}
"""Tensor methods whose operands stand in another order than the function's."""
ATTRIBUTES: dict[str, Callable[[Traced], Any]] = {
    "dtype": lambda x: x.expr.type.torch,
    "device": lambda x: torch.device("cpu"),
    "shape": lambda x: torch.Size([]),
    "ndim": lambda x: 0,
    "requires_grad": lambda x: False,
}


def attribute(traced: Traced, name: str) -> Any:
    """An axis (`q.t`), a tensor method (`q.abs()`) or a tensor attribute (`q.device`)."""
    session = traced.session
    expr = traced.expr
    axes = session.axes.get(str(expr), ()) if session is not None and expr in (var("q"), var("kv")) else ()
    if name in axes:
        return Traced(var(f"{expr}.{name}"), session)
    if name in ATTRIBUTES:
        return ATTRIBUTES[name](traced)
    if name in METHODS:
        return functools.partial(METHODS[name], traced)
    if name in CALLS:
        return functools.partial(CALLS[name], traced)
    if name.startswith("__"):
        raise AttributeError(name)
    if expr in (var("q"), var("kv")) and session is not None and len(name) < 3:
        has = f"its canvas has the axes {', '.join(axes)}" if axes else "it has no canvas"
        fix = "give the predicate a canvas: @fs.mask(canvas=fs.Canvas(t=..., h=..., w=...))"
        fix = "take one of these axes" if axes else fix
        raise FlexSpecError("FS011", f"`{expr}.{name}`: {has}", fix=fix, where=user_caret())
    raise unknown(name)


def has_traced(value: Any) -> bool:
    """Is it a traced value, or a list that holds one?"""
    if isinstance(value, (tuple, list)):
        return any(has_traced(part) for part in value)
    return isinstance(value, (Traced, TracedTensor, TracedRow))


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
            raise unknown(name)
        return TracedTensor(session.capture(tensor), (), session)[index]
    bare = name.strip("_")
    reverse = name.startswith("__r") and bare[1:] in CALLS and bare != "rshift"
    if reverse:
        bare, args = bare[1:], args[::-1]
    method = func is torch.Tensor.where  # x.where(condition, other)
    call = METHODS[bare] if method else CALLS.get(bare)
    if call is None or name.endswith("_") != name.startswith("_"):  # `x.add_(q)` changes x
        raise unknown(bare)
    return call(*args, **kwargs)
