# SPDX-License-Identifier: Apache-2.0
"""Learning curves as one picture for a paper: data, what all families say, and how far to trust it.

Sizes are those of print, fonts those of the reader's matplotlib, SVG keeps its text as text, and
the same numbers give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tal_fast.curves.drawn import DrawnCurve, drawn_curves
from tal_fast.curves.learning_curve import CEILING, LearningCurve
from tal_fast.curves.tables import band_name
from tal_fast.data.files import write_bytes_atomically
from tal_fast.errors import ConfigError, MissingExtraError, nearest
from tal_fast.typing import Floats

__all__ = ["MOST", "check_file", "draw", "draw_lines", "save_figure", "text_for"]

# Colours of Okabe and Ito, told apart by colour-blind eyes; in grey print the markers tell them
# apart, and the dashes beyond the data.
_STYLES: tuple[tuple[str, str, Any], ...] = (
    ("#0072B2", "o", (0, (4, 1.6))),
    ("#D55E00", "s", (0, (1, 1.2))),
    ("#009E73", "^", (0, (5, 1.4, 1, 1.4))),
    ("#CC79A7", "D", (0, (2.4, 1.2))),
    ("#E69F00", "v", (0, (7, 1.6))),
    ("#56B4E9", "P", (0, (4, 1.2, 1, 1.2, 1, 1.2))),
    ("#000000", "X", (0, (1, 2.2))),
)
MOST = len(_STYLES)
"""Curves that one picture can tell apart."""

_KINDS = ("svg", "pdf", "png")
_BARS = {"sd": "± standard deviation", "se": "± standard error", "none": ""}
_ESCAPED = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", **{mark: "\\" + mark for mark in "&%$#_{}"},
}  # fmt: skip


def _check(drawn: Sequence[DrawnCurve], bars: str, width: float, font_size: float) -> None:
    if not drawn:
        raise ConfigError("curves: expected at least one to draw, got none")
    if len(drawn) > MOST:
        raise ConfigError(
            f"curves: expected at most {MOST} in one picture, whose colours and marks can be told "
            f"apart, got {len(drawn)}; choose some"
        )
    if bars not in _BARS:
        raise ConfigError(
            f"bars: expected one of {', '.join(_BARS)}, got {bars!r}{nearest(bars, _BARS)}"
        )
    for name, value, low, high in (
        ("width", width, 1.0, 40.0), ("font_size", font_size, 3.0, 40.0)
    ):  # fmt: skip
        if not low <= value <= high:
            unit = "inches" if name == "width" else "points"
            raise ConfigError(f"{name}: expected {low:g} to {high:g} {unit}, got {value:g}")


def text_for(usetex: bool, label: str) -> str:
    """Returns text as matplotlib takes it: escaped where LaTeX sets it, else as it is."""
    return "".join(_ESCAPED.get(mark, mark) for mark in label) if usetex else label


def _half(drawn: DrawnCurve, bars: str) -> Floats:
    """Returns the half-length of the bars; 0 where no repetitions are known."""
    half = np.nan_to_num(drawn.curve.deviation)
    return half / np.sqrt(drawn.curve.repetitions) if bars == "se" else half


def draw_lines(
    drawn: Sequence[DrawnCurve],
    *,
    bars: str = "sd",
    confidence: float = 0.9,
    width: float = 3.5,
    height: float | None = None,
    font_size: float = 8.0,
    font: str | None = None,
    log: bool = False,
    map_label: str = "average mAP",
) -> Any:
    """Draws numbers from :func:`drawn_curves`; see :func:`draw`."""
    _check(drawn, bars, width, font_size)
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report", "the picture of curves") from error
    sizes = ("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize")
    settings: Any = dict.fromkeys((*sizes, "legend.fontsize"), font_size)
    settings |= {"axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6}
    if font is not None:
        settings["font.family"] = font
    with matplotlib.rc_context(settings):
        usetex = bool(matplotlib.rcParams["text.usetex"])
        figure = Figure(figsize=(width, height or 0.78 * width), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        handles = [
            _curve(axes, line, style, bars, text_for(usetex, line.curve.name))
            for line, style in zip(drawn, _STYLES, strict=False)
        ]
        handles += _keys(drawn, bars, text_for(usetex, f"{band_name(confidence)} interval"))
        _frame(axes, drawn, bars, log)
        for set_label, words in (
            (axes.set_xlabel, "training data (% of the full set)"),
            (axes.set_ylabel, f"{map_label} (points)"),
        ):
            set_label(text_for(usetex, words), parse_math=False)
        _legend(figure, handles, height is None)
    return figure


def _curve(axes: Any, drawn: DrawnCurve, style: tuple[str, str, Any], bars: str, name: str) -> Any:
    """Draws one curve; returns what stands for it in the legend."""
    from matplotlib.lines import Line2D

    colour, marker, dashes = style
    last = float(drawn.curve.share[-1])
    known, beyond = drawn.x <= last, drawn.x >= last
    look = {"color": colour, "linewidth": 1.1}
    axes.plot(drawn.x[known], drawn.y[known], zorder=3, **look)
    if beyond.sum() > 1:
        axes.plot(drawn.x[beyond], drawn.y[beyond], linestyle=dashes, zorder=3, **look)
        axes.fill_between(
            drawn.x[beyond], drawn.low[beyond], drawn.high[beyond],
            color=colour, alpha=0.14, linewidth=0, zorder=1,
        )  # fmt: skip
    many = len(drawn.curve) > 12
    axes.errorbar(
        drawn.curve.share,
        drawn.curve.mean,
        yerr=None if bars == "none" else _half(drawn, bars),
        linestyle="none",
        marker=marker,
        markersize=2.6 if many else 3.6,
        markeredgewidth=0.5,
        markeredgecolor="white",
        elinewidth=0.7,
        capsize=1.2 if many else 1.8,
        capthick=0.7,
        color=colour,
        zorder=4,
    )
    return Line2D(
        [], [], color=colour, marker=marker, markersize=3.6, markeredgewidth=0.5,
        markeredgecolor="white", linewidth=1.1, label=name,
    )  # fmt: skip


def _keys(drawn: Sequence[DrawnCurve], bars: str, band: str) -> list[Any]:
    """Returns what explains bars, dashes and bands in the legend."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys: list[Any] = []
    if bars != "none" and any((_half(line, bars) > 0.0).any() for line in drawn):
        upright = Line2D(
            [], [], color="0.35", linestyle="none", marker="|", markersize=7, label=_BARS[bars]
        )
        keys.append(upright)
    if any(line.x[-1] > line.curve.share[-1] for line in drawn):
        look: Any = {"color": "0.35", "linestyle": "--", "linewidth": 1.1}
        keys.append(Line2D([], [], label="beyond the data", **look))
    if any(np.isfinite(line.high).sum() > 1 for line in drawn):
        keys.append(Patch(facecolor="0.35", alpha=0.2, linewidth=0, label=band))
    return keys


def _frame(axes: Any, drawn: Sequence[DrawnCurve], bars: str, log: bool) -> None:
    top = max(float(np.max(line.curve.mean + _half(line, bars))) for line in drawn)
    top = max(top, *(float(np.nanmax([0.0, *line.high, *line.y])) for line in drawn))
    axes.set_ylim(0.0, min(CEILING, 1.04 * top))
    right = max(float(line.x[-1]) for line in drawn)
    if log:
        left = min(float(line.x[0]) for line in drawn)
        axes.set_xscale("log")
        axes.set_xlim(left / 1.12, right * 1.12)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
    else:
        axes.set_xlim(0.0, 1.03 * right)
    axes.grid(True, color="0.88", linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _legend(figure: Any, handles: Sequence[Any], grow: bool) -> None:
    """Puts the legend above the panel, where it hides nothing, in as many columns as fit."""
    for columns in (3, 2, 1):
        legend = figure.legend(
            handles=list(handles), loc="outside upper left", ncols=columns, frameon=False,
            borderaxespad=0.2, handlelength=2.0, columnspacing=1.2, labelspacing=0.3,
            handletextpad=0.5,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)
        box = legend.get_window_extent(figure.canvas.get_renderer())
        if box.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    if grow:  # so that the panel keeps its shape
        figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)


def check_file(file: str | Path) -> str:
    """Returns the kind of picture that a file's suffix asks for.

    Raises:
        ConfigError: there is none such.
    """
    path = Path(file)
    kind = path.suffix.removeprefix(".").lower()
    if kind not in _KINDS:
        raise ConfigError(
            f"picture: expected a file ending in .{', .'.join(_KINDS)}, got {path.name!r}"
        )
    return kind


def save_figure(figure: Any, file: str | Path) -> Path:
    """Writes a figure as SVG (text stays text), PDF (fonts embedded as TrueType) or PNG (300 dpi).

    The same figure gives the same bytes: ids come from the file's name, and no date is written.

    Raises:
        ConfigError: the suffix is none of these.
        DataError: the file cannot be written.
    """
    import matplotlib

    path, kind = Path(file), check_file(file)
    buffer = io.BytesIO()
    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": path.stem, "pdf.fonttype": 42,
    }  # fmt: skip
    nothing: dict[str, Any] = {
        "svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format=kind, dpi=300, metadata=nothing[kind])
    return write_bytes_atomically(path, buffer.getvalue())


def draw(
    curves: LearningCurve | Sequence[LearningCurve],
    file: str | Path | None = None,
    *,
    times: float | None = None,
    confidence: float = 0.9,
    draws: int = 1000,
    seed: int = 0,
    bars: str = "sd",
    width: float = 3.5,
    height: float | None = None,
    font_size: float = 8.0,
    font: str | None = None,
    log: bool = False,
    map_label: str = "average mAP",
) -> Any:
    """Draws learning curves in one panel, for print.

    Points are the measured means. The line is the median of all families, solid within the data and
    dashed beyond, where the interval of ``extrapolate`` is shaded.

    Args:
        curves: one or several, at most seven.
        file: where to write it, as .svg, .pdf or .png; nothing is written for None.
        times: where the lines end, 1 being the full training set; by default at the largest
            measured p.
        confidence: of the intervals.
        draws: bootstrap draws per family.
        seed: of the draws.
        bars: ``sd`` (standard deviation of the repetitions), ``se`` (standard error of their
            mean) or ``none``; the legend says which.
        width: in inches; 3.5 is a column of many two-column papers, 7.2 their page.
        height: in inches; by default what suits the width and the legend.
        font_size: in points.
        font: family, such as ``serif``; by default that of matplotlib's settings. With
            ``text.usetex`` in these, LaTeX sets the text.
        log: draw p on a logarithmic axis.
        map_label: name of what was measured.

    Returns:
        The matplotlib figure.

    Raises:
        ConfigError: a setting is out of range.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> from tal_fast.curves import draw, read_curves
        >>> figure = draw(read_curves("docs/results/hapt"), times=2, draws=50)
        >>> figure.axes[0].get_xlabel()
        'training data (% of the full set)'
    """
    if file is not None:
        check_file(file)
    chosen = [curves] if isinstance(curves, LearningCurve) else list(curves)
    drawn = drawn_curves(chosen, times=times, confidence=confidence, draws=draws, seed=seed)
    figure = draw_lines(
        drawn, bars=bars, confidence=confidence, width=width, height=height, font_size=font_size,
        font=font, log=log, map_label=map_label,
    )  # fmt: skip
    if file is not None:
        save_figure(figure, file)
    return figure
