# SPDX-License-Identifier: Apache-2.0
"""Regression losses of 1-D segments: 1 - IoU, 1 - GIoU and 1 - DIoU of matched pairs.

All three are :func:`tal_fast.ops.segment_iou` with ``aligned=True``, one native pass forward and
one backward that recomputes instead of storing. The rules of that op for dtypes, ties and NaN hold
here too.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from tal_fast.ops.arguments import check_tensors, position, renamed
from tal_fast.ops.segment_iou import segment_iou

__all__ = ["diou_loss", "giou_loss", "iou_loss"]

Reduction = Literal["none", "mean", "sum"]


def iou_loss(
    pred: Tensor, target: Tensor, reduction: Reduction = "none", eps: float = 1e-8
) -> Tensor:
    """1 - IoU of each prediction with its target.

    Its gradient is zero, in all four ends, for a pair that neither overlaps nor touches: such a
    prediction learns nothing. See :func:`giou_loss` and :func:`diou_loss`, which pull.

    Args:
        pred: Tensor[N, 2], (start, end) in any one unit; float64, float32, float16 or bfloat16.
        target: Tensor[N, 2] of the same dtype.
        reduction: ``none`` returns one loss per pair, ``sum`` their sum, ``mean`` their mean. The
            mean of no pair is 0, as is its gradient, and not the NaN of ``Tensor.mean``: a batch
            without a positive must not end a training.
        eps: added to the denominator, >= 0, as in :func:`tal_fast.ops.segment_iou`. With a positive
            one, the loss of two equal segments is ``eps / (length + eps)``, of zero length 1.

    Returns:
        Tensor[N], or a scalar Tensor[] when reduced, in the dtype of ``pred``; float32 under
        autocast. Differentiable once, for ``pred`` and ``target``, in both modes.

    Raises:
        ValueError: for an unknown ``reduction``.
        TypeError: ``pred`` or ``target`` is no tensor.
        RuntimeError: wrong shapes or dtypes, ``eps`` below 0 or no number, as ``segment_iou``.

    Example:
        >>> import torch
        >>> from tal_fast import ops
        >>> pred, target = torch.tensor([[0.0, 2.0], [5.0, 6.0]]), torch.tensor([[1.0, 3.0]] * 2)
        >>> ops.iou_loss(pred, target)
        tensor([0.6667, 1.0000])
    """
    return _loss("iou", pred, target, reduction, eps)


def giou_loss(
    pred: Tensor, target: Tensor, reduction: Reduction = "none", eps: float = 1e-8
) -> Tensor:
    """1 - GIoU of each prediction with its target (Rezatofighi et al., CVPR 2019, in 1-D).

    In [0, 2] for segments with start <= end. The gradient pulls segments that do not overlap
    together: their GIoU is minus the share of the hull that lies between them.

    Args:
        pred: as in :func:`iou_loss`.
        target: as in :func:`iou_loss`.
        reduction: as in :func:`iou_loss`.
        eps: added to both denominators, >= 0.

    Returns:
        As :func:`iou_loss`.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`iou_loss`.

    Example:
        >>> import torch
        >>> from tal_fast import ops
        >>> ops.giou_loss(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 4.0]]), "mean")
        tensor(1.2500)
    """
    return _loss("giou", pred, target, reduction, eps)


def diou_loss(
    pred: Tensor, target: Tensor, reduction: Reduction = "none", eps: float = 1e-8
) -> Tensor:
    """1 - DIoU of each prediction with its target (Zheng et al., AAAI 2020, in 1-D).

    In [0, 2) for segments with start <= end. The gradient pulls the centres together whether or not
    the segments overlap. ActionFormer and its descendants train with this loss.

    Args:
        pred: as in :func:`iou_loss`.
        target: as in :func:`iou_loss`.
        reduction: as in :func:`iou_loss`.
        eps: added to both denominators, of the IoU and of the squared hull, >= 0.

    Returns:
        As :func:`iou_loss`.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`iou_loss`.

    Example:
        >>> import torch
        >>> from tal_fast import ops
        >>> ops.diou_loss(torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 4.0]]), "sum")
        tensor(1.2500)
    """
    return _loss("diou", pred, target, reduction, eps)


def _loss(
    kind: Literal["iou", "giou", "diou"], pred: Tensor, target: Tensor, reduction: str, eps: float
) -> Tensor:
    check_tensors(f"{kind}_loss", pred=pred, target=target)
    position(f"{kind}_loss", "reduction", reduction, ("none", "mean", "sum"))
    try:
        loss = 1 - segment_iou(pred, target, kind, aligned=True, eps=eps)
    except RuntimeError as error:
        told = renamed(error, f"{kind}_loss", "segment_iou", a="pred", b="target")
        raise RuntimeError(str(told).replace(" with aligned=True", "")) from None
    if reduction == "none":
        return loss
    total = loss.sum()
    return total if reduction == "sum" else total / max(pred.shape[0], 1)
