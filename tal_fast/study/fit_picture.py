# SPDX-License-Identifier: Apache-2.0
"""Fits as a picture: the curve with its families, and what each would have predicted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tal_fast.study.curve_fit import LAST, CurveFit
from tal_fast.study.learning_curve import LearningCurve
from tal_fast.study.picture import GRID, INK, PAPER, blank_figure

__all__ = ["COLOURS", "draw_measured", "fit_picture"]

# One colour per family, the same in every picture, told apart in grey and by colour-blind eyes by
# the dashes.
COLOURS: dict[str, tuple[str, Any]] = {
    "wbl4": ("#1f5fbf", "-"),
    "mmf4": ("#1f9e9a", (0, (6, 2))),
    "pow4": ("#5aa02c", (0, (4, 1, 1, 1))),
    "hill": ("#7a3b8f", (0, (2, 1))),
    "pow3": ("#c77d0a", "-"),
    "exp3": ("#b5402a", (0, (6, 2))),
    "bnsl1": ("#16307a", (0, (1, 1))),
    "log2": ("#8a6d3b", (0, (4, 1, 1, 1))),
    "gompertz": ("#d0527f", (0, (2, 1))),
    "logistic": ("#707782", (0, (6, 2, 1, 2))),
    LAST: ("#1a1c20", (0, (1, 3))),
}


def draw_measured(axes: Any, curve: LearningCurve) -> None:
    """Draws the levels with one standard deviation, and every draw that is known as a dot."""
    axes.errorbar(
        curve.share,
        curve.mean,
        yerr=np.nan_to_num(curve.deviation),
        linestyle="none",
        marker="o",
        markersize=4.5,
        capsize=2,
        elinewidth=1,
        color=INK,
        zorder=5,
        label="measured, ± 1 standard deviation",
    )
    dots = [(x, v) for x, level in zip(curve.share, curve.values, strict=True) for v in level]
    if dots:
        axes.plot(
            [dot[0] for dot in dots],
            [dot[1] for dot in dots],
            linestyle="none",
            marker="o",
            markersize=2.5,
            alpha=0.45,
            color=INK,
            markeredgewidth=0,
            zorder=4,
        )


def _legend(axes: Any, **where: Any) -> None:
    axes.legend(
        facecolor=PAPER, edgecolor="none", framealpha=0.85, labelcolor=INK, fontsize=8.5, **where
    )


def fit_picture(fit: CurveFit) -> Any:
    """Draws a fitted curve.

    Left: measured levels and families, the best residual first in the legend. Right: the backtest's
    error over all later levels, for every q.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure, (left, right) = blank_figure(2, size=(10.2, 4.3))
    curve, tests = fit.curve, fit.backtest
    x = np.geomspace(curve.share[0], 100.0, 300)
    points = {one.family.name: one for one in fit.replicates}
    for one in fit.families:
        colour, dash = COLOURS[one.family.name]
        left.plot(
            x,
            points[one.family.name].point(x)[0],
            color=colour,
            linestyle=dash,
            linewidth=1.5,
            label=f"{one.family.title} ({one.rmse:.2f})",
        )
    draw_measured(left, curve)
    left.set_xlim(0, 104)
    left.set_ylim(bottom=0.0)
    left.set_xlabel("share of the training videos (%)", color=INK)
    left.set_ylabel("mAP (points)", color=INK)
    left.set_title(f"{curve.name}: fits (RMSE)", color=INK, fontsize=11, loc="left")
    _legend(left, loc="lower right", ncols=2)
    for name, score in tests.ranking():
        errors = tests.errors[name]
        known = ~np.isnan(errors).all(1)
        rmse = [math.sqrt(float(np.nanmean(row**2))) for row in errors[known]]
        colour, dash = COLOURS[name]
        right.plot(
            curve.share[tests.cuts[known] - 1],
            rmse,
            color=colour,
            linestyle=dash,
            linewidth=1.5,
            marker="o",
            markersize=2.5,
            label=f"{'last value' if name == LAST else name} ({score:.2f})",
        )
    right.set_yscale("log")
    right.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    right.set_xlim(0, 104)
    right.grid(True, which="minor", color=GRID, linewidth=0.3)
    right.set_xlabel("fitted to p up to q (%)", color=INK)
    right.set_ylabel("RMSE of predicting the rest (points)", color=INK)
    right.set_title("backtest (over the common q)", color=INK, fontsize=11, loc="left")
    if right.lines:
        _legend(right, loc="best", ncols=2)
    else:
        right.text(50, 1, "too few levels for a backtest", ha="center", color=INK)
    return figure
