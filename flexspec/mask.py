"""Masks: which query may attend to which key, as a value that composes with `& | ~ ^ -`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, overload

import torch

from .canvas import Canvas, CanvasPair, canvas_or_pair
from .combine import joined, merged, operand, renamed
from .errors import FlexSpecError
from .evaluate import evaluate
from .expr import (
    POSITIONS,
    SIZES,
    Expr,
    Load,
    Var,
    apply,
    const,
    input_,
    inputs_of,
    load,
    params_of,
    substitute,
    transform,
    var,
)
from .formula import Formula
from .inputs import make_sizes
from .ops import Type
from .predicate import Parameter, Predicate, read_signature
from .questions import Questions, choose_blocks
from .session import Session
from .trace import trace
from .traced import Traced
from .user_line import function_place, user_caret


@dataclass(frozen=True, eq=False, repr=False)
class Mask(Questions, Formula):
    """Which (b, h, q, kv) are kept. Made by `fs.mask`, `fs.from_mask_mod`, a pattern, or from other masks.

    >>> import flexspec as fs
    >>> near = fs.causal() & fs.sliding_window(1)
    >>> near.dense(4).int().tolist()[0][0]
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    """

    noun: ClassVar[str] = "a mask"
    argument: ClassVar[str] = "mask=..."
    document_kind = "mask"

    def __post_init__(self) -> None:
        super().__post_init__()  # torch tells a mask_mod by its four parameters
        object.__setattr__(self, "__signature__", inspect.signature(lambda b, h, q_idx, kv_idx: None))

    @staticmethod
    def check_result(expr: Expr, fn: object) -> Expr:
        if expr.type is not Type.BOOL:
            message = f"the predicate returns {expr.type.text}, not a boolean"
            raise FlexSpecError("FS007", message, fix="return a comparison, e.g. `x != 0`", where=function_place(fn))
        return expr

    def __call__(self, /, *args: Any, **values: Any) -> Any:
        """Bind parameters: `sink_window(window=512)`; positional ones in the order of their definition.

        With four positions (b, h, q_idx, kv_idx), as FlexAttention calls a mask_mod, it is the mask there instead.
        """
        if len(args) == 4 and not values and any(isinstance(arg, (Traced, torch.Tensor)) for arg in args):
            return self._at(*args)
        return self.given(*args, **values)

    def _at(self, *positions: Any) -> Any:
        if self.selections:
            message = f"`{self.label}` chooses blocks for a whole call, and has no value at a pair"
            raise FlexSpecError("FS010", message, fix="combine it with masks: mask & ...", where=user_caret())
        if any(isinstance(position, Traced) for position in positions):
            session = next((p.session for p in positions if isinstance(p, Traced) and p.session), None)
            exprs = [p.expr if isinstance(p, Traced) else const(p) for p in positions]
            defaults = {name: const(value) for name, value in self.defaults.items()}
            expr = substitute(self._held_by(session).flat, defaults)
            return Traced(substitute(expr, dict(zip(POSITIONS, exprs, strict=True))), session)
        values = {name: torch.as_tensor(value) for name, value in zip(POSITIONS, positions, strict=True)}
        return evaluate(self.flat, {**self.defaults, **self.tensors, **values}, checked=False)

    def _held_by(self, session: Session | None) -> Mask:
        """This mask with its tensors among those of a running trace, under names that are free there."""
        new: dict[str, str] = {}
        if session is None:
            message = f"{self.label} is called on values that no predicate computes"
            raise FlexSpecError("FS010", message, fix="call it inside a predicate", where=user_caret())
        for name, tensor in self.tensors.items():
            key = (name, id(tensor))
            if key not in session.adopted:
                session.adopted[key] = session.free_name(name)
                session.tensors[session.adopted[key]] = tensor
            new[name] = session.adopted[key]
        session.taken |= (inputs_of(self.expr).keys() - self.tensors.keys()) | params_of(self.expr).keys()
        return renamed(self, new)

    def _with(self, op: str, other: object, *, swapped: bool = False) -> Mask:
        if not callable(other):
            return NotImplemented
        other = from_mask_mod(refuse_other_kinds(other, Mask, "FS010"))
        a, b = (other, self) if swapped else (self, other)
        if op == "sub":
            return merged(Mask, lambda x, y: apply("and", x, apply("not", y)), a, b, joined(a, "-", b))
        symbol = {"and": "&", "or": "|", "xor": "^"}[op]
        return merged(Mask, lambda x, y: apply(op, x, y), a, b, joined(a, symbol, b))

    def __and__(self, other: object) -> Mask:
        return self._with("and", other)

    def __or__(self, other: object) -> Mask:
        return self._with("or", other)

    def __xor__(self, other: object) -> Mask:
        return self._with("xor", other)

    def __sub__(self, other: object) -> Mask:
        return self._with("sub", other)

    def __rand__(self, other: object) -> Mask:
        return self._with("and", other, swapped=True)

    def __ror__(self, other: object) -> Mask:
        return self._with("or", other, swapped=True)

    def __rxor__(self, other: object) -> Mask:
        return self._with("xor", other, swapped=True)

    def __rsub__(self, other: object) -> Mask:
        return self._with("sub", other, swapped=True)

    def __invert__(self) -> Mask:
        return replace(self, expr=apply("not", self.expr), label=f"~{operand(self.label)}", predicate=None)

    @property
    def T(self) -> Mask:
        """Queries and keys exchanged: the pair (q, kv) is kept where (kv, q) was. Tensors stay with their side.

        >>> import flexspec as fs
        >>> fs.causal().T.dense(3).int().tolist()[0][0]
        [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
        """
        pair = self.canvases and CanvasPair(self.canvases.kv, self.canvases.q)
        label = self.label.removesuffix(".T") if self.label.endswith(".T") else f"{operand(self.label)}.T"
        return replace(self, expr=exchanged(self.expr), label=label, canvases=pair, predicate=None)

    def __bool__(self) -> bool:
        message = "a mask is used as True or False"
        fix = "combine masks with `&`, `|`, `~`, `^`, `-`; compare them with a.equals(b, length)"
        raise FlexSpecError("FS002", message, fix=fix, where=user_caret())

    def dense(
        self,
        /,
        q_len: int,
        kv_len: int | None = None,
        *,
        batch: int | None = None,
        heads: int | None = None,
        **inputs: Any,
    ) -> torch.Tensor:
        """The mask on every pair: bool [batch, heads, q_len, kv_len], from the predicate itself.

        q_len: tokens.
        kv_len: tokens, default q_len.
        batch, heads: read off the inputs where they are left out, else 1.
        inputs: run-time parameters and tensors by name; `q` and `k` where blocks are chosen by them.

        Raises FS020 (a value is missing), FS021 (an unknown one), FS022, FS023, FS025 (their shapes, types, ranges),
        FS024 (an index leaves its tensor), FS030 (a size), FS032 (the canvas has another length), FS034, FS035
        (arithmetic).
        """
        sizes, values = make_sizes(q_len, kv_len, batch, heads), inputs
        if self.selections:
            sizes, values = choose_blocks(self, None, sizes, inputs)
        bound = self.bind(sizes, values, assume_one=True)
        sizes = bound.sizes
        shape = (sizes.batch or 1, sizes.heads or 1, sizes.q_len, sizes.kv_len)
        positions = {}
        for axis, (name, size) in enumerate(zip(POSITIONS, shape, strict=True)):
            positions[name] = torch.arange(size).view([size if axis == i else 1 for i in range(4)])
        tensors = {name: tensor.cpu() for name, tensor in bound.tensors.items()}
        return evaluate(self.flat, {**bound.all_numbers(), **tensors, **positions}).expand(shape).clone()

    @classmethod
    def constant(cls, keep: bool) -> Self:
        """The mask that keeps everything, or nothing."""
        return cls(const(keep), "everything()" if keep else "nothing()")


@overload
def mask(fn: Callable[..., Any]) -> Mask: ...
@overload
def mask(
    *, canvas: Canvas | None = None, q_canvas: Canvas | None = None, kv_canvas: Canvas | None = None
) -> Callable[[Callable[..., Any]], Mask]: ...
def mask(
    fn: Callable[..., Any] | None = None,
    *,
    canvas: Canvas | None = None,
    q_canvas: Canvas | None = None,
    kv_canvas: Canvas | None = None,
) -> Any:
    """Make a `Mask` of a predicate: `@fs.mask`, or `@fs.mask(canvas=video)` for `q.t`, `kv.w`.

    fn: a predicate. It takes any of `b, h, q, kv` (also `q_idx, kv_idx`, and the sizes `batch, heads, q_len, kv_len`)
        by name and returns a boolean expression. Keyword-only parameters are the pattern's own: bound by calling
        the mask, or given when it runs; an annotation is checked by pydantic.
    canvas: what gives `q` and `kv` named coordinates.
    q_canvas, kv_canvas: in its place where the sides differ: one frame over a cache of frames, tokens over pooled ones.

    Raises FS001 (parameters), FS023 (a score mod or a weight), FS032 (canvases); of the traced lines FS002 to FS006
    (Python's own words for logic and numbers), FS007 (no boolean is returned), FS008, FS009 (calls), FS010 (operands),
    FS011 (an axis).

    >>> import flexspec as fs
    >>> @fs.mask
    ... def sink_window(q, kv, *, window=1024, sink=4):
    ...     return (q >= kv) & ((q - kv < window) | (kv < sink))
    >>> sink_window(window=2, sink=1).dense(4).int().tolist()[0][0]
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]]
    """
    on = canvas_or_pair(canvas, q_canvas, kv_canvas)
    if fn is None:
        return lambda inner: Mask.from_predicate(read_signature(inner), on)
    refuse_other_kinds(fn, Mask)
    if isinstance(fn, Mask):
        return fn
    if not callable(fn):
        raise FlexSpecError("FS001", f"a predicate is a function, got {type(fn).__name__}", where=user_caret())
    return Mask.from_predicate(read_signature(fn), on)


def from_mask_mod(fn: Callable[..., Any]) -> Mask:
    """A FlexAttention `mask_mod(b, h, q_idx, kv_idx)` as it is, captured tensors and numbers included.

    fn: a function of four positions, or a Mask, which is returned.

    Raises FS001 (not four positional parameters), FS023 (a score mod or a weight), and what tracing raises, at its
    line (see `fs.mask`).

    >>> import torch
    >>> ids = torch.tensor([0, 0, 1])
    >>> from_mask_mod(lambda b, h, q_idx, kv_idx: ids[q_idx] == ids[kv_idx]).dense(3).int().tolist()[0][0]
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """
    refuse_other_kinds(fn, Mask)
    if isinstance(fn, Mask):
        return fn
    _four_positions(fn, POSITIONS, "mask_mod(b, h, q_idx, kv_idx)")
    expr, tensors = trace(fn, {name: var(name) for name in POSITIONS}, positional=True)
    if expr.type is Type.INT and isinstance(expr, type(const(1))):
        expr = const(bool(expr.value))
    parameters = {name: Parameter() for name in params_of(expr)}
    label = Predicate(fn, POSITIONS, {}).name
    return Mask(Mask.check_result(expr, fn), label, tensors, parameters)


def exchanged(expr: Expr) -> Expr:
    """An expression with queries and keys exchanged: positions, coordinates, lengths, and dims of tensors."""
    others = {"q": "kv", "kv": "q", "q_len": "kv_len", "kv_len": "q_len"}

    def visit(node: Expr) -> Expr:
        if isinstance(node, Var):
            side, dot, axis = node.name.partition(".")
            return var(others.get(side, side) + dot + axis)
        if isinstance(node, Load):
            dims = tuple(others.get(dim, dim) if dim in SIZES else dim for dim in node.input.dims)
            return load(input_(node.input.name, dims, node.input.type), node.index)
        return node

    return transform(expr, visit)


def refuse_other_kinds(value: Any, wanted: type[Formula], code: str = "FS023") -> Any:
    """The value, unless it is a formula of another kind than `wanted`, such as a score mod where a mask is needed."""
    if isinstance(value, Formula) and not isinstance(value, wanted):
        message = f"`{value.label}` is {value.noun}, and {wanted.noun} is needed here"
        both = ", ".join(sorted({wanted.argument, value.argument}))
        raise FlexSpecError(code, message, fix=f"keep them apart: fs.Attention({both})", where=user_caret())
    return value


def _four_positions(fn: Callable[..., Any], names: tuple[str, ...], form: str) -> None:
    if not callable(fn):
        raise FlexSpecError("FS001", f"{form} is a function, got {type(fn).__name__}", where=user_caret())
    try:
        inspect.signature(fn).bind(*names)
    except (TypeError, ValueError) as error:
        message = f"it cannot be called as {form}: {error}"
        fix, where = "use @fs.mask or @fs.score for predicates with parameters by name", function_place(fn)
        if (getattr(fn, "__module__", None) or "").partition(".")[0] == "flexspec":  # a pattern of ours, not called
            fix, where = f"call it: {getattr(fn, '__name__', 'pattern')}(...)", user_caret()
        raise FlexSpecError("FS001", message, fix=fix, where=where) from None
