# SPDX-License-Identifier: Apache-2.0
"""What a policy knows and what it says: the trials that there are and may be, and a decision."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from tal_fast.curves import LearningCurve
from tal_fast.errors import DataError
from tal_fast.progress import duration
from tal_fast.study.adaptive.beliefs import Prices
from tal_fast.study.adaptive.forecast import LEVELS, Forecast

__all__ = ["Answer", "Choice", "Choices", "Decision", "Desk", "Situation"]


class Choice(NamedTuple):
    """A trial: p in percent, the draw of it, and which training on that draw."""

    share: float
    repetition: int
    training: int


@dataclass(frozen=True)
class Choices:
    """What may be trained.

    Attributes:
        shares: p in percent, rising.
        repetitions: draws of each.
        trainings: of each draw.
    """

    shares: tuple[float, ...]
    repetitions: int
    trainings: int = 1

    def free(self, taken: frozenset[Choice]) -> dict[float, list[Choice]]:
        """Returns the trials that are left at every share; new draws before new trainings."""
        return {
            share: [
                choice
                for training in range(self.trainings)
                for repetition in range(self.repetitions)
                if (choice := Choice(share, repetition, training)) not in taken
            ]
            for share in self.shares
        }


@dataclass(frozen=True)
class Situation:
    """What there is.

    Attributes:
        curve: of the finished trials; None before the first.
        taken: trials that are finished, running or have failed.
        running: trials that run.
        spent: seconds that the finished trials took.
        others: curves of the other models of an order.
        look: make a forecast in any case, not only once per round of trials.
    """

    curve: LearningCurve | None = None
    taken: frozenset[Choice] = frozenset()
    running: tuple[Choice, ...] = ()
    spent: float = 0.0
    others: tuple[LearningCurve, ...] = ()
    look: bool = True

    def running_at(self, share: float) -> int:
        """Returns how many trials run at ``share`` percent."""
        return sum(choice.share == share for choice in self.running)


@dataclass(frozen=True)
class Answer:
    """What is known so far.

    Attributes:
        words: for people, one line each.
        value: the number asked for, in points; None for an order.
        interval: at the confidence asked for.
        source: ``trainings``, ``forecast`` or ``order``.
        verdicts: of an order, one for each other model (:class:`~.orders.Comparison`).
    """

    words: tuple[str, ...]
    value: float | None = None
    interval: tuple[float, float] | None = None
    source: str = "trainings"
    verdicts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """What to do next.

    Attributes:
        kind: ``train``; ``wait`` for running trials; or why the study ends: ``known``, ``budget``,
            ``exhausted`` (every allowed trial is done), ``unreachable``, or ``elsewhere`` (another
            model needs trials).
        why: in words.
        choice: the trial to run.
        answer: what is known; None while nothing is.
        width: half the width of the interval now, points; None where there is none.
        width_after: what is expected of it after the trial.
        seconds: expected of the trial; None where no time is known.
        learned: what a second of the trial is expected to bring: points of half the width (of the
            standard error, for an order) that it takes off; for a forecast squared points of the
            variance of the level's mean, times p in 0..1. Per full training where no time is known.
    """

    kind: str
    why: str
    choice: Choice | None = None
    answer: Answer | None = None
    width: float | None = None
    width_after: float | None = None
    seconds: float | None = None
    learned: float | None = None

    @property
    def ends(self) -> bool:
        """Whether the study ends."""
        return self.kind not in ("train", "wait")


@dataclass
class Desk:
    """A situation with what follows from it."""

    situation: Situation
    choices: Choices
    confidence: float
    budget: float | None
    free: dict[float, list[Choice]] = field(init=False)
    prices: Prices = field(init=False)

    def __post_init__(self) -> None:
        self.free = self.choices.free(self.situation.taken)
        self.prices = Prices(self.situation.curve)

    @property
    def curve(self) -> LearningCurve | None:
        """The curve of the finished trials."""
        return self.situation.curve

    @property
    def left(self) -> float:
        """Seconds of the budget that finished and running trials leave."""
        if self.budget is None:
            return math.inf
        running = math.fsum(self.prices(choice.share) for choice in self.situation.running)
        return self.budget - self.situation.spent - running

    def affordable(self, share: float) -> bool:
        """Whether a trial at ``share`` is expected to fit the budget."""
        return self.prices(share) <= self.left + 1e-6  # sums of times end a rounding apart

    def train(
        self,
        share: float,
        why: str,
        answer: Answer | None = None,
        width: float | None = None,
        after: float | None = None,
    ) -> Decision:
        """Returns the decision for the next trial at ``share``, if it may be started."""
        if self.budget is not None and not self.prices.known:
            if self.situation.running:
                return Decision("wait", "the first trial will tell what trials cost", None, answer)
            share, after = self.choices.shares[0], None
            why = f"a trial at {share:g} % tells what trials cost, before the budget is spent"
        elif not self.affordable(share):
            return self.over_budget(share, answer, width)
        seconds = self.prices(share) if self.prices.known else None
        learned = None if width is None or after is None else (width - after) / self.prices(share)
        if learned is not None and not math.isfinite(learned):
            learned = None
        return Decision("train", why, self.free[share][0], answer, width, after, seconds, learned)

    def over_budget(self, share: float, answer: Answer | None, width: float | None) -> Decision:
        """Returns the decision for a trial that the budget has no room for."""
        if self.situation.running:
            return Decision("wait", "the budget has room for what runs", None, answer, width)
        left, price = max(0.0, self.left), self.prices(share)
        why = (
            f"the budget is spent: {duration(left)} are left of {duration(self.budget or 0.0)}, "
            f"and a trial at {share:g} %, the next, takes about {duration(price)}"
        )
        return Decision("budget", why, None, answer, width, None, price)

    def forecast(self) -> Forecast | None:
        """Returns the forecast of the curve; None where there is none."""
        if self.curve is None or len(self.curve) < LEVELS:
            return None
        try:
            return Forecast(self.curve)
        except DataError:
            return None
