# SPDX-License-Identifier: Apache-2.0
"""What a running study shows, and its curve as a table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from tal_fast.study.curve import Curve, CurvePoint, curves_by_training
from tal_fast.study.execution.executors import Outcome
from tal_fast.study.execution.trials import Trial, TrialTask

__all__ = ["StudyDisplay", "curve_name", "curve_table", "curve_tables", "duration", "trial_cost"]

# Predicting the test videos and evaluating costs about this share of a trial at p = 1.
_TEST_SHARE = 0.1


def duration(seconds: float) -> str:
    """Returns a length of time as people say it: ``48 s``, ``12 min 05 s``, ``3 h 20 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def trial_cost(trial: Trial) -> float:
    """Returns about what a trial costs, in units of one on all data: under epochs its share."""
    return (trial.fraction if trial.budget == "epochs" else 1.0) + _TEST_SHARE


def curve_name(curve: Curve, curves: Sequence[Curve]) -> str:
    """Returns what tells a curve from the others: ``window, steps, plain``; empty for one alone."""
    words = []
    for attribute in ("sampling", "budget", "ema"):
        values = {getattr(other, attribute) for other in curves}
        if len(values) > 1:
            value = getattr(curve, attribute)
            words.append(f"EMA {value}" if attribute == "ema" else value)
    return ", ".join(words)


class StudyDisplay:
    """Shows trials done, time left and the running trials' epochs; a context manager.

    On a terminal this is a live block below one line per finished trial, elsewhere the lines alone.

    Args:
        tasks: the trials that this call runs.
        already: trials that were finished before.
        console: where to print.
    """

    def __init__(self, tasks: Sequence[TrialTask], *, already: int, console: Console) -> None:
        self._console = console
        self._already = already
        self._all = already + len(tasks)
        self._cost = {task.trial.name: trial_cost(task.trial) for task in tasks}
        self._shares: dict[str, float] = {}
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

    def __enter__(self) -> StudyDisplay:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def _seconds_left(self) -> float | None:
        total = sum(self._cost.values())
        done = sum(self._cost[name] for name in self._done)
        done += sum(
            share * self._cost[name]
            for name, share in self._shares.items()
            if name not in self._done
        )
        elapsed = time.monotonic() - self._started
        if done <= 0.0 or elapsed < 1.0:
            return None
        return elapsed * (total - done) / done

    def _note(self) -> str:
        left = self._seconds_left()
        return "" if left is None else f"{duration(left)} left"

    def progress(self, name: str, event: dict[str, Any]) -> None:
        """Takes a progress event of a running trial."""
        step, steps = event.get("step") or 0, event.get("total_steps") or 0
        if event.get("stage") == "train":
            self._shares[name] = 0.9 * step / steps if steps else 0.0
        if not self._console.is_terminal:
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
            line = (
                f"{head}  {len(record['sample']['videos'])} videos"
                f"  mAP {100 * record['result']['average_map']:.1f}"
                f"  {duration(record['seconds'])}"
            )
        left = self._note()
        self._console.print(f"{line}  ({left})" if left else line, markup=False, highlight=False)


def _cell(point: CurvePoint) -> str:
    mean = f"{100 * point.mean:.2f}"
    return mean if point.deviation is None else f"{mean} ± {100 * point.deviation:.2f}"


def _rows_of_samples(title: str, points: Sequence[CurvePoint]) -> tuple[Table, list[list[str]]]:
    """Returns a table with the columns that tell of the samples, and their cells."""
    table = Table(title=title, title_justify="left")
    names = ["p", "videos", "instances", "classes", "n"]
    rows = [
        [
            f"{100 * point.fraction:g} %",
            f"{point.videos:.4g}",
            f"{point.instances:.0f}",
            f"{point.classes:.1f}",
            str(point.n),
        ]
        for point in points
    ]
    if any(point.trials != point.n for point in points):
        names.append("trials")
        for row, point in zip(rows, points, strict=True):
            row.append(str(point.trials))
    if any(point.steps is not None for point in points):
        names.append("steps")
        for row, point in zip(rows, points, strict=True):
            row.append("-" if point.steps is None else f"{point.steps:.0f}")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table, rows


_TITLE = "mAP in points, ± standard deviation over draws"


def curve_table(curve: Curve, curves: Sequence[Curve] = ()) -> Table:
    """Returns a curve as a table for a terminal, mAP in points.

    Args:
        curve: what to show.
        curves: all curves of the study, for the title.
    """
    points = curve.points
    keys = sorted({key for point in points for key in point.per_tiou}, key=float)
    name = curve_name(curve, curves or (curve,))
    table, rows = _rows_of_samples(f"{name}: {_TITLE}" if name else _TITLE, points)
    table.add_column("average mAP", justify="right", no_wrap=True)
    for key in keys:
        table.add_column(f"@{key}", justify="right", no_wrap=True)
    for row, point in zip(rows, points, strict=True):
        table.add_row(
            *row,
            _cell(point),
            *(f"{100 * point.per_tiou[k][0]:.1f}" if k in point.per_tiou else "-" for k in keys),
        )
    return table


def _averages_table(group: Sequence[Curve], curves: Sequence[Curve]) -> Table:
    """Returns the curves of the same trainings side by side, one column per mode of averaging."""
    heads = [curve for curve in curves if curve.ema == group[0].ema]
    name = curve_name(group[0], heads)
    title = f"average {_TITLE}, by averaging of the weights"
    table, rows = _rows_of_samples(f"{name}: {title}" if name else title, group[0].points)
    for curve in group:
        table.add_column(curve.ema, justify="right", no_wrap=True)
    for index, row in enumerate(rows):
        table.add_row(*row, *(_cell(curve.points[index]) for curve in group))
    return table


def curve_tables(curves: Sequence[Curve]) -> list[Table]:
    """Returns all curves of a study as tables for a terminal, one per sampling and budget.

    With one mode of averaging a table also tells mAP at each tIoU, with several it sets them side
    by side.
    """
    return [
        curve_table(group[0], curves) if len(group) == 1 else _averages_table(group, curves)
        for group in curves_by_training(curves)
    ]
