# SPDX-License-Identifier: Apache-2.0
"""The calibration of the intervals: what is asked and counted, and its command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from made_curves import HAPT, LEVELS, curve

from tal_fast.curves import read_curve
from tal_fast.curves.ensemble import FACTOR
from tal_fast.curves.extrapolation import LIMIT
from tal_fast.curves.families import FITTED
from tal_fast.curves.tables import plain
from tal_fast.errors import DataError

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from calibrate_intervals import calibrate, main, read_groups  # noqa: E402
from calibration_page import write_tables  # noqa: E402
from calibration_tables import calibration_dict  # noqa: E402
from interval_tallies import BANDS, GRID, METHODS, TARGET, Tally, choose_factor, coverage_of  # noqa: E402
from synthetic_curves import synthetic_curve  # noqa: E402


def hapt(**settings):
    """A calibration on the measured curve alone."""
    return calibrate({"hapt": [read_curve(HAPT)]}, **settings)


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
        found = hapt(synthetic=1, replicates=20)
        assert [t.source for t in found.tallies] == [*(f.name for f in FITTED), "hapt"]
        made, real = found.pooled(True), found.pooled(False)
        assert (made.curves, len(made.ratio)) == (10, 10 * len(BANDS))
        # beginnings of 4 to 9 of 10 levels, each asked for all later ones
        assert (real.curves, len(real.ratio)) == (6, 6 + 5 + 4 + 3 + 2 + 1)
        assert max(real.ratio) == pytest.approx(100 / 40)
        assert all(len(made.held[method]) == 50 for method in METHODS)
        assert "left_out" not in real.held  # one group cannot do without itself
        assert sum(sum(inside) for _, inside in made.bands()) == 50
        assert [name for name, _ in made.bands()] == [
            "x1 to x1.25", "x1.25 to x1.5", "x1.5 to x2", "x2 to x3", "x3 to x5",
        ]  # fmt: skip
        assert BANDS[-1] == LIMIT

    def test_a_source_does_not_depend_on_the_others(self):
        alone, more = hapt(replicates=20), hapt(synthetic=1, replicates=20)
        assert alone.tallies[-1] == more.tallies[-1]

    def test_the_factor_in_force_is_one_of_the_grid(self):
        tally = hapt(replicates=20).tallies[0]
        assert tally.factors[FACTOR] == tally.held["ensemble"]
        assert tally.relative_width() < 0.9

    def test_more_confidence_is_wider_and_holds_more(self):
        low, high = (hapt(confidence=c, replicates=50).tallies[0] for c in (0.3, 0.95))
        assert low.median_width("ensemble") < high.median_width("ensemble")
        assert low.coverage("ensemble") < high.coverage("ensemble")

    def test_one_family_holds_less_than_it_promises(self):
        tally = hapt(replicates=100).tallies[0]
        assert tally.coverage("best") < 0.7 < tally.coverage("ensemble")

    def test_a_beginning_that_falls_is_left_out_and_told(self):
        falling = curve([9, 8, 7, 6, 5, 20, 30.0], LEVELS[:7], name="falling")
        tally = calibrate({"a": [falling]}, replicates=5).tallies[0]
        assert len(tally.refused) == 2
        assert "does not rise" in tally.refused[0]
        assert tally.curves == 1

    def test_curves_too_short_to_ask(self):
        short = curve([9, 18, 27.0], LEVELS[:3], name="short")
        found = calibrate({"a": [short]}, replicates=5)
        assert (found.tallies[0].curves, found.of(False), found.choice) == (0, [], None)

    def test_the_committed_row_can_be_recomputed(self):
        committed = json.loads((ROOT / "docs/results/curve-fits/calibration.json").read_text())
        assert committed["factor"] == committed["choice"]["factor"] == FACTOR
        (row,) = (r for r in committed["sources"] if r["source"] == "tadtr-small, hapt")
        found = hapt(
            confidence=committed["confidence"],
            replicates=committed["replicates"],
            seed=committed["seed"],
        )
        (again,) = plain(calibration_dict(found))["sources"]
        # An answer on the edge may fall to the other side with another BLAS.
        one = 1.01 / row["questions"]
        assert again["questions"] == row["questions"]
        for key in ("coverage", "coverage_of_family_alone"):
            for name, share in again[key].items():
                assert share == pytest.approx(row[key][name], abs=one)
        for name, width in again["median_width"].items():
            assert width == pytest.approx(row["median_width"][name], rel=0.05)
        assert again["width_over_before"] == pytest.approx(row["width_over_before"], rel=0.05)
        assert again["mean_absolute_error"] == pytest.approx(row["mean_absolute_error"], rel=0.05)


def tally_of(source: str, *needed: float, synthetic: bool = False) -> Tally:
    """Answers that hold from these factors on."""
    tally = Tally(source, synthetic, ratio=[2.0] * len(needed))
    for factor in GRID:
        tally.factors[factor] = [factor >= least for least in needed]
    return tally


class TestChoice:
    def test_the_nearest_to_the_promise(self):
        # Of ten questions one may fail.
        needed = [0.5] * 8 + [0.6, 1.3]
        choice = choose_factor([tally_of("a", *needed), tally_of("b", *needed)])
        assert choice.factor == 0.6
        assert TARGET == 0.9

    def test_groups_weigh_the_same(self):
        # By question 99 % hold at 0.3; by group, half do.
        choice = choose_factor([tally_of("a", *[0.3] * 99), tally_of("b", 0.9)])
        assert choice.factor == 0.9
        assert choice.without == {"a": 0.9, "b": 0.3}

    def test_measured_and_synthetic_weigh_the_same(self):
        measured = [tally_of(name, *[0.3] * 9, 0.8) for name in "ab"]
        made = [tally_of(str(n), *[0.3] * 8, 0.6, 0.7, synthetic=True) for n in range(20)]
        # 90 and 80 % at 0.3, 90 and 90 % at 0.6
        assert coverage_of([*measured, *made], 0.3) == pytest.approx(0.85)
        choice = choose_factor([*measured, *made])
        assert choice.factor == 0.6
        assert set(choice.without) == {"a", "b"}

    def test_one_group_chooses_nothing(self):
        assert choose_factor([tally_of("a", 0.5)]) is None
        assert choose_factor([tally_of("a", 0.5), tally_of("b")]) is None

    def test_left_out_is_what_the_other_groups_give(self):
        groups = {"a": [read_curve(HAPT)], "b": [curve(60 - 55 * np.exp(-0.03 * LEVELS))]}
        found = calibrate(groups, replicates=20)
        for tally in found.tallies:
            factor = found.choice.without[tally.source]
            assert factor in GRID
            assert tally.held["left_out"] == tally.factors[factor]


class TestGroups:
    def test_one_per_study_and_model(self, tmp_path):
        table = tmp_path / "paper.csv"
        rows = [f"{m},{p},{p / 2},1,5" for m in ("A", "tadtr-small") for p in (10, 50, 100)]
        table.write_text("\n".join(["model,p (%),mAP (%),std,n", *rows]))
        apart = read_groups([[HAPT], [table]])
        assert {name: len(curves) for name, curves in apart.items()} == {
            "tadtr-small, hapt": 1, "A": 1, "tadtr-small, paper": 1,
        }  # fmt: skip
        joined = read_groups([[HAPT, table]])
        assert {name: len(curves) for name, curves in joined.items()} == {"tadtr-small": 2, "A": 1}


class TestPage:
    CONTENT = json.loads((ROOT / "docs/results/curve-fits/calibration.json").read_text())

    def test_the_committed_page_stays_as_it_is(self, tmp_path):
        text = (ROOT / "docs/curve-fits.md").read_text("utf-8")
        page = tmp_path / "page.md"
        page.write_text(text, encoding="utf-8")
        write_tables(self.CONTENT, page)
        assert page.read_text("utf-8") == text
        broken = text.replace("| TadTR | 20 | 164 | 34 %", "| TadTR | 20 | 164 | 99 %")
        assert broken != text
        page.write_text(broken, encoding="utf-8")
        write_tables(self.CONTENT, page)
        assert page.read_text("utf-8") == text

    def test_a_page_without_the_tables(self, tmp_path):
        page = tmp_path / "page.md"
        page.write_text("# Nothing\n")
        with pytest.raises(DataError, match=r"expected a table with the header . source"):
            write_tables(self.CONTENT, page)
        assert page.read_text() == "# Nothing\n"


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

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--study", HAPT, "--page", "nowhere.md"], "--page: expected a file, got nowhere.md"),
            (["--study", HAPT, "--synthetic", 0, "--draws", 5, "--page", HAPT / "README.md"],
             "expected measured curves of at least two groups"),
        ],
    )  # fmt: skip
    def test_a_page_that_cannot_be(self, capsys, arguments, message):
        before = (HAPT / "README.md").read_bytes()
        with pytest.raises(SystemExit, match="2"):
            main([str(argument) for argument in arguments])
        assert message in capsys.readouterr().err
        assert (HAPT / "README.md").read_bytes() == before

    def test_needs_curves(self, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(["--synthetic", "0"])
        assert "expected curves to ask" in capsys.readouterr().err
