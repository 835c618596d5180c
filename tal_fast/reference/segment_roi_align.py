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
    """Reads sample by sample; see ``tal_fast.ops.segment_roi_align``.

    Features are summed in float64. Positions are computed in the dtype of ``rois``, as the op does:
    the number of samples and which of them lie outside are part of the definition.
    """
    _, channels, num_rows = features.shape
    wide = features.to(torch.float64)
    out = []
    for index, start, end in rois:
        item = wide[int(index)]  # [C, T]
        if aligned:
            start, end = start - 0.5, end - 0.5
            length = end - start
        else:
            length = torch.clamp(end - start, min=1)
        bin_length = length / output_size
        samples = sampling_ratio or int(torch.ceil(bin_length))
        for p in range(output_size):
            total = wide.new_zeros(channels)
            for i in range(samples):
                position = start + p * bin_length + (i + 0.5) * bin_length / samples
                total = total + _value(item, position, num_rows)
            # Length 0 and no sampling_ratio: no sample, and an average of zero.
            out.append(total / max(samples, 1))
    if not out:
        return features.new_empty(0, channels, output_size)
    stacked = torch.stack(out).reshape(len(rois), output_size, channels)
    return stacked.transpose(1, 2).to(features.dtype)


def _value(item: Tensor, position: Tensor, num_rows: int) -> Tensor:
    if position < -1 or position > num_rows:
        return item.new_zeros(item.shape[0])
    position = torch.clamp(position, min=0)
    row = int(torch.floor(position))
    if row >= num_rows - 1:
        return item[:, num_rows - 1]
    upper = (position - row).to(item.dtype)
    return (1 - upper) * item[:, row] + upper * item[:, row + 1]
