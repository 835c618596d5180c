# SPDX-License-Identifier: Apache-2.0
"""From trials to curves: ``trials.csv`` and ``curve.csv``."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tal_fast.errors import DataError
from tal_fast.study.sampling.draws import SAMPLINGS
from tal_fast.study.settings import BUDGETS

__all__ = [
    "Curve",
    "CurvePoint",
    "build_curves",
    "curve_csv",
    "curves_by_training",
    "mean_and_deviation",
    "modes_of",
    "trials_csv",
]


@dataclass(frozen=True)
class CurvePoint:
    """The trials of one fraction, summed up.

    Several trainings on one draw are averaged first: mean and deviation are over the draws.

    Attributes:
        fraction: share p of the training data.
        n: number of draws.
        trials: number of trainings on them.
        videos: training videos, mean over the trials.
        instances: annotated instances in them, mean.
        classes: classes that occur in them, mean.
        windows: training windows, mean; None when the trials do not tell.
        steps: optimiser steps, mean; None when the trials do not tell.
        mean: mean of average mAP, 0..1.
        deviation: its sample standard deviation (n - 1); None for one draw.
        seed_deviation: standard deviation of trainings on the same draw, pooled; None where no
            draw has two.
        draw_deviation: standard deviation that the choice of the sample alone brings, the rest of
            ``deviation`` when that of the trainings is taken out (one-way analysis of variance, 0
            where nothing is left); None where either is unknown.
        per_tiou: tIoU threshold -> (mean, deviation) of mAP at it.
        values: average mAP of each trial, in order of repetition and training.
        draws: average mAP of each draw, in order of repetition.
        seconds: wall-clock time of a trial, mean; None when the trials do not tell.
    """

    fraction: float
    n: int
    trials: int
    videos: float
    instances: float
    classes: float
    windows: float | None
    steps: float | None
    mean: float
    deviation: float | None
    seed_deviation: float | None
    draw_deviation: float | None
    per_tiou: dict[str, tuple[float, float | None]]
    values: tuple[float, ...]
    draws: tuple[float, ...]
    seconds: float | None


@dataclass(frozen=True)
class Curve:
    """The trials of a study that differ in nothing but the data.

    Attributes:
        sampling: how the samples were drawn.
        budget: what ended the trainings.
        ema: mode of weight averaging that was tested.
        points: one per fraction, rising.
    """

    sampling: str
    budget: str
    ema: str
    points: tuple[CurvePoint, ...]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and the sample standard deviation (None for one value)."""
    return _mean(values), math.sqrt(_variance(values)) if len(values) > 1 else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    """Returns the sample variance; that of the statistics module is exact and 50 times slower."""
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def modes_of(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns the scores of a trial by mode of averaging.

    A result that does not tell its modes is that of plain weights, ``off``.
    """
    return record["result"].get("ema") or {"off": record["result"]}


def _thresholds(scores: Iterable[Mapping[str, Any]]) -> list[str]:
    found = {key for score in scores for key in score["map_per_threshold"]}
    return sorted(found, key=float)


def _mean_of(records: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Returns the mean of a field, None where a record does not tell it."""
    values = [record.get(key) for record in records]
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
    own = within / statistics.harmonic_mean([len(values) for values in draws])
    return math.sqrt(within), math.sqrt(max(0.0, between - own))


def _order(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record["fraction"], record["repetition"], record.get("training", 0)


def _levels(records: Iterable[Mapping[str, Any]]) -> list[_Level]:
    groups: dict[float, list[Mapping[str, Any]]] = {}
    for record in sorted(records, key=_order):
        groups.setdefault(record["fraction"], []).append(record)
    return [_Level(group) for group in groups.values()]


class _Level:
    """The trials of one fraction, of which every mode of averaging makes a point.

    Args:
        group: their records, in order of repetition and training.
    """

    def __init__(self, group: Sequence[Mapping[str, Any]]) -> None:
        self._modes = [modes_of(record) for record in group]
        self._names = [record["trial"] for record in group]
        positions: dict[int, list[int]] = {}
        for position, record in enumerate(group):
            positions.setdefault(record["repetition"], []).append(position)
        self._draws = list(positions.values())
        samples = [record["sample"] for record in group]
        results = [record["result"] for record in group]
        self._shared: dict[str, Any] = {
            "fraction": group[0]["fraction"],
            "n": len(self._draws),
            "trials": len(group),
            "videos": _mean([len(sample["videos"]) for sample in samples]),
            "instances": _mean([sample["instances"] for sample in samples]),
            "classes": _mean([len(sample["classes"]) for sample in samples]),
            "windows": _mean_of(results, "windows"),
            "steps": _mean_of(results, "steps"),
            "seconds": _mean_of(group, "seconds"),
        }

    def _by_draw(self, values: Sequence[float]) -> list[list[float]]:
        return [[values[position] for position in draw] for draw in self._draws]

    def _means(self, values: Sequence[float]) -> list[float]:
        return [_mean(draw) for draw in self._by_draw(values)]

    def point(self, ema: str) -> CurvePoint:
        """Returns the point of a mode."""
        for name, modes in zip(self._names, self._modes, strict=True):
            if ema not in modes:
                raise DataError(
                    f"trial {name}: expected scores of EMA {ema} as the others have, found those "
                    f"of {', '.join(modes)}; remove its folder to run it again"
                )
        scores = [modes[ema] for modes in self._modes]
        values = [float(score["average_map"]) for score in scores]
        tious = [score["map_per_threshold"] for score in scores]
        draws = self._means(values)
        mean, deviation = mean_and_deviation(draws)
        seed_deviation, draw_deviation = _components(self._by_draw(values))
        return CurvePoint(
            **self._shared,
            mean=mean,
            deviation=deviation,
            seed_deviation=seed_deviation,
            draw_deviation=draw_deviation,
            per_tiou={
                key: mean_and_deviation(self._means([float(tiou[key]) for tiou in tious]))
                for key in _thresholds(scores)
            },
            values=tuple(values),
            draws=tuple(draws),
        )


def build_curves(records: Iterable[Mapping[str, Any]]) -> list[Curve]:
    """Groups trial records by sampling, budget and mode of averaging, then by fraction.

    Args:
        records: contents of the trials' ``trial.json``.

    Returns:
        The curves, those of one sampling and budget side by side.

    Raises:
        DataError: a trial lacks the scores of an average that the others have.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        key = record.get("sampling", "video"), record.get("budget", "epochs")
        groups.setdefault(key, []).append(record)
    curves = []
    for (sampling, budget), group in sorted(groups.items(), key=lambda item: _rank(*item[0])):
        levels = _levels(group)
        for mode in modes_of(group[0]):
            points = tuple(level.point(mode) for level in levels)
            curves.append(Curve(sampling, budget, mode, points))
    return curves


def curves_by_training(curves: Iterable[Curve]) -> list[list[Curve]]:
    """Returns the curves of the same trainings together: those that differ in averaging alone."""
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.sampling, curve.budget), []).append(curve)
    return list(groups.values())


def _rank(sampling: str, budget: str) -> tuple[int, ...]:
    return tuple(
        known.index(name) if name in known else len(known)
        for name, known in ((sampling, SAMPLINGS), (budget, BUDGETS))
    )


def _text(rows: list[list[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _cell(value: float | None, digits: int = 6) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def curve_csv(curves: Sequence[Curve]) -> str:
    """Returns ``curve.csv``: a row per curve and fraction, mAP in 0..1.

    A deviation is empty where there is none: one draw, or one training per draw.
    """
    keys = sorted(
        {key for curve in curves for point in curve.points for key in point.per_tiou}, key=float
    )
    header: list[object] = ["sampling", "budget", "ema"]
    header += ["p", "videos", "instances", "classes", "windows", "steps"]
    header += ["n", "trials", "mean", "sd", "sd_seeds", "sd_draws"]
    for key in keys:
        header += [f"mean_{key}", f"sd_{key}"]
    rows = [header]
    for curve in curves:
        for point in curve.points:
            counts = (point.videos, point.instances, point.classes, point.windows, point.steps)
            row: list[object] = [curve.sampling, curve.budget, curve.ema, f"{point.fraction:g}"]
            row += [*map(_plain, counts), point.n, point.trials]
            row += [_cell(point.mean), _cell(point.deviation)]
            row += [_cell(point.seed_deviation), _cell(point.draw_deviation)]
            for key in keys:
                row += [_cell(value) for value in point.per_tiou.get(key, (None, None))]
            rows.append(row)
    return _text(rows)


def trials_csv(records: Iterable[Mapping[str, Any]]) -> str:
    """Returns ``trials.csv``: a row per trial and mode of averaging: sample, scores and cost."""
    ordered = sorted(records, key=lambda r: (*_order(r), r["trial"]))
    keys = _thresholds(score for record in ordered for score in modes_of(record).values())
    costs = ("epochs", "steps", "windows", "train_seconds", "total_seconds", "peak_memory_mib")
    header: list[object] = ["trial", "model", "sampling", "budget", "ema", "p", "repetition"]
    header += ["training", "seed", "videos", "instances", "classes", "missing_classes"]
    header += ["average_map", *(f"map_{key}" for key in keys)]
    header += [*costs, "threads", "started"]
    rows = [header]
    for record in ordered:
        sample, result = record["sample"], record["result"]
        found = (result.get(key) for key in costs)
        trial: list[object] = [record["trial"], record.get("model", "")]
        trial += [record.get("sampling", "video"), record.get("budget", "epochs")]
        drawn: list[object] = [f"{record['fraction']:g}", record["repetition"]]
        drawn += [record.get("training", 0), record["seed"], len(sample["videos"])]
        drawn += [sample["instances"], len(sample["classes"]), " ".join(sample["missing_classes"])]
        cost: list[object] = [_plain(None if value is None else float(value)) for value in found]
        cost += [record.get("threads", ""), record.get("started", "")]
        for mode, score in modes_of(record).items():
            tious = score["map_per_threshold"]
            values = [_cell(float(score["average_map"])), *(_cell(tious.get(key)) for key in keys)]
            rows.append([*trial, mode, *drawn, *values, *cost])
    return _text(rows)
