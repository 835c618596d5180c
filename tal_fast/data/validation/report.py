# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page about a validation: opens from a disk, a mail or a server."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tal_fast.data.files import write_text_atomically
from tal_fast.data.validation.result import CHECKS, ValidationResult
from tal_fast.errors import counted
from tal_fast.page import Page
from tal_fast.typing import FilePath

__all__ = ["write_report"]

_LINES = 5  # colours of the page
_DOTS = 3000  # a picture of more tells no more
_CLASSES = 60


def write_report(
    directory: FilePath,
    result: ValidationResult,
    *,
    title: str = "Annotations and features",
) -> Path:
    """Writes ``index.html``: findings, proposals, class balance and distributions.

    Args:
        directory: where; made if it is missing.
        result: of :func:`tal_fast.data.validation.validate`.
        title: of the page.

    Returns:
        The path of the page.

    Raises:
        MissingExtraError: jinja2 is not installed.
        DataError: the page cannot be written.
    """
    page = Page("tal_fast.data.validation", "the page")
    durations = {
        split.name: [v.duration for v in result.videos if v.split == split.name]
        for split in result.splits
    }
    per_class = {
        label: sum(split.per_class[label] for split in result.splits) for label in result.classes
    }
    shown = sorted(per_class, key=lambda label: -per_class[label])[:_CLASSES]
    text = page.render(
        title=title,
        result=result,
        checks=CHECKS,
        struck={finding.check for finding in result.findings},
        hours=sum(split.seconds for split in result.splits) / 3600,
        instances=sum(split.instances for split in result.splits),
        videos=sum(split.videos for split in result.splits),
        rows=sum(v.rows or 0 for v in result.videos),
        classes_svg=page.markup(_classes_svg(result, shown)),
        hidden_classes=len(per_class) - len(shown),
        lengths_svg=page.markup(_histogram_svg(result.lengths, "instance length (s)")),
        durations_svg=page.markup(_histogram_svg(durations, "video duration (s)")),
        rows_svg=page.markup(_rows_svg(result)),
    )
    path = Path(directory) / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_text_atomically(path, text + "\n")


def _classes_svg(result: ValidationResult, shown: Sequence[str]) -> str:
    """Bars per class, one part per split, the most frequent class first."""
    if not shown:
        return ""
    width, row = 620, 17
    left = 12 + 6.2 * min(26, max(len(label) for label in shown))
    totals = [sum(split.per_class[label] for split in result.splits) for label in shown]
    scale = (width - left - 60) / max(*totals, 1)
    parts = [
        f'<svg viewBox="0 0 {width} {row * len(shown) + 8}" role="img" '
        'aria-label="instances per class">'
    ]
    for n, (label, total) in enumerate(zip(shown, totals, strict=True)):
        y = 4 + n * row
        name = label if len(label) <= 26 else label[:25] + "…"
        parts.append(
            f'<text x="{left - 6:.1f}" y="{y + 12}" text-anchor="end">{html.escape(name)}</text>'
        )
        x = left
        for k, split in enumerate(result.splits):
            count = split.per_class[label]
            if count:
                parts.append(
                    f'<rect x="{x:.1f}" y="{y + 2}" width="{count * scale:.1f}" '
                    f'height="{row - 5}" fill="var(--line{k % _LINES})"><title>'
                    f"{html.escape(label)}: {count} in {html.escape(split.name)}</title></rect>"
                )
                x += count * scale
        parts.append(f'<text class="soft" x="{x + 5:.1f}" y="{y + 12}">{total}</text>')
    return "".join([*parts, "</svg>"])


def _histogram_svg(groups: Mapping[str, Sequence[float]], label: str) -> str:
    """Lines of shares over bins that grow by a constant factor, one line per split."""
    values = {name: np.array([x for x in group if x > 0]) for name, group in groups.items()}
    everything = np.concatenate(list(values.values())) if values else np.empty(0)
    if not len(everything):
        return ""
    low, high = math.log10(everything.min()), math.log10(everything.max())
    low, high = math.floor(low * 4) / 4, max(math.ceil(high * 4) / 4, math.floor(low * 4) / 4 + 0.5)
    edges = np.logspace(low, high, round((high - low) * 8) + 1)
    edges[0], edges[-1] = 0, np.inf
    shares = {n: np.histogram(v, edges)[0] / max(len(v), 1) for n, v in values.items()}
    top = max(max(s.max() for s in shares.values()), 1e-9)
    width, height, left, bottom = 420, 220, 40, 36
    wide, high_px = width - left - 18, height - bottom - 10
    bins = len(edges) - 1
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">',
        f'<path class="axis" d="M{left} 10V{10 + high_px}H{left + wide}"/>',
        f'<text class="soft" x="{left - 5}" y="16" text-anchor="end">{100 * top:.0f}%</text>',
        f'<text class="soft" x="{left - 5}" y="{10 + high_px}" text-anchor="end">0</text>',
        f'<text class="soft" x="{left + wide}" y="{height - 4}" text-anchor="end">{label}</text>',
    ]
    for exponent in range(math.ceil(low), math.floor(high) + 1):
        for mantissa in (1, 2, 5) if high - low < 2 else (1,):
            at = exponent + math.log10(mantissa)
            if low <= at <= high:
                x = left + wide * (at - low) / (high - low)
                parts.append(f'<path class="rule" d="M{x:.1f} 10V{10 + high_px}"/>')
                parts.append(
                    f'<text class="soft" x="{x:.1f}" y="{24 + high_px}" text-anchor="middle">'
                    f"{mantissa * 10.0**exponent:g}</text>"
                )
    for k, (name, share) in enumerate(shares.items()):
        if not share.any():
            continue
        points = [f"{left},{10 + high_px * (1 - share[0] / top):.1f}"]
        for n, value in enumerate(share.tolist()):
            y = 10 + high_px * (1 - value / top)
            points += [f"{left + wide * n / bins:.1f},{y:.1f}"]
            points += [f"{left + wide * (n + 1) / bins:.1f},{y:.1f}"]
        parts.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="var(--line{k % _LINES})" '
            f'stroke-width="1.8"><title>{html.escape(name)}</title></polyline>'
        )
    return "".join([*parts, "</svg>"])


def _rows_svg(result: ValidationResult) -> str:
    """Rows over duration, a dot per video: sound settings make one straight line of them."""
    dots = [(v.duration, v.rows, v) for v in result.videos if v.rows is not None]
    if not dots:
        return ""
    step = math.ceil(len(dots) / _DOTS)
    names = [split.name for split in result.splits]
    most_s, most_r = max(d[0] for d in dots), max(d[1] for d in dots)
    width, height, left, bottom = 420, 260, 48, 36
    wide, high = width - left - 10, height - bottom - 10
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="rows over duration">',
        f'<path class="axis" d="M{left} 10V{10 + high}H{left + wide}"/>',
        f'<text class="soft" x="{left - 5}" y="18" text-anchor="end">{most_r}</text>',
        f'<text class="soft" x="{left - 5}" y="{10 + high}" text-anchor="end">0</text>',
        f'<text class="soft" x="{left + wide}" y="{24 + high}" text-anchor="end">{most_s:.4g}'
        "</text>",
        f'<text class="soft" x="{left}" y="{height - 4}">rows (up) over duration in s</text>',
    ]
    for seconds, rows, video in dots[::step]:
        k = names.index(video.split) if video.split in names else _LINES - 1
        parts.append(
            f'<circle cx="{left + wide * seconds / most_s:.1f}" '
            f'cy="{10 + high * (1 - rows / most_r):.1f}" r="2.2" fill="var(--line{k % _LINES})" '
            f'fill-opacity=".55"><title>{html.escape(video.name)}: '
            f"{counted(rows, 'row')}, {seconds:g} s"
            "</title></circle>"
        )
    return "".join([*parts, "</svg>"])
