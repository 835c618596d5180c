# SPDX-License-Identifier: Apache-2.0
"""Learning curves in files: read from studies and from tables of others, written as a table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tal_fast.curves.learning_curve import (
    CurvePoint,
    LearningCurve,
    mean_of_known,
    part,
    percent,
    telling_labels,
)
from tal_fast.errors import ConfigError, DataError, nearest

__all__ = ["csv_cell", "csv_text", "curve_csv", "read_curve", "read_curves"]

# Columns that tell the curves of one table apart.
_LABELS = ("model", "sampling", "budget", "ema")
# Columns that tell a draw from all others.
_DRAW = ("instances", "repetition", "seed", "videos")
# What names the columns of trainings, and those of points: share, mAP and its deviation. The last
# are in percent and points, the others in 0..1.
_TRAININGS = ("p", "average_map", "repetition")
_POINTS = ("p", "mean", "sd")
_PERCENT_POINTS = ("percent", "map_mean", "map_std")


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}, line {line}: expected a number in column {column}, got {text!r}")
    return value


def _optional(path: Path, line: int, column: str, text: str | None) -> float | None:
    return _number(path, line, column, text) if text else None


Row = tuple[int, Mapping[str, str]]


def _share(value: float) -> float:
    return round(value, 9)  # as it was written, where 100 · p ends beside it


def _of_trainings(path: Path, rows: Sequence[Row]) -> list[CurvePoint]:
    """Returns the points of rows of trainings; those on one draw are averaged first."""
    levels: dict[float, list[Row]] = {}
    for line, row in rows:
        share = _share(percent(_number(path, line, "p", row["p"])))
        levels.setdefault(share, []).append((line, row))
    points = []
    for share, group in sorted(levels.items()):
        draws: dict[str, list[float]] = {}
        names: dict[str, str] = {}
        for line, row in group:
            value = percent(_number(path, line, "average_map", row["average_map"]))
            draws.setdefault(row["repetition"], []).append(value)
            if set(_DRAW) <= set(row):
                # A draw follows from the study's seed, the repetition and p: trainings of equal
                # seeds whose samples are as large and hold as much were drawn alike.
                words = (row.get("sampling") or "video", *(row[key] for key in _DRAW))
                names.setdefault(row["repetition"], " ".join(words))
        known = {
            name: mean_of_known(
                [_optional(path, line, column, row.get(column)) for line, row in group]
            )
            for name, column in (("videos", "videos"), ("seconds", "total_seconds"))
        }
        point = CurvePoint.of_draws(share, list(draws.values()), None, **known)
        points.append(replace(point, names=tuple(names.values())))
    return points


def _repetitions(path: Path, line: int, text: str | None, given: int | None) -> int:
    count = _optional(path, line, "n", text)
    if count is None:
        if given is None:
            raise DataError(
                f"{path}, line {line}: expected a column n, the repetitions of a level; "
                "give their number with --repetitions"
            )
        count = given
    if count != round(count) or count < 1:
        raise DataError(
            f"{path}, line {line}: expected a whole number of repetitions, got {count:g}"
        )
    return int(count)


def _of_points(
    path: Path, rows: Sequence[Row], columns: Sequence[str], repetitions: int | None
) -> list[CurvePoint]:
    """Returns the points of rows that have one each."""
    share, mean, spread = columns
    scale: Callable[[float], float] = float if columns == _PERCENT_POINTS else percent
    points = []
    for line, row in rows:
        count = _repetitions(path, line, row.get("n"), repetitions)
        deviation = _optional(path, line, spread, row.get(spread))
        point = CurvePoint(
            share=_share(scale(_number(path, line, share, row[share]))),
            mean=scale(_number(path, line, mean, row[mean])),
            deviation=scale(deviation) if deviation is not None and count > 1 else None,
            n=count,
            videos=_optional(path, line, "videos", row.get("videos")),
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
    if not path.is_dir():
        return path
    for name in ("trials.csv", "curve.csv"):
        if (path / name).is_file():
            return path / name
    raise DataError(
        f"{path}: expected a study with trials.csv, found none (tal-fast study report writes it)"
    )


def _read_rows(source: Path) -> tuple[list[str], list[Row]]:
    try:
        with source.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            header = list(reader.fieldnames or [])
            return header, [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise DataError(f"{source}: no such file or study") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source}: expected a table (CSV), got {error}") from error


def read_curves(path: str | Path, *, repetitions: int | None = None) -> list[LearningCurve]:
    """Reads the learning curves of a study or a table.

    Args:
        path: the directory of a study, its ``trials.csv`` or ``curve.csv`` (p and mAP in 0..1), or
            a table with the columns ``percent``, ``map_mean``, ``map_std`` (in percent and points)
            and, if it has several curves, ``model``.
        repetitions: repetitions of each level, for a table without a column ``n``.

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
    header, rows = _read_rows(source)
    kinds = (_TRAININGS, _POINTS, _PERCENT_POINTS)
    columns = next((kind for kind in kinds if set(kind) <= set(header)), None)
    if columns is None:
        expected = " or ".join(", ".join(kind) for kind in kinds)
        raise DataError(f"{source}: expected the columns {expected}; got {', '.join(header)}")
    if not rows:
        raise DataError(f"{source}: expected at least one row, got none")
    for line, row in rows:
        if any(row[column] is None for column in columns):
            raise DataError(f"{source}, line {line}: expected {len(header)} values, got fewer")
    keys = [column for column in _LABELS if column in header]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for line, row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append((line, row))
    unnamed = source.parent.name or source.stem
    curves = []
    for values, group in groups.items():
        points = (
            _of_trainings(source, group)
            if columns == _TRAININGS
            else _of_points(source, group, columns, repetitions)
        )
        labels = dict(zip(keys, values, strict=True))
        curves.append(LearningCurve(unnamed, tuple(points), labels, _whole_set(points)))
    # What all curves share tells none of them apart; the model is named all the same.
    telling = {"model", *telling_labels(curves)}
    names = (
        ", ".join(word for key, word in curve.labels.items() if word and key in telling)
        for curve in curves
    )
    return [
        replace(curve, name=name or curve.name) for curve, name in zip(curves, names, strict=True)
    ]


def read_curve(
    path: str | Path, name: str | None = None, *, repetitions: int | None = None
) -> LearningCurve:
    """Reads one curve; ``name`` chooses it where there are several.

    Raises:
        DataError: as :func:`read_curves`.
        ConfigError: there is no curve of this name, or several and no name.
    """
    curves = read_curves(path, repetitions=repetitions)
    names = [curve.name for curve in curves]
    shown = ", ".join(map(repr, names))  # there are commas in them
    if name is None and len(curves) == 1:
        return curves[0]
    if name is None:
        raise ConfigError(f"{path}: has the curves {shown}; choose one with --curve")
    if name not in names:
        raise ConfigError(f"{path}: expected one of {shown}, got {name!r}{nearest(name, names)}")
    return curves[names.index(name)]


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
