# SPDX-License-Identifier: Apache-2.0
"""Extrapolation and its command."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from made_curves import HAPT, LEVELS, curve

from tal_fast import cli
from tal_fast.curves.curve_files import read_curve
from tal_fast.curves.ensemble import FACTOR, build_ensemble, weighted_quantiles
from tal_fast.curves.extrapolation import extrapolate
from tal_fast.curves.families import choose_families
from tal_fast.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]


def saturating(x):
    return 60.0 - 70.0 * np.exp(-0.3 * np.asarray(x) ** 0.6)


class TestQuantiles:
    def test_by_hand(self):
        values = np.array([[3.0], [1.0], [2.0]])
        weights = np.array([0.2, 0.5, 0.3])
        found = weighted_quantiles(values, weights, (0.0, 0.5, 0.51, 0.8, 0.81, 1.0))
        assert found[:, 0].tolist() == [1, 1, 2, 2, 3, 3]

    def test_equal_weights_are_plain_quantiles(self):
        values = np.random.default_rng(0).normal(size=(1001, 3))
        found = weighted_quantiles(values, np.ones(1001), (0.05, 0.5, 0.95))
        expected = np.quantile(values, (0.05, 0.5, 0.95), axis=0, method="inverted_cdf")
        assert found.tolist() == expected.tolist()


class TestExtrapolate:
    def test_between_the_families(self):
        found = extrapolate(curve(saturating(LEVELS)), times=3, replicates=200)
        low, high = found.interval
        assert low < found.value < high
        assert low <= saturating(300.0) <= high
        assert found.last == pytest.approx(saturating(100.0))
        assert found.gain == pytest.approx(found.value - found.last)
        assert sum(member.weight for member in found.members) == pytest.approx(1)
        weights = [member.weight for member in found.members]
        assert weights == sorted(weights, reverse=True)
        assert found.ratio == pytest.approx(3)
        assert found.reach == pytest.approx(100 / 50)

    def test_weights_follow_the_backtest(self):
        ensemble = build_ensemble(curve(saturating(LEVELS)), replicates=20)
        names = [fit.family.name for fit in ensemble.fits]
        rmse = np.array([ensemble.tests.rmse(name) for name in names])
        expected = 1 / np.sqrt(rmse**2 + 0.2)  # se² = 1 / 5
        assert ensemble.weights == pytest.approx(expected / expected.sum())

    def test_interval_is_wider_than_any_family(self):
        found = extrapolate(curve(saturating(LEVELS)), times=3, replicates=200)
        widths = [high - low for low, high in (m.interval for m in found.members)]
        assert found.interval[1] - found.interval[0] > np.median(widths)

    def test_drift_where_all_families_miss(self):
        # Two plateaus: no family rises a second time, so all predict too little from the first.
        steps = np.array([10, 25, 29, 30, 30, 30, 45, 55, 59, 60.0])
        assert build_ensemble(curve(steps), replicates=20).drift > 1
        assert build_ensemble(curve(saturating(LEVELS)), replicates=20).drift == 0

    def test_few_families_drift(self):
        steps = np.array([10, 25, 29, 30, 30, 30, 45, 55, 59, 60.0])
        few = build_ensemble(curve(steps), choose_families(["hill", "exp3"]), replicates=400)
        assert (few.calibrated, few.factor) == (False, 1.0)
        at = np.array([100.0, 200.0, 400.0])
        with_drift = few.sample(at).std(axis=0)
        without = few.sample(at, drift=False).std(axis=0)
        assert with_drift[0] == pytest.approx(without[0])
        assert (with_drift[1:] > without[1:]).all()
        told = extrapolate(curve(steps), 2, ensemble=few)
        assert (told.drift, told.factor) == (few.drift, 1.0)
        many = extrapolate(curve(steps), 2, replicates=20)
        assert (many.drift, many.factor) == (0.0, FACTOR)

    def test_factor_by_hand(self):
        ensemble = build_ensemble(read_curve(HAPT), replicates=100)
        at = np.array([200.0])
        plain = ensemble.sample(at, factor=1.0)
        low, median, high = weighted_quantiles(plain, ensemble.draw_weights, (0.05, 0.5, 0.95))
        expected = median + FACTOR * (low - median), median, median + FACTOR * (high - median)
        found = ensemble.quantiles(at, (0.05, 0.5, 0.95))
        assert found[:, 0] == pytest.approx(np.array(expected)[:, 0])

    def test_a_family_that_misses_the_last_value_is_drawn_to_it(self):
        known = read_curve(HAPT)
        ensemble = build_ensemble(known, replicates=2000)
        at = np.array([100.0, 200.0])
        for index, fit in enumerate(ensemble.fits):
            free, drawn = (ensemble.family(index, at, anchored=a) for a in (False, True))
            miss = fit.point(at)[0, 0] - known.mean[-1]
            gain = miss**2 / (miss**2 + ensemble.scatter**2)
            left = free[:, 0] + gain * (known.mean[-1] - free[:, 0])
            error = math.sqrt(gain) * ensemble.scatter
            assert drawn[:, 0].mean() == pytest.approx(left.mean(), abs=0.1 * error + 1e-9)
            assert (drawn[:, 0] - left).std() == pytest.approx(error, rel=0.1, abs=1e-9)
            # What a family says beyond the last level is a gain: all of it moves alike.
            moved = np.diff(drawn - free, axis=1)
            inside = np.maximum(drawn, free).max(axis=1) < 100.0
            assert np.abs(moved[inside]).max(initial=0.0) < 1e-9

    def test_asymptotes_are_where_the_curves_end(self):
        ensemble = build_ensemble(curve(saturating(LEVELS)), replicates=50)
        ends, far = ensemble.asymptotes, ensemble.sample(np.array([1e12]))[:, 0]
        exp3 = [fit.family.name for fit in ensemble.fits].index("exp3")
        log2 = [fit.family.name for fit in ensemble.fits].index("log2")
        assert np.isinf(ends[50 * log2 : 50 * (log2 + 1)]).all()
        # Their medians differ a little, as log is at 100 there.
        assert ends[50 * exp3 : 50 * (exp3 + 1)] == pytest.approx(
            far[50 * exp3 : 50 * (exp3 + 1)], abs=0.5
        )

    def test_nothing_moves_at_the_first_level(self):
        ensemble = build_ensemble(read_curve(HAPT), replicates=50)
        first = ensemble.curve.share[:1]
        free, drawn = (ensemble.sample(first, anchored=a, factor=1.0) for a in (False, True))
        assert drawn.tolist() == free.tolist()

    def test_scatter_is_no_less_than_that_about_the_best_family(self):
        smooth = curve(saturating(LEVELS), deviation=2.0)
        assert build_ensemble(smooth, replicates=5).scatter == pytest.approx(2.0 / math.sqrt(5))
        rough = saturating(LEVELS) + 4.0 * np.array([1, -1] * 5)
        scatter = build_ensemble(curve(rough, deviation=0.1), replicates=5).scatter
        assert 3.0 < scatter < 8.0

    def test_same_seed_same_answer(self):
        known = read_curve(HAPT)
        first, again, other = (extrapolate(known, 2, replicates=50, seed=s) for s in (1, 1, 2))
        assert first.interval == again.interval
        assert first.interval != other.interval

    def test_more_repetitions_narrow_a_family(self):
        few, many = (
            extrapolate(
                curve(saturating(LEVELS), repetitions=n), 3, choose_families(["wbl4"]),
                replicates=200,
            )
            for n in (3, 300)
        )  # fmt: skip
        assert np.diff(many.members[0].interval) < np.diff(few.members[0].interval) / 5

    def test_beyond_the_backtest_is_told(self):
        found = extrapolate(read_curve(HAPT), 3, replicates=20)
        assert "beyond the 2 times that this curve's own backtest reaches" in " ".join(found.notes)
        near = extrapolate(read_curve(HAPT), 1.5, replicates=20)
        assert "backtest reaches" not in " ".join(near.notes)

    def test_untested_families_are_told(self):
        found = extrapolate(curve(saturating(LEVELS[:5]), LEVELS[:5]), 1, replicates=20)
        assert "too short to test pow4, wbl4, mmf4" in " ".join(found.notes)

    def test_three_levels_are_enough_for_an_answer(self):
        found = extrapolate(curve(saturating([20, 50, 100]), [20, 50, 100]), 2, replicates=50)
        assert [member.family.name for member in found.members] == ["log2"]
        # Nothing was tested: as wrong as the last value one level before.
        assert found.drift == pytest.approx((saturating(100) - saturating(50)) / math.log(2))
        assert found.reach == 1
        assert "1 times" in " ".join(found.notes)

    @pytest.mark.parametrize(
        ("times", "message"),
        [
            (0, "expected a positive number, got 0"),
            (math.nan, "expected a positive number"),
            (1, "expected more than the 100 % measured, got 100 %"),
            (5.5, "is 5.5 times the largest measured p; beyond 5 times no interval was ever"),
        ],
    )
    def test_refused(self, times, message):
        with pytest.raises(ConfigError, match=message):
            extrapolate(curve(saturating(LEVELS)), times)

    def test_bad_confidence(self):
        with pytest.raises(ConfigError, match="between 0 and 1, got 90"):
            extrapolate(curve(saturating(LEVELS)), 2, confidence=90)

    def test_without_any_repetition(self):
        once = curve(saturating(LEVELS), deviation=math.nan, repetitions=1)
        with pytest.raises(DataError, match=r"expected repetitions at some level.*--deviation"):
            extrapolate(once, 2)
        assert extrapolate(once.with_deviation(1.0), 2, replicates=20).value > 50

    @pytest.mark.parametrize(
        ("mean", "share", "message"),
        [
            ([50], [100], "at least 3 levels of p, got 1"),
            ([40, 50], [50, 100], "at least 3 levels of p, got 2"),
            (saturating(LEVELS)[::-1], LEVELS, "does not rise"),
        ],
    )
    def test_curves_that_say_nothing(self, mean, share, message):
        with pytest.raises(DataError, match=message):
            extrapolate(curve(mean, share), 2)

    def test_too_few_levels_for_the_chosen_family(self):
        with pytest.raises(ConfigError, match="4 levels of p are too few for wbl4"):
            extrapolate(curve(saturating(LEVELS[:4]), LEVELS[:4]), 0.8, choose_families(["wbl4"]))


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = cli.main(["study", *(str(a) for a in arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


class TestCommands:
    def test_extrapolate(self, capsys, tmp_path):
        status, out, err = run(
            capsys, "extrapolate", "--study", HAPT, "--times", 3, "--draws", 50,
            "--json", tmp_path / "e.json", "--picture", tmp_path / "e.png",
        )  # fmt: skip
        assert status == 0
        assert re.search(r"mAP 9\d\.\d, 90% interval 8\d\.\d to 9\d\.\d", out)
        assert "last value" in out
        assert "own backtest reaches" in err
        content = json.loads((tmp_path / "e.json").read_text())
        assert content["share"] == 300
        assert content["interval"][0] < content["map"] < content["interval"][1]
        assert (tmp_path / "e.svg").is_file()

    def test_until_forgets_the_rest(self, capsys):
        status, out, _ = run(
            capsys, "extrapolate", "--study", HAPT, "--times", 1, "--until", 0.5, "--draws", 20
        )
        assert status == 0
        assert "over the last value, 81.3 at 50 %" in out

    def test_curves_that_all_leave_the_range_say_nothing(self, capsys, tmp_path):
        # Three levels near 100: only a line over the logarithm can be fitted, and it goes on.
        table = tmp_path / "near.csv"
        draws = [(p, score + d) for p, score in ((30, 75), (60, 93), (100, 97)) for d in (-1, 1)]
        table.write_text("percent,map\n" + "".join(f"{p},{score}\n" for p, score in draws))
        given = ["extrapolate", "--study", table, "--draws", 50, "--table", "units=percent"]
        status, out, err = run(capsys, *given, "--times", 2)
        assert status == 1
        assert "at 200 % of the data: all of log2 are above it" in err
        assert "need more than 3 levels" in err
        assert "100.0" not in out

    @pytest.mark.parametrize(
        ("arguments", "status", "message"),
        [
            (["--times", 9], 2, "beyond 5 times no interval"),
            (["--times", 2, "--until", 0.2], 1, "at least 3 levels of p, got 2"),
            (["--times", 2, "--deviation", 0], 2, "--deviation: expected points above 0"),
            (["--times", 2, "--deviation", "inf"], 2, "--deviation: expected points above 0"),
            (["--times", 2, "--until", "nan"], 2, "--until: expected a fraction above 0 and at"),
            (["--times", 2, "--picture", ""], 2, "'--picture': expected the name of a file"),
            (["--times", 2, "--confidence", 2], 2, "--confidence: expected a number between"),
        ],
    )
    def test_errors(self, capsys, arguments, status, message):
        found, _, err = run(capsys, "extrapolate", "--study", HAPT, *arguments)
        assert found == status
        assert message in err


@pytest.mark.skipif("TAL_FAST_TEST_DATA" not in os.environ, reason="TAL_FAST_TEST_DATA is not set")
def test_published_curves_cut_at_half_hold_the_rest():
    path = Path(os.environ["TAL_FAST_TEST_DATA"]) / "published_curves.csv"
    for name in ("TadTR", "ActionFormer", "TemporalMaxer"):
        whole = read_curve(path, name, repetitions=5)
        found = extrapolate(whole.until(60), times=1, replicates=200)
        assert found.interval[0] <= whole.mean[-1] <= found.interval[1]
