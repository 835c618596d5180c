# SPDX-License-Identifier: Apache-2.0
"""Which trial to run next, or why none: a pure function of the trials that there are.

- A **level** is learned where it is: no curve through cheaper trials comes as close per second as
  trainings at that p, unless a wide interval is enough or p is not among the fractions.
- A **gain** beyond the data is a forecast of the curve: a pilot of a few levels, then more draws of
  these. What all allowed trials together are not expected to narrow enough is not tried.
- An **order** is that at p = 100 %, since models may change places below: trainings there, of the
  model whose mean is less certain than the difference asks for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from tal_fast.curves import LearningCurve
from tal_fast.curves.learning_curve import DEVIATION_FLOOR, part
from tal_fast.errors import DataError, counted
from tal_fast.study.adaptive.beliefs import (
    ALL,
    Belief,
    Prices,
    measured_belief,
    point_at,
    stopping_width,
    values_at,
)
from tal_fast.study.adaptive.forecast import LEVELS, Forecast, pilot_shares
from tal_fast.study.adaptive.orders import Comparison, compare
from tal_fast.study.adaptive.situation import Answer, Choices, Decision, Desk, Situation
from tal_fast.study.adaptive.targets import Gain, Level, Rank, Target

__all__ = ["decide"]


def decide(
    target: Target,
    situation: Situation,
    choices: Choices,
    *,
    confidence: float = 0.9,
    seconds: float | None = None,
) -> Decision:
    """Returns what to do next.

    Args:
        target: what is to be found out.
        situation: the trials that there are.
        choices: those that may be run.
        confidence: of the answer, in (0.5, 1).
        seconds: what all trials may take together; a trial that is not expected to fit is not
            started.
    """
    desk = Desk(situation, choices, confidence, seconds)
    if isinstance(target, Level):
        return _decide_level(target, desk)
    if isinstance(target, Gain):
        return _decide_gain(target, desk)
    return _decide_order(target, desk)


def _level_answer(target: Level, belief: Belief, confidence: float, forecast: bool) -> Answer:
    half = belief.half_width(confidence) if forecast else stopping_width(belief, confidence)
    if math.isinf(half):  # too few to end a study
        half = belief.half_width(confidence)
    source = "forecast from smaller p" if forecast else f"{counted(belief.count, 'training')}"
    words = (
        f"mAP at {target.share:g} %: {belief.value:.2f} ± {half:.2f} ({confidence:.0%}; {source})"
    )
    low, high = belief.value - half, belief.value + half
    return Answer((words,), belief.value, (low, high), "forecast" if forecast else "trainings")


def _decide_level(target: Level, desk: Desk) -> Decision:
    share, confidence = target.share, desk.confidence
    belief = None if desk.curve is None else measured_belief(desk.curve, share)
    answer = None
    if share not in desk.choices.shares and belief is None:
        return _decide_forecast_level(target, desk)
    if belief is not None:
        width = stopping_width(belief, confidence)
        answer = _level_answer(target, belief, confidence, forecast=False)
        if width <= target.width:
            return Decision("known", f"the interval is ±{width:.2f}", None, answer, width)
    else:
        below = _from_below(target, desk)
        if below is not None:
            return below
    measure = _width_by(confidence)
    return _train_at(share, target.width, desk, belief, answer, measure)


def _width_by(confidence: float) -> Measure:
    return lambda belief, more: stopping_width(belief, confidence, more)


Measure = Callable[[Belief, int], float]
"""Half the width, or the standard error, that a belief has with so many more trainings."""


def _train_at(
    share: float,
    goal: float,
    desk: Desk,
    belief: Belief | None,
    answer: Answer | None,
    measure: Measure,
) -> Decision:
    """Returns the decision for one more training at the p that the question is about."""
    running, free = desk.situation.running_at(share), desk.free.get(share, [])
    width = None if belief is None else measure(belief, 0)
    expected = None if belief is None else measure(belief, running)
    if running and expected is not None and expected <= goal:
        why = f"what runs is expected to take {_size(width)} to {_size(expected)}"
        return Decision("wait", why, None, answer, width, expected)
    if not free:
        if desk.situation.running:
            return Decision("wait", "no trial is left to start", None, answer, width)
        need = None if belief is None else _trainings_needed(belief, goal, measure)
        more = "" if need is None else f", about {need} would be needed"
        point = point_at(desk.curve, share)
        count = 0 if point is None else len(values_at(point))
        why = (
            f"every allowed training at {share:g} % is done, {count}{more}: give more "
            "--repetitions or --seeds"
        )
        return Decision("exhausted", why, None, answer, width)
    if belief is None or expected is None:
        return desk.train(share, f"{share:g} % is what is asked about; its spread is not known yet")
    after = measure(belief, running + 1)
    why = (
        f"one more training at {share:g} %, which is what is asked about, takes {_size(expected)} "
        f"to about {_size(after)}"
    )
    return desk.train(share, why, answer, width, after)


def _size(width: float | None) -> str:
    return "no interval" if width is None or math.isinf(width) else f"±{width:.2f}"


def _trainings_needed(belief: Belief, goal: float, measure: Measure) -> int | None:
    for more in range(1, 1000):
        if measure(belief, more) <= goal:
            return belief.count + more
    return None


def _from_below(target: Level, desk: Desk) -> Decision | None:
    """Returns a decision by the curve of smaller p; None where trainings at p itself are better."""
    share = target.share
    if desk.curve is None or desk.curve.share[-1] >= share:
        return None
    forecast = desk.forecast()
    if forecast is None:
        return None
    belief = forecast.belief(share, desk.confidence)
    width = belief.half_width(desk.confidence)
    answer = _level_answer(target, belief, desk.confidence, forecast=True)
    if width <= target.width:
        return Decision("known", f"the forecast is ±{width:.2f}", None, answer, width)
    return None


def _pilot(desk: Desk, limit: float = ALL) -> Decision | None:
    """Returns the next trial of the pilot that a forecast starts from; None once it is there.

    A study without enough levels for one ends before it begins.
    """
    shares = [share for share in desk.choices.shares if share <= limit]
    there = [] if desk.curve is None else desk.curve.share.tolist()
    if not shares or len({*shares, *there}) < LEVELS:
        why = (
            f"a forecast takes {counted(LEVELS, 'level')} of p up to {limit:g} %, {len(shares)} "
            "are allowed: "
            "give more --fractions"
        )
        return Decision("unreachable", why)
    wanted: dict[float, int] = {}
    levels = len(desk.curve) if desk.curve is not None else 0
    running = {choice.share for choice in desk.situation.running}
    for share in pilot_shares(shares):
        wanted[share] = wanted.get(share, 0) + 1
        point = point_at(desk.curve, share)
        count = (0 if point is None else point.n) + desk.situation.running_at(share)
        if count < wanted[share] and desk.free[share]:
            why = (
                f"pilot: a forecast of the curve starts from {counted(LEVELS, 'level')}, the "
                "cheaper ones "
                f"with two draws; {levels} are there"
            )
            return desk.train(share, why)
    if running and desk.forecast() is None:
        return Decision("wait", "the pilot runs")
    return None


Ask = Callable[[Forecast], tuple[Answer, float]]
"""Returns what a forecast answers, and half the width of its interval."""


def _decide_forecast_level(target: Level, desk: Desk) -> Decision:
    def ask(forecast: Forecast) -> tuple[Answer, float]:
        belief = forecast.belief(target.share, desk.confidence)
        answer = _level_answer(target, belief, desk.confidence, forecast=True)
        return answer, belief.half_width(desk.confidence)

    return _pilot(desk, target.share) or _narrow(target, desk, ask)


def _decide_gain(target: Gain, desk: Desk) -> Decision:
    def ask(forecast: Forecast) -> tuple[Answer, float]:
        value, low, high = forecast.gain(target.times, desk.confidence)
        words = (
            f"gain at {target.times:g} times the data: {value:+.2f}, {low:+.2f} to {high:+.2f} "
            f"({desk.confidence:.0%}; forecast)"
        )
        return Answer((words,), value, (low, high), "forecast"), (high - low) / 2.0

    return _pilot(desk) or _narrow(target, desk, ask)


def _no_forecast(desk: Desk) -> Decision:
    try:
        assert desk.curve is not None
        Forecast(desk.curve)
        why = f"a forecast takes {counted(LEVELS, 'level')} of p, {len(desk.curve)} are there"
    except DataError as error:
        why = f"no curve can be laid through the trials: {error}"
    return Decision("unreachable", why)


def _narrow(target: Level | Gain, desk: Desk, ask: Ask) -> Decision:
    """Returns the trial that makes a forecast more certain, or why the study ends.

    A forecast takes a second and is looked at once per round of :data:`LEVELS` trials. Few levels
    with several draws tell as much as many levels with few, for less: the levels of the pilot come
    first. Among them the next draw goes where it takes most variance off per second, weighted by p:
    the nearer a level to what is beyond the data, the more hangs on it.
    """
    curve = desk.curve
    assert curve is not None  # the pilot is there
    answer, width = None, None
    free = {share: left for share, left in desk.free.items() if left}
    first = [share for share in set(pilot_shares(desk.choices.shares)) if share in free]
    shares = [share for share in sorted(first or free) if desk.affordable(share)]
    trials = sum(len(point.trainings) for point in curve.points)
    if desk.situation.look or trials % LEVELS == 0 or not shares:
        forecast = desk.forecast()
        if forecast is None:
            return _no_forecast(desk)
        answer, width = ask(forecast)
        if width <= target.width:
            return Decision("known", f"the forecast is ±{width:.2f}", None, answer, width)
        # Not before the curve is one to complete.
        if trials >= 3 * LEVELS and trials % LEVELS == 0 and free:
            draws = dict.fromkeys(desk.choices.shares, desk.choices.repetitions)
            draws |= {p.share: max(p.n, draws.get(p.share, 0)) for p in curve.points}
            at_best = forecast.width_with(draws, lambda one: ask(one)[1])
            if at_best > target.width:
                why = (
                    f"all allowed trials together are expected to take ±{width:.2f} to "
                    f"±{at_best:.2f}: what is uncertain is the shape of the curve beyond the data"
                )
                return Decision("unreachable", why, None, answer, width, at_best)
    if not free:
        if desk.situation.running:
            return Decision("wait", "no trial is left to start", None, answer, width)
        why = "every allowed trial is done: give more --repetitions, --seeds or --fractions"
        return Decision("exhausted", why, None, answer, width)
    if not shares:
        return desk.over_budget(min(first or free, key=desk.prices), answer, width)

    def learned(share: float) -> float:
        point = point_at(curve, share)
        count = desk.situation.running_at(share) + (0 if point is None else point.n)
        spread = float(np.interp(share, curve.share, curve.spread))
        off = max(spread, DEVIATION_FLOOR) ** 2 / (count * (count + 1)) if count else math.inf
        return part(share) * off / desk.prices(share)

    share = max(shares, key=learned)
    why = (
        f"the mean at {share:g} % is what a second makes most certain, weighted by p, of all that "
        f"the forecast of {target} hangs on"
    )
    return replace(desk.train(share, why, answer, width), learned=learned(share))


def _decide_order(target: Rank, desk: Desk) -> Decision:
    others = [_at_all(curve, desk) for curve in desk.situation.others]
    belief = None if desk.curve is None else measured_belief(desk.curve, ALL)
    direct = ALL in desk.choices.shares
    if belief is None and not direct:
        pilot = _pilot(desk)
        if pilot is not None:
            return pilot
        belief = _at_all(desk.curve, desk)
        if belief is None:
            return _no_forecast(desk)
    if belief is None:
        return _train_at(ALL, 0.0, desk, None, None, _error)
    comparisons = {
        curve.name: compare(
            belief, other, target.tie, desk.confidence, pairs=len(others),
            prices=(desk.prices(ALL), Prices(curve)(ALL)),
        )
        for curve, other in zip(desk.situation.others, others, strict=True)
        if other is not None
    }  # fmt: skip
    answer = _order_answer(desk, comparisons)
    missing = [curve.name for curve in desk.situation.others if curve.name not in comparisons]
    undecided = {
        name: comparison for name, comparison in comparisons.items() if not comparison.decided
    }
    if not missing and not undecided:
        return Decision("known", "every two are told apart or are a tie", None, answer)
    mine = [comparison for comparison in undecided.values() if comparison.needs_first]
    if not mine:
        if desk.situation.running:
            return Decision("wait", "what runs may decide it", None, answer)
        why = (
            "a training of another model tells more per second: run the same target on "
            f"{', '.join(missing or undecided)}, compared with this study"
        )
        return Decision("elsewhere", why, None, answer)
    if not direct:
        why = "100 % is not among the fractions, and the forecasts do not decide it"
        return Decision("unreachable", why, None, answer, belief.error)
    # The smallest of what the undecided differences ask for.
    goal = min(comparison.error_needed for comparison in mine)
    return _train_at(ALL, goal, desk, belief, answer, _error)


def _error(belief: Belief, more: int) -> float:
    return belief.with_more(more).error


def _at_all(curve: LearningCurve | None, desk: Desk) -> Belief | None:
    """Returns mAP at 100 %, measured or, where that is all there is, forecast."""
    if curve is None:
        return None
    belief = measured_belief(curve, ALL)
    if belief is not None or len(curve) < LEVELS or curve.share[-1] >= ALL:
        return belief
    try:
        return Forecast(curve).belief(ALL, desk.confidence)
    except DataError:
        return None


def _order_answer(desk: Desk, comparisons: Mapping[str, Comparison]) -> Answer:
    assert desk.curve is not None
    words = [comparison.words(desk.curve.name, name) for name, comparison in comparisons.items()]
    verdicts = tuple(comparison.verdict for comparison in comparisons.values())
    return Answer(tuple(words), source="order", verdicts=verdicts)
