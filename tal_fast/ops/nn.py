# SPDX-License-Identifier: Apache-2.0
"""Layers around the ops, as ``torch.nn`` has them: projections, and the op between them.

>>> from tal_fast.ops import nn
>>> attention = nn.DeformableAttention(d_model=256, num_heads=8)

Weights are float32, whatever torch's default dtype is. The models of the library use these very
classes, so parameter names are those of the official checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tal_fast.ops.deform_attn_fused import deform_attn_fused
from tal_fast.ops.local_attn import local_attn

__all__ = ["DeformableAttention", "LocalAttention"]


class DeformableAttention(nn.Module):
    """Temporal deformable attention (TadTR, Liu et al., TIP 2022, section III-B).

    Each query looks at ``num_points`` positions per head and level around its reference, instead of
    at all rows. Parameter names are those of the official model.

    Args:
        d_model: width of queries and values.
        num_heads: number of heads; divides ``d_model``.
        num_levels: number of temporal resolutions of the value sequence.
        num_points: sampling points per head and level.

    Raises:
        ValueError: ``num_heads`` does not divide ``d_model``.
    """

    def __init__(
        self, d_model: int = 256, num_heads: int = 8, num_levels: int = 1, num_points: int = 4
    ) -> None:
        super().__init__()
        _check_heads("DeformableAttention", d_model, num_heads)
        self.d_model = d_model
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(d_model, samples, dtype=torch.float32)
        self.attention_weights = nn.Linear(d_model, samples, dtype=torch.float32)
        self.value_proj = nn.Linear(d_model, d_model, dtype=torch.float32)
        self.output_proj = nn.Linear(d_model, d_model, dtype=torch.float32)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starts with fixed sampling patterns: head h looks cos(4 pi h / H)·p rows away."""
        angle = torch.arange(self.num_heads, dtype=torch.float32) * (4.0 * math.pi / self.num_heads)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        pattern = (angle.cos()[:, None, None] * steps).expand(-1, self.num_levels, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(pattern.reshape(-1))
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,  # [B, Q, d_model]
        reference: Tensor,  # [B, Q, L, 1 or 2]
        value: Tensor,  # [B, S, d_model]
        level_lengths: Sequence[int],
        padding_mask: Tensor | None = None,  # [B, S], True = padding
    ) -> Tensor:
        """Attends from ``query`` to ``value``.

        Args:
            query: ``Tensor[B, Q, d_model]``.
            reference: ``Tensor[B, Q, L, 1]`` (centre) or ``Tensor[B, Q, L, 2]`` (centre, width),
                in [0, 1] of the window. Offsets are rows for a centre, and P-ths of half the
                width for a segment.
            value: ``Tensor[B, S, d_model]``, the levels one after the other.
            level_lengths: rows of each level; they sum to S.
            padding_mask: ``Tensor[B, S]``, True where the value is padding.

        Returns:
            ``Tensor[B, Q, d_model]``.
        """
        batch, num_queries, _ = query.shape
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        # One product for both projections: the query is read once.
        offsets, logits = F.linear(
            query,
            torch.cat((self.sampling_offsets.weight, self.attention_weights.weight)),
            torch.cat((self.sampling_offsets.bias, self.attention_weights.bias)),
        ).chunk(2, dim=-1)
        samples = (batch, num_queries, heads, levels, points)
        attended = deform_attn_fused(
            self.value_proj(value).view(batch, -1, heads, self.d_model // heads),
            tuple(level_lengths),
            reference.float(),  # in every mode: bfloat16 is off by half a row at 256 rows
            offsets.view(samples),
            logits.view(samples),
            padding_mask,
        )
        return self.output_proj(attended)


class LocalAttention(nn.Module):
    """Self-attention of every row among the rows near it (ActionFormer, ECCV 2022, section 3.2).

    One projection to queries, keys and values, :func:`tal_fast.ops.local_attn`, one projection
    back. ActionFormer itself has convolutions in the place of the first; its layer is in
    :mod:`tal_fast.models.actionformer`.

    Args:
        d_model: width of the rows.
        num_heads: number of heads; divides ``d_model``.
        window: rows that each row sees, as in :func:`tal_fast.ops.local_attn`: itself and
            ``window // 2`` on either side, so that an even number is the next odd one.

    Raises:
        ValueError: ``num_heads`` does not divide ``d_model``, or ``window`` is below 1.
    """

    def __init__(self, d_model: int, num_heads: int, window: int) -> None:
        super().__init__()
        _check_heads("LocalAttention", d_model, num_heads)
        if window < 1:
            raise ValueError(f"LocalAttention: expected window >= 1, got {window}")
        self.num_heads = num_heads
        self.window = window
        self.in_proj = nn.Linear(d_model, 3 * d_model, dtype=torch.float32)
        self.out_proj = nn.Linear(d_model, d_model, dtype=torch.float32)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Attends among the rows of each sequence.

        Args:
            x: ``Tensor[B, T, d_model]``.
            padding_mask: ``BoolTensor[B, T]``, True where the row is padding: no row sees it, and
                what comes back there is the bias of the last projection.

        Returns:
            ``Tensor[B, T, d_model]``.
        """
        query, key, value = self.in_proj(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        attended = local_attn(query, key, value, self.window, padding_mask)
        return self.out_proj(attended.flatten(2))


def _check_heads(layer: str, d_model: int, num_heads: int) -> None:
    if num_heads < 1 or d_model % num_heads:
        raise ValueError(
            f"{layer}: expected num_heads to divide d_model = {d_model}, got {num_heads}"
        )
