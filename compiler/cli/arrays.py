"""Run-time values as people type them: 7, `0,0,1`, or a .npy file, whose header is read before memory is asked for."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy

from flexspec.errors import FlexSpecError
from flexspec.expr import Input
from flexspec.ops import Type

HEADERS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
    (3, 0): npy.read_array_header_2_0,  # differs from 2.0 in letters that names of fields may have
}
DTYPES: dict[Type, tuple[torch.dtype, type]] = {
    Type.BOOL: (torch.bool, bool),
    Type.INT: (torch.int64, int),
    Type.FLOAT: (torch.float32, float),
    Type.DOUBLE: (torch.float64, float),
}
INT64 = np.iinfo(np.int64)


def number(name: str, text: str) -> bool | int | float:
    """A number as it is typed. FS023, FS034 (too large)."""
    plain = text.strip().lower().replace("_", "")
    if plain in ("true", "false"):
        return plain == "true"
    try:
        value = float(plain)
    except ValueError:
        raise FlexSpecError("FS023", f"`{name}` is {text!r}; it must be a number") from None
    is_whole = re.fullmatch(r"[+-]?\d+", plain)
    if math.isinf(value) and "inf" not in plain or is_whole and not INT64.min <= int(plain) <= INT64.max:
        raise FlexSpecError("FS034", f"`{name}` is {text!r}, which does not fit 64 bits")
    return int(plain) if is_whole else value


def tensor_of(node: Input, text: str) -> torch.Tensor:
    """The tensor that `text` says, for an input; leading dims of size 1 are added.

    node: the input.
    text: numbers with commas between them, or the name of a .npy file.

    Raises FS023 (numbers of another type), FS034 (integers that do not fit 64 bits), FS054 (no array of numbers).
    """
    path = text.strip()
    if path.endswith(".npy"):
        tensor = torch.from_numpy(_in_torch(path, _read(path)))
    else:
        tensor = _listed(node, [number(node.name, part) for part in text.split(",")])
    return tensor.reshape((1,) * (len(node.dims) - tensor.dim()) + tuple(tensor.shape))


def _listed(node: Input, numbers: Sequence[bool | int | float]) -> torch.Tensor:
    """Numbers as the tensor of an input, each with the value that was written."""
    for value in numbers:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if (node.type is Type.BOOL and value not in (0, 1)) or (node.type is Type.INT and not is_whole):
            raise FlexSpecError("FS023", f"`{node.name}` has {value!r}; the pattern reads {node.type.text}")
    dtype, kind = DTYPES[node.type]
    return torch.tensor([kind(value) for value in numbers], dtype=dtype)


def _read(path: str) -> np.ndarray[Any, Any]:
    """The array in a .npy file. FS023, FS054."""
    try:
        if not os.path.isfile(path):
            raise FlexSpecError("FS054", f"there is no file {path}")
        with open(path, "rb") as file:
            _check_header(path, file)
            file.seek(0)
            array: np.ndarray[Any, Any] = npy.read_array(file, allow_pickle=False)
    except FlexSpecError:
        raise
    except (OSError, ValueError, TypeError, MemoryError) as error:
        raise FlexSpecError("FS054", f"{path} cannot be read: {error}") from None
    return array


def _check_header(path: str, file: BinaryIO) -> None:
    """Does the file hold numbers, and as many as its header says? FS023, FS054."""
    version = npy.read_magic(file)
    if version not in HEADERS:
        raise FlexSpecError("FS054", f"{path} is a .npy file of version {version[0]}.{version[1]}")
    shape, _, dtype = HEADERS[version](file)
    if dtype.kind not in "biuf":
        raise FlexSpecError("FS023", f"{path} holds {dtype}, not numbers")
    if dtype.kind == "f" and dtype.itemsize > 8:
        raise FlexSpecError("FS023", f"{path} holds {dtype}, which torch does not have", fix="save it as float64")
    said, there = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size - file.tell()
    if said > there or any(isinstance(side, bool) or side < 0 for side in shape):
        message = f"the header of {path} says {list(shape)} of {dtype}, {said:,} bytes; the file has {there:,}"
        raise FlexSpecError("FS054", message)


def _in_torch(path: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same values in a type that torch has, in the machine's byte order. FS034."""
    if array.dtype.kind == "u":
        if array.size and array.max() > INT64.max:
            raise FlexSpecError("FS034", f"{path} holds {array.max()}, which does not fit 64 bits")
        return array.astype(np.int64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)
