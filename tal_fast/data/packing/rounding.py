# SPDX-License-Identifier: Apache-2.0
"""Narrower types: what rounding to them costs, and what does not fit."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tal_fast.errors import DataError

if TYPE_CHECKING:
    import torch

__all__ = ["TARGETS", "Rounding", "narrowed"]

TARGETS = ("float32", "float16", "bfloat16")
_LARGEST = {"float32": 3.4028234663852886e38, "float16": 65504.0, "bfloat16": 3.3895313892515355e38}
# Elements that are looked at together: what is computed on them stays in the cache.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Rounding:
    """What rounding to another type changed; adds up over videos.

    Attributes:
        elements: numbers looked at.
        largest: largest absolute error.
        video: video in which it occurs; empty when nothing was rounded.
        row: its row.
        channel: its channel.
        value: the number there before rounding.
        square_error: sum of the squared errors.
        square: sum of the squared numbers.
        to_zero: numbers other than 0 that became 0.
    """

    elements: int = 0
    largest: float = 0.0
    video: str = ""
    row: int = -1
    channel: int = -1
    value: float = 0.0
    square_error: float = 0.0
    square: float = 0.0
    to_zero: int = 0

    @property
    def relative(self) -> float:
        """Root mean square error over root mean square of the numbers."""
        return math.sqrt(self.square_error / self.square) if self.square else 0.0

    def __add__(self, other: Rounding) -> Rounding:
        """Returns the rounding of both."""
        worse = other if other.largest > self.largest else self
        return Rounding(
            elements=self.elements + other.elements,
            largest=worse.largest,
            video=worse.video,
            row=worse.row,
            channel=worse.channel,
            value=worse.value,
            square_error=self.square_error + other.square_error,
            square=self.square + other.square,
            to_zero=self.to_zero + other.to_zero,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, for JSON."""
        return asdict(self)


def narrowed(video: str, values: npt.NDArray[Any], dtype: str) -> tuple[torch.Tensor, Rounding]:
    """Converts the features of a video, rounding to nearest even.

    Args:
        video: its name, for messages.
        values: [T, C] of a floating type.
        dtype: one of :data:`TARGETS`.

    Returns:
        A contiguous tensor [T, C], and what rounding changed.

    Raises:
        DataError: if a number is NaN or infinite, or too large for ``dtype``; the message names the
            video, row, channel and value.
    """
    import torch

    target = getattr(torch, dtype)
    source = torch.from_numpy(np.ascontiguousarray(values))
    rows, columns = source.shape
    out = torch.empty((rows, columns), dtype=target, device="cpu")
    total = Rounding()
    step = max(1, _CHUNK // columns)
    for start in range(0, rows, step):
        x = source[start : start + step]
        y = out[start : start + step]
        y.copy_(x)
        total += _compare(video, start, x, y, dtype)
    return out, total


def _compare(video: str, start: int, x: torch.Tensor, y: torch.Tensor, dtype: str) -> Rounding:
    import torch

    if not bool(torch.isfinite(y).all()):
        row, channel = (int(i) for i in (~torch.isfinite(y)).nonzero()[0])
        value = float(x[row, channel])
        where = f"video {video!r}: row {start + row}, channel {channel}"
        if not math.isfinite(value):
            raise DataError(f"{where}: expected finite features, got {value}")
        hint = "" if dtype != "float16" else "; bfloat16 and float32 hold it"
        raise DataError(
            f"{where}: {value:.9g} does not fit into {dtype} (largest {_LARGEST[dtype]:g}){hint}"
        )
    # Types at least as wide as float32 hold x and y exactly, and their difference as well: the two
    # are within a factor of two of each other, or y is 0.
    wide = torch.promote_types(x.dtype, torch.float32)
    exact = x.to(wide)
    square = float(exact.double().square().sum())
    if torch.promote_types(x.dtype, y.dtype) == y.dtype:
        return Rounding(elements=x.numel(), square=square)
    error = (exact - y.to(wide)).abs()
    at = int(error.argmax())
    row, channel = divmod(at, x.shape[1])
    largest = float(error[row, channel])
    return Rounding(
        elements=x.numel(),
        largest=largest,
        video=video if largest else "",
        row=start + row if largest else -1,
        channel=channel if largest else -1,
        value=float(exact[row, channel]) if largest else 0.0,
        square_error=float(error.double().square().sum()),
        square=square,
        to_zero=int(((y == 0) & (x != 0)).sum()),
    )
