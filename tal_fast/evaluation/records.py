# SPDX-License-Identifier: Apache-2.0
"""Reading the numbers of JSON records in bulk, with errors that name the record.

A file of detections has up to millions of records. They are checked column by column; only when a
column is not what it should be are the records visited one by one to find the first bad one.
"""

from __future__ import annotations

import gc
import gzip
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tal_fast.errors import DataError

__all__ = [
    "check_times",
    "number_column",
    "others",
    "parse_json",
    "read_bytes",
    "read_json",
    "segment_columns",
]

Floats = npt.NDArray[np.float64]
Name = Callable[[int], str]

_GZIP = b"\x1f\x8b"


def read_bytes(source: object, what: str) -> tuple[str, bytes]:
    """Returns (name for messages, content) of a file, unpacked if it is gzipped.

    Raises:
        DataError: if the file is missing, unreadable or truncated, or ``source`` is no path.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise DataError(f"{what}: expected a path or a mapping, got {type(source).__name__}")
    origin = os.fspath(source)
    try:
        content = Path(source).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{origin}: no such file ({what})") from None
    except OSError as error:
        raise DataError(f"{origin}: cannot be read: {error.strerror or error}") from error
    if content[:2] == _GZIP:
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{origin}: not a whole gzip file: {error}") from error
    return origin, content


def parse_json(origin: str, text: bytes) -> Any:
    """Returns the content of a JSON text.

    Raises:
        DataError: it is none; the message says where it stops being one.
    """
    # Millions of small objects make the collector look at all of them again and again, and find
    # nothing: without it parsing takes 0.6 of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise DataError(f"{origin}: expected JSON in UTF-8, got {error}") from error
    except json.JSONDecodeError as error:
        rest = error.doc[error.pos :].strip()
        # An unterminated string is reported at its start, not at the end of the file.
        cut = not rest or error.msg.startswith("Unterminated string")
        raise DataError(
            f"{origin}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
            + ("; the file is empty" if not text.strip() else "; is it truncated?" if cut else "")
        ) from error
    except RecursionError as error:
        raise DataError(f"{origin}: not valid JSON: nested too deeply") from error
    finally:
        if collecting:
            gc.enable()


def read_json(source: str | os.PathLike[str] | Mapping[str, Any], what: str) -> tuple[str, Any]:
    """Returns (name for messages, content) of a JSON file, plain or gzipped, or of a mapping.

    Args:
        source: path, or the content itself.
        what: what the file is, for messages: ``"predictions"``.

    Raises:
        DataError: if the file is missing, unreadable or not JSON, or ``source`` is of another type.
    """
    if isinstance(source, Mapping):
        return what, source
    origin, text = read_bytes(source, what)
    return origin, parse_json(origin, text)


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
