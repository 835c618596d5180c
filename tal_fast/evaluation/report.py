# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page about a result: opens from a disk, a mail or a server."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tal_fast.data.files import write_text_atomically
from tal_fast.errors import DataError
from tal_fast.evaluation.error_analysis import ERRORS, ErrorAnalysis, Sensitivity, analyse_errors
from tal_fast.evaluation.result import EvaluationResult
from tal_fast.evaluation.timeline import COLOURS, choose_videos, least_score, timeline
from tal_fast.evaluation.uncertainty import bootstrap
from tal_fast.page import Page
from tal_fast.typing import FilePath, Floats

__all__ = ["write_report"]

_MEANINGS = (
    "matches an instance",
    "of an instance that was taken",
    "well placed, another class",
    "right class, tIoU below the threshold",
    "another class, tIoU below the threshold",
    "overlaps nothing much",
)
_CURVES = 24  # panels at most: a page of 200 says nothing


def write_report(
    directory: FilePath,
    result: EvaluationResult,
    *,
    videos: Sequence[str] | None = None,
    title: str = "Detections against ground truth",
    errors: ErrorAnalysis | None = None,
    replicates: int = 1000,
) -> Path:
    """Writes ``index.html``: curves, error profiles and timelines.

    Args:
        directory: where; made if it is missing.
        result: of :func:`tal_fast.evaluation.evaluate`.
        videos: whose timelines to show; default: four, most missed
            instances first.
        title: of the page.
        errors: an analysis of ``result``; made when omitted.
        replicates: of the bootstrap; 0 leaves the interval out.

    Returns:
        The path of the page.

    Raises:
        MissingExtraError: jinja2 is not installed.
        DataError: the result has no arrays or a NaN mean.
        ConfigError: a video is unknown.
    """
    page = Page("tal_fast.evaluation", "the page")
    source = result.source
    if source is None or math.isnan(result.average_map):
        raise DataError("write_report: expected a result with its arrays and a mean, got another")
    if errors is None:
        errors = analyse_errors(result)
    # The threshold in the middle of the list stands for all where one must be chosen.
    k = len(result.tiou_thresholds) // 2
    uncertainty = bootstrap(result, replicates=replicates) if replicates else None
    names = choose_videos(result, errors, k, videos)
    least = least_score(result)
    order = [int(c) for c in np.argsort(result.ap.mean(axis=1)) if result.ap[c, 0] >= 0]
    text = page.render(
        title=title,
        result=result,
        interval=uncertainty.average_map if uncertainty else None,
        confidence=uncertainty.confidence if uncertainty else 0,
        map_rows=list(zip(result.tiou_thresholds, result.map_per_threshold.tolist(), strict=True)),
        curves=[
            (
                result.classes[c],
                f"{100 * result.ap[c].mean():.1f}",
                page.markup(_curve_svg(result, c)),
            )
            for c in order[:_CURVES]
        ],
        hidden_curves=max(0, len(order) - _CURVES),
        profile_svg=page.markup(_profile_svg(errors, k)),
        headroom_svg=page.markup(_headroom_svg(errors)),
        kinds=list(zip(("hit", *ERRORS), COLOURS, _MEANINGS, strict=True)),
        shown=result.tiou_thresholds[k],
        sensitivities=[_sensitivity_rows(s, k) for s in errors.sensitivity],
        normalized=errors.normalized_map.mean(),
        timelines=[
            {**row, "svg": page.markup(row["svg"])}
            for row in (timeline(result, errors, k, name, least) for name in names)
        ],
        least_score=f"{least:.3g}",
        numbers=_numbers(result),
    )
    path = Path(directory) / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_text_atomically(path, text + "\n")


def _numbers(result: EvaluationResult) -> list[list[str]]:
    rows = []
    for c, name in enumerate(result.classes):
        values = [*result.ap[c].tolist(), float(result.ap[c].mean())]
        rows.append(
            [
                name,
                str(result.ground_truth_per_class[c]),
                str(result.predictions_per_class[c]),
                *("-" if math.isnan(x) else f"{100 * x:.1f}" for x in values),
            ]
        )
    means = [*result.map_per_threshold.tolist(), result.average_map]
    total = [str(result.num_ground_truth), str(result.num_predictions)]
    return [*rows, ["mAP", *total, *(f"{100 * x:.1f}" for x in means)]]


# ---- pictures ----------------------------------------------------------------------------------


def _curve_svg(result: EvaluationResult, c: int) -> str:
    """Precision over recall of one class, a line per threshold."""
    width, height, left, bottom = 200, 150, 24, 16
    wide, high = width - left - 6, height - bottom - 6
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="precision over recall of '
        f'{html.escape(result.classes[c])}">',
        f'<path class="axis" d="M{left} 6V{6 + high}H{left + wide}"/>',
        f'<text class="soft" x="{left - 4}" y="12" text-anchor="end">1</text>',
        f'<text class="soft" x="{left - 4}" y="{6 + high}" text-anchor="end">0</text>',
        f'<text class="soft" x="{left + wide}" y="{height - 3}" text-anchor="end">1</text>',
    ]
    for k, (recall, precision) in enumerate(_precision_recall(result, c)):
        points = " ".join(
            f"{left + wide * r:.1f},{6 + high * (1 - p):.1f}"
            for r, p in zip(recall.tolist(), precision.tolist(), strict=True)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="var(--line{k % 7})" '
            'stroke-width="1.6"/>'
        )
    return "".join([*parts, "</svg>"])


def _precision_recall(result: EvaluationResult, c: int) -> list[tuple[Floats, Floats]]:
    """Returns (recall, precision) at each hit, per threshold; thinned to what can be seen."""
    source, native = result.source, result.native
    assert source is not None
    if native is None:
        native = source.native(result.tiou_thresholds)
        native.match()
    ranked = native.ranked
    of_class = ranked[source.found.label[ranked] == c]
    hits = native.hits[of_class]
    curves = []
    for k in range(len(result.tiou_thresholds)):
        hit = (hits >> np.uint64(k)) & np.uint64(1) == 1
        at = np.flatnonzero(hit)
        recall = np.arange(1, len(at) + 1) / max(int(result.ground_truth_per_class[c]), 1)
        precision = np.arange(1, len(at) + 1) / (at + 1)
        if len(at):
            keep = np.unique(np.linspace(0, len(at) - 1, min(len(at), 150)).astype(int))
            recall, precision = recall[keep], precision[keep]
            recall = np.concatenate([[0.0], recall])
            precision = np.concatenate([precision[:1], precision])
        curves.append((recall, precision))
    return curves


def _profile_svg(errors: ErrorAnalysis, k: int) -> str:
    """Stacked bars: the shares of hits and errors down the ranking."""
    width, height, left, top, bottom = 420, 250, 36, 8, 34
    wide, high = width - left - 8, height - top - bottom
    profile = errors.profile[k]
    step = wide / len(profile)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="false positive profile">']
    for share in (0, 50, 100):
        y = top + high * (1 - share / 100)
        parts.append(f'<path class="rule" d="M{left} {y:.1f}H{left + wide}"/>')
        parts.append(
            f'<text class="soft" x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{share}%</text>'
        )
    for n, row in enumerate(profile.tolist()):
        total = sum(row)
        y = float(top + high)
        for kind, count in enumerate(row):
            tall = high * count / total if total else 0.0
            y -= tall
            name = ("hit", *ERRORS)[kind]
            parts.append(
                f'<rect x="{left + n * step + 2:.1f}" y="{y:.1f}" width="{step - 4:.1f}" '
                f'height="{tall:.1f}" fill="var(--{COLOURS[kind]})"><title>{name}: {count} of '
                f"{total}</title></rect>"
            )
        parts.append(
            f'<text class="soft" x="{left + (n + 0.5) * step:.1f}" y="{top + high + 15}" '
            f'text-anchor="middle">{n + 1}G</text>'
        )
    return "".join([*parts, "</svg>"])


def _headroom_svg(errors: ErrorAnalysis) -> str:
    """Bars: points of average mAP that each error costs."""
    names = (*ERRORS, "missed")
    colours = (*COLOURS[1:], "missed")
    gains = (100 * errors.headroom.mean(axis=1)).tolist()
    width, row, left = 420, 34, 92
    most = max(*gains, 1e-9)
    wide = width - left - 60
    parts = [
        f'<svg viewBox="0 0 {width} {row * len(names) + 8}" role="img" aria-label="headroom">',
        f'<path class="axis" d="M{left} 2V{row * len(names) + 4}"/>',
    ]
    for n, (name, colour, gain) in enumerate(zip(names, colours, gains, strict=True)):
        y = 4 + n * row
        parts.append(f'<text x="{left - 6}" y="{y + 19}" text-anchor="end">{name}</text>')
        parts.append(
            f'<rect x="{left}" y="{y + 4}" width="{max(0.0, wide * gain / most):.1f}" '
            f'height="{row - 12}" fill="var(--{colour})"/>'
        )
        x = left + max(0.0, wide * gain / most) + 5
        parts.append(f'<text x="{x:.1f}" y="{y + 19}">+{gain:.2f}</text>')
    return "".join([*parts, "</svg>"])


def _sensitivity_rows(sensitivity: Sensitivity, k: int) -> dict[str, Any]:
    titles = {
        "length": "Length, in seconds",
        "coverage": "Coverage: share of the video",
        "instances": "Instances of the same class in the video",
    }
    edges = [f"{edge:.3g}" for edge in sensitivity.edges]
    rows = []
    for b, name in enumerate(sensitivity.bins):
        if not edges:
            span = "all"
        elif b == 0:
            span = f"up to {edges[0]}"
        elif b == len(edges):
            span = f"over {edges[-1]}"
        else:
            span = f"{edges[b - 1]} to {edges[b]}"
        ap, missed = sensitivity.ap[b].mean(), sensitivity.missed[b, k]
        rows.append(
            {
                "name": name,
                "range": span,
                "instances": int(sensitivity.instances[b]),
                "ap": "-" if np.isnan(ap) else f"{100 * ap:.1f}",
                "missed": "-" if np.isnan(missed) else f"{100 * missed:.1f} %",
            }
        )
    return {"title": titles[sensitivity.name], "rows": rows}
