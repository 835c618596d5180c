# SPDX-License-Identifier: Apache-2.0
"""The twin of :func:`tal_fast.ops.segment_iou`."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["segment_iou"]


def segment_iou(
    a: Tensor,
    b: Tensor,
    kind: str = "iou",
    aligned: bool = False,
    eps: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Computes IoU, GIoU, DIoU or IoA, differentiable by torch's own rules.

    Args:
        a: Tensor[N, 2].
        b: Tensor[M, 2].
        kind: ``iou``, ``giou``, ``diou`` or ``ioa``.
        aligned: pairs ``a[i]`` with ``b[i]`` alone; leading axes may be any that match.
        eps: added to every denominator.
        dtype: what it computes in.

    Returns:
        Tensor[N, M] or Tensor[N] of ``dtype``.
    """
    a, b = a.to(dtype), b.to(dtype)
    if not aligned:
        a, b = a[:, None], b[None]
    a_start, a_end = a[..., 0], a[..., 1]
    b_start, b_end = b[..., 0], b[..., 1]
    inner = (torch.minimum(a_end, b_end) - torch.maximum(a_start, b_start)).clamp(min=0)
    union = (a_end - a_start) + (b_end - b_start) - inner
    hull = torch.maximum(a_end, b_end) - torch.minimum(a_start, b_start)
    distance = 0.5 * ((a_start + a_end) - (b_start + b_end))
    iou = inner / (union + eps)
    return {
        "iou": iou,
        "giou": iou - (hull - union) / (hull + eps),
        "diou": iou - distance**2 / (hull**2 + eps),
        "ioa": inner / ((a_end - a_start) + eps),
    }[kind]
