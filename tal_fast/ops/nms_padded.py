# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression with outputs of a fixed size.

How many segments ``nms``, ``soft_nms`` and ``batched_nms`` keep depends on the data, so on a GPU
the host has to wait for the result before it can allocate it. These three return ``max_segments``
rows instead, and a count on the device: nothing waits, a CUDA graph can capture the call, and
``torch.compile`` sees static shapes. Rules, options and results are those of the functions of
:mod:`tal_fast.ops.nms`, to the bit; rows behind the count have index -1, score 0 and segment
[0, 0].

A GPU cannot raise an error about values without being waited for either. Where the other functions
would refuse values (a NaN score, a segment that is not finite or ends before it starts, with voting
a score that is not finite, a video number out of range), the outputs on CUDA are all padding and
every count is **-1**. On the CPU the errors are raised.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tal_fast.ops.arguments import check_tensors, position
from tal_fast.ops.nms_options import COMPARISONS, by_name, solve
from tal_fast.ops.registration import (
    register_autocast,
    register_without_gradient,
)


class PaddedNMSResult(NamedTuple):
    """What ``batched_nms_padded`` keeps of V videos, at most M per video.

    Attributes:
        indices: int64 Tensor[V, M], rows of the input by falling score, equal scores by rising
            index; -1 behind the last one.
        scores: Tensor[V, M] in the dtype of the input, decayed if the method is soft.
        segments: Tensor[V, M, 2], the kept segments, or, with voting, the refined ones.
        counts: int64 Tensor[V], how many there are; -1 on CUDA if values were refused.
    """

    indices: Tensor
    scores: Tensor
    segments: Tensor
    counts: Tensor


def nms_padded(
    segments: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_segments: int,
    *,
    iou_comparison: str = "gt",
    length_eps: float = 0.0,
    validate: bool = True,
) -> tuple[Tensor, Tensor]:
    """Keeps the best of segments that overlap, like ``nms``, in an output of fixed size.

    Args:
        segments: Tensor[N, 2], see ``nms``.
        scores: Tensor[N] of the same dtype and device.
        iou_threshold: largest IoU that two kept segments may have, in [0, 1].
        max_segments: M, how many are kept at most, >= 1.
        iou_comparison: "gt" or "ge", see ``nms``.
        length_eps: added to every length before the IoU is computed, >= 0.
        validate: False lets segments through that are not finite or end before they start.

    Returns:
        indices: int64 Tensor[M], the kept rows by falling score, then -1.
        count: int64 Tensor[], how many rows are kept; -1 on CUDA if values were refused.

    Raises:
        ValueError: if ``iou_comparison`` is none of the two.
        TypeError: an argument that should be a tensor is none.
        RuntimeError: as ``nms`` does; for values on the CPU alone.

    Example:
        >>> segments = torch.tensor([[0.0, 10.0], [1.0, 10.0], [20.0, 30.0]])
        >>> nms_padded(segments, torch.tensor([0.8, 0.9, 0.1]), 0.5, max_segments=4)
        (tensor([ 1,  2, -1, -1]), tensor(2))
    """
    check_tensors("nms_padded", segments=segments, scores=scores)
    # Not through NMSOptions, which takes half as long as a small problem.
    acts = position("nms_padded", "iou_comparison", iou_comparison, COMPARISONS) == 1
    indices, count = torch.ops.tal_fast.nms_padded.default(
        segments, scores, iou_threshold, max_segments, acts, length_eps, validate
    )
    return indices, count


def soft_nms_padded(
    segments: Tensor,
    scores: Tensor,
    method: str = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.1,
    min_score: float = 0.001,
    max_segments: int = 200,
    *,
    iou_comparison: str = "gt",
    length_eps: float = 0.0,
    t1: float = 0.0,
    t2: float = 0.0,
    spare_first: bool = False,
    validate: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Lowers the scores of segments that overlap a better one, in outputs of fixed size.

    Args:
        segments: Tensor[N, 2], see ``soft_nms``.
        scores: Tensor[N] of the same dtype and device.
        method: "gaussian", "linear", "length_gaussian" or "hard", see ``soft_nms``.
        sigma: width of the Gaussian, > 0; unused otherwise.
        iou_threshold: in [0, 1]; for "linear" and "hard".
        min_score: scores below it are dropped. Not negative for the soft methods.
        max_segments: M, how many are returned at most, >= 1.
        iou_comparison: "gt" or "ge": whether an IoU on the threshold acts.
        length_eps: added to every length before the IoU is computed, >= 0.
        t1: see ``soft_nms``.
        t2: see ``soft_nms``.
        spare_first: the very first segment taken is kept whatever its score.
        validate: False lets segments through that are not finite or end before they start.

    Returns:
        indices: int64 Tensor[M], the kept rows by falling final score, then -1.
        scores: Tensor[M] in the dtype of ``scores``, the final scores, then 0.
        count: int64 Tensor[], how many rows are kept; -1 on CUDA if values were refused.

    Raises:
        ValueError: if ``method`` or ``iou_comparison`` is unknown.
        TypeError: an argument that should be a tensor is none.
        RuntimeError: as ``soft_nms`` does; for values on the CPU alone.

    Example:
        >>> segments = torch.tensor([[0.0, 10.0], [0.0, 10.0], [20.0, 30.0]])
        >>> scores = torch.tensor([0.8, 0.9, 0.5])
        >>> soft_nms_padded(segments, scores, max_segments=4)
        (tensor([ 1,  2,  0, -1]), tensor([0.9000, 0.5000, 0.1083, 0.0000]), tensor(3))
    """
    indices, kept_scores, count = solve(
        "soft_nms_padded",
        segments,
        scores,
        method=method,
        sigma=sigma,
        iou_threshold=iou_threshold,
        min_score=min_score,
        max_segments=max_segments,
        iou_comparison=iou_comparison,
        length_eps=length_eps,
        t1=t1,
        t2=t2,
        spare_first=spare_first,
        validate=validate,
    )
    return indices, kept_scores, count


def batched_nms_padded(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor,
    videos: Tensor | None = None,
    *,
    max_segments: int,
    num_videos: int = 1,
    method: str = "hard",
    iou_threshold: float = 0.5,
    iou_comparison: str = "gt",
    length_eps: float = 0.0,
    sigma: float = 0.5,
    t1: float = 0.0,
    t2: float = 0.0,
    min_score: float = 0.0,
    max_per_class: int | None = None,
    per_class: bool = True,
    voting_threshold: float | None = None,
    voting_weight: str = "score",
    spare_first: bool = False,
    validate: bool = True,
) -> PaddedNMSResult:
    """Suppresses within each class of each video, like ``batched_nms``, in outputs of fixed size.

    Args:
        segments: Tensor[N, 2], see ``batched_nms``.
        scores: Tensor[N] of the same dtype and device.
        labels: Tensor[N] of integers of 8 to 64 bits, any numbers.
        videos: int64 or int32 Tensor[N] with numbers in [0, ``num_videos``): which row of the
            output a segment belongs to; None: all are of video 0.
        max_segments: M, how many are kept per video at most, >= 1.
        num_videos: V, >= 1.
        method: "hard", "linear", "gaussian" or "length_gaussian", see ``soft_nms``.
        iou_threshold: in [0, 1]; "hard" removes above it, "linear" decays above it.
        iou_comparison: "gt" or "ge": whether an IoU on the threshold acts.
        length_eps: added to every length before the IoU is computed (not for voting), >= 0.
        sigma: width of the Gaussian, > 0; unused otherwise.
        t1: see ``soft_nms``.
        t2: see ``soft_nms``.
        min_score: scores below it are dropped, see ``batched_nms``.
        max_per_class: most segments kept per class of a video; None: no limit.
        per_class: False lets segments act on each other whatever their labels.
        voting_threshold: in (0, 1], see ``batched_nms``; None: no voting.
        voting_weight: "score" or "score_iou", see ``segment_voting``.
        spare_first: the first segment of a problem is kept whatever its score.
        validate: False lets segments through that are not finite or end before they start.

    Returns:
        PaddedNMSResult(indices[V, M], scores[V, M], segments[V, M, 2], counts[V]), none of them
        differentiable. A video without segments has the count 0.

    Raises:
        ValueError: if ``method``, ``iou_comparison`` or ``voting_weight`` is unknown.
        TypeError: an argument that should be a tensor is none.
        RuntimeError: as ``batched_nms`` does, and on a video number out of range; for values on
            the CPU alone.

    Example:
        >>> segments = torch.tensor([[0.0, 10.0], [1.0, 10.0], [0.0, 9.0]])
        >>> scores, labels = torch.tensor([0.8, 0.9, 0.1]), torch.tensor([0, 0, 1])
        >>> videos = torch.tensor([1, 1, 1])
        >>> result = batched_nms_padded(
        ...     segments, scores, labels, videos, max_segments=3, num_videos=2
        ... )
        >>> result.indices, result.counts
        (tensor([[-1, -1, -1],
                [ 1,  2, -1]]), tensor([0, 2]))
    """
    found = solve(
        "batched_nms_padded",
        segments,
        scores,
        labels=labels,
        videos=videos,
        method=method,
        iou_threshold=iou_threshold,
        iou_comparison=iou_comparison,
        length_eps=length_eps,
        sigma=sigma,
        t1=t1,
        t2=t2,
        min_score=min_score,
        max_segments=max_segments,
        max_per_class=max_per_class,
        num_videos=num_videos,
        per_class=per_class,
        voting_threshold=voting_threshold,
        voting_weight=voting_weight,
        spare_first=spare_first,
        validate=validate,
    )
    return PaddedNMSResult(*found)


@torch.library.register_fake("tal_fast::nms_padded")
def _nms_fake(segments: Tensor, scores: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    limit = by_name("nms_padded", options)["max_segments"]
    return (
        segments.new_empty(limit, dtype=torch.int64),
        segments.new_empty((), dtype=torch.int64),
    )


@torch.library.register_fake("tal_fast::soft_nms_padded")
def _soft_nms_fake(
    segments: Tensor, scores: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    limit = by_name("soft_nms_padded", options)["max_segments"]
    return (
        segments.new_empty(limit, dtype=torch.int64),
        scores.new_empty(limit),
        segments.new_empty((), dtype=torch.int64),
    )


@torch.library.register_fake("tal_fast::batched_nms_padded")
def _batched_nms_fake(
    segments: Tensor, scores: Tensor, labels: Tensor, videos: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given = by_name("batched_nms_padded", options)
    owners, limit = given["num_videos"], given["max_segments"]
    return (
        segments.new_empty((owners, limit), dtype=torch.int64),
        scores.new_empty((owners, limit)),
        segments.new_empty((owners, limit, 2)),
        segments.new_empty(owners, dtype=torch.int64),
    )


register_without_gradient("nms_padded", "soft_nms_padded", "batched_nms_padded")
register_autocast("nms_padded", "soft_nms_padded", "batched_nms_padded")
