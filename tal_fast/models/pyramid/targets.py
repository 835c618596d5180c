# SPDX-License-Identifier: Apache-2.0
"""Which point learns which instance (ActionFormer, Zhang et al., ECCV 2022, section 3.3)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tal_fast.data.batches import to_device
from tal_fast.models.base import Targets
from tal_fast.models.pyramid.points import Points

__all__ = ["PointTargets", "instances_of_clips", "point_targets"]

_TIE = 1e-3  # rows; of instances whose lengths differ by no more a point learns every class


class PointTargets(NamedTuple):
    """What each point of a batch learns.

    Attributes:
        classes: ``Tensor[B, P, K]``, 1 where the point has the class, else 0.
        offsets: ``Tensor[B, P, 2]``, distances from the point to start and end of its instance, in
            rows of its level; 0 where the point has none.
        most: no more (point, class) pairs than this are 1 in ``classes``; known to the host.
    """

    classes: Tensor
    offsets: Tensor
    most: int


@torch.no_grad()
def point_targets(
    targets: Targets, points: Points, num_classes: int, radius: float
) -> PointTargets:
    """Assigns instances to points.

    An instance is a candidate of a point that lies strictly inside it and strictly within
    ``radius`` strides of its centre, and whose distance to the farther end is in the range of the
    point's level, bounds included. Of several candidates the shortest one wins; those that are
    longer by at most 1e-3 rows add their classes.

    Args:
        targets: of the clips.
        points: of every clip.
        num_classes: number of classes K.
        radius: in strides.
    """
    classes, offsets = [], []
    for segments, labels in instances_of_clips(targets, points.place.device):
        found = _of_clip(segments, labels, points, num_classes, radius)
        classes.append(found[0])
        offsets.append(found[1])
    # Of each instance those within the radius; one more for a rounded bound.
    near = len(points.sizes) * (math.ceil(2 * radius) + 1)
    most = min(near * sum(targets.counts), sum(map(len, classes)) * num_classes)
    return PointTargets(torch.stack(classes), torch.stack(offsets), most)


def instances_of_clips(targets: Targets, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Returns segments ``Tensor[N, 2]`` and labels ``LongTensor[N]`` of each clip.

    Args:
        targets: of the clips.
        device: where the tensors are to be.
    """
    # Points are known by the centres of rows.
    segments = to_device((targets.edges - 0.5).float(), device)
    labels = to_device(targets.labels, device)
    counts = list(targets.counts)
    return list(zip(segments.split(counts), labels.split(counts), strict=True))


def _of_clip(
    segments: Tensor, labels: Tensor, points: Points, num_classes: int, radius: float
) -> tuple[Tensor, Tensor]:
    """Returns classes and offsets of the points of one clip."""
    place = points.place[:, None]  # [P, 1]
    if not len(segments):
        nothing = place.new_zeros(len(place), num_classes)
        return nothing, place.new_zeros(len(place), 2)
    start, end = segments.unbind(1)  # [N]
    reach = points.stride[:, None] * radius
    centre = 0.5 * (start + end)
    left, right = place - start, end - place  # [P, N]
    near = torch.minimum(
        place - torch.maximum(centre - reach, start), torch.minimum(centre + reach, end) - place
    )
    farther = torch.maximum(left, right)
    in_range = (farther >= points.low[:, None]) & (farther <= points.high[:, None])
    lengths = (end - start).expand_as(left)
    lengths = lengths.masked_fill(~((near > 0) & in_range), math.inf)
    shortest, chosen = lengths.min(dim=1)  # the first of several
    has = shortest < math.inf
    wins = (lengths <= shortest[:, None] + _TIE) & has[:, None]
    classes = (wins.float() @ F.one_hot(labels, num_classes).float()).clamp(max=1.0)
    both = torch.stack((left, right), dim=-1)  # [P, N, 2]
    nearest_edges = both.gather(1, chosen[:, None, None].expand(-1, 1, 2))[:, 0]
    nearest_edges = nearest_edges / points.stride[:, None]
    return classes, nearest_edges.masked_fill(~has[:, None], 0.0)
