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
    """Attends in float64, one row after the other, to the rows in its window that are no padding.

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
    half = window // 2
    results = []
    for b in range(batch):
        for t in range(rows):
            seen = [
                s
                for s in range(max(0, t - half), min(rows, t + half + 1))
                if mask is None or not mask[b, s]
            ]
            if mask is not None and mask[b, t]:
                results.append(torch.zeros_like(query[b, t]))
                continue
            scores = torch.einsum("hd,shd->hs", query[b, t], key[b, seen]) / math.sqrt(channels)
            results.append(torch.einsum("hs,shd->hd", scores.softmax(-1), value[b, seen]))
    return torch.stack(results).view(query.shape) if results else query * key * value
