# SPDX-License-Identifier: Apache-2.0
"""Learning-curve fits: a bootstrap in one batch against a loop over scipy, and whole commands.

The loop starts scipy where the batch found the fit of the mean curve, once per draw: less work than
a search from several starts, which is what the batch does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import Peer
from numpy.typing import NDArray
from scipy.optimize import least_squares

from tal_fast.curves import CurvePoint, LearningCurve
from tal_fast.curves.families import CEILING, FAMILIES, FITTED
from tal_fast.curves.fit import fit_curve
from tal_fast.curves.solver import solve_batch

DRAWS = 100
SHARE = np.concatenate((np.arange(1.0, 5.0), np.arange(5.0, 101.0, 5.0)))  # 24 levels

Floats = NDArray[np.float64]


def measured() -> LearningCurve:
    truth = 58.0 - 85.0 * np.exp(-0.46 * SHARE**0.47)
    noise = 0.5 * np.random.default_rng(0).standard_normal((len(SHARE), 5))
    values = np.clip(truth[:, None] + noise, 0.0, CEILING)
    points = (
        CurvePoint.of_draws(float(share), [[value] for value in level])
        for share, level in zip(SHARE, values.tolist(), strict=True)
    )
    return LearningCurve("synthetic", tuple(points))


@pytest.mark.parametrize("name", ["wbl4", "mmf4", "pow4", "hill"])
def test_bootstrap(compare: Any, name: str) -> None:
    family, curve = FAMILIES[name], measured()
    rng = np.random.default_rng(1)
    y = curve.mean + curve.standard_error * rng.standard_normal((DRAWS, len(curve)))
    root = 1.0 / curve.standard_error
    weight = np.broadcast_to(root**2, y.shape)
    linear = 1 + family.affine
    middle = solve_batch(family, SHARE, curve.mean[None], weight[:1])
    start = np.concatenate((middle.a, middle.b[: linear - 1], middle.theta[0]))
    low = [-np.inf if family.affine else 0.0, *[0.0] * (linear - 1), *(b[0] for b in family.box)]
    high = [CEILING, *[np.inf] * (linear - 1), *(b[1] for b in family.box)]

    def residuals(v: Floats, draw: Floats) -> Floats:
        b = v[1:2] if family.affine else np.zeros(1)
        return root * (family.evaluate(SHARE, v[:1], b, v[None, linear:])[0] - draw)

    def loop() -> list[float]:
        return [
            2.0
            * least_squares(
                residuals, start, bounds=(low, high), x_scale="jac", args=(draw,)
            ).cost
            for draw in y
        ]  # fmt: skip

    def check(ours: Any, peer: list[float]) -> None:
        assert (ours.loss <= np.array(peer) * (1 + 1e-6)).all()

    compare(
        "study fit",
        f"{name}, {DRAWS} draws of 24 levels",
        lambda: solve_batch(family, SHARE, y, weight),
        [Peer("loop over scipy, one start", loop)],
        check=check,
        verified="no loss is higher",
        repetitions=5,
    )


def _nothing(*results: Any) -> None:
    pass


def test_whole_fit(compare: Any) -> None:
    curve = measured()
    assert len(fit_curve(curve, replicates=10).families) == len(FITTED)
    compare(
        "study fit",
        "10 families, 1000 draws, 24 levels, backtest",
        lambda: fit_curve(curve, replicates=1000),
        [],
        check=_nothing,
        verified="every family",
        repetitions=3,
    )
