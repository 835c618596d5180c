# SPDX-License-Identifier: Apache-2.0
"""Time and feature rows: the one place where seconds become grid coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from tal_fast.errors import DataError
from tal_fast.typing import Floats

__all__ = ["Grid"]

Time = TypeVar("Time", float, Floats)


@dataclass(frozen=True)
class Grid:
    """Maps seconds to the *edge* coordinate of a feature sequence and back.

    Row ``i`` is computed from ``frames`` frames that start at frame ``i * stride``, so it is
    centred at ``(i * stride + 0.5 * frames) / fps`` seconds. In edge coordinates it covers
    [i, i + 1), with that centre at i + 0.5:

    ``e = (t * fps - 0.5 * frames) / stride + 0.5``

    ActionFormer's grid coordinate (the row index as centre) is ``e - 0.5``.

    Attributes:
        stride: frames between two rows.
        frames: frames that one row sees.
        fps: frames per second.
    """

    stride: float
    frames: float
    fps: float

    def __post_init__(self) -> None:
        """Checks the three numbers."""
        for name in ("stride", "frames", "fps"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise DataError(f"Grid: expected {name} > 0, got {value}")

    def to_grid(self, seconds: Time) -> Time:
        """Returns the edge coordinates (rows) of times in seconds, same shape."""
        return (seconds * self.fps - 0.5 * self.frames) / self.stride + 0.5

    def to_seconds(self, grid: Time) -> Time:
        """Returns the times in seconds of edge coordinates (rows), same shape."""
        return ((grid - 0.5) * self.stride + 0.5 * self.frames) / self.fps
