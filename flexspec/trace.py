"""Run a predicate on symbols and keep the expression that it computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .errors import FlexSpecError
from .expr import Expr
from .torch_calls import refuse_random
from .traced import Session, Traced, has_traced, lift, translate
from .user_line import function_place, raised_at


class _Tracing(TorchFunctionMode):
    """Sees every torch call of a predicate, also `tensor[position]`, which no operand can intercept."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if has_traced(args) or any(has_traced(value) for value in kwargs.values()):
            return translate(func, args, kwargs)
        refuse_random(getattr(func, "__name__", ""))
        return func(*args, **kwargs)


Axes = Mapping[str, tuple[str, ...]]


def trace(
    fn: Callable[..., Any], arguments: Mapping[str, Any], *, positional: bool, axes: Axes | None = None
) -> tuple[Expr, dict[str, torch.Tensor]]:
    """Trace `fn` on `arguments` (by name, or by position in their order).

    axes: of the queries' and the keys' canvas, by side.

    An `Expr` among the arguments is traced; anything else is passed as it is. Returns the expression and the
    captured tensors by name. Raises every mistake found, together.
    """
    first = _once(fn, arguments, positional, axes)
    second = _once(fn, arguments, positional, axes)
    if first[0] is not second[0] or not all(_same(first[1][name], second[1][name]) for name in first[1]):
        message = f"two runs of `{getattr(fn, '__name__', fn)}` computed different expressions"
        fix = "draw random values before, into a tensor, and index that"
        raise FlexSpecError("FS009", message, fix=fix, where=function_place(fn))
    return first


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or torch.equal(a.nan_to_num(), b.nan_to_num())


def _once(
    fn: Callable[..., Any], arguments: Mapping[str, Any], positional: bool, axes: Axes | None
) -> tuple[Expr, dict[str, torch.Tensor]]:
    session = Session(fn, axes or {}, as_torch=positional and "score" not in arguments)
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
        raise FlexSpecError(
            "FS007", "the predicate returns nothing", fix="add a return statement", where=function_place(fn)
        )
    return expr, session.tensors
