# SPDX-License-Identifier: Apache-2.0
"""Reading the numbers of JSON records in bulk, with errors that name the record.

A file of detections has up to millions of records. They are checked column by column; only when a
column is not what it should be are the records visited one by one to find the first bad one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tal_fast.data.annotation_values import plain
from tal_fast.errors import DataError

__all__ = ["check_times", "number_column", "others", "segment_columns"]

Floats = npt.NDArray[np.float64]
Name = Callable[[int], str]


def number_column(values: Sequence[Any], key: str, name: Name) -> Floats:
    """Returns numbers as float64.

    Args:
        values: one value per record.
        key: what they are, for messages: ``"score"``.
        name: gives the name of record i.

    Raises:
        DataError: naming the first record whose value is not a number. NaN and infinity pass.
    """
    if all(_is_number_type(kind) for kind in set(map(type, values))):
        try:
            return np.array(values, dtype=np.float64)
        except OverflowError:
            pass
    for i, value in enumerate(values):
        if _to_float(value) is None:
            raise DataError(f"{name(i)}: expected {key} as a number, got {_short(value)}")
    raise AssertionError("a column of numbers was refused")  # pragma: no cover


def segment_columns(segments: Sequence[Any], name: Name) -> tuple[Floats, Floats]:
    """Returns starts and ends of ``[start, end]`` pairs.

    Raises:
        DataError: naming the first record whose segment is not two numbers. NaN, infinity and
            reversed segments pass; :func:`check_times` finds them.
    """
    pairs = all(issubclass(kind, (list, tuple, np.ndarray)) for kind in set(map(type, segments)))
    if not pairs:
        segments = [plain(segment) for segment in segments]  # tensors, columns
    if not pairs or not set(map(len, segments)) <= {2}:
        for i, segment in enumerate(segments):
            if not isinstance(segment, (list, tuple, np.ndarray)) or len(segment) != 2:
                raise DataError(
                    f"{name(i)}: expected segment [start, end] in seconds, got {_short(segment)}"
                )
    starts = number_column([segment[0] for segment in segments], "the segment's start", name)
    ends = number_column([segment[1] for segment in segments], "the segment's end", name)
    return starts, ends


def check_times(start: Floats, end: Floats, name: Name) -> None:
    """Checks that segments are finite and not reversed; zero length is allowed.

    Raises:
        DataError: naming the first record at fault, and how many there are.
    """
    # NaN compares false, so it is counted here too.
    bad = ~((end >= start) & np.isfinite(start) & np.isfinite(end))
    if bad.any():
        i = int(bad.argmax())
        finite = np.isfinite(start[i]) and np.isfinite(end[i])
        fault = "ends before it starts" if finite else "is not finite"
        raise DataError(
            f"{name(i)}: segment [{float(start[i])}, {float(end[i])}] {fault}"
            f"{others(int(bad.sum()))}"
        )


def others(count: int) -> str:
    """Returns ``" (and 3 more)"`` for four faults, or an empty string for one."""
    return f" (and {count - 1} more)" if count > 1 else ""


def _is_number_type(kind: type) -> bool:
    return issubclass(kind, (int, float, np.integer, np.floating)) and not issubclass(kind, bool)


def _to_float(value: Any) -> float | None:
    if not _is_number_type(type(value)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
