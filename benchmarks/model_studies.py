# SPDX-License-Identifier: Apache-2.0
"""Studies of several models on the same draws, and the statistics of their differences."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scipy.stats import t as student

__all__ = [
    "AVERAGES",
    "DATA",
    "MODELS",
    "Mean",
    "Study",
    "mean_of",
    "paired_text",
    "read_short_studies",
    "read_studies",
    "table",
]

MODELS = {
    "tadtr": "TadTR",
    "actionformer": "ActionFormer",
    "tridet": "TriDet",
    "temporalmaxer": "TemporalMaxer",
}
DATA = {"hapt": "HAPT", "spswhar": "sp-sw-har", "demohard": "synthetic"}
# Studies of TadTR that were there before the others, beside the folder.
EARLIER = {("hapt", "tadtr"): "hapt-budgets", ("demohard", "tadtr"): "synthetic-budgets"}
AVERAGES = ("off", "plain", "warmup", "corrected")
CONFIDENCE = 0.9

# budget, average, p, repetition -> value of one trial.
Key = tuple[str, str, float, int]


@dataclass(frozen=True)
class Study:
    """One model on one data set.

    Attributes:
        data: key of the data set.
        model: key of the model.
        points: average mAP in points.
        steps: optimiser steps.
        videos: training videos.
        gains: (budget, average) -> gain at three times the data, in points, with its 90 %
            interval; of the study's ``fits.json``, where it has one.
        table: its ``trials.csv``.
    """

    data: str
    model: str
    points: dict[Key, float]
    steps: dict[Key, int]
    videos: dict[Key, int]
    gains: dict[tuple[str, str], tuple[float, float, float]] = field(default_factory=dict)
    table: Path = Path()

    def shares(self, budget: str) -> list[float]:
        """Returns the shares of a budget, rising."""
        return sorted({p for own, _, p, _ in self.points if own == budget})

    def draws(self, budget: str, average: str, p: float) -> dict[int, float]:
        """Returns average mAP in points by repetition."""
        return {
            repetition: value
            for (own, ema, share, repetition), value in self.points.items()
            if (own, ema, share) == (budget, average, p)
        }


@dataclass(frozen=True)
class Mean:
    """A mean of paired values.

    Attributes:
        value: the mean.
        half: half the width of its t-interval; NaN for a single value.
        count: number of values.
    """

    value: float
    half: float
    count: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.value) > self.half

    def __str__(self) -> str:
        """Returns mean and half width, signed; the mean alone of a single value."""
        if self.count < 2:
            return f"{self.value:+.1f}"
        return f"{self.value:+.1f} ± {self.half:.1f}"


def mean_of(values: Sequence[float], confidence: float = CONFIDENCE) -> Mean:
    """Returns the mean of values with its t-interval.

    Args:
        values: one or more.
        confidence: of the interval.
    """
    count = len(values)
    if count < 2:
        return Mean(values[0], math.nan, count)
    error = statistics.stdev(values) / math.sqrt(count)
    half = float(student.ppf(0.5 + confidence / 2, count - 1)) * error
    return Mean(statistics.mean(values), half, count)


def read_studies(folder: Path) -> list[Study]:
    """Reads the studies of a folder, in the order of data sets and models.

    Args:
        folder: with a folder per study, ``<data>-<model>``; the earlier ones may lie beside it.

    Raises:
        FileNotFoundError: there are none.
    """
    found = []
    for data in DATA:
        for model in MODELS:
            paths = [folder / f"{data}-{model}"]
            if (data, model) in EARLIER:
                paths.append(folder.parent / EARLIER[data, model])
            path = next((own for own in paths if (own / "trials.csv").exists()), None)
            if path is not None:
                found.append(_read(path / "trials.csv", data, model))
    if not found:
        raise FileNotFoundError(f"{folder}: no <data>-<model>/trials.csv")
    return found


def read_short_studies(folder: Path) -> list[Study]:
    """Reads the studies whose trainings were planned for a short time; none if there are none.

    A training that was cut short ends with the learning rate of a long one; these have a schedule
    of their own. Their names say how many epochs of all the data their steps are.

    Args:
        folder: with ``short/<data>-<model>-<epochs>epochs/trials.csv``.
    """
    found = []
    for data in DATA:
        for model in MODELS:
            paths = (folder / "short").glob(f"{data}-{model}-*epochs/trials.csv")
            found += [_read(path, data, model) for path in sorted(paths)]
    return found


def _read(path: Path, data: str, model: str) -> Study:
    study = Study(data, model, {}, {}, {}, _read_gains(path.with_name("fits.json")), path)
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["sampling"] != "video" or row["training"] != "0":
                continue
            key = row["budget"], row["ema"], float(row["p"]), int(row["repetition"])
            study.points[key] = 100 * float(row["average_map"])
            study.steps[key] = int(row["steps"])
            study.videos[key] = int(row["videos"])
    return study


def _read_gains(path: Path) -> dict[tuple[str, str], tuple[float, float, float]]:
    if not path.exists():
        return {}
    gains = {}
    for curve in json.loads(path.read_text(encoding="utf-8"))["curves"]:
        *sampling, budget, average = curve["name"].split(", ")
        found = curve["extrapolation"]
        if sampling in ([], ["video"]) and found and found["times_largest_p"] == 3.0:
            key = budget, average.removeprefix("EMA ")
            gains[key] = (found["gain"], *found["gain_interval"])
    return gains


def paired_text(first: dict[int, float], second: dict[int, float]) -> str:
    """Returns the mean difference of two levels over the draws that both have."""
    both = sorted(first.keys() & second.keys())
    if not both:
        return ""
    return str(mean_of([first[r] - second[r] for r in both]))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
