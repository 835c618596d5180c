# SPDX-License-Identifier: Apache-2.0
"""The two ways to write a segment: (start, end) and (centre, width)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["center_width_to_start_end", "inverse_sigmoid", "start_end_to_center_width"]


def center_width_to_start_end(segments: Tensor) -> Tensor:
    """Converts segments from (centre, width) to (start, end).

    Args:
        segments: ``Tensor[..., 2]`` in any unit.

    Returns:
        ``Tensor[..., 2]`` in the same unit.
    """
    center, half_width = segments[..., 0], 0.5 * segments[..., 1]
    return torch.stack((center - half_width, center + half_width), dim=-1)


def start_end_to_center_width(segments: Tensor) -> Tensor:
    """Converts segments from (start, end) to (centre, width).

    Args:
        segments: ``Tensor[..., 2]`` in any unit.

    Returns:
        ``Tensor[..., 2]`` in the same unit.
    """
    start, end = segments[..., 0], segments[..., 1]
    return torch.stack((0.5 * (start + end), end - start), dim=-1)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Returns ``log(x / (1 - x))`` with both arguments kept at least ``eps``.

    Args:
        x: ``Tensor[...]``, clamped to [0, 1].
        eps: keeps the result finite at the ends of the window (|result| <= -log(eps)).
    """
    x = x.clamp(min=0.0, max=1.0)
    return torch.log(x.clamp(min=eps) / (1.0 - x).clamp(min=eps))
