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
    entries = [
        [start, end, score, (end - start) + number(length_eps), row]
        for row, ((start, end), score) in enumerate(zip(segments, scores, strict=True))
    ]
    found = []
    i = 0
    while i < len(entries):
        best = i
        for p in range(i + 1, len(entries)):
            if entries[best][2] < entries[p][2]:
                best = p
        entries[i], entries[best] = entries[best], entries[i]
        start, end, score, length, _ = entries[i]
        found.append(torch.stack([start, end, score]))
        acts_from = number(iou_threshold)
        if method == "length_gaussian":
            acts_from = number(t1) + number(t2) * length
        p = i + 1
        while p < len(entries):
            other = entries[p]
            inter = (torch.minimum(end, other[1]) - torch.maximum(start, other[0])).clamp(min=0)
            iou = inter / (length + other[3] - inter)
            if method == "gaussian" or iou >= acts_from:
                if method == "hard":
                    weight = number(0.0)
                elif method == "linear":
                    weight = 1 - iou
                else:
                    weight = torch.exp(-(iou * iou) / number(sigma))
                other[2] = other[2] * weight
            if other[2] < number(min_score):
                last = entries.pop()
                if p < len(entries):
                    entries[p] = last
            else:
                p += 1
        i += 1
    rows = torch.tensor([entry[4] for entry in entries], dtype=torch.int64)
    return rows, torch.stack(found) if found else segments.new_empty((0, 3))
