# SPDX-License-Identifier: Apache-2.0
"""The curve as a picture: mean, a band of one standard deviation, every trial a dot."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tal_fast.data.files import write_error
from tal_fast.errors import MissingExtraError
from tal_fast.study.curve import CurvePoint

__all__ = [
    "GRID",
    "INK",
    "LINE",
    "PAPER",
    "blank_figure",
    "curve_picture",
    "figure_svg",
    "save_pictures",
    "tiou_picture",
]

# The figures are drawn in these colours; `figure_svg` turns them into CSS variables, so that the
# page shows the same drawing in light and dark.
INK, GRID, PAPER = "#1a1c20", "#d5d8dd", "#fefefe"
LINE = "#1f5fbf"
_TIOU_LINES = ("#16307a", "#1f5fbf", "#1f9e9a", "#5aa02c", "#c77d0a", "#b5402a", "#7a3b8f")
_VARIABLES = {INK: "--ink", GRID: "--grid", PAPER: "--paper"} | {
    colour: f"--line{index}" for index, colour in enumerate(_TIOU_LINES)
}
_SIZE = (5.6, 3.9)  # inches; small, so that the text stays legible on a phone's width


def blank_figure(panels: int = 1, *, size: tuple[float, float] = _SIZE) -> tuple[Any, list[Any]]:
    """Returns an empty figure in the style of the studies, and its panels side by side.

    Args:
        panels: number of panels.
        size: width and height in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report", "the curve picture") from error
    figure = Figure(figsize=size, layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    row = [figure.add_subplot(1, panels, index + 1) for index in range(panels)]
    for axes in row:
        axes.set_facecolor(PAPER)
        axes.grid(True, color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(INK)
        axes.tick_params(colors=INK, labelsize=11.5)
    return figure, row


def _finish(axes: Any, points: Sequence[CurvePoint], title: str, model: str) -> None:
    axes.set_xlim(0, 104)
    # From zero where the curve comes near it, and never cut off: differences keep their true size.
    axes.set_ylim(bottom=0.0)
    low, high = axes.get_ylim()
    axes.set_ylim(low, max(min(high, 100.0), 5.0))
    axes.set_xlabel("share of the training videos (%)", color=INK, fontsize=12)
    axes.set_ylabel("mAP (points)", color=INK, fontsize=12)
    axes.set_title(f"{title}\n{model}" if model else title, color=INK, fontsize=12, loc="left")
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            facecolor=PAPER,
            edgecolor="none",
            framealpha=0.85,
            labelcolor=INK,
            fontsize=10,
            loc="lower right",
        )


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
    x = [100 * point.fraction for point in points]
    mean = [100 * point.mean for point in points]
    spread = [100 * (point.deviation or 0.0) for point in points]
    repeated = any(point.deviation is not None for point in points)
    if repeated:
        lower = [max(0.0, m - s) for m, s in zip(mean, spread, strict=True)]
        upper = [m + s for m, s in zip(mean, spread, strict=True)]
        axes.fill_between(
            x, lower, upper, color=LINE, alpha=0.18, linewidth=0, label="± 1 standard deviation"
        )
    axes.plot(x, mean, color=LINE, linewidth=2, label="mean")
    dots = [(100 * point.fraction, 100 * value) for point in points for value in point.values]
    axes.plot(
        [dot[0] for dot in dots],
        [dot[1] for dot in dots],
        linestyle="none",
        marker="o",
        markersize=4,
        alpha=0.65,
        color=INK,
        markeredgewidth=0,
        label="one trial",
    )
    thresholds = sorted((key for key in points[0].per_tiou), key=float) if points else []
    span = f" over tIoU {thresholds[0]} to {thresholds[-1]}" if thresholds else ""
    _finish(axes, points, f"Average mAP{span}", model)
    return figure


def tiou_picture(points: Sequence[CurvePoint], *, model: str = "") -> Any:
    """Draws mAP at each tIoU threshold against p; arguments, result and errors as above."""
    figure, (axes,) = blank_figure()
    keys = sorted({key for point in points for key in point.per_tiou}, key=float)
    for index, key in enumerate(keys):
        having = [point for point in points if key in point.per_tiou]
        x = [100 * point.fraction for point in having]
        mean = [100 * point.per_tiou[key][0] for point in having]
        spread = [100 * (point.per_tiou[key][1] or 0.0) for point in having]
        colour = _TIOU_LINES[index % len(_TIOU_LINES)]
        axes.errorbar(
            x,
            mean,
            yerr=spread if any(spread) else None,
            color=colour,
            linewidth=1.8,
            elinewidth=1,
            capsize=2,
            marker="o",
            markersize=3.5,
            label=f"tIoU {key}",
        )
    _finish(axes, points, "mAP at each tIoU, ± 1 standard deviation", model)
    return figure


def _render(figure: Any, kind: str, name: str) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # A fixed salt and no date make the file a function of the numbers.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(settings):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(buffer, format=kind, dpi=220, metadata=metadata)
    return buffer.getvalue()


def figure_svg(figure: Any, name: str) -> str:
    """Returns a figure as an ``<svg>`` element for a page, its colours as CSS variables.

    Args:
        figure: from :func:`curve_picture` or :func:`tiou_picture`.
        name: keeps the ids of several figures in one page apart.
    """
    text = _render(figure, "svg", name).decode()
    text = text[text.index("<svg") :]
    head, body = text.split(">", 1)
    # The page sets the size; the view box keeps the proportions.
    words = [word for word in head.split() if not word.startswith(("width=", "height="))]
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    start, end = body.find("<metadata>"), body.find("</metadata>")
    if start >= 0:
        body = body[:start] + body[end + len("</metadata>") :]
    body = body.replace("'DejaVu Sans'", "'DejaVu Sans', system-ui, sans-serif")
    return f'{" ".join(words)} role="img" aria-labelledby="{name}">{body}'


def save_pictures(figure: Any, directory: Path, name: str) -> list[Path]:
    """Writes ``name.png`` and ``name.svg``.

    Returns:
        Their paths.

    Raises:
        DataError: they cannot be written.
    """
    paths = []
    for kind in ("png", "svg"):
        path = directory / f"{name}.{kind}"
        temporary = directory / f".{path.name}.{os.getpid()}.tmp"
        try:
            temporary.write_bytes(_render(figure, kind, name))
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise write_error(path, error) from error
        paths.append(path)
    return paths
