# SPDX-License-Identifier: Apache-2.0
"""Which model is best with all the data, and the smallest study that says so."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from made_curves import HAPT, curve
from scipy.stats import norm

from tal_fast import cli
from tal_fast.curves import CurvePoint, LearningCurve, read_curves
from tal_fast.curves.ensemble import build_ensemble
from tal_fast.curves.ranking import MOST_TRAININGS, rank_models
from tal_fast.curves.ranking_tables import ranking_lines
from tal_fast.errors import ConfigError, DataError

SHARES = [10, 50, 100]
NAMED = "tadtr-small, video, {}"  # curves of HAPT's study of budgets


def drawn(draws, shares=SHARES, name="toy", names=None, seconds=None):
    """A curve of known draws, [levels][draws]."""
    points = [
        replace(
            CurvePoint.of_draws(
                share, [[value] for value in values],
                seconds=None if seconds is None else seconds * share,
            ),
            names=tuple(names or ()),
        )
        for share, values in zip(shares, draws, strict=True)
    ]  # fmt: skip
    return LearningCurve(name, tuple(points))


def level(found, share):
    return next(level for level in found.levels if level.share == share)


class TestOrder:
    def test_crossing_curves(self):
        first = curve([10, 40, 60], SHARES, name="late")
        second = curve([20, 38, 50], SHARES, name="early")
        third = curve([5, 20, 30], SHARES, name="weak")
        found = rank_models([third, second, first])
        assert [one.name for one in found.standings] == ["late", "early", "weak"]
        assert all(pair.told and pair.certainty > 0.99 for pair in found.pairs)
        # No number of trainings at 10 % finds an order that is another one there.
        assert level(found, 10).trainings is None
        assert min(level(found, 10).wrong) > 0.99
        assert found.enough.share == 50
        assert "late > early > weak" in ranking_lines(found)[0]
        assert "is 50 %, with" in ranking_lines(found)[1]

    def test_a_wrong_level_above_spoils_those_below(self):
        first = curve([30, 30, 60], SHARES, name="A")
        second = curve([20, 38, 50], SHARES, name="B")
        found = rank_models([first, second])
        assert level(found, 10).trainings == 1  # right, but nothing says that it stays so
        assert found.enough.share == 100

    def test_ties_are_an_answer(self):
        found = rank_models(
            [curve([10, 40, 60.2], SHARES, name="A"), curve([30, 50, 60], SHARES, name="B")]
        )
        (pair,) = found.pairs
        assert (pair.better, pair.told) == ("A", False)
        assert pair.difference == pytest.approx(0.2)
        assert pair.error == pytest.approx(1.14 * math.sqrt(2 / 5), rel=0.1)  # t with 4 degrees
        assert found.enough is found.cheapest is None
        (line,) = ranking_lines(found)
        assert "A and B cannot be told apart at 100 %: 0.20 ±" in line

    def test_a_tie_leaves_the_order_of_the_others(self):
        curves = [
            curve([10, 40, 60.2], SHARES, name="A"),
            curve([30, 50, 60], SHARES, name="B"),
            curve([5, 10, 20], SHARES, name="C"),
        ]
        found = rank_models(curves)
        assert [pair.told for pair in found.pairs] == [False, True, True]
        assert found.enough.share == 10  # A and B change places there, which nobody asks about
        assert "order of the others is 10 %" in ranking_lines(found)[-1]

    def test_the_order_in_which_they_are_given_does_not_matter(self):
        curves = [curve([10, 40, 60], SHARES, name="A"), curve([20, 38, 50], SHARES, name="B")]
        one, two = rank_models(curves), rank_models(curves[::-1])
        assert [s.name for s in one.standings] == [s.name for s in two.standings]
        assert one.enough.share == two.enough.share


class TestErrorRate:
    def test_is_how_often_a_new_study_errs(self):
        # Many draws, so that the means are exact: 1 ± sqrt(2) for one draw of each.
        first = curve([11, 30, 60], SHARES, deviation=1.0, repetitions=4000)
        second = curve([10, 30, 50], SHARES, deviation=1.0, repetitions=4000)
        wrong = level(rank_models([first, second]), 10).wrong
        for count in (1, 4, MOST_TRAININGS):
            expected = norm.cdf(-1.0 / math.sqrt(2.0 / count))
            assert wrong[count - 1] == pytest.approx(expected, abs=0.025)

    def test_more_trainings_err_less(self):
        first = curve([11, 31, 60], SHARES)
        second = curve([10, 29.5, 50], SHARES)
        found = rank_models([first, second])
        assert np.diff(level(found, 50).wrong).max() < 0.02
        assert level(found, 50).trainings > level(found, 100).trainings == 1

    def test_shared_draws_are_resampled_together(self):
        noise = np.array([-4.0, -2.0, 0.0, 2.0, 4.0])
        names = list("abcde")
        means = np.array([10.0, 30.0, 50.0])
        small = np.array([0.5, -0.5, 0.2, -0.2, 0.0])
        first = drawn(means[:, None] + noise + 2.0 + small, name="A", names=names)
        # The same draws in another order.
        back = drawn((means[:, None] + noise)[:, ::-1], name="B", names=names[::-1])
        paired = rank_models([first, back])
        assert paired.paired
        assert level(paired, 10).wrong[0] < 0.05
        apart = rank_models([first, drawn((means[:, None] + noise), name="B", names=list("vwxyz"))])
        assert not apart.paired
        assert not any(pair.told for pair in apart.pairs) or level(apart, 10).wrong[0] > 0.2

    def test_costs(self):
        first = drawn([[10, 11, 12], [30, 31, 32], [50, 51, 52]], seconds=1.0)
        second = drawn([[1, 2, 3], [3, 4, 5], [5, 6, 7]], seconds=2.0, name="B")
        found = rank_models([first, second])
        assert level(found, 10).trainings == 1
        assert level(found, 10).seconds == 30
        assert found.cheapest.share == 10

    def test_trainings_that_agree_by_chance_prove_nothing(self):
        first = drawn([[10, 10], [30, 30], [50.1, 50.1]], name="A")
        second = drawn([[9, 9], [29, 29], [50, 50]], name="B")
        assert not rank_models([first, second]).pairs[0].told


class TestForecast:
    def test_of_a_pilot_that_ends_early(self):
        def rising(high):
            return curve(high * (1 - np.exp(-np.arange(1, 6) / 3)), np.arange(10, 51, 10))

        pilots = [rising(40), rising(80)]
        found = rank_models(pilots, replicates=50)
        assert found.standings[0].value > found.standings[1].value
        assert [one.trainings for one in found.standings] == [0, 0]
        assert found.standings[0].reach == 50
        assert "is a forecast: it was measured up to p = 50 %" in " ".join(found.notes)
        known = {0: build_ensemble(pilots[0], replicates=50)}
        again = rank_models(pilots, forecasts=known, replicates=50)
        assert again.standings[1].value == found.standings[1].value


class TestRefused:
    def test_no_common_level(self):
        with pytest.raises(DataError, match="a level of p that all have, got none"):
            rank_models([curve([9, 29], [20, 100]), curve([9, 29, 30], [10, 40, 90])])

    def test_no_repetitions(self):
        known = curve([10, 30, 50], SHARES)
        once = curve([10, 30, 50], SHARES, deviation=math.nan, name="once")
        with pytest.raises(DataError, match="once: expected repetitions"):
            rank_models([known, once])

    def test_settings(self):
        known = curve([10, 30, 50], SHARES)
        with pytest.raises(ConfigError, match=r"between 0.5 and 1, got 0.4"):
            rank_models([known, known], confidence=0.4)
        with pytest.raises(ConfigError, match="at least two models, got 1"):
            rank_models([known])


def test_other_amounts_of_data_are_told():
    rising = np.linspace(20.0, 60.0, 10)
    few, many = (curve(rising, name=name, videos=n) for name, n in (("a", 40.0), ("b", 200.0)))
    note = (
        "the full training sets have 40 (a) and 200 (b) videos: of different data no order follows"
    )
    assert any(note in one for one in rank_models([few, many]).notes)
    near = replace(many, videos=41.0)  # as rounded samples say it
    assert not any("videos" in one for one in rank_models([few, near]).notes)


class TestCommand:
    def run(self, capsys, *arguments):
        status = cli.main(["study", "plan", "--draws", "50", *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    def test_curves_of_one_study(self, capsys, tmp_path):
        budgets = HAPT.parent / "hapt-budgets"
        status, out, err = self.run(
            capsys, "--study", budgets, "--curve", NAMED.format("epochs, off"),
            "--compare", f"{budgets}:{NAMED.format('epochs, plain')}",
            "--compare", f"{budgets}:{NAMED.format('steps, off')}",
            "--json", tmp_path / "r.json",
        )  # fmt: skip
        assert status == 0, err
        assert "order at p = 100 %" in out
        content = json.loads((tmp_path / "r.json").read_text())["ranking"]
        assert len(content["standings"]) == len(content["pairs"]) == 3
        assert content["paired"] is True  # those that differ in budget or average share draws

    def test_the_same_draws_are_found(self):
        budgets = HAPT.parent / "hapt-budgets"
        first, second = read_curves(budgets)[:2]
        assert first.points[0].names
        assert first.points[0].names == second.points[0].names
        assert rank_models([first, second]).paired

    @pytest.mark.parametrize(
        ("compare", "status", "message"),
        [
            ("nowhere", 1, "nowhere: no such file or study"),
            (f"{HAPT.parent / 'hapt-budgets'}", 2, "choose one with --curve"),
            (f"{HAPT}:other", 2, "expected one of 'tadtr-small', got 'other'"),
            (f"{HAPT}:tadtr-small", 2, "--compare: expected each curve once, got "),
            (f"{HAPT.parent}/../results/hapt/trials.csv", 2, "tadtr-small, again"),
        ],
    )
    def test_errors(self, capsys, compare, status, message):
        found, _, err = self.run(capsys, "--study", HAPT, "--compare", compare)
        assert found == status
        assert message in err

    def test_averages_over_other_thresholds_are_refused(self, tmp_path, capsys):
        other = tmp_path / "curve.csv"
        table = (HAPT / "curve.csv").read_text("utf-8")
        other.write_text(table.replace("mean_0.3,", "mean_0.1,"), encoding="utf-8")
        arguments = ["study", "plan", "--study", str(HAPT), "--compare", str(other)]
        assert cli.main(arguments) == 2
        said = capsys.readouterr().err
        assert "expected the tIoU thresholds of" in said
        assert "(0.3, 0.4, 0.5, 0.6, 0.7), got 0.1, 0.4, 0.5, 0.6, 0.7 of" in said
