# SPDX-License-Identifier: Apache-2.0
"""Obvious twin of :func:`tal_fast.ops.dropout`: the same random bits, one formula at a time."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dropout", "keep_mask"]

_BLOCK = 2**20
_MASK32 = 2**32 - 1
_MASK64 = 2**64 - 1


def keep_mask(count: int, p: float, seed: int) -> Tensor:
    """Returns ``BoolTensor[count]``: the elements that dropout keeps.

    The bits of element i are two keyed rounds of MurmurHash3's 32-bit finaliser over its index in
    its block of 2^20 elements; the block's key is splitmix64 of (seed, block).
    """
    keep = []
    for first in range(0, count, _BLOCK):
        key = _splitmix64(seed, first // _BLOCK)
        bits = _mix(torch.arange(min(_BLOCK, count - first)) ^ (key & _MASK32))
        bits = _mix((bits + (key >> 32)) & _MASK32)
        keep.append(bits >= round(p * 2**32))
    return torch.cat(keep) if keep else torch.zeros(0, dtype=torch.bool)


def dropout(
    x: Tensor, p: float, seed: int, relu: bool = False, residual: Tensor | None = None
) -> Tensor:
    """Dropout of ``x`` in float64, with the mask of :func:`keep_mask`."""
    value = x.double()
    if relu:
        value = value.relu()
    value = value * keep_mask(x.numel(), p, seed).to(x.device).view(x.shape) / (1 - p)
    return value if residual is None else value + residual.double()


def _splitmix64(seed: int, block: int) -> int:
    z = (seed + (block + 1) * 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


def _mix(h: Tensor) -> Tensor:
    """Of 32 bits in int64, whose products wrap around, which the low 32 bits do not notice."""
    h = h ^ (h >> 16)
    h = (h * 0x85EBCA6B) & _MASK32
    h = h ^ (h >> 13)
    h = (h * 0xC2B2AE35) & _MASK32
    return h ^ (h >> 16)
