# SPDX-License-Identifier: Apache-2.0
"""The twin of :func:`tal_fast.ops.local_attn`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["local_attn"]


def local_attn(
    query: Tensor, key: Tensor, value: Tensor, window: int, mask: Tensor | None = None
) -> Tensor:
    """Attends in float64 to the rows in the window of each row that are no padding.

    Args:
        query: Tensor[B, T, H, D].
        key: Tensor[B, T, H, D].
        value: Tensor[B, T, H, D].
        window: rows seen; each side sees ``window // 2``.
        mask: bool Tensor[B, T], True = padding.

    Returns:
        Tensor[B, T, H, D], float64, differentiable by torch's own rules.
    """
    query, key, value = query.double(), key.double(), value.double()
    batch, rows, _, channels = query.shape
    padding = query.new_zeros(batch, rows, dtype=torch.bool) if mask is None else mask
    seen = torch.arange(rows)[:, None] + torch.arange(-(window // 2), window // 2 + 1)  # [T, W]
    exists = (seen >= 0) & (seen < rows)
    seen = seen.clamp(0, max(rows - 1, 0)).to(query.device)
    # A row of padding sees all, to have numbers; they are not used.
    inside = exists.to(query.device) & (~padding[:, seen] | padding[:, :, None])  # [B, T, W]
    scores = torch.einsum("bthd,btwhd->bthw", query, key[:, seen]) / math.sqrt(channels)
    weights = scores.masked_fill(~inside[:, :, None], -math.inf).softmax(-1)
    # What is outside must not weigh with 0 where it is infinite.
    values = torch.where(inside[..., None, None], value[:, seen], 0.0)
    result = torch.einsum("bthw,btwhd->bthd", weights, values)
    return torch.where(padding[:, :, None, None], 0.0, result)
