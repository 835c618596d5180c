# SPDX-License-Identifier: Apache-2.0
"""Measured learning curves: what rising shares of the training data brought.

A share is in percent of the training set and mAP in points, 0 to 100, in everything that knows
curves. Files and settings have both in 0..1; :func:`percent` and :func:`part` are the way between.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from tal_fast.errors import DataError
from tal_fast.typing import Floats, Ints

__all__ = [
    "CEILING",
    "DEVIATION_FLOOR",
    "LAST",
    "CurvePoint",
    "LearningCurve",
    "mean_and_deviation",
    "mean_of_known",
    "part",
    "percent",
    "telling_labels",
]

Number = TypeVar("Number", float, Floats)

CEILING = 100.0
"""Largest mAP in points, and so the largest asymptote."""

LAST = "last1"
"""Name of the baseline of all fits: the value at the largest p, for every p beyond."""

DEVIATION_FLOOR = 0.5
"""Smallest standard deviation, in points, that weights go by: five trainings that agree by chance
must not outweigh the rest of the curve."""

_DIP = 3.0  # standard errors of a difference from which a fall is told


def percent(value: Number) -> Number:
    """Returns a share in percent, or mAP in points, from one in 0..1."""
    return 100.0 * value


def part(value: Number) -> Number:
    """Returns a share, or mAP, in 0..1 from one in percent or points."""
    return value / 100.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    """Returns the sample variance; that of the statistics module is exact and 50 times slower."""
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and the sample standard deviation (None for one value)."""
    return _mean(values), math.sqrt(_variance(values)) if len(values) > 1 else None


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Returns the mean; None unless every value is known."""
    known = [float(value) for value in values if value is not None]
    return _mean(known) if known and len(known) == len(values) else None


def _components(draws: Sequence[Sequence[float]]) -> tuple[float | None, float | None]:
    """Returns the standard deviations of trainings on a draw, and of draws alone."""
    repeated = [values for values in draws if len(values) > 1]
    if not repeated:
        return None, None
    freedom = sum(len(values) - 1 for values in repeated)
    within = sum(_variance(values) * (len(values) - 1) for values in repeated) / freedom
    if len(draws) < 2:
        return math.sqrt(within), None
    between = _variance([_mean(values) for values in draws])
    of_training = within / statistics.harmonic_mean([len(values) for values in draws])
    return math.sqrt(within), math.sqrt(max(0.0, between - of_training))


@dataclass(frozen=True)
class CurvePoint:
    """What was measured at one share of the training data.

    Several trainings on one draw are averaged first: mean and deviation are over the draws.

    Attributes:
        share: p in percent, in (0, 100].
        mean: mean of average mAP in points.
        deviation: its sample standard deviation (n - 1); None where there is none.
        n: number of draws.
        draws: average mAP of each draw; empty where only mean and deviation are known.
        names: what tells each draw from all others; curves of the same data that share a name were
            trained on the same sample. Empty where that is not known.
        trainings: average mAP of each training, draw by draw; empty as above.
        seed_deviation: standard deviation of trainings on the same draw, pooled; None where no
            draw has two.
        draw_deviation: standard deviation that the choice of the sample alone brings, the rest of
            ``deviation`` when that of the trainings is taken out (one-way analysis of variance, 0
            where nothing is left); None where either is unknown.
        per_tiou: tIoU threshold -> (mean, deviation) of mAP at it.
        videos: training videos, mean over the trainings; None, as below, where not known.
        instances: annotated instances in them, mean.
        classes: classes that occur in them, mean.
        windows: training windows, mean.
        steps: optimiser steps, mean.
        seconds: wall-clock time of a trial, mean.
    """

    share: float
    mean: float
    deviation: float | None
    n: int
    draws: tuple[float, ...] = ()
    names: tuple[str, ...] = ()
    trainings: tuple[float, ...] = ()
    seed_deviation: float | None = None
    draw_deviation: float | None = None
    per_tiou: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)
    videos: float | None = None
    instances: float | None = None
    classes: float | None = None
    windows: float | None = None
    steps: float | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.deviation is None else f" ± {self.deviation:.2f}")

    @classmethod
    def of_draws(
        cls,
        share: float,
        draws: Sequence[Sequence[float]],
        per_tiou: Mapping[str, Sequence[Sequence[float]]] | None = None,
        **known: float | None,
    ) -> CurvePoint:
        """Returns the point of some trainings.

        Args:
            share: p in percent.
            draws: average mAP in points of the trainings on each draw.
            per_tiou: the same at each tIoU threshold.
            known: the attributes that are means over the trainings.
        """
        means = [_mean(draw) for draw in draws]
        mean, deviation = mean_and_deviation(means)
        seed_deviation, draw_deviation = _components(draws)
        return cls(
            share=share,
            mean=mean,
            deviation=deviation,
            n=len(draws),
            draws=tuple(means),
            names=(),
            trainings=tuple(value for draw in draws for value in draw),
            seed_deviation=seed_deviation,
            draw_deviation=draw_deviation,
            per_tiou={
                key: mean_and_deviation([_mean(draw) for draw in some])
                for key, some in (per_tiou or {}).items()
            },
            **known,
        )


@dataclass(frozen=True, eq=False)
class LearningCurve:
    """mAP at rising shares of the training data.

    Attributes:
        name: what was trained.
        points: one per share, rising.
        labels: what tells the curve from others beside it, as ``{"model": "tadtr"}``.
        videos: number of training videos at p = 100 %, None where it is not known.
        notes: how the file was read, where it left something open.
    """

    name: str
    points: tuple[CurvePoint, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    videos: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for point in self.points:
            at = f"at p = {point.share:g} %"
            if not 0.0 < point.share <= 100.0:
                raise DataError(
                    f"{self.name}: expected p above 0 and at most 1 (100 %), got {point.share:g} %"
                )
            if not 0.0 <= point.mean <= CEILING:
                raise DataError(
                    f"{self.name}: expected mAP of 0 to 100 points {at}, got {point.mean:g}"
                )
            if point.deviation is not None and not 0.0 <= point.deviation < math.inf:
                raise DataError(
                    f"{self.name}: expected a standard deviation of at least 0 {at}, "
                    f"got {point.deviation:g}"
                )
            if point.n < 1:
                raise DataError(
                    f"{self.name}: expected at least one repetition {at}, got {point.n}"
                )
        steps = np.diff(self.share)
        if len(steps) and steps.min() <= 0.0:
            where = self.share[int(np.argmin(steps)) + 1]
            raise DataError(f"{self.name}: expected each p once and rising, got {where:g} % again")

    def __len__(self) -> int:
        return len(self.points)

    def __repr__(self) -> str:
        each = ", ".join(f"{point.share:g} %: {point}" for point in self.points)
        return f"LearningCurve({self.name!r}, {each})"

    @cached_property
    def share(self) -> Floats:
        """P in percent, [n]."""
        return np.array([point.share for point in self.points], dtype=np.float64)

    @cached_property
    def mean(self) -> Floats:
        """Mean mAP in points, [n]."""
        return np.array([point.mean for point in self.points], dtype=np.float64)

    @cached_property
    def deviation(self) -> Floats:
        """Sample standard deviation in points, NaN where there is none, [n]."""
        return _known(point.deviation for point in self.points)

    @cached_property
    def repetitions(self) -> Ints:
        """Draws per level, [n]."""
        return np.array([point.n for point in self.points], dtype=np.int64)

    @cached_property
    def seconds(self) -> Floats:
        """Mean time of a trial in seconds, NaN where it is not known, [n]."""
        return _known(point.seconds for point in self.points)

    @property
    def thresholds(self) -> list[str]:
        """The tIoU thresholds at which mAP is known, rising."""
        return sorted({key for point in self.points for key in point.per_tiou}, key=float)

    @cached_property
    def pooled_deviation(self) -> float:
        """Standard deviation over all levels that have one (NaN if none has)."""
        known = ~np.isnan(self.deviation)
        if not known.any():
            return math.nan
        freedom = np.maximum(self.repetitions[known] - 1, 1)
        return float(np.sqrt(np.average(self.deviation[known] ** 2, weights=freedom)))

    @cached_property
    def spread(self) -> Floats:
        """Standard deviation of each level; the pooled one where a level has none, [n]."""
        return np.where(np.isnan(self.deviation), self.pooled_deviation, self.deviation)

    @cached_property
    def standard_error(self) -> Floats:
        """Standard error of each mean, of deviations not below the floor, [n].

        Without any repetition all are alike, as if the deviation were the floor.
        """
        spread = np.nan_to_num(self.spread, nan=DEVIATION_FLOOR)
        return np.maximum(spread, DEVIATION_FLOOR) / np.sqrt(self.repetitions)

    def until(self, share: float) -> LearningCurve:
        """Returns the levels up to ``share`` percent."""
        count = int(np.searchsorted(self.share, share, side="right"))
        return self.head(count)

    def head(self, count: int) -> LearningCurve:
        """Returns the first ``count`` levels."""
        return replace(self, points=self.points[:count])

    def with_deviation(self, deviation: float) -> LearningCurve:
        """Returns the curve with ``deviation``, in points, at levels that have none."""
        points = (
            replace(point, deviation=deviation) if point.deviation is None else point
            for point in self.points
        )
        return replace(self, points=tuple(points))

    def remarks(self) -> list[str]:
        """Returns what a reader of a fit has to know about the data."""
        remarks = list(self.notes)
        missing = [f"{x:g}" for x in self.share[np.isnan(self.deviation)]]
        if len(missing) == len(self):
            remarks.append(
                "no level has repetitions: all weigh the same, and nothing tells how far a draw "
                "of the data moves the curve"
            )
        elif missing:
            remarks.append(
                f"no repetitions at p = {', '.join(missing)} %: the pooled standard deviation of "
                f"the other levels ({self.pooled_deviation:.2f}) stands in"
            )
        flat = [f"{x:g}" for x in self.share[self.deviation == 0.0]]
        if flat:
            remarks.append(
                f"zero spread at p = {', '.join(flat)} %: weighted with a standard deviation of "
                f"{DEVIATION_FLOOR:g}"
            )
        counts = np.unique(self.repetitions)
        if len(counts) > 1:
            remarks.append(f"repetitions differ between levels, from {counts[0]} to {counts[-1]}")
        for index in range(1, len(self)):
            fall = self.mean[index - 1] - self.mean[index]
            error = math.hypot(self.standard_error[index - 1], self.standard_error[index])
            if fall > _DIP * error:
                remarks.append(
                    f"mAP falls by {fall:.2f} from p = {self.share[index - 1]:g} to "
                    f"{self.share[index]:g} %, {fall / error:.1f} standard errors: no family here "
                    "can fall"
                )
        return remarks

    def require_rising(self) -> None:
        """Checks that a rising shape can be laid through the curve.

        Raises:
            DataError: there are fewer than three levels, or mAP does not rise.
        """
        if len(self) < 3:
            raise DataError(
                f"{self.name}: expected at least 3 levels of p, got {len(self)}; two points fix a "
                "line and test nothing"
            )
        if np.ptp(self.mean) == 0.0:
            raise DataError(
                f"{self.name}: mAP is {self.mean[0]:g} at every p: there is no curve to fit"
            )
        # The slope over ln p, as the least that more data should bring.
        weight = self.standard_error**-2
        log_share = np.log(self.share)
        centred = log_share - np.average(log_share, weights=weight)
        if float((weight * centred * self.mean).sum()) <= 0.0:
            raise DataError(
                f"{self.name}: mAP does not rise with p (from {self.mean[0]:.2f} at "
                f"{self.share[0]:g} % to {self.mean[-1]:.2f} at {self.share[-1]:g} %): no family "
                "here can fall"
            )


def _known(values: Iterable[float | None]) -> Floats:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def telling_labels(curves: Sequence[LearningCurve]) -> list[str]:
    """Returns the labels that differ between curves."""
    keys = dict.fromkeys(key for curve in curves for key in curve.labels)
    return [key for key in keys if len({curve.labels.get(key) for curve in curves}) > 1]
