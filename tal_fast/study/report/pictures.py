# SPDX-License-Identifier: Apache-2.0
"""The curves of a study and their differences as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tal_fast.curves import CurvePoint, LearningCurve
from tal_fast.curves.figures import (
    INK,
    LEVEL_COLOURS,
    LINE,
    SERIES,
    blank_figure,
    label_panel,
    legend,
    panel_figure,
)
from tal_fast.study.report.comparison import Comparison, key_of
from tal_fast.study.results import curve_name

__all__ = [
    "comparison_picture",
    "curve_panels",
    "curve_picture",
    "curves_picture",
    "shows_all_dots",
    "shown_dots",
    "tiou_picture",
]

_DATA = "share of the training data (%)"
# More lines than this in one panel hide each other; so do more dots than these.
_MOST_LINES = 4
_MOST_DOTS = 1500


def _share_of_dots(curves: int, levels: int) -> int:
    """Returns how many dots a level gets: at least two."""
    return max(2, _MOST_DOTS // max(1, curves * levels))


def shows_all_dots(curves: Sequence[LearningCurve]) -> bool:
    """Returns whether every trial of the curves has its dot in their picture."""
    return all(
        len(point.trainings) <= _share_of_dots(len(curves), len(curve.points))
        for curve in curves
        for point in curve.points
    )


def shown_dots(points: Sequence[CurvePoint], curves: int = 1) -> list[tuple[float, float]]:
    """Returns the trials to draw as (p in percent, mAP in points).

    Where a level has more than its share of a picture's dots, those that stay are spread evenly
    over the ranks of its trials, so that the extremes and the density stay as they are.

    Args:
        points: the curve.
        curves: how many curves the picture has.
    """
    share = _share_of_dots(curves, len(points))
    dots = []
    for point in points:
        values = sorted(point.trainings)
        if len(values) > share:
            last = len(values) - 1
            values = [values[round(last * rank / (share - 1))] for rank in range(share)]
        dots += [(point.share, value) for value in values]
    return dots


def _limits(axes: Any, curves: Sequence[Sequence[CurvePoint]]) -> None:
    """Sets limits that are the same for all panels of a picture.

    From zero, so that differences keep their true size; never cut off.
    """
    tops = [
        max(*point.trainings, point.mean + (point.deviation or 0.0))
        for points in curves
        for point in points
    ]
    axes.set_xlim(0, 104)
    axes.set_ylim(0, max(min(1.06 * max(tops), 100.0), 5.0))


def _labels(axes: Any, title: str, size: float) -> None:
    axes.set_xlabel(_DATA, color=INK, fontsize=size)
    axes.set_ylabel("mAP (points)", color=INK, fontsize=size)
    axes.set_title(title, color=INK, fontsize=size, loc="left")


def _band(axes: Any, points: Sequence[CurvePoint], colour: str, alpha: float, label: str) -> None:
    if any(point.deviation is not None for point in points):
        x = [point.share for point in points]
        mean = [point.mean for point in points]
        spread = [point.deviation or 0.0 for point in points]
        axes.fill_between(
            x,
            [max(0.0, m - s) for m, s in zip(mean, spread, strict=True)],
            [m + s for m, s in zip(mean, spread, strict=True)],
            color=colour,
            alpha=alpha,
            linewidth=0,
            label=label,
        )


def _dots(axes: Any, dots: Sequence[tuple[float, float]], **style: Any) -> None:
    axes.plot(
        [dot[0] for dot in dots],
        [dot[1] for dot in dots],
        linestyle="none",
        marker="o",
        markeredgewidth=0,
        **style,
    )


def _thresholds(points: Sequence[CurvePoint]) -> str:
    keys = sorted(points[0].per_tiou, key=float) if points else []
    return f" over tIoU {keys[0]} to {keys[-1]}" if keys else ""


def curve_picture(points: Sequence[CurvePoint], *, model: str = "") -> Any:
    """Draws average mAP against p.

    Args:
        points: the curve.
        model: what was trained on what, for the second line of the title.

    Returns:
        A matplotlib figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure, (axes,) = blank_figure()
    _band(axes, points, LINE, 0.18, "± 1 standard deviation")
    x = [point.share for point in points]
    axes.plot(x, [point.mean for point in points], color=LINE, linewidth=2, label="mean")
    dots = shown_dots(points)
    _dots(axes, dots, markersize=4, alpha=0.65, color=INK, label="one trial")
    _limits(axes, [points])
    title = f"Average mAP{_thresholds(points)}"
    _labels(axes, f"{title}\n{model}" if model else title, 12)
    legend(axes, fontsize=10)
    return figure


def curve_panels(curves: Sequence[LearningCurve]) -> list[tuple[str, list[LearningCurve]]]:
    """Returns which curves share a panel, by the title of each.

    All of them where they are few; else one panel per sampling and budget with a line per mode of
    averaging, or per sampling with a line per budget where there is one mode.
    """
    if len(curves) <= _MOST_LINES:
        return [("", list(curves))]
    modes = len({curve.labels["ema"] for curve in curves})
    groups: dict[tuple[str, ...], list[LearningCurve]] = {}
    for curve in curves:
        sampling, budget, _ = key_of(curve)
        key = (sampling, budget) if modes > 1 else (sampling,)
        groups.setdefault(key, []).append(curve)
    heads = [group[0] for group in groups.values()]
    if modes == 1:
        return [(group[0].labels["sampling"], group) for group in groups.values()]
    return [
        (curve_name(head, heads), group) for head, group in zip(heads, groups.values(), strict=True)
    ]


def curves_picture(curves: Sequence[LearningCurve], *, model: str = "") -> tuple[Any, list[str]]:
    """Draws all curves of a study, comparable with each other.

    Args:
        curves: more than one.
        model: what was trained on what.

    Returns:
        A figure of panels, and what each panel shows.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    panels = curve_panels(curves)
    figure, rows = panel_figure(len(panels), lines=max(len(group) for _, group in panels))
    for axes, (name, group) in zip(rows, panels, strict=True):
        for index, curve in enumerate(group):
            colour, dashes, marker = SERIES[index % len(SERIES)]
            _band(axes, curve.points, colour, 0.13, "")
            dots = shown_dots(curve.points, len(curves))
            _dots(axes, dots, markersize=2.4, alpha=0.4, color=colour)
            axes.plot(
                curve.share,
                curve.mean,
                color=colour,
                linestyle=dashes,
                marker=marker,
                markersize=5,
                linewidth=1.9,
                label=curve_name(curve, group) or "mean",
            )
        _limits(axes, [curve.points for curve in curves])
        title = name or model or f"Average mAP{_thresholds(group[0].points)}"
        label_panel(axes, title, _DATA, "mAP (points)")
    return figure, [f"Average mAP against p: {name or model}" for name, _ in panels]


def tiou_picture(points: Sequence[CurvePoint], *, model: str = "") -> Any:
    """Draws mAP at each tIoU threshold against p; arguments, result and errors as above."""
    figure, (axes,) = blank_figure()
    keys = sorted({key for point in points for key in point.per_tiou}, key=float)
    for index, key in enumerate(keys):
        having = [point for point in points if key in point.per_tiou]
        spread = [point.per_tiou[key][1] or 0.0 for point in having]
        axes.errorbar(
            [point.share for point in having],
            [point.per_tiou[key][0] for point in having],
            yerr=spread if any(spread) else None,
            color=LEVEL_COLOURS[index % len(LEVEL_COLOURS)],
            linewidth=1.8,
            linestyle=SERIES[index % len(SERIES)][1],
            elinewidth=1,
            capsize=2,
            marker=SERIES[index % len(SERIES)][2],
            markersize=4,
            label=f"tIoU {key}",
        )
    axes.set_xlim(0, 104)
    axes.set_ylim(bottom=0.0)
    low, high = axes.get_ylim()
    axes.set_ylim(low, max(min(high, 100.0), 5.0))
    title = "mAP at each tIoU, ± 1 standard deviation"
    _labels(axes, f"{title}\n{model}" if model else title, 12)
    legend(axes, fontsize=10)
    return figure


def comparison_picture(
    panels: Sequence[tuple[str, str, Sequence[tuple[str, Comparison]]]], *, first: int = 0
) -> Any:
    """Draws differences against p, one panel per group of comparisons, on one scale.

    Args:
        panels: title of a panel, what its axis says, and its lines with their names.
        first: which of the line styles is the first line's, so that a curve looks the same in all
            pictures of a study.

    Returns:
        A figure of panels.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure, rows = panel_figure(len(panels), lines=max(len(lines) for *_, lines in panels))
    ends = [
        difference.mean + sign * (difference.error or 0.0)
        for _, _, lines in panels
        for _, comparison in lines
        for difference in comparison.differences
        for sign in (-1.0, 1.0)
    ]
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = 0.08 * max(high - low, 1.0)
    for axes, (title, label, lines) in zip(rows, panels, strict=True):
        axes.axhline(0.0, color=INK, linewidth=1)
        for index, (name, comparison) in enumerate(lines):
            colour, dashes, marker = SERIES[(first + index) % len(SERIES)]
            # A small shift keeps the bars of several lines apart.
            shift = 0.7 * (index - (len(lines) - 1) / 2)
            axes.errorbar(
                [difference.share + shift for difference in comparison.differences],
                [difference.mean for difference in comparison.differences],
                yerr=[difference.error or 0.0 for difference in comparison.differences],
                color=colour,
                linestyle=dashes,
                linewidth=1.7,
                elinewidth=1,
                capsize=2,
                marker=marker,
                markersize=5,
                label=name,
            )
        axes.set_xlim(0, 104)
        axes.set_ylim(low - room, high + room)
        label_panel(axes, title, "share of the training data (%)", label)
    return figure
