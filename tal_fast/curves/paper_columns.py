# SPDX-License-Identifier: Apache-2.0
"""What the columns of a paper's table mean, by their names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tal_fast.curves.csv_rows import Rows
from tal_fast.errors import DataError

__all__ = ["PLUS_MINUS", "Column", "columns_of"]

# Words of a column's name, whatever their order, its unit and fillers taken out. Any of the second
# group may stand beside those of the spread.
_NAMES: dict[str, tuple[str, ...]] = {
    "share": (
        "",
        "p",
        "share",
        "data",
        "training data",
        "train data",
        "training set",
        "data share",
    ),
    "videos": ("videos", "training videos", "train videos", "n videos", "num videos"),
    "mean": ("map", "mean", "avg", "average", "mean map", "avg map", "average map"),
    "sd": ("sd", "std", "stdev", "stddev", "std dev", "deviation", "standard deviation", "spread"),
    "se": ("se", "s e", "sem", "stderr", "std err", "std error", "standard error"),
    "n": ("n", "runs", "n runs", "num runs", "repetitions", "repeats", "seeds", "n seeds"),
    "repetition": ("repetition", "run", "seed", "draw", "repeat"),
    "model": ("model", "method", "detector", "network", "curve", "name"),
}
_ROLES = {
    frozenset(words.split()): role for role, several in _NAMES.items() for words in several
} | {
    frozenset((*words.split(), *map_words.split())): role
    for role in ("sd", "se")
    for words in _NAMES[role]
    for map_words in ("map", "avg map", "average map", "mean map")
}
_FILLERS = {"of", "the", "in", "full", "used", "number"}
_UNITS = {
    "percent": {"percent", "percentage", "pct", "points"},
    "fraction": {"fraction", "ratio"},
}
PLUS_MINUS = re.compile(r"±|\+/-|\+-|\\pm(?![a-z])")
_ZERO_TO_ONE = re.compile(r"(?<![\d.])0\s*(?:\.\.|-|to)\s*1(?![\d.])")
_THRESHOLDS = re.compile(r"\[\s*0?\.\d+\s*[:-][\d.:\s-]+\]")  # [0.3:0.1:0.7], of an average

_EXPECTED = (
    "a column of p (percent, 'p (%)', fraction) or of videos, and one of mAP (map_mean, 'mAP (%)'; "
    "several models: a row per model and p, named in a column model)"
)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: in the header.
        unit: ``percent`` or ``fraction``, None where its name does not tell.
        paired: its cells are mean ± spread.
    """

    name: str
    unit: str | None
    paired: bool


def _understood(name: str) -> tuple[str, Column] | None:
    """Returns the role of a column and what its name tells; None where it has none here."""
    if name in ("map_mean", "map_std"):  # by their documentation
        return ("mean" if name == "map_mean" else "sd"), Column(name, "percent", False)
    whole = name.casefold().replace("%", " percent ").replace("0-100", " percent ")
    whole = _THRESHOLDS.sub(" ", _ZERO_TO_ONE.sub(" fraction ", whole))
    text, *rest = PLUS_MINUS.split(whole)
    words = set(re.findall(r"[a-z]+", text))
    if not words and rest:  # a column named ±
        return "spread", Column(name, None, False)
    if re.search(r"\d", whole):  # mAP at one threshold is not the average
        return None
    told = set(re.findall(r"[a-z]+", whole))
    unit = next((unit for unit, marks in _UNITS.items() if told & marks), None)
    role = _ROLES.get(frozenset(words - _FILLERS - _UNITS["percent"] - _UNITS["fraction"]))
    if role == "videos" and unit is not None:  # percent of the videos
        role = "share"
    if role is None or (unit is None and not words):
        return None
    return role, Column(name, unit, bool(rest))


def columns_of(rows: Rows) -> dict[str, Column]:
    """Returns the columns of a table by role.

    Raises:
        DataError: two columns have one role, or there is none of p or of mAP.
    """
    columns: dict[str, Column] = {}
    for name in rows.header:
        understood = _understood(name)
        if understood is None:
            continue
        role, column = understood
        if role in columns:
            raise DataError(
                f"{rows.source}, line 1: expected one column of {role}, got {columns[role].name!r} "
                f"and {name!r}; leave out or rename one"
            )
        columns[role] = column
    missing = "mean" not in columns or not ("share" in columns or "videos" in columns)
    if missing:
        raise DataError(
            f"{rows.source}, line 1: expected {_EXPECTED}; got {', '.join(rows.header)}"
        )
    spreads = [columns[role].name for role in ("sd", "se", "spread") if role in columns]
    if columns["mean"].paired:
        spreads.append(columns["mean"].name)
    if len(spreads) > 1:
        raise DataError(
            f"{rows.source}, line 1: expected one spread, got {' and '.join(map(repr, spreads))}"
        )
    return columns
