# SPDX-License-Identifier: Apache-2.0
"""The cost of matching queries with instances in a set-prediction loss (DETR, TadTR), fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tal_fast.ops.arguments import check_tensors
from tal_fast.ops.registration import register_autocast, register_autograd, register_no_flops

__all__ = ["matching_cost"]


def matching_cost(
    logits: Tensor,
    segments: Tensor,
    labels: Tensor,
    targets: Tensor,
    counts: Sequence[int],
    *,
    classification: float = 6.0,
    l1: float = 5.0,
    iou: float = 2.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
    eps: float = 1e-12,
) -> Tensor:
    r"""Focal class cost + L1 distance - IoU of every query with every instance of its own video.

    With the probability :math:`p = \mathrm{sigmoid}(x)` of the instance's class (TadTR, section
    III-D; Carion et al. 2020, equation 1; the focal class cost of Deformable DETR):

    .. math::
        C = w_{class} \left(-\alpha (1 - p)^\gamma \log(p + 10^{-8})
            + (1 - \alpha) p^\gamma \log(1 - p + 10^{-8})\right)
            + w_{l1} (|c - c'| + |w - w'|) - w_{iou} \mathrm{IoU}

    Nothing is computed for pairs of different videos, and a class once per query however many
    instances have it.

    Args:
        logits: Tensor[K, B, Q, C], K decoder layers, B videos, Q queries, C classes; or
            Tensor[B, Q, C], which is K = 1. float64, float32, float16 or bfloat16.
        segments: Tensor[K, B, Q, 2] or Tensor[B, Q, 2]: (centre, width) in any one unit.
        labels: int64 Tensor[M], the classes of the instances, video after video.
        targets: Tensor[M, 2], their (centre, width) in the unit of ``segments``.
        counts: instances of each video, B host integers that sum to M.
        classification: weight of the class cost; the defaults of the weights are those of TadTR.
        l1: weight of the L1 distance of (centre, width).
        iou: weight of the IoU of (start, end).
        alpha: weight of positives in the focal cost, in [0, 1].
        gamma: focusing exponent, >= 0.
        eps: added to the union, >= 0: with 0, two segments of zero width in one place cost NaN.

    Returns:
        Tensor[K * Q * M]: for every layer and in it every video, its block [Q, count] row after
        row; these are the problems that :func:`tal_fast.ops.linear_assignment` takes. Block
        k * B + b of ``costs.split([Q * n for n in counts] * K)``, seen as ``.view(Q, counts[b])``,
        is that of layer k and video b. float64 for float64 inputs (``logits``, ``segments`` and
        ``targets`` must all be), else float32: 16-bit inputs are widened, and may be mixed with
        float32. Carries no gradient, and forward AD is refused. NaN in gives NaN out.

    The results are the same bit for bit on every instruction set and for any number of threads; on
    CUDA too but for float64 and for ``gamma`` other than 2, which use functions of each device's
    own library (within a few ulp). In float32, exp and log are within 1 ulp, and 1 - p is computed
    without cancellation: for large logits the result is nearer to the formula than the same formula
    in float32 torch ops.

    Raises:
        TypeError: an argument is no tensor.
        RuntimeError: on wrong shapes, dtypes or devices, labels outside [0, C), counts that are
            negative or do not sum to M, ``alpha``, ``gamma`` or ``eps`` out of range. On CUDA,
            where reading labels would wait for the GPU, an instance of a label outside [0, C) costs
            NaN instead.

    Example:
        >>> import torch
        >>> from tal_fast import ops
        >>> logits, segments = torch.zeros(2, 3, 5), torch.tensor([0.5, 0.2]).repeat(2, 3, 1)
        >>> labels, targets = torch.tensor([4, 1]), torch.tensor([[0.5, 0.2], [0.6, 0.2]])
        >>> costs = ops.matching_cost(logits, segments, labels, targets, [2, 0])
        >>> costs.view(3, 2)[0]  # the one block there is
        tensor([-2.5199, -0.6865])
    """
    check_tensors("matching_cost", logits=logits, segments=segments, labels=labels, targets=targets)
    return _op(
        logits, segments, labels, targets, counts, classification, l1, iou, alpha, gamma, eps
    )


@torch.library.register_fake("tal_fast::matching_cost")
def _fake(
    logits: Tensor,
    segments: Tensor,
    labels: Tensor,
    targets: Tensor,
    counts: Sequence[int],
    classification: float,
    l1: float,
    iou: float,
    alpha: float,
    gamma: float,
    eps: float,
) -> Tensor:
    layers = logits.shape[0] if logits.dim() == 4 else 1
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.new_empty(layers * logits.shape[-2] * labels.shape[0], dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.mark_non_differentiable(output)


def _no_gradient(ctx: Any, grad: Tensor) -> None:
    raise RuntimeError("matching_cost: the cost has no gradient")


_op = register_autograd("matching_cost", _no_gradient, setup_context=_setup_context)
register_autocast("matching_cost")
register_no_flops("matching_cost")
