# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression, the slow and obvious twin of ``tal_fast.ops.nms``.

Unlike the other twins it computes in the type that the op computes in and not in float64: whether
an IoU lies above a threshold is part of the definition, and another precision would decide
otherwise.
"""

import math

import torch
from torch import Tensor


def nms(segments: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy suppression by pairwise comparison; see ``tal_fast.ops.nms``."""
    segments, scores, threshold = _widen(segments, scores, iou_threshold)
    kept: list[int] = []
    for i in _by_falling_score(scores):
        if not any(bool(_iou(segments[i], segments[j]) > threshold) for j in kept):
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def soft_nms(
    segments: Tensor,
    scores: Tensor,
    method: str = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.1,
    min_score: float = 0.001,
    max_segments: int | None = 200,
) -> tuple[Tensor, Tensor]:
    """Take the best, decay the rest, repeat; see ``tal_fast.ops.soft_nms``."""
    out_dtype = scores.dtype
    segments, scores, threshold = _widen(segments, scores, iou_threshold)
    low = scores.new_tensor(min_score)
    width = scores.new_tensor(sigma)
    current = {i: scores[i] for i in range(len(scores)) if scores[i] >= low}
    kept: list[int] = []
    kept_scores: list[Tensor] = []
    while current and (max_segments is None or len(kept) < max_segments):
        best = min(current, key=lambda i: (-current[i].item(), i))
        kept.append(best)
        kept_scores.append(current.pop(best))
        for j in list(current):
            iou = _iou(segments[best], segments[j])
            if method == "hard":
                if iou > threshold:
                    del current[j]
                continue
            if method == "gaussian" and iou > 0:
                current[j] = current[j] * torch.exp(-(iou * iou) / width)
            elif method == "linear" and iou >= threshold:
                current[j] = current[j] * (1 - iou)
            if not current[j] >= low:
                del current[j]
    out = torch.stack(kept_scores) if kept else scores.new_empty(0)
    return torch.tensor(kept, dtype=torch.int64), out.to(out_dtype)


def batched_nms(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor,
    videos: Tensor | None = None,
    *,
    method: str = "hard",
    iou_threshold: float = 0.5,
    sigma: float = 0.5,
    min_score: float = 0.0,
    max_segments: int | None = None,
    per_class: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """One ``soft_nms`` per video and class, merged by score; see ``tal_fast.ops.batched_nms``."""
    if videos is None:
        videos = torch.zeros_like(labels)
    if not per_class:
        labels = torch.zeros_like(labels)
    # Widened here, so that the merge sees scores that are not rounded to the output's type yet.
    wide_segments, wide_scores, _ = _widen(segments, scores, iou_threshold)
    merged: list[tuple[int, float]] = []
    for video in sorted(set(videos.tolist())):
        found: list[tuple[int, float]] = []
        for label in sorted(set(labels[videos == video].tolist())):
            rows = torch.nonzero((videos == video) & (labels == label)).flatten()
            indices, kept_scores = soft_nms(
                wide_segments[rows],
                wide_scores[rows],
                method,
                sigma,
                iou_threshold,
                min_score,
                None,
            )
            found += zip(rows[indices].tolist(), kept_scores.tolist(), strict=True)
        found.sort(key=lambda item: (-item[1], item[0]))
        merged += found if max_segments is None else found[:max_segments]
    indices = torch.tensor([index for index, _ in merged], dtype=torch.int64)
    return indices, scores.new_tensor([score for _, score in merged]), segments[indices]


def _widen(segments: Tensor, scores: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if segments.dtype == torch.float64 else torch.float32
    return segments.to(dtype), scores.to(dtype), torch.tensor(threshold, dtype=dtype)


def _by_falling_score(scores: Tensor) -> list[int]:
    values = scores.tolist()
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


def _iou(a: Tensor, b: Tensor) -> Tensor:
    inter = torch.clamp(torch.minimum(a[1], b[1]) - torch.maximum(a[0], b[0]), min=0)
    union = (a[1] - a[0]) + (b[1] - b[0]) - inter
    return inter / union if union != 0 else torch.full_like(union, math.nan)
