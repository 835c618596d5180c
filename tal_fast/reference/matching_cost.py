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
    """Computes the cost in float64, one layer, video and instance at a time.

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
    blocks = []
    for x, segment in zip(logits.double(), segments.double(), strict=True):
        first = 0
        for b, count in enumerate(counts):
            columns = []
            for t in range(first, first + count):
                p = x[b, :, labels[t]].sigmoid()
                rest = (-x[b, :, labels[t]]).sigmoid()  # 1 - p
                positive = -alpha * rest**gamma * (p + 1e-8).log()
                negative = -(1 - alpha) * p**gamma * (rest + 1e-8).log()
                center, width = segment[b].unbind(-1)
                other_center, other_width = targets[t].double()
                distance = (center - other_center).abs() + (width - other_width).abs()
                start = torch.maximum(center - width / 2, other_center - other_width / 2)
                end = torch.minimum(center + width / 2, other_center + other_width / 2)
                inner = (end - start).clamp(min=0)
                overlap = inner / (width + other_width - inner + eps)
                cost = classification * (positive - negative) + l1 * distance - iou * overlap
                columns.append(cost)
            if columns:
                blocks.append(torch.stack(columns, dim=1).reshape(-1))
            first += count
    return torch.cat(blocks) if blocks else logits.new_zeros(0, dtype=torch.float64)
