# SPDX-License-Identifier: Apache-2.0
"""Windows by an index, the slow and obvious twin of ``tal_fast.ops.gather_windows``."""

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
    """Takes rows; those that do not exist, in window or store, are padding."""
    at = torch.arange(length, device=store.device)
    index = first_row[:, None] + at  # [B, length]
    mask = (at >= rows[:, None]) | (index < 0) | (index >= len(store))
    some = store if len(store) else store.new_zeros(1, store.shape[1])
    taken = some[torch.where(mask, 0, index)].to(dtype or store.dtype)
    features = taken.masked_fill(mask[..., None], 0)
    return features.transpose(1, 2).contiguous() if channels_first else features, mask
