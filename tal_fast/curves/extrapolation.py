# SPDX-License-Identifier: Apache-2.0
"""What a curve says about more data than it has seen, with an interval that has been tested.

The interval joins three uncertainties. Within a family: bootstrap over the draws. Between families:
each counts by what it predicted in the backtest, never one alone. Beyond both: where the backtest
shows that all families together missed by more than they differ, that excess, per unit of
ln(p / q), is added (the *drift*).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tal_fast.curves.families import CEILING, FITTED, Family
from tal_fast.curves.fit import LAST, Backtest, Replicates, backtest, fit_families
from tal_fast.curves.learning_curve import LearningCurve, percent
from tal_fast.errors import ConfigError, DataError
from tal_fast.typing import Floats

__all__ = [
    "LIMIT",
    "Ensemble",
    "Extrapolation",
    "Member",
    "build_ensemble",
    "check_times",
    "extrapolate",
    "join_families",
    "require_spread",
    "weighted_quantiles",
]


LIMIT = 5.0
"""Times the largest measured p beyond which nothing is said: docs/curve-fits.md has calibrated
the intervals up to here."""


def weighted_quantiles(values: Floats, weights: Floats, levels: Sequence[float]) -> Floats:
    """Returns quantiles of weighted values along the first axis.

    Args:
        values: [N, ...].
        weights: [N], not negative.
        levels: shares in 0..1, [Q].

    Returns:
        [Q, ...]: the smallest value at which the share of the weight reaches the level.
    """
    order = np.argsort(values, axis=0)
    ordered = np.take_along_axis(values, order, axis=0)
    cumulative = np.cumsum(weights[order], axis=0) / weights.sum()
    # Sums that should be 1 may end a rounding below it.
    index = [(cumulative < level - 1e-12).sum(axis=0) for level in levels]
    return np.stack(
        [
            np.take_along_axis(ordered, np.minimum(i, len(values) - 1)[None], axis=0)[0]
            for i in index
        ]
    )


@dataclass(frozen=True)
class Ensemble:
    """Curves that the measured one may follow, each with a weight.

    Attributes:
        curve: the measured curve.
        fits: the families.
        tests: their backtest.
        weights: of the families, sum 1, [F].
        drift: points of error of all families together, per unit of ln(p / q), beyond their
            differences.
        noise: a standard normal number per family and draw, [F, R].
    """

    curve: LearningCurve
    fits: tuple[Replicates, ...]
    tests: Backtest
    weights: Floats
    drift: float
    noise: Floats

    @property
    def draw_weights(self) -> Floats:
        """Weight of each curve, [F R]."""
        return np.repeat(self.weights / self.noise.shape[1], self.noise.shape[1])

    def family(self, index: int, share: Floats, *, drift: bool = True) -> Floats:
        """Returns the curves of one family at ``share`` percent, [R, n], in points."""
        y = self.fits[index].draws(share)
        if drift:
            beyond = np.maximum(0.0, np.log(share / self.curve.share[-1]))
            y = y + self.drift * self.noise[index][:, None] * beyond
        return np.clip(y, 0.0, CEILING)

    def sample(self, share: Floats, *, drift: bool = True) -> Floats:
        """Returns all curves at ``share`` percent, [F R, n], in points; see `draw_weights`."""
        return np.concatenate(
            [self.family(index, share, drift=drift) for index in range(len(self.fits))]
        )

    def quantiles(self, share: Floats, levels: Sequence[float]) -> Floats:
        """Returns quantiles of mAP at ``share`` percent, [Q, n]."""
        return weighted_quantiles(self.sample(share), self.draw_weights, levels)


def _filled(values: Floats) -> Floats:
    """Puts the median of what is known where nothing is."""
    known = ~np.isnan(values)
    return np.where(known, values, np.median(values[known])) if known.any() else values


def _drift(curve: LearningCurve, tests: Backtest, names: Sequence[str], weights: Floats) -> float:
    """Returns the error of all families together that their differences do not explain.

    In the backtest the squared error of the weighted mean is taken as sampling error of what came,
    plus variance between families, plus (drift · ln(p / q))². Predictions count that at least a
    third of the weight could make.
    """
    errors = np.stack([tests.errors[name] for name in names])  # [F, C, n]
    known = ~np.isnan(errors)
    share = np.where(known, weights[:, None, None], 0.0)
    total = share.sum(axis=0)
    counted = total > 1.0 / 3.0
    if not counted.any():
        # Nothing was tested: as wrong as the last value would have been one level before.
        rise = abs(float(curve.mean[-1] - curve.mean[-2]))
        return rise / math.log(curve.share[-1] / curve.share[-2])
    share = share / np.where(counted, total, 1.0)
    errors = np.where(known, errors, 0.0)
    mean = (share * errors).sum(axis=0)
    between = (share * (errors - mean) ** 2).sum(axis=0)
    distance = tests.distance
    excess = (mean**2 - tests.standard_error**2 - between)[counted].sum()
    return math.sqrt(max(0.0, float(excess)) / float((distance[counted] ** 2).sum()))


def require_spread(curve: LearningCurve) -> None:
    """Checks that something tells how far a draw of the data moves the curve.

    Raises:
        DataError: no level has repetitions.
    """
    if math.isnan(curve.pooled_deviation):
        raise DataError(
            f"{curve.name}: expected repetitions at some level, got none: nothing tells how far a "
            "draw of the data moves the curve; give its standard deviation with --deviation"
        )


def build_ensemble(
    curve: LearningCurve,
    families: Sequence[Family] = FITTED,
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> Ensemble:
    """Fits, backtests and weights the families.

    A family's weight is one over its root mean square error in the backtest, to whose square the
    sampling error of what came is added: a family that hit by luck must not take all. A family that
    the curve is too short to test counts as the median of the others.

    Args:
        curve: the measured curve.
        families: which to use.
        replicates: bootstrap draws per family.
        seed: of the draws.

    Raises:
        DataError: the curve has fewer than three levels, does not rise, or has no repetitions.
    """
    require_spread(curve)
    rng = np.random.default_rng(seed)
    fits = fit_families(curve, families, replicates=replicates, rng=rng)
    if not fits:
        raise ConfigError(
            f"{curve.name}: {len(curve)} levels of p are too few for "
            f"{', '.join(family.name for family in families)}"
        )
    return join_families(curve, fits, backtest(curve, fits), rng)


def join_families(
    curve: LearningCurve, fits: Sequence[Replicates], tests: Backtest, rng: np.random.Generator
) -> Ensemble:
    """Weights families that were fitted and backtested before; see :func:`build_ensemble`."""
    names = [fit.family.name for fit in fits]
    sampling = float(np.mean(curve.standard_error**2))
    scores = _filled(np.array([tests.rmse(name) for name in names]))
    if np.isnan(scores).any():
        scores = np.ones(len(names))
    weights = 1.0 / np.sqrt(scores**2 + sampling)
    weights /= weights.sum()
    noise = rng.standard_normal((len(fits), len(fits[0].draws.a)))
    return Ensemble(curve, tuple(fits), tests, weights, _drift(curve, tests, names, weights), noise)


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
        drift: see :class:`Ensemble`.
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
        DataError: the curve cannot be fitted, or no level has repetitions.
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
    members = []
    for index, fit in enumerate(ensemble.fits):
        own = np.quantile(ensemble.family(index, at, drift=False)[:, 0], (tail, 1.0 - tail))
        members.append(
            Member(
                family=fit.family,
                weight=float(ensemble.weights[index]),
                value=float(np.clip(fit.point(at)[0, 0], 0.0, CEILING)),
                interval=(float(own[0]), float(own[1])),
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
        drift=ensemble.drift,
        members=tuple(sorted(members, key=lambda member: -member.weight)),
        reach=ensemble.tests.reach,
        ratio=ratio,
        notes=tuple(_notes(ensemble, ratio)),
    )
