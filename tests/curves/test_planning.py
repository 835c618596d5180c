# SPDX-License-Identifier: Apache-2.0
"""Planning from a pilot: targets, next trials, budgets, and which p ranks two models."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from made_curves import HAPT, LEVELS, curve

from tal_fast import cli
from tal_fast.curves.ensemble import build_ensemble
from tal_fast.curves.planning import (
    TrialCost,
    plan_budget,
    plan_target,
    rank_candidates,
    trial_cost,
)
from tal_fast.errors import ConfigError


def saturating(x):
    return 60.0 - 70.0 * np.exp(-0.3 * np.asarray(x) ** 0.6)


@pytest.fixture(scope="module")
def pilot():
    share = LEVELS[:5]
    return build_ensemble(curve(saturating(share), share, videos=200.0), replicates=300)


class TestTarget:
    def test_more_chance_takes_more_data(self, pilot):
        plan = plan_target(pilot, 58.0)
        known = [share for share in plan.needed.values() if share is not None]
        assert known
        assert known == sorted(known)
        assert (np.diff(plan.probability) >= 0).all()
        assert plan.reached is None
        chance = next(iter(plan.needed))
        assert plan.videos_needed(chance) == math.ceil(plan.needed[chance] / 100 * 200)
        assert plan.more_videos(chance) == plan.videos_needed(chance) - 100

    def test_probability_is_the_share_of_curves(self, pilot):
        plan = plan_target(pilot, 58.0)
        last = plan.share[-1:]
        reached = pilot.sample(last)[:, 0] >= 58.0
        assert plan.probability[-1] == pytest.approx(pilot.draw_weights[reached].sum(), abs=1e-9)

    def test_a_sharp_curve_gives_its_own_inverse(self):
        exact = build_ensemble(curve(saturating(LEVELS), deviation=0.01), replicates=100)
        plan = plan_target(exact, 50.0)
        # saturating(x) = 50 at x = (ln 7 / 0.3)^(1 / 0.6)
        assert plan.needed[0.5] == pytest.approx((math.log(7) / 0.3) ** (1 / 0.6), rel=0.1)

    def test_already_reached_is_told(self, pilot):
        plan = plan_target(pilot, 20.0)
        assert plan.reached == 10
        assert plan.more_videos(0.9) == 0
        assert "reached in the pilot already, at p = 10 %" in " ".join(plan.notes)

    def test_above_the_asymptote_is_told(self):
        plan = plan_target(build_ensemble(curve(saturating(LEVELS)), replicates=50), 95.0)
        assert set(plan.needed.values()) == {None}
        assert plan.out_of_reach > 0.5
        assert "a target of 95 is not in reach" in " ".join(plan.notes)

    @pytest.mark.parametrize("target", [0, -3, 0.65, 101, math.nan])
    def test_impossible(self, pilot, target):
        with pytest.raises(
            ConfigError, match="--target: expected mAP in points, above 1 and at most 100"
        ):
            plan_target(pilot, target)


class TestCost:
    def test_line_through_the_times(self):
        known = curve(saturating(LEVELS), seconds=30 + 2 * LEVELS)
        cost = trial_cost(known)
        assert (cost.start, cost.per_percent, cost.known) == (
            pytest.approx(30), pytest.approx(2), True,
        )  # fmt: skip
        assert cost(np.array([50.0]))[0] == pytest.approx(130)

    def test_given_or_unknown(self):
        assert trial_cost(curve(saturating(LEVELS)), 500.0) == TrialCost(0.0, 5.0, True)
        assert trial_cost(curve(saturating(LEVELS))) == TrialCost(0.0, 0.01, False)
        with pytest.raises(
            ConfigError, match=r"--seconds \(seconds_at_full\): expected a positive"
        ):
            trial_cost(curve(saturating(LEVELS)), 0.0)


class TestCandidates:
    COST = TrialCost(0.0, 1.0, True)

    def test_beyond_the_pilot_tells_more(self, pilot):
        found = rank_candidates(pilot, LEVELS.tolist(), 100.0, self.COST)
        gained = {candidate.share: candidate.gained for candidate in found}
        assert gained[100.0] == max(gained.values())
        assert max(gained[p] for p in LEVELS[:5]) < 0.1 * gained[100.0]
        rates = [candidate.per_cost for candidate in found]
        assert rates == sorted(rates, reverse=True)
        for candidate in found:
            assert candidate.per_cost == pytest.approx(candidate.gained / (candidate.cost / 3600))

    def test_gain_is_that_of_a_normal_update(self, pilot):
        (found,) = rank_candidates(pilot, [80.0], 100.0, self.COST)
        seen = []
        for index, fit in enumerate(pilot.fits):
            y = pilot.family(index, np.array([80.0]))
            # Beyond the pilot, the misfit at its end is known and tells nothing new.
            misfit = fit.point(np.array([50.0]))[0, 0] - pilot.curve.mean[-1]
            seen.append(y[:, 0] - misfit)
        both = np.stack((np.concatenate(seen), pilot.sample(np.array([100.0]))[:, 0]))
        covariance = np.cov(both, aweights=pilot.draw_weights, ddof=0)
        left = covariance[1, 1] - covariance[0, 1] ** 2 / (covariance[0, 0] + 1.0)
        assert found.deviation == pytest.approx(math.sqrt(left))
        assert found.deviation + found.gained == pytest.approx(math.sqrt(covariance[1, 1]))

    def test_cheap_start_favours_large_p(self, pilot):
        cheap, dear = (
            rank_candidates(pilot, [60.0, 100.0], 100.0, TrialCost(start, 1.0, True))
            for start in (0.0, 1e6)
        )
        assert dear[0].share == 100.0
        assert cheap[0].cost < dear[0].cost

    @pytest.mark.parametrize("wrong", [[0.0, 50.0], [50.0, 120.0], []])
    def test_out_of_range(self, pilot, wrong):
        with pytest.raises(ConfigError, match="--candidates: expected"):
            rank_candidates(pilot, wrong, 100.0, self.COST)


class TestBudget:
    COST = TrialCost(10.0, 1.0, True)

    def test_spends_within_the_time(self, pilot):
        small, large = (
            plan_budget(pilot, LEVELS.tolist(), 100.0, self.COST, s) for s in (150.0, 1500.0)
        )
        for budget in (small, large):
            spent = sum(count * float(self.COST(np.array(p))) for p, count in budget.trials.items())
            assert budget.spent == pytest.approx(spent)
            assert budget.spent <= budget.seconds
            assert budget.after < budget.before
        assert large.after < small.after

    def test_too_little_time_buys_nothing(self, pilot):
        budget = plan_budget(pilot, [100.0], 100.0, self.COST, 5.0)
        assert (budget.trials, budget.spent, budget.after) == ({}, 0.0, budget.before)

    def test_bad_time(self, pilot):
        with pytest.raises(
            ConfigError, match=r"--hours \(seconds\): expected a positive time, got 0"
        ):
            plan_budget(pilot, [100.0], 100.0, self.COST, 0.0)


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = cli.main(["study", "plan", *(str(a) for a in arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


class TestCommand:
    def test_everything(self, capsys, tmp_path):
        again = tmp_path / "again"
        again.mkdir()
        shutil.copy(HAPT / "trials.csv", again)
        status, out, _ = run(
            capsys, "--study", HAPT, "--until", 0.5, "--target", 83, "--hours", 0.2,
            "--compare", again, "--draws", 100,
            "--json", tmp_path / "p.json", "--picture", tmp_path / "p.png",
        )  # fmt: skip
        assert status == 0
        assert "for mAP 83" in out
        assert "12 min 00 s buys" in out
        assert "hapt: tadtr-small and again: tadtr-small cannot be told apart" in out
        content = json.loads((tmp_path / "p.json").read_text())
        assert content["goal"] == 100
        assert content["cost_unit"] == "seconds"
        assert set(content["target"]["needed"]) == {"0.5", "0.8", "0.9"}
        assert content["budget"]["after"] < content["budget"]["before"]
        assert (tmp_path / "p.svg").is_file()

    def test_nothing_measured_tells_about_more_data(self, capsys):
        status, out, err = run(capsys, "--study", HAPT, "--hours", 1, "--draws", 100)
        assert status == 0
        assert "mAP at 200 %" in out
        assert "only more data than was measured shows it" in err

    @pytest.mark.parametrize(
        ("arguments", "status", "message"),
        [
            (["--target", 120], 2, "--target: expected mAP in points, above 1"),
            (["--goal", 1], 2, "--goal: expected more than the 100 % measured"),
            (["--goal", 9], 2, "--goal: 900 % is 9 times the largest measured p"),
            (["--candidates", "0.5,1.5"], 2, "--candidates"),
            (["--picture", "x.png"], 2, "--picture: expected --target"),
            (["--hours", -1], 2, "--hours: expected a positive time, got -1"),
            (["--seconds", 0], 2, "--seconds: expected a positive time, got 0"),
            (["--until", "nan"], 2, "--until: expected a fraction above 0 and at most 1, got nan"),
            (["--until", 30], 2, "--until: expected a fraction above 0 and at most 1, got 30"),
            (["--confidence", 2], 2, "--confidence: expected a number between 0.5 and 1, got 2"),
        ],
    )
    def test_errors(self, capsys, arguments, status, message):
        found, _, err = run(capsys, "--study", HAPT, "--draws", 10, *arguments)
        assert found == status
        assert message in err

    def test_hours_need_times(self, capsys):
        status, _, err = run(capsys, "--study", HAPT / "curve.csv", "--hours", 1, "--draws", 10)
        assert status == 2
        assert "the study has no times; give that of a full one with --seconds" in err
        status, out, _ = run(
            capsys, "--study", HAPT / "curve.csv", "--until", 0.5, "--hours", 1,
            "--seconds", 600, "--draws", 10,
        )  # fmt: skip
        assert status == 0
        assert "1 h 00 min buys" in out
