# SPDX-License-Identifier: Apache-2.0
"""The twin of :func:`tal_fast.ops.deform_attn_fused`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["deform_attn_fused"]


def deform_attn_fused(
    value: Tensor,
    level_lengths: Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    padding_mask: Tensor | None = None,
) -> Tensor:
    """Computes deformable attention in float64, one level, point and tap after the other.

    Args:
        value: Tensor[B, S, H, D].
        level_lengths: rows of each level.
        reference_points: Tensor[B, Q, L, 1] or Tensor[B, Q, L, 2].
        sampling_offsets: Tensor[B, Q, H, L, P].
        attention_logits: Tensor[B, Q, H, L, P] or Tensor[B, Q, H, L * P].
        padding_mask: bool Tensor[B, S], True = padding.

    Returns:
        Tensor[B, Q, H * D], float64, differentiable by torch's own rules.
    """
    value, reference = value.double(), reference_points.double()
    offsets, logits = sampling_offsets.double(), attention_logits.double()
    if padding_mask is not None:
        value = torch.where(padding_mask[:, :, None, None], 0.0, value)
    batch, _, heads, channels = value.shape
    _, queries, _, levels, points = offsets.shape
    weights = logits.reshape(batch, queries, heads, levels * points).softmax(-1)
    weights = weights.view(offsets.shape)
    out = value.new_zeros(batch, queries, heads, channels)
    first = 0
    for level, length in enumerate(level_lengths):
        rows = value[:, first : first + length]  # [B, T, H, D]
        first += length
        centre = reference[:, :, None, level, 0]  # [B, Q, 1]
        for point in range(points):
            offset = offsets[:, :, :, level, point]  # [B, Q, H]
            if reference.shape[-1] == 1:
                location = centre + offset / length
            else:
                location = centre + offset / points * reference[:, :, None, level, 1] * 0.5
            x = location * length - 0.5
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
