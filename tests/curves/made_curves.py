# SPDX-License-Identifier: Apache-2.0
"""Curves that tests make, and the measured one that is in the project."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tal_fast.curves import CurvePoint, LearningCurve

HAPT = Path(__file__).parents[2] / "docs/results/hapt"
LEVELS = np.arange(10.0, 101.0, 10.0)


def curve(
    mean: npt.ArrayLike,
    share: npt.ArrayLike = LEVELS,
    deviation: npt.ArrayLike = 1.0,
    repetitions: int = 5,
    name: str = "toy",
    seconds: npt.ArrayLike = math.nan,
    **more: Any,
) -> LearningCurve:
    levels = np.broadcast_arrays(np.asarray(share, float), mean, deviation, seconds)
    points = (
        CurvePoint(
            p, value, None if math.isnan(spread) else spread, repetitions,
            seconds=None if math.isnan(time) else time,
        )
        for p, value, spread, time in zip(*(level.tolist() for level in levels), strict=True)
    )  # fmt: skip
    return LearningCurve(name, tuple(points), **more)
