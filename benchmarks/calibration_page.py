# SPDX-License-Identifier: Apache-2.0
"""The tables of a calibration in docs/curve-fits.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interval_tallies import METHODS

from tal_fast.curves.families import FAMILIES
from tal_fast.data.files import write_text_atomically
from tal_fast.errors import DataError

__all__ = ["write_tables"]

_BELOW, _ABOVE = 0.25, 0.15  # how far from the chosen factor others are shown


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100.0 * value:.0f} %"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(line)} |" for line in (header, *rows)]
    return [lines[0], f"|{'---|' * len(header)}", *lines[1:]]


def _main(content: Mapping[str, Any]) -> list[str]:
    pooled = {row["source"]: row for row in content["pooled"]}
    rows = []
    for synthetic, total in ((True, "synthetic"), (False, "measured")):
        some = [row for row in content["sources"] if row["synthetic"] is synthetic]
        for row in [*some, *([pooled[total]] if total in pooled else [])]:
            errors = row["mean_absolute_error"], row["mean_absolute_error_of_last_value"]
            rows.append([
                row["source"], str(row["curves"]), str(row["questions"]),
                *(_share(row["coverage"].get(method)) for method in METHODS),
                _points(row["median_width"].get("ensemble")),
                _share(row["width_over_before"]),
                *map(_points, errors),
            ])  # fmt: skip
    if "measured_by_group" in content:
        kept = content["measured_by_group"]
        rows.append([
            "measured, by group", str(kept["groups"]), "",
            *(_share(kept["coverage"].get(method)) for method in METHODS),
            "", _share(kept["width_over_before"]), "", "",
        ])  # fmt: skip
    header = [
        "source", "curves", "questions", "best fit alone", "all families", "before", "extrapolate",
        "left out", "width", "over before", "error", "last value's",
    ]  # fmt: skip
    return _table(header, rows)


def _by_ratio(content: Mapping[str, Any]) -> list[str]:
    header = [
        "measured, p / q", "questions", "before", "extrapolate", "left out", "width over before"
    ]  # fmt: skip
    rows = [
        [
            row["ratio"], str(row["questions"]),
            *(_share(row["coverage"].get(method)) for method in METHODS[2:]),
            _share(row["width_over_before"]),
        ]
        for row in content["by_ratio"].get("measured", [])
    ]  # fmt: skip
    return _table(header, rows)


def _by_factor(content: Mapping[str, Any]) -> list[str]:
    names = ("all", "measured_by_group", "measured_by_question", "synthetic_left_out")
    header = ["factor", "all", "measured, by group", "by question", "synthetic, left out"]
    choice = content["choice"]
    low, high = choice["factor"] - _BELOW - 1e-9, choice["factor"] + _ABOVE + 1e-9
    rows = [
        [f"{row['factor']:g}", *(_share(row[name]) for name in names)]
        for row in choice["coverage_by_factor"]
        if low <= row["factor"] <= high
    ]
    return _table(header, rows)


def _families(content: Mapping[str, Any]) -> list[str]:
    rows = [
        [row["source"], *(_share(row["coverage_of_family_alone"].get(name)) for name in FAMILIES)]
        for row in content["pooled"]
    ]
    return _table(["curves", *FAMILIES], rows)


def write_tables(content: Mapping[str, Any], page: Path) -> None:
    """Puts the tables of a calibration into a page, in the place of those with the same header.

    Args:
        content: from :func:`calibration_tables.calibration_dict`, as JSON has it; with measured
            curves of at least two groups.
        page: in Markdown.

    Raises:
        DataError: the page has no table of such a header, or there were too few groups.
    """
    if "choice" not in content:
        raise DataError(f"{page}: expected measured curves of at least two groups, got fewer")
    text = page.read_text(encoding="utf-8")
    for table in (_main(content), _by_ratio(content), _by_factor(content), _families(content)):
        begin = text.find(f"{table[0]}\n")
        if begin < 0:
            raise DataError(f"{page}: expected a table with the header {table[0]}, found none")
        end = text.find("\n\n", begin)
        text = text[:begin] + "\n".join(table) + (text[end:] if end >= 0 else "\n")
    write_text_atomically(page, text)
