# SPDX-License-Identifier: Apache-2.0
"""Bipartite matching of predicted segments and instances."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tal_fast import ops
from tal_fast.models.tadtr.config import TadTRLoss

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
    config: TadTRLoss,
    real: Tensor | None = None,
) -> Matches:
    """Finds, per decoder layer and window, the one-to-one assignment of least cost.

    Cost = focal class cost + L1 distance - IoU, each weighted (TadTR, section III-D; DETR, Carion
    et al. 2020, equation 1). Everything stays on the device, and nothing waits for it.

    Args:
        logits: ``Tensor[K, B, Q, classes]``.
        segments: ``Tensor[K, B, Q, 2]``, (centre, width).
        labels: ``LongTensor[M]``, classes of the batch's instances, window after window.
        targets: ``Tensor[M, 2]``, their (centre, width).
        counts: instances of each window; they sum to M.
        config: weights of the costs.
        real: ``BoolTensor[M]``, False for instances that only fill room, of which every window then
            has as many as ``counts`` says, and no more than there are queries. Each takes a query
            that no real one has: the matches of real ones are those without them.

    Returns:
        :class:`Matches` on the device of ``logits``; min(Q, instances) pairs per layer and window.
        Where predictions that are not finite leave no assignment, a GPU, which cannot raise, gives
        query -1.

    Raises:
        RuntimeError: on a CPU, for predictions that are not finite.
    """
    layers, windows, queries, _ = logits.shape
    # Detached for forward mode too, which no_grad does not end: a choice has no derivative.
    costs = ops.matching_cost(
        logits.detach(),
        segments.detach(),
        labels,
        targets,
        counts,
        classification=config.cost_classification,
        l1=config.cost_l1,
        iou=config.cost_iou,
        alpha=config.focal_alpha,
        gamma=config.focal_gamma,
    )
    if real is not None:
        # Alike for all queries, so they decide nothing; they come last, and take what is left.
        blocks = costs.view(layers, windows, queries, counts[0])
        costs = blocks.masked_fill(~real.view(1, windows, 1, -1), 0.0).flatten()
    problem, query, column = ops.linear_assignment(costs, queries, counts * layers)
    layer = torch.div(problem, windows, rounding_mode="floor")
    window = problem - layer * windows
    first = ops.ragged_index(counts, logits).first
    return Matches(layer, window, query, column + first[window])
