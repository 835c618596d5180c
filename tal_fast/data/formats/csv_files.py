# SPDX-License-Identifier: Apache-2.0
"""CSV files of features: a line of column names, then a line of plain numbers per row."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tal_fast.data.text_files import open_table
from tal_fast.errors import DataError, counted

__all__ = ["load_csv"]

# Decimal numbers in ASCII. float() reads more: 1_000, digits of other scripts, "nan", "infinity".
_NUMBER = re.compile(r"[ \t]*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?[ \t]*", re.ASCII)
_PLAIN = re.compile(r"[0-9eE+\-. \t]*")
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)")
_MISSING = {"", "na", "n/a", "#n/a", "<na>", "null", "none", "-", "?"}
# What a number in a form that is not read begins with: no column is called so.
_LIKE_A_NUMBER = re.compile(r"[+-]?(0x|\.?\d[\d_]*([.,;]|e[+-]?\d|d[+-]?\d|$))")
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_LARGEST = float(np.finfo(np.float32).max)
_TOO_LARGE = _LARGEST * (1 + 2.0**-25)  # from here on, numbers round to infinity


def load_csv(path: str) -> npt.NDArray[np.float32]:
    """Reads a CSV file as OpenTAD and mmaction2 do: a line of column names, then a line per row.

    Numbers are decimal, with a point, between commas; quotes around them, spaces beside them and a
    byte order mark are no part of them. pandas' names 0, 1, 2, ... are names. A first column
    without a name that counts the rows from 0 (pandas' index) is left out.

    Raises:
        DataError: if the file is empty, has no row, is not UTF-8, or a line is not as it should
            be; the message names line and column. A first line that may be numbers is such a line:
            nobody knows whether it is a row.
        OSError: if it cannot be read.
    """
    with open_table(path, "a CSV file") as file:
        reader = csv.reader(file, strict=True, skipinitialspace=True)
        lines = _lines(path, reader)
        names = next(lines, None)
        if names is None:
            raise DataError(f"{path}: expected a CSV file, got an empty file")
        _check_names(path, names)
        return _rows(path, names, lines, reader)


def _lines(path: str, reader: Any) -> Iterator[list[str]]:
    """Yields the cells of each line, none of an empty one."""
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}: line {reader.line_num}: not valid CSV: {error}") from error
        yield [] if len(cells) == 1 and not cells[0].strip() else cells


def _rows(
    path: str, names: Sequence[str], lines: Iterator[list[str]], reader: Any
) -> npt.NDArray[np.float32]:
    rows: list[npt.NDArray[np.float32]] = []
    first: list[str] = []  # cells of the first column
    integral = [True, True]  # whether all numbers so far are integers: of the first column, others
    blank = 0
    for cells in lines:
        if not cells:
            blank = blank or reader.line_num
            continue
        if blank:  # at the end of the file it does no harm
            raise DataError(f"{path}: line {blank}: expected {len(names)} numbers, got none")
        values = _floats(f"{path}: line {reader.line_num}", cells, len(names))
        rows.append(np.array(values, np.float32))
        first.append(cells[0].strip())
        integral[0] = integral[0] and _are_integers(cells[:1])
        integral[1] = integral[1] and _are_integers(cells[1:])
    if not rows:
        raise DataError(f"{path}: expected rows of numbers after the column names, got none")
    if _is_counting(names) and (len(names) < 3 or all(integral)):
        raise DataError(
            f"{path}: line 1: {_shown(names)} may be column names or a row; name the columns"
        )
    table = np.stack(rows)
    counts = any(first == [str(start + n) for n in range(len(rows))] for start in (0, 1))
    if len(names) == 1 or not (counts or not names[0].strip()):
        return table
    if not names[0].strip() and first[0] == "0" and counts:
        return np.ascontiguousarray(table[:, 1:])
    if not names[0].strip():
        raise DataError(f"{path}: line 1, column 1: expected a column name, got an empty cell")
    if len(rows) > 1 and not integral[1]:
        raise DataError(
            f"{path}: line 1, column 1: {names[0]!r} counts the rows, it is no feature; remove it"
        )
    return table


def _check_names(path: str, names: Sequence[str]) -> None:
    """Refuses a first line that is, or may be, a row."""
    where = f"{path}: line 1"
    if not names:
        raise DataError(f"{where}: expected column names, got an empty line")
    for separator, word in _SEPARATORS.items():
        if separator in "".join(names):
            raise DataError(f"{where}: expected commas between the columns, got {word}")
    index = 1 if not names[0].strip() and len(names) > 1 else 0  # pandas' index has no name
    if _is_counting(names) or (index and _is_counting(names[1:])):
        return
    wrong = [n for n, name in enumerate(names[index:], index + 1) if not _is_name(name)]
    if wrong:
        name = names[wrong[0] - 1]
        what = repr(name) if name.strip() else "an empty cell"
        hint = " (the first line has to be names, not a row)" if len(wrong) > 1 else ""
        raise DataError(f"{where}, column {wrong[0]}: expected a column name, got {what}{hint}")


def _is_name(cell: str) -> bool:
    word = cell.strip().casefold()
    return (
        any(letter.isalpha() for letter in word)
        and word not in _MISSING
        and not _NOT_FINITE.fullmatch(word)
        and not _LIKE_A_NUMBER.match(word)
    )


def _is_counting(names: Sequence[str]) -> bool:
    """Whether names are 0, 1, 2, ...: what pandas writes when columns have none."""
    return all(name.strip() == str(number) for number, name in enumerate(names))


def _are_integers(cells: Sequence[str]) -> bool:
    return all(cell.strip().lstrip("+-").isdigit() for cell in cells)


def _shown(cells: Sequence[str]) -> str:
    return ", ".join(cells[:3]) + (", ..." if len(cells) > 3 else "")


def _floats(where: str, cells: Sequence[str], columns: int) -> list[float]:
    if len(cells) != columns:
        raise DataError(
            f"{where}: expected {counted(columns, 'cell')} as in line 1, got {len(cells)}"
        )
    try:
        if not _PLAIN.fullmatch("".join(cells)):
            raise ValueError
        values = [float(cell) for cell in cells]
        if max(values) < _TOO_LARGE and min(values) > -_TOO_LARGE:
            return values
    except ValueError:
        pass
    column, cell = next((n, c) for n, c in enumerate(cells, 1) if not _fits(c))
    where = f"{where}, column {column}"
    if _NUMBER.fullmatch(cell):
        raise DataError(f"{where}: {cell} does not fit into float32 (largest {_LARGEST:g})")
    word = cell.strip().casefold()
    what = "a finite number" if _NOT_FINITE.fullmatch(word) else "a number"
    raise DataError(f"{where}: expected {what}, got {repr(cell) if word else 'an empty cell'}")


def _fits(cell: str) -> bool:
    return _NUMBER.fullmatch(cell) is not None and abs(float(cell)) < _TOO_LARGE
