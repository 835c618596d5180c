# SPDX-License-Identifier: Apache-2.0
"""How long a training goes on. The learning rate's schedule is stretched over whatever that is.

Under a fixed number of epochs a tenth of the data also gets a tenth of the optimiser steps, so a
curve over the amount of data shows both together. The other budgets take them apart.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from tal_fast.errors import ConfigError
from tal_fast.training.config import TrainingConfig

__all__ = [
    "Budget",
    "Convergence",
    "FixedSteps",
    "WallClock",
    "learning_rate",
    "make_budget",
]

# Steps between two ratings of the held-out videos where neither a setting nor an epoch says it: an
# epoch of a small sample has a handful of steps, too few for a rating to be worth its time.
_CHECK_EVERY = 50


class Budget(ABC):
    """When a training ends, and how often its learning rate has fallen until now.

    Attributes:
        check_every: steps between two ratings of the held-out videos; None rates after each epoch.
    """

    check_every: int | None = None

    @abstractmethod
    def done(self, step: int, seconds: float) -> bool:
        """Returns whether a training of ``step`` steps and ``seconds`` seconds is at its end."""

    @abstractmethod
    def falls(self, step: int, seconds: float) -> int:
        """Returns how often the learning rate has fallen before the next step."""

    @abstractmethod
    def cosine(self, step: int, seconds: float) -> tuple[float, float]:
        """Returns where the next step is in a schedule that rises and then falls, both in [0, 1].

        The first number is how far the learning rate has risen, the second how far it has fallen.
        """

    @abstractmethod
    def expected_steps(self, step: int, seconds: float) -> int:
        """Returns how many steps there will be, as far as can be told by now."""

    def rated(self, improved: bool) -> None:  # noqa: B027 - most budgets do not mind
        """Takes in whether a rating of the held-out videos was the best so far."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what :meth:`load_state_dict` needs to go on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - as above
        """Goes on from a saved state."""


class FixedSteps(Budget):
    """Ends after a number of optimiser steps.

    Args:
        steps: how many.
        falls_at: steps before which the learning rate falls.
        check_every: as :attr:`Budget.check_every`.
        warmup: steps in which it rises, where it does.
    """

    def __init__(
        self,
        steps: int,
        falls_at: Sequence[int],
        check_every: int | None = None,
        warmup: int = 0,
    ) -> None:
        self.steps = steps
        self.falls_at = tuple(falls_at)
        self.check_every = check_every
        self.warmup = warmup

    def done(self, step: int, seconds: float) -> bool:
        """Returns whether all steps are made."""
        return step >= self.steps

    def falls(self, step: int, seconds: float) -> int:
        """Returns how many of the falls lie behind."""
        return sum(step >= fall for fall in self.falls_at)

    def cosine(self, step: int, seconds: float) -> tuple[float, float]:
        """Returns how far the rate has risen and fallen; it is 0 in the first of rising steps."""
        if step < self.warmup:
            return step / max(self.warmup - 1, 1), 0.0
        return 1.0, (step - self.warmup) / (self.steps - self.warmup)

    def expected_steps(self, step: int, seconds: float) -> int:
        """Returns the number of steps."""
        return self.steps


class WallClock(Budget):
    """Ends after a number of seconds; what it gives depends on the machine and on what else runs.

    Args:
        seconds: how many, ratings of held-out videos included.
        shares: of the time, at which the learning rate falls.
        check_every: as :attr:`Budget.check_every`.
        warmup: share of the time in which it rises, where it does.
    """

    def __init__(
        self,
        seconds: float,
        shares: Sequence[float],
        check_every: int | None,
        warmup: float = 0.0,
    ) -> None:
        self.seconds = seconds
        self.shares = tuple(shares)
        self.check_every = check_every
        self.warmup = warmup

    def done(self, step: int, seconds: float) -> bool:
        """Returns whether the time is over; at least one step is always made."""
        return step > 0 and seconds >= self.seconds

    def falls(self, step: int, seconds: float) -> int:
        """Returns how many of the falls lie behind."""
        return sum(seconds >= share * self.seconds for share in self.shares)

    def cosine(self, step: int, seconds: float) -> tuple[float, float]:
        """Returns how far the rate has risen and fallen."""
        share = min(seconds / self.seconds, 1.0)
        if share < self.warmup:
            return share / self.warmup, 0.0
        return 1.0, (share - self.warmup) / (1.0 - self.warmup)

    def expected_steps(self, step: int, seconds: float) -> int:
        """Returns the steps that fit at the speed until now."""
        return max(step, round(step * self.seconds / max(seconds, 1e-9)))


class Convergence(Budget):
    """Ends when the score of held-out videos has stopped to rise.

    After ``patience`` ratings without a gain the learning rate falls; after as many again at the
    last rate the training ends.

    Args:
        patience: ratings without a gain.
        falls: how often the learning rate falls before the end.
        max_steps: ends there in any case.
        check_every: steps between two ratings.
    """

    def __init__(self, patience: int, falls: int, max_steps: int, check_every: int) -> None:
        self.patience = patience
        self.max_steps = max_steps
        self.check_every = check_every
        self._allowed = falls
        self._fallen = 0
        self._stale = 0

    def done(self, step: int, seconds: float) -> bool:
        """Returns whether the score has stopped to rise at the last rate."""
        return self._fallen > self._allowed or step >= self.max_steps

    def falls(self, step: int, seconds: float) -> int:
        """Returns how often the score has stopped to rise."""
        return min(self._fallen, self._allowed)

    def cosine(self, step: int, seconds: float) -> tuple[float, float]:
        """Not to be had: how long the training will be is not known."""
        raise NotImplementedError

    def expected_steps(self, step: int, seconds: float) -> int:
        """Returns the most that there can be."""
        return step if self.done(step, seconds) else self.max_steps

    def rated(self, improved: bool) -> None:
        """Takes in whether a rating of the held-out videos was the best so far."""
        self._stale = 0 if improved else self._stale + 1
        if self._stale >= self.patience:
            self._fallen += 1
            self._stale = 0

    def state_dict(self) -> dict[str, Any]:
        """Returns what :meth:`load_state_dict` needs to go on."""
        return {"fallen": self._fallen, "stale": self._stale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self._fallen, self._stale = state["fallen"], state["stale"]


def make_budget(config: TrainingConfig, steps_per_epoch: int) -> Budget:
    """Returns the budget of a training.

    Args:
        config: ``budget`` and the settings that it goes by.
        steps_per_epoch: batches of an epoch of this training.

    Raises:
        ConfigError: a setting that the budget goes by is missing, or does not go with it.
    """
    check = config.check_every
    if config.budget == "epochs":
        # At whole epochs, as TadTR's schedule.
        falls = [round(share * config.epochs) * steps_per_epoch for share in config.lr_drops]
        warmup = round(config.warmup * config.epochs) * steps_per_epoch
        return FixedSteps(config.epochs * steps_per_epoch, falls, check, warmup)
    if config.budget == "steps":
        if config.steps is None:
            raise ConfigError("training.budget=steps: expected training.steps, it is not set")
        falls = [round(share * config.steps) for share in config.lr_drops]
        warmup = round(config.warmup * config.steps)
        return FixedSteps(config.steps, falls, check or _CHECK_EVERY, warmup)
    if config.budget == "wall-clock":
        if config.seconds is None:
            raise ConfigError(
                "training.budget=wall-clock: expected training.seconds, it is not set"
            )
        return WallClock(config.seconds, config.lr_drops, check or _CHECK_EVERY, config.warmup)
    if config.holdout == 0.0:
        raise ConfigError(
            "training.budget=convergence: expected training.holdout above 0, since held-out "
            "training videos tell when to end; got 0"
        )
    if config.schedule == "cosine":
        raise ConfigError(
            "training.budget=convergence: expected training.schedule=drops, since nobody knows "
            "in advance when the training will end; got cosine"
        )
    return Convergence(
        config.patience, len(config.lr_drops), config.max_steps, check or _CHECK_EVERY
    )


def learning_rate(config: TrainingConfig, budget: Budget, step: int, seconds: float) -> float:
    """Returns the learning rate of the next step.

    Args:
        config: the schedule and what it goes by.
        budget: of the training.
        step: steps made.
        seconds: time taken.
    """
    if config.schedule == "drops":
        return config.learning_rate * config.lr_drop_factor ** budget.falls(step, seconds)
    risen, fallen = budget.cosine(step, seconds)
    if risen < 1.0:
        return config.learning_rate * risen
    swing = 0.5 * (config.learning_rate - config.lr_end)
    return config.lr_end + swing * (1.0 + math.cos(math.pi * fallen))
