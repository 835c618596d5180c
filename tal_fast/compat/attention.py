# SPDX-License-Identifier: Apache-2.0
"""Deformable attention as other codebases call it, on ``ops.deform_attn``.

They give levels as lengths [L] or as (height, width) [L, 2], and locations as x, as (…, 1) or as
(…, 2) with x in front. A level of height 1 is one row of pixels: a location at height y reads it
with the weight 1 - |y - 0.5|, so x alone is left for the op.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["attend_in_two_dimensions", "row_slope", "row_weight", "widths_of_rows"]


def widths_of_rows(shapes: Sequence[Sequence[int]]) -> list[int] | None:
    """Returns the widths of levels of height 1; None if one is higher."""
    return [width for _, width in shapes] if all(height == 1 for height, _ in shapes) else None


def row_weight(y: Tensor) -> Tensor:
    """Returns how much of a row of height 1 a sample at height y reads.

    At y = 0.5, where the slope breaks, the gradient is that of ``grid_sample``: to the right.
    """
    return torch.where(y >= 0.5, 1.5 - y, 0.5 + y).clamp(min=0)


def row_slope(y: Tensor) -> Tensor:
    """Returns the derivative of :func:`row_weight`."""
    slope = torch.where(y >= 0.5, -1.0, 1.0)
    return torch.where((y > -0.5) & (y < 1.5), slope, 0.0).to(y.dtype)


def attend_in_two_dimensions(
    value: Tensor, shapes: Sequence[Sequence[int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Deformable attention with levels of any height, out of torch's own ops.

    Args:
        value: Tensor[B, S, H, D].
        shapes: height and width of each level.
        locations: Tensor[B, Q, H, L, P, 2]: x and y in [0, 1].
        weights: Tensor[B, Q, H, L, P].

    Returns:
        Tensor[B, Q, H * D], differentiable.
    """
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    levels = value.split([height * width for height, width in shapes], dim=1)
    total = value.new_zeros(batch * heads, channels, queries)
    for level_number, (level, (height, width)) in enumerate(zip(levels, shapes, strict=True)):
        image = level.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        grid = (
            locations[:, :, :, level_number].transpose(1, 2).flatten(0, 1) * 2 - 1
        )  # [B * H, Q, P, 2]
        samples = F.grid_sample(image, grid, padding_mode="zeros", align_corners=False)
        of_level = weights[:, :, :, level_number].transpose(1, 2).flatten(0, 1)  # [B * H, Q, P]
        total = total + torch.einsum("ncqp,nqp->ncq", samples, of_level)
    return total.view(batch, heads * channels, queries).transpose(1, 2).contiguous()
