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
    ious = _iou(segments[:, None], segments, options.length_eps)
    acts = _acts(ious, threshold, options.iou_comparison).tolist()  # of the row on the column
    kept: list[int] = []
    for i in _by_falling_score(scores):
        if not any(acts[j][i] for j in kept):
            kept.append(i)
    return segments.new_tensor(kept[: options.max_segments], dtype=torch.int64)


def soft_nms(segments: Tensor, scores: Tensor, options: Any) -> tuple[Tensor, Tensor]:
    """Take the best, decay the rest, repeat; see ``tal_fast.ops.soft_nms``."""
    wide = _widen(scores)
    kept, kept_scores = _take(wide, *_effects(_widen(segments), options), options)
    out = wide.new_tensor(kept_scores).to(scores.dtype)
    return segments.new_tensor(kept, dtype=torch.int64), out


def _effects(segments: Tensor, options: Any) -> tuple[Tensor, Tensor]:
    """Whether every row acts on every column when it is taken, and with what weight."""
    threshold = segments.new_tensor(options.iou_threshold)
    if options.method == "length_gaussian":
        lengths = (segments[:, 1] - segments[:, 0]) + segments.new_tensor(options.length_eps)
        t1, t2 = segments.new_tensor(options.t1), segments.new_tensor(options.t2)
        threshold = (t1 + t2 * lengths)[:, None]
    ious = _iou(segments[:, None], segments, options.length_eps)
    if options.method in ("hard", "linear"):
        weights = 1 - ious  # a hard one has none
    else:
        weights = torch.exp(-(ious * ious) / segments.new_tensor(options.sigma))
    if options.method == "gaussian":
        return ious > 0, weights
    return _acts(ious, threshold, options.iou_comparison), weights


def _take(
    scores: Tensor, acts: Tensor, weights: Tensor, options: Any
) -> tuple[list[int], list[float]]:
    """Rows of one problem in the order in which they are taken, and their scores then."""
    low = scores.new_tensor(options.min_score)
    remain = (scores >= low).tolist()
    if options.spare_first and not any(remain) and len(scores) > 0:
        remain[_by_falling_score(scores)[0]] = True
    suppresses = acts.tolist()
    kept: list[int] = []
    kept_scores: list[float] = []
    while any(remain) and (options.max_segments is None or len(kept) < options.max_segments):
        values = scores.tolist()
        best = min((i for i, is_in in enumerate(remain) if is_in), key=lambda i: (-values[i], i))
        kept.append(best)
        kept_scores.append(values[best])
        remain[best] = False
        stays = [False] * len(values)
        if options.method != "hard":
            scores = torch.where(acts[best], scores * weights[best], scores)
            stays = (scores >= low).tolist()
        for i, acted in enumerate(suppresses[best]):
            remain[i] = remain[i] and (not acted or stays[i])
    return kept, kept_scores


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
    acts, weights = _effects(wide_segments, of_class)
    refined = wide_segments.clone()
    merged: list[tuple[int, float]] = []
    for video in sorted(set(videos.tolist())):
        found: list[tuple[int, float]] = []
        for label in sorted(set(labels[videos == video].tolist())):
            rows = torch.nonzero((videos == video) & (labels == label)).flatten()
            within = rows[:, None], rows
            taken, kept_scores = _take(wide_scores[rows], acts[within], weights[within], of_class)
            kept = rows[taken]
            if vote is not None:
                refined[kept] = vote(wide_segments[kept], wide_segments[rows], wide_scores[rows])
            found += zip(kept.tolist(), kept_scores, strict=True)
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


def _acts(ious: Tensor, threshold: Tensor, iou_comparison: str) -> Tensor:
    return ious >= threshold if iou_comparison == "ge" else ious > threshold


def _iou(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """[..., 2] and [..., 2] -> [...]."""
    (a_start, a_end), (b_start, b_end) = a.unbind(-1), b.unbind(-1)
    # Conditions instead of min and max: a NaN in b is passed over, a NaN in a is not, as by
    # std::min and std::max.
    left = torch.where(a_start < b_start, b_start, a_start)
    right = torch.where(b_end < a_end, b_end, a_end)
    inter = torch.where(right - left > 0, right - left, 0.0)
    union = (
        ((a_end - a_start) + a.new_tensor(eps)) + ((b_end - b_start) + a.new_tensor(eps)) - inter
    )
    return torch.where(union != 0, inter / union, math.nan)
