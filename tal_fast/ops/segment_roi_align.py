# SPDX-License-Identifier: Apache-2.0
"""Fixed-size features of variable-length segments (RoIAlign in one dimension)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tal_fast.ops.arguments import check_tensors
from tal_fast.ops.registration import (
    Tangents,
    no_tangent,
    register_autocast,
    register_autograd,
    register_no_flops,
)

__all__ = ["segment_roi_align"]


def segment_roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: int,
    sampling_ratio: int = 0,
    aligned: bool = False,
) -> Tensor:
    """Averages linearly interpolated features over equal bins of segments.

    With R = ``output_size`` a segment (start, end), in rows of ``features``, becomes R bins::

        length = max(end - start, 1)              shift = 0          aligned=False
        length = end - start                      shift = 0.5        aligned=True
        bin    = length / R
        n      = sampling_ratio or ceil(length / R)
        position(p, i) = start - shift + p * bin + (i + 0.5) * bin / n        p < R, i < n
        out[k, :, p]   = mean over i of value(position(p, i))

    ``value`` is 0 before -1 and after T (and counts in the mean), the first row in [-1, 0], the
    last one from T - 1 on, and linear in between: row t lies at position t. Positions are computed
    in the dtype of ``rois``, in the order written.

    The two conventions:

    * ``aligned=False`` is Align1D (G-TAD, Xu et al., CVPR 2020; TadTR's actionness head). There is
      no shift by half a row, so a segment given in edge coordinates (row t covers [t, t + 1)) is
      read half a row late, as TadTR does.
    * ``aligned=True`` is torchvision's ``roi_align(aligned=True)`` in one dimension: edge
      coordinates are read where they are, and short segments keep their length. A segment of
      length 0 has no samples with ``sampling_ratio=0``, and its bins are 0; with a
      ``sampling_ratio`` all its samples lie on the one point.

    Args:
        features: Tensor[B, C, T] of float64, float32, float16 or bfloat16; the 16-bit types are
            accumulated in float32. Fastest if channels are contiguous, that is, for
            ``x.transpose(1, 2)`` of a contiguous x [B, T, C].
        rois: Tensor[K, 3] of float32 or float64 on the same device: index into the batch, start and
            end in rows. Without ``aligned``, a segment that ends before ``start + 1`` is read as
            one row long.
        output_size: number of bins R, at least 1.
        sampling_ratio: samples per bin; 0: one per row, ceil(length / R).
        aligned: which of the two conventions.

    Returns:
        Tensor[K, C, R], contiguous, in the dtype of ``features``. Differentiable for ``features``,
        any number of times and in forward mode (``torch.func.jvp``); no gradient goes to ``rois``,
        and a tangent of theirs is refused. Output and gradient are the same, bit for
        bit, in every run, for any number of threads, on every instruction set and on a GPU.

    Raises:
        TypeError: an argument is no tensor.
        RuntimeError: on wrong shapes, dtypes or devices, a batch index that is not a whole number
            in [0, B), a start or end that is not finite or beyond 2^31, or, with ``aligned``, an
            end before its start (the row is named). A GPU cannot report values of ``rois`` without
            waiting for it: there a segment with such values gives NaN, and adds nothing to the
            gradient.

    Example:
        >>> import torch
        >>> from tal_fast import ops
        >>> features = torch.arange(8.0).reshape(1, 1, 8)
        >>> rois = torch.tensor([[0.0, 2.0, 6.0]])
        >>> ops.segment_roi_align(features, rois, output_size=2)
        tensor([[[3., 5.]]])
        >>> ops.segment_roi_align(features, rois, output_size=2, aligned=True)
        tensor([[[2.5000, 4.5000]]])
    """
    check_tensors("segment_roi_align", features=features, rois=rois)
    out: Tensor = _op(features, rois, output_size, sampling_ratio, aligned)
    return out


@torch.library.register_fake("tal_fast::segment_roi_align")
def _forward_fake(
    features: Tensor,
    rois: Tensor,
    output_size: int,
    sampling_ratio: int = 0,
    aligned: bool = False,
) -> Tensor:
    return features.new_empty(rois.shape[0], features.shape[1], output_size)


@torch.library.register_fake("tal_fast::segment_roi_align_backward")
def _backward_fake(
    grad: Tensor, rois: Tensor, batch: int, rows: int, sampling_ratio: int, aligned: bool = False
) -> Tensor:
    return grad.new_empty(batch, rows, grad.shape[1]).transpose(1, 2)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, _, *ctx.settings = inputs
    if ctx.needs_input_grad[0]:
        ctx.save_for_backward(rois)
    ctx.batch, _, ctx.rows = features.shape


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_features = None
    if ctx.needs_input_grad[0]:
        (rois,) = ctx.saved_tensors
        grad_features = _op_backward(grad, rois, ctx.batch, ctx.rows, *ctx.settings)
    return grad_features, None, None, None, None


def _setup_second_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, rois, _, _, *ctx.settings = inputs
    if ctx.needs_input_grad[0]:
        ctx.save_for_backward(rois)
    ctx.bins = grad.shape[2]


def _second_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # The op is linear in the features: backward is its transpose, whose transpose is the op.
    grad_grad = None
    if ctx.needs_input_grad[0]:
        (rois,) = ctx.saved_tensors
        grad_grad = _op(grad, rois, ctx.bins, *ctx.settings)
    return grad_grad, None, None, None, None, None


def _jvp(
    output: Tensor, tangents: Tangents, features: Tensor, rois: Tensor, *settings: Any
) -> Tensor:
    _refuse_moving(tangents)
    return _op(tangents[0], rois, *settings)


def _backward_jvp(
    output: Tensor, tangents: Tangents, grad: Tensor, rois: Tensor, *settings: Any
) -> Tensor:
    _refuse_moving(tangents)
    return _op_backward(tangents[0], rois, *settings)


def _refuse_moving(tangents: Tangents) -> None:
    if tangents[1] is not None:
        raise no_tangent("segment_roi_align", "rois")


_op = register_autograd("segment_roi_align", _backward, setup_context=_setup_context, jvp=_jvp)
_op_backward = register_autograd(
    "segment_roi_align_backward",
    _second_backward,
    setup_context=_setup_second_context,
    jvp=_backward_jvp,
)
# Positions need float32, and features of one dtype with them keep the surroundings simple.
register_autocast("segment_roi_align")
register_no_flops("segment_roi_align", "segment_roi_align_backward")
