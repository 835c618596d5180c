# SPDX-License-Identifier: Apache-2.0
"""Fits, extrapolations and plans as pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tal_fast.curves.figures import (
    GRID,
    INK,
    LINE,
    blank_figure,
    label_panel,
    legend,
    panel_figure,
)
from tal_fast.curves.learning_curve import CEILING, LAST, LearningCurve, percent
from tal_fast.curves.tables import band_name

if TYPE_CHECKING:  # scipy comes with them, and fits that were kept are drawn without
    from tal_fast.curves.ensemble import Ensemble
    from tal_fast.curves.fit import CurveFit, Replicates
    from tal_fast.curves.planning import TargetPlan

__all__ = ["extrapolation_picture", "fit_picture", "fits_picture", "lines_of", "target_picture"]

# One colour per family, the same in every picture, told apart in grey and by colour-blind eyes by
# the dashes.
COLOURS: dict[str, tuple[str, Any]] = {
    "wbl4": ("#00a0c8", "-"),
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
_POINTS = 80  # of a drawn line
_DATA = "training data (% of the full set)"
_MAP = "mAP (points)"


def _family(axes: Any, name: str, x: Any, y: Any, label: str, **style: Any) -> None:
    colour, dashes = COLOURS[name]
    axes.plot(x, y, color=colour, linestyle=dashes, label=label, **{"linewidth": 1.5, **style})


def _measured(axes: Any, curve: LearningCurve, *, dots: bool) -> None:
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
        label="measured, ± sd",
    )
    draws = [(point.share, value) for point in curve.points for value in point.draws]
    if dots and draws:
        axes.plot(
            *zip(*draws, strict=True),
            linestyle="none",
            marker="o",
            markersize=2.5,
            alpha=0.45,
            color=INK,
            markeredgewidth=0,
            zorder=4,
        )


def lines_of(
    curve: LearningCurve,
    fits: Sequence[Replicates],
    ensemble: Ensemble | None,
    share: float,
    confidence: float,
) -> dict[str, Any]:
    """Returns the lines of a picture as plain numbers: mAP in points over p in percent.

    Args:
        curve: the measured curve.
        fits: the families to draw.
        ensemble: for the extrapolation; None where there is none.
        share: where the lines end, in percent.
        confidence: of the interval.

    Returns:
        ``x``, ``families`` (name -> y) and, with an ensemble, ``low``, ``median`` and ``high``.
    """
    x = np.geomspace(curve.share[0], share, _POINTS)
    lines: dict[str, Any] = {
        "x": x.tolist(),
        "families": {
            fit.family.name: np.clip(fit.point(x)[0], 0.0, CEILING).tolist() for fit in fits
        },
    }
    if ensemble is not None:
        tail = (1.0 - confidence) / 2.0
        low, median, high = ensemble.quantiles(x, (tail, 0.5, 1.0 - tail))
        lines |= {"low": low.tolist(), "median": median.tolist(), "high": high.tolist()}
    return lines


def _extrapolation(
    axes: Any,
    curve: LearningCurve,
    lines: Mapping[str, Any],
    extrapolation: Mapping[str, Any] | None,
    labels: Mapping[str, str],
    *,
    dots: bool,
) -> None:
    """Draws what is known of a curve: levels, families, and what more data may bring.

    Args:
        axes: the panel.
        curve: the measured curve.
        lines: from :func:`lines_of`.
        extrapolation: from :func:`~tal_fast.curves.tables.extrapolation_dict`; None where there is
            none.
        labels: family -> its name in the legend.
        dots: whether every draw is a dot.
    """
    x = lines["x"]
    _measured(axes, curve, dots=dots)
    if extrapolation is not None:
        band = f"{band_name(extrapolation['confidence'])} interval"
        axes.fill_between(
            x, lines["low"], lines["high"], color=LINE, alpha=0.16, linewidth=0, label=band
        )
        axes.plot(x, lines["median"], color=LINE, linewidth=2.2, label="all families")
        share = extrapolation["share"]
        last = share / extrapolation["times_largest_p"]
        value = [extrapolation["last_value"]] * 2
        _family(axes, LAST, [last, share], value, "last value")
        tested = extrapolation["backtest_reaches"] * last
        if share > tested * 1.001:
            label = "beyond the backtest"
            axes.axvspan(tested, share, color=INK, alpha=0.06, linewidth=0, label=label)
    for name, y in lines["families"].items():
        _family(axes, name, x, y, labels[name], linewidth=1.3)
    axes.set_xlim(0, 1.02 * x[-1])


def _top(curve: LearningCurve, lines: Mapping[str, Any]) -> float:
    return max(*(curve.mean + np.nan_to_num(curve.deviation)), *lines.get("high", [0.0]))


def fits_picture(
    curves: Sequence[tuple[str, LearningCurve, Mapping[str, Any]]],
) -> tuple[Any, list[str]]:
    """Draws a panel per curve: data, the families that predicted best, the extrapolation.

    Args:
        curves: title, curve and what was found of it: ``drawing`` (:func:`lines_of`),
            ``extrapolation`` and ``fit`` (:mod:`tal_fast.curves.tables`).

    Returns:
        A figure of panels, and what each panel shows.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    most = max(len(found["drawing"]["families"]) for *_, found in curves)
    figure, panels = panel_figure(len(curves), lines=most + 5)
    top = max(_top(curve, found["drawing"]) for _, curve, found in curves)
    for axes, (title, curve, found) in zip(panels, curves, strict=True):
        names = {row["family"]: row["title"] for row in found["fit"]["families"]}
        _extrapolation(axes, curve, found["drawing"], found["extrapolation"], names, dots=False)
        axes.set_ylim(0, min(CEILING, 1.06 * top))
        label_panel(axes, title, _DATA, _MAP)
    return figure, [f"Fits and extrapolation: {title}" for title, *_ in curves]


def extrapolation_picture(ensemble: Ensemble, extrapolation: Mapping[str, Any]) -> Any:
    """Draws an extrapolation: interval of the ensemble, families by weight, and how far was tested.

    Args:
        ensemble: that answered.
        extrapolation: the answer, from :func:`~tal_fast.curves.tables.extrapolation_dict`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from tal_fast.curves.families import FAMILIES

    figure, (axes,) = blank_figure(size=(8.2, 4.2))
    curve = ensemble.curve
    lines = lines_of(
        curve, ensemble.fits, ensemble, extrapolation["share"], extrapolation["confidence"]
    )
    labels = {
        row["family"]: f"{FAMILIES[row['family']].title} ({row['weight']:.2f})"
        for row in extrapolation["families"]
    }
    _extrapolation(axes, curve, lines, extrapolation, labels, dots=True)
    axes.set_ylim(0, min(CEILING, 1.08 * _top(curve, lines)))
    low, high = extrapolation["interval"]
    title = f"{curve.name}: {extrapolation['map']:.1f} ({low:.1f} to {high:.1f})"
    _titled(axes, f"{title} at {extrapolation['share']:g} % of the data", _DATA, _MAP)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside right upper",
        frameon=False,
        labelcolor=INK,
        fontsize=8.5,
    )
    return figure


def _titled(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, color=INK, fontsize=11, loc="left")
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)


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
    points = {replicate.family.name: replicate for replicate in fit.replicates}
    for family_fit in fit.families:
        name = family_fit.family.name
        _family(
            left,
            name,
            x,
            points[name].point(x)[0],
            f"{family_fit.family.title} ({family_fit.rmse:.2f})",
        )
    _measured(left, curve, dots=True)
    left.set_xlim(0, 104)
    left.set_ylim(bottom=0.0)
    _titled(left, f"{curve.name}: fits (RMSE)", _DATA, _MAP)
    legend(left, loc="lower right", ncols=2, fontsize=8.5)
    for name, score in tests.ranking():
        errors = tests.errors[name]
        known = ~np.isnan(errors).all(1)
        rmse = [math.sqrt(float(np.nanmean(row**2))) for row in errors[known]]
        label = f"{'last value' if name == LAST else name} ({score:.2f})"
        q = curve.share[tests.cuts[known] - 1]
        _family(right, name, q, rmse, label, marker="o", markersize=2.5)
    right.set_yscale("log")
    right.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    right.set_xlim(0, 104)
    right.grid(True, which="minor", color=GRID, linewidth=0.3)
    _titled(
        right,
        "backtest (over the common q)",
        "fitted to p up to q (%)",
        "RMSE of predicting the rest (points)",
    )
    if right.lines:
        legend(right, loc="best", ncols=2, fontsize=8.5)
    else:
        right.text(50, 1, "too few levels for a backtest", ha="center", color=INK)
    return figure


def target_picture(plan: TargetPlan, name: str) -> Any:
    """Draws the chance of a target against the amount of data.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure, (axes,) = blank_figure()
    axes.axvspan(plan.share[0], plan.largest, color=INK, alpha=0.06, linewidth=0, label="measured")
    axes.plot(plan.share, percent(plan.probability), color=LINE, linewidth=2)
    for chance, share in plan.needed.items():
        if share is not None:
            axes.plot([share], [percent(chance)], "o", color=INK, markersize=5)
            axes.annotate(
                f" {share:.0f} %", (share, percent(chance)), color=INK, fontsize=10, va="top"
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set_ylim(0, 102)
    _titled(
        axes,
        f"{name}: how much data for mAP {plan.target:g}",
        _DATA,
        f"chance of mAP {plan.target:g} (%)",
    )
    legend(axes, loc="best", fontsize=8.5)
    return figure
