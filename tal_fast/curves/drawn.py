# SPDX-License-Identifier: Apache-2.0
"""The numbers of a picture of learning curves; :mod:`tal_fast.curves.drawing` draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tal_fast.curves.learning_curve import CEILING, LearningCurve, percent
from tal_fast.curves.tables import curve_dict, plain
from tal_fast.errors import ConfigError, DataError
from tal_fast.typing import Floats

__all__ = ["DrawnCurve", "drawn_curves", "drawn_dict"]

_POINTS = 160  # of a drawn line


@dataclass(frozen=True)
class DrawnCurve:
    """The numbers of one curve in a picture: mAP in points over p in percent.

    Attributes:
        curve: the measured curve.
        x: where the line is drawn, rising, [n].
        y: the line: median of all families, or one family where no repetitions are known, [n].
        low: lower end of the interval, from the largest measured p on, NaN before; all NaN where
            there is no interval, [n].
        high: its upper end, [n].
        family: the family drawn alone; None where all are.
        notes: what a reader has to know.
    """

    curve: LearningCurve
    x: Floats
    y: Floats
    low: Floats
    high: Floats
    family: str | None
    notes: tuple[str, ...]


def drawn_curves(
    curves: Sequence[LearningCurve],
    *,
    times: float | None = None,
    confidence: float = 0.9,
    draws: int = 1000,
    seed: int = 0,
) -> list[DrawnCurve]:
    """Returns what there is to draw of some curves.

    A curve that no shape can be laid through is drawn as points alone, and a note says why.

    Args:
        curves: measured curves.
        times: where the lines end, 1 being the full training set; a curve that was measured up to
            there or beyond ends where it was measured, as all do without it.
        confidence: of the intervals.
        draws: bootstrap draws per family.
        seed: of the draws.

    Raises:
        ConfigError: a setting is out of range, or ``times`` further beyond a curve than
            extrapolation goes.
    """
    from tal_fast.curves.ensemble import build_ensemble, require_spread
    from tal_fast.curves.extrapolation import check_confidence, check_times
    from tal_fast.curves.fit import LAST, fit_curve

    check_confidence(confidence)
    if times is not None and not 0.0 < times < math.inf:
        raise ConfigError(f"--times: expected a positive number, got {times:g}")
    drawn = []
    for curve in curves:
        first, last = (float(curve.share[i]) for i in (0, -1)) if len(curve) else (1.0, 1.0)
        end = last
        if times is not None and percent(times) > last:
            try:
                check_times(curve, times)
            except ConfigError as error:
                raise ConfigError(f"{curve.name}: {error}") from None
            end = percent(times)
        # The last measured p is a point of the line: there it turns from solid to dashed.
        x = np.geomspace(first, last, _POINTS)
        if end > last:
            x = np.append(x, np.geomspace(last, end, _POINTS)[1:])
        y, low, high = (np.full(len(x), math.nan) for _ in range(3))
        family, notes = None, []
        try:
            curve.require_rising()
            try:
                require_spread(curve)
                ensemble = build_ensemble(curve, replicates=draws, seed=seed)
                tail = (1.0 - confidence) / 2.0
                low, y, high = ensemble.quantiles(x, (tail, 0.5, 1.0 - tail))
                low, high = (np.where(x >= last, side, math.nan) for side in (low, high))
                notes += curve.remarks()
            except DataError:
                fit = fit_curve(curve)
                ranks = [name for name, _ in fit.backtest.ranking() if name != LAST]
                family = ranks[0] if ranks else fit.families[0].family.name
                points = next(
                    replicate for replicate in fit.replicates if replicate.family.name == family
                ).point
                y = np.clip(points(x)[0], 0.0, CEILING)
                notes += [*curve.remarks(), f"no interval; the line is {family} alone"]
        except DataError as error:
            notes.append(f"no line: {error}")
        drawn.append(DrawnCurve(curve, x, y, low, high, family, tuple(notes)))
    return drawn


def drawn_dict(drawn: Sequence[DrawnCurve]) -> list[dict[str, Any]]:
    """Returns the numbers of a picture for JSON."""
    return [
        {
            "curve": curve_dict(line.curve),
            "family": line.family,
            **plain({key: getattr(line, key).tolist() for key in ("x", "y", "low", "high")}),
            "notes": list(line.notes),
        }
        for line in drawn
    ]
