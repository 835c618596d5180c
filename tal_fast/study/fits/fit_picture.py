# SPDX-License-Identifier: Apache-2.0
"""Fits, extrapolations and plans as pictures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tal_fast.study.fits.curve_fit import LAST, CurveFit
from tal_fast.study.fits.extrapolation import Ensemble, Extrapolation
from tal_fast.study.fits.learning_curve import LearningCurve
from tal_fast.study.fits.line_styles import COLOURS, draw_levels
from tal_fast.study.fits.planning import TargetPlan
from tal_fast.study.picture import GRID, INK, LINE, blank_figure, legend

__all__ = ["draw_measured", "extrapolation_picture", "fit_picture", "target_picture"]


def draw_measured(axes: Any, curve: LearningCurve) -> None:
    """Draws the levels with one standard deviation, and every draw that is known as a dot."""
    draw_levels(
        axes,
        curve.share,
        curve.mean,
        np.nan_to_num(curve.deviation),
        "measured, ± 1 standard deviation",
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
    legend(axes, fontsize=8.5, **where)


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


def extrapolation_picture(ensemble: Ensemble, found: Extrapolation) -> Any:
    """Draws an extrapolation: bands of the ensemble, families by weight, and how far was tested.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure, (axes,) = blank_figure(size=(8.2, 4.2))
    curve = found.curve
    x = np.geomspace(curve.share[0], found.share, 200)
    tail = (1.0 - found.confidence) / 2.0
    low, quarter, middle, upper, high = ensemble.quantiles(x, (tail, 0.25, 0.5, 0.75, 1.0 - tail))
    band = f"{found.confidence:.0%}".replace("%", " %")
    axes.fill_between(x, low, high, color=LINE, alpha=0.14, linewidth=0, label=f"{band} interval")
    axes.fill_between(x, quarter, upper, color=LINE, alpha=0.22, linewidth=0, label="50 % interval")
    fits = {fit.family.name: fit for fit in ensemble.fits}
    for member in found.members:
        colour, dash = COLOURS[member.family.name]
        axes.plot(
            x,
            np.clip(fits[member.family.name].point(x)[0], 0.0, 100.0),
            color=colour,
            linestyle=dash,
            linewidth=1.1,
            label=f"{member.family.title} ({member.weight:.2f})",
        )
    axes.plot(x, middle, color=LINE, linewidth=2.2, label="median of all")
    axes.plot(
        [curve.share[-1], found.share],
        [found.last] * 2,
        color=INK,
        linestyle=(0, (1, 2)),
        linewidth=1.4,
        label="last value",
    )
    draw_measured(axes, curve)
    tested = found.reach * curve.share[-1]
    if found.share > tested * 1.001:
        axes.axvspan(tested, found.share, color=INK, alpha=0.06, linewidth=0)
        axes.text(
            found.share, 1.5, "beyond this curve's own backtest ", ha="right", color=INK, fontsize=9
        )
    axes.set_xlim(0, found.share * 1.02)
    top = max(float(high.max()), float(curve.mean.max()))
    axes.set_ylim(0, min(100.0, 1.08 * top))
    axes.set_xlabel("training videos (% of the full set)", color=INK)
    axes.set_ylabel("mAP (points)", color=INK)
    title = f"{curve.name}: {found.value:.1f} ({found.interval[0]:.1f} to {found.interval[1]:.1f})"
    axes.set_title(f"{title} at {found.share:g} % of the data", color=INK, fontsize=11, loc="left")
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside right upper",
        frameon=False,
        labelcolor=INK,
        fontsize=8.5,
    )
    return figure


def target_picture(plan: TargetPlan, name: str) -> Any:
    """Draws the chance of a target against the amount of data.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure, (axes,) = blank_figure()
    axes.axvspan(plan.share[0], plan.largest, color=INK, alpha=0.06, linewidth=0, label="measured")
    axes.plot(plan.share, 100.0 * plan.probability, color=LINE, linewidth=2)
    for chance, share in plan.needed.items():
        if share is not None:
            axes.plot([share], [100.0 * chance], "o", color=INK, markersize=5)
            axes.annotate(
                f" {share:.0f} %", (share, 100.0 * chance), color=INK, fontsize=10, va="top"
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set_ylim(0, 102)
    axes.set_xlabel("training videos (% of the full set)", color=INK)
    axes.set_ylabel(f"chance of mAP {plan.target:g} (%)", color=INK)
    axes.set_title(f"{name}: how much data for mAP {plan.target:g}", color=INK, loc="left")
    _legend(axes, loc="best")
    return figure
