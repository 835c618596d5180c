# SPDX-License-Identifier: Apache-2.0
"""Soft-NMS in the very order of ``nms_1d_cpu``, the extension of ActionFormer and OpenTAD.

:func:`tal_fast.ops.soft_nms` says which of equal scores comes first. That extension does not: it
swaps the entries of an array and takes the one that happens to lie first. Whoever needs its result
under ties, bit for bit, needs its moves. Part of ``tal_fast.compat``, not an op for new code, which
``soft_nms`` serves better and faster. There is no CUDA kernel: the scores have the last bit of the
C library's exponential, which no GPU has.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tal_fast.ops.arguments import check_tensors, position
from tal_fast.ops.nms_options import METHODS
from tal_fast.ops.registration import refuse_derivatives, register_without_gradient

__all__ = ["soft_nms_literal"]


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
    """Lowers the scores of segments that overlap a better one, in an array that it reorders.

    In round i the first of the highest scores from position i on changes places with position i.
    Every score behind it is multiplied by its weight; where one is then below ``min_score``, the
    last entry takes its place and is looked at there. So the first pick is kept whatever its score,
    and a score that nothing decays is dropped only once something else was picked. An IoU acts from
    the threshold on (>=), weights are those of :func:`tal_fast.ops.soft_nms`, and "hard" leaves a
    score of 0, which stays if ``min_score`` is 0.

    Nothing about values is checked: NaN and segments that end before they start go through the
    formulas as they are.

    Args:
        segments: Tensor[N, 2] of float32 on the CPU: start and end, in any unit.
        scores: Tensor[N] of float32.
        method: "hard", "linear", "gaussian" or "length_gaussian".
        sigma: of the Gaussian.
        iou_threshold: of "hard" and "linear".
        min_score: what a decay leaves below it is dropped.
        length_eps: added to every length.
        t1: "length_gaussian" acts from ``t1`` + ``t2`` * length of the picked one on.
        t2: see ``t1``.

    Returns:
        rows: int64 Tensor[K], as they were picked.
        found: float32 Tensor[K, 3]: start, end, and score when picked.

    Raises:
        ValueError: if ``method`` is unknown.
        TypeError: an argument that should be a tensor is none.
        RuntimeError: on a wrong shape, dtype or device.

    Example:
        >>> segments = torch.tensor([[0.0, 10.0], [0.0, 10.0], [20.0, 30.0]])
        >>> rows, found = soft_nms_literal(segments, torch.tensor([0.8, 0.9, 0.5]))
        >>> rows, found[:, 2]
        (tensor([1, 2, 0]), tensor([0.9000, 0.5000, 0.1083]))
    """
    check_tensors("soft_nms_literal", segments=segments, scores=scores)
    refuse_derivatives("soft_nms_literal", segments=segments, scores=scores)
    if segments.device.type != "cpu":
        raise RuntimeError(
            f"soft_nms_literal: expected segments on the CPU, got {segments.device}: "
            "its bits are those of the C library"
        )
    rows, found = torch.ops.tal_fast.soft_nms_literal.default(
        segments,
        scores,
        position("soft_nms_literal", "method", method, METHODS),
        sigma,
        iou_threshold,
        min_score,
        length_eps,
        t1,
        t2,
    )
    return rows, found


@torch.library.register_fake("tal_fast::soft_nms_literal")
def _fake(segments: Tensor, scores: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    kept = torch.library.get_ctx().new_dynamic_size()
    return segments.new_empty(kept, dtype=torch.int64), segments.new_empty((kept, 3))


register_without_gradient("soft_nms_literal")
# No autocast rule: it takes float32 alone, as the original does.
