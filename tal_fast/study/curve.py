# SPDX-License-Identifier: Apache-2.0
"""From trials to the curve: ``trials.csv`` and ``curve.csv``."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["CurvePoint", "build_curve", "curve_csv", "mean_and_deviation", "trials_csv"]


@dataclass(frozen=True)
class CurvePoint:
    """The trials of one fraction, summed up.

    Attributes:
        fraction: share p of the training videos.
        n: number of trials.
        videos: training videos, mean over the trials.
        instances: annotated instances in them, mean.
        classes: classes that occur in them, mean.
        windows: training windows, mean; None when the trials do not tell.
        steps: optimiser steps, mean; None when the trials do not tell.
        mean: mean of average mAP, 0..1.
        deviation: its sample standard deviation (n - 1); None for one trial.
        per_tiou: tIoU threshold -> (mean, deviation) of mAP at it.
        values: average mAP of each trial, in order of repetition.
    """

    fraction: float
    n: int
    videos: float
    instances: float
    classes: float
    windows: float | None
    steps: float | None
    mean: float
    deviation: float | None
    per_tiou: dict[str, tuple[float, float | None]]
    values: tuple[float, ...]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and the sample standard deviation (None for one value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _thresholds(records: Iterable[Mapping[str, Any]]) -> list[str]:
    found = {key for record in records for key in record["result"]["map_per_threshold"]}
    return sorted(found, key=float)


def _mean_of(records: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [record["result"].get(key) for record in records]
    if any(value is None for value in values):
        return None
    return statistics.fmean(float(value) for value in values)


def build_curve(records: Iterable[Mapping[str, Any]]) -> list[CurvePoint]:
    """Groups trial records by fraction.

    Args:
        records: contents of the trials' ``trial.json``.

    Returns:
        One point per fraction, rising.
    """
    groups: dict[float, list[Mapping[str, Any]]] = {}
    for record in sorted(records, key=lambda r: (r["fraction"], r["repetition"])):
        groups.setdefault(record["fraction"], []).append(record)
    points = []
    for fraction, group in groups.items():
        values = tuple(float(record["result"]["average_map"]) for record in group)
        mean, deviation = mean_and_deviation(values)
        per_tiou = {
            key: mean_and_deviation(
                [float(record["result"]["map_per_threshold"][key]) for record in group]
            )
            for key in _thresholds(group)
        }
        samples = [record["sample"] for record in group]
        points.append(
            CurvePoint(
                fraction=fraction,
                n=len(group),
                videos=statistics.fmean(len(sample["videos"]) for sample in samples),
                instances=statistics.fmean(sample["instances"] for sample in samples),
                classes=statistics.fmean(len(sample["classes"]) for sample in samples),
                windows=_mean_of(group, "windows"),
                steps=_mean_of(group, "steps"),
                mean=mean,
                deviation=deviation,
                per_tiou=per_tiou,
                values=values,
            )
        )
    return points


def _text(rows: list[list[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _cell(value: float | None, digits: int = 6) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def curve_csv(points: Sequence[CurvePoint]) -> str:
    """Returns ``curve.csv``: a row per fraction, mAP in 0..1, an empty deviation for one trial."""
    keys = sorted({key for point in points for key in point.per_tiou}, key=float)
    header: list[object] = ["p", "videos", "instances", "classes", "windows", "steps"]
    header += ["n", "mean", "sd"]
    for key in keys:
        header += [f"mean_{key}", f"sd_{key}"]
    rows = [header]
    for point in points:
        counts = (point.videos, point.instances, point.classes, point.windows, point.steps)
        row: list[object] = [f"{point.fraction:g}", *map(_plain, counts), point.n]
        row += [_cell(point.mean), _cell(point.deviation)]
        for key in keys:
            row += [_cell(value) for value in point.per_tiou.get(key, (None, None))]
        rows.append(row)
    return _text(rows)


def trials_csv(records: Iterable[Mapping[str, Any]]) -> str:
    """Returns ``trials.csv``: a row per trial with its sample, scores and cost."""
    ordered = sorted(records, key=lambda r: (r["fraction"], r["repetition"], r["trial"]))
    keys = _thresholds(ordered)
    costs = ("epochs", "steps", "windows", "train_seconds", "total_seconds", "peak_memory_mib")
    header: list[object] = ["trial", "model", "p", "repetition", "seed", "videos", "instances"]
    header += ["classes", "missing_classes", "average_map", *(f"map_{key}" for key in keys)]
    header += [*costs, "threads", "started"]
    rows = [header]
    for record in ordered:
        sample, result = record["sample"], record["result"]
        row: list[object] = [record["trial"], record.get("model", "")]
        row += [f"{record['fraction']:g}", record["repetition"], record["seed"]]
        row += [len(sample["videos"]), sample["instances"], len(sample["classes"])]
        row += [" ".join(sample["missing_classes"]), _cell(float(result["average_map"]))]
        row += [_cell(result["map_per_threshold"].get(key)) for key in keys]
        row += [_plain(None if result.get(key) is None else float(result[key])) for key in costs]
        row += [record.get("threads", ""), record.get("started", "")]
        rows.append(row)
    return _text(rows)
