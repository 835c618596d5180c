# SPDX-License-Identifier: Apache-2.0
"""The points of a pyramid: every row of every level, all levels side by side."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tal_fast.models.pyramid.layers import Rows

__all__ = ["Joined", "Points", "join_levels", "make_points"]


class Points(NamedTuple):
    """Where the P points of a clip are and what each answers for.

    Attributes:
        place: ``Tensor[P]``, rows of the clip; a row is known by its centre, as the number of the
            row on the finest level.
        stride: ``Tensor[P]``, rows between two points of its level.
        low: ``Tensor[P]``, least distance to the farther end of its instance, in rows.
        high: ``Tensor[P]``, greatest.
        sizes: points of each level.
    """

    place: Tensor
    stride: Tensor
    low: Tensor
    high: Tensor
    sizes: tuple[int, ...]


def make_points(rows: int, ranges: tuple[tuple[float, float], ...], device: torch.device) -> Points:
    """Returns the points of a clip.

    Args:
        rows: rows of the finest level.
        ranges: (low, high) of each level.
        device: where the tensors are.
    """
    sizes = tuple(rows >> level for level in range(len(ranges)))
    place = [torch.arange(size, device=device) << level for level, size in enumerate(sizes)]

    def of_levels(values: list[float]) -> Tensor:
        parts = zip(values, sizes, strict=True)
        return torch.cat(
            [
                torch.full((size,), value, dtype=torch.float32, device=device)
                for value, size in parts
            ]
        )

    return Points(
        place=torch.cat(place).float(),
        stride=of_levels([float(1 << level) for level in range(len(ranges))]),
        low=of_levels([low for low, _ in ranges]),
        high=of_levels([high for _, high in ranges]),
        sizes=sizes,
    )


class Joined(NamedTuple):
    """All levels in one tensor, with rows of zeros between them.

    A convolution of the same weights over every level is then one over the whole, in which no level
    sees its neighbour.

    Attributes:
        features: ``Tensor[B, J, C]``.
        rows: of ``features``; the rows between levels are outside.
        gap: rows between two levels.
        sizes: rows of each level.
    """

    features: Tensor
    rows: Rows
    gap: int
    sizes: tuple[int, ...]

    def points(self, x: Tensor) -> Tensor:
        """Leaves out the rows between levels: ``Tensor[B, J, D]`` gives ``Tensor[B, P, D]``."""
        # One split, whose gradient is written in one go.
        lengths = [length for size in self.sizes for length in (size, self.gap)]
        return torch.cat(x.split(lengths, dim=1)[::2], dim=1)


def join_levels(levels: list[Tensor], rows: list[Rows], gap: int) -> Joined:
    """Puts levels side by side.

    Args:
        levels: ``Tensor[B, T / 2^l, C]`` of each level l.
        rows: of each level.
        gap: rows of zeros between two levels, half the kernel of the convolutions to come.
    """

    def joined(parts: list[Tensor]) -> Tensor:
        between = parts[0].new_zeros(len(parts[0]), gap, parts[0].shape[2])
        return torch.cat([item for part in parts for item in (part, between)], dim=1)

    return Joined(
        joined(levels),
        Rows.of(
            joined([item.real for item in rows]),
            joined([item.inside for item in rows]),
            rows[0].padded,
        ),
        gap,
        tuple(level.shape[1] for level in levels),
    )
