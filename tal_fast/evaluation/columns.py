# SPDX-License-Identifier: Apache-2.0
"""Columns of records: their numbers in bulk, and what must hold of them.

A file of detections has up to millions of records. They are checked column by column; only when a
column is not what it should be are the records visited one by one to find the first bad one, which
the error names. That times and scores are finite and no segment is reversed is checked here alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tal_fast.data.annotation_values import plain
from tal_fast.errors import DataError, others
from tal_fast.typing import Floats

__all__ = [
    "OF_ARRAYS",
    "OF_RECORDS",
    "check_indices",
    "check_scores",
    "check_times",
    "number_column",
    "segment_columns",
]

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


class TimeFaults(NamedTuple):
    """How the faults of a segment are described, ``{}`` being the segment."""

    infinite: str
    reversed: str


OF_RECORDS = TimeFaults("segment {} is not finite", "segment {} ends before it starts")
OF_ARRAYS = TimeFaults("expected finite times, got {}", "expected end >= start, got {}")


def check_times(start: Floats, end: Floats, name: Name, faults: TimeFaults = OF_RECORDS) -> None:
    """Checks that segments are finite and not reversed; zero length is allowed.

    Args:
        start: float64 [N] in seconds.
        end: float64 [N] in seconds.
        name: gives the name of segment i.
        faults: how to tell a fault.

    Raises:
        DataError: naming the first segment at fault, and how many there are.
    """
    # NaN compares false, so it is counted here too.
    bad = ~((end >= start) & np.isfinite(start) & np.isfinite(end))
    if bad.any():
        i = int(bad.argmax())
        finite = np.isfinite(start[i]) and np.isfinite(end[i])
        fault = (faults.reversed if finite else faults.infinite).format(
            f"[{float(start[i])}, {float(end[i])}]"
        )
        raise DataError(f"{name(i)}: {fault}{others(int(bad.sum()))}")


def check_scores(score: Floats, name: Name) -> None:
    """Checks that scores are finite.

    Raises:
        DataError: naming the first one at fault, and how many there are.
    """
    bad = ~np.isfinite(score)
    if bad.any():
        i = int(bad.argmax())
        raise DataError(
            f"{name(i)}: expected a finite score, got {float(score[i])}{others(int(bad.sum()))}"
        )


def check_indices(label: npt.NDArray[np.integer[Any]], limit: int, name: Name) -> None:
    """Checks that labels are indices below ``limit``.

    Raises:
        DataError: naming the first one at fault, and how many there are.
    """
    bad = (label < 0) | (label >= limit)
    if bad.any():
        i = int(bad.argmax())
        raise DataError(
            f"{name(i)}: expected a label in [0, {limit}), got {label[i]}{others(int(bad.sum()))}"
        )


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
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
