# SPDX-License-Identifier: Apache-2.0
"""The calibration of the intervals: what is asked and counted, and its command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from made_curves import HAPT, LEVELS

from tal_fast.curves import read_curve
from tal_fast.curves.extrapolation import LIMIT
from tal_fast.curves.families import FITTED
from tal_fast.curves.tables import plain

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from calibrate_intervals import (  # noqa: E402
    METHODS,
    RATIOS,
    calibrate,
    calibration_dict,
    main,
    synthetic_curve,
)


class TestCalibrate:
    @pytest.mark.parametrize("family", FITTED, ids=lambda f: f.name)
    def test_synthetic_curves(self, family):
        rng = np.random.default_rng(0)
        for _ in range(10):
            measured, truth = synthetic_curve(family, rng)
            ends = truth(np.array([10.0, 100.0, 500.0]))
            assert 3 <= ends[0] <= 0.7 * ends[1]
            assert 40 <= ends[1] <= 85
            assert ends[1] <= ends[2] <= 100
            # 10 levels of 5 draws, sd <= 2.5: a mean errs by more than 5 once in a million.
            assert np.abs(measured.mean - truth(LEVELS)).max() < 6

    def test_counts(self):
        known = read_curve(HAPT)
        found = calibrate([known], synthetic=1, replicates=20)
        assert [t.source for t in found.tallies] == [*(f.name for f in FITTED), "tadtr-small"]
        made, real = found.pooled(True), found.pooled(False)
        assert (made.curves, len(made.ratio)) == (10, 40)
        # beginnings of 4 to 9 of 10 levels, each asked for all later ones
        assert (real.curves, len(real.ratio)) == (6, 6 + 5 + 4 + 3 + 2 + 1)
        assert max(real.ratio) == pytest.approx(100 / 40)
        assert all(len(made.held[method]) == 40 for method in METHODS)
        assert "left_out" not in real.held
        assert sum(count for _, count, _ in found.by_ratio(True)) == 40
        assert [name for name, _, _ in found.by_ratio(True)] == [
            "x1 to x1.5", "x1.5 to x2", "x2 to x3", "x3 to x5",
        ]  # fmt: skip
        assert RATIOS[-1] == LIMIT

    def test_a_source_does_not_depend_on_the_others(self):
        alone = calibrate([read_curve(HAPT)], replicates=20)
        more = calibrate([read_curve(HAPT)], synthetic=1, replicates=20)
        assert alone.tallies[-1] == more.tallies[-1]

    def test_more_confidence_is_wider_and_holds_more(self):
        low, high = (
            calibrate([read_curve(HAPT)], confidence=c, replicates=50).tallies[0]
            for c in (0.3, 0.95)
        )
        assert low.median_width("ensemble") < high.median_width("ensemble")
        assert low.coverage("ensemble") < high.coverage("ensemble")

    def test_one_family_holds_less_than_it_promises(self):
        tally = calibrate([read_curve(HAPT)], replicates=100).tallies[0]
        assert tally.coverage("best") < 0.7 < tally.coverage("ensemble")

    def test_the_committed_row_can_be_recomputed(self):
        committed = json.loads((ROOT / "docs/results/curve-fits/calibration.json").read_text())
        (row,) = (r for r in committed["sources"] if r["source"] == "tadtr-small")
        found = calibrate(
            [read_curve(HAPT)],
            confidence=committed["confidence"],
            replicates=committed["replicates"],
            seed=committed["seed"],
        )
        (again,) = plain(calibration_dict(found))["sources"]
        # An answer on the edge may fall to the other side with another BLAS.
        one = 1.01 / row["questions"]
        assert again["questions"] == row["questions"]
        for key in ("coverage", "coverage_of_family_alone"):
            assert again[key] == pytest.approx(row[key], abs=one)
        assert again["median_width"] == pytest.approx(row["median_width"], rel=0.05)
        assert again["mean_absolute_error"] == pytest.approx(row["mean_absolute_error"], rel=0.05)


class TestCommand:
    def test_numbers(self, capsys, tmp_path):
        arguments = [
            "--study",
            HAPT,
            "--synthetic",
            0,
            "--draws",
            20,
            "--json",
            tmp_path / "c.json",
        ]
        assert main([str(argument) for argument in arguments]) == 0
        assert "how often 90 % intervals hold what came" in capsys.readouterr().out
        assert json.loads((tmp_path / "c.json").read_text())["sources"][0]["questions"] == 21

    @pytest.mark.parametrize("confidence", ["0", "2", "nan"])
    def test_refuses_what_is_no_confidence(self, capsys, confidence):
        with pytest.raises(SystemExit, match="2"):
            main(["--synthetic", "1", "--confidence", confidence])
        message = "--confidence: expected a number between 0 and 1"
        assert message in capsys.readouterr().err

    def test_needs_curves(self, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(["--synthetic", "0"])
        assert "expected curves to ask" in capsys.readouterr().err
