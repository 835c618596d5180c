# SPDX-License-Identifier: Apache-2.0
"""The twin of :func:`tal_fast.ops.deform_attn`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["deform_attn"]


def deform_attn(
    value: Tensor,
    level_lengths: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Computes deformable attention in float64, one level, point and tap after the other.

    Args:
        value: Tensor[B, S, H, D].
        level_lengths: rows of each level.
        sampling_locations: Tensor[B, Q, H, L, P].
        attention_weights: Tensor[B, Q, H, L, P].

    Returns:
        Tensor[B, Q, H * D], float64, differentiable by torch's own rules: ``floor`` has gradient
        zero, so a location's gradient is the slope to its right.
    """
    value, locations = value.double(), sampling_locations.double()
    weights = attention_weights.double()
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    out = value.new_zeros(batch, queries, heads, channels)
    first = 0
    for level, length in enumerate(level_lengths):
        rows = value[:, first : first + length]  # [B, T, H, D]
        first += length
        for point in range(points):
            x = locations[:, :, :, level, point] * length - 0.5  # [B, Q, H]
            weight = weights[:, :, :, level, point]
            out = out + ((x - x) + (weight - weight))[..., None]  # NaN where one is not finite
            contributes = (x > -1) & (x < length)
            left = x.floor()
            for tap, share in ((left, 1 - (x - left)), (left + 1, x - left)):
                inside = contributes & (tap >= 0) & (tap < length)
                index = torch.where(inside, tap, 0.0).long()
                taken = rows.gather(1, index[..., None].expand(-1, -1, -1, channels))
                factor = weight * share
                out = out + torch.where(inside[..., None], factor[..., None] * taken, 0.0)
    return out.reshape(batch, queries, heads * channels)
