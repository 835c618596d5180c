# SPDX-License-Identifier: Apache-2.0
"""Segment voting, the slow and obvious twin of ``tal_fast.ops.segment_voting``.

Who votes is decided in the type that the op computes in, the means are computed in float64.
"""

import torch
from torch import Tensor


def segment_voting(
    kept_segments: Tensor,
    segments: Tensor,
    scores: Tensor,
    iou_threshold: float,
    weight: str = "score",
) -> Tensor:
    """Weighted means over all segments, one by one; see ``tal_fast.ops.segment_voting``."""
    dtype = torch.promote_types(segments.dtype, torch.float32)
    kept, voters, wide_scores = (x.to(dtype) for x in (kept_segments, segments, scores))
    threshold = kept.new_tensor(iou_threshold)
    out = kept.double().clone()  # float64 would be the argument itself
    for k, (start, end) in enumerate(kept):
        total, sums = kept.new_tensor(0.0).double(), kept.new_zeros(2).double()
        for voter, score in zip(voters, wide_scores, strict=True):
            inter = torch.clamp(torch.minimum(end, voter[1]) - torch.maximum(start, voter[0]), 0)
            iou = inter / ((end - start) + (voter[1] - voter[0]) - inter)
            if iou >= threshold:
                vote = (score * iou if weight == "score_iou" else score).double()
                total = total + vote
                sums = sums + vote * voter.double()
        if total != 0:
            out[k] = sums / total
    return out.to(kept_segments.dtype)
