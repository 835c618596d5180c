# SPDX-License-Identifier: Apache-2.0
"""Bin averages of segments, the slow and obvious twin of ``tal_fast.ops.segment_roi_align``."""

import torch
from torch import Tensor


def segment_roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: int,
    sampling_ratio: int = 0,
    aligned: bool = False,
) -> Tensor:
    """Reads one sample of all bins after the other; see ``tal_fast.ops.segment_roi_align``.

    Features are summed in float64. Positions are computed in the dtype of ``rois``, as the op does:
    the number of samples and which of them lie outside are part of the definition.
    """
    num_rows = features.shape[2]
    wide = features.to(torch.float64)
    index, start, end = rois[:, :, None].unbind(1)  # [K, 1]
    if aligned:
        start, end = start - 0.5, end - 0.5
        length = end - start
    else:
        length = torch.clamp(end - start, min=1)
    bin_length = length / output_size
    samples = torch.ceil(bin_length).long()
    samples = torch.full_like(samples, sampling_ratio) if sampling_ratio else samples
    # Length 0 and no sampling_ratio: no sample, and an average of zero.
    divisor = samples.clamp(min=1)
    p = torch.arange(output_size, device=rois.device)
    total = wide.new_zeros(len(rois), output_size, features.shape[1])  # [K, bins, C]
    for i in range(int(samples.max()) if len(rois) else 0):
        position = start + p * bin_length + (i + 0.5) * bin_length / divisor  # [K, bins]
        value = _value(wide, index.long(), position, num_rows)
        total = total + torch.where((i < samples)[..., None], value, 0.0)
    return (total / divisor[..., None]).transpose(1, 2).to(features.dtype)


def _value(wide: Tensor, index: Tensor, position: Tensor, num_rows: int) -> Tensor:
    """[B, C, T], [K, 1] and [K, bins] -> [K, bins, C]."""
    outside = (position < -1) | (position > num_rows)
    position = torch.clamp(position, min=0)
    row = torch.floor(position).clamp(max=num_rows - 1).long()
    upper = (position - row).to(wide.dtype)[..., None]
    value, following = wide[index, :, row], wide[index, :, (row + 1).clamp(max=num_rows - 1)]
    between = (1 - upper) * value + upper * following
    inside = torch.where((row >= num_rows - 1)[..., None], value, between)
    return torch.where(outside[..., None], 0.0, inside)
