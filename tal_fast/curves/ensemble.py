# SPDX-License-Identifier: Apache-2.0
"""The curves that a measured one may follow, each with a weight.

They carry two uncertainties. Within a family: bootstrap over the draws. Between families:
each counts by what it predicted in the backtest, never one alone, and starts from about the last
measured value: a family that misses it is drawn to it (:meth:`Ensemble.family`). Deviations from
the median are taken times :data:`FACTOR`, which was calibrated.

Where there are too few families for their differences to say much, nothing is drawn to the last
value and there is no factor. A third uncertainty is added: where the backtest shows that all
families together missed by more than they differ, that excess per unit of ln(p / q), the *drift*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tal_fast.curves.families import CEILING, FITTED, Family
from tal_fast.curves.fit import Backtest, Replicates, backtest, fit_families
from tal_fast.curves.learning_curve import LearningCurve
from tal_fast.errors import ConfigError, DataError, both_ways, counted
from tal_fast.typing import Floats

__all__ = [
    "FACTOR",
    "FEWEST",
    "Ensemble",
    "build_ensemble",
    "join_families",
    "require_spread",
    "weighted_quantiles",
]

FACTOR = 0.9
"""What the deviations of the ensemble from its median are multiplied with. It comes from
``benchmarks/calibrate_intervals.py``; docs/curve-fits.md has the command and what was tried."""

FEWEST = 4
"""Families from which on the calibration holds; with fewer, the drift takes its place."""


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

    @property
    def calibrated(self) -> bool:
        """Whether there are enough families for the calibration to hold; else there is drift."""
        return len(self.fits) >= FEWEST

    @property
    def factor(self) -> float:
        """What deviations from the median are multiplied with."""
        return FACTOR if self.calibrated else 1.0

    @cached_property
    def scatter(self) -> float:
        """How far the last measured value may be off, in points.

        Its standard error, or the residual standard deviation of the best family if that is larger:
        draws that are alike by chance, or share videos, look surer than they are.
        """
        curve = self.curve
        residual = [
            float(((fit.point(curve.share)[0] - curve.mean) ** 2).sum())
            / max(1, len(curve) - fit.family.parameters)
            for fit in self.fits
        ]
        return max(float(curve.standard_error[-1]), math.sqrt(min(residual)))

    def _shift(self, index: int) -> Floats:
        """Returns what draws the curves of a family to the last measured value, [R, 1]."""
        curve, fit, end = self.curve, self.fits[index], self.curve.share[-1:]
        miss = float(fit.point(end)[0, 0] - curve.mean[-1]) ** 2
        gain = miss / (miss + self.scatter**2)
        error = math.sqrt(gain) * self.scatter * self.noise[index][:, None]
        return gain * (curve.mean[-1] - fit.draws(end)) + error

    @property
    def asymptotes(self) -> Floats:
        """What the curves of `sample` tend to, in points; infinity where there is no end, [F R]."""
        ends = []
        for index, fit in enumerate(self.fits):
            a = fit.draws.a if fit.family.bounded else np.full(len(fit.draws.a), np.inf)
            ends.append(a + self._shift(index)[:, 0] if self.calibrated else a)
        values = np.concatenate(ends)
        (median,) = weighted_quantiles(values, self.draw_weights, (0.5,))
        return median + self.factor * (values - median) if np.isfinite(median) else values

    def family(
        self, index: int, share: Floats, *, anchored: bool = False, drift: bool = False
    ) -> Floats:
        """Returns the curves of one family at ``share`` percent, [R, n], in points.

        Args:
            index: of the family.
            share: in percent, [n].
            anchored: whether the family is drawn to the last measured value: as an estimate with
                the error of its miss there is by a measurement with that of :attr:`scatter`. Within
                the data that fades out towards the first level, over ln p.
            drift: whether to add the drift beyond the largest measured p.
        """
        curve, end = self.curve, self.curve.share[-1:]
        y = self.fits[index].draws(share)
        if anchored:
            way = np.log(share / curve.share[0]) / np.log(end / curve.share[0])
            y = y + self._shift(index) * np.clip(way, 0.0, 1.0)
        if drift:
            beyond = np.maximum(0.0, np.log(share / end))
            y = y + self.drift * self.noise[index][:, None] * beyond
        return np.clip(y, 0.0, CEILING)

    def sample(
        self,
        share: Floats,
        *,
        anchored: bool | None = None,
        drift: bool | None = None,
        factor: float | None = None,
    ) -> Floats:
        """Returns all curves at ``share`` percent, [F R, n], in points; see `draw_weights`.

        Args:
            share: in percent, [n].
            anchored: see :meth:`family`; as calibrated for None.
            drift: see :meth:`family`; as calibrated for None.
            factor: of the deviations from the median; as calibrated for None.
        """
        anchored = self.calibrated if anchored is None else anchored
        drift = not self.calibrated if drift is None else drift
        factor = self.factor if factor is None else factor
        values = np.concatenate(
            [
                self.family(index, share, anchored=anchored, drift=drift)
                for index in range(len(self.fits))
            ]
        )
        if factor == 1.0:
            return values
        (median,) = weighted_quantiles(values, self.draw_weights, (0.5,))
        return np.clip(median + factor * (values - median), 0.0, CEILING)

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
            "draw of the data moves the curve; repeat the trainings, or give its standard "
            "deviation to extrapolate or plan: "
            f"{both_ways('--deviation POINTS', 'curve.with_deviation(points)')}"
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
            f"{curve.name}: {counted(len(curve), 'level')} of p are too few for "
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
