# SPDX-License-Identifier: Apache-2.0
"""The fits and extrapolations of a study's page as one picture, drawn from ``fits.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tal_fast.study.curve import Curve
from tal_fast.study.fits.line_styles import COLOURS, draw_levels
from tal_fast.study.picture import INK, LINE, label_panel, panel_figure

__all__ = ["fits_picture"]


def _draw_measured(axes: Any, curve: Curve) -> None:
    draw_levels(
        axes,
        [100 * point.fraction for point in curve.points],
        [100 * point.mean for point in curve.points],
        [100 * (point.deviation or 0.0) for point in curve.points],
        "measured, ± sd",
    )


def _draw_extrapolation(axes: Any, drawing: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    percent = f"{100 * found['confidence']:.0f} % interval"
    x, share = drawing["x"], found["share"]
    axes.fill_between(
        x, drawing["low"], drawing["high"], color=LINE, alpha=0.16, linewidth=0, label=percent
    )
    axes.plot(x, drawing["median"], color=LINE, linewidth=2.2, label="all families")
    last = share / found["times_largest_p"]
    axes.plot(
        [last, share],
        [found["last_value"]] * 2,
        color=INK,
        linestyle=COLOURS["last1"][1],
        linewidth=1.5,
        label="last value",
    )
    tested = found["backtest_reaches"] * last
    if share > tested * 1.001:
        axes.axvspan(tested, share, color=INK, alpha=0.06, linewidth=0, label="beyond the backtest")


def fits_picture(
    curves: Sequence[tuple[str, Curve, Mapping[str, Any]]],
) -> tuple[Any, list[str]]:
    """Draws a panel per curve: data, the families that predicted best, the extrapolation.

    Args:
        curves: title, curve and what :func:`~tal_fast.study.report.fit_section.fit_curves` found of
            it, a drawing among that.

    Returns:
        A figure of panels, and what each panel shows.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    most = max(len(found["drawing"]["families"]) for *_, found in curves)
    figure, panels = panel_figure(len(curves), lines=most + 5)
    tops = [
        max(
            *(100 * (point.mean + (point.deviation or 0.0)) for point in curve.points),
            *found["drawing"].get("high", [0.0]),
        )
        for _, curve, found in curves
    ]
    for axes, (title, curve, found) in zip(panels, curves, strict=True):
        drawing, extrapolation = found["drawing"], found["extrapolation"]
        _draw_measured(axes, curve)
        if extrapolation is not None:
            _draw_extrapolation(axes, drawing, extrapolation)
        names = {row["family"]: row["title"] for row in found["fit"]["families"]}
        for family, y in drawing["families"].items():
            colour, dashes = COLOURS[family]
            axes.plot(
                drawing["x"],
                y,
                color=colour,
                linestyle=dashes,
                linewidth=1.3,
                label=names[family],
            )
        axes.set_xlim(0, 1.02 * drawing["x"][-1])
        axes.set_ylim(0, min(100.0, 1.06 * max(tops)))
        label_panel(axes, title, "training data (% of the full set)", "mAP (points)")
    return figure, [f"Fits and extrapolation: {title}" for title, *_ in curves]
