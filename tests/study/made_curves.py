# SPDX-License-Identifier: Apache-2.0
"""Curves that tests make, and the measured one that is in the project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tal_fast.study.fits.learning_curve import LearningCurve

HAPT = Path(__file__).parents[2] / "docs/results/hapt"
LEVELS = np.arange(10.0, 101.0, 10.0)


def curve(
    mean: npt.ArrayLike,
    share: npt.ArrayLike = LEVELS,
    deviation: npt.ArrayLike = 1.0,
    repetitions: int = 5,
    name: str = "toy",
    **more: Any,
) -> LearningCurve:
    share = np.asarray(share, dtype=float)
    return LearningCurve(
        name=name,
        share=share,
        mean=np.asarray(mean, dtype=float),
        deviation=np.broadcast_to(np.asarray(deviation, dtype=float), share.shape).copy(),
        repetitions=np.full(len(share), repetitions),
        values=((),) * len(share),
        **more,
    )
