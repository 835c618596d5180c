# SPDX-License-Identifier: Apache-2.0
"""Which instance's ends a point learns: of those around it the one that costs it least."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tal_fast.models.base import Targets
from tal_fast.models.losses import focal_loss
from tal_fast.models.pyramid.detector import PyramidOutput
from tal_fast.models.pyramid.losses import offset_diou
from tal_fast.models.pyramid.points import Points
from tal_fast.models.pyramid.targets import instances_of_clips
from tal_fast.models.temporalmaxer.config import TemporalMaxerLoss

__all__ = ["cheapest_offsets"]


@torch.no_grad()
def cheapest_offsets(
    output: PyramidOutput, targets: Targets, points: Points, config: TemporalMaxerLoss
) -> Tensor:
    """Returns ``Tensor[B, P, 2]``: distances to the ends of the cheapest instance of each point.

    An instance costs a point that lies in it, ends included, the focal loss of its class and the
    DIoU loss of its ends, as the network sees them now (Ge et al., "YOLOX", 2021, section 2.1). In
    rows of the point's level; 0 where no instance contains the point.

    Args:
        output: of the network.
        targets: of the same clips.
        points: of every clip.
        config: weights of the costs, and the focal loss.
    """
    parts = [
        _of_clip(logits.float(), offsets.float(), segments, labels, points, config)
        for logits, offsets, (segments, labels) in zip(
            output.logits,
            output.offsets,
            instances_of_clips(targets, points.place.device),
            strict=True,
        )
    ]
    return torch.stack(parts)


def _of_clip(
    logits: Tensor,
    offsets: Tensor,
    segments: Tensor,
    labels: Tensor,
    points: Points,
    config: TemporalMaxerLoss,
) -> Tensor:
    """Returns ``Tensor[P, 2]`` of one clip with N instances."""
    if not len(segments):
        return torch.zeros_like(offsets)
    place = points.place[:, None]  # [P, 1]
    start, end = segments.unbind(1)  # [N]
    # Starts and ends apart in memory: sums over both are then quick.
    wanted = torch.stack((place - start, end - place)) / points.stride[:, None]  # [2, P, N]
    found = offsets.t().contiguous()[..., None]  # [2, P, 1]
    of_ends = offset_diou(found.movedim(0, -1), wanted.movedim(0, -1))
    # Of its class alone: what all classes add where they are not wanted is the same for all
    # instances, and only which one is the cheapest counts.
    alpha, gamma = config.focal_alpha, config.focal_gamma
    of_class = focal_loss(logits, torch.ones_like(logits), alpha, gamma)
    of_class -= focal_loss(logits, torch.zeros_like(logits), alpha, gamma)
    cost = config.class_cost * of_class[:, labels] + config.diou_cost * of_ends
    cheapest, chosen = cost.masked_fill(wanted.amin(0) < 0, math.inf).min(dim=1)
    chosen_ends = wanted.gather(2, chosen[None, :, None].expand(2, -1, 1))[..., 0].t()
    return chosen_ends.masked_fill((cheapest == math.inf)[:, None], 0.0)
