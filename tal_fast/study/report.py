# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page: opens from a disk, a mail or a server, and needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tal_fast.page import Page
from tal_fast.study.curve import CurvePoint
from tal_fast.study.display import duration
from tal_fast.study.picture import curve_picture, figure_svg, tiou_picture

__all__ = ["coverage_rows", "render_page"]

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


def coverage_rows(
    records: Sequence[Mapping[str, Any]], fractions: Sequence[float]
) -> list[tuple[str, list[float]]]:
    """Returns, per class by name, the share of the samples of each fraction in which it occurs.

    Args:
        records: contents of the trials' ``trial.json``.
        fractions: the fractions, one per column.
    """
    names: set[str] = set()
    held: dict[float, list[set[str]]] = {fraction: [] for fraction in fractions}
    for record in records:
        sample = record["sample"]
        names.update(sample["classes"], sample["missing_classes"])
        held[record["fraction"]].append(set(sample["classes"]))
    return [
        (
            name,
            [
                sum(name in classes for classes in held[fraction]) / max(1, len(held[fraction]))
                for fraction in fractions
            ],
        )
        for name in sorted(names)
    ]


def _per_trial_times(records: Sequence[Mapping[str, Any]]) -> dict[float, float]:
    seconds: dict[float, list[float]] = {}
    for record in records:
        seconds.setdefault(record["fraction"], []).append(float(record.get("seconds", 0.0)))
    return {fraction: math.fsum(values) / len(values) for fraction, values in seconds.items()}


def render_page(
    study: Mapping[str, Any],
    points: Sequence[CurvePoint],
    records: Sequence[Mapping[str, Any]],
    *,
    subtitle: str,
) -> str:
    """Returns the page.

    Args:
        study: content of ``study.yaml``.
        points: the curve; not empty.
        records: the trials.
        subtitle: what was trained on what.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    page = Page("tal_fast.study", "the HTML page", {"duration": duration})
    fractions = [point.fraction for point in points]
    settings = study["settings"]
    runs = list(study["runs"])
    requested = study["request"]["trials"]
    return page.render(
        title=f"How much data does {settings['model']} need?",
        subtitle=subtitle,
        points=points,
        first=points[0],
        last=points[-1],
        keys=sorted({key for point in points for key in point.per_tiou}, key=float),
        # The drawings are ours: nothing in them comes from outside but escaped text.
        curve_svg=page.markup(figure_svg(curve_picture(points, model=subtitle), "figure-curve")),
        tiou_svg=page.markup(figure_svg(tiou_picture(points, model=subtitle), "figure-tiou")),
        full=next((point for point in points if point.fraction == 1.0), None),
        coverage=coverage_rows(records, fractions),
        trial_seconds=_per_trial_times(records),
        compute_seconds=math.fsum(float(record.get("seconds", 0.0)) for record in records),
        wall_seconds=math.fsum(float(run["seconds"]) for run in runs),
        trials=len(records),
        requested=requested,
        runs=runs,
        machines=_machines(runs),
        settings=settings,
        study=study,
        config=yaml.safe_dump(settings["config"], sort_keys=False).strip(),
        command=study.get("command", ""),
        hash=study["hash"],
    )


def _machines(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the distinct machines that ran trials, with readable names of their facts."""
    machines: list[dict[str, Any]] = []
    for run in runs:
        facts = run.get("machine", {})
        readable = {_MACHINE[key]: facts[key] for key in _MACHINE if key in facts}
        if readable and readable not in machines:
            machines.append(readable)
    return machines
