# SPDX-License-Identifier: Apache-2.0
"""What the sections of a study's page say, as plain values for its template."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tal_fast.curves import CurvePoint, LearningCurve
from tal_fast.curves.learning_curve import LAST, percent, telling_labels
from tal_fast.curves.tables import energy
from tal_fast.study.report.comparison import (
    LABELS,
    Comparison,
    Difference,
    Scores,
    Shape,
    compare,
    curve_shape,
    initial_weights,
    key_of,
)
from tal_fast.study.results import curve_name, curves_by_training
from tal_fast.study.trial import TrialRecord

__all__ = [
    "averages_section",
    "budget_texts",
    "budgets_section",
    "cost_rows",
    "coverage_rows",
    "coverage_section",
    "energy_of",
    "fits_section",
    "groups_of",
    "machines_of",
    "samplings_section",
    "summary_rows",
]

_MACHINE = {
    "cpu": "processor",
    "cores": "cores used by the study",
    "memory_gib": "memory (GiB)",
    "gpu": "GPU",
    "system": "system",
    "python": "Python",
    "torch": "torch",
    "numpy": "numpy",
    "tal_fast": "tal_fast",
    "commit": "commit",
    "isa": "instruction set",
}

_BUDGET = {
    "epochs": "epochs: a training has as many epochs at every p, so the number of optimiser steps "
    "grows with p: the curve shows data and training budget together",
    "steps": "steps: a training makes as many optimiser steps at every p, so a small sample is "
    "seen more often: the curve shows the data at an equal number of steps",
    "wall-clock": "wall-clock: a training takes as long at every p; how many steps that is depends "
    "on the machine and what else ran on it",
    "convergence": "convergence: a training ends when videos of its sample that are held out from "
    "training no longer gain; the steps are what that took, and the sample trains on fewer videos",
}

_SAMPLING = {
    "video": "Whole videos are drawn uniformly, so a small sample may hold no instance of a class.",
    "stratified": "Whole videos are drawn so that the classes are covered as evenly as can be: as "
    "many videos as there are classes hold them all. Such samples are no chance draws.",
    "window": "Training windows are drawn from all training videos, so that a small sample still "
    "touches many videos and classes.",
}

# Tables of more classes than this leave out those that no sample lacks.
_MANY_CLASSES = 40


def _sampling_text(sampling: str) -> str:
    title = _SAMPLING.get(sampling.removeprefix("nested-"), "")
    if sampling.startswith("nested-"):
        title += " Each repetition's sample holds its samples of smaller p."
    return title.strip()


def budget_texts(curves: Sequence[LearningCurve]) -> list[str]:
    """Returns a sentence per budget of the study: what its curves show."""
    return [
        _BUDGET.get(name, name)
        for name in dict.fromkeys(curve.labels["budget"] for curve in curves)
    ]


def groups_of(curves: Sequence[LearningCurve]) -> list[dict[str, Any]]:
    """Returns the curves by sampling and budget: what one set of trainings gave.

    Returns:
        Per group its ``name`` (empty for one alone), the ``curves`` that differ in the mode of
        averaging, and the ``keys`` of their tIoU thresholds.
    """
    groups = curves_by_training(curves)
    heads = [group[0] for group in groups]
    return [
        {
            "name": curve_name(group[0], heads),
            "curves": group,
            "points": group[0].points,
            "keys": sorted({key for curve in group for key in curve.thresholds}, key=float),
            "windows": any(point.windows is not None for point in group[0].points),
            "steps": any(point.steps is not None for point in group[0].points),
            "seconds": any(point.seconds is not None for point in group[0].points),
            "seeds": any(
                point.seed_deviation is not None for curve in group for point in curve.points
            ),
        }
        for group in groups
    ]


def _reach(points: Sequence[CurvePoint], share: float) -> str:
    """Returns the p from which the curve holds ``share`` of its last mean, between the levels."""
    goal = share * points[-1].mean
    index = len(points) - 1
    while index and points[index - 1].mean >= goal:
        index -= 1
    after = points[index]
    if index == 0:
        return f"at most {after.share:g} %"
    before = points[index - 1]
    part = (goal - before.mean) / (after.mean - before.mean)
    return f"{before.share + part * (after.share - before.share):.0f} %"


def _shape_text(shape: Shape) -> str:
    if shape.between[0] == 0.0:
        return "steepest at its start"
    where = f"{shape.between[0]:g} to {shape.between[1]:g} %"
    if shape.excess is None:
        return f"steepest {where}; spread not known"
    if math.isinf(shape.excess):
        return f"slow start, steepest {where}"
    if shape.sigmoid:
        return f"slow start, steepest {where} (by {shape.excess:.1f} s.e.)"
    return f"steepest {where}, by {shape.excess:.1f} s.e. only"


def summary_rows(
    curves: Sequence[LearningCurve], fits: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns per curve what a reader looks for first.

    Args:
        curves: of the study.
        fits: contents of the fits by name of the curve, where there are any.
    """
    rows = []
    for curve in curves:
        name = curve_name(curve, curves)
        last = curve.points[-1]
        rows.append(
            {
                "name": name,
                "first": curve.points[0],
                "last": last,
                "reach": _reach(curve.points, 0.9) if len(curve.points) > 1 else "",
                "shape": _shape_text(curve_shape(curve)) if len(curve.points) > 2 else "",
                "extrapolation": fits.get(name, {}).get("extrapolation"),
            }
        )
    return rows


def fits_section(fits: Mapping[str, Mapping[str, Any]], left_out: Sequence[str]) -> dict[str, Any]:
    """Returns the fits, backtests and extrapolations, curve by curve.

    Args:
        fits: by name of the curve, from :func:`~tal_fast.study.report.page.fit_curves`.
        left_out: names of the curves that were not fitted.
    """
    fitted = {name: found for name, found in fits.items() if found["fit"]}
    shown = []
    for name, found in fitted.items():
        extrapolation = found["extrapolation"]
        notes = list(
            dict.fromkeys([*(extrapolation or found["fit"])["notes"], *found["fit"]["notes"]])
        )
        weights = None
        if extrapolation:
            families = {row["family"]: row for row in extrapolation["families"]}
            weights = {"share": extrapolation["share"], "families": families}
        shown.append((name, found["fit"], weights, notes))
    ranked = [name for name, found in fitted.items() if found["fit"]["backtest"]["ranking"]]
    return {
        "shown": shown,
        "named": len(fits) + len(left_out) > 1,
        "problems": [
            (name, problem) for name, found in fits.items() for problem in found["problems"]
        ],
        "unfitted": [name for name in fits if name not in fitted],
        "extrapolated": [
            (name, found["extrapolation"])
            for name, found in fitted.items()
            if found["extrapolation"]
        ],
        "ranked": ranked,
        "ranks": _ranks([fitted[name]["fit"] for name in ranked]),
        "left_out": list(left_out),
    }


def _ranks(fits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row per family: error and rank on each curve, the best mean rank first."""
    titles = {row["family"]: row["title"] for fit in fits for row in fit["families"]}
    titles[LAST] = "last value"
    cells: list[dict[str, dict[str, Any]]] = [
        {
            row["family"]: {"rmse": row["rmse"], "rank": rank}
            for rank, row in enumerate(fit["backtest"]["ranking"], start=1)
        }
        for fit in fits
    ]
    rows = []
    for family, title in titles.items():
        values = [cell.get(family) for cell in cells]
        ranks = [cell["rank"] for cell in values if cell]
        if ranks:
            rows.append({"family": title, "cells": values, "mean": math.fsum(ranks) / len(ranks)})
    return sorted(rows, key=lambda row: row["mean"])


def _at(comparison: Comparison) -> dict[float, Difference]:
    return {difference.share: difference for difference in comparison.differences}


def _table(columns: Sequence[tuple[str, Comparison]]) -> dict[str, Any]:
    """Returns differences side by side: names of the columns and a row per p."""
    cells = [_at(comparison) for _, comparison in columns]
    rows = []
    for share in sorted({share for cell in cells for share in cell}):
        values = [cell.get(share) for cell in cells]
        rows.append({"share": share, "cells": values, "any": next(f for f in values if f)})
    return {"names": [name for name, _ in columns], "rows": rows}


def _grouped(
    comparisons: Sequence[Comparison], places: Sequence[int]
) -> dict[tuple[str, ...], list[Comparison]]:
    """Returns the comparisons by what their second sides have at ``places``."""
    groups: dict[tuple[str, ...], list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault(tuple(comparison.second[place] for place in places), []).append(
            comparison
        )
    return groups


def _words(key: Sequence[str], curves: Sequence[LearningCurve], places: Sequence[int]) -> str:
    """Returns what of a key the study varies, of these places."""
    telling = telling_labels(curves)
    return ", ".join(key[place] for place in places if LABELS[place] in telling)


def budgets_section(scores: Scores, curves: Sequence[LearningCurve]) -> list[dict[str, Any]]:
    """Returns the comparison of budgets: per sampling and budget a table of paired differences."""
    return _differences(scores, curves, "budget")


def _differences(scores: Scores, curves: Sequence[LearningCurve], by: str) -> list[dict[str, Any]]:
    """Returns a table of the differences by one label, with a column per mode of averaging."""
    place = LABELS.index(by)
    section = []
    for key, group in _grouped(compare(scores, curves, by), (0, 1)).items():
        sides = group[0].first[place], key[place]
        where = _words(key, curves, [other for other in (0, 1) if other != place])
        names = (f"EMA {comparison.second[2]}" for comparison in group)
        if "ema" not in telling_labels(curves):
            names = ("average mAP" for _ in group)
        lines = list(zip(names, group, strict=True))
        section.append(
            {
                "title": f"{sides[1]} minus {sides[0]}" + (f", {where}" if where else ""),
                "label": f"mAP, {sides[1]} minus {sides[0]} (points)",
                "sides": sides,
                "lines": lines,
                **_table(lines),
            }
        )
    return section


def averages_section(
    scores: Scores, curves: Sequence[LearningCurve], decay: float | None
) -> list[dict[str, Any]]:
    """Returns the comparison of averages: per sampling and budget scores, differences and weights.

    Args:
        scores: of the trials.
        curves: built from them.
        decay: of the average per step; None where the settings do not tell.
    """
    weights = {} if decay is None else initial_weights(scores, decay)
    section = []
    for key, group in _grouped(compare(scores, curves, "ema"), (0, 1)).items():
        first = group[0].first[2]
        lines = [(f"{comparison.second[2]} minus {first}", comparison) for comparison in group]
        of_training = [curve for curve in curves if key_of(curve)[:2] == key]
        found = {key_of(curve)[2]: {p.share: p for p in curve.points} for curve in of_training}
        kept = {comparison.share: comparison for comparison in weights.get((key[0], key[1]), [])}
        table = _table(lines)
        for row in table["rows"]:
            row["scores"] = [points.get(row["share"]) for points in found.values()]
            row["weight"] = kept.get(row["share"])
        section.append(
            {
                "title": _words(key, curves, (0, 1)),
                "label": f"mAP minus that of EMA {first} (points)",
                "modes": list(found),
                "lines": lines,
                **table,
            }
        )
    return section


def samplings_section(scores: Scores, curves: Sequence[LearningCurve]) -> dict[str, Any] | None:
    """Returns the comparison of samplings: what they cover, and differences of their means."""
    names = list(dict.fromkeys(curve.labels["sampling"] for curve in curves))
    if len(names) < 2:
        return None
    heads = {curve.labels["sampling"]: curve for curve in reversed(curves)}
    points = {name: {p.share: p for p in heads[name].points} for name in names}
    shares = sorted({share for found in points.values() for share in found})
    return {
        "names": names,
        "texts": [(name, _sampling_text(name)) for name in names],
        "coverage": [
            {"share": share, "points": [points[name].get(share) for name in names]}
            for share in shares
        ],
        "tables": _differences(scores, curves, "sampling"),
    }


def coverage_rows(
    records: Sequence[TrialRecord], fractions: Sequence[float]
) -> list[tuple[str, list[float]]]:
    """Returns, per class by name, the share of the draws of each fraction in which it occurs.

    Args:
        records: of the trials of one sampling.
        fractions: the fractions, one per column.
    """
    names: set[str] = set()
    held: dict[float, dict[int, set[str]]] = {fraction: {} for fraction in fractions}
    for record in records:
        sample, draws = record.sample, held[record.trial.fraction]
        # Budgets and trainings share a draw, which counts once.
        if record.trial.repetition not in draws:
            names.update(sample.classes, sample.missing_classes)
            draws[record.trial.repetition] = set(sample.classes)
    return [
        (
            name,
            [
                sum(name in classes for classes in held[fraction].values())
                / max(1, len(held[fraction]))
                for fraction in fractions
            ],
        )
        for name in sorted(names)
    ]


def coverage_section(
    records: Sequence[TrialRecord], curves: Sequence[LearningCurve]
) -> list[dict[str, Any]]:
    """Returns the coverage of classes per sampling."""
    section = []
    for sampling in dict.fromkeys(curve.labels["sampling"] for curve in curves):
        of_sampling = [record for record in records if record.trial.sampling == sampling]
        fractions = sorted({record.trial.fraction for record in of_sampling})
        rows = coverage_rows(of_sampling, fractions)
        full = [name for name, shares in rows if min(shares) == 1.0]
        hidden = full if len(rows) > _MANY_CLASSES else []
        section.append(
            {
                "sampling": sampling,
                "text": _sampling_text(sampling),
                "shares": [percent(fraction) for fraction in fractions],
                "rows": [row for row in rows if row[0] not in set(hidden)],
                "classes": len(rows),
                "hidden": hidden,
            }
        )
    return section


def cost_rows(records: Sequence[TrialRecord], groups: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Returns what the trainings of each group cost."""
    rows = []
    for group in groups:
        curve = group["curves"][0]
        of_curve = [
            record
            for record in records
            if (record.trial.sampling, record.trial.budget) == key_of(curve)[:2]
        ]
        memory = [record.told("peak_memory_mib") for record in of_curve]
        known = [value for value in memory if value is not None]
        rows.append(
            {
                "name": group["name"] or "all trainings",
                "trials": len(of_curve),
                "seconds": math.fsum(record.seconds or 0.0 for record in of_curve),
                "first": group["points"][0],
                "last": group["points"][-1],
                "memory": max(known) if known else None,
            }
        )
    return rows


def energy_of(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns the energy of all runs in words; not known unless every run tells it."""
    known = [run["energy_joules"] for run in runs if "energy_joules" in run]
    if not known or len(known) < len(runs):
        return "not known"
    return energy(math.fsum(float(joules) for joules in known))


def machines_of(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the distinct machines that ran trials, with readable names of their facts."""
    machines: list[dict[str, Any]] = []
    for run in runs:
        facts = run.get("machine", {})
        readable = {_MACHINE[key]: facts[key] for key in _MACHINE if key in facts}
        if readable and readable not in machines:
            machines.append(readable)
    return machines
