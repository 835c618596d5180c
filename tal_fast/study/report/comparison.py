# SPDX-License-Identifier: Apache-2.0
"""What differs between the curves of a study: by budget, weight averaging, sampling, and in shape.

Budgets of one sampling share their draws and seeds, and modes of averaging even the training, so
those are compared pair by pair: what a draw brings to both sides falls out of the difference.
Samplings draw apart from each other and are compared by their means.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tal_fast.averaging import start_kept
from tal_fast.curves import LearningCurve
from tal_fast.curves.learning_curve import mean_and_deviation, mean_of_known, percent
from tal_fast.study.trial import TrialRecord

__all__ = [
    "LABELS",
    "Comparison",
    "Difference",
    "InitialWeight",
    "Scores",
    "Shape",
    "compare",
    "curve_shape",
    "initial_weights",
    "key_of",
    "score_table",
]

LABELS = ("sampling", "budget", "ema")
"""What tells the curves of a study apart."""

Key = tuple[str, str, str]
"""Sampling, budget and mode of averaging: what names a curve."""


def key_of(curve: LearningCurve) -> Key:
    """Returns what names a curve."""
    sampling, budget, mode = (curve.labels[label] for label in LABELS)
    return sampling, budget, mode


# Slopes that differ by this many standard errors are told apart.
_TOLD_APART = 2.0


@dataclass(frozen=True)
class Difference:
    """Two curves at one p.

    Attributes:
        share: p in percent.
        pairs: draws that both sides trained on; None where the sides draw apart.
        mean: mean difference of average mAP, second side minus first, in points.
        error: its standard error; None where a side has one draw only.
        steps: optimiser steps of the first and the second side, mean; None where not known.
    """

    share: float
    pairs: int | None
    mean: float
    error: float | None
    steps: tuple[float | None, float | None]


@dataclass(frozen=True)
class Comparison:
    """Two curves that differ in one thing.

    Attributes:
        first: the curve that is taken off: sampling, budget, mode of averaging.
        second: the curve that it is taken off from.
        differences: one per p that both have, rising.
    """

    first: Key
    second: Key
    differences: tuple[Difference, ...]


Scores = dict[Key, dict[float, dict[tuple[int, int], tuple[float, float | None]]]]
"""Curve -> p in percent -> (repetition, training) -> average mAP in points, and steps if known."""


def score_table(records: Iterable[TrialRecord]) -> Scores:
    """Returns what the comparisons compare.

    Args:
        records: of the trials.
    """
    table: Scores = {}
    for record in records:
        trial = record.trial
        for mode, scores in record.scores.items():
            levels = table.setdefault((trial.sampling, trial.budget, mode), {})
            score = percent(scores.average_map), record.told("steps")
            levels.setdefault(trial.share, {})[trial.repetition, trial.training] = score
    return table


_Side = Mapping[tuple[int, int], tuple[float, float | None]]


def _mean_steps(side: _Side, trials: Iterable[tuple[int, int]]) -> float | None:
    return mean_of_known([side[trial][1] for trial in trials])


def _by_draw(values: Iterable[tuple[int, float]]) -> list[float]:
    """Returns the mean over the trainings of each draw, from (repetition, value)."""
    draws: dict[int, list[float]] = {}
    for repetition, value in values:
        draws.setdefault(repetition, []).append(value)
    return [statistics.fmean(draw) for draw in draws.values()]


def _standard_error(values: Sequence[float]) -> float | None:
    deviation = mean_and_deviation(values)[1]
    return None if deviation is None else deviation / math.sqrt(len(values))


def _paired(share: float, first: _Side, second: _Side) -> Difference | None:
    both = sorted(set(first) & set(second))
    if not both:
        return None
    draws = _by_draw((trial[0], second[trial][0] - first[trial][0]) for trial in both)
    return Difference(
        share=share,
        pairs=len(draws),
        mean=statistics.fmean(draws),
        error=_standard_error(draws),
        steps=(_mean_steps(first, both), _mean_steps(second, both)),
    )


def _apart(share: float, first: _Side, second: _Side) -> Difference:
    sides = [
        _by_draw((trial[0], side[trial][0]) for trial in sorted(side)) for side in (first, second)
    ]
    errors = [_standard_error(side) for side in sides]
    known = [error for error in errors if error is not None]
    return Difference(
        share=share,
        pairs=None,
        mean=statistics.fmean(sides[1]) - statistics.fmean(sides[0]),
        error=math.hypot(*known) if len(known) == 2 else None,
        steps=(_mean_steps(first, first), _mean_steps(second, second)),
    )


def _compare(cells: Scores, first: Key, second: Key, *, paired: bool) -> Comparison | None:
    differences = []
    for share in sorted(set(cells[first]) & set(cells[second])):
        sides = cells[first][share], cells[second][share]
        difference = _paired(share, *sides) if paired else _apart(share, *sides)
        if difference is not None:
            differences.append(difference)
    return Comparison(first, second, tuple(differences)) if differences else None


def _against_first(keys: Sequence[Key], place: int) -> Iterator[tuple[Key, Key]]:
    """Yields the pairs of curves that differ in ``place`` alone, each against the first there."""
    heads: dict[tuple[str, ...], Key] = {}
    for key in keys:
        rest = (*key[:place], *key[place + 1 :])
        if rest in heads:
            yield heads[rest], key
        else:
            heads[rest] = key


def compare(scores: Scores, curves: Sequence[LearningCurve], by: str) -> list[Comparison]:
    """Compares every curve with the first of those that differ from it in one thing alone.

    Args:
        scores: from :func:`score_table`.
        curves: the curves built from the same records.
        by: label that differs: ``"budget"``, on the same draws and seeds, ``"ema"``, within each
            training, or ``"sampling"``, whose draws are not paired.
    """
    keys = [key_of(curve) for curve in curves]
    pairs = _against_first(keys, LABELS.index(by))
    comparisons = (_compare(scores, *pair, paired=by != "sampling") for pair in pairs)
    return [comparison for comparison in comparisons if comparison is not None]


@dataclass(frozen=True)
class InitialWeight:
    """How much of the tested weights of a plain average is still the random start, at one p.

    Attributes:
        share: p in percent.
        steps: optimiser steps, mean over the trials.
        kept: :func:`tal_fast.averaging.start_kept`, mean over the trials.
    """

    share: float
    steps: float
    kept: float


def initial_weights(scores: Scores, decay: float) -> dict[tuple[str, str], list[InitialWeight]]:
    """Returns the weight of the start in a plain moving average.

    Args:
        scores: from :func:`score_table`.
        decay: decay of the average per step, in 0..1.

    Returns:
        (sampling, budget) -> one entry per p whose trials all tell their steps, rising.
    """
    result: dict[tuple[str, str], list[InitialWeight]] = {}
    for (sampling, budget, _), levels in scores.items():
        if (sampling, budget) in result:
            continue  # another mode of averaging of the same trainings
        rows = result.setdefault((sampling, budget), [])
        for share, side in sorted(levels.items()):
            steps = [value[1] for value in side.values()]
            known = [value for value in steps if value is not None]
            if len(known) == len(steps):
                kept = statistics.fmean(start_kept(decay, value) for value in known)
                rows.append(InitialWeight(share, statistics.fmean(known), kept))
    return result


@dataclass(frozen=True)
class Shape:
    """Where a curve is steepest, the point (0, 0) counted in: no data, no score.

    Attributes:
        between: the two neighbouring shares, in percent, with the largest slope between them.
        excess: that slope minus the first one, from 0 to the smallest p, in standard errors; 0
            where they are the same, None where the deviations are not known.
    """

    between: tuple[float, float]
    excess: float | None

    @property
    def sigmoid(self) -> bool | None:
        """Whether the curve is steeper later than at its start; None where that is not known."""
        if self.between[0] == 0.0:
            return False
        return None if self.excess is None else self.excess >= _TOLD_APART


def curve_shape(curve: LearningCurve) -> Shape:
    """Says whether a curve starts slowly (an S) or is steepest at its start.

    The standard error is that of the difference of the two slopes, the levels taken as independent.
    """
    points = curve.points
    x = [0.0, *(point.share for point in points)]
    y = [0.0, *(point.mean for point in points)]
    errors = [0.0, *(curve.deviation / np.sqrt(curve.repetitions)).tolist()]
    slopes = [(y[i + 1] - y[i]) / (x[i + 1] - x[i]) for i in range(len(points))]
    top = max(range(len(slopes)), key=slopes.__getitem__)
    # The difference of the slopes as a sum over the levels, some of which both may share.
    weights = [0.0] * len(x)
    for index, sign in ((top, 1.0), (0, -1.0)):
        width = x[index + 1] - x[index]
        weights[index + 1] += sign / width
        weights[index] -= sign / width
    used = [(w, e) for w, e in zip(weights, errors, strict=True) if w]
    error = math.sqrt(math.fsum((w * e) ** 2 for w, e in used))
    excess: float | None = 0.0
    if top:
        gap = slopes[top] - slopes[0]
        excess = None if math.isnan(error) else gap / error if error else math.inf
    return Shape((x[top], x[top + 1]), excess)
