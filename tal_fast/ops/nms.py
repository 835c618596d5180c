# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression of segments: hard, soft, and batched over videos and classes.

One set of rules holds for all three functions:

* IoU = inter / (length_a + length_b - inter) with inter = max(0, overlap) and, in front of the
  division, ``length_eps`` added to each length. Without it, two segments of length zero have IoU
  0 / 0 = NaN and do not act on each other.
* Whether an IoU exactly on the threshold acts is said by ``iou_comparison``: "gt" (it does not, the
  default everywhere) or "ge" (it does).
* All is computed in float64 for float64 input and in float32 for float32, float16 and bfloat16,
  thresholds included, without fused multiply-add and with an exp of its own: results, soft scores
  included, have the same bits on every machine, CPU or GPU.
* Detections are ordered by higher score, then by lower index.
* On a GPU the host waits once per call, for the size of the result and for whether values are
  wrong; ``tal_fast.ops.nms_padded`` has the functions that wait for nothing.
* Nothing here is differentiable: the returned scores carry no gradient, the returned indices select
  from differentiable tensors. Tensors that require a gradient are taken as they are; forward mode
  (``torch.func.jvp``, ``torch.autograd.forward_ad``) and gradients of ``torch.func``, which would
  take the scores for constants, are refused where the result has scores or segments.

The rules of other code bases are arguments. ActionFormer, TriDet, TemporalMaxer and OpenTAD use
``DIALECT = dict(iou_comparison="ge", length_eps=1e-6)`` on float32 input:

==============================================  ====================================================
theirs                                          here
==============================================  ====================================================
``nms_1d_cpu.nms(segs, scores, t)``             ``nms(segs, scores, t, **DIALECT)``
``nms_1d_cpu.softnms(..., t, sigma, m, k)``     ``soft_nms(segs, scores, METHODS[k], sigma, t, m,
                                                None, spare_first=True, **DIALECT)``
``softnms(..., method=3, t1=a, t2=b)``          method "length_gaussian" and ``t1=a, t2=b``
``batched_nms(..., use_soft_nms=True)``         ``batched_nms(method="gaussian", spare_first=True,
                                                max_segments=max_seg_num, **DIALECT)``
``batched_nms(..., use_soft_nms=False)``        method "hard"; they drop score = ``min_score`` too:
                                                give the next float32 above it
``multiclass=False, voting_thresh=v`` (v > 0)   ``per_class=False, voting_threshold=v`` and
                                                ``voting_weight``: "score_iou" in ActionFormer and
                                                TemporalMaxer, "score" in OpenTAD and TriDet
TadTR, P-GCN, MUSES ``temporal_nms(x, t)``      ``nms(segs, scores, t)``
AFSD ``nms(x, t, top_k)``                       ``nms(segs, scores, t, iou_comparison="ge",
                                                max_segments=top_k)``
CoLA ``nms(x, t)``                              ``nms`` with "ge" on segments whose ends are one
                                                later: it counts both ends in
mmaction2 ``soft_nms(x, alpha, low, high, k)``  method "length_gaussian", ``sigma=alpha, t1=low,
                                                t2=high - low, min_score=0.0, max_segments=k + 1``
==============================================  ====================================================

(With ``min_score=0`` their "hard" soft-NMS keeps what it removes, with score 0; this one does not.)
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tal_fast.ops.arguments import check_tensors, position
from tal_fast.ops.nms_options import (
    COMPARISONS,
    METHODS,
    WEIGHTS,
    by_name,
    solve,
)
from tal_fast.ops.registration import (
    register_autocast,
    register_without_gradient,
)

__all__ = [
    "COMPARISONS",
    "METHODS",
    "WEIGHTS",
    "BatchedNMSResult",
    "batched_nms",
    "nms",
    "soft_nms",
]


class BatchedNMSResult(NamedTuple):
    """What ``batched_nms`` keeps, K detections.

    With ``videos`` they are grouped by rising video; within a video, and without ``videos``
    altogether, they are ordered by falling score, equal scores by rising index.

    Attributes:
        indices: int64 Tensor[K], rows of the input.
        scores: Tensor[K] in the dtype of the input, decayed if the method is soft.
        segments: Tensor[K, 2], ``segments[indices]``, or, with voting, the refined segments.
    """

    indices: Tensor
    scores: Tensor
    segments: Tensor


def nms(
    segments: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    iou_comparison: str = "gt",
    length_eps: float = 0.0,
    max_segments: int | None = None,
    validate: bool = True,
) -> Tensor:
    """Keeps the best of segments that overlap: greedy non-maximum suppression.

    Goes through the segments by falling score and keeps each one whose IoU with every segment kept
    before is at most ``iou_threshold`` ("gt") or below it ("ge"). Takes O(n log n) time where the
    segments are spread over time, and O(n) memory.

    Args:
        segments: Tensor[N, 2] of float64, float32, float16 or bfloat16: start and end, in seconds
            or any other unit, with start <= end.
        scores: Tensor[N] of the same dtype and device. Infinite ones are allowed.
        iou_threshold: largest IoU that two kept segments may have, in [0, 1].
        iou_comparison: "gt" or "ge": which IoU suppresses, that above or also that on the
            threshold.
        length_eps: added to every length before the IoU is computed, >= 0.
        max_segments: keep at most so many; None: no limit.
        validate: False lets segments through that are not finite or end before they start. The
            formula is evaluated as it stands, and an IoU that is NaN never suppresses: a segment
            with a NaN, an infinite length or, with a threshold above 0, a negative length is kept
            and suppresses nothing.

    Returns:
        int64 Tensor[K]: the kept rows by falling score, equal scores by rising index.

    Raises:
        ValueError: if ``iou_comparison`` is none of the two.
        TypeError: an argument that should be a tensor is none; lists and NumPy arrays are not
            converted, as their dtype and device are a choice.
        RuntimeError: on wrong shapes, dtypes or devices, options out of range, a NaN score (also
            without validation: it has no rank), or a segment that is not finite or ends before it
            starts (the row is named).

    Example:
        >>> segments = torch.tensor([[0.0, 10.0], [1.0, 10.0], [20.0, 30.0]])
        >>> nms(segments, torch.tensor([0.8, 0.9, 0.1]), iou_threshold=0.5)
        tensor([1, 2])
    """
    check_tensors("nms", segments=segments, scores=scores)
    # Not through NMSOptions, which takes half as long as a small problem.
    acts = position("nms", "iou_comparison", iou_comparison, COMPARISONS) == 1
    kept: Tensor = torch.ops.tal_fast.nms.default(
        segments, scores, iou_threshold, acts, length_eps, max_segments, validate
    )
    return kept


def soft_nms(
    segments: Tensor,
    scores: Tensor,
    method: str = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.1,
    min_score: float = 0.001,
    max_segments: int | None = 200,
    *,
    iou_comparison: str = "gt",
    length_eps: float = 0.0,
    t1: float = 0.0,
    t2: float = 0.0,
    spare_first: bool = False,
    validate: bool = True,
) -> tuple[Tensor, Tensor]:
    """Lowers the scores of segments that overlap a better one (Bodla et al., "Soft-NMS", 2017).

    Repeats: take the segment with the highest current score, of equal ones that with the lowest
    index, then multiply the score of every other remaining segment by a weight of its IoU with it:

    ===================  ===========================================================================
    ``method``           weight where the IoU acts, otherwise 1
    ===================  ===========================================================================
    ``gaussian``         exp(-IoU² / sigma), for every IoU
    ``linear``           1 - IoU, where IoU > ``iou_threshold``
    ``length_gaussian``  exp(-IoU² / sigma), where IoU > ``t1`` + ``t2`` * length of the one taken
                         (Lin et al., "BSN", 2018)
    ``hard``             removed, where IoU > ``iou_threshold``: the rule of ``nms``
    ===================  ===========================================================================

    With ``iou_comparison="ge"`` every > above reads >=. A segment whose score is below
    ``min_score`` is dropped, at the beginning as well as after a decay. The result is that of this
    procedure bit for bit, but scores are brought up to date only when they may be the highest, and
    work ends with the last of ``max_segments``.

    Args:
        segments: Tensor[N, 2] of float64, float32, float16 or bfloat16: start and end, in seconds
            or any other unit, with start <= end.
        scores: Tensor[N] of the same dtype and device.
        method: "gaussian", "linear", "length_gaussian" or "hard".
        sigma: width of the Gaussian, > 0; unused otherwise.
        iou_threshold: in [0, 1]; for "linear" and "hard".
        min_score: scores below it are dropped. Not negative for the soft methods.
        max_segments: return at most so many; None: no limit.
        iou_comparison: "gt" or "ge": whether an IoU on the threshold acts.
        length_eps: added to every length before the IoU is computed, >= 0.
        t1: part of the threshold of "length_gaussian" that does not depend on the length.
        t2: part of that threshold per unit of length (``length_eps`` included).
        spare_first: the very first segment taken is kept whatever its score, as other
            implementations do.
        validate: False lets segments through that are not finite or end before they start. An IoU
            that is NaN decays nothing.

    Returns:
        indices: int64 Tensor[K], the kept rows in the order in which they were taken, which is by
            falling final score.
        scores: Tensor[K] in the dtype of ``scores``, the final scores (rounded once from float32
            for the 16-bit types). Not differentiable.

    Raises:
        ValueError: if ``method`` or ``iou_comparison`` is unknown.
        TypeError: an argument that should be a tensor is none; lists and NumPy arrays are not
            converted, as their dtype and device are a choice.
        RuntimeError: on wrong shapes, dtypes or devices, options out of range, a NaN score (also
            without validation), or a segment that is not finite or ends before it starts (the row
            is named).

    Example:
        >>> segments = torch.tensor([[0.0, 10.0], [0.0, 10.0], [20.0, 30.0]])
        >>> indices, scores = soft_nms(segments, torch.tensor([0.8, 0.9, 0.5]))
        >>> indices, scores
        (tensor([1, 2, 0]), tensor([0.9000, 0.5000, 0.1083]))
    """
    indices, kept_scores = solve(
        "soft_nms",
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
    return indices, kept_scores


def batched_nms(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor,
    videos: Tensor | None = None,
    *,
    method: str = "hard",
    iou_threshold: float = 0.5,
    iou_comparison: str = "gt",
    length_eps: float = 0.0,
    sigma: float = 0.5,
    t1: float = 0.0,
    t2: float = 0.0,
    min_score: float = 0.0,
    max_segments: int | None = None,
    max_per_class: int | None = None,
    per_class: bool = True,
    voting_threshold: float | None = None,
    voting_weight: str = "score",
    spare_first: bool = False,
    validate: bool = True,
) -> BatchedNMSResult:
    """Suppresses within each class of each video, for all of them in one parallel native call.

    Every (video, class) is one problem, solved as ``nms`` (method "hard") or ``soft_nms`` (the
    others) would; then, if asked for, each kept segment becomes the weighted mean of those of its
    problem, as ``segment_voting`` would have it; then the detections of a video are merged by
    falling score and cut to ``max_segments``. The result does not depend on the number of threads.

    Args:
        segments: Tensor[N, 2] of float64, float32, float16 or bfloat16: start and end, in seconds
            or any other unit, with start <= end.
        scores: Tensor[N] of the same dtype and device.
        labels: Tensor[N] of integers of 8 to 64 bits, any numbers.
        videos: Tensor[N] of integers, any numbers; None: all segments are of one video.
        method: "hard", "linear", "gaussian" or "length_gaussian", see ``soft_nms``.
        iou_threshold: in [0, 1]; "hard" removes above it, "linear" decays above it.
        iou_comparison: "gt" or "ge": whether an IoU on the threshold acts.
        length_eps: added to every length before the IoU is computed (not for voting), >= 0.
        sigma: width of the Gaussian, > 0; unused otherwise.
        t1: see ``soft_nms``.
        t2: see ``soft_nms``.
        min_score: scores below it are dropped, so the default drops negative scores: give
            ``-math.inf`` to keep logits (method "hard" only).
        max_segments: most segments kept per video; None: no limit.
        max_per_class: most segments kept per class of a video; None: no limit.
        per_class: False lets segments act on each other whatever their labels.
        voting_threshold: in (0, 1]: segments with this IoU or more with a kept one vote on its
            position, those below ``min_score`` too, with their original scores; None: no voting.
        voting_weight: "score" or "score_iou", see ``segment_voting``.
        spare_first: the first segment of a problem is kept whatever its score.
        validate: False lets segments through that are not finite or end before they start, see
            ``nms``.

    Returns:
        BatchedNMSResult(indices, scores, segments). Indices and scores are not differentiable;
        ``segments`` is ``segments[indices]`` without voting, and not differentiable with it.

    Raises:
        ValueError: if ``method``, ``iou_comparison`` or ``voting_weight`` is unknown.
        TypeError: an argument that should be a tensor is none; lists and NumPy arrays are not
            converted, as their dtype and device are a choice.
        RuntimeError: on wrong shapes, dtypes or devices, options out of range, a NaN score (with
            voting, one that is not finite), or a segment that is not finite or ends before it
            starts (the row is named).

    Example:
        >>> segments = torch.tensor([[0.0, 10.0], [1.0, 10.0], [0.0, 9.0]])
        >>> scores, labels = torch.tensor([0.8, 0.9, 0.1]), torch.tensor([0, 0, 1])
        >>> batched_nms(segments, scores, labels, iou_threshold=0.5).indices
        tensor([1, 2])
    """
    indices, kept_scores, refined = solve(
        "batched_nms",
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
        per_class=per_class,
        voting_threshold=voting_threshold,
        voting_weight=voting_weight,
        spare_first=spare_first,
        validate=validate,
    )
    if voting_threshold is None:
        refined = segments.index_select(0, indices)
    return BatchedNMSResult(indices, kept_scores, refined)


@torch.library.register_fake("tal_fast::nms")
def _nms_fake(segments: Tensor, scores: Tensor, *options: Any) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size()
    return segments.new_empty(kept, dtype=torch.int64)


@torch.library.register_fake("tal_fast::soft_nms")
def _soft_nms_fake(segments: Tensor, scores: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    kept = torch.library.get_ctx().new_dynamic_size()
    return segments.new_empty(kept, dtype=torch.int64), scores.new_empty(kept)


@torch.library.register_fake("tal_fast::batched_nms")
def _batched_nms_fake(
    segments: Tensor, scores: Tensor, labels: Tensor, videos: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    voting = by_name("batched_nms", options)["voting_threshold"] is not None
    kept = torch.library.get_ctx().new_dynamic_size()
    return (
        segments.new_empty(kept, dtype=torch.int64),
        scores.new_empty(kept),
        segments.new_empty((kept if voting else 0, 2)),
    )


register_without_gradient("nms", "soft_nms", "batched_nms")
# Half scores tie far too often, and half seconds are far too coarse.
register_autocast("nms", "soft_nms", "batched_nms")
