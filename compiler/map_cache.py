"""The block maps of one compiled attention, kept as long as they are used."""

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

from .blocks.block_map import BlockMap
from .blocks.grid import BlockSize
from .blocks.on_device import DeviceMap, map_on_device
from .blocks.tensor_ranges import TensorRanges, by_content, ranges_of, state_of
from .pipeline import Stages, map_of

MAPS_KEPT = 32
"""Block maps that one compiled attention keeps, the latest used."""


class Maps:
    """Values bound and classified, once for each sizes and values that the mask reads. Threads may share it."""

    def __init__(self, spec: Attention, order: Order | None, block_size: BlockSize) -> None:
        self.spec, self.order, self.block_size = spec, order, block_size
        self._maps: OrderedDict[Any, tuple[Any, list[Any]]] = OrderedDict()
        self._tables: tuple[Any, TensorRanges] | None = None
        self._lock = threading.Lock()

    def of(
        self,
        sizes: Sizes,
        values: Mapping[str, Any],
        device: torch.device,
        stages: Stages | None = None,
        exact: bool = True,
    ) -> tuple[Bound, Any]:
        """The bound values, and the BlockMap or DeviceMap, kept per sizes and values that the mask reads."""
        bound = self.spec.formula.bind(sizes, values)  # this call's own tensors, with their gradients
        bound = bound_in_memory(bound, self.order, device)
        kept = self.spec.kept
        tensors = {name: x for name, x in bound.tensors.items() if name in kept.expr.names}
        numbers = sorted((name, repr(x)) for name, x in bound.numbers.items() if name in kept.expr.names)
        given = {**self.spec.formula.tensors, **values}
        states = tuple((name, state_of(given[name])) for name in tensors)
        key = (exact, bound.sizes, device, states, tuple(numbers))
        with self._lock:
            if key in self._maps and stages is None:
                self._maps.move_to_end(key)
                return bound, self._maps[key][0]
        own = replace(bound, tensors={name: _frozen(x) for name, x in tensors.items()})
        own = bound_in_memory(own, self.order, device)
        made: BlockMap | DeviceMap
        if exact:
            latest = self._tables
            tables = latest[1] if latest and latest[0] == states else ranges_of(own)
            made = map_of(kept, own, self.block_size, self.order, device, stages or Stages(), tables=tables)
            self._tables = states, tables
        else:
            made = map_on_device(kept, own, self.block_size, self.order, device)
        with self._lock:
            self._maps[key] = made, [given[name] for name in tensors]  # while a tensor lives, no other has its id
            while len(self._maps) > MAPS_KEPT:
                self._maps.popitem(last=False)
        return bound, made


def _frozen(tensor: torch.Tensor) -> torch.Tensor:
    """What a map keeps of a tensor that is told by its content: a copy, which nobody writes to."""
    return tensor.detach().clone() if by_content(tensor) else tensor
