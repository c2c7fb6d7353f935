"""The types of values, and signatures: what types an operator takes and gives."""

from __future__ import annotations

from collections.abc import Callable
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


def _promote(types: Types, least: Type = Type.BOOL) -> tuple[Types, Type]:
    result = max(*types, least)
    return (result,) * len(types), result


def number(types: Types) -> tuple[Types, Type]:
    """Of integers or floats; booleans count as integers."""
    return _promote(types, Type.INT)


def real(types: Types) -> tuple[Types, Type]:
    """Of floats."""
    return _promote(types, Type.FLOAT)


def logical(types: Types) -> tuple[Types, Type]:
    """Of booleans, or bit by bit of integers."""
    if max(types) > Type.INT:
        raise TypeError("takes integers or booleans")
    return _promote(types)


def integer(types: Types) -> tuple[Types, Type]:
    """Of integers."""
    if max(types) > Type.INT:
        raise TypeError("takes integers")
    return _promote(types, Type.INT)


def comparison(types: Types) -> tuple[Types, Type]:
    """Of two values as one type, to a boolean."""
    return _promote(types)[0], Type.BOOL


def selection(types: Types) -> tuple[Types, Type]:
    """Of a boolean and two values as one type."""
    if types[0] != Type.BOOL:
        raise TypeError("takes a boolean as its first operand")
    values, result = _promote(types[1:])
    return (Type.BOOL, *values), result


def conversion(to: Type) -> Signature:
    """Of one value, as it is, to a type."""
    return lambda types: (types, to)
