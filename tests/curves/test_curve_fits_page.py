# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/curve-fits.md are what the library computes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from tal_fast.curves.curve_files import read_curve
from tal_fast.curves.extrapolation import extrapolate
from tal_fast.curves.families import FAMILIES
from tal_fast.curves.fit import LAST, fit_curve

METHODS = ("best", "families", "before", "ensemble", "left_out")
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/curve-fits.md").read_text("utf-8")
HAPT = ROOT / "docs/results/hapt"


def table(first: str) -> list[list[str]]:
    """The rows of the first table whose header begins with these cells."""
    lines = PAGE[PAGE.index(first) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_fits_of_hapt():
    rows = table("| family | RMSE | chi²/dof |")
    content = json.loads((ROOT / "docs/results/curve-fits/hapt-fit.json").read_text())
    fit = fit_curve(read_curve(HAPT), replicates=content["draws"], seed=content["seed"])
    assert [row[0] for row in rows] == [one.family.name for one in fit.families]
    for row, one, stored in zip(rows, fit.families, content["fits"][0]["families"], strict=True):
        found = [one.rmse, one.chi2 / one.freedom, one.aicc]
        kept = [stored["rmse"], stored["chi2"] / stored["degrees_of_freedom"], stored["aicc"]]
        if one.asymptote is None or one.asymptote_interval is None:
            assert row[4:6] == ["-", "-"]
        else:
            found += [one.asymptote, *one.asymptote_interval]
            kept += [stored["asymptote"], *stored["asymptote_interval_90"]]
        found.append(one.backtest_rmse)
        kept.append(stored["backtest_rmse"])
        said = [float(x) for cell in row[1:] for x in re.findall(r"[\d.]+", cell)]
        assert said == pytest.approx(found, abs=0.0501)
        assert said == pytest.approx(kept, abs=0.0501)
    assert f"last value errs by {fit.backtest.rmse(LAST):.2f}" in PAGE.replace("\n", " ")


@pytest.mark.parametrize("times", [2, 3])
def test_extrapolation_of_hapt(times):
    (row,) = (
        r
        for r in table("| curve | data | mAP |")
        if r[0].startswith("HAPT") and r[1] == f"x{times}"
    )
    found = extrapolate(read_curve(HAPT), times)
    said = [float(x) for cell in row[2:] for x in re.findall(r"[-+]?[\d.]+", cell)]
    expected = [found.value, *found.interval, found.gain, *found.gain_interval]
    assert said == pytest.approx(expected, abs=0.11)


CALIBRATION = json.loads((ROOT / "docs/results/curve-fits/calibration.json").read_text())


def per_cent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def test_calibration():
    stored = {row["source"]: row for row in [*CALIBRATION["sources"], *CALIBRATION["pooled"]]}
    *rows, by_group = table("| source | curves | questions |")
    assert {row[0] for row in rows} == set(stored)
    for row in rows:
        kept = stored[row[0]]
        assert [int(row[1]), int(row[2])] == [kept["curves"], kept["questions"]]
        assert row[3:8] == [per_cent(kept["coverage"].get(method)) for method in METHODS]
        assert row[8] == f"{kept['median_width']['ensemble']:.1f}"
        assert row[9] == per_cent(kept["width_over_before"])
        errors = kept["mean_absolute_error"], kept["mean_absolute_error_of_last_value"]
        assert row[10:] == [f"{error:.1f}" for error in errors]
    kept = CALIBRATION["measured_by_group"]
    assert by_group[:3] == ["measured, by group", str(kept["groups"]), ""]
    assert by_group[3:8] == [per_cent(kept["coverage"].get(method)) for method in METHODS]
    assert by_group[9] == per_cent(kept["width_over_before"])


def test_calibration_by_ratio():
    rows = table("| measured, p / q |")
    stored = CALIBRATION["by_ratio"]["measured"]
    assert len(rows) == len(stored)
    for row, kept in zip(rows, stored, strict=True):
        methods = ("before", "ensemble", "left_out")
        assert row == [
            kept["ratio"], str(kept["questions"]),
            *(per_cent(kept["coverage"][method]) for method in methods),
            per_cent(kept["width_over_before"]),
        ]  # fmt: skip


def test_choice_of_the_factor():
    rows = table("| factor | all |")
    stored = {row["factor"]: row for row in CALIBRATION["choice"]["coverage_by_factor"]}
    names = ("all", "measured_by_group", "measured_by_question", "synthetic_left_out")
    for factor, *cells in rows:
        kept = stored[float(factor)]
        assert cells == [per_cent(kept[name]) for name in names]
    assert f"| {CALIBRATION['choice']['factor']:g} |" in PAGE


def test_families_alone():
    stored = {row["source"]: row for row in CALIBRATION["pooled"]}
    header = re.search(r"\| curves \| pow3 \|.*", PAGE)
    assert header is not None
    names = [cell.strip() for cell in header.group().strip("|").split("|")][1:]
    assert set(names) == set(FAMILIES)
    for row in table("| curves | pow3 |"):
        alone = stored[row[0]]["coverage_of_family_alone"]
        for cell, name in zip(row[1:], names, strict=True):
            share = alone.get(name, math.nan)
            assert cell == ("-" if math.isnan(share) else f"{100 * share:.0f} %")


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert targets
    assert [target for target in targets if not (ROOT / "docs" / target).exists()] == []
