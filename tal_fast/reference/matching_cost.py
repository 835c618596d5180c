# SPDX-License-Identifier: Apache-2.0
"""The twin of :func:`tal_fast.ops.matching_cost`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["matching_cost"]


def matching_cost(
    logits: Tensor,
    segments: Tensor,
    labels: Tensor,
    targets: Tensor,
    counts: Sequence[int],
    classification: float = 6.0,
    l1: float = 5.0,
    iou: float = 2.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
    eps: float = 1e-12,
) -> Tensor:
    """Computes the cost in float64, all instances at once, and lays it out block by block.

    Args:
        logits: Tensor[K, B, Q, C] or Tensor[B, Q, C].
        segments: Tensor[K, B, Q, 2] or Tensor[B, Q, 2], (centre, width).
        labels: int64 Tensor[M].
        targets: Tensor[M, 2], (centre, width).
        counts: instances per video.
        classification: weight of the class cost.
        l1: weight of the distance.
        iou: weight of the overlap.
        alpha: of the focal cost.
        gamma: of the focal cost.
        eps: added to the union.

    Returns:
        Tensor[K * Q * M], float64.
    """
    if logits.dim() == 3:
        logits, segments = logits[None], segments[None]
    sizes = torch.tensor(counts, dtype=torch.int64)
    video = torch.arange(len(counts)).repeat_interleave(sizes).to(logits.device)  # [M]
    x = logits.double()[:, video, :, labels.long()]  # [M, K, Q]
    p, rest = x.sigmoid(), (-x).sigmoid()  # rest = 1 - p
    positive = -alpha * rest**gamma * (p + 1e-8).log()
    negative = -(1 - alpha) * p**gamma * (rest + 1e-8).log()
    center, width = segments.double()[:, video].transpose(0, 1).unbind(-1)  # [M, K, Q]
    other_center, other_width = targets.double()[:, :, None, None].unbind(1)  # [M, 1, 1]
    distance = (center - other_center).abs() + (width - other_width).abs()
    start = torch.maximum(center - width / 2, other_center - other_width / 2)
    end = torch.minimum(center + width / 2, other_center + other_width / 2)
    inner = (end - start).clamp(min=0)
    overlap = inner / (width + other_width - inner + eps)
    cost = classification * (positive - negative) + l1 * distance - iou * overlap
    blocks = [
        block.T.reshape(-1)  # Q * m
        for layer in cost.unbind(1)
        for block in layer.split(list(counts))
    ]
    return torch.cat(blocks) if blocks else logits.new_zeros(0, dtype=torch.float64)
