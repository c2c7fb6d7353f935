"""Curves that fill space: the rank of points along them."""

from __future__ import annotations

import torch


def morton_rank(points: torch.Tensor, sides: list[int]) -> torch.Tensor:
    """int64 [points]: the bits of coordinates [points, axes] interleaved; a short axis runs out of bits early."""
    return _interleaved(points, [(side - 1).bit_length() for side in sides])


def hilbert_rank(points: torch.Tensor, sides: list[int]) -> torch.Tensor:
    """int64 [points]: the place of coordinates [points, axes] along the Hilbert curve of the cube around all sides.

    From the coarsest bit to the finest, each sub-cube is turned and mirrored into the place where the curve enters it:
    where a coordinate's bit is set, the lower bits of the first axis are flipped, else they change places with that
    coordinate's. What remains is a Gray code, undone across axes and then across bits (Skilling 2004).
    """
    axes, bits = len(sides), (max(sides) - 1).bit_length()
    coordinates = [points[:, axis].clone() for axis in range(axes)]
    for bit in range(bits - 1, 0, -1):
        lower = (1 << bit) - 1
        for axis in range(axes):
            is_set = (coordinates[axis] >> bit & 1).bool()
            swapped = torch.where(is_set, 0, (coordinates[0] ^ coordinates[axis]) & lower)
            coordinates[axis] = coordinates[axis] ^ swapped
            coordinates[0] = coordinates[0] ^ swapped ^ torch.where(is_set, lower, 0)
    for axis in range(1, axes):
        coordinates[axis] = coordinates[axis] ^ coordinates[axis - 1]
    flips = torch.zeros_like(coordinates[-1])
    for bit in range(bits - 1, 0, -1):
        flips ^= torch.where((coordinates[-1] >> bit & 1).bool(), (1 << bit) - 1, 0)
    return _interleaved(torch.stack([each ^ flips for each in coordinates], 1), [bits] * axes)


def _interleaved(points: torch.Tensor, widths: list[int]) -> torch.Tensor:
    """The bits of all axes as one number, the first axis' bit before the others' of the same weight."""
    rank, place = torch.zeros_like(points[:, 0]), 0
    for bit in range(max(widths)):
        for axis in reversed(range(len(widths))):
            if bit < widths[axis]:
                rank |= (points[:, axis] >> bit & 1) << place
                place += 1
    return rank
