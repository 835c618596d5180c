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
    """Weighted means over all segments that are near enough; see ``tal_fast.ops.segment_voting``.

    Tensors may have leading axes that they share: of one problem each.
    """
    dtype = torch.promote_types(segments.dtype, torch.float32)
    kept, voters, wide_scores = (x.to(dtype) for x in (kept_segments, segments, scores))
    start, end = kept[..., :, None, :].unbind(-1)  # [..., K, 1]
    other_start, other_end = voters[..., None, :, :].unbind(-1)  # [..., 1, N]
    inter = torch.clamp(torch.minimum(end, other_end) - torch.maximum(start, other_start), 0)
    iou = inter / ((end - start) + (other_end - other_start) - inter)
    votes = (wide_scores[..., None, :] * (iou if weight == "score_iou" else 1.0)).double()
    near = (iou >= kept.new_tensor(iou_threshold))[..., None]  # [..., K, N, 1]
    total = torch.where(near, votes[..., None], 0.0).sum(-2)  # [..., K, 1]
    products = votes[..., None] * voters[..., None, :, :].double()
    sums = torch.where(near, products, 0.0).sum(-2)
    return torch.where(total != 0, sums / total, kept.double()).to(kept_segments.dtype)
