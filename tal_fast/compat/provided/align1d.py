# SPDX-License-Identifier: Apache-2.0
"""``Align1D``: the RoIAlign of segments of G-TAD, TadTR and OpenTAD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tal_fast import ops
from tal_fast.compat.options import Options
from tal_fast.compat.reporting import Report

__all__ = ["functions"]


def functions(name: str, options: Options, report: Report) -> dict[str, Callable[..., Any]]:
    """Returns ``forward`` and ``backward``."""
    return {"forward": forward, "backward": backward}


def forward(input: Tensor, rois: Tensor, feature_dim: int, ratio: int) -> Tensor:
    """Returns ``Tensor[K, C, feature_dim]``.

    Args:
        input: Tensor[B, C, T].
        rois: Tensor[K, 3]: index into the batch, start, end.
        feature_dim: bins of a segment.
        ratio: samples per bin; 0: one per row.
    """
    return ops.segment_roi_align(input, _wide(rois), feature_dim, ratio)


def backward(
    grad: Tensor, rois: Tensor, feature_dim: int, bs: int, ch: int, t: int, ratio: int
) -> Tensor:
    """Returns the gradient for the input: ``Tensor[bs, ch, t]``. Deterministic."""
    return torch.ops.tal_fast.segment_roi_align_backward(grad, _wide(rois), bs, t, ratio, False)


def _wide(rois: Tensor) -> Tensor:
    return rois if rois.dtype == torch.float64 else rois.float()
