"""What one run of a predicate collects: the tensors that it reads, by name, and its mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from .captures import tensor_names
from .errors import FlexSpecError
from .expr import Input, input_
from .ops import OPS, Type
from .syntax import CONSTANTS, leaf
from .user_line import Place, user_caret


@dataclass(slots=True)
class Session:
    """What one trace collects: the captured tensors by name, and the mistakes."""

    fn: object
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
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
