# SPDX-License-Identifier: Apache-2.0
"""Losses of points."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["offset_diou", "offset_iou"]

_EPS = 1e-8


def offset_iou(offsets: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Returns intersection over union of two segments around the same point, and the union.

    Args:
        offsets: ``Tensor[..., 2]``, distances to start and end, >= 0.
        wanted: the same of the other segment.
    """
    inner = torch.minimum(offsets, wanted).sum(-1)
    union = offsets.sum(-1) + wanted.sum(-1) - inner
    return inner / union.clamp(min=_EPS), union


def offset_diou(offsets: Tensor, wanted: Tensor) -> Tensor:
    """Returns 1 - DIoU of two segments around the same point, not reduced.

    Zheng et al., AAAI 2020, equation 7, in one dimension: 1 - IoU + (distance of the centres over
    length of the hull)².

    Args:
        offsets: ``Tensor[..., 2]``, distances to start and end, >= 0.
        wanted: the same of the other segment.
    """
    iou, _ = offset_iou(offsets, wanted)
    hull = torch.maximum(offsets, wanted).sum(-1)
    shift = offsets - wanted
    distance = 0.5 * (shift[..., 1] - shift[..., 0])
    return 1.0 - iou + (distance / hull.clamp(min=_EPS)) ** 2
