# SPDX-License-Identifier: Apache-2.0
"""One call and more of every public op, for tests of what holds for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tal_fast import ops


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Case(NamedTuple):
    """One call, as a function of the tensors that could have a derivative."""

    call: Callable[..., Any]
    tensors: tuple[Tensor, ...]
    forward: str
    """right: gives the tangent; refused: NotImplementedError; indices: returns no other numbers."""
    twice: bool = False
    """Whether it has second derivatives; without, they are refused."""


A, B = random(5, 2).cumsum(1), random(5, 2, seed=1).cumsum(1)
SCORES, LABELS = random(5, seed=2), torch.tensor([0, 0, 1, 1, 0])
FEATURES = random(2, 4, 7)
ENDS = torch.tensor([[[0.0, 2.9, 3.0, 6.0], [1.0, 1.0, 2.0, 9.0]]] * 2, dtype=torch.float64)
ROIS = torch.tensor([[0.0, 1.0, 4.5], [1.0, 0.0, 6.0]], dtype=torch.float64)
LEVELS = (4, 2)  # rows
ATTENTION = (random(2, 6, 1, 2), random(2, 2, 1, 2, 2) * 1.4 - 0.2, random(2, 2, 1, 2, 2, seed=1))
PADDED = torch.tensor([[False] * 5 + [True], [False] * 6])
DROPPED = torch.cat([random(6), -random(6)])
COUNTS = [2, 1]
FIRST, ROWS = torch.tensor([0, 2]), torch.tensor([3, 2])


def dropout(*tensors: Tensor, **options: Any) -> Tensor:
    torch.manual_seed(0)
    return ops.dropout(*tensors, p=0.5, **options)


def scores_of(op: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return lambda a, scores: op(a, scores, **options)


CASES: dict[str, list[Case]] = {
    "segment_iou": [
        Case(lambda a, b, k=kind, p=aligned: ops.segment_iou(a, b, k, p, 0.1), (A, b), "right")
        for kind in ("iou", "giou", "diou", "ioa")
        for aligned, b in ((False, B[:3]), (True, B))
    ],
    **{
        name: [
            Case(lambda a, b, n=name, r=reduction: getattr(ops, n)(a, b, r), (A, B), "right")
            for reduction in ("none", "mean")
        ]
        for name in ("iou_loss", "giou_loss", "diou_loss")
    },
    "deform_attn": [
        Case(lambda v, at, weights: ops.deform_attn(v, LEVELS, at, weights), ATTENTION, "right")
    ],
    "deform_attn_fused": [
        Case(
            lambda v, at, o, w, m=mask: ops.deform_attn_fused(v, LEVELS, at, o, w, m),
            (ATTENTION[0], random(2, 2, 2, last, seed=5), ATTENTION[1] * 3, ATTENTION[2]),
            "right",
        )
        for last, mask in ((1, None), (2, PADDED))
    ],
    "local_attn": [
        Case(
            lambda parts, m=mask: ops.local_attn(parts[0], parts[1], parts[2], 3, m),
            (random(3, 2, 6, 2, 3, seed=6),),  # of one dtype
            "right",
        )
        for mask in (None, PADDED)
    ],
    "boundary_max_pool": [
        Case(lambda x: ops.boundary_max_pool(x, ENDS), (FEATURES,), "right", twice=True),
        Case(lambda x: ops.boundary_max_pool(x, ENDS, "afsd"), (FEATURES,), "refused", twice=True),
    ],
    "segment_roi_align": [
        Case(lambda x: ops.segment_roi_align(x, ROIS, 3), (FEATURES,), "right", twice=True),
        Case(lambda rois: ops.segment_roi_align(FEATURES, rois, 3), (ROIS,), "refused"),
    ],
    "dropout": [
        Case(dropout, (DROPPED,), "right", twice=True),
        Case(lambda x: dropout(x, relu=True), (DROPPED,), "right", twice=True),
        Case(lambda x, y: dropout(x, residual=y), (DROPPED, random(12)), "right", twice=True),
    ],
    "gather_windows": [
        Case(
            lambda x: ops.gather_windows(x, FIRST, ROWS, 3),
            (FEATURES[0],),
            "refused",
        )
    ],
    "matching_cost": [
        Case(
            lambda x, s, t: ops.matching_cost(x, s, LABELS[1:4], t, COUNTS),
            (FEATURES, random(2, 4, 2), B[:3]),
            "refused",
        )
    ],
    "soft_nms": [Case(scores_of(ops.soft_nms), (A, SCORES), "refused")],
    # Of float32 alone.
    "soft_nms_literal": [
        Case(scores_of(ops.soft_nms_literal), (A.float(), SCORES.float()), "refused")
    ],
    "soft_nms_padded": [
        Case(scores_of(ops.soft_nms_padded, max_segments=3), (A, SCORES), "refused")
    ],
    "batched_nms": [Case(scores_of(ops.batched_nms, labels=LABELS), (A, SCORES), "refused")],
    "batched_nms_padded": [
        Case(
            scores_of(ops.batched_nms_padded, labels=LABELS, max_segments=3),
            (A, SCORES),
            "refused",
        )
    ],
    "fuse_windows": [
        Case(
            scores_of(
                ops.fuse_windows,
                labels=LABELS,
                windows=LABELS,
                window_spans=B[:2],
                window_videos=torch.zeros(2, dtype=torch.int64),
            ),
            (A, SCORES),
            "refused",
        )
    ],
    "segment_voting": [
        Case(lambda k, a, s: ops.segment_voting(k, a, s, 0.5), (A[:2], A, SCORES), "refused")
    ],
    "nms": [Case(scores_of(ops.nms, iou_threshold=0.5), (A, SCORES), "indices")],
    "nms_padded": [
        Case(scores_of(ops.nms_padded, iou_threshold=0.5, max_segments=3), (A, SCORES), "indices")
    ],
    "linear_assignment": [
        Case(lambda costs: ops.linear_assignment(costs, 2, [3]), (random(6),), "indices")
    ],
    "ragged_index": [Case(lambda x: ops.ragged_index(COUNTS, x), (A,), "indices")],
}
