# SPDX-License-Identifier: Apache-2.0
"""Questions asked of curves, how the answers fared, and the factor that follows from them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["BANDS", "GRID", "METHODS", "TARGET", "Choice", "Tally", "choose_factor", "coverage_of"]

BANDS = (1.25, 1.5, 2.0, 3.0, 5.0)
"""Ends of the ranges of p / q that are counted apart."""

METHODS = ("best", "families", "before", "ensemble", "left_out")
"""``best``: bootstrap of the family of the lowest RMSE alone. ``families``: all, weighted by the
backtest. ``before``: these and the drift, the rule that `extrapolate` had first. ``ensemble``: what
it says. ``left_out``: the same without the family that made the curve (synthetic curves), or with
the factor that all other groups would have given (measured ones)."""

GRID = tuple(round(0.05 * step, 2) for step in range(6, 27))
"""Factors that the choice looks at: 0.3 to 1.3."""

TARGET = 0.9
"""Coverage that the factor has to come nearest to: that which is promised."""


@dataclass
class Tally:
    """Questions asked of one source of curves, and how the answers fared.

    Attributes:
        source: where the curves come from; those of one source hang together.
        synthetic: they were made here.
        curves: curves, or beginnings of a curve, that were asked.
        ratio: amount of data asked about over the largest p known, per question.
        held: method -> did the interval hold what came, per question.
        width: method -> width of the interval in points, per question.
        above: did what came lie above the interval of ``ensemble``, per question.
        error: distance of the ensemble's median from what came, points, per question.
        last_error: distance of the last value from what came, points, per question.
        alone: family -> did the interval of its bootstrap alone hold what came.
        factors: factor -> would the interval with it have held what came, per question; for
            synthetic curves without the family that made them.
        refused: beginnings that no shape can be laid through.
    """

    source: str
    synthetic: bool
    curves: int = 0
    ratio: list[float] = field(default_factory=list)
    held: dict[str, list[bool]] = field(default_factory=dict)
    width: dict[str, list[float]] = field(default_factory=dict)
    above: list[bool] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    last_error: list[float] = field(default_factory=list)
    alone: dict[str, list[bool]] = field(default_factory=dict)
    factors: dict[float, list[bool]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Takes in the questions of another source."""
        self.curves += other.curves
        for name in ("ratio", "above", "error", "last_error", "refused"):
            getattr(self, name).extend(getattr(other, name))
        for name in ("held", "width", "alone", "factors"):
            mine = getattr(self, name)
            for key, values in getattr(other, name).items():
                mine.setdefault(key, []).extend(values)

    def coverage(self, method: str, inside: Sequence[bool] | None = None) -> float:
        """Returns the share of questions whose answer held, NaN if none was asked.

        Args:
            method: one of :data:`METHODS`.
            inside: which questions count; all for None.
        """
        held = np.array(self.held.get(method, []), dtype=bool)
        if inside is not None and len(held):
            held = held[np.asarray(inside)]
        return float(held.mean()) if len(held) else math.nan

    def median_width(self, method: str) -> float:
        """Returns the median width in points, NaN if none was asked."""
        width = self.width.get(method, [])
        return float(np.median(width)) if width else math.nan

    def relative_width(self, inside: Sequence[bool] | None = None) -> float:
        """Returns the mean width of ``ensemble`` over that of ``before``, NaN if none was asked."""
        if not self.ratio:
            return math.nan
        ratio = np.array(self.width["ensemble"]) / np.array(self.width["before"])
        ratio = ratio if inside is None else ratio[np.asarray(inside)]
        return float(ratio.mean()) if len(ratio) else math.nan

    def bands(self) -> list[tuple[str, list[bool]]]:
        """Returns the ranges of p / q, and which questions lie in each."""
        ratio = np.array(self.ratio)
        return [
            (f"x{low:g} to x{high:g}", ((ratio > low + 1e-9) & (ratio <= high + 1e-9)).tolist())
            for low, high in zip((1.0, *BANDS), BANDS, strict=False)
        ]


@dataclass(frozen=True)
class Choice:
    """The factor, and what it would have been without each group.

    Attributes:
        factor: from all curves.
        without: measured group -> the same without it.
    """

    factor: float
    without: dict[str, float]


def coverage_of(tallies: Collection[Tally], factor: float) -> float:
    """Returns the coverage with a factor, every measured group and every family weighing the same.

    Where there are both, measured groups together weigh as much as synthetic families together.
    """
    kinds = []
    for synthetic in (True, False):
        some = [t.factors[factor] for t in tallies if t.ratio and t.synthetic is synthetic]
        if some:
            kinds.append(np.mean([np.mean(held) for held in some]))
    return float(np.mean(kinds))


def _nearest(tallies: Collection[Tally]) -> float:
    return min(GRID, key=lambda factor: abs(coverage_of(tallies, factor) - TARGET))


def choose_factor(tallies: Sequence[Tally]) -> Choice | None:
    """Returns the factor whose intervals hold most nearly :data:`TARGET` of what came.

    Groups count, not questions: those about one group hang together, and one curve may have most
    of them.

    Args:
        tallies: one per measured group, and one per family of synthetic curves.

    Returns:
        The choice; None for fewer than two measured groups with questions.
    """
    measured = [tally for tally in tallies if tally.ratio and not tally.synthetic]
    if len(measured) < 2:
        return None
    without = {
        tally.source: _nearest([other for other in tallies if other is not tally])
        for tally in measured
    }
    return Choice(_nearest(tallies), without)
