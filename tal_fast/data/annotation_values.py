# SPDX-License-Identifier: Apache-2.0
"""What single values of an annotation file mean, for all who read one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tal_fast.errors import DataError

__all__ = ["finite_or_none", "number", "plain", "subset_name"]


# Files of annotations and results are read value by value: what JSON gives takes the short way.
_OWN = frozenset({str, int, float, bool, list, dict, type(None)})


def plain(value: Any) -> Any:
    """Returns a value as Python's own: NumPy's numbers and arrays, tensors and columns too."""
    return value if type(value) in _OWN or not hasattr(value, "tolist") else value.tolist()


def number(value: Any) -> float | None:
    """Returns a number as a float, NaN and infinity too; None for what is none."""
    if type(value) is float:
        return value
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of over 308 digits
        return None


def finite_or_none(value: Any) -> float | None:
    """Returns a finite number as a float; None for what is none."""
    finite = None if value is None else number(value)
    return finite if finite is not None and abs(finite) < float("inf") else None


def subset_name(where: str, entry: Mapping[str, Any]) -> str:
    """Returns the subset of a video; empty where it has none (missing or null).

    Args:
        where: file and video, for messages.
        entry: the video.

    Raises:
        DataError: it is neither text nor an integer.
    """
    value = plain(entry.get("subset"))
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise DataError(f"{where}: expected subset as text, got {value!r:.60}")
    return str(value)
