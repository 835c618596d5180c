# SPDX-License-Identifier: Apache-2.0
"""Tables of papers: which column means what, and in which unit.

People write ``p (%)``, ``fraction``, ``mAP``, ``55.4 ± 0.5``. Names that can mean one thing only
are understood. Whether a number is in percent or in 0..1 is never guessed: its name says so, or a
number above 1 proves percent, or the caller says it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from tal_fast.curves.csv_rows import Row, Rows, number
from tal_fast.curves.learning_curve import CEILING, CurvePoint, percent
from tal_fast.curves.paper_columns import PLUS_MINUS, Column, columns_of
from tal_fast.errors import ConfigError, DataError, argument, both_ways, counted, nearest

__all__ = ["TableForm", "count_of", "paper_points"]

_MOST_REPETITIONS = 1_000_000


def _table(**said: object) -> str:
    """Returns how to say what a table leaves open, on the command line and in Python."""
    (name, value) = next(iter(said.items()))
    return both_ways(f"--table {name}={value}", f"form=TableForm({name}={value!r})")


_DECIMAL_COMMA = _table(decimal="comma")


@dataclass(frozen=True)
class TableForm:
    """What a table leaves open.

    Attributes:
        units: ``percent`` or ``fraction`` (0..1), of columns that neither name nor numbers tell.
        spread: what follows a ``±``: ``sd``, the standard deviation of the repetitions, or ``se``,
            the standard error of their mean.
        videos: number of training videos at p = 100 %.
        decimal: what stands before the decimals, ``point`` or ``comma``.
    """

    units: str | None = None
    spread: str = "sd"
    videos: float | None = None
    decimal: str = "point"

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known and not (name == "units" and value is None):
                raise ConfigError(
                    f"table: expected {name} to be {' or '.join(known)}, got {value!r}"
                    f"{nearest(str(value), known)}"
                )
        if self.videos is not None and not 1.0 <= self.videos < float("inf"):
            raise ConfigError(f"table: expected videos of at least 1, got {self.videos:g}")

    @classmethod
    def parse(cls, words: Iterable[str]) -> TableForm:
        """Returns the form that words such as ``units=percent`` describe.

        Raises:
            ConfigError: a word is none of them.
        """
        known = [field_of_form.name for field_of_form in fields(cls)]
        given: dict[str, str | float] = {}
        for word in words:
            key, equals, value = word.partition("=")
            if not equals or key not in known:
                raise ConfigError(
                    f"--table: expected one of {', '.join(f'{name}=...' for name in known)}, "
                    f"got {word!r}{nearest(key, known)}"
                )
            try:
                given[key] = float(value) if key == "videos" else value
            except ValueError:
                raise ConfigError(f"--table: expected a number of videos, got {value!r}") from None
        return cls(**given)  # type: ignore[arg-type]


_CHOICES = {"units": ("percent", "fraction"), "spread": ("sd", "se"), "decimal": ("point", "comma")}


_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(\.\d{3})+")  # where decimals follow a comma
_Read = tuple[int, float | None, float | None, bool]  # line, number, spread, whether with a %


class _Cells:
    """Cells of one table as numbers, in the units of curves."""

    def __init__(self, rows: Rows, form: TableForm) -> None:
        self.rows, self.form = rows, form
        self.columns = columns_of(rows)
        self.notes: list[str] = []
        self._units: dict[str, str] = {
            role: self._unit(role) for role in ("share", "mean") if role in self.columns
        }
        self._check_spread_unit()

    def parts(self, role: str, row: Row) -> tuple[float | None, float | None, bool]:
        """Returns a cell's number, what follows a ±, and whether a % follows."""
        line, cells = row
        name = self.columns[role].name
        cell = cells[name].replace("$", "").strip()
        marked = "%" in cell
        pieces = [piece.strip(" %") for piece in PLUS_MINUS.split(cell)]
        if len(pieces) > 2 or (len(pieces) == 2 and role != "mean"):
            number(self.rows.source, line, name, cells[name])  # refuses
        values = [self._number(line, name, piece) if piece else None for piece in pieces]
        return values[0], values[1] if len(values) > 1 else None, marked

    def _number(self, line: int, name: str, cell: str) -> float:
        if self.form.decimal == "comma" and _THOUSANDS.fullmatch(cell):
            raise DataError(
                f"{self.rows.source}, line {line}: expected a number with a decimal comma "
                f"({_DECIMAL_COMMA}) in column {name}, got {cell!r}, which may be a thousand"
            )
        if "," in cell and self.form.decimal == "comma" and "." not in cell:
            cell = cell.replace(",", ".")
        elif re.fullmatch(r"[-+]?\d+,\d+", cell):
            raise DataError(
                f"{self.rows.source}, line {line}: expected a number in column {name}, got "
                f"{cell!r}; if that is a decimal comma, say so: {_DECIMAL_COMMA}"
            )
        return number(self.rows.source, line, name, cell)

    def _unit(self, role: str) -> str:
        column, source = self.columns[role], self.rows.source
        read = [(row[0], *self.parts(role, row)) for row in self.rows.rows]
        values = [(line, value) for line, value, _, _ in read if value is not None]
        if not values:  # told where the first is missing
            return "percent"
        self._check_signs(column, read)
        line, largest = max(values, key=lambda one: one[1])
        told = column.unit or ("percent" if any(marked for *_, marked in read) else None)
        if told == "fraction" and largest > 1.0:
            raise DataError(
                f"{source}, line {line}: expected at most 1 in column {column.name}, a fraction by "
                f"its name, got {largest:g}"
            )
        if told == "percent" and largest <= 1.0 and self.form.units != "percent":
            raise DataError(
                f"{source}, line {line}: expected percent in column {column.name}, as its name "
                f"says, got nothing above {largest:g}; if that is right, say so: "
                f"{_table(units='percent')}; else rename the column"
            )
        if told is None and largest > 1.0:
            told = "percent"
            self.notes.append(
                f"{source.name}: column {column.name} is read in percent, since it goes up to "
                f"{largest:g}"
            )
        if told is None and self.form.units is None:
            raise DataError(
                f"{source}, line {line}: expected to learn whether column {column.name} is in "
                f"percent or in 0..1, got nothing above {largest:g} and a name that tells neither; "
                f"say so: {_table(units='fraction')} or {_table(units='percent')}"
            )
        return told or str(self.form.units)

    def _check_signs(self, column: Column, read: Sequence[_Read]) -> None:
        """Checks that the % of some cells leave no other cell in doubt."""
        marked = [line for line, _, _, sign in read if sign]
        if not marked or column.unit == "percent":
            return
        if column.unit == "fraction":
            raise DataError(
                f"{self.rows.source}, line {marked[0]}: expected no % in column {column.name}, a "
                "fraction by its name"
            )
        for line, value, _, sign in read:
            if value is not None and not sign and value <= 1.0:
                raise DataError(
                    f"{self.rows.source}, line {line}: expected a % after {value:g} in column "
                    f"{column.name} as in line {marked[0]}, or after no number there"
                )

    def _check_spread_unit(self) -> None:
        for role in ("sd", "se", "spread"):
            column = self.columns.get(role)
            if column is not None and column.unit not in (None, self._units["mean"]):
                raise DataError(
                    f"{self.rows.source}, line 1: expected the unit of {self.columns['mean'].name} "
                    f"({self._units['mean']}) in column {column.name}, got {column.unit}"
                )

    def _scaled(self, role: str, value: float) -> float:
        return value if self._units[role] == "percent" else percent(value)

    def required(self, role: str, row: Row) -> float:
        """Returns a number that has to be there.

        Raises:
            DataError: it is not.
        """
        value = self.parts(role, row)[0]
        if value is None:
            number(self.rows.source, row[0], self.columns[role].name, "")
        return float(value or 0.0)

    def share(self, row: Row) -> float:
        """Returns p in percent."""
        source, (line, _) = self.rows.source, row
        if "share" in self.columns:
            name = self.columns["share"].name
            share = self._scaled("share", self.required("share", row))
        elif self.form.videos is None:
            name = self.columns["videos"].name
            raise DataError(
                f"{source}, line {line}: expected a column of p, or the number of videos of the "
                f"full training set beside column {name}, as in "
                f"{_table(videos=200)}, got neither"
            )
        else:
            name = self.columns["videos"].name
            share = percent(self.required("videos", row) / self.form.videos)
        if not 0.0 < share <= 100.0 + 1e-9:
            raise DataError(
                f"{source}, line {line}: expected p above 0 and at most 1 (100 %), got {share:g} % "
                f"in column {name}"
            )
        return round(share, 9)  # as it was written, where 100 · p ends beside it

    def mean(self, row: Row) -> float:
        """Returns mAP in points."""
        value = self._scaled("mean", self.required("mean", row))
        if not 0.0 <= value <= CEILING:
            raise DataError(
                f"{self.rows.source}, line {row[0]}: expected mAP of 0 to 100 points in column "
                f"{self.columns['mean'].name}, got {value:g}"
            )
        return value

    def spread(self, row: Row) -> tuple[float | None, str]:
        """Returns what tells the spread, in points, and whether it is ``sd`` or ``se``."""
        for role in ("sd", "se", "spread"):
            if role in self.columns:
                value, _, marked = self.parts(role, row)
                kind = role
                if marked and self._units["mean"] != "percent":
                    raise DataError(
                        f"{self.rows.source}, line {row[0]}: expected the unit of "
                        f"{self.columns['mean'].name} (fraction) in column "
                        f"{self.columns[role].name}, got a %"
                    )
                break
        else:
            value, kind = self.parts("mean", row)[1], "spread"
        if value is not None and value < 0.0:
            raise DataError(
                f"{self.rows.source}, line {row[0]}: expected a spread of at least 0, got {value:g}"
            )
        scaled = None if value is None else self._scaled("mean", value)
        return scaled, self.form.spread if kind == "spread" else kind

    def videos(self, row: Row) -> float | None:
        """Returns the number of training videos, None where it is not told."""
        return self.parts("videos", row)[0] if "videos" in self.columns else None


def count_of(path: Path, line: int, told: float | None, given: int | None) -> int:
    """Returns the repetitions of a level: what the row tells, else what was given.

    Raises:
        DataError: there is neither, or no whole number.
    """
    count = given if told is None else told
    if count is None:
        raise DataError(
            f"{path}, line {line}: expected a column n, the repetitions of a level; "
            f"give their number with {argument('repetitions')}"
        )
    if not 1 <= count <= _MOST_REPETITIONS or count != round(count):
        raise DataError(
            f"{path}, line {line}: expected a whole number of repetitions, got {count:g} "
            f"(at most {_MOST_REPETITIONS:,})"
        )
    return int(count)


def _most_deviation(mean: float, count: int) -> float:
    """Returns the largest sample deviation of ``count`` values from 0 to 100 of a rounded mean."""
    near = min(mean + 0.5, 50.0) if mean < 50.0 else max(mean - 0.5, 50.0)
    return math.sqrt(near * (CEILING - near) * count / (count - 1))


def _summaries(cells: _Cells, rows: Sequence[Row], repetitions: int | None) -> list[CurvePoint]:
    points: dict[float, CurvePoint] = {}
    for row in rows:
        share = cells.share(row)
        if share in points:
            raise DataError(
                f"{cells.rows.source}, line {row[0]}: expected each p once, got {share:g} % again"
            )
        spread, kind = cells.spread(row)
        told = cells.parts("n", row)[0] if "n" in cells.columns else None
        if spread is None and told is None and repetitions is None:
            told = 1.0
        count = count_of(cells.rows.source, row[0], told, repetitions)
        if spread and count == 1:
            raise DataError(
                f"{cells.rows.source}, line {row[0]}: expected at least 2 repetitions beside a "
                f"spread of {spread:g}, got 1"
            )
        if spread is not None and kind == "se":
            spread *= count**0.5
        mean, deviation = cells.mean(row), spread if count > 1 else None
        if deviation is not None and deviation > (most := _most_deviation(mean, count)):
            raise DataError(
                f"{cells.rows.source}, line {row[0]}: expected a spread in the unit of mAP: "
                f"{counted(count, 'value')} of 0 to 100 points with a mean of {mean:g} have a "
                "standard "
                f"deviation of at most {most:.3g} points, got {deviation:.4g}"
            )
        points[share] = CurvePoint(share, mean, deviation, count, videos=cells.videos(row))
    return list(points.values())


def _single_runs(cells: _Cells, rows: Sequence[Row]) -> list[CurvePoint]:
    levels: dict[float, list[Row]] = {}
    for row in rows:
        levels.setdefault(cells.share(row), []).append(row)
    points = []
    for share, group in levels.items():
        if "repetition" in cells.columns:
            name = cells.columns["repetition"].name
            seen: set[str] = set()
            for line, values in group:
                if values[name] in seen:
                    raise DataError(
                        f"{cells.rows.source}, line {line}: expected each {name} once at "
                        f"p = {share:g} %, got {values[name]!r} again"
                    )
                seen.add(values[name])
        sizes = [size for size in map(cells.videos, group) if size is not None]
        videos = sum(sizes) / len(sizes) if len(sizes) == len(group) else None
        points.append(
            CurvePoint.of_draws(share, [[cells.mean(row)] for row in group], videos=videos)
        )
    return points


def paper_points(
    rows: Rows, form: TableForm, repetitions: int | None
) -> tuple[dict[str, list[CurvePoint]], list[str]]:
    """Reads a table that has a row per level, or a row per training, of one model or several.

    Args:
        rows: of the file.
        form: what the table leaves open.
        repetitions: of each level, where no column tells.

    Returns:
        The points by model, each rising, and notes on how the table was read.

    Raises:
        DataError: a column is missing or ambiguous, or a value is missing or impossible.
    """
    cells = _Cells(rows, form)
    groups: dict[str, list[Row]] = {}
    for row in rows.rows:
        column = cells.columns.get("model")
        name = "" if column is None else row[1][column.name]
        if column is not None and not name:  # as merged cells are saved
            raise DataError(
                f"{rows.source}, line {row[0]}: expected a name in column {column.name}, got none"
            )
        groups.setdefault(name, []).append(row)
    spread = any(cells.spread(row)[0] is not None for row in rows.rows)
    single = not spread and "n" not in cells.columns and repetitions is None
    found: Mapping[str, list[CurvePoint]] = {
        name: _single_runs(cells, group) if single else _summaries(cells, group, repetitions)
        for name, group in groups.items()
    }
    notes = list(cells.notes)
    several = any(point.n > 1 for points in found.values() for point in points)
    if single and several and "repetition" not in cells.columns:
        notes.append(f"{rows.source.name}: rows of the same p are read as repetitions")
    paired = any(cells.parts("mean", row)[1] is not None for row in rows.rows)
    if paired or "spread" in cells.columns:
        kind = "standard deviation" if form.spread == "sd" else "standard error"
        notes.append(f"{rows.source.name}: what follows ± is read as the {kind} of repetitions")
    ordered = {name: sorted(points, key=lambda p: p.share) for name, points in found.items()}
    return ordered, notes
