# SPDX-License-Identifier: Apache-2.0
"""Boundary max pooling, the slow and obvious twin of ``tal_fast.ops.boundary_max_pool``.

The second function is the twin of its gradient with ``compat="afsd"``, which is not that of the
first one.
"""

import math

import torch
from torch import Tensor


def boundary_max_pool(features: Tensor, segments: Tensor) -> Tensor:
    """Takes range by range; see ``tal_fast.ops.boundary_max_pool``. Differentiable by torch."""
    batch, channels, rows = features.shape
    values, best = features.tolist(), []
    for b, positions in enumerate(segments.tolist()):
        ranges = [[_range(p, second, rows) for p in positions] for second in (False, True)]
        for c in range(channels):
            best += [
                first + _argmax(values[b][c][first : last + 1])
                for first, last in ranges[c >= channels // 2]
            ]
    index = torch.tensor(best, dtype=torch.int64, device=features.device)
    return features.gather(2, index.view(batch, channels, segments.shape[1]))


def boundary_max_pool_afsd_gradient(grad: Tensor, features: Tensor, segments: Tensor) -> Tensor:
    """The gradient of AFSD's published kernel, whose number of rows is the number of segments.

    grad [B, C, K], features [B, C, T], K <= T. Every address is computed as if T were K.
    """
    batch, channels, count = grad.shape
    values = features.reshape(-1)
    result = features.new_zeros(features.numel(), dtype=torch.float64)
    for b in range(batch):
        for c in range(channels):
            row = (b * channels + c) * count
            for k, positions in enumerate(segments[b].tolist()):
                first, last = _range(positions, c >= channels // 2, count)
                best = first + _argmax(values[row + first : row + last + 1].tolist())
                result[row + best] += grad[b, c, k].to(torch.float64)
    return result.view(features.shape).to(grad.dtype)


def _range(positions: list[float], second: bool, rows: int) -> tuple[int, int]:
    start, end = (
        int(min(max(math.trunc(p) if math.isfinite(p) else p, 0), rows - 1))
        for p in (positions[2:] if second else positions[:2])
    )
    return start, max(start, end)


def _argmax(values: list[float]) -> int:
    best = 0
    for i, value in enumerate(values):
        if math.isnan(values[best]):
            break
        if value > values[best] or math.isnan(value):
            best = i
    return best
