# SPDX-License-Identifier: Apache-2.0
"""What finished trials say about mAP at one share, about a gain, and what a trial costs.

**Variance.** At p < 100 % the trainings of a draw are averaged, and draws vary; at 100 % all draws
are the same videos, so that only trainings (seeds) do. The variance of a level is pooled with that
of levels whose p is at most a factor of two away, like with like: draws with draws, and at 100 %
the trainings within draws, as far as there are several of a draw.

**Few trainings.** Intervals are those of Student's t, of deviations not below the floor of all
curves.

**Looking again and again.** A study that stops once its interval is narrow stops where its
trainings happened to agree: with plain t-intervals of 90 % that hold 80 to 90 %. So the interval
that may end a study needs :data:`FEWEST` trainings and is that of half the error (95 % where 90 %
is asked for);
then what is asked for holds (docs/adaptive-studies.md). A study that stops once a difference is
clear stops where chance made it so: each of :data:`LOOKS` looks gets an equal part of the error.
More looks than that cost little, since they hang together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tal_fast.curves.learning_curve import DEVIATION_FLOOR, CurvePoint, LearningCurve, part

__all__ = [
    "ALL",
    "FEWEST",
    "LOOKS",
    "PART",
    "Belief",
    "Prices",
    "measured_belief",
    "point_at",
    "quantile",
    "stopping_width",
    "values_at",
]

ALL = 100.0
LOOKS = 5
"""Parts into which the error of an order is split, since a study looks after every training."""

FEWEST = 3
"""Trainings before an interval may end a study."""

PART = 0.5
"""Part of the error asked for that an interval may have which ends a study."""

_NEAR = 2.0
_LEAST_SECONDS = 1e-3  # as records are rounded
_TEST_SHARE = 0.1  # of a full training, for the test videos; where only one p has times


def point_at(curve: LearningCurve | None, share: float) -> CurvePoint | None:
    """Returns the point at ``share`` percent, if there is one."""
    points = () if curve is None else curve.points
    return next((point for point in points if abs(point.share - share) < 1e-6), None)


@dataclass(frozen=True)
class Belief:
    """What is known of a number in points.

    Attributes:
        value: its estimate.
        error: standard error of that.
        freedom: degrees of freedom of the error; infinite for a forecast.
        count: trainings or draws behind it; 0 for a forecast.
        deviation: standard deviation of one of them; 0 for a forecast.
    """

    value: float
    error: float
    freedom: float
    count: int = 0
    deviation: float = 0.0

    def half_width(self, confidence: float) -> float:
        """Returns half the width of the interval."""
        return quantile(0.5 + confidence / 2.0, self.freedom) * self.error

    def with_more(self, more: int) -> Belief:
        """Returns the belief once ``more`` trainings are known that vary as those before."""
        if not (more and self.count):
            return self
        count = self.count + more
        error = self.deviation / math.sqrt(count)
        return replace(self, error=error, freedom=self.freedom + more, count=count)


def quantile(level: float, freedom: float) -> float:
    """Returns a quantile of Student's t, that of the normal distribution for infinite freedom."""
    from scipy.stats import norm, t

    return float(norm.ppf(level) if math.isinf(freedom) else t.ppf(level, freedom))


def values_at(point: CurvePoint) -> tuple[float, ...]:
    """Returns what varies at a level: trainings at 100 %, the means of draws elsewhere."""
    return point.trainings if point.share >= ALL else point.draws


def _squares(values: Sequence[float]) -> tuple[float, int]:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values), len(values) - 1


def _near(curve: LearningCurve, share: float) -> tuple[float, int]:
    """Returns sum of squares and degrees of freedom of the levels around ``share``."""
    squares, freedom = 0.0, 0
    for point in curve.points:
        if point.share == share or not share / _NEAR <= point.share <= share * _NEAR:
            continue
        if share < ALL <= point.share:
            continue  # no draws there
        if share < ALL:
            squares_here = _squares(point.draws)
        else:
            count = len(point.trainings) - point.n
            squares_here = ((point.seed_deviation or 0.0) ** 2 * count, count)
        squares, freedom = squares + squares_here[0], freedom + squares_here[1]
    return squares, freedom


def measured_belief(curve: LearningCurve, share: float) -> Belief | None:
    """Returns what the trials at ``share`` say of the mean there; None for fewer than two."""
    point = point_at(curve, share)
    if point is None:
        return None
    values = values_at(point)
    if len(values) < 2:
        return None
    squares, freedom = _squares(values)
    near, more = _near(curve, share)
    freedom += more
    deviation = max(math.sqrt((squares + near) / freedom), DEVIATION_FLOOR)
    error = deviation / math.sqrt(len(values))
    mean = math.fsum(values) / len(values)
    return Belief(mean, error, float(freedom), len(values), deviation)


def stopping_width(belief: Belief, confidence: float, more: int = 0) -> float:
    """Returns half the width of the interval that may end a study; infinite for too few trainings.

    Args:
        belief: measured.
        confidence: of the interval.
        more: trainings that are not there yet, and vary as those known.
    """
    then = belief.with_more(more)
    if then.count < FEWEST:
        return math.inf
    return then.half_width(1.0 - (1.0 - confidence) * PART)


class Prices:
    """Seconds of a trial by its share, from those that are finished.

    Args:
        curve: of the finished trials.
    """

    def __init__(self, curve: LearningCurve | None) -> None:
        points = () if curve is None else curve.points
        self._seconds = {
            p.share: max(p.seconds, _LEAST_SECONDS) for p in points if p.seconds is not None
        }

    @property
    def known(self) -> bool:
        """Whether any time is known; else a full training counts as one."""
        return bool(self._seconds)

    def __call__(self, share: float) -> float:
        """Returns what a trial at ``share`` percent takes: there, or by a line through all."""
        if share in self._seconds:
            return self._seconds[share]
        if len(self._seconds) > 1:
            from scipy.optimize import nnls

            shares = np.array(list(self._seconds))
            columns = np.stack((np.ones(len(shares)), shares), axis=1)
            (start, slope), _ = nnls(columns, np.array(list(self._seconds.values())))
            return max(float(start + slope * share), _LEAST_SECONDS)
        if not self._seconds:
            return part(share) + _TEST_SHARE
        ((other, seconds),) = self._seconds.items()
        return seconds * (part(share) + _TEST_SHARE) / (part(other) + _TEST_SHARE)
