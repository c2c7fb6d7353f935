"""Orders, one family a file, as `fs.orders`. What they do to a mask is in `flexspec.order`."""

from __future__ import annotations

from .base import Order
from .digits import axes, dilated, row_major, tiled
from .lookup import by_label, concatenated, hilbert, morton
from .ranks import striped, zigzag

__all__ = [
    "Order",
    "axes",
    "by_label",
    "concatenated",
    "dilated",
    "hilbert",
    "morton",
    "row_major",
    "striped",
    "tiled",
    "zigzag",
]
