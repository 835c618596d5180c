# SPDX-License-Identifier: Apache-2.0
"""Differences between curves, the weight of the start and the shape of a curve, by hand."""

from __future__ import annotations

import math

import pytest
from made_records import BUDGETS, trial

from tal_fast.study.report.comparison import (
    compare,
    curve_shape,
    initial_weights,
    score_table,
)
from tal_fast.study.results import build_curves


def by_p(comparison):
    return {one.share: one for one in comparison.differences}


class TestBudgets:
    def test_pairs_by_hand(self):
        off, plain = compare(score_table(BUDGETS), build_curves(BUDGETS), "budget")
        assert off.first == ("video", "epochs", "off")
        assert off.second == ("video", "steps", "off")
        found = by_p(off)
        # 0.30 - 0.20 and 0.32 - 0.24: mean 0.09, half a spread of 0.01 each way; the third draw,
        # which has no partner, would have moved the mean by -0.25.
        assert found[10].mean == pytest.approx(9)
        assert found[10].error == pytest.approx(2 / math.sqrt(2) / math.sqrt(2))
        assert (found[10].pairs, found[10].steps) == (2, (2.0, 20.0))
        assert (found[100].mean, found[100].error, found[100].pairs) == (0.0, None, 1)
        assert by_p(plain)[10].mean == pytest.approx((23 + 25) / 2)

    def test_a_level_without_pairs_is_left_out(self):
        (off, _) = compare(score_table(BUDGETS), build_curves(BUDGETS), "budget")
        assert sorted(by_p(off)) == [10, 100]  # p = 50 % is there under steps alone
        strangers = [trial(0.1, 0, 0.2), trial(0.1, 1, 0.3, budget="steps")]
        assert compare(score_table(strangers), build_curves(strangers), "budget") == []

    def test_trainings_on_one_draw_are_averaged_first(self):
        records = [
            trial(0.1, 0, 0.2),
            trial(0.1, 0, 0.4, training=1),
            trial(0.1, 1, 0.5),
            trial(0.1, 0, 0.3, budget="steps"),
            trial(0.1, 0, 0.6, budget="steps", training=1),
            trial(0.1, 1, 0.5, budget="steps"),
        ]
        (found,) = compare(score_table(records), build_curves(records), "budget")
        (one,) = found.differences
        assert one.pairs == 2
        assert one.mean == pytest.approx((15 + 0) / 2)
        assert one.error == pytest.approx(7.5)

    def test_steps_that_some_trials_do_not_tell(self):
        records = [trial(0.1, 0, 0.2, steps=None), trial(0.1, 0, 0.3, budget="steps")]
        (found,) = compare(score_table(records), build_curves(records), "budget")
        assert found.differences[0].steps == (None, 8.0)

    def test_one_budget_has_nothing_to_compare(self):
        assert compare(score_table(BUDGETS[:4]), build_curves(BUDGETS[:4]), "budget") == []


class TestAverages:
    def test_within_each_training(self):
        epochs, steps = compare(score_table(BUDGETS), build_curves(BUDGETS), "ema")
        assert (epochs.first[2], epochs.second[2], epochs.second[1]) == ("off", "plain", "epochs")
        values = [-15, -17, -30]
        mean = sum(values) / 3
        variance = sum((value - mean) ** 2 for value in values) / 2
        found = by_p(epochs)[10]
        assert found.mean == pytest.approx(mean)
        assert found.error == pytest.approx(math.sqrt(variance / 3))
        assert by_p(steps)[50].mean == pytest.approx(1)


class TestSamplings:
    RECORDS = (
        trial(0.1, 0, 0.2),
        trial(0.1, 1, 0.4),
        trial(0.1, 0, 0.5, sampling="window"),
        trial(0.1, 3, 0.7, sampling="window"),
        trial(0.5, 3, 0.7, sampling="window"),
    )

    def test_means_of_draws_apart(self):
        (found,) = compare(score_table(self.RECORDS), build_curves(self.RECORDS), "sampling")
        (one,) = found.differences
        assert (one.share, one.pairs) == (10, None)
        assert one.mean == pytest.approx(30)
        # each mean has the standard error of 10 points
        assert one.error == pytest.approx(10 * math.sqrt(2))

    def test_one_draw_has_no_error(self):
        records = self.RECORDS[1:]
        (found,) = compare(score_table(records), build_curves(records), "sampling")
        assert found.differences[0].error is None


class TestInitialWeights:
    def test_by_hand(self):
        found = initial_weights(score_table(BUDGETS), 0.9)
        epochs = {one.share: one for one in found["video", "epochs"]}
        assert epochs[10].kept == pytest.approx(0.81)
        assert epochs[100].kept == pytest.approx(0.9**20)
        assert {one.steps for one in found["video", "steps"]} == {20}

    def test_of_the_published_models(self):
        # 350 and 3,500 steps at a decay of 0.999: ActionFormer at 10 and 100 % of THUMOS14.
        records = [trial(0.1, 0, 0.05, steps=350), trial(1.0, 0, 0.67, steps=3500)]
        rows = initial_weights(score_table(records), 0.999)["video", "epochs"]
        assert [round(one.kept, 2) for one in rows] == [0.70, 0.03]

    def test_mean_of_unequal_steps(self):
        records = [trial(0.1, 0, 0.1, steps=0), trial(0.1, 1, 0.1, steps=2)]
        (row,) = initial_weights(score_table(records), 0.5)["video", "epochs"]
        assert (row.steps, row.kept) == (1, (1 + 0.25) / 2)

    def test_steps_not_told(self):
        records = [trial(0.1, 0, 0.1, steps=None), trial(0.2, 0, 0.1)]
        assert [
            one.share for one in initial_weights(score_table(records), 0.5)["video", "epochs"]
        ] == [20]


class TestShape:
    @staticmethod
    def shape(*levels):
        records = [
            trial(fraction, repetition, value)
            for fraction, values in levels
            for repetition, value in enumerate(values)
        ]
        (curve,) = build_curves(records)
        return curve_shape(curve)

    def test_slow_start(self):
        # Means of 2, 20 and 25 points at 10, 20 and 40 %: 0.2, 1.8, 0.25 points per percent.
        found = self.shape((0.1, (0.01, 0.03)), (0.2, (0.19, 0.21)), (0.4, (0.25, 0.25)))
        assert found.between == (10, 20)
        # 1.8 - 0.2 = 0.1 m2 - 0.1 m1 - 0.1 m1, each mean with the standard error of 1 point
        error = math.hypot(0.1, 0.2)
        assert found.excess == pytest.approx(1.6 / error)
        assert found.sigmoid

    def test_steepest_at_its_start(self):
        found = self.shape((0.1, (0.2, 0.2)), (0.2, (0.3, 0.3)), (0.4, (0.35, 0.35)))
        assert (found.between, found.excess, found.sigmoid) == ((0, 10), 0.0, False)

    def test_within_the_noise(self):
        found = self.shape((0.1, (0.0, 0.2)), (0.2, (0.1, 0.31)))
        assert found.excess is not None
        assert 0 < found.excess < 2
        assert not found.sigmoid

    def test_spread_not_known(self):
        found = self.shape((0.1, (0.01,)), (0.2, (0.2,)))
        assert (found.excess, found.sigmoid) == (None, None)

    def test_no_spread(self):
        found = self.shape((0.1, (0.01, 0.01)), (0.2, (0.2, 0.2)))
        assert found.excess == math.inf
        assert found.sigmoid
