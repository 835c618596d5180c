# SPDX-License-Identifier: Apache-2.0
"""The pictures of a profile: timeline, roofline, breakdown, lengths."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tal_fast.curves.figures import (
    INK,
    LEVEL_COLOURS,
    PAPER,
    SERIES,
    blank_figure,
    legend,
)
from tal_fast.profiling.figures import value_of
from tal_fast.profiling.kinds import DISPATCH, KINDS, OTHER

__all__ = ["breakdown_picture", "lengths_picture", "roofline_picture", "timeline_picture"]

_WIDE = (9.6, 3.7)
_GREY = "#8a919c"
_COLOURS = dict(
    zip(KINDS, (*LEVEL_COLOURS, "#00a0c8", "#8a6d3b", "#d0527f"), strict=False)
)  # fmt: skip
_MARKS = "osD^vP*Xph"
_SMOOTH = 5  # samples
_MOST_OPS = 40  # dots of a roofline
_PHASES = ("data", "transfer", "forward", "loss", "backward", "optimizer", "rate", "save", "other")

Row = Mapping[str, str]

# Figure of an entry, scale, title and unit of a panel.
_PREDICTION_PANELS = (
    ("network", 1.0, "network", "ms"),
    ("macs_rate", 1.0, "arithmetic", "GMAC/s"),
    ("memory", 1e-6, "memory beside the weights", "MB"),
)
_STEP_PANELS = (
    ("step", 1.0, "training step on one clip", "ms"),
    ("step_rate", 1.0, "arithmetic", "GMAC/s"),
    ("step_memory", 1e-6, "memory beside the weights", "MB"),
)


def _colour(kind: str) -> str:
    return _GREY if kind in (DISPATCH, OTHER) else _COLOURS.get(kind, _GREY)


def _number(row: Row, name: str) -> float | None:
    cell = row.get(name, "")
    return float(cell) if cell else None


def _rates(rows: Sequence[Row], name: str) -> list[float] | None:
    """Returns how fast a sum grows between samples; None where the system did not say."""
    values = [(_number(row, "time"), _number(row, name)) for row in rows]
    rates = []
    for (t0, first), (t1, last) in itertools.pairwise(values):
        if t0 is None or t1 is None or first is None or last is None:
            return None
        rates.append(max(0.0, last - first) / max(t1 - t0, 1e-9))
    return rates


def _titled(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, color=INK, fontsize=11, loc="left")
    axes.set_xlabel(x, color=INK, fontsize=10.5)
    axes.set_ylabel(y, color=INK, fontsize=10.5)


def _logarithmic(axis: Any) -> None:
    """Labels 1, 2 and 5 of each decade of a logarithmic axis, without formulas."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=20))
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _smooth(values: Sequence[float]) -> list[float]:
    """Returns means over a second of samples: a batch is read at once."""
    half = _SMOOTH // 2
    return [statistics.fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def timeline_picture(rows: Sequence[Row], cores: int) -> Any | None:
    """Draws cores in use and what was read over time; None with too few samples.

    Args:
        rows: of ``timeline.csv``.
        cores: that the process may use.
    """
    if len(rows) < 3:
        return None
    start = float(rows[0]["time"])
    times = [float(row["time"]) - start for row in rows]
    middle = [(a + b) / 2 for a, b in itertools.pairwise(times)]
    this_process, children = (
        _rates(rows, "cpu"),
        _rates(rows, "children_cpu") or [0.0] * len(middle),
    )
    figure, (left, right) = blank_figure(2, size=_WIDE)
    busy = _rates(rows, "machine_busy")
    layers = [("this process", this_process or [0.0] * len(middle), LEVEL_COLOURS[1])]
    if any(children):
        layers.append(("processes below it", children, LEVEL_COLOURS[2]))
    if busy is not None and this_process is not None:
        rest = [max(0.0, b - o - c) for b, o, c in zip(busy, this_process, children, strict=True)]
        layers.append(("others", rest, "#c9ced6"))
    left.stackplot(
        middle,
        *(values for _, values, _ in layers),
        labels=[name for name, _, _ in layers],
        colors=[colour for _, _, colour in layers],
    )
    left.axhline(cores, color=INK, linewidth=1, linestyle=(0, (4, 2)))
    top = max(sum(values) for values in zip(*(v for _, v, _ in layers), strict=True))
    left.set_ylim(0, 1.35 * max(cores, top))
    _titled(left, "cores in use", "seconds", "cores")
    legend(left, loc="upper left", fontsize=8.5, ncols=3)
    for name, label, (colour, dashes, _) in (
        ("read", "read", SERIES[0]),
        ("read_storage", "of it from storage", SERIES[1]),
    ):
        rate = _rates(rows, name)
        if rate is not None:
            shown = [value / 1e6 for value in _smooth(rate)]
            right.plot(middle, shown, color=colour, linestyle=dashes, label=label, linewidth=1.6)
    resident = [_number(row, "resident") for row in rows]
    known = [(t, value / 1e6) for t, value in zip(times, resident, strict=True) if value]
    if known:
        twin = right.twinx()
        twin.plot(*zip(*known, strict=True), color=SERIES[2][0], linewidth=1.6, label="memory")
        twin.set_ylim(0, 1.3 * max(value for _, value in known))
        twin.set_ylabel("memory (MB)", color=SERIES[2][0], fontsize=10.5)
        twin.tick_params(colors=SERIES[2][0], labelsize=10)
        for side in ("top", "left", "bottom"):
            twin.spines[side].set_visible(False)
        twin.spines["right"].set_color(SERIES[2][0])
    right.set_ylim(bottom=0)
    right.margins(y=0.3)
    _titled(right, "reading and memory", "seconds", "read (MB/s)")
    legend(right, loc="upper left", fontsize=8.5, ncols=2)
    return figure


def roofline_picture(rows: Sequence[Row], profile: Mapping[str, Any]) -> Any | None:
    """Draws ops under what this machine can do; None where nothing was counted or measured.

    Args:
        rows: of ``ops.csv``.
        profile: content of ``profile.json``.
    """
    peak, bandwidth = (value_of(profile, "limits", name) for name in ("flops", "bytes"))
    dots = []
    for row in rows:
        flops, touched = _number(row, "flops"), _number(row, "bytes")
        took = _number(row, "device_ms") or _number(row, "time_ms")
        if flops and touched and took:
            dots.append((row, flops / touched, flops / took / 1e6, _number(row, "share") or 0.0))
    if not dots or not peak or not bandwidth:
        return None
    dots = sorted(dots, key=lambda dot: -dot[3])[:_MOST_OPS]
    figure, (axes,) = blank_figure(size=(7.2, 4.4))
    ridge = peak / bandwidth
    low = min(0.3 * min(x for _, x, _, _ in dots), 0.3 * ridge)
    high = max(3 * max(x for _, x, _, _ in dots), 10 * ridge)
    axes.plot([low, ridge, high], [low * bandwidth, peak, peak], color=INK, linewidth=1.6)
    axes.annotate(f"best product: {peak:,.0f} GFLOP/s", (high, peak), color=INK, fontsize=9,
                  ha="right", va="bottom", xytext=(0, 3), textcoords="offset points")  # fmt: skip
    axes.annotate(f"memory: {bandwidth:.1f} GB/s", (low, low * bandwidth), color=INK, fontsize=9,
                  xytext=(6, 0), textcoords="offset points", va="top")  # fmt: skip
    kinds = dict.fromkeys(row["kind"] for row, *_ in dots)
    for mark, kind in zip(itertools.cycle(_MARKS), kinds, strict=False):
        of_kind = [dot for dot in dots if dot[0]["kind"] == kind]
        axes.scatter(
            [x for _, x, _, _ in of_kind],
            [y for _, _, y, _ in of_kind],
            s=[18 + 500 * share for *_, share in of_kind],
            color=_colour(kind),
            marker=mark,
            alpha=0.8,
            edgecolors=PAPER,
            linewidths=0.6,
            label=kind,
            zorder=4,
        )
    named = sorted((dot for dot in dots[:4] if dot[3] >= 0.02), key=lambda dot: dot[1])
    for (row, x, y, share), height in zip(named, (8, -16, 20, -28), strict=False):
        name = row["op"].rpartition("::")[2]
        axes.annotate(f"{name} {share:.0%}", (x, y), color=INK, fontsize=8.5, zorder=5,
                      xytext=(9, height), textcoords="offset points")  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.3 * min([low * bandwidth, *(y for *_, y, _ in dots)]), 2.5 * peak)
    _logarithmic(axes.xaxis)
    _logarithmic(axes.yaxis)
    axes.tick_params(labelsize=9)
    drawn = sum(share for *_, share in dots)
    _titled(axes, f"ops with arithmetic: {drawn:.0%} of the time", "FLOP per byte", "GFLOP/s")
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles, names, loc="upper left", fontsize=8.5, facecolor=PAPER, framealpha=0.85,
                edgecolor="none", labelcolor=INK, markerscale=0.6)  # fmt: skip
    return figure


def breakdown_picture(profile: Mapping[str, Any]) -> Any | None:
    """Draws the time of a step by phase and by kind of work; None without phases."""
    if "phases" not in profile:
        return None
    phases = {
        name: profile["phases"][name]["share"]["value"]
        for name in _PHASES
        if name in profile["phases"]
    }
    kinds = {
        kind: own["share"]["value"]
        for kind, own in ((profile.get("work") or {}).get("kinds") or {}).items()
    }
    panels = [("by phase", phases, None)] + ([("by kind of work", kinds, _colour)] if kinds else [])
    figure, axes = blank_figure(len(panels), size=_WIDE if kinds else (5.6, 3.6))
    for ax, (title, shares, colour) in zip(axes, panels, strict=True):
        names = list(shares)[::-1]
        values = [100 * shares[name] for name in names]
        colours = [LEVEL_COLOURS[1] if colour is None else colour(name) for name in names]
        ax.barh(names, values, color=colours, height=0.68)
        for place, value in enumerate(values):
            ax.annotate(f"{value:.1f}", (value, place), color=INK, fontsize=9, va="center",
                        xytext=(4, 0), textcoords="offset points")  # fmt: skip
        ax.set_xlim(0, 1.15 * max([*values, 1.0]))
        ax.grid(visible=False, axis="y")
        ax.tick_params(axis="y", labelsize=9.5)
        _titled(ax, title, "share of the time (%)", "")
    return figure


def lengths_picture(
    profiles: Sequence[tuple[str, Mapping[str, Any]]], *, training: bool = False
) -> Any | None:
    """Draws time, arithmetic and memory over length; None where none was measured.

    Args:
        profiles: name and content of each ``profile.json``; the roof is that of the first.
        training: of a training step on a clip, not of prediction.
    """
    panels = _STEP_PANELS if training else _PREDICTION_PANELS
    first = panels[0][0]
    shown = []
    for name, profile in profiles:
        entries = [e for e in profile.get("lengths") or [] if value_of(e, first) is not None]
        if entries:
            shown.append((name, profile, entries))
    if not shown:
        return None
    figure, axes = blank_figure(3, size=(11.4, 3.7))
    # As rates are: where others used the cores, the clock tells of them.
    by_cpu = any(profile["prediction"].get("rates_by") == "CPU time" for _, profile, _ in shown)
    if by_cpu:
        panels = ((f"{first}_cpu", *panels[0][1:3], "ms of CPU time"), *panels[1:])
    for (colour, dashes, mark), (name, _, entries) in zip(
        itertools.cycle(SERIES), shown, strict=False
    ):
        style = {"color": colour, "linestyle": dashes, "marker": mark, "markersize": 4.5}
        if not training and not by_cpu:
            rows = [entry["rows"] for entry in entries]
            low, high = zip(*(entry["network_quartiles"] for entry in entries), strict=True)
            axes[0].fill_between(rows, low, high, color=colour, alpha=0.2, linewidth=0)
        for ax, (key, scale, _, _) in zip(axes, panels, strict=True):
            points = [(e["rows"], value_of(e, key)) for e in entries]
            known = [(rows, scale * value) for rows, value in points if value is not None]
            if known:
                ax.plot(*zip(*known, strict=True), label=name, linewidth=1.6, **style)
    peak = value_of(shown[0][1], "limits", "flops")
    if peak is not None:
        axes[1].axhline(peak / 2, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
        axes[1].annotate("best product", (0.02, peak / 2), xycoords=("axes fraction", "data"),
                         color=INK, fontsize=8.5, va="bottom")  # fmt: skip
    for ax, (_, _, title, y) in zip(axes, panels, strict=True):
        ax.set_yscale("log")
        _logarithmic(ax.yaxis)
        _titled(ax, title, "rows of a clip", y)
        ax.set_xlim(left=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3,
                  frameon=False, labelcolor=INK, fontsize=9)  # fmt: skip
    return figure
