# SPDX-License-Identifier: Apache-2.0
"""Figures of a profile: a number with its unit and origin, or null with the reason."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["csv_text", "figure", "value_of"]

_UNSAID = "the system does not say"


def figure(value: float | None, unit: str, origin: str, reason: str = "") -> dict[str, Any]:
    """Returns a figure fit for JSON.

    Args:
        value: None where it cannot be had.
        unit: of the value.
        origin: ``clock``, ``counter`` (of the system, or of what ran), ``formula`` or ``estimate``.
        reason: why there is none.
    """
    if value is None:
        return {"value": None, "unit": unit, "reason": reason or _UNSAID}
    return {"value": value, "unit": unit, "origin": origin}


def value_of(profile: Mapping[str, Any] | None, *path: str) -> Any:
    """Returns the value of a figure deep in a profile; None where any part of the way is missing.

    Args:
        profile: content of a ``profile.json``, or a part of it.
        path: keys down to the figure.
    """
    value: Any = profile
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value.get("value") if isinstance(value, Mapping) else value


def csv_text(rows: Sequence[Sequence[Any]]) -> str:
    """Returns rows as CSV; None is an empty cell."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(
        [["" if value is None else value for value in row] for row in rows]
    )
    return buffer.getvalue()
