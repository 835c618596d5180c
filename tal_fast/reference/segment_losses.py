# SPDX-License-Identifier: Apache-2.0
"""The twins of the losses in :mod:`tal_fast.ops.segment_losses`."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["diou_loss", "giou_loss", "iou_loss"]


def iou_loss(pred: Tensor, target: Tensor, reduction: str = "none", eps: float = 1e-8) -> Tensor:
    """1 - IoU in float64, one pair at a time; arguments as in the op."""
    return _reduce([1 - _iou(p, t, eps) for p, t in _pairs(pred, target)], reduction)


def giou_loss(pred: Tensor, target: Tensor, reduction: str = "none", eps: float = 1e-8) -> Tensor:
    """1 - GIoU in float64, one pair at a time; arguments as in the op."""
    losses = []
    for p, t in _pairs(pred, target):
        hull = torch.maximum(p[1], t[1]) - torch.minimum(p[0], t[0])
        union = (p[1] - p[0]) + (t[1] - t[0]) - _intersection(p, t)
        losses.append(1 - _iou(p, t, eps) + (hull - union) / (hull + eps))
    return _reduce(losses, reduction)


def diou_loss(pred: Tensor, target: Tensor, reduction: str = "none", eps: float = 1e-8) -> Tensor:
    """1 - DIoU in float64, one pair at a time; arguments as in the op."""
    losses = []
    for p, t in _pairs(pred, target):
        hull = torch.maximum(p[1], t[1]) - torch.minimum(p[0], t[0])
        distance = (p[0] + p[1]) / 2 - (t[0] + t[1]) / 2
        losses.append(1 - _iou(p, t, eps) + distance**2 / (hull**2 + eps))
    return _reduce(losses, reduction)


def _pairs(pred: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(pred.double(), target.double(), strict=True))


def _intersection(p: Tensor, t: Tensor) -> Tensor:
    return (torch.minimum(p[1], t[1]) - torch.maximum(p[0], t[0])).clamp(min=0)


def _iou(p: Tensor, t: Tensor, eps: float) -> Tensor:
    inner = _intersection(p, t)
    return inner / ((p[1] - p[0]) + (t[1] - t[0]) - inner + eps)


def _reduce(losses: list[Tensor], reduction: str) -> Tensor:
    stacked = torch.stack(losses) if losses else torch.zeros(0, dtype=torch.float64)
    if reduction == "none":
        return stacked
    return stacked.sum() / (max(len(losses), 1) if reduction == "mean" else 1)
