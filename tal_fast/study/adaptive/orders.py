# SPDX-License-Identifier: Apache-2.0
"""Which of two models is better at 100 %, looked at again after every training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tal_fast.study.adaptive.beliefs import LOOKS, PART, Belief, quantile

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """Two means at 100 %.

    Attributes:
        difference: the first minus the second, points.
        error: standard error of that.
        verdict: ``first``, ``second``, ``tie`` or ``open``.
        needs_first: whether a training of the first model tells more per second, or half as much.
        error_needed: standard error of the first mean that would decide it, that of the second
            being what it is; 0 if none would.
    """

    difference: float
    error: float
    verdict: str
    needs_first: bool
    error_needed: float

    @property
    def decided(self) -> bool:
        """Whether they can be told apart, or are a tie."""
        return self.verdict != "open"

    def words(self, first: str, second: str) -> str:
        """Returns the verdict for people."""
        size = f"{abs(self.difference):.2f} ± {self.error:.2f} (s.e.)"
        leads, follows = (first, second) if self.difference >= 0.0 else (second, first)
        if self.verdict in ("first", "second"):
            return f"at 100 % {leads} leads {follows} by {size}"
        if self.verdict == "tie":
            return f"{first} and {second} cannot be told apart at 100 %: {size}"
        return f"not decided yet: at 100 % {leads} leads {follows} by {size}"


def compare(
    first: Belief,
    second: Belief,
    tie: float,
    confidence: float,
    *,
    pairs: int = 1,
    looks: int = LOOKS,
    prices: tuple[float, float] = (1.0, 1.0),
) -> Comparison:
    """Compares two means.

    Args:
        first: of one model.
        second: of the other.
        tie: points within which a difference is none.
        confidence: that all verdicts together are right.
        pairs: how many verdicts there are.
        looks: into how many parts the error is split.
        prices: of one more training of each.
    """
    difference = first.value - second.value
    error, freedom = _error(first, second)
    wrong = (1.0 - confidence) / pairs
    level = 1.0 - wrong / looks
    sure = quantile(level, freedom)
    # A tie is found by a narrow interval and not by a large difference: half the error is enough.
    calm = sure if looks == 1 else quantile(1.0 - wrong * PART, freedom)
    verdict = "open"
    if abs(difference) >= sure * error:
        verdict = "first" if difference > 0.0 else "second"
    elif abs(difference) + calm * error <= tie:
        verdict = "tie"
    gains = []
    for more, price in (((1, 0), prices[0]), ((0, 1), prices[1])):
        then = _error(first.with_more(more[0]), second.with_more(more[1]))
        gains.append((sure * error - quantile(level, then[1]) * then[0]) / price)
    # Not at once where the other gains a little more: who changes between two studies loses time.
    needs_first = 2.0 * gains[0] >= gains[1]
    # Either the difference, or what it lacks to the tie, has to be so many errors.
    enough = max(abs(difference) / sure, (tie - abs(difference)) / calm)
    rest = max(0.0, enough**2 - second.error**2)
    return Comparison(difference, error, verdict, needs_first, math.sqrt(rest))


def _error(first: Belief, second: Belief) -> tuple[float, float]:
    """Returns the standard error of the difference and its degrees of freedom (Welch's)."""
    variances = first.error**2, second.error**2
    variance = sum(variances)
    parts = [
        own**2 / belief.freedom for own, belief in zip(variances, (first, second), strict=True)
    ]
    return math.sqrt(variance), variance**2 / sum(parts) if sum(parts) > 0.0 else math.inf
