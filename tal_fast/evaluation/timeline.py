# SPDX-License-Identifier: Apache-2.0
"""Pictures of single videos: instances above, predictions below, time to the right."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tal_fast.errors import ConfigError, counted, nearest
from tal_fast.evaluation.error_analysis import ERRORS, ErrorAnalysis
from tal_fast.evaluation.result import EvaluationResult

__all__ = ["COLOURS", "choose_videos", "least_score", "timeline"]

#: Names of the page's colours for a hit and the kinds of ``ERRORS``.
COLOURS = ("hit", "double", "wrong", "local", "confusion", "background")

_CLASS_ROW = 26  # pixels: instances and predictions of one class
_AXIS_ROW = 22


def choose_videos(
    result: EvaluationResult, errors: ErrorAnalysis, k: int, videos: Sequence[str] | None
) -> list[str]:
    """Returns the videos to show: those asked for, or four from the worst to the best.

    Raises:
        ConfigError: one asked for was not evaluated.
    """
    names = _video_names(result)
    if videos is not None:
        for name in videos:
            if name not in names:
                raise ConfigError(
                    f"write_report: video {name!r} is not among those evaluated"
                    f"{nearest(name, names)}"
                )
        return list(videos)
    assert result.source is not None
    truth = result.source.truth
    total = np.bincount(truth.video, minlength=len(names))
    hit = np.zeros(len(truth), dtype=bool)
    hit[errors.matched[k][errors.matched[k] >= 0]] = True
    missed = np.bincount(truth.video[~hit], minlength=len(names))
    with_any = np.flatnonzero(total)
    ordered = with_any[np.lexsort((-total[with_any], -missed[with_any] / total[with_any]))]
    picked = np.unique(np.linspace(0, len(ordered) - 1, min(4, len(ordered))).astype(int))
    return [names[ordered[n]] for n in picked]


def _video_names(result: EvaluationResult) -> list[str]:
    assert result.source is not None
    if result.source.videos is not None:
        return list(result.source.videos)
    return [f"video {n}" for n in range(result.num_videos)]


def least_score(result: EvaluationResult) -> float:
    """Returns the score that three predictions per instance reach: more hide the picture."""
    assert result.source is not None
    scores = np.sort(result.source.score)[::-1]
    if len(scores) == 0:
        return 0.0
    return float(scores[min(len(scores), 3 * len(result.source.truth)) - 1])


def timeline(
    result: EvaluationResult, errors: ErrorAnalysis, k: int, name: str, least: float
) -> dict[str, Any]:
    """Returns the picture of one video at threshold k, and what stands beside it.

    Args:
        result: of an evaluation.
        errors: its analysis.
        k: which threshold.
        name: of the video.
        least: predictions of a lower score are left out.
    """
    source = result.source
    assert source is not None
    video = _video_names(result).index(name)
    truth, found = source.truth, source.found
    instances = np.flatnonzero(truth.video == video)
    shown = np.flatnonzero((found.video == video) & (source.score >= least))
    shown = shown[np.argsort(source.score[shown], kind="stable")]  # the best on top
    classes = sorted({*truth.label[instances].tolist(), *found.label[shown].tolist()})
    ends = [*truth.end[instances].tolist(), *found.end[shown].tolist(), 1e-9]
    duration = max(ends)
    if source.durations is not None and not np.isnan(source.durations[video]):
        duration = max(duration, float(source.durations[video]))
    # As many pixels as make the median instance a bar that one can see, within reason.
    length = float(np.median((truth.end - truth.start)[instances])) if len(instances) else duration
    scale = float(np.clip(64 / max(length, 1e-9), 800 / duration, 8000 / duration))
    width = duration * scale + 12
    height = len(classes) * _CLASS_ROW + _AXIS_ROW
    top = {c: n * _CLASS_ROW for n, c in enumerate(classes)}
    matched = set(errors.matched[k][errors.matched[k] >= 0].tolist())
    best, lowest = (float(source.score[shown].max()), least) if len(shown) else (1.0, 0.0)
    parts = [f'<svg width="{width:.0f}" height="{height}" viewBox="0 0 {width:.0f} {height}">']
    for n in range(len(classes) + 1):
        parts.append(f'<path class="rule" d="M0 {n * _CLASS_ROW + 0.5}H{width:.0f}"/>')
    for tick in _ticks(duration, duration * scale):
        x = tick * scale
        parts.append(f'<path class="rule" d="M{x:.1f} 0V{height - _AXIS_ROW + 4}"/>')
        anchor = "start" if tick == 0 else "middle"
        parts.append(
            f'<text class="soft" x="{x:.1f}" y="{height - 6}" text-anchor="{anchor}">{tick:g} s'
            "</text>"
        )
    for g in instances.tolist():
        label = html.escape(result.classes[truth.label[g]])
        paint = (
            'fill="var(--truth)"'
            if g in matched
            else 'fill="none" stroke="var(--missed)" stroke-width="2"'
        )
        parts.append(
            _bar(truth.start[g], truth.end[g], top[int(truth.label[g])] + 3, 9, scale, paint)
            + f"<title>{label}, {truth.start[g]:.2f} to {truth.end[g]:.2f} s, "
            f"{'found' if g in matched else 'missed'}</title></rect>"
        )
    for i in shown.tolist():
        kind = int(errors.kinds[k, i])
        colour = COLOURS[kind] if kind < len(COLOURS) else "background"
        score = float(source.score[i])
        opacity = 0.35 + 0.65 * (score - lowest) / (best - lowest) if best > lowest else 1.0
        what = ("hit", *ERRORS, "over an ambiguous region")[kind]
        parts.append(
            _bar(
                found.start[i],
                found.end[i],
                top[int(found.label[i])] + 14,
                9,
                scale,
                f'fill="var(--{colour})" opacity="{opacity:.2f}"',
            )
            + f"<title>{html.escape(result.classes[found.label[i]])}, {found.start[i]:.2f} to "
            f"{found.end[i]:.2f} s, score {score:.3f}, tIoU {errors.best_overlap[i]:.2f}: {what}"
            "</title></rect>"
        )
    parts.append("</svg>")
    lost = sum(g not in matched for g in instances.tolist())
    return {
        "name": name,
        "facts": f"{duration:.0f} s, {counted(len(instances), 'instance')}, {lost} missed",
        "names": [result.classes[c] for c in classes],
        "row": _CLASS_ROW,
        "svg": "".join(parts),
    }


def _bar(start: float, end: float, y: int, height: int, scale: float, paint: str) -> str:
    wide = max((end - start) * scale, 1.5)
    place = f'x="{start * scale:.1f}" y="{y}" width="{wide:.1f}" height="{height}"'
    return f'<rect {place} rx="2" {paint}>'


def _ticks(duration: float, pixels: float) -> list[float]:
    """Round times about 90 pixels apart."""
    rough = duration * 90 / max(pixels, 1)
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [n * step for n in range(int(duration / step) + 1)]
