# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression, the slow and obvious twin of ``tal_fast.ops.nms``.

Unlike the other twins it computes in the type that the op computes in and not in float64: whether
an IoU lies above a threshold is part of the definition, and another precision would decide
otherwise.

``options`` are those of the op, a ``tal_fast.ops.nms_options.NMSOptions``. (Not imported: a twin
imports torch alone.)
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def nms(segments: Tensor, scores: Tensor, options: Any) -> Tensor:
    """Greedy suppression by pairwise comparison; see ``tal_fast.ops.nms``."""
    segments, scores = _widen(segments), _widen(scores)
    threshold = segments.new_tensor(options.iou_threshold)
    kept: list[int] = []
    for i in _by_falling_score(scores):
        ious = [_iou(segments[j], segments[i], options.length_eps) for j in kept]
        if not any(_acts(iou, threshold, options.iou_comparison) for iou in ious):
            kept.append(i)
    return segments.new_tensor(kept[: options.max_segments], dtype=torch.int64)


def soft_nms(segments: Tensor, scores: Tensor, options: Any) -> tuple[Tensor, Tensor]:
    """Take the best, decay the rest, repeat; see ``tal_fast.ops.soft_nms``."""
    out_dtype = scores.dtype
    segments, scores = _widen(segments), _widen(scores)
    low, width = scores.new_tensor(options.min_score), scores.new_tensor(options.sigma)
    threshold = scores.new_tensor(options.iou_threshold)
    current = {i: scores[i] for i in range(len(scores)) if scores[i] >= low}
    if options.spare_first and not current and len(scores) > 0:
        first = _by_falling_score(scores)[0]
        current = {first: scores[first]}
    kept: list[int] = []
    kept_scores: list[Tensor] = []
    while current and (options.max_segments is None or len(kept) < options.max_segments):
        best = min(current, key=lambda i: (-current[i].item(), i))
        kept.append(best)
        kept_scores.append(current.pop(best))
        if options.method == "length_gaussian":
            length = (segments[best, 1] - segments[best, 0]) + scores.new_tensor(options.length_eps)
            threshold = scores.new_tensor(options.t1) + scores.new_tensor(options.t2) * length
        for j in list(current):
            iou = _iou(segments[best], segments[j], options.length_eps)
            acts = (
                iou > 0
                if options.method == "gaussian"
                else _acts(iou, threshold, options.iou_comparison)
            )
            if not acts:
                continue
            if options.method == "hard":
                del current[j]
                continue
            weight = 1 - iou if options.method == "linear" else torch.exp(-(iou * iou) / width)
            current[j] = current[j] * weight
            if not current[j] >= low:
                del current[j]
    out = torch.stack(kept_scores) if kept else scores.new_empty(0)
    return segments.new_tensor(kept, dtype=torch.int64), out.to(out_dtype)


def batched_nms(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor,
    videos: Tensor | None,
    options: Any,
    vote: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One ``soft_nms`` per video and class, merged by score; see ``tal_fast.ops.batched_nms``.

    ``vote(kept_segments, segments, scores)`` refines the kept segments of a problem.
    """
    if videos is None:
        videos = torch.zeros_like(labels)
    of_class = dataclasses.replace(options, max_segments=options.max_per_class)
    if not options.per_class:
        labels = torch.zeros_like(labels)
    # Widened here, so that the merge sees scores that are not rounded to the output's type yet.
    wide_segments, wide_scores = _widen(segments), _widen(scores)
    refined = wide_segments.clone()
    merged: list[tuple[int, float]] = []
    for video in sorted(set(videos.tolist())):
        found: list[tuple[int, float]] = []
        for label in sorted(set(labels[videos == video].tolist())):
            rows = torch.nonzero((videos == video) & (labels == label)).flatten()
            indices, kept_scores = soft_nms(wide_segments[rows], wide_scores[rows], of_class)
            kept = rows[indices]
            if vote is not None:
                refined[kept] = vote(wide_segments[kept], wide_segments[rows], wide_scores[rows])
            found += zip(kept.tolist(), kept_scores.tolist(), strict=True)
        found.sort(key=lambda item: (-item[1], item[0]))
        merged += found[: options.max_segments]
    indices = labels.new_tensor([index for index, _ in merged], dtype=torch.int64)
    out_scores = scores.new_tensor([score for _, score in merged])
    return indices, out_scores, refined[indices].to(segments.dtype)


def _widen(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _by_falling_score(scores: Tensor) -> list[int]:
    values = scores.tolist()
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


def _acts(iou: Tensor, threshold: Tensor, iou_comparison: str) -> bool:
    return bool(iou >= threshold if iou_comparison == "ge" else iou > threshold)


def _iou(a: Tensor, b: Tensor, eps: float) -> Tensor:
    # Conditions instead of min and max: a NaN in b is passed over, a NaN in a is not, as by
    # std::min and std::max.
    left = b[0] if a[0] < b[0] else a[0]
    right = b[1] if b[1] < a[1] else a[1]
    inter = right - left if right - left > 0 else a.new_tensor(0)
    union = ((a[1] - a[0]) + a.new_tensor(eps)) + ((b[1] - b[0]) + a.new_tensor(eps)) - inter
    return inter / union if union != 0 else torch.full_like(union, math.nan)
