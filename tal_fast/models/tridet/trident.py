# SPDX-License-Identifier: Apache-2.0
"""Boundaries as expected distances over bins (TriDet, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["expected_distances"]


def expected_distances(
    starts: Tensor,
    ends: Tensor,
    offsets: Tensor,
    strides: Tensor,
    clip: Tensor,
    point: Tensor,
    label: Tensor,
) -> Tensor:
    """Returns how far chosen points expect the boundaries of chosen classes.

    A start j = 0, ..., b rows before a point is as likely as the softmax over j of its class's
    start logit there plus the point's own logit of bin j; an end after it alike. Where there is no
    row of the point's level the boundary logit counts as 0.

    Args:
        starts: ``Tensor[B, P, K]``, logits of a start at each point, 0 on padded ones.
        ends: ``Tensor[B, P, K]``, logits of an end.
        offsets: ``Tensor[B, P, 2 (b + 1)]``, logits of the bins: of starts by falling distance,
            then of ends by rising distance.
        strides: ``Tensor[P]``, which tell the levels apart.
        clip: ``LongTensor[N]``.
        point: ``LongTensor[N]``.
        label: ``LongTensor[N]``.

    Returns:
        ``Tensor[N, 2]`` float32, distances to start and end in rows of the point's level.
    """
    bins = offsets.shape[2] // 2
    size, classes = starts.shape[1:]
    distance = torch.arange(bins, device=point.device)
    place = torch.arange(size, device=point.device)[:, None]
    before, after = offsets[clip, point].float().split(bins, dim=1)  # [N, b + 1]
    # Rows are looked up per point, of which there are fewer than chosen pairs, and logits by one
    # index: three would have to be computed into one for every bin.
    first = (clip * (size * classes) + label)[:, None]
    sides = []
    for logits, own, row in (
        (starts, before.flip(1), place - distance),
        (ends, after, place + distance),
    ):
        near = row.clamp(0, size - 1)  # [P, b + 1]
        outside = (near != row) | (strides[near] != strides[:, None])
        boundary = logits.reshape(-1)[(near * classes)[point] + first].float()
        share = (boundary.masked_fill(outside[point], 0.0) + own).softmax(dim=1)
        sides.append(share @ distance.float())
    return torch.stack(sides, dim=1)
