# SPDX-License-Identifier: Apache-2.0
"""What a running study shows, and its curve as a table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from tal_fast.curves import CurvePoint, LearningCurve
from tal_fast.curves.learning_curve import percent
from tal_fast.curves.tables import table_of
from tal_fast.errors import counted
from tal_fast.progress import duration, start_bars
from tal_fast.study.execution.messages import Outcome
from tal_fast.study.results import curve_name, curves_by_training
from tal_fast.study.trial import TrialTask

__all__ = ["StudyDisplay", "curve_table", "curve_tables"]


# Of the time of a trial; the rest is prediction and scoring.
_TRAINING_SHARE = 0.9


class StudyDisplay:
    """Shows trials done, time left and the running trials' epochs; a context manager.

    On a terminal this is a live block below one line per finished trial, elsewhere the lines alone.

    Args:
        tasks: the trials that this call runs, as far as they are known; see :meth:`expect`.
        already: trials that were finished before.
        console: where to print.
    """

    def __init__(self, tasks: Sequence[TrialTask], *, already: int, console: Console) -> None:
        self._console = console
        self._already = already
        self._all = already + len(tasks)
        self._cost = {task.trial.name: task.trial.cost for task in tasks}
        self._shares: dict[str, float] = {}
        self._before: dict[str, float] = {}  # share of a trial that an earlier call has run
        self._first_step: float | None = None  # when it was
        self._told_first = False
        self._done: set[str] = set()
        self._started = time.monotonic()
        self._rows: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            # Each drawing is time that a trial in this process, or one on the same core, lacks: 10
            # a second took 2.4 % of a core.
            refresh_per_second=2,
        )
        self._total = self._progress.add_task("trials", total=self._all, completed=already, note="")

    def expect(self, task: TrialTask) -> None:
        """Takes in a trial that was chosen on the way."""
        self._all += 1
        self._cost[task.trial.name] = task.trial.cost
        self._progress.update(self._total, total=self._all)

    def __enter__(self) -> StudyDisplay:
        start_bars(self._progress)
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def _seconds_left(self) -> float | None:
        """Returns the time that is left, by what this call has done: finished trials and steps."""
        share = {**self._shares, **dict.fromkeys(self._done, 1.0)}
        left = sum(cost * (1.0 - share.get(name, 0.0)) for name, cost in self._cost.items())
        done = sum(
            self._cost[name] * (value - self._before.get(name, 0.0))
            for name, value in share.items()
        )
        # Before a trial has ended, from the first step on: processes start once, not per trial.
        since = self._started if self._done or self._first_step is None else self._first_step
        elapsed = time.monotonic() - since
        if done <= 0.0 or elapsed < 1.0:
            return None
        return elapsed * left / done

    def _note(self) -> str:
        left = self._seconds_left()
        return "" if left is None else f"{duration(left)} left"

    def progress(self, name: str, event: dict[str, Any]) -> None:
        """Takes a progress event of a running trial."""
        step, steps = event.get("step") or 0, event.get("total_steps") or 0
        if event.get("stage") == "train":
            share = _TRAINING_SHARE * step / steps if steps else 0.0
            # The first step's own share, which is of this call, is lost: little beside all others.
            self._before.setdefault(name, share)
            if self._first_step is None:
                self._first_step = time.monotonic()
            self._shares[name] = share
        if not self._console.is_terminal:
            self._tell_first(name, step)
            return
        if name not in self._rows:
            self._rows[name] = self._progress.add_task(f"  {name}", total=None, note="")
        note = str(event.get("stage"))
        if event.get("epoch"):
            note = f"epoch {event['epoch']}" + (
                f" of {event['epochs']}" if event.get("epochs") else ""
            )
        self._progress.update(self._rows[name], completed=step, total=steps or None, note=note)
        self._progress.update(self._total, note=self._note())

    def _tell_first(self, name: str, step: int) -> None:
        """Prints an estimate as soon as there is one, once: the first trial may take an hour."""
        left = None if self._told_first or self._done else self._seconds_left()
        if left is not None:
            self._told_first = True
            line = f"about {duration(left)} left, by the first {counted(step, 'step')} of {name}"
            self._console.print(line, markup=False, highlight=False)

    def finished(self, outcome: Outcome) -> None:
        """Takes the end of a trial and prints its line."""
        self._done.add(outcome.trial)
        if outcome.trial in self._rows:
            self._progress.remove_task(self._rows.pop(outcome.trial))
        count = self._already + len(self._done)
        self._progress.update(self._total, completed=count, note=self._note())
        head = f"{count:>{len(str(self._all))}}/{self._all}  {outcome.trial}"
        if outcome.record is None:
            line = f"{head}  failed: {outcome.error}"
        else:
            record = outcome.record
            score = next(iter(record.scores.values()))
            line = (
                f"{head}  {counted(len(record.sample.videos), 'video')}"
                f"  mAP {percent(score.average_map):.1f}  {duration(record.seconds or 0.0)}"
            )
        left = self._note()
        self._console.print(f"{line}  ({left})" if left else line, markup=False, highlight=False)


def _cell(point: CurvePoint) -> str:
    mean = f"{point.mean:.2f}"
    return mean if point.deviation is None else f"{mean} ± {point.deviation:.2f}"


def _rows_of_samples(title: str, points: Sequence[CurvePoint]) -> tuple[Table, list[list[str]]]:
    """Returns a table with the columns that tell of the samples, and their cells."""
    names = ["p", "videos", "instances", "classes", "n"]
    rows = [
        [
            f"{point.share:g} %",
            f"{point.videos:.4g}",
            f"{point.instances:.0f}",
            f"{point.classes:.1f}",
            str(point.n),
        ]
        for point in points
    ]
    if any(len(point.trainings) != point.n for point in points):
        names.append("trials")
        for row, point in zip(rows, points, strict=True):
            row.append(str(len(point.trainings)))
    if any(point.steps is not None for point in points):
        names.append("steps")
        for row, point in zip(rows, points, strict=True):
            row.append("-" if point.steps is None else f"{point.steps:.0f}")
    return table_of(title, [], names), rows


_TITLE = "mAP in points, ± standard deviation over draws"


def curve_table(curve: LearningCurve, curves: Sequence[LearningCurve] = ()) -> Table:
    """Returns a curve as a table for a terminal, mAP in points.

    Args:
        curve: what to show.
        curves: all curves of the study, for the title.
    """
    points = curve.points
    keys = curve.thresholds
    name = curve_name(curve, curves or (curve,))
    table, rows = _rows_of_samples(f"{name}: {_TITLE}" if name else _TITLE, points)
    table.add_column("average mAP", justify="right", no_wrap=True)
    for key in keys:
        table.add_column(f"@{key}", justify="right", no_wrap=True)
    for row, point in zip(rows, points, strict=True):
        table.add_row(
            *row,
            _cell(point),
            *(f"{point.per_tiou[k][0]:.1f}" if k in point.per_tiou else "-" for k in keys),
        )
    return table


def _averages_table(group: Sequence[LearningCurve], curves: Sequence[LearningCurve]) -> Table:
    """Returns the curves of the same trainings side by side, one column per mode of averaging."""
    heads = [curve for curve in curves if curve.labels["ema"] == group[0].labels["ema"]]
    name = curve_name(group[0], heads)
    title = f"average {_TITLE}, by averaging of the weights"
    table, rows = _rows_of_samples(f"{name}: {title}" if name else title, group[0].points)
    for curve in group:
        table.add_column(curve.labels["ema"], justify="right", no_wrap=True)
    for index, row in enumerate(rows):
        table.add_row(*row, *(_cell(curve.points[index]) for curve in group))
    return table


def curve_tables(curves: Sequence[LearningCurve]) -> list[Table]:
    """Returns all curves of a study as tables for a terminal, one per sampling and budget.

    With one mode of averaging a table also tells mAP at each tIoU, with several it sets them side
    by side.
    """
    return [
        curve_table(group[0], curves) if len(group) == 1 else _averages_table(group, curves)
        for group in curves_by_training(curves)
    ]
