"""Where torch computes in 8 or 16 bits and the language does not: a mask_mod that would differ is refused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch

from .errors import FlexSpecError
from .ops import NEGATED, Type
from .user_line import user_caret

HALF = (torch.float16, torch.bfloat16)
NARROW = (torch.int8, torch.uint8, torch.int16, *HALF)
_CASTS = {kind.text for kind in Type}
_CHOOSE = {"where", "min", "max"}
_EXACT_ON_HALF = {"neg", "abs", "floor", "ceil", "round", "trunc", "sign"}
_EXACT_ON_WHOLE = {"floor", "ceil", "round", "trunc", "sign", "and", "or", "xor", "rshift", "mod", "floordiv"}


def narrow_dtype(dtype: torch.dtype) -> torch.dtype | None:
    """The dtype, if torch computes with it in fewer than 32 bits."""
    return dtype if dtype in NARROW else None


def narrow_result(op: str, args: Sequence[Any], types: Sequence[Type]) -> torch.dtype | None:
    """The narrow dtype of torch's result, or None. FS008 where torch's value would differ from the language's.

    args: traced values (with `narrow`), zero-dim tensors and numbers, of `types`.
    """
    first = 1 if op == "where" else 0
    operands = list(zip(args, types, strict=True))[first:]
    strong = [_dtype(arg, kind) for arg, kind in operands if not isinstance(arg, (bool, int, float))]
    if op in _CASTS or not any(dtype in NARROW for dtype in strong):
        return None
    common = reduce(torch.promote_types, strong)
    numbers = [arg for arg, _ in operands if isinstance(arg, (bool, int, float))]
    if common not in NARROW or (common not in HALF and any(isinstance(number, float) for number in numbers)):
        return None
    if common in HALF:
        same = all(dtype == common for dtype in strong) and all(_holds(common, number) for number in numbers)
        exact = same and op in NEGATED.keys() | _CHOOSE | _EXACT_ON_HALF
        fix = "convert it first, as in bias[q].float()"
    else:
        exact = op in NEGATED.keys() | _CHOOSE | _EXACT_ON_WHOLE or (op == "not" and common != torch.uint8)
        exact |= op in ("div", "sqrt", "exp", "exp2", "log", "log2", "sin", "cos", "tanh", "sigmoid")  # in float32
        fix = "convert it first, as in ids[q].long()"
    if not exact:
        message = f"torch computes `{op}` in {common}, which wraps or rounds"
        raise FlexSpecError("FS008", message, fix=fix, where=user_caret())
    return common if op in _CHOOSE | _EXACT_ON_HALF | _EXACT_ON_WHOLE | {"not"} else None


def _dtype(arg: Any, kind: Type) -> torch.dtype:
    return arg.dtype if isinstance(arg, torch.Tensor) else getattr(arg, "narrow", None) or kind.torch


def _holds(dtype: torch.dtype, number: float) -> bool:
    return number != number or float(torch.tensor(number, dtype=dtype)) == number
