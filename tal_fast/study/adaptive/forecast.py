# SPDX-License-Identifier: Apache-2.0
"""What the curve of the finished trials says beyond them, and whether more trials narrow that."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tal_fast.curves import CurvePoint, LearningCurve
from tal_fast.curves.ensemble import build_ensemble, weighted_quantiles
from tal_fast.curves.extrapolation import extrapolate
from tal_fast.curves.learning_curve import CEILING
from tal_fast.errors import DataError
from tal_fast.study.adaptive.beliefs import ALL, Belief, quantile

__all__ = ["LEVELS", "Forecast", "pilot_shares"]

LEVELS = 5
"""Levels of p before a forecast is made: four fit the families of three parameters, and one more
tests them."""

_REPLICATES = 50  # per family and decision: widths hang on the families and their backtest
_COMPLETIONS = 3


def pilot_shares(shares: Sequence[float]) -> list[float]:
    """Returns the shares of the trials from which a forecast starts, in order.

    Levels from the smallest to the largest, evenly over ln p, the cheap ones first; then a second
    draw of the cheaper half, which tells how much draws vary.

    Args:
        shares: that may be trained, in percent, rising.
    """
    wanted = np.geomspace(shares[0], shares[-1], LEVELS)
    free = list(shares)
    levels = []
    for share in wanted[::-1]:
        if free:
            nearest = min(free, key=lambda p: abs(math.log(p / share)))
            free.remove(nearest)
            levels.append(nearest)
    levels.sort()
    return levels + levels[: (len(levels) + 1) // 2]


class Forecast:
    """The families of curves through finished trials.

    Args:
        curve: of the trials.

    Raises:
        DataError: no curve can be fitted: too few levels or repetitions, or mAP does not rise.
    """

    def __init__(self, curve: LearningCurve) -> None:
        curve.require_rising()
        self.curve = curve
        self._ensemble = build_ensemble(curve, replicates=_REPLICATES)

    def level(self, share: float, confidence: float) -> tuple[float, float, float]:
        """Returns mAP at ``share`` percent: median, and the ends of its interval."""
        tail = (1.0 - confidence) / 2.0
        at = np.array([share])
        low, middle, high = self._ensemble.quantiles(at, (tail, 0.5, 1.0 - tail))[:, 0]
        return float(middle), float(low), float(high)

    def gain(self, times: float, confidence: float) -> tuple[float, float, float]:
        """Returns the gain of ``times`` the full training set over it, likewise.

        Over the last value where p = 100 % was measured, as extrapolations have it.
        """
        if self.curve.share[-1] >= ALL:
            try:
                forecast = extrapolate(
                    self.curve, times, confidence=confidence, ensemble=self._ensemble
                )
            except DataError:  # all of its curves are above 100: nothing is known yet
                last = float(self.curve.mean[-1])
                return CEILING - last, -last, CEILING - last
            return (forecast.gain, *forecast.gain_interval)
        values = self._ensemble.sample(np.array([ALL, times * ALL]))
        gains = (values[:, 1] - values[:, 0])[:, None]
        tail = (1.0 - confidence) / 2.0
        weights = self._ensemble.draw_weights
        low, middle, high = weighted_quantiles(gains, weights, (tail, 0.5, 1.0 - tail))[:, 0]
        return float(middle), float(low), float(high)

    def belief(self, share: float, confidence: float) -> Belief:
        """Returns mAP at ``share`` percent as a normal belief with this interval."""
        middle, low, high = self.level(share, confidence)
        error = (high - low) / 2.0 / quantile(0.5 + confidence / 2.0, math.inf)
        return Belief(middle, error, math.inf)

    def width_with(self, draws: Mapping[float, int], width: Callable[[Forecast], float]) -> float:
        """Returns how wide an interval is likely to be once every level has so many draws.

        Completes the curve a few times with made draws around what the families say, and makes the
        forecast again: more draws narrow it mainly by what they say of the families' errors, which
        no formula tells beforehand.

        Args:
            draws: share in percent -> draws there in the end.
            width: of the interval that is asked for.

        Returns:
            The median over :data:`_COMPLETIONS` completed curves.
        """
        shares = np.array(sorted(draws))
        centre = self._ensemble.quantiles(shares, (0.5,))[0]
        measured = {point.share: point for point in self.curve.points}
        spread = np.interp(shares, self.curve.share, self.curve.spread)
        widths = []
        for seed in range(_COMPLETIONS):
            rng = np.random.default_rng(seed)
            points = []
            for share, mean, deviation in zip(shares.tolist(), centre, spread, strict=True):
                draws_there = () if share not in measured else measured[share].draws
                made = mean + deviation * rng.standard_normal(
                    max(0, draws[share] - len(draws_there))
                )
                values = [*draws_there, *np.clip(made, 0.0, CEILING).tolist()]
                points.append(CurvePoint.of_draws(share, [[value] for value in values]))
            with contextlib.suppress(DataError):
                widths.append(width(Forecast(LearningCurve(self.curve.name, tuple(points)))))
        return float(np.median(widths)) if widths else math.inf
