# SPDX-License-Identifier: Apache-2.0
"""Curves drawn from the families, so that their truth beyond the data is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tal_fast.curves import CurvePoint, LearningCurve
from tal_fast.curves.families import CEILING, Family

__all__ = ["synthetic_curve"]

Floats = NDArray[np.float64]

# Ranges from which the shapes of synthetic curves are drawn, in the coordinates of the families'
# public formulas but s and k for scales in percent: curves that rise between p = 1 and 100 %.
_SHAPES: dict[str, tuple[tuple[float, float], ...]] = {
    "pow3": ((0.1, 1.5),),
    "pow4": ((0.2, 3.0), (1.0, 60.0)),
    "log2": (),
    "exp3": ((0.01, 0.1),),
    "wbl4": ((2.0, 80.0), (0.4, 1.5)),
    "mmf4": ((5.0, 60.0), (0.6, 2.5)),
    "hill": ((5.0, 60.0), (0.6, 2.5)),
    "logistic": ((0.03, 0.12), (5.0, 50.0)),
    "gompertz": ((1.0, 8.0), (0.02, 0.1)),
    "bnsl1": ((0.1, 0.6), (0.3, 3.0), (15.0, 80.0), (0.1, 0.8)),
}
_LEVELS = np.arange(10.0, 101.0, 10.0)
_REPETITIONS = 5


def synthetic_curve(
    family: Family, rng: np.random.Generator
) -> tuple[LearningCurve, Callable[[Floats], Floats]]:
    """Draws a curve of a family and measures it.

    At p = 100 % it stands at 40 to 85 points, at 10 % between 3 points and 70 % of that; ten levels
    of five draws each, whose standard deviation is between 0.5 and 2.5 points.

    Returns:
        The measured curve, and the truth as a function of p in percent.
    """
    anchors = np.array([10.0, 100.0])
    while True:
        drawn = [math.exp(rng.uniform(*np.log(side))) for side in _SHAPES[family.name]]
        theta = np.log(np.array(drawn)).reshape(1, -1)
        if family.name == "logistic":
            theta[0, 1] = drawn[1]  # the only coordinate that is not a logarithm
        phi = family.shape(anchors, theta)[0][0]
        full = rng.uniform(40.0, 85.0)
        tenth = rng.uniform(3.0, 0.7 * full)
        b = (full - tenth) / (phi[0] - phi[1]) if family.affine else 0.0
        a = full + b * phi[1] if family.affine else full / phi[1]
        if not family.affine:
            tenth = a * phi[0]
        if (a <= CEILING or not family.bounded) and 3.0 <= tenth <= 0.7 * full:
            break

    def truth(share: Floats) -> Floats:
        y = family.evaluate(np.asarray(share), np.array([a]), np.array([b]), theta)[0]
        return np.clip(y, 0.0, CEILING)

    deviation = rng.uniform(0.5, 2.5)
    noise = deviation * rng.standard_normal((len(_LEVELS), _REPETITIONS))
    values = np.clip(truth(_LEVELS)[:, None] + noise, 0.0, CEILING)
    points = (
        CurvePoint.of_draws(float(share), [[value] for value in level])
        for share, level in zip(_LEVELS, values.tolist(), strict=True)
    )
    curve = LearningCurve(f"synthetic {family.name}", tuple(points))
    return curve, truth
