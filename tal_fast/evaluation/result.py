# SPDX-License-Identifier: Apache-2.0
"""What an evaluation gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tal_fast.errors import DataError, counted
from tal_fast.typing import Floats, Ints

if TYPE_CHECKING:
    from tal_fast._C import Evaluation
    from tal_fast.evaluation.problem import Problem

__all__ = ["EvaluationResult", "points"]


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Average precision per class and tIoU threshold. All values are fractions, 0 to 1.

    As text (``print``) it is the table of all classes.

    Attributes:
        average_map: mean over the thresholds of mAP.
        map_per_threshold: float64 [thresholds]; mean over the classes that have ground truth.
        ap: float64 [classes, thresholds]; NaN for a class without ground truth.
        classes: class names, in the order of the rows of ``ap``.
        tiou_thresholds: as they were given, in the order of the columns of ``ap``.
        true_positives: int64 [classes, thresholds]; detections that matched an instance.
        ground_truth_per_class: int64 [classes].
        predictions_per_class: int64 [classes].
        num_videos: videos evaluated, those without instances or predictions included.
        dialect: name of the rules (:mod:`tal_fast.evaluation.dialects`).
        notes: what these rules left out or put right, one sentence each.
        source: the problem that was evaluated, after the rules.
        native: its native evaluation; None in a copy that was pickled.
    """

    average_map: float
    map_per_threshold: Floats
    ap: Floats
    classes: tuple[str, ...]
    tiou_thresholds: tuple[float, ...]
    true_positives: Ints
    ground_truth_per_class: Ints
    predictions_per_class: Ints
    num_videos: int
    dialect: str = "tal_fast"
    notes: tuple[str, ...] = ()
    source: Problem | None = field(default=None, repr=False)
    native: Evaluation | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # The native part is made again from `source` where it is needed.
        return {**self.__dict__, "native": None}

    def require_source(self, function: str) -> Problem:
        """Returns ``source``.

        Raises:
            DataError: there is none; names ``function``.
        """
        if self.source is None:
            raise DataError(f"{function}: expected a result with its arrays, got one without")
        return self.source

    def __repr__(self) -> str:
        each = ", ".join(f"{at:g}: {points(value)}" for at, value in self.map_at.items())
        return (
            f"EvaluationResult(average mAP {points(self.average_map)} points; by tIoU {{{each}}}; "
            f"{counted(self.num_predictions, 'prediction')}, "
            f"{counted(self.num_ground_truth, 'instance')}, "
            f"{counted(len(self.classes), 'class')}, {counted(self.num_videos, 'video')}; rules "
            f"of {self.dialect})"
        )

    def __str__(self) -> str:
        return self.table()

    @property
    def map_at(self) -> dict[float, float]:
        """The mAP at each tIoU threshold, as numbers of Python."""
        return dict(zip(self.tiou_thresholds, self.map_per_threshold.tolist(), strict=True))

    @property
    def num_ground_truth(self) -> int:
        """Number of instances."""
        return int(self.ground_truth_per_class.sum())

    @property
    def num_predictions(self) -> int:
        """Number of predictions, those of classes without ground truth included."""
        return int(self.predictions_per_class.sum())

    @property
    def absent_classes(self) -> tuple[str, ...]:
        """Classes without ground truth, which count in no mean."""
        return tuple(
            name
            for name, count in zip(self.classes, self.ground_truth_per_class, strict=True)
            if count == 0
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON types; NaN becomes None."""
        return {
            "dialect": self.dialect,
            "notes": list(self.notes),
            "average_map": _number(self.average_map),
            "tiou_thresholds": list(self.tiou_thresholds),
            "map_per_threshold": [_number(x) for x in self.map_per_threshold.tolist()],
            "num_videos": self.num_videos,
            "num_ground_truth": self.num_ground_truth,
            "num_predictions": self.num_predictions,
            "absent_classes": list(self.absent_classes),
            "classes": [
                {
                    "name": name,
                    "ground_truth": int(self.ground_truth_per_class[c]),
                    "predictions": int(self.predictions_per_class[c]),
                    "true_positives": self.true_positives[c].tolist(),
                    "ap": [_number(x) for x in self.ap[c].tolist()],
                }
                for c, name in enumerate(self.classes)
            ],
        }

    def table(self) -> str:
        """Returns a text table in points (0 to 100): one row per class and one for the means."""
        rows = [
            ["class", "instances", "predictions"]
            + [f"AP@{threshold:g}" for threshold in self.tiou_thresholds]
            + ["mean"]
        ]
        for c, name in enumerate(self.classes):
            # The mean of a row without ground truth is NaN, which is printed as a dash.
            values = [*self.ap[c].tolist(), float(self.ap[c].mean())]
            rows.append(
                [
                    name,
                    str(self.ground_truth_per_class[c]),
                    str(self.predictions_per_class[c]),
                    *("-" if math.isnan(x) else points(x) for x in values),
                ]
            )
        means = [*self.map_per_threshold.tolist(), self.average_map]
        total = [str(self.num_ground_truth), str(self.num_predictions)]
        rows.append(["mAP", *total, *map(points, means)])
        lines = _align(rows)
        lines.insert(1, "-" * len(lines[0]))
        lines.insert(-1, "-" * len(lines[0]))
        lines.append("in points, 0 to 100")
        absent = len(self.absent_classes)
        if absent:
            verb = "is" if absent == 1 else "are"
            lines.append(
                f"{counted(absent, 'class')} without ground truth {verb} left out of the means"
            )
        return "\n".join(lines)


def points(value: float, sign: str = "") -> str:
    """Returns a precision or recall, 0..1, as people read it: in points, 0 to 100.

    Args:
        value: or a difference of two.
        sign: ``"+"`` to show that of a difference.
    """
    return f"{100.0 * value:{sign}.2f}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
