# SPDX-License-Identifier: Apache-2.0
"""Layers that the models share.

Weights are float32, whatever torch's default dtype is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tal_fast import ops

__all__ = ["MLP", "DeformableAttention", "sine_position_encoding"]


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        in_features: width of the input.
        hidden_features: width of every hidden layer.
        out_features: width of the output.
        num_layers: number of linear layers.
    """

    def __init__(
        self, in_features: int, hidden_features: int, out_features: int, num_layers: int
    ) -> None:
        super().__init__()
        widths = [in_features, *[hidden_features] * (num_layers - 1), out_features]
        self.layers = nn.ModuleList(
            nn.Linear(n_in, n_out, dtype=torch.float32)
            for n_in, n_out in itertools.pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``Tensor[..., in_features]`` to ``Tensor[..., out_features]``."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x), inplace=True)
        return self.layers[-1](x)


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
        if d_model % num_heads:
            raise ValueError(
                f"DeformableAttention: expected num_heads to divide d_model = {d_model}, "
                f"got {num_heads}"
            )
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
        attended = ops.deform_attn_fused(
            self.value_proj(value).view(batch, -1, heads, self.d_model // heads),
            tuple(level_lengths),
            reference.float(),  # in every mode: bfloat16 is off by half a row at 256 rows
            offsets.view(samples),
            logits.view(samples),
            padding_mask,
        )
        return self.output_proj(attended)


def sine_position_encoding(
    padding_mask: Tensor, width: int, temperature: float = 10_000.0
) -> Tensor:
    """Sine and cosine position code, normalised so that the valid rows span 2 pi.

    Vaswani et al., NeurIPS 2017, section 3.5, with DETR's normalisation.

    Args:
        padding_mask: ``BoolTensor[B, T]``, True where the row is padding.
        width: number of channels; even.
        temperature: ratio of the longest to the shortest wavelength.

    Returns:
        ``Tensor[B, T, width]`` float32; sine on even channels, cosine on odd ones.
    """
    rows = (~padding_mask).cumsum(1, dtype=torch.float32)
    rows = rows / (rows[:, -1:] + 1e-6) * (2.0 * math.pi)
    exponent = torch.arange(0, width, 2, dtype=torch.float32, device=padding_mask.device) / width
    phase = rows[..., None] / temperature**exponent  # [B, T, width / 2]
    return torch.stack((phase.sin(), phase.cos()), dim=-1).flatten(2)
