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

from tal_fast.study.sampling import SAMPLINGS

__all__ = [
    "Curve",
    "CurvePoint",
    "build_curve",
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
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


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
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _components(draws: Sequence[Sequence[float]]) -> tuple[float | None, float | None]:
    """Returns the standard deviations of trainings on a draw, and of draws alone."""
    repeated = [values for values in draws if len(values) > 1]
    if not repeated:
        return None, None
    freedom = sum(len(values) - 1 for values in repeated)
    within = sum(statistics.variance(values) * (len(values) - 1) for values in repeated) / freedom
    if len(draws) < 2:
        return math.sqrt(within), None
    between = statistics.variance([statistics.fmean(values) for values in draws])
    own = within / statistics.harmonic_mean([len(values) for values in draws])
    return math.sqrt(within), math.sqrt(max(0.0, between - own))


def build_curve(records: Iterable[Mapping[str, Any]], ema: str | None = None) -> list[CurvePoint]:
    """Groups trial records of one sampling and budget by fraction.

    Args:
        records: contents of the trials' ``trial.json``.
        ema: the mode of averaging to take; the first of each record when None.

    Returns:
        One point per fraction, rising.
    """
    groups: dict[float, list[Mapping[str, Any]]] = {}
    for record in sorted(records, key=_order):
        groups.setdefault(record["fraction"], []).append(record)
    return [_point(fraction, group, ema) for fraction, group in groups.items()]


def _order(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record["fraction"], record["repetition"], record.get("training", 0)


def _point(fraction: float, group: Sequence[Mapping[str, Any]], ema: str | None) -> CurvePoint:
    scores = [modes[next(iter(modes)) if ema is None else ema] for modes in map(modes_of, group)]

    def by_draw(values: Iterable[float]) -> list[list[float]]:
        found: dict[int, list[float]] = {}
        for record, value in zip(group, values, strict=True):
            found.setdefault(record["repetition"], []).append(float(value))
        return list(found.values())

    def summed(values: Iterable[float]) -> tuple[float, float | None]:
        return mean_and_deviation([statistics.fmean(draw) for draw in by_draw(values)])

    values = [float(score["average_map"]) for score in scores]
    draws = by_draw(values)
    mean, deviation = summed(values)
    seed_deviation, draw_deviation = _components(draws)
    samples = [record["sample"] for record in group]
    results = [record["result"] for record in group]
    return CurvePoint(
        fraction=fraction,
        n=len(draws),
        trials=len(group),
        videos=statistics.fmean(len(sample["videos"]) for sample in samples),
        instances=statistics.fmean(sample["instances"] for sample in samples),
        classes=statistics.fmean(len(sample["classes"]) for sample in samples),
        windows=_mean_of(results, "windows"),
        steps=_mean_of(results, "steps"),
        mean=mean,
        deviation=deviation,
        seed_deviation=seed_deviation,
        draw_deviation=draw_deviation,
        per_tiou={
            key: summed(score["map_per_threshold"][key] for score in scores)
            for key in _thresholds(scores)
        },
        values=tuple(values),
        draws=tuple(statistics.fmean(draw) for draw in draws),
        seconds=_mean_of(group, "seconds"),
    )


def build_curves(records: Iterable[Mapping[str, Any]]) -> list[Curve]:
    """Groups trial records by sampling, budget and mode of averaging, then by fraction.

    Args:
        records: contents of the trials' ``trial.json``.

    Returns:
        The curves, those of one sampling and budget side by side.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        key = record.get("sampling", "video"), record.get("budget", "epochs")
        groups.setdefault(key, []).append(record)
    return [
        Curve(sampling, budget, mode, tuple(build_curve(group, mode)))
        for (sampling, budget), group in sorted(groups.items(), key=lambda item: _rank(*item[0]))
        for mode in modes_of(group[0])
    ]


def curves_by_training(curves: Iterable[Curve]) -> list[list[Curve]]:
    """Returns the curves of the same trainings together: those that differ in averaging alone."""
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.sampling, curve.budget), []).append(curve)
    return list(groups.values())


def _rank(sampling: str, budget: str) -> tuple[int, int]:
    order = {name: index for index, name in enumerate(SAMPLINGS)}
    budgets = {"epochs": 0, "steps": 1, "wall-clock": 2, "convergence": 3}
    return order.get(sampling, len(order)), budgets.get(budget, len(budgets))


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
    scores = [score for record in ordered for score in modes_of(record).values()]
    keys = _thresholds(scores)
    costs = ("epochs", "steps", "windows", "train_seconds", "total_seconds", "peak_memory_mib")
    header: list[object] = ["trial", "model", "sampling", "budget", "ema", "p", "repetition"]
    header += ["training", "seed", "videos", "instances", "classes", "missing_classes"]
    header += ["average_map", *(f"map_{key}" for key in keys)]
    header += [*costs, "threads", "started"]
    rows = [header]
    for record in ordered:
        sample, result = record["sample"], record["result"]
        for mode, score in modes_of(record).items():
            row: list[object] = [record["trial"], record.get("model", "")]
            row += [record.get("sampling", "video"), record.get("budget", "epochs"), mode]
            row += [f"{record['fraction']:g}", record["repetition"], record.get("training", 0)]
            row += [record["seed"], len(sample["videos"]), sample["instances"]]
            row += [len(sample["classes"]), " ".join(sample["missing_classes"])]
            row += [_cell(float(score["average_map"]))]
            row += [_cell(score["map_per_threshold"].get(key)) for key in keys]
            found = (result.get(key) for key in costs)
            row += [_plain(None if value is None else float(value)) for value in found]
            row += [record.get("threads", ""), record.get("started", "")]
            rows.append(row)
    return _text(rows)
