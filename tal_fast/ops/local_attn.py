# SPDX-License-Identifier: Apache-2.0
"""Self-attention of every row among the rows near it."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

__all__ = ["local_attn"]


def local_attn(query: Tensor, key: Tensor, value: Tensor, window: int, mask: Tensor) -> Tensor:
    """Attends from each row to the rows within half a window of it.

    Args:
        query: Tensor[B, T, H, D].
        key: Tensor[B, T, H, D].
        value: Tensor[B, T, H, D].
        window: rows seen; each side sees ``window // 2``, so an even window sees one more.
        mask: BoolTensor[B, T], True where the row is padding: no row sees it, and its own result is
            0.

    Returns:
        Tensor[B, T, H, D].
    """
    half = window // 2
    hidden = F.pad(mask, (half, half), value=True).unfold(1, 2 * half + 1, 1)  # [B, T, W]
    keys = F.pad(key, (0, 0, 0, 0, half, half)).unfold(1, 2 * half + 1, 1)  # [B, T, H, D, W]
    values = F.pad(value, (0, 0, 0, 0, half, half)).unfold(1, 2 * half + 1, 1)
    scores = (query[..., None, :] @ keys)[..., 0, :] / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(hidden[:, :, None], -math.inf)
    scores = scores.masked_fill(mask[..., None, None], 0.0)
    weights = scores.softmax(-1)
    attended = (values @ weights[..., None])[..., 0]
    return attended.masked_fill(mask[..., None, None], 0.0)
