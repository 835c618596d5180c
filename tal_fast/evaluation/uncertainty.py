# SPDX-License-Identifier: Apache-2.0
"""How much of a number is chance: the bootstrap over videos.

Videos, not instances, are what a data set is a sample of. A replicate draws as many videos as there
are, with replacement, and computes AP from their detections; nothing is matched again, because
matching happens within a video.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tal_fast.errors import ConfigError, DataError
from tal_fast.evaluation.result import EvaluationResult, points
from tal_fast.typing import Floats

__all__ = ["Comparison", "Interval", "Uncertainty", "bootstrap", "compare"]


@dataclass(frozen=True)
class Interval:
    """A value, 0..1, and where it lies with some confidence, by percentiles of the replicates.

    As text in points, 0 to 100.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{points(self.value)} [{points(self.low)}, {points(self.high)}] points"


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Intervals of a result.

    Attributes:
        average_map: of the mean over thresholds.
        map_per_threshold: one per threshold.
        ap: float64 [2, classes, thresholds], lower and upper ends; NaN without instances.
        confidence: share of replicates within.
        replicates: their number.
        seed: of the draws.
        samples: float64 [replicates], average mAP of each.
    """

    average_map: Interval
    map_per_threshold: tuple[Interval, ...]
    ap: Floats
    confidence: float
    replicates: int
    seed: int
    samples: Floats

    def to_dict(self) -> dict[str, Any]:
        """Returns the intervals as JSON types."""
        return {
            "confidence": self.confidence,
            "replicates": self.replicates,
            "seed": self.seed,
            "average_map": [self.average_map.low, self.average_map.high],
            "map_per_threshold": [[i.low, i.high] for i in self.map_per_threshold],
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two results over the same videos.

    Attributes:
        difference: of average mAP, second minus first.
        per_threshold: likewise for each threshold.
        p_value: two-sided: how often replicates put the difference on the other side of zero.
        larger_than_noise: whether the interval of ``difference`` leaves out zero.
        confidence: of the intervals.
        replicates: their number.
    """

    difference: Interval
    per_threshold: tuple[Interval, ...]
    p_value: float
    larger_than_noise: bool
    confidence: float
    replicates: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the comparison as JSON types."""
        return {
            "difference": self.difference.value,
            "interval": [self.difference.low, self.difference.high],
            "per_threshold": [[i.value, i.low, i.high] for i in self.per_threshold],
            "p_value": self.p_value,
            "larger_than_noise": self.larger_than_noise,
            "confidence": self.confidence,
            "replicates": self.replicates,
        }

    def __str__(self) -> str:
        verdict = "larger than" if self.larger_than_noise else "within"
        return (
            f"average mAP {points(self.difference.value, '+')} "
            f"[{points(self.difference.low, '+')}, {points(self.difference.high, '+')}] points, "
            f"p = {self.p_value:.3g}: "
            f"{verdict} the noise over videos"
        )


def bootstrap(
    result: EvaluationResult, *, replicates: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Uncertainty:
    """Confidence intervals of AP and mAP over videos.

    Args:
        result: of an evaluation.
        replicates: number of draws.
        confidence: share of replicates that the intervals hold.
        seed: of the draws; the same for any number of threads.

    Raises:
        ConfigError: a number is out of range.
        DataError: the result has no arrays, or its mean is NaN.
    """
    ap = _replicates("bootstrap", result, replicates, confidence, seed)
    means = _means(ap)
    ends = np.full((2, *result.ap.shape), np.nan)
    ends[:, result.require_source("bootstrap").counted] = _quantiles(ap, confidence)
    return Uncertainty(
        average_map=_interval(result.average_map, means.mean(axis=1), confidence),
        map_per_threshold=tuple(
            _interval(float(value), means[:, k], confidence)
            for k, value in enumerate(result.map_per_threshold)
        ),
        ap=ends,
        confidence=confidence,
        replicates=replicates,
        seed=seed,
        samples=means.mean(axis=1),
    )


def compare(
    first: EvaluationResult,
    second: EvaluationResult,
    *,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Is the difference of two results on the same videos larger than the noise over videos?

    Every replicate draws the same videos for both, so that what is hard for both cancels.

    Args:
        first: of an evaluation.
        second: of another one, on the same ground truth with the same thresholds and dialect.
        replicates: number of draws.
        confidence: of the intervals.
        seed: of the draws.

    Raises:
        ConfigError: a number is out of range, or the two evaluated different things.
        DataError: a result has no arrays, or its mean is NaN.
    """
    for name in ("tiou_thresholds", "dialect", "num_videos", "classes"):
        a, b = getattr(first, name), getattr(second, name)
        if a != b:
            raise ConfigError(
                f"compare: expected results with equal {name}, got {a!r:.80} and {b!r:.80}"
            )
    replicates_of_first = _replicates("compare", first, replicates, confidence, seed)
    other = _replicates("compare", second, replicates, confidence, seed)
    truths = [
        (truth.video, truth.label, truth.start, truth.end)
        for truth in (result.require_source("compare").truth for result in (first, second))
    ]
    if not all(np.array_equal(a, b) for a, b in zip(*truths, strict=True)):
        raise ConfigError("compare: expected results over the same instances, got others")
    gained = _means(other) - _means(replicates_of_first)
    average = gained.mean(axis=1)
    difference = _interval(second.average_map - first.average_map, average, confidence)
    below = (1 + np.count_nonzero(average <= 0)) / (replicates + 1)
    above = (1 + np.count_nonzero(average >= 0)) / (replicates + 1)
    return Comparison(
        difference=difference,
        per_threshold=tuple(
            _interval(float(b - a), gained[:, k], confidence)
            for k, (a, b) in enumerate(
                zip(first.map_per_threshold, second.map_per_threshold, strict=True)
            )
        ),
        p_value=min(1.0, 2 * min(below, above)),
        larger_than_noise=difference.low > 0 or difference.high < 0,
        confidence=confidence,
        replicates=replicates,
    )


def _replicates(
    function: str, result: EvaluationResult, replicates: int, confidence: float, seed: int
) -> Floats:
    """Returns AP [replicates, counted classes, thresholds]."""
    if replicates < 1 or not 0 < confidence < 1 or seed < 0:
        raise ConfigError(
            f"{function}: expected replicates >= 1, 0 < confidence < 1 and seed >= 0, got "
            f"{replicates}, {confidence} and {seed}"
        )
    source = result.require_source(function)
    if np.isnan(result.average_map):
        raise DataError(f"{function}: expected a result with a number, its average mAP is NaN")
    native = result.native or source.native(result.tiou_thresholds)
    ap = native.resample(replicates, seed)
    # A class that counts as 0 for want of instances (strict) stays 0.
    ap[:, source.counted & (result.ground_truth_per_class == 0)] = 0.0
    return ap[:, source.counted]


def _means(ap: Floats) -> Floats:
    """Returns mAP [replicates, thresholds] over the classes that a replicate has instances of."""
    there = ~np.isnan(ap)
    return np.where(there, ap, 0.0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)


def _quantiles(ap: Floats, confidence: float) -> Floats:
    tail = (1 - confidence) / 2
    ends = np.full((2, *ap.shape[1:]), np.nan)
    some = ~np.isnan(ap).all(axis=0)
    ends[:, some] = np.nanquantile(ap[:, some], [tail, 1 - tail], axis=0)
    return ends


def _interval(value: float, samples: Floats, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail]).tolist()
    return Interval(float(value), low, high)
