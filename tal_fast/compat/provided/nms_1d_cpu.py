# SPDX-License-Identifier: Apache-2.0
"""``nms_1d_cpu``: the NMS of ActionFormer, TriDet, TemporalMaxer, OpenTAD and their kin.

One module serves both forms: OpenTAD's ``softnms`` has the arguments ``t1`` and ``t2`` more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tal_fast import ops
from tal_fast.compat.options import Options
from tal_fast.compat.reporting import Report
from tal_fast.ops.nms import METHODS
from tal_fast.ops.soft_nms_literal import soft_nms_literal

__all__ = ["functions"]

_EPS = 1e-6  # added to every length
# The words of torch's own message, which the original gives.
_WORDS = {torch.float64: "Double", torch.float16: "Half", torch.bfloat16: "BFloat16"}


def functions(name: str, options: Options, report: Report) -> dict[str, Callable[..., Any]]:
    """Returns ``nms`` and ``softnms``, the latter literal or fused."""
    return {"nms": nms, "softnms": softnms if options.nms == "literal" else softnms_fused}


def nms(segs: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Returns the kept rows by falling score: int64 Tensor[K].

    Equal scores are in the order of ``scores.sort(descending=True)``, which is not stable.

    Args:
        segs: float32 Tensor[N, 2], contiguous.
        scores: Tensor[N] of any dtype.
        iou_threshold: an IoU of this much or more suppresses.

    Raises:
        RuntimeError: on another dtype, or if an argument is not contiguous.
    """
    _check(segs=segs)
    _check_contiguous(segs=segs, scores=scores)
    if segs.numel() == 0:
        return torch.empty(0, dtype=torch.int64, device=segs.device)
    order = scores.sort(0, descending=True)[1]
    # As a float, as which the original compares.
    threshold = float(torch.tensor(iou_threshold, dtype=torch.float32, device="cpu"))
    if threshold > 1 or math.isnan(threshold):
        return order
    rank = torch.arange(len(segs), 0, -1, dtype=torch.float32, device=segs.device)
    kept = ops.nms(
        segs[order],
        rank,
        max(threshold, 0.0),
        iou_comparison="ge",
        length_eps=_EPS,
        validate=False,
    )
    return order[kept]


def softnms(
    segs: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    t1: float = 0.0,
    t2: float = 0.0,
) -> Tensor:
    """Returns the kept rows as they are picked: int64 Tensor[K]; the original's, bit for bit.

    Args:
        segs: float32 Tensor[N, 2], contiguous.
        scores: float32 Tensor[N], contiguous.
        dets: float32 Tensor[N, 3]; row r is set to start, end and decayed score of the r-th pick.
        iou_threshold: of methods 0 and 1.
        sigma: of methods 2 and 3.
        min_score: what falls below it is dropped.
        method: 0 hard, 1 linear, 2 Gaussian, 3 Gaussian from ``t1 + t2 * length`` on.
        t1: see ``method``.
        t2: see ``method``.

    Raises:
        RuntimeError: on another dtype or method, or if an argument is not contiguous.
    """
    _check_soft(segs, scores, dets, method)
    device = segs.device
    rows, found = soft_nms_literal(
        segs.detach().cpu(),
        scores.detach().cpu(),
        METHODS[method],
        sigma=sigma,
        iou_threshold=iou_threshold,
        min_score=min_score,
        length_eps=_EPS,
        t1=t1,
        t2=t2,
    )
    dets[: len(rows)] = found.to(device)
    return rows.to(device)


def softnms_fused(
    segs: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    t1: float = 0.0,
    t2: float = 0.0,
) -> Tensor:
    """As :func:`softnms`, faster: equal scores by row, the exponential rounded correctly."""
    _check_soft(segs, scores, dets, method)
    if method < 2 or not sigma > 0 or not min_score >= 0 or bool(scores.isnan().any()):
        return softnms(segs, scores, dets, iou_threshold, sigma, min_score, method, t1, t2)
    rows, found = ops.soft_nms(
        segs.detach(),
        scores.detach(),
        METHODS[method],
        sigma,
        0.0,
        min_score,
        None,
        iou_comparison="ge",
        length_eps=_EPS,
        t1=t1,
        t2=t2,
        spare_first=True,
        validate=False,
    )
    dets[: len(rows), :2] = segs[rows]
    dets[: len(rows), 2] = found
    return rows


def _check_soft(segs: Tensor, scores: Tensor, dets: Tensor, method: int) -> None:
    _check(segs=segs, scores=scores, dets=dets)
    _check_contiguous(segs=segs, scores=scores, dets=dets)
    if method not in range(4):
        raise RuntimeError(f"softnms: expected method 0, 1, 2 or 3, got {method}")


def _check(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            found = _WORDS.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
            raise RuntimeError(f"expected scalar type Float but found {found} ({name})")


def _check_contiguous(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise RuntimeError(f"{name} must be contiguous")
