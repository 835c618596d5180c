# SPDX-License-Identifier: Apache-2.0
"""Which of several models is best with all the data, and how little data tells so.

The order at p = 100 % is what counts: measured where a pilot reaches it, else a forecast of its
curve. At every common level the draws are drawn again (resampled) twice, once for how far the
measured means may be off and once as the new, smaller study whose order is in question.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tal_fast.curves.ensemble import Ensemble, build_ensemble
from tal_fast.curves.extrapolation import check_confidence
from tal_fast.curves.learning_curve import DEVIATION_FLOOR, CurvePoint, LearningCurve
from tal_fast.errors import ConfigError, DataError
from tal_fast.typing import Floats, Ints

__all__ = ["MOST_TRAININGS", "Pair", "RankLevel", "Ranking", "Standing", "rank_models"]

MOST_TRAININGS = 10
"""Draws per model and level up to which a smaller study is tried."""

_ALL = 100.0
_SAME_SIZE = 1.1  # of training sets whose number of videos follows from a rounded sample
_RESAMPLED = 4000


@dataclass(frozen=True)
class Standing:
    """What is known of one model at p = 100 %.

    Attributes:
        name: of the curve.
        value: mAP in points: mean of what was measured, median of a forecast.
        interval: at the confidence of the ranking.
        trainings: measured there; 0 where the value is a forecast.
        reach: largest p measured, percent.
    """

    name: str
    value: float
    interval: tuple[float, float]
    trainings: int
    reach: float


@dataclass(frozen=True)
class Pair:
    """Two models at p = 100 %.

    Attributes:
        better: name of the one that leads.
        worse: name of the other.
        difference: by how many points, not negative.
        error: standard deviation of that, points.
        certainty: chance that this is the true order.
        told: whether that is as much as was asked for; else they cannot be told apart.
    """

    better: str
    worse: str
    difference: float
    error: float
    certainty: float
    told: bool


@dataclass(frozen=True)
class RankLevel:
    """How a small study at one p would rank the models.

    Attributes:
        share: p in percent.
        wrong: chance that its order is not that at p = 100 %, with 1, 2, ... draws per model.
        trainings: fewest draws per model from which on the chance of a right order is the
            confidence; None if there are none up to :data:`MOST_TRAININGS`.
        seconds: what these trainings of all models take; None where that is not known.
    """

    share: float
    wrong: tuple[float, ...]
    trainings: int | None
    seconds: float | None


@dataclass(frozen=True)
class Ranking:
    """The order of models with all data, and the smallest study that finds it.

    Attributes:
        standings: the best model first.
        pairs: every two models, in that order.
        levels: common levels of p, rising; empty chances where no two models can be told apart.
        enough: the smallest p from which on every common level ranks right, with its trainings;
            None if there is none.
        cheapest: of these the one that costs least.
        confidence: what was asked for.
        paired: whether all models were trained on the same draws at some level below 100 %, so
            that these were resampled together.
        notes: what a reader has to know.
    """

    standings: tuple[Standing, ...]
    pairs: tuple[Pair, ...]
    levels: tuple[RankLevel, ...]
    enough: RankLevel | None
    cheapest: RankLevel | None
    confidence: float
    paired: bool
    notes: tuple[str, ...]


def rank_models(
    curves: Sequence[LearningCurve],
    *,
    confidence: float = 0.9,
    forecasts: Mapping[int, Ensemble] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> Ranking:
    """Ranks models at p = 100 % and finds the smallest study that would rank them so.

    A model whose curve ends below 100 % counts by the forecast of its families
    (:func:`~tal_fast.curves.ensemble.build_ensemble`). Spreads are those of few draws: every
    resampled study is scaled as Student's t is over the normal distribution.

    Args:
        curves: of the models.
        confidence: of every order, in (0.5, 1).
        forecasts: ensembles that were built before, by position in ``curves``.
        replicates: bootstrap draws per family of the others.
        seed: of everything that is drawn.

    Raises:
        DataError: the models have no level of p in common, one has no repetitions, or one that
            does not reach 100 % cannot be fitted.
        ConfigError: there are fewer than two curves, or the confidence is out of range.
    """
    check_confidence(confidence, above=0.5)
    if len(curves) < 2:
        raise ConfigError(f"--compare: expected at least two models, got {len(curves)}")
    for curve in curves:
        if math.isnan(curve.pooled_deviation):
            raise DataError(
                f"{curve.name}: expected repetitions at some level, got none: a difference cannot "
                "be told from chance"
            )
    rng = np.random.default_rng(seed)
    shares = _common_levels(curves)
    studies = {share: _Resampled(curves, share, rng) for share in shares}
    final = np.empty((_RESAMPLED, len(curves)))
    forecast = []
    for index, curve in enumerate(curves):
        if _level(curve, _ALL) is None:
            ensemble = (forecasts or {}).get(index)
            if ensemble is None:
                curve.require_rising()
                ensemble = build_ensemble(curve, replicates=replicates, seed=seed)
            forecast.append(curve)
            weights = ensemble.draw_weights
            drawn = rng.choice(len(weights), size=_RESAMPLED, p=weights / weights.sum())
            final[:, index] = ensemble.sample(np.array([_ALL]))[drawn, 0]
        elif _ALL in studies:
            final[:, index] = studies[_ALL].means[:, index]
        else:
            final[:, index] = _Resampled([curve], _ALL, rng).means[:, 0]
    centre = np.median(final, axis=0)
    for index, curve in enumerate(curves):
        point = _level(curve, _ALL)
        if point is not None:
            centre[index] = point.mean
    order = np.argsort(-centre, kind="stable")
    pairs, told = _pairs(curves, final, centre, order, confidence)
    levels = tuple(
        _rank_level(curves, share, studies[share].found, final, told, confidence)
        for share in shares
    )
    good = list(itertools.takewhile(lambda level: level.trainings is not None, reversed(levels)))
    paired = any(study.joint for share, study in studies.items() if share < _ALL)
    return Ranking(
        standings=tuple(_standing(curves[i], final[:, i], centre[i], confidence) for i in order),
        pairs=pairs,
        levels=levels,
        enough=good[-1] if good else None,
        cheapest=min(good, key=_price, default=None),
        confidence=confidence,
        paired=paired,
        notes=(*_notes(forecast, studies, paired), *_sizes(curves)),
    )


def _level(curve: LearningCurve, share: float) -> CurvePoint | None:
    return next((point for point in curve.points if abs(point.share - share) < 1e-6), None)


def _common_levels(curves: Sequence[LearningCurve]) -> list[float]:
    levels = set(np.round(curves[0].share, 6))
    for curve in curves[1:]:
        levels &= set(np.round(curve.share, 6))
    if not levels:
        raise DataError(
            f"{', '.join(curve.name for curve in curves)}: expected a level of p that all have, "
            "got none"
        )
    return sorted(float(share) for share in levels)


class _Resampled:
    """The draws of several models at one level, drawn again.

    Args:
        curves: the models.
        share: p in percent.
        rng: what draws.

    Attributes:
        joint: whether all were trained on the same draws, which stay together.
        means: where the true means may be, [R, M].
        found: means of new studies of 1, 2, ... draws there, [R, N, M].
    """

    def __init__(
        self, curves: Sequence[LearningCurve], share: float, rng: np.random.Generator
    ) -> None:
        points = [_level(curve, share) for curve in curves]
        known = [point for point in points if point is not None]
        names = {frozenset(point.names) for point in known}
        shared = len(curves) > 1 and len(names) == 1
        self.joint = shared and all(1 < point.n <= len(point.names) for point in known)
        order = sorted(known[0].names)
        rows = rng.integers(max(1, len(order)), size=(_RESAMPLED, len(order) + MOST_TRAININGS))
        freedom = known[0].n - 1
        together = _t_scale(freedom, rng) if self.joint else None
        means, found = [], []
        for curve, point in zip(curves, known, strict=True):
            if self.joint:
                values = np.array([point.draws[point.names.index(name)] for name in order])
                off, new = _again(values, rows)
                scale = together
            else:
                drawn = rng.integers(point.n, size=(_RESAMPLED, point.n + MOST_TRAININGS))
                off, new = _alone(curve, point, drawn, rng)
                pooled = int(np.maximum(curve.repetitions - 1, 0).sum())
                scale = _t_scale(point.n - 1 if point.n > 1 else pooled, rng)
            assert scale is not None
            spread = DEVIATION_FLOOR if point.deviation is None else point.deviation
            missing = DEVIATION_FLOOR**2 - spread**2
            if missing > 0.0:  # trainings that agree by chance
                more = math.sqrt(missing) * rng.standard_normal((_RESAMPLED, MOST_TRAININGS + 1))
                off = off + more[:, 0] / math.sqrt(point.n)
                new = new + more[:, 1:]
            mean = point.mean + scale * off
            counts = np.arange(1, MOST_TRAININGS + 1)
            means.append(mean)
            found.append(mean[:, None] + scale[:, None] * np.cumsum(new, axis=1) / counts)
        self.means: Floats = np.stack(means, axis=-1)
        self.found: Floats = np.stack(found, axis=-1)


def _t_scale(freedom: int, rng: np.random.Generator) -> Floats:
    """Returns what makes a normal deviate one of Student's t, [R]."""
    return np.sqrt(freedom / rng.chisquare(freedom, _RESAMPLED))


def _again(values: Floats, rows: Ints) -> tuple[Floats, Floats]:
    """Returns errors of the mean, [R], and of new draws, [R, N], from resampled draws.

    A resample of n draws spreads by (n - 1) / n too little, which is made up for.
    """
    count = len(values)
    residuals = (values - values.mean()) * math.sqrt(count / (count - 1))
    drawn = residuals[rows]
    return drawn[:, :count].mean(axis=1), drawn[:, count:]


def _alone(
    curve: LearningCurve, point: CurvePoint, rows: Ints, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    if len(point.draws) > 1:
        return _again(np.array(point.draws), rows)
    # Only the deviation is known, or that of the other levels: normal draws.
    spread = curve.pooled_deviation if point.deviation is None else point.deviation
    drawn = spread * rng.standard_normal((_RESAMPLED, MOST_TRAININGS + 1))
    return drawn[:, 0] / math.sqrt(point.n), drawn[:, 1:]


def _pairs(
    curves: Sequence[LearningCurve],
    final: Floats,
    centre: Floats,
    order: Ints,
    confidence: float,
) -> tuple[tuple[Pair, ...], list[tuple[int, int]]]:
    """Returns every two models, and the positions of those that can be told apart."""
    pairs, told = [], []
    for i, j in itertools.combinations([int(i) for i in order], 2):
        difference = final[:, i] - final[:, j]
        certainty = float((difference > 0.0).mean())
        # Half the width of the middle two thirds: a deviation that heavy tails do not blow up.
        low, high = np.quantile(difference, (0.159, 0.841))
        pair = Pair(
            better=curves[i].name,
            worse=curves[j].name,
            difference=float(centre[i] - centre[j]),
            error=float(high - low) / 2.0,
            certainty=certainty,
            told=certainty >= confidence,
        )
        pairs.append(pair)
        if pair.told:
            told.append((i, j))
    return tuple(pairs), told


def _rank_level(
    curves: Sequence[LearningCurve],
    share: float,
    scores: Floats,
    final: Floats,
    told: Sequence[tuple[int, int]],
    confidence: float,
) -> RankLevel:
    if not told:
        return RankLevel(share, (), None, None)
    wrong = np.zeros(scores.shape[:2], dtype=bool)
    for i, j in told:
        right = final[:, i] > final[:, j]
        wrong |= (scores[:, :, i] > scores[:, :, j]) != right[:, None]
    chances = tuple(float(chance) for chance in wrong.mean(axis=0))
    bad = [count for count, chance in enumerate(chances, 1) if chance > 1.0 - confidence]
    trainings: int | None = (bad[-1] if bad else 0) + 1
    if trainings is not None and trainings > MOST_TRAININGS:
        trainings = None
    points = [_level(curve, share) for curve in curves]
    times = [None if point is None else point.seconds for point in points]
    known = [time for time in times if time is not None]
    seconds = None
    if trainings is not None and len(known) == len(times):
        seconds = trainings * math.fsum(known)
    return RankLevel(share, chances, trainings, seconds)


def _price(level: RankLevel) -> float:
    return level.share * (level.trainings or 0) if level.seconds is None else level.seconds


def _standing(curve: LearningCurve, final: Floats, value: float, confidence: float) -> Standing:
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(final, (tail, 1.0 - tail))
    point = _level(curve, _ALL)
    return Standing(
        name=curve.name,
        value=float(value),
        interval=(float(low), float(high)),
        trainings=0 if point is None else len(point.trainings) or point.n,
        reach=float(curve.share[-1]),
    )


def _sizes(curves: Sequence[LearningCurve]) -> list[str]:
    """Returns a note if curves cannot be of the same training set."""
    known = [(curve.videos, curve.name) for curve in curves if curve.videos is not None]
    if not known:
        return []
    (least, few), (most, many) = min(known), max(known)
    if most <= _SAME_SIZE * least:
        return []
    return [
        f"the full training sets have {least:.0f} ({few}) and {most:.0f} ({many}) videos: of "
        "different data no order follows"
    ]


def _notes(
    forecast: Sequence[LearningCurve], studies: Mapping[float, _Resampled], paired: bool
) -> list[str]:
    notes = [
        f"{curve.name} at 100 % is a forecast: it was measured up to p = {curve.share[-1]:g} %"
        for curve in forecast
    ]
    if paired:
        shared = [f"{p:g}" for p, study in studies.items() if study.joint and p < _ALL]
        notes.append(
            f"trained on the same draws at p = {', '.join(shared)} %: these were resampled together"
        )
    return notes
