"""The meaning of an expression: plain torch arithmetic on every element, nothing cleverer.

This is the truth that the compiler is judged by; it shares no code with bounds or classification.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch

from .errors import FlexSpecError
from .expr import Apply, Const, Expr, Load, Param, Var, walk
from .ops import OPS, Type
from .user_line import user_caret

Value: TypeAlias = torch.Tensor | bool | int | float


def evaluate(expr: Expr, values: Mapping[str, Value], *, precise: bool = False, checked: bool = True) -> torch.Tensor:
    """The value of `expr`, broadcast over the tensors in `values` (positions, parameters, sizes, inputs by name).

    Integers are int64, floats float32, or float64 when `precise`. Raises FS024 (an index outside its tensor)
    and FS035 (an integer divided by zero), unless `checked` is off, as it must be where torch.vmap runs this.
    """
    done: dict[Expr, torch.Tensor] = {}
    device = next((v.device for v in values.values() if isinstance(v, torch.Tensor)), torch.device("cpu"))

    def convert(node: Expr, kind: Type) -> torch.Tensor:
        kind = Type.DOUBLE if precise and kind is Type.FLOAT else kind
        if isinstance(node, Const):  # straight from the number, not through float32; full() waits for no device
            return torch.full((), node.value, dtype=kind.torch, device=device)
        return done[node].to(kind.torch)

    for node in walk(expr):
        if isinstance(node, Apply):
            op = OPS[node.op]
            kinds, result = op.signature(tuple(arg.type for arg in node.args))
            args = [convert(arg, kind) for arg, kind in zip(node.args, kinds, strict=True)]
            if checked:
                _check_divisor(node.op, args)
            out = OPS[node.op].torch(*args)
            done[node] = out.to(torch.float64) if precise and result is Type.FLOAT else out
        elif isinstance(node, Load):
            done[node] = _load(node, [done[part] for part in node.index], values, checked)
        elif isinstance(node, (Var, Param)):
            value = values[node.name]
            is_tensor = isinstance(value, torch.Tensor)
            done[node] = value if is_tensor else torch.full((), value, dtype=node.type.torch, device=device)
        else:
            done[node] = convert(node, node.type)
    return convert(expr, expr.type)


def _check_divisor(name: str, args: list[torch.Tensor]) -> None:
    if name in ("floordiv", "mod") and not args[1].is_floating_point() and bool((args[1] == 0).any()):
        raise FlexSpecError("FS035", f"an integer is divided by zero in `{OPS[name].symbol}`", where=user_caret())


def _load(node: Load, index: list[torch.Tensor], values: Mapping[str, Value], checked: bool) -> torch.Tensor:
    tensor = values[node.input.name]
    assert isinstance(tensor, torch.Tensor)
    if not index:
        return tensor
    for axis, part in enumerate(index if checked else []):
        size = tensor.shape[axis]
        if part.numel() and (int(part.min()) < -size or int(part.max()) >= size):
            raise leaves_its_tensor(node.input.name, axis, size, f"goes from {int(part.min())} to {int(part.max())}")
    return tensor[tuple(part.to(tensor.device, torch.int64) for part in index)].to(index[0].device)


def leaves_its_tensor(name: str, axis: int, size: int, seen: str) -> FlexSpecError:
    """FS024; `seen` is what the index along `axis` does, such as "goes from 0 to 7"."""
    message = f"index {axis} of `{name}` {seen}, its size is {size}"
    return FlexSpecError("FS024", message, fix="clamp the index, or give a larger tensor", where=user_caret())
