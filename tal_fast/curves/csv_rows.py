# SPDX-License-Identifier: Apache-2.0
"""The rows of a CSV file, as spreadsheets and scripts write them, each with its line."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tal_fast.data.text_files import open_table
from tal_fast.errors import DataError, counted, printable

__all__ = ["Row", "Rows", "number", "optional_number", "read_rows"]

Row = tuple[int, Mapping[str, str]]

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True)
class Rows:
    """What a CSV file holds.

    Attributes:
        source: the file.
        header: names of the columns, without the spaces around them.
        rows: line and cells by column of every row that holds something.
        notes: what was left out.
    """

    source: Path
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def number(path: Path, line: int, column: str, cell: str) -> float:
    """Returns a cell as a number.

    Raises:
        DataError: it is none, or not finite.
    """
    try:
        value = math.nan if "_" in cell else float(cell)  # Python takes 5_4 for 54
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}, line {line}: expected a number in column {column}, got {cell!r}")
    return value


def optional_number(path: Path, line: int, column: str, cell: str | None) -> float | None:
    """Returns a cell as a number; None where it is empty or there is no such column."""
    return number(path, line, column, cell) if cell else None


def _delimiter(source: Path, header: str) -> str:
    """Returns what separates the columns: what splits the header."""
    fields = {mark: len(next(csv.reader([header], delimiter=mark), [])) for mark in _DELIMITERS}
    most = max(fields.values())
    marks = [mark for mark, count in fields.items() if count == most]
    if most < 2:
        return ","
    if len(marks) > 1:
        names = " and ".join(_DELIMITERS[mark] for mark in marks)
        raise DataError(
            f"{source}, line 1: expected columns separated by commas, semicolons or tabs, got a "
            f"header with as many {names}"
        )
    return marks[0]


def read_rows(source: Path) -> Rows:
    """Reads a table: CSV in UTF-8, columns separated by commas, semicolons or tabs.

    A byte order mark, empty rows and spaces around cells are no content. A header that comes again,
    as in files put together, is left out and told.

    Raises:
        DataError: the file is not there, is no such table, has a column twice, or a row of another
            number of values than the header.
    """
    notes = []
    rows: list[Row] = []
    try:
        with open_table(source, "a table (CSV)") as file:
            first = next((line for line in file if line.strip()), "")
            file.seek(0)
            reader = csv.reader(file, delimiter=_delimiter(source, first.rstrip("\r\n")))
            named = (cells for cells in reader if any(map(str.strip, cells)))
            header = tuple(cell.strip() for cell in next(named, []))
            if first and sum(map(bool, header)) < 2:
                raise DataError(
                    f"{source}, line {reader.line_num}: expected the names of at least two columns "
                    f"separated by commas, semicolons or tabs, got {first.strip()[:60]!r}"
                )
            if header and not any(map(str.isalpha, "".join(header))):
                raise DataError(
                    f"{source}, line {reader.line_num}: expected the names of the columns, got "
                    f"{', '.join(header)}: is that a row? Write a line of names above it"
                )
            for name in header:
                if name and header.count(name) > 1:
                    raise DataError(
                        f"{source}, line 1: expected each column once, got {name} twice"
                    )
            for cells in reader:
                values = tuple(printable(cell.strip()) for cell in cells)
                line = reader.line_num
                if not any(values):
                    continue
                if values == header:
                    notes.append(f"{source.name}: the header comes again in line {line}; left out")
                    continue
                if len(values) != len(header):
                    raise DataError(
                        f"{source}, line {line}: expected {counted(len(header), 'value')}, got "
                        f"{'fewer' if len(values) < len(header) else 'more'} ({len(values)})"
                    )
                rows.append((line, dict(zip(header, values, strict=True))))
    except FileNotFoundError:
        raise DataError(f"{source}: no such file or study") from None
    except csv.Error as error:
        raise DataError(f"{source}: expected a table (CSV), got {error}") from error
    return Rows(source, header, tuple(rows), tuple(notes))
