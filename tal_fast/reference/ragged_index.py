# SPDX-License-Identifier: Apache-2.0
"""The twin of :func:`tal_fast.ops.ragged_index`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["ragged_index"]


def ragged_index(counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Group of every item and first item of every group."""
    sizes = torch.tensor(counts, dtype=torch.int64)
    return torch.arange(len(sizes)).repeat_interleave(sizes), sizes.cumsum(0) - sizes
