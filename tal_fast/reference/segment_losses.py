# SPDX-License-Identifier: Apache-2.0
"""The twins of the losses in :mod:`tal_fast.ops.segment_losses`."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["diou_loss", "giou_loss", "iou_loss"]


def iou_loss(pred: Tensor, target: Tensor, reduction: str = "none", eps: float = 1e-8) -> Tensor:
    """1 - IoU in float64; arguments as in the op, with any leading axes."""
    p, t = pred.double(), target.double()
    return _reduce(1 - _iou(p, t, eps), reduction)


def giou_loss(pred: Tensor, target: Tensor, reduction: str = "none", eps: float = 1e-8) -> Tensor:
    """1 - GIoU in float64; arguments as in the op, with any leading axes."""
    p, t = pred.double(), target.double()
    hull = torch.maximum(p[..., 1], t[..., 1]) - torch.minimum(p[..., 0], t[..., 0])
    union = (p[..., 1] - p[..., 0]) + (t[..., 1] - t[..., 0]) - _intersection(p, t)
    return _reduce(1 - _iou(p, t, eps) + (hull - union) / (hull + eps), reduction)


def diou_loss(pred: Tensor, target: Tensor, reduction: str = "none", eps: float = 1e-8) -> Tensor:
    """1 - DIoU in float64; arguments as in the op, with any leading axes."""
    p, t = pred.double(), target.double()
    hull = torch.maximum(p[..., 1], t[..., 1]) - torch.minimum(p[..., 0], t[..., 0])
    distance = (p[..., 0] + p[..., 1]) / 2 - (t[..., 0] + t[..., 1]) / 2
    return _reduce(1 - _iou(p, t, eps) + distance**2 / (hull**2 + eps), reduction)


def _intersection(p: Tensor, t: Tensor) -> Tensor:
    ends = torch.minimum(p[..., 1], t[..., 1])
    return (ends - torch.maximum(p[..., 0], t[..., 0])).clamp(min=0)


def _iou(p: Tensor, t: Tensor, eps: float) -> Tensor:
    inner = _intersection(p, t)
    return inner / ((p[..., 1] - p[..., 0]) + (t[..., 1] - t[..., 0]) - inner + eps)


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return losses.sum() / (max(losses.numel(), 1) if reduction == "mean" else 1)
