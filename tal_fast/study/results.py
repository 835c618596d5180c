# SPDX-License-Identifier: Apache-2.0
"""From trials to curves: one per sampling, budget and mode of averaging, and ``trials.csv``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from tal_fast.averaging import Scores
from tal_fast.curves import CurvePoint, LearningCurve
from tal_fast.curves.curve_files import csv_cell, csv_text
from tal_fast.curves.learning_curve import mean_of_known, percent, telling_labels
from tal_fast.errors import DataError
from tal_fast.study.sampling import SAMPLINGS
from tal_fast.study.trial import BUDGETS, TrialRecord

__all__ = ["build_curves", "curve_name", "curves_by_training", "trials_csv"]

_COSTS = ("epochs", "steps", "windows", "train_seconds", "total_seconds", "peak_memory_mib")


def _thresholds(scores: Iterable[Scores]) -> list[str]:
    return sorted({key for score in scores for key in score.map_per_threshold}, key=float)


def _order(record: TrialRecord) -> tuple[Any, ...]:
    trial = record.trial
    return trial.fraction, trial.repetition, trial.training, record.name


def _points(group: Sequence[TrialRecord], modes: Iterable[str]) -> dict[str, CurvePoint]:
    """Returns the point of every mode of averaging from the trials of one share."""
    draws: dict[int, list[TrialRecord]] = {}
    for record in group:
        draws.setdefault(record.trial.repetition, []).append(record)
    known = {
        "videos": mean_of_known([len(record.sample.videos) for record in group]),
        "instances": mean_of_known([record.sample.instances for record in group]),
        "classes": mean_of_known([len(record.sample.classes) for record in group]),
        "windows": mean_of_known([record.told("windows") for record in group]),
        "steps": mean_of_known([record.told("steps") for record in group]),
        "seconds": mean_of_known([record.seconds for record in group]),
    }
    points = {}
    for mode in modes:
        for record in group:
            if mode not in record.scores:
                raise DataError(
                    f"trial {record.name}: expected scores of EMA {mode} as the others have, "
                    f"found those of {', '.join(record.scores)}; remove its folder to run it again"
                )
        scores = [[record.scores[mode] for record in draw] for draw in draws.values()]
        points[mode] = CurvePoint.of_draws(
            group[0].trial.share,
            [[percent(scores_of_draw.average_map) for scores_of_draw in draw] for draw in scores],
            {
                key: [
                    [percent(scores_of_draw.map_per_threshold[key]) for scores_of_draw in draw]
                    for draw in scores
                ]
                for key in _thresholds(scores_of_draw for draw in scores for scores_of_draw in draw)
            },
            **known,
        )
    return points


def build_curves(records: Iterable[TrialRecord]) -> list[LearningCurve]:
    """Groups trials by sampling, budget and mode of averaging, then by share.

    Args:
        records: of the trials.

    Returns:
        The curves, those of one sampling and budget side by side. Their labels are these three,
        and their names tell what differs, or the model where there is one curve.

    Raises:
        DataError: a trial lacks the scores of an average that the others have.
    """
    groups: dict[tuple[str, str], dict[float, list[TrialRecord]]] = {}
    for record in sorted(records, key=_order):
        key = record.trial.sampling, record.trial.budget
        groups.setdefault(key, {}).setdefault(record.trial.fraction, []).append(record)
    curves = []
    model = ""
    for (sampling, budget), levels in sorted(groups.items(), key=lambda item: _rank(*item[0])):
        first = next(iter(levels.values()))[0]
        modes, model = first.scores, first.trial.model
        points = [_points(group, modes) for group in levels.values()]
        for mode in modes:
            labels = {"sampling": sampling, "budget": budget, "ema": mode}
            of_mode = tuple(level[mode] for level in points)
            videos = percent(of_mode[-1].videos or 0.0) / of_mode[-1].share
            curves.append(LearningCurve(model, of_mode, labels, videos))
    return [replace(curve, name=curve_name(curve, curves) or model) for curve in curves]


def _rank(sampling: str, budget: str) -> tuple[int, ...]:
    return tuple(
        known.index(name) if name in known else len(known)
        for name, known in ((sampling, SAMPLINGS), (budget, BUDGETS))
    )


def curve_name(curve: LearningCurve, curves: Sequence[LearningCurve]) -> str:
    """Returns what tells a curve from the others: ``window, steps, plain``; empty for one alone."""
    labels = {key: curve.labels[key] for key in telling_labels(curves)}
    return ", ".join(f"EMA {word}" if key == "ema" else word for key, word in labels.items())


def curves_by_training(curves: Iterable[LearningCurve]) -> list[list[LearningCurve]]:
    """Returns the curves of the same trainings together: those that differ in averaging alone."""
    groups: dict[tuple[str, str], list[LearningCurve]] = {}
    for curve in curves:
        key = curve.labels["sampling"], curve.labels["budget"]
        groups.setdefault(key, []).append(curve)
    return list(groups.values())


def trials_csv(records: Iterable[TrialRecord]) -> str:
    """Returns ``trials.csv``: a row per trial and mode of averaging: sample, scores and cost."""
    ordered = sorted(records, key=_order)
    keys = _thresholds(score for record in ordered for score in record.scores.values())
    header: list[object] = ["trial", "model", "sampling", "budget", "ema", "p", "repetition"]
    header += ["training", "seed", "videos", "instances", "classes", "missing_classes"]
    header += ["average_map", *(f"map_{key}" for key in keys)]
    rows: list[list[object]] = [[*header, *_COSTS, "threads", "started"]]
    for record in ordered:
        trial, sample = record.trial, record.sample
        begin: list[object] = [record.name, trial.model, trial.sampling, trial.budget]
        drawn: list[object] = [f"{trial.fraction:g}", trial.repetition, trial.training, trial.seed]
        drawn += [len(sample.videos), sample.instances, len(sample.classes)]
        drawn += [" ".join(sample.missing_classes)]
        costs = (record.told(key) for key in _COSTS)
        cost: list[object] = ["" if value is None else f"{value:g}" for value in costs]
        cost += [record.threads, record.started]
        for mode, score in record.scores.items():
            values = [score.average_map, *(score.map_per_threshold.get(key) for key in keys)]
            rows.append([*begin, mode, *drawn, *map(csv_cell, values), *cost])
    return csv_text(rows)
