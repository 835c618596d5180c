# SPDX-License-Identifier: Apache-2.0
"""A calibration as tables, and as JSON."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from calibrate_intervals import Calibration
from interval_tallies import GRID, METHODS, TARGET, Tally, coverage_of
from rich.table import Table

from tal_fast.curves.ensemble import FACTOR
from tal_fast.curves.tables import band_name, number, share_cell

__all__ = ["calibration_dict", "calibration_tables"]

_TITLES = {
    "best": "best fit alone",
    "families": "all families",
    "before": "before",
    "ensemble": "extrapolate",
    "left_out": "left out",
}


def _row(tally: Tally) -> dict[str, Any]:
    def mean(values: list[float] | list[bool]) -> float:
        return float(np.mean(values)) if values else math.nan

    return {
        "source": tally.source,
        "synthetic": tally.synthetic,
        "curves": tally.curves,
        "questions": len(tally.ratio),
        "coverage": {m: tally.coverage(m) for m in METHODS if m in tally.held},
        "came_above": mean(tally.above),
        "median_width": {m: tally.median_width(m) for m in METHODS if m in tally.width},
        "width_over_before": tally.relative_width(),
        "mean_absolute_error": mean(tally.error),
        "mean_absolute_error_of_last_value": mean(tally.last_error),
        "coverage_of_family_alone": {name: mean(held) for name, held in tally.alone.items()},
        "coverage_by_factor": {f"{key:g}": mean(held) for key, held in tally.factors.items()},
    }


def _by_group(tallies: list[Tally], method: str) -> float:
    return float(np.mean([tally.coverage(method) for tally in tallies]))


def _kinds(found: Calibration) -> list[bool]:
    return [kind for kind in (True, False) if found.of(kind)]


def calibration_dict(found: Calibration) -> dict[str, Any]:
    """Returns a calibration for JSON: per source, pooled, by group, by ratio, and the factor."""
    measured = found.of(False)
    content: dict[str, Any] = {
        "confidence": found.confidence,
        "replicates": found.replicates,
        "seed": found.seed,
        "factor": FACTOR,
        "sources": [_row(tally) for tally in found.tallies],
        "pooled": [_row(found.pooled(kind)) for kind in _kinds(found)],
        "by_ratio": {
            total.source: [
                {
                    "ratio": name,
                    "questions": sum(inside),
                    "coverage": {m: total.coverage(m, inside) for m in METHODS if m in total.held},
                    "width_over_before": total.relative_width(inside),
                }
                for name, inside in total.bands()
                if any(inside)
            ]
            for total in map(found.pooled, _kinds(found))
        },
    }
    if measured:
        methods = [m for m in METHODS if all(m in tally.held for tally in measured)]
        content["measured_by_group"] = {
            "groups": len(measured),
            "coverage": {m: _by_group(measured, m) for m in methods},
            "width_over_before": float(np.mean([one.relative_width() for one in measured])),
        }
    if found.choice is not None:
        total = found.pooled(False)
        content["choice"] = {
            "target": TARGET,
            "factor": found.choice.factor,
            "without": found.choice.without,
            "coverage_by_factor": [
                {
                    "factor": factor,
                    "all": coverage_of(found.tallies, factor),
                    "measured_by_group": coverage_of(measured, factor),
                    "measured_by_question": float(np.mean(total.factors[factor])),
                    "synthetic_left_out": (
                        coverage_of(found.of(True), factor) if found.of(True) else math.nan
                    ),
                }
                for factor in GRID
            ],
        }
    return content


def _add(table: Table, tally: Tally) -> None:
    if not tally.ratio:
        table.add_row(tally.source, str(tally.curves), "0", *["-"] * (len(METHODS) + 4))
        return
    table.add_row(
        tally.source,
        str(tally.curves),
        str(len(tally.ratio)),
        *(share_cell(tally.coverage(method)) for method in METHODS),
        number(tally.median_width("ensemble"), 1),
        share_cell(tally.relative_width()),
        number(float(np.mean(tally.error)), 1),
        number(float(np.mean(tally.last_error)), 1),
    )


def _table(title: str, left: str, *names: str, caption: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column(left, no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    return table


def calibration_tables(found: Calibration) -> list[Table]:
    """Returns coverage per source, per family alone, by ratio, and by factor."""
    main = _table(
        f"how often {band_name(found.confidence)} intervals hold what came",
        "source", "curves", "questions", *(_TITLES[m] for m in METHODS), "width", "over before",
        "error", "error of last value",
        caption="curves: made ones, or beginnings of measured ones; in points: median width of "
        "the intervals of extrapolate, mean error of its median, mean error of the last value",
    )  # fmt: skip
    totals = [found.pooled(kind) for kind in _kinds(found)]
    for total in totals:
        for tally in found.of(total.synthetic):
            _add(main, tally)
        main.add_section()
        _add(main, total)
        main.add_section()
    measured = found.of(False)
    if measured:
        main.add_row(
            "measured, by group", str(len(measured)), "",
            *(share_cell(_by_group(measured, method)) for method in METHODS), "",
            share_cell(float(np.mean([one.relative_width() for one in measured]))), "", "",
        )  # fmt: skip
    names = list(dict.fromkeys(name for total in totals for name in total.alone))
    alone = _table("the bootstrap of one family alone", "curves", *names)
    for total in totals:
        cells = [total.alone.get(name, []) for name in names]
        alone.add_row(total.source, *(share_cell(float(np.mean(c))) if c else "-" for c in cells))
    ratio = _table(
        "by the amount of data asked about over the largest p known",
        "curves", "ratio", "questions", *(_TITLES[m] for m in METHODS), "over before",
    )  # fmt: skip
    for total in totals:
        for name, inside in total.bands():
            if any(inside):
                ratio.add_row(
                    total.source, name, str(sum(inside)),
                    *(share_cell(total.coverage(m, inside)) for m in METHODS),
                    share_cell(total.relative_width(inside)),
                )  # fmt: skip
    tables = [main, alone, ratio]
    if found.choice is not None:
        tables.append(_choice_table(found))
    return tables


def _choice_table(found: Calibration) -> Table:
    choice = calibration_dict(found)["choice"]
    without = ", ".join(f"{name} {factor}" for name, factor in choice["without"].items())
    table = _table(
        f"by factor: nearest to {TARGET:.0%} is {choice['factor']}, the library has {FACTOR}",
        "factor", "all", "measured, by group", "by question", "synthetic, left out",
        caption=f"without each group: {without}",
    )  # fmt: skip
    for row in choice["coverage_by_factor"]:
        factor, *shares = row.values()
        table.add_row(f"{factor:g}", *map(share_cell, shares))
    return table
