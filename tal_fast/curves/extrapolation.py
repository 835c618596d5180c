# SPDX-License-Identifier: Apache-2.0
"""What a curve says about more data than it has seen, with an interval that has been tested."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tal_fast.curves.ensemble import Ensemble, build_ensemble
from tal_fast.curves.families import CEILING, FITTED, Family
from tal_fast.curves.fit import LAST
from tal_fast.curves.learning_curve import LearningCurve, percent
from tal_fast.errors import ConfigError, DataError, counted

__all__ = [
    "LIMIT",
    "Extrapolation",
    "Member",
    "check_confidence",
    "check_times",
    "extrapolate",
]

LIMIT = 5.0
"""Times the largest measured p beyond which nothing is said: docs/curve-fits.md has calibrated
the intervals up to here."""


@dataclass(frozen=True)
class Member:
    """What one family says.

    Attributes:
        family: the shape.
        weight: its share of the answer.
        value: mAP in points of the fit to the measured means.
        interval: of its bootstrap draws alone.
        backtest_rmse: see :meth:`Backtest.rmse`; NaN where it could not be tested.
    """

    family: Family
    weight: float
    value: float
    interval: tuple[float, float]
    backtest_rmse: float


@dataclass(frozen=True)
class Extrapolation:
    """mAP at more data than was measured.

    Attributes:
        curve: the measured curve.
        share: the amount asked about, in percent of the full training set.
        confidence: of all intervals.
        value: median of the ensemble, points.
        interval: of the ensemble, points.
        last: mean at the largest measured p: the baseline that says nothing changes.
        last_error: its standard error.
        drift: see :class:`Ensemble`; 0 where it is no part of the answer.
        factor: see :data:`~tal_fast.curves.ensemble.FACTOR`.
        members: what each family says, the heaviest first.
        reach: largest p / q that the curve's own backtest has tried.
        ratio: share over the largest measured p.
        notes: what a reader has to know.
    """

    curve: LearningCurve
    share: float
    confidence: float
    value: float
    interval: tuple[float, float]
    last: float
    last_error: float
    drift: float
    factor: float
    members: tuple[Member, ...]
    reach: float
    ratio: float
    notes: tuple[str, ...]

    @property
    def gain(self) -> float:
        """Points over the last value."""
        return self.value - self.last

    @property
    def gain_interval(self) -> tuple[float, float]:
        """Interval of the gain; the last value taken as exact."""
        return self.interval[0] - self.last, self.interval[1] - self.last


def _notes(ensemble: Ensemble, ratio: float) -> list[str]:
    curve, tests = ensemble.curve, ensemble.tests
    notes = curve.remarks()
    names = [fit.family.name for fit in ensemble.fits]
    untested = [name for name in names if math.isnan(tests.rmse(name))]
    if untested:
        notes.append(
            f"the curve is too short to test {', '.join(untested)}: counted as the median family"
        )
    if ratio > tests.reach * (1.0 + 1e-9):
        notes.append(
            f"{ratio:.3g} times the largest p is beyond the {tests.reach:.3g} times that this "
            "curve's own backtest reaches: no test on this curve supports the interval"
        )
    ranks = [name for name, _ in tests.ranking()]
    if LAST in ranks and ranks.index(LAST) == 0 and len(ranks) > 1:
        notes.append("in the backtest no family beat the last value")
    return notes


def check_times(curve: LearningCurve, times: float, option: str = "--times") -> float:
    """Returns ``times`` the full training set over the largest measured p.

    Raises:
        ConfigError: it is not positive, not beyond the measured levels, or beyond :data:`LIMIT`.
    """
    if not (math.isfinite(times) and times > 0.0):
        raise ConfigError(f"{option}: expected a positive number, got {times:g}")
    ratio = percent(times) / float(curve.share[-1])
    if not ratio > 1.0:
        raise ConfigError(
            f"{option}: expected more than the {curve.share[-1]:g} % measured, "
            f"got {percent(times):g} %"
        )
    if ratio > LIMIT * (1.0 + 1e-9):
        raise ConfigError(
            f"{option}: {percent(times):g} % is {ratio:.3g} times the largest measured p; beyond "
            f"{LIMIT:g} times no interval was ever tested, and none is given"
        )
    return ratio


def check_confidence(confidence: float, above: float = 0.0) -> None:
    """Checks a confidence.

    Raises:
        ConfigError: it is not between ``above`` and 1.
    """
    if not above < confidence < 1.0:
        raise ConfigError(
            f"--confidence: expected a number between {above:g} and 1, got {confidence:g}"
        )


def extrapolate(
    curve: LearningCurve,
    times: float,
    families: Sequence[Family] = FITTED,
    *,
    confidence: float = 0.9,
    replicates: int = 1000,
    seed: int = 0,
    ensemble: Ensemble | None = None,
) -> Extrapolation:
    """Says what ``times`` the full training set would bring.

    Args:
        curve: the measured curve.
        times: amount of data, 1 being the full training set (p = 100 %), whether or not it was
            measured.
        families: which to use.
        confidence: of the intervals, in (0, 1).
        replicates: bootstrap draws per family.
        seed: of the draws.
        ensemble: from :func:`build_ensemble`, to use again; families, replicates and seed are then
            its own.

    Raises:
        DataError: the curve cannot be fitted, no level has repetitions, or every fitted curve is
            above mAP 100 there.
        ConfigError: a setting is out of range; ``times`` is not beyond the curve, or beyond
            :data:`LIMIT`.

    Example:
        >>> from tal_fast.curves import read_curve
        >>> from tal_fast.curves.extrapolation import extrapolate
        >>> found = extrapolate(read_curve("docs/results/hapt"), times=2)
        >>> found.interval[0] < found.value < found.interval[1]
        True
    """
    check_confidence(confidence)
    share = percent(times)
    curve.require_rising()
    ratio = check_times(curve, times)
    if ensemble is None:
        ensemble = build_ensemble(curve, families, replicates=replicates, seed=seed)
    tail = (1.0 - confidence) / 2.0
    levels = (tail, 0.5, 1.0 - tail)
    at = np.array([share])
    low, middle, high = (float(q) for q in ensemble.quantiles(at, levels)[:, 0])
    if low >= CEILING:
        names = ", ".join(fit.family.name for fit in ensemble.fits)
        raise DataError(
            f"{curve.name}: expected curves that stay below mAP {CEILING:g}, got none at "
            f"{share:g} % of the data: all of {names} are above it, so that they do not say what "
            f"more data brings (families that level off need more than "
            f"{counted(len(curve), 'level')} of p)"
        )
    members = []
    for index, fit in enumerate(ensemble.fits):
        bounds = np.quantile(ensemble.family(index, at)[:, 0], (tail, 1.0 - tail))
        members.append(
            Member(
                family=fit.family,
                weight=float(ensemble.weights[index]),
                value=float(np.clip(fit.point(at)[0, 0], 0.0, CEILING)),
                interval=(float(bounds[0]), float(bounds[1])),
                backtest_rmse=ensemble.tests.rmse(fit.family.name),
            )
        )
    return Extrapolation(
        curve=curve,
        share=share,
        confidence=confidence,
        value=middle,
        interval=(low, high),
        last=float(curve.mean[-1]),
        last_error=float(curve.standard_error[-1]),
        drift=0.0 if ensemble.calibrated else ensemble.drift,
        factor=ensemble.factor,
        members=tuple(sorted(members, key=lambda member: -member.weight)),
        reach=ensemble.tests.reach,
        ratio=ratio,
        notes=tuple(_notes(ensemble, ratio)),
    )
