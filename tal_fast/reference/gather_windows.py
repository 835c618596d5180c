# SPDX-License-Identifier: Apache-2.0
"""Windows row by row, the slow and obvious twin of ``tal_fast.ops.gather_windows``."""

import torch
from torch import Tensor


def gather_windows(
    store: Tensor,
    first_row: Tensor,
    rows: Tensor,
    length: int,
    dtype: torch.dtype | None = None,
    channels_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """Copies one row at a time; rows that do not exist, in window or store, are padding."""
    features = store.new_zeros(len(rows), length, store.shape[1], dtype=dtype or store.dtype)
    mask = store.new_ones(len(rows), length, dtype=torch.bool)
    for b, (first, count) in enumerate(zip(first_row.tolist(), rows.tolist(), strict=True)):
        for t in range(length):
            if t < count and 0 <= first + t < len(store):
                features[b, t] = store[first + t]
                mask[b, t] = False
    return features.transpose(1, 2).contiguous() if channels_first else features, mask
