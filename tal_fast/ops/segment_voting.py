# SPDX-License-Identifier: Apache-2.0
"""Segment voting: kept segments become weighted means of the segments that overlap them."""

import torch
from torch import Tensor

from tal_fast.ops.arguments import check_tensors, position
from tal_fast.ops.nms_options import WEIGHTS
from tal_fast.ops.registration import (
    refuse_derivatives,
    register_autocast,
    register_without_gradient,
)


def segment_voting(
    kept_segments: Tensor,
    segments: Tensor,
    scores: Tensor,
    iou_threshold: float,
    weight: str = "score",
) -> Tensor:
    r"""Replaces each kept segment by a weighted mean of those that overlap it.

    Known as box voting in object detection (Gidaris and Komodakis, ICCV 2015). With
    :math:`V` the segments whose IoU with a kept one is at least ``iou_threshold``, that one becomes
    :math:`\sum_V w_i [s_i, e_i] / \sum_V w_i`, where :math:`w_i` is the score ("score", as in
    OpenTAD and TriDet) or the score times the IoU ("score_iou", as in ActionFormer and
    TemporalMaxer). Where the weights sum to zero, which includes kept segments that nothing
    overlaps enough, the segment stays as it is. (The implementations named give NaN there.)

    IoU has no epsilon; segments of length zero have no vote and get none. IoU and weights are
    computed in float64 for float64 input and in float32 otherwise, sums in float64, in an order
    that depends on neither the number of threads nor the instruction set nor the device. Takes
    O((N + K) log N) time plus the votes cast, and O(N) memory.

    Args:
        kept_segments: Tensor[K, 2] of float64, float32, float16 or bfloat16: start and end, in
            seconds or any other unit, with start <= end.
        segments: Tensor[N, 2] of the same dtype and device: those that vote. As a rule the kept
            ones are among them.
        scores: Tensor[N] of the same dtype and device, finite.
        iou_threshold: in (0, 1].
        weight: "score" or "score_iou".

    Returns:
        Tensor[K, 2] in the dtype of the input. Not differentiable.

    Raises:
        ValueError: if ``weight`` is none of the two.
        TypeError: an argument that should be a tensor is none.
        RuntimeError: on wrong shapes, dtypes or devices, a threshold out of range, a score that is
            not finite, or a segment that is not finite or ends before it starts (the row is named).
            On a GPU values are not checked, as the host would have to wait for them.

    Example:
        >>> segments = torch.tensor([[0.0, 10.0], [2.0, 10.0], [40.0, 50.0]])
        >>> segment_voting(segments[:1], segments, torch.tensor([0.75, 0.25, 0.5]), 0.7)
        tensor([[ 0.5000, 10.0000]])
    """
    op = "segment_voting"
    check_tensors(op, segments=segments, kept_segments=kept_segments, scores=scores)
    refuse_derivatives(op, segments=segments, kept_segments=kept_segments, scores=scores)
    refined: Tensor = torch.ops.tal_fast.segment_voting.default(
        kept_segments,
        segments,
        scores,
        iou_threshold,
        position(op, "weight", weight, WEIGHTS),
    )
    return refined


@torch.library.register_fake("tal_fast::segment_voting")
def _fake(
    kept_segments: Tensor, segments: Tensor, scores: Tensor, iou_threshold: float, weight: int
) -> Tensor:
    return kept_segments.new_empty((kept_segments.shape[0], 2))


register_without_gradient("segment_voting")
register_autocast("segment_voting")
