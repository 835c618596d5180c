# SPDX-License-Identifier: Apache-2.0
"""Differences between the curves of a study as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tal_fast.study.picture import INK, SERIES, label_panel, panel_figure
from tal_fast.study.report.comparison import Comparison

__all__ = ["comparison_picture"]


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
        100.0 * (one.mean + sign * (one.error or 0.0))
        for _, _, lines in panels
        for _, comparison in lines
        for one in comparison.differences
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
                [100 * one.fraction + shift for one in comparison.differences],
                [100 * one.mean for one in comparison.differences],
                yerr=[100 * (one.error or 0.0) for one in comparison.differences],
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
