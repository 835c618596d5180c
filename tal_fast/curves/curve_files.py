# SPDX-License-Identifier: Apache-2.0
"""Learning curves in files: read from studies and from tables of others, written as a table."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from tal_fast.curves.csv_rows import Row, Rows, number, optional_number, read_rows
from tal_fast.curves.learning_curve import (
    CurvePoint,
    LearningCurve,
    mean_of_known,
    part,
    percent,
    telling_labels,
)
from tal_fast.curves.paper_tables import TableForm, count_of, paper_points
from tal_fast.data.text_files import open_table
from tal_fast.errors import ConfigError, DataError, argument, nearest, os_reason

__all__ = [
    "csv_cell",
    "csv_text",
    "curve_csv",
    "curve_named",
    "read_curve",
    "read_curves",
    "study_thresholds",
]

# Columns that tell the curves of a study apart.
_LABELS = ("model", "sampling", "budget", "ema")
# Columns that tell a draw from all others.
_DRAW = ("instances", "repetition", "seed", "videos")
# What names the tables of a study, of trainings and of points: p and mAP in 0..1.
_TRAININGS = ("p", "average_map", "repetition")
_POINTS = ("p", "mean", "sd")


def _share(value: float) -> float:
    return round(value, 9)  # as it was written, where 100 · p ends beside it


def _part(path: Path, row: Row, column: str) -> float:
    """Returns a cell in 0..1.

    Raises:
        DataError: it is no number, or beyond 1.
    """
    line, cells = row
    value = number(path, line, column, cells[column])
    if value > 1.0:
        raise DataError(
            f"{path}, line {line}: expected {column} of at most 1 (100 %), as in the tables of a "
            f"study, got {value:g} ({percent(value):g} %); columns in percent are to be named so "
            "(percent, map_mean, map_std)"
        )
    return value


def _of_trainings(path: Path, rows: Sequence[Row]) -> list[CurvePoint]:
    """Returns the points of rows of trainings; those on one draw are averaged first."""
    levels: dict[float, list[Row]] = {}
    for row in rows:
        levels.setdefault(_share(percent(_part(path, row, "p"))), []).append(row)
    points = []
    for share, group in sorted(levels.items()):
        draws: dict[str, list[float]] = {}
        names: dict[str, str] = {}
        for row in group:
            cells = row[1]
            value = percent(_part(path, row, "average_map"))
            draws.setdefault(cells["repetition"], []).append(value)
            if set(_DRAW) <= set(cells):
                # A draw follows from the study's seed, the repetition and p: trainings of equal
                # seeds whose samples are as large and hold as much were drawn alike.
                words = (cells.get("sampling") or "video", *(cells[key] for key in _DRAW))
                names.setdefault(cells["repetition"], " ".join(words))
        known = {
            name: mean_of_known(
                [optional_number(path, line, column, cells.get(column)) for line, cells in group]
            )
            for name, column in (("videos", "videos"), ("seconds", "total_seconds"))
        }
        point = CurvePoint.of_draws(share, list(draws.values()), None, **known)
        points.append(replace(point, names=tuple(names.values())))
    return points


def _of_points(path: Path, rows: Sequence[Row], repetitions: int | None) -> list[CurvePoint]:
    """Returns the points of rows that have one each."""
    points = []
    for row in rows:
        line, cells = row
        count = count_of(path, line, optional_number(path, line, "n", cells.get("n")), repetitions)
        spread = optional_number(path, line, "sd", cells["sd"])
        point = CurvePoint(
            share=_share(percent(_part(path, row, "p"))),
            mean=percent(_part(path, row, "mean")),
            deviation=percent(spread) if spread is not None and count > 1 else None,
            n=count,
            videos=optional_number(path, line, "videos", cells.get("videos")),
        )
        points.append(point)
    return sorted(points, key=lambda point: point.share)


def _whole_set(points: Sequence[CurvePoint]) -> float | None:
    """Returns the number of videos at p = 100 %.

    The largest sample tells best: rounding to whole videos matters least there.
    """
    sized = [point for point in points if point.videos is not None and point.share > 0.0]
    return percent(sized[-1].videos) / sized[-1].share if sized and sized[-1].videos else None


def _source(path: Path) -> Path:
    if not os.path.isdir(path):
        return path
    for name in ("trials.csv", "curve.csv"):
        if os.path.isfile(path / name):
            return path / name
    raise DataError(
        f"{path}: expected a study with trials.csv, found none (tal-fast study report writes it)"
    )


def study_thresholds(path: str | Path) -> tuple[float, ...]:
    """Returns the tIoU thresholds that a study's mAP is averaged over; none where nothing tells.

    Args:
        path: as for :func:`read_curves`; the table of a paper tells none.

    Raises:
        DataError: there is no table, or it cannot be read.
    """
    source = _source(Path(path))
    try:
        with open_table(source, "a table (CSV)") as file:
            columns = file.readline().strip().split(",")
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {os_reason(error)}") from error
    matches = (re.fullmatch(r"(?:map|mean)_(\d+(?:\.\d+)?)", column) for column in columns)
    return tuple(float(match[1]) for match in matches if match)


def _of_study(rows: Rows, repetitions: int | None) -> list[LearningCurve]:
    """Returns the curves of a study's own table."""
    source = rows.source
    keys = [column for column in _LABELS if column in rows.header]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for line, cells in rows.rows:
        groups.setdefault(tuple(cells[key] for key in keys), []).append((line, cells))
    curves = []
    for values, group in groups.items():
        points = (
            _of_trainings(source, group)
            if set(_TRAININGS) <= set(rows.header)
            else _of_points(source, group, repetitions)
        )
        labels = dict(zip(keys, values, strict=True))
        curves.append(
            LearningCurve(_unnamed(source), tuple(points), labels, _whole_set(points), rows.notes)
        )
    # What all curves share tells none of them apart; the model is named all the same.
    telling = {"model", *telling_labels(curves)}
    names = (
        ", ".join(word for key, word in curve.labels.items() if word and key in telling)
        for curve in curves
    )
    return [
        replace(curve, name=name or curve.name) for curve, name in zip(curves, names, strict=True)
    ]


def _unnamed(source: Path) -> str:
    return source.parent.name or source.stem


def read_curves(
    path: str | Path, *, repetitions: int | None = None, form: TableForm | None = None
) -> list[LearningCurve]:
    """Reads the learning curves of a study or a table.

    Args:
        path: the directory of a study, its ``trials.csv`` or ``curve.csv`` (p and mAP in 0..1), or
            the table of a paper: a row per level or per training, with a column of p, one of mAP,
            and what else there is (docs/curves-from-anywhere.md).
        repetitions: repetitions of each level, for a table without a column ``n``.
        form: what the table of a paper leaves open.

    Returns:
        The curves in the order of the file; those of a study differ in model or settings.

    Raises:
        DataError: the file is none of these, or a value is missing or impossible.

    Example:
        >>> from tal_fast.curves import read_curves
        >>> [curve.name for curve in read_curves("docs/results/hapt")]
        ['tadtr-small']
    """
    source = _source(Path(path))
    rows = read_rows(source)
    if not rows.rows:
        raise DataError(f"{source}: expected at least one row, got none")
    if any(set(kind) <= set(rows.header) for kind in (_TRAININGS, _POINTS)):
        return _of_study(rows, repetitions)
    form = TableForm() if form is None else form
    by_name, notes = paper_points(rows, form, repetitions)
    return [
        LearningCurve(
            name or source.stem,
            tuple(points),
            {"model": name} if name else {},
            form.videos or _whole_set(points),
            (*rows.notes, *notes),
        )
        for name, points in by_name.items()
    ]


def curve_named(curves: Sequence[LearningCurve], name: str, source: object) -> LearningCurve:
    """Returns the curve of a name, or of some of its labels where they fit one curve alone.

    ``steps, off`` is enough for ``tridet-small, steps, off`` as long as no other curve has both.
    Pages write ``EMA off`` for ``off``; that is understood.

    Args:
        curves: to choose from.
        name: of the curve, or labels with commas between.
        source: what an error begins with: a file or an argument.

    Raises:
        ConfigError: no curve fits, or several do.
    """
    names = [curve.name for curve in curves]
    if name in names:
        return curves[names.index(name)]
    words = {word.strip().removeprefix("EMA ") for word in name.split(",")}
    fitting = [curve for curve in curves if words <= set(curve.labels.values())]
    if len(fitting) == 1:
        return fitting[0]
    shown = ", ".join(repr(curve.name) for curve in fitting or curves)  # there are commas in them
    if fitting:
        raise ConfigError(
            f"{source}: expected the name of one curve, got {name!r}: it fits {shown}"
        )
    raise ConfigError(f"{source}: expected one of {shown}, got {name!r}{nearest(name, names)}")


def read_curve(
    path: str | Path,
    name: str | None = None,
    *,
    repetitions: int | None = None,
    form: TableForm | None = None,
) -> LearningCurve:
    """Reads one curve; ``name`` chooses it where there are several, as :func:`curve_named` does.

    Raises:
        DataError: as :func:`read_curves`.
        ConfigError: there is no curve of this name, or several and no name.
    """
    curves = read_curves(path, repetitions=repetitions, form=form)
    if name is not None:
        return curve_named(curves, name, path)
    if len(curves) == 1:
        return curves[0]
    raise ConfigError(
        f"{path}: has the curves {', '.join(repr(curve.name) for curve in curves)}; choose one "
        f"with {argument('name', option='--curve')}"
    )


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Returns rows as the text of a CSV file."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def csv_cell(value: float | None) -> str:
    """Returns mAP in 0..1 as it stands in a table; empty where there is none."""
    return "" if value is None else f"{value:.6f}"


# Columns of curve.csv, and the attributes of a point that they hold: counts, then mAP.
_COUNTS = ("videos", "instances", "classes", "windows", "steps")
_SCORES = {
    "mean": "mean",
    "sd": "deviation",
    "sd_seeds": "seed_deviation",
    "sd_draws": "draw_deviation",
}


def curve_csv(curves: Sequence[LearningCurve]) -> str:
    """Returns ``curve.csv``: a row per curve and share; p and mAP in 0..1.

    A deviation is empty where there is none: one draw, or one training per draw.
    """

    def score(points: float | None) -> str:
        return csv_cell(None if points is None else part(points))

    keys = sorted({key for curve in curves for key in curve.thresholds}, key=float)
    header = [*curves[0].labels, "p", *_COUNTS, "n", "trials", *_SCORES]
    rows: list[list[object]] = [
        [*header, *(f"{name}_{key}" for key in keys for name in ("mean", "sd"))]
    ]
    for curve in curves:
        for point in curve.points:
            counts = (getattr(point, name) for name in _COUNTS)
            row: list[object] = [*curve.labels.values(), f"{part(point.share):g}"]
            row += ["" if count is None else f"{count:g}" for count in counts]
            row += [point.n, len(point.trainings)]
            row += [score(getattr(point, attribute)) for attribute in _SCORES.values()]
            for key in keys:
                row += [score(value) for value in point.per_tiou.get(key, (None, None))]
            rows.append(row)
    return csv_text(rows)
