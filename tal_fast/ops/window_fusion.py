# SPDX-License-Identifier: Apache-2.0
"""One list of detections per video from those of its overlapping windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tal_fast.ops.arguments import check_tensors, position, renamed
from tal_fast.ops.nms import BatchedNMSResult, batched_nms

__all__ = ["fuse_windows"]

SCOPES = ("all", "overlaps")


def fuse_windows(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor,
    windows: Tensor,
    window_spans: Tensor,
    window_videos: Tensor,
    *,
    scope: str = "all",
    **options: Any,
) -> BatchedNMSResult:
    """Suppresses what several windows of a video found twice: one ``batched_nms`` over all videos.

    A sliding-window detector sees an instance in every window that covers it. With ``scope`` "all"
    the detections of a video suppress each other whatever windows they come from. With "overlaps"
    (TadTR, Liu et al., TIP 2022) only those take part that touch a stretch of time which two
    windows of their video share; the others are kept as they are. TadTR's evaluator treats every
    shared stretch apart and lists a detection that touches two of them twice; here all stretches of
    a video count together, and a detection is listed once.

    Args:
        segments: Tensor[N, 2], start and end in the time of the video, not of the window.
        scores: Tensor[N] of the same dtype.
        labels: Tensor[N] of integers of 8 to 64 bits.
        windows: int64 or int32 Tensor[N]: the window that gave each detection, a row of
            ``window_spans``.
        window_spans: Tensor[W, 2], start and end of every window in the unit of ``segments``.
        window_videos: int64 or int32 Tensor[W]: the video of every window, any numbers.
        scope: "all" or "overlaps".
        **options: of ``batched_nms``, but for ``videos``.

    Returns:
        BatchedNMSResult(indices, scores, segments) of ``batched_nms``, grouped by rising video, by
        falling score within each.

    Raises:
        ValueError: ``scope`` is neither word.
        TypeError: an argument is no tensor.
        RuntimeError: wrong shapes, tensors on several devices, a window number out of range, or
            what ``batched_nms`` raises.

    Example:
        >>> import torch
        >>> from tal_fast import ops
        >>> segments = torch.tensor([[1.0, 3.0], [6.0, 9.0], [6.5, 9.0], [12.0, 15.0]])
        >>> scores, labels = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.zeros(4, dtype=torch.int64)
        >>> spans = torch.tensor([[0.0, 10.0], [5.0, 15.0]])  # two windows of one video
        >>> windows, video = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0])
        >>> ops.fuse_windows(segments, scores, labels, windows, spans, video).indices
        tensor([0, 1, 3])
    """
    check_tensors(
        "fuse_windows",
        segments=segments,
        scores=scores,
        labels=labels,
        windows=windows,
        window_spans=window_spans,
        window_videos=window_videos,
    )
    position("fuse_windows", "scope", scope, SCOPES)
    _check(segments, windows, window_spans, window_videos)
    videos = window_videos.index_select(0, windows)
    if scope == "all":
        return _suppressed(segments, scores, labels, videos, options)
    # A detection outside every overlap must not meet any other: it gets a class of its own. Classes
    # become dense numbers first, so that the new ones cannot collide with them.
    classes = labels.unique(return_inverse=True)[1]
    if not options.get("per_class", True):
        classes = torch.zeros_like(classes)
    options["per_class"] = True
    alone = ~_touches_overlap(segments, windows, window_spans, window_videos)
    own = torch.arange(len(labels), device=labels.device) + len(labels)
    return _suppressed(segments, scores, torch.where(alone, own, classes), videos, options)


def _suppressed(
    segments: Tensor, scores: Tensor, labels: Tensor, videos: Tensor, options: dict[str, Any]
) -> BatchedNMSResult:
    """As ``batched_nms``, whose errors name this function and its arguments."""
    try:
        return batched_nms(segments, scores, labels, videos, **options)
    except (RuntimeError, TypeError, ValueError) as error:
        told = renamed(error, "fuse_windows", "batched_nms", videos="window_videos")
        raise told from None


def _check(segments: Tensor, windows: Tensor, spans: Tensor, window_videos: Tensor) -> None:
    if segments.dim() != 2 or segments.shape[1] != 2:
        raise RuntimeError(
            f"fuse_windows: expected segments of shape [N, 2], got {list(segments.shape)}"
        )
    for name, numbers in (("windows", windows), ("window_videos", window_videos)):
        if numbers.dtype not in (torch.int64, torch.int32):
            raise RuntimeError(
                f"fuse_windows: expected {name} of dtype int64 or int32, got {numbers.dtype}"
            )
    count = window_videos.shape[0] if window_videos.dim() == 1 else -1
    if spans.dim() != 2 or tuple(spans.shape) != (count, 2):
        raise RuntimeError(
            "fuse_windows: expected window_spans of shape [W, 2] and window_videos of shape [W], "
            f"got {list(spans.shape)} and {list(window_videos.shape)}"
        )
    if windows.dim() != 1 or len(windows) != len(segments):
        raise RuntimeError(
            f"fuse_windows: expected windows of shape [{len(segments)}], one per segment, "
            f"got {list(windows.shape)}"
        )
    if len(windows) and not 0 <= int(windows.min()) <= int(windows.max()) < count:
        raise RuntimeError(
            f"fuse_windows: expected windows in [0, {count}), "
            f"got {int(windows.min())} to {int(windows.max())}"
        )


def _touches_overlap(
    segments: Tensor, windows: Tensor, spans: Tensor, window_videos: Tensor
) -> Tensor:
    """Returns BoolTensor[N]: whether a stretch that two windows of its video share is touched."""
    touched = torch.zeros(len(segments), dtype=torch.bool, device=segments.device)
    videos = window_videos.index_select(0, windows)
    for video in window_videos.unique():
        own = spans[window_videos == video]
        own = own[own[:, 0].argsort()]
        # Every later window shares time with the earlier ones up to where the longest of them ends.
        stretches = torch.stack(
            (own[1:, 0], torch.minimum(own[:-1, 1].cummax(0).values, own[1:, 1])), 1
        )
        stretches = stretches[stretches[:, 1] > stretches[:, 0]]
        if not len(stretches):
            continue
        rows = torch.nonzero(videos == video).flatten()
        # Of the stretches that begin before the detection ends, the last to end decides.
        before = torch.searchsorted(stretches[:, 0].contiguous(), segments[rows, 1].contiguous())
        last_end = stretches[:, 1].cummax(0).values[(before - 1).clamp(min=0)]
        touched[rows] = (before > 0) & (last_end > segments[rows, 0])
    return touched
