# SPDX-License-Identifier: Apache-2.0
"""Soft-NMS in an array that changes places, entry by entry: the twin of the op of that name."""

import torch
from torch import Tensor


def soft_nms_literal(
    segments: Tensor,
    scores: Tensor,
    method: str = "gaussian",
    *,
    sigma: float = 0.5,
    iou_threshold: float = 0.1,
    min_score: float = 0.001,
    length_eps: float = 1e-6,
    t1: float = 0.0,
    t2: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Takes the arguments of the op and computes in their dtype; float32 has its bits, but for exp.

    Returns:
        Rows ``Tensor[K]`` and ``Tensor[K, 3]``: start, end, score.
    """
    number = segments.new_tensor
    starts, ends = segments.unbind(1)
    lengths = (ends - starts) + number(length_eps)
    # What the row does to the column.
    inter = torch.minimum(ends[:, None], ends) - torch.maximum(starts[:, None], starts)
    inter = inter.clamp(min=0)
    ious = inter / (lengths[:, None] + lengths - inter)
    acts_from = number(iou_threshold)
    if method == "length_gaussian":
        acts_from = (number(t1) + number(t2) * lengths)[:, None]
    acts = torch.ones_like(ious, dtype=torch.bool) if method == "gaussian" else ious >= acts_from
    if method == "hard":
        weights = torch.zeros_like(ious)
    else:
        weights = 1 - ious if method == "linear" else torch.exp(-(ious * ious) / number(sigma))
    scores = scores.clone()
    entries = list(range(len(segments)))
    found = []
    i = 0
    while i < len(entries):
        values = scores.tolist()
        best = i
        for p in range(i + 1, len(entries)):
            if values[entries[best]] < values[entries[p]]:
                best = p
        entries[i], entries[best] = entries[best], entries[i]
        row = entries[i]
        found.append(torch.cat([segments[row], scores[row, None]]))
        rest = torch.tensor(entries[i + 1 :], dtype=torch.int64)
        decayed = torch.where(acts[row], scores * weights[row], scores)[rest]
        scores[rest] = decayed
        low = (scores < number(min_score)).tolist()
        p = i + 1
        while p < len(entries):
            if low[entries[p]]:
                last = entries.pop()
                if p < len(entries):
                    entries[p] = last
            else:
                p += 1
        i += 1
    rows = torch.tensor(entries, dtype=torch.int64)
    return rows, torch.stack(found) if found else segments.new_empty((0, 3))
