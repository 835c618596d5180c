# SPDX-License-Identifier: Apache-2.0
"""Layers that the models share.

Weights are float32, whatever torch's default dtype is.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MLP", "sine_position_encoding"]


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
