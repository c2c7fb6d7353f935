"""What one compiled attention has lowered, kept as long as it is used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from flexspec.attention import Attention
from flexspec.inputs import Bound, Sizes
from flexspec.order import Order, bound_in_memory
from flexspec.positions import GIVEN, NAMES, bind_call

from .blocks.grid import BlockSize
from .blocks.tensor_ranges import TensorRanges, arrays_of, by_content, state_of
from .pipeline import Lowered, Stages, lower

KEPT = 32
"""Lowered attentions that one compiled attention keeps, the latest used."""


class MapCache:
    """Values bound and lowered, once for each sizes and values that count. Threads may share it.

    What counts: all numbers, the tensors that the mask reads, and integer tensors of the scores, whose range says how
    wide a kernel's integers are. Float tensors of the scores may be others at each call.
    """

    def __init__(self, spec: Attention, order: Order | None, block_size: BlockSize, exact: bool = True) -> None:
        self.spec, self.order, self.block_size, self.exact = spec, order, block_size, exact
        self._lowered: OrderedDict[Any, tuple[Lowered, list[torch.Tensor]]] = OrderedDict()
        self._ranges: tuple[Any, TensorRanges, Any] | None = None
        self._lock = threading.Lock()
        mask, inputs = spec.parts.mask.expr, spec.parts.inputs
        self.counting = tuple(
            name for name, node in inputs.items() if name in mask.names or not node.type.torch.is_floating_point
        )

    def of(self, sizes: Sizes, values: Mapping[str, Any], device: torch.device) -> tuple[Bound, Lowered]:
        """The bound values of a call, with their gradients, and what it shares with calls alike."""
        bound = bind_call(self.spec.parts, sizes, values, self.order, device)
        given = {**values, **self.spec.parts.tensors}  # one of which may be called as positions are
        rows = {NAMES[side]: values[GIVEN[side]] for side in bound.rows}
        counting = {**{name: given[name] for name in self.counting}, **rows}
        states = tuple([(name, state_of(tensor)) for name, tensor in counting.items()])
        key = (bound.sizes, device, states, tuple([(name, repr(value)) for name, value in bound.numbers.items()]))
        with self._lock:
            if key in self._lowered:
                self._lowered.move_to_end(key)
                return bound, self._lowered[key][0]
        tensors = list(counting.values())  # while a tensor lives, no other has its id
        lowered = self._lower(bound, device, (states, tensors), Stages())
        with self._lock:
            self._lowered[key] = lowered, tensors
            while len(self._lowered) > KEPT:
                self._lowered.popitem(last=False)
        return bound, lowered

    def staged(self, sizes: Sizes, values: Mapping[str, Any], device: torch.device) -> tuple[Bound, Lowered, Stages]:
        """As `of`, made anew and always exact, with what each stage made."""
        bound = bind_call(self.spec.parts, sizes, values, self.order, device)
        stages = Stages()
        return bound, self._lower(bound, device, None, stages, exact=True), stages

    def _lower(
        self, bound: Bound, device: torch.device, counting: Any, stages: Stages, exact: bool | None = None
    ) -> Lowered:
        names = (*self.counting, *(NAMES[side] for side in bound.rows))
        tensors = {name: _frozen(bound.tensors[name]) for name in names}
        own = bound_in_memory(replace(bound, tensors=tensors), self.order, device)
        if exact is None:  # a choice that was made on a device stays there
            exact = self.exact and not (device.type != "cpu" and self.spec.parts.mask.selections)
        ranges = self._ranges_of(own, *counting or (None, None)) if exact else None
        return lower(self.spec, own, self.block_size, self.order, device, stages, ranges=ranges, exact=exact)

    def _ranges_of(self, own: Bound, states: Any, alive: Any) -> TensorRanges:
        """What the tensors hold. Of those that are as they were at the last map, nothing is read again.

        alive: the tensors that the states are of. They are kept even where no map is made, as after an error.
        """
        held = (states, tuple(tensor.shape for tensor in own.tensors.values()))
        latest, known = self._ranges, {}
        if latest and states is not None:
            if latest[0] == held:
                return latest[1]
            before = dict(latest[0][0] or ())
            same = [name for name, state in states if before.get(name) == state]
            known = {
                name: array for name in same if (array := latest[1].tensors[name]).shape == own.tensors[name].shape
            }
        unread = {name: tensor for name, tensor in own.tensors.items() if name not in known}
        ranges = TensorRanges({**arrays_of(unread), **known})
        self._ranges = held, ranges, alive
        return ranges


def _frozen(tensor: torch.Tensor) -> torch.Tensor:
    """A copy, which nobody writes to, of a tensor that is told by its content."""
    return tensor.detach().clone() if by_content(tensor) else tensor
