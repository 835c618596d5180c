# SPDX-License-Identifier: Apache-2.0
"""A table of labelled segments: a CSV file with a line per segment, under column names.

What a line must be to be one is decided here, and every fault is told with its line. Nothing is
guessed: times are decimal numbers, and a column goes by its name or by what the caller says.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from tal_fast.data.text_files import open_table
from tal_fast.errors import (
    ConfigError,
    DataError,
    argument,
    both_ways,
    counted,
    listing,
    nearest,
    os_reason,
)
from tal_fast.typing import FilePath

__all__ = ["COLUMNS", "Segment", "SegmentTable", "read_segment_table"]

_Value = TypeVar("_Value", str, float)

REQUIRED = ("video", "start", "end", "label")
OPTIONAL = ("subset", "split", "duration", "fps")
COLUMNS = REQUIRED + OPTIONAL

# What people call these columns, for hints alone.
_ALSO = {
    "video": ("video_id", "video_name", "videoid", "file", "filename", "name", "clip", "id"),
    "start": ("t_start", "start_time", "start_sec", "begin", "onset", "from", "t0", "tstart"),
    "end": ("t_end", "end_time", "end_sec", "stop", "offset", "to", "t1", "tend"),
    "label": ("class", "action", "activity", "category", "event", "annotation"),
}
# As float() reads more: 1_000, digits of other scripts, "nan", "infinity".
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_CLOCK = re.compile(r"\d+:\d+(:\d+)?([.,]\d+)?")


@dataclass(frozen=True)
class Segment:
    """One line with a segment.

    Attributes:
        line: of the file, from 1.
        start: as the file has it.
        end: as the file has it.
        label: its label.
    """

    line: int
    start: float
    end: float
    label: str


@dataclass
class SegmentTable:
    """What a table says.

    Attributes:
        origin: the file, for messages.
        segments: video -> its segments, in the order of the file; a video may have none.
        subsets: video -> subset; empty without such a column.
        durations: video -> seconds, of those that have one.
        fps: video -> frames per second, of those that have one.
        unused: columns that mean nothing here.
    """

    origin: str
    segments: dict[str, list[Segment]] = field(default_factory=dict)
    subsets: dict[str, str] = field(default_factory=dict)
    durations: dict[str, float] = field(default_factory=dict)
    fps: dict[str, float] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    def labels(self) -> Counter[str]:
        """Returns how often each label occurs."""
        return Counter(item.label for rows in self.segments.values() for item in rows)


def read_segment_table(
    path: FilePath,
    columns: Mapping[str, str] | None = None,
    *,
    classes: Sequence[str] | None = None,
    allow_empty: bool = False,
) -> SegmentTable:
    """Reads a table of segments.

    The file is CSV in UTF-8 (a byte order mark is no part of it), between commas, semicolons or
    tabs, whichever its first line has. Spaces around a cell are no part of it. Column names are
    compared without regard to case. A line whose start, end and label are all empty names a video
    without segments.

    Args:
        path: the file.
        columns: what of :data:`COLUMNS` is called otherwise: ``{"label": "class"}``.
        classes: names of all classes, where another label is a fault.
        allow_empty: take segments that end at or before their start, which are faults else.

    Raises:
        DataError: the file is missing or no such table, a column is missing, or lines are faulty:
            all of them are counted, the first few named.
        ConfigError: ``columns`` names something that is not read.
    """
    origin = os.fspath(path)
    for role in columns or {}:
        if role not in COLUMNS:
            raise ConfigError(
                f"{argument('columns', option='--column')}: expected some of "
                f"{', '.join(COLUMNS)}, got {role!r}{nearest(role, COLUMNS)}"
            )
    if origin.lower().endswith((".json", ".json.gz")):
        raise DataError(
            f"{origin}: expected a CSV file of segments, got JSON; annotations of ActivityNet's "
            f"form: {both_ways('tal-fast prepare json', 'tal_fast.data.prepare.prepare_json')}"
        )
    lines, delimiter = _lines(origin)
    if not lines:
        raise DataError(f"{origin}: expected a line of column names, got an empty file")
    header = lines[0][1]
    places = _places(origin, header, columns or {}, delimiter)
    reader = _Reader(origin, header, places, classes, allow_empty)
    for line, cells in lines[1:]:
        reader.take(line, cells)
    return reader.finished()


def _lines(origin: str) -> tuple[list[tuple[int, list[str]]], str]:
    """Returns (line, cells) of all lines that are not empty, and what is between cells."""
    try:
        with open_table(origin) as file:
            first = file.readline()
            delimiter = next((mark for mark in ",;\t" if mark in first), ",")
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=True)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except FileNotFoundError:
        raise DataError(f"{origin}: no such file") from None
    except OSError as error:
        raise DataError(f"{origin}: cannot be read: {os_reason(error)}") from error
    except csv.Error as error:
        raise DataError(f"{origin}: expected CSV, got {error}") from error
    return [(line, cells) for line, cells in rows if any(cells)], delimiter


def _places(
    origin: str, header: Sequence[str], columns: Mapping[str, str], delimiter: str
) -> dict[str, int]:
    """Returns where each of :data:`COLUMNS` that is there stands."""
    plain = [name.casefold() for name in header]
    faults = [
        f"expected each column once, got {name!r} twice"
        for name, count in Counter(plain).items()
        if count > 1 and name
    ]
    places = {}
    for role, name in columns.items():
        if name.casefold() in plain:
            places[role] = plain.index(name.casefold())
        else:
            faults.append(f"no column {name!r} for {role}{nearest(name, header)}")
    for role in COLUMNS:
        if role not in places and role in plain and plain.index(role) not in places.values():
            places[role] = plain.index(role)
    missing = [role for role in REQUIRED if role not in places and role not in columns]
    if not places and any(map(_NUMBER.fullmatch, header)):
        raise DataError(
            f"{origin}: line 1: expected the names of the columns, got what looks like a segment: "
            f"{', '.join(header)}; write a line of names above it, in the order of the columns, "
            f"such as {delimiter.join(REQUIRED)!r}"
        )
    if missing:
        faults.append(
            f"expected the columns {', '.join(REQUIRED)}, got {', '.join(header)}; no "
            f"{' and no '.join(missing)}{_renamed(missing, header)}"
        )
    if "subset" in places and "split" in places:
        faults.append("expected one of the columns subset and split, got both")
    if faults:
        raise DataError(f"{origin}: {listing(faults, len(faults))} (columns: {', '.join(header)})")
    return places


def _renamed(missing: Sequence[str], header: Sequence[str]) -> str:
    """Returns how to say what missing columns are called here, of those that look like one."""
    plain = [name.casefold() for name in header]
    named = {
        role: header[plain.index(other)]
        for role in missing
        for other in reversed(_ALSO.get(role, ()))
        if other in plain
    }
    if not named:
        return ""
    asked = argument("columns", named, option="--column")
    return f"; {' and '.join(map(repr, named.values()))} may be meant: say so with {asked}"


class _Reader:
    """Takes in line after line, and collects what is faulty."""

    def __init__(
        self,
        origin: str,
        header: Sequence[str],
        places: Mapping[str, int],
        classes: Sequence[str] | None,
        allow_empty: bool,
    ) -> None:
        self._classes = classes
        self._allow_empty = allow_empty
        self._width = len(header)
        self._places = places
        self._faults: list[str] = []
        self._table = SegmentTable(
            origin,
            unused=tuple(
                name for at, name in enumerate(header) if name and at not in places.values()
            ),
        )
        self._first: dict[tuple[str, str], int] = {}  # (column, video) -> line that said it first

    def take(self, line: int, cells: Sequence[str]) -> None:
        """Takes in a line."""
        try:
            self._take(line, cells)
        except ValueError as error:
            self._faults.append(f"line {line}: {error}")

    def _take(self, line: int, cells: Sequence[str]) -> None:
        if len(cells) != self._width:
            raise ValueError(
                f"expected {counted(self._width, 'cell')} as in line 1, got {len(cells)}"
            )
        given = {role: cells[at] for role, at in self._places.items()}
        video = given["video"]
        if not video:
            raise ValueError("expected a video, got an empty cell")
        rows = self._table.segments.setdefault(video, [])
        subset = given.get("subset", given.get("split"))
        if subset is not None:
            self._agree(line, "subset", video, subset, self._table.subsets)
        for role, known in (("duration", self._table.durations), ("fps", self._table.fps)):
            if given.get(role):
                value = _number(role, given[role])
                if not value > 0.0:
                    raise ValueError(f"{role}: expected a number above 0, got {given[role]}")
                self._agree(line, role, video, value, known)
        if not (given["start"] or given["end"] or given["label"]):
            return
        if not given["label"]:
            raise ValueError("expected a label, got an empty cell")
        if self._classes is not None and given["label"] not in self._classes:
            raise ValueError(
                f"label {given['label']!r} is not among the {counted(len(self._classes), 'class')}"
                f"{nearest(given['label'], self._classes)}"
            )
        start, end = _number("start", given["start"]), _number("end", given["end"])
        if end <= start and not self._allow_empty:
            raise ValueError(f"video {video!r}: expected end > start, got {start:g} and {end:g}")
        rows.append(Segment(line, start, end, given["label"]))

    def _agree(
        self, line: int, role: str, video: str, value: _Value, known: dict[str, _Value]
    ) -> None:
        """Notes a value of a video, which must be the same on all its lines."""
        before = known.setdefault(video, value)
        first = self._first.setdefault((role, video), line)
        if before != value:
            raise ValueError(
                f"{role} of video {video!r}: expected {before!r} as in line {first}, got {value!r}"
            )

    def finished(self) -> SegmentTable:
        """Returns the table.

        Raises:
            DataError: lines are faulty, or there is none.
        """
        table = self._table
        self._faults += [
            f"line {self._first['subset', video]}: expected a subset as for other videos, got an "
            "empty cell"
            for video, subset in table.subsets.items()
            if not subset and any(table.subsets.values())
        ]
        if self._faults:
            raise _faulty_lines(table.origin, self._faults)
        if not any(table.segments.values()):
            raise DataError(f"{table.origin}: expected at least one segment, got none")
        return table


def _faulty_lines(origin: str, faults: Sequence[str]) -> DataError:
    """Returns the error that counts the faults of a file and names the first few."""
    return DataError(f"{origin}: {counted(len(faults), 'faulty line')}: {listing(faults)}")


def _number(role: str, cell: str) -> float:
    if _NUMBER.fullmatch(cell):
        value = float(cell)
        if math.isfinite(value):
            return value
    hint = ""
    if _CLOCK.fullmatch(cell):
        hint = " (a clock time: write it as seconds, 1:05 as 65)"
    elif re.fullmatch(r"[+-]?\d+,\d+", cell):
        hint = " (a decimal comma: write a point)"
    raise ValueError(f"{role}: expected a number, got {cell!r}{hint}" if cell else
                     f"{role}: expected a number, got an empty cell")  # fmt: skip
