"""A call as one operator, `flexspec::attend`, so that a compiled model goes through without a graph break.

The compiler of the model sees tensors in and tensors out (the fake functions give their shapes); bindings, block maps
and kernels stay what they are outside of it. An operator takes no objects: it finds its attention by a number.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor, library

from flexspec.errors import FlexSpecError
from flexspec.expr import inputs_of

from .backends.base import Call, accurate
from .backends.stored import together


class Enrolled(Protocol):
    """What the operator asks of an attention.

    held: the tensors that its pattern captured, by name. mapped: those by name on which its block map depends, or the
    width of its integers. backward: its backend's.
    """

    @property
    def held(self) -> Mapping[str, Tensor]: ...
    @property
    def mapped(self) -> tuple[str, ...]: ...
    @property
    def backward(self) -> Callable[..., list[Tensor]] | None: ...
    def call_of(self, q: Tensor, k: Any, v: Any, return_lse: bool, inputs: str, values: Any) -> Call: ...
    def run(self, call: Call, q_len: int, inputs: str) -> tuple[Any, Any]: ...
    def moved(self, tensor: Tensor, inputs: str, dim: int = -2, side: str = "q") -> Tensor: ...
    def moved_back(self, tensor: Tensor, inputs: str, length: int, dim: int = -2, side: str = "q") -> Tensor: ...


_attentions: weakref.WeakValueDictionary[int, Enrolled] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def enroll(attention: Enrolled) -> int:
    """A number by which the operator finds an attention while it lives."""
    _operators()  # before the compiler of a model looks in
    number = next(_numbers)
    _attentions[number] = attention
    return number


def fits(values: Mapping[str, Any]) -> bool:
    """Can the operator take these values? It takes tensors, integers and floats."""
    return all(isinstance(x, (Tensor, int, float)) and not isinstance(x, bool) for x in values.values())


def wants_gradients(values: Iterable[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in values)


def operate(number: int, held: Mapping[str, Tensor], q: Tensor, k: Tensor, v: Tensor, inputs: str, values: Any) -> Any:
    """Output and lse. held: the tensors that the pattern captured, by name."""
    kinds = [[name for name, x in values.items() if isinstance(x, kind)] for kind in (Tensor, int, float)]
    names = ",".join([*held, *itertools.chain(*kinds)])
    given = [[values[name] for name in kind] for kind in kinds]
    tensors = [*held.values(), *given[0]]
    return torch.ops.flexspec.attend(q, k, v, tensors, given[1], given[2], names, number, inputs)


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Sequence[Tensor],
    ints: Sequence[int],
    floats: Sequence[float],
    names: str,
    number: int,
    inputs: str,
) -> tuple[Enrolled, Call]:
    """The attention and its call, with the tensors that the operator was given. FS042: the compiled model changes one
    that the block map is made of.
    """
    attention = _attentions[number]
    labels, count = names.split(","), len(attention.held)
    held = dict(zip(labels[:count], tensors, strict=False))
    given = dict(zip(labels[count:], [*tensors[count:], *ints, *floats], strict=False))
    for name in held.keys() & set(attention.mapped):
        if _differ(held[name], attention.held[name]):
            message = f"the compiled model changes `{name}`, which the pattern captured"
            raise FlexSpecError("FS042", message, fix=f"make it an fs.Input, and give {name}= at the call")
    keys, values, given = together(k, v, given)
    call = attention.call_of(q, keys, values, True, inputs, given)
    bound = call.bound.tensors
    fitted = {name: x.expand(bound[name].shape) for name, x in held.items() if name not in attention.mapped}
    return attention, replace(call, bound=replace(call.bound, tensors={**bound, **fitted}))


def _differ(given: Tensor, captured: Tensor) -> bool:
    """Does a model give other values than were captured? While a graph is captured, no value can be read."""
    if given.data_ptr() == captured.data_ptr() or given.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return not torch.equal(given, captured.to(given.device))


@lru_cache(1)
def _operators() -> None:
    """Make `flexspec::attend` and `flexspec::attend_backward` known to torch, once."""
    forward = library.custom_op("flexspec::attend", _forward, mutates_args=())
    forward.register_fake(_forward_shapes)
    backward = library.custom_op("flexspec::attend_backward", _backward, mutates_args=())
    backward.register_fake(_backward_shapes)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, tensors, *ctx.rest = inputs
        ctx.wanted = [at for at, x in enumerate(tensors) if x.requires_grad]
        ctx.count = len(tensors)
        ctx.save_for_backward(q, k, v, *output, *tensors)

    def gradients(ctx: Any, dout: Tensor, dlse: Tensor) -> tuple[Any, ...]:
        q, k, v, out, lse, *tensors = ctx.saved_tensors
        dq, dk, dv, *found = backward(dout, dlse, out, lse, ctx.wanted, q, k, v, tensors, *ctx.rest)
        each: list[Tensor | None] = [None] * ctx.count
        for at, gradient in zip(ctx.wanted, found, strict=True):
            each[at] = gradient
        empty = (isinstance(x, (list, tuple)) and not x for x in ctx.rest)  # torch takes it for a list of tensors
        return dq, dk, dv, each, *([] if nothing else None for nothing in empty)

    forward.register_autograd(gradients, setup_context=keep)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Sequence[Tensor],
    ints: Sequence[int],
    floats: Sequence[float],
    names: str,
    number: int,
    inputs: str,
) -> tuple[Tensor, Tensor]:
    attention, call = _call(q, k, v, tensors, ints, floats, names, number, inputs)
    out, lse = attention.run(call, q.shape[2], inputs)
    return out.contiguous(), lse.contiguous()


def _forward_shapes(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty((*q.shape[:3], v.shape[3])), q.new_empty(q.shape[:3], dtype=accurate(q.dtype))


def _backward(
    dout: Tensor,
    dlse: Tensor,
    out: Tensor,
    lse: Tensor,
    wanted: Sequence[int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Sequence[Tensor],
    ints: Sequence[int],
    floats: Sequence[float],
    names: str,
    number: int,
    inputs: str,
) -> list[Tensor]:
    attention, call = _call(q, k, v, tensors, ints, floats, names, number, inputs)
    out, dout = (attention.moved(x, inputs) for x in (out, dout))
    lse, dlse = (attention.moved(x, inputs, dim=-1) for x in (lse, dlse))
    asked = {names.split(",")[at]: tensors[at] for at in wanted}
    read = {name: call.bound.tensors[name] for name in asked if name in inputs_of(call.score)}
    assert attention.backward is not None
    # torch runs an operator where nothing is recorded; a backend may differentiate a score by autograd
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False), torch.no_grad():
        gradients = attention.backward(call, out, lse, dout, dlse, read)
    back = [
        _summed(attention.moved_back(gradient, inputs, like.shape[2], side=side), like.shape[1]).contiguous()
        for gradient, like, side in zip(gradients[:3], (q, k, v), ("q", "kv", "kv"), strict=True)
    ]
    sums = dict(zip(read, gradients[3:], strict=True))
    return [
        *back,
        *(sums[name].sum_to_size(x.shape) if name in sums else torch.zeros_like(x) for name, x in asked.items()),
    ]


def _summed(gradient: Tensor, heads: int) -> Tensor:
    """The gradient of key heads that lay in memory once for each of their query heads."""
    return gradient if gradient.shape[1] == heads else gradient.unflatten(1, (heads, -1)).sum(2)


def _backward_shapes(
    dout: Tensor,
    dlse: Tensor,
    out: Tensor,
    lse: Tensor,
    wanted: Sequence[int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Sequence[Tensor],
    *rest: Any,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (q, k, v, *(tensors[at] for at in wanted))]
