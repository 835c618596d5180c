# SPDX-License-Identifier: Apache-2.0
"""Bipartite matching of predicted segments and instances."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tal_fast import ops
from tal_fast.models.segments import center_width_to_start_end
from tal_fast.training.config import LossConfig

__all__ = ["Matches", "match"]


class Matches(NamedTuple):
    """Matched pairs of all decoder layers, as flat index tensors of equal length.

    Attributes:
        layer: decoder layer of the prediction.
        window: its index in the batch.
        query: its query.
        target: the instance, as an index into the batch's concatenated instances.
    """

    layer: Tensor
    window: Tensor
    query: Tensor
    target: Tensor


@torch.no_grad()
def match(
    logits: Tensor,
    segments: Tensor,
    labels: Tensor,
    targets: Tensor,
    counts: list[int],
    config: LossConfig,
) -> Matches:
    """Finds, per decoder layer and window, the one-to-one assignment of least cost.

    Cost = focal class cost + L1 distance - IoU, each weighted (TadTR, section III-D; DETR, Carion
    et al. 2020, equation 1). The costs of all layers leave the device in one copy.

    Args:
        logits: ``Tensor[K, B, Q, classes]``.
        segments: ``Tensor[K, B, Q, 2]``, (centre, width).
        labels: ``LongTensor[M]``, classes of the batch's instances, window after window.
        targets: ``Tensor[M, 2]``, their (centre, width).
        counts: instances of each window; they sum to M.
        config: weights of the costs.

    Returns:
        :class:`Matches` on the device of ``logits``; min(Q, instances) pairs per layer and window.
    """
    probability = logits.sigmoid()
    alpha, gamma = config.focal_alpha, config.focal_gamma
    negative = -(1 - alpha) * probability**gamma * (1 - probability + 1e-8).log()
    positive = -alpha * (1 - probability) ** gamma * (probability + 1e-8).log()
    cost = config.cost_classification * (positive - negative)[..., labels]  # [K, B, Q, M]

    flat = segments.reshape(-1, 2)
    distance = torch.cdist(flat, targets, p=1)
    overlap = ops.segment_iou(
        center_width_to_start_end(flat), center_width_to_start_end(targets), eps=1e-12
    )
    pairwise = config.cost_l1 * distance - config.cost_iou * overlap
    costs = (cost + pairwise.view(cost.shape)).cpu().numpy()

    layer, window, query, target = [], [], [], []
    for k in range(len(logits)):
        first = 0
        for b, count in enumerate(counts):
            if count:
                rows, columns = linear_sum_assignment(costs[k, b, :, first : first + count])
                layer += [k] * len(rows)
                window += [b] * len(rows)
                query += rows.tolist()
                target += (columns + first).tolist()
            first += count
    index = torch.tensor([layer, window, query, target], dtype=torch.int64).view(4, -1)
    return Matches(*index.to(logits.device))
