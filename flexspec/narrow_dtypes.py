"""Where torch computes in 8 or 16 bits and the language does not: a mask_mod that would differ is refused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch

from .errors import FlexSpecError
from .ops import CASTS, HALF, NARROW, OPS, SIGNED, Type
from .user_line import user_caret


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
    if op in CASTS or not any(dtype in NARROW for dtype in strong):
        return None
    common = reduce(torch.promote_types, strong)
    numbers = [arg for arg, _ in operands if isinstance(arg, (bool, int, float))]
    if common not in NARROW or (common not in HALF and any(isinstance(number, float) for number in numbers)):
        return None
    # numbers become this dtype first, under torch.vmap even where the result is of 32 bits: they round, and 300 is 44
    exact = common in OPS[op].exact_in and all(_holds(common, number) for number in numbers)
    if common in HALF:
        exact &= all(dtype == common for dtype in strong)
    if op == "floordiv" and common in SIGNED:  # the least integer by -1 has no place; by any other number all have
        exact &= bool(numbers) and args[1] is numbers[-1] and args[1] != -1
    if not exact:
        fix = f"convert it first, as in {'bias[q].float()' if common in HALF else 'ids[q].long()'}"
        message = f"torch computes `{op}` in {common}, which wraps or rounds"
        raise FlexSpecError("FS008", message, fix=fix, where=user_caret())
    _, result = OPS[op].signature(tuple(types))
    return common if result is Type.of_dtype(common) else None  # a comparison is a boolean, a root has 32 bits


def _dtype(arg: Any, kind: Type) -> torch.dtype:
    return arg.dtype if isinstance(arg, torch.Tensor) else getattr(arg, "narrow", None) or kind.torch


def _holds(dtype: torch.dtype, number: float) -> bool:
    if dtype not in HALF:
        return torch.iinfo(dtype).min <= number <= torch.iinfo(dtype).max
    return number != number or float(torch.tensor(number, dtype=dtype)) == number
