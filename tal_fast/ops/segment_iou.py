# SPDX-License-Identifier: Apache-2.0
"""IoU, GIoU, DIoU and IoA of 1-D segments.

This op is the template for new ones. The schema and the checks are in ``csrc/ops/segment_iou.cpp``,
the kernel in ``csrc/cpu/segment_iou.cpp``; here are the public function and what torch must know
about the op besides its kernel: shapes (fake), gradient and tangent (autograd), precision
(autocast).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from tal_fast.ops.arguments import check_tensors, position
from tal_fast.ops.registration import (
    Tangents,
    register_autocast,
    register_autograd,
    register_no_flops,
    register_no_second_derivative,
)

__all__ = ["segment_iou"]

_KINDS = ("iou", "giou", "diou", "ioa")  # in the order of IouKind in csrc/cpu/segment_iou.h


def segment_iou(
    a: Tensor,
    b: Tensor,
    kind: Literal["iou", "giou", "diou", "ioa"] = "iou",
    aligned: bool = False,
    eps: float = 0.0,
) -> Tensor:
    r"""Intersection over union of segments, one of its generalisations, or over the length of one.

    With segments :math:`a = [s_a, e_a]` and :math:`b = [s_b, e_b]`, the intersection
    :math:`I = \max(0, \min(e_a, e_b) - \max(s_a, s_b))`, the union
    :math:`U = (e_a - s_a) + (e_b - s_b) - I`, the hull
    :math:`H = \max(e_a, e_b) - \min(s_a, s_b)` and the distance of the centres :math:`d`:

    * ``iou``: :math:`I / (U + eps)`
    * ``giou``: :math:`I / (U + eps) - (H - U) / (H + eps)` (Rezatofighi et al., CVPR 2019, in 1-D)
    * ``diou``: :math:`I / (U + eps) - d^2 / (H^2 + eps)` (Zheng et al., AAAI 2020, in 1-D)
    * ``ioa``: :math:`I / (e_a - s_a + eps)`, the share of ``a`` that ``b`` covers; not symmetric

    Lengths are not clamped: a segment with end < start has a negative length.

    Args:
        a: Tensor[N, 2], start and end in any one unit (seconds, rows or a fraction of the window);
            float64, float32, float16 or bfloat16.
        b: Tensor[M, 2] of the dtype of ``a``; N = M when ``aligned``.
        kind: the quantity.
        aligned: compares ``a[i]`` with ``b[i]`` alone instead of all pairs.
        eps: added to every denominator, >= 0. With the default 0, two segments of zero length at
            one point give 0/0 = NaN, as does their GIoU and DIoU, and as does the IoA of any ``a``
            of zero length.

    Returns:
        Tensor[N, M], or Tensor[N] when ``aligned``, in the dtype of ``a``. 16-bit inputs are
        computed in float32 and rounded once; under autocast the op computes and returns float32.
        float32 results equal those of the formulas above evaluated in this order, bit for bit,
        whatever the device, instruction set and number of threads. A NaN in a segment gives NaN.

    The gradient is defined everywhere: where two starts or two ends are equal each segment gets one
    half, and segments that just touch count as overlapping (the rules of ``torch.maximum`` and
    ``torch.clamp``). Both are found in one pass and summed in one fixed order, so they too are
    equal bit for bit, on a GPU as well. Forward mode (``torch.func.jvp``, ``jacfwd``) follows the
    same rules. There is no second derivative.

    Raises:
        ValueError: for an unknown ``kind``.
        TypeError: ``a`` or ``b`` is no tensor.
        RuntimeError: for a shape other than [N, 2], differing devices, differing or unsupported
            dtypes, differing lengths when ``aligned`` or a negative ``eps``.

    Example:
        >>> import torch
        >>> from tal_fast import ops
        >>> ops.segment_iou(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 3.0], [4.0, 6.0]]))
        tensor([[0.3333, 0.0000]])
    """
    check_tensors("segment_iou", a=a, b=b)
    code = position("segment_iou", "kind", kind, _KINDS)
    return _op(a, b, code, aligned, eps)


@torch.library.register_fake("tal_fast::segment_iou")
def _fake(a: Tensor, b: Tensor, kind: int = 0, aligned: bool = False, eps: float = 0.0) -> Tensor:
    return a.new_empty((a.shape[0],) if aligned else (a.shape[0], b.shape[0]))


@torch.library.register_fake("tal_fast::segment_iou_backward")
def _fake_backward(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    kind: int,
    aligned: bool,
    eps: float,
    for_a: bool,
    for_b: bool,
) -> tuple[Tensor, Tensor]:
    return (
        a.new_empty((a.shape[0] if for_a else 0, 2)),
        b.new_empty((b.shape[0] if for_b else 0, 2)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, ctx.kind, ctx.aligned, ctx.eps = inputs
    # The gradient for either input needs both segments; without one there is nothing to keep.
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        ctx.save_for_backward(a, b)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    a, b = ctx.saved_tensors
    for_a, for_b = ctx.needs_input_grad[:2]
    grad_a, grad_b = _op_backward(grad, a, b, ctx.kind, ctx.aligned, ctx.eps, for_a, for_b)
    return grad_a if for_a else None, grad_b if for_b else None, None, None, None


def _jvp(
    output: Tensor,
    tangents: Tangents,
    a: Tensor,
    b: Tensor,
    kind: int = 0,
    aligned: bool = False,
    eps: float = 0.0,
) -> Tensor:
    # A value of pair i depends on that pair alone, so the gradient of the sum of all of them has
    # the slopes of each: four numbers, to be multiplied with the tangents of its ends.
    def pairs(ends: Tensor, dim: int) -> Tensor:
        ends = ends.to(torch.promote_types(ends.dtype, torch.float32))
        if aligned:
            return ends
        return ends.unsqueeze(dim).expand(a.shape[0], b.shape[0], 2).reshape(-1, 2)

    pairs_a, pairs_b = pairs(a, 1), pairs(b, 0)
    all_slopes = _op_backward(
        pairs_a.new_ones(pairs_a.shape[0]), pairs_a, pairs_b, kind, True, eps, True, True
    )
    total = torch.zeros_like(pairs_a[:, 0])
    for slopes, tangent, dim in zip(all_slopes, tangents[:2], (1, 0), strict=True):
        if tangent is not None:
            total = total + (slopes * pairs(tangent, dim)).sum(-1)
    return total.to(output.dtype).reshape(output.shape)


_op = register_autograd("segment_iou", _backward, setup_context=_setup_context, jvp=_jvp)
_op_backward = register_no_second_derivative("segment_iou")
# A 16-bit segment of a long video is off by whole rows, and the op is cheap: float32 throughout.
register_autocast("segment_iou")
register_no_flops("segment_iou", "segment_iou_backward")
