# SPDX-License-Identifier: Apache-2.0
"""From a pilot to a plan: how much data a target takes, and which trials tell most per hour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from tal_fast.curves.ensemble import Ensemble
from tal_fast.curves.extrapolation import LIMIT
from tal_fast.curves.learning_curve import DEVIATION_FLOOR, LearningCurve, part
from tal_fast.curves.points import require_level
from tal_fast.errors import ConfigError, argument
from tal_fast.typing import Floats

__all__ = [
    "Budget",
    "Candidate",
    "TargetPlan",
    "TrialCost",
    "plan_budget",
    "plan_target",
    "rank_candidates",
    "trial_cost",
]


@dataclass(frozen=True)
class TargetPlan:
    """How much data brings mAP to a target.

    Attributes:
        target: mAP in points.
        share: amounts of data in percent of the full training set, from the smallest measured p to
            the limit, rising, [n].
        probability: chance that mAP reaches the target there, [n].
        needed: chance -> smallest share with at least that chance, None if no share up to the limit
            has it.
        out_of_reach: chance that the target lies above the asymptote: no amount of data brings it.
        videos: number of training videos at 100 %, None where it is not known.
        largest: largest measured p in percent.
        reached: smallest measured share whose mean reaches the target; None if none does.
        notes: what a reader has to know.
    """

    target: float
    share: Floats
    probability: Floats
    needed: dict[float, float | None]
    out_of_reach: float
    videos: float | None
    largest: float
    reached: float | None
    notes: tuple[str, ...]

    def videos_needed(self, chance: float) -> int | None:
        """Returns the number of training videos for this chance; None if not known."""
        share = self.needed[chance]
        if share is None or self.videos is None:
            return None
        return math.ceil(part(share) * self.videos - 1e-9)

    def more_videos(self, chance: float) -> int | None:
        """Returns how many that is beyond the largest measured p; None if not known."""
        total = self.videos_needed(chance)
        if total is None or self.videos is None:
            return None
        return max(0, total - round(part(self.largest) * self.videos))


def plan_target(
    ensemble: Ensemble, target: float, *, chances: Sequence[float] = (0.5, 0.8, 0.9)
) -> TargetPlan:
    """Says how much data a target takes, and with what confidence.

    Args:
        ensemble: of the pilot.
        target: mAP in points.
        chances: for which to look up the amount.

    Raises:
        ConfigError: the target is not above 1 and at most 100.
    """
    require_level("--target", target)
    curve = ensemble.curve
    end = float(curve.share[-1])
    share = np.geomspace(float(curve.share[0]), LIMIT * end, 241)
    weights = ensemble.draw_weights
    probability = weights @ (ensemble.sample(share) >= target)
    # More data does not lower what can be had: a smaller set is part of the larger one.
    probability = np.maximum.accumulate(probability)
    needed: dict[float, float | None] = {}
    for chance in chances:
        index = int(np.searchsorted(probability, chance - 1e-12))
        needed[chance] = float(share[index]) if index < len(share) else None
    out_of_reach = float(weights[ensemble.asymptotes < target].sum())
    above = np.flatnonzero(curve.mean >= target)
    reached = float(curve.share[above[0]]) if len(above) else None
    notes = list(curve.remarks())
    if reached is not None:
        notes.append(
            f"a target of {target:g} is reached in the pilot already, at p = {reached:g} %"
        )
    elif probability[-1] < 0.05:
        notes.append(
            f"a target of {target:g} is not in reach: with {share[-1]:g} % of the data its chance "
            f"is {probability[-1]:.0%}, and {out_of_reach:.0%} of the curves never come to it"
        )
    far = [s for s in needed.values() if s is not None and s > ensemble.tests.reach * end * 1.001]
    if far and reached is None:
        notes.append(
            f"answers beyond {ensemble.tests.reach * end:.0f} % of the data are further than this "
            "curve's own backtest reaches"
        )
    return TargetPlan(
        target, share, probability, needed, out_of_reach, curve.videos, end, reached, tuple(notes)
    )


@dataclass(frozen=True)
class TrialCost:
    """Seconds of a trial: start + per_percent · p.

    Attributes:
        start: seconds that do not depend on p (the test set, mostly).
        per_percent: seconds per percent of the training data.
        known: false where no time is known; a full training then counts as 1.
    """

    start: float
    per_percent: float
    known: bool

    def __call__(self, share: Floats) -> Floats:
        """Returns the cost of one trial at ``share`` percent."""
        return self.start + self.per_percent * np.asarray(share, dtype=np.float64)


def trial_cost(curve: LearningCurve, seconds_at_full: float | None = None) -> TrialCost:
    """Returns what a trial costs, from the pilot's times or a given one.

    Args:
        curve: the pilot.
        seconds_at_full: time of a trial at p = 100 %; taken as proportional to p.

    Raises:
        ConfigError: the given time is not positive.
    """
    if seconds_at_full is not None:
        if not (seconds_at_full > 0.0 and math.isfinite(seconds_at_full)):
            raise ConfigError(
                f"{argument('seconds_at_full', option='--seconds')}: expected a positive time, got "
                f"{seconds_at_full:g}"
            )
        return TrialCost(0.0, part(seconds_at_full), True)
    seconds = curve.seconds
    known = ~np.isnan(seconds)
    if known.sum() < 2:
        return TrialCost(0.0, 0.01, False)
    columns = np.stack((np.ones(int(known.sum())), curve.share[known]), axis=1)
    (start, per_percent), _ = nnls(columns, seconds[known])
    return TrialCost(float(start), float(per_percent), True)


@dataclass(frozen=True)
class Candidate:
    """One more trial at some p.

    Attributes:
        share: p in percent.
        cost: seconds, or full trainings where no time is known.
        deviation: standard deviation of mAP at the goal after the trial, points.
        gained: by how much the trial lowers it, points.
        per_cost: ``gained`` per hour, or per full training.
    """

    share: float
    cost: float
    deviation: float
    gained: float
    per_cost: float


def _joint(ensemble: Ensemble, candidates: Floats, goal: float) -> tuple[Floats, Floats]:
    """Returns the covariance of (mAP at the candidates, mAP at the goal) and the noise of a trial.

    A family that misses a measured level is not news that another trial there could bring: at the
    candidates its misfit, interpolated over ln p and held beyond the last level, is taken off.
    """
    curve = ensemble.curve
    log_share, log_candidates = np.log(curve.share), np.log(candidates)
    parts = []
    for index, fit in enumerate(ensemble.fits):
        misfit = fit.point(curve.share)[0] - curve.mean
        y = ensemble.family(index, candidates, drift=not ensemble.calibrated)
        parts.append(y - np.interp(log_candidates, log_share, misfit))
    values = np.column_stack((np.concatenate(parts), ensemble.sample(np.array([goal]))))
    weights = ensemble.draw_weights
    centred = values - weights @ values
    covariance = (weights[:, None] * centred).T @ centred
    spread = np.maximum(curve.spread, DEVIATION_FLOOR)
    return covariance, np.interp(log_candidates, log_share, spread) ** 2


def _after(covariance: Floats, noise: Floats, index: int) -> Floats:
    """Returns the covariance once one trial at a candidate is known (a linear update)."""
    column = covariance[:, index]
    return covariance - np.outer(column, column) / (column[index] + noise[index])


def _check_candidates(curve: LearningCurve, candidates: Sequence[float]) -> Floats:
    share = np.asarray(sorted(set(candidates)), dtype=np.float64)
    if not len(share):
        raise ConfigError("--candidates: expected at least one p, got none")
    if share[0] <= 0.0 or share[-1] > 100.0:
        wrong = share[0] if share[0] <= 0.0 else share[-1]
        raise ConfigError(f"--candidates: expected p above 0 and at most 1, got {part(wrong):g}")
    return share


def rank_candidates(
    ensemble: Ensemble, candidates: Sequence[float], goal: float, cost: TrialCost
) -> list[Candidate]:
    """Ranks further trials by what they tell about mAP at the goal per cost.

    Args:
        ensemble: of the pilot.
        candidates: p in percent at which a trial could be run.
        goal: the share in percent that the question is about.
        cost: of a trial.

    Returns:
        The most telling per cost first.

    Raises:
        ConfigError: a candidate is out of range.
    """
    share = _check_candidates(ensemble.curve, candidates)
    covariance, noise = _joint(ensemble, share, goal)
    before = math.sqrt(covariance[-1, -1])
    unit = 3600.0 if cost.known else 1.0
    result = []
    for index, price in enumerate(cost(share)):
        after = math.sqrt(max(0.0, float(_after(covariance, noise, index)[-1, -1])))
        gained = before - after
        result.append(
            Candidate(
                float(share[index]), float(price), after, gained, float(gained / (price / unit))
            )
        )
    return sorted(result, key=lambda candidate: -candidate.per_cost)


@dataclass(frozen=True)
class Budget:
    """What a time buys.

    Attributes:
        seconds: the time given (full trainings where no time is known).
        spent: what the trials take.
        trials: p in percent -> number of trials, rising.
        before: standard deviation of mAP at the goal now, points.
        after: the same once the trials are known.
    """

    seconds: float
    spent: float
    trials: dict[float, int]
    before: float
    after: float


def plan_budget(
    ensemble: Ensemble,
    candidates: Sequence[float],
    goal: float,
    cost: TrialCost,
    seconds: float,
) -> Budget:
    """Spends a time on the trials that tell most about the goal, one after the other.

    Each step takes the trial of the largest gain per cost that still fits, given those before it.

    Raises:
        ConfigError: a candidate is out of range, or the time is not positive.
    """
    if not (seconds > 0.0 and math.isfinite(seconds)):
        raise ConfigError(
            f"{argument('seconds', option='--hours')}: expected a positive time, got "
            f"{seconds / 3600.0:g} hours"
        )
    share = _check_candidates(ensemble.curve, candidates)
    covariance, noise = _joint(ensemble, share, goal)
    prices = cost(share)
    before = after = math.sqrt(covariance[-1, -1])
    spent, counts = 0.0, np.zeros(len(share), dtype=int)
    # Costs may be so small that the time buys thousands of trials, the last of which tell nothing.
    while counts.sum() < 1000:
        fits = np.flatnonzero(prices <= seconds - spent + 1e-9)
        if not len(fits):
            break
        column = covariance[fits, -1]
        reduced = covariance[-1, -1] - column**2 / (np.diag(covariance)[fits] + noise[fits])
        gains = after - np.sqrt(np.maximum(reduced, 0.0))
        best = int(np.argmax(gains / prices[fits]))
        if gains[best] < 1e-3 * before:
            break
        index = int(fits[best])
        covariance = _after(covariance, noise, index)
        after = math.sqrt(max(0.0, covariance[-1, -1]))
        spent += float(prices[index])
        counts[index] += 1
    trials = {float(p): int(count) for p, count in zip(share, counts, strict=True) if count}
    return Budget(seconds, spent, trials, before, after)
