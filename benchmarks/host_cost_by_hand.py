# SPDX-License-Identifier: Apache-2.0
"""An ``autograd.Function`` for each op as one writes it by hand; see bench_host_cost.py."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function

__all__ = ["BY_HAND", "below_autograd"]

OPS = torch.ops.tal_fast
below_autograd = torch._C._AutoDispatchBelowAutograd


class Dropout(Function):
    @staticmethod
    def forward(ctx: Any, x: Any, p: float, seed: int, relu: bool, residual: Any, more: Any) -> Any:
        ctx.p, ctx.seed = p, seed
        with below_autograd():
            return OPS.dropout.default(x, p, seed, relu, residual, more)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        with below_autograd():
            grad_x = OPS.dropout_backward.default(grad, None, ctx.p, ctx.seed)
        return grad_x, None, None, None, None, None


class DeformAttn(Function):
    @staticmethod
    def forward(ctx: Any, value: Any, lengths: Any, locations: Any, weights: Any) -> Any:
        ctx.lengths = lengths
        ctx.save_for_backward(value, locations, weights)
        with below_autograd():
            return OPS.deform_attn.default(value, lengths, locations, weights)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        value, locations, weights = ctx.saved_tensors
        with below_autograd():
            grads = OPS.deform_attn_backward.default(
                grad, value, ctx.lengths, locations, weights, True, True
            )
        return grads[0], None, grads[1], grads[2]


class DeformAttnFused(Function):
    @staticmethod
    def forward(ctx: Any, value: Any, lengths: Any, *others: Any) -> Any:
        ctx.lengths = lengths
        ctx.save_for_backward(value, *others)
        with below_autograd():
            return OPS.deform_attn_fused.default(value, lengths, *others)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        value, *others = ctx.saved_tensors
        with below_autograd():
            grads = OPS.deform_attn_fused_backward.default(
                grad, value, ctx.lengths, *others, True, True, True
            )
        return grads[0], None, grads[1], grads[2], grads[3], None


class LocalAttn(Function):
    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, window: int, mask: Any, w: bool) -> Any:
        ctx.window = window
        with below_autograd():
            out, weights = OPS.local_attn.default(query, key, value, window, mask, w)
        ctx.save_for_backward(query, key, value, weights, mask)
        ctx.mark_non_differentiable(weights)
        return out, weights

    @staticmethod
    def backward(ctx: Any, grad: Any, _: Any) -> Any:
        query, key, value, weights, mask = ctx.saved_tensors
        with below_autograd():
            grads = OPS.local_attn_backward.default(
                grad, query, key, value, weights, ctx.window, mask, True, True, True
            )
        return (*grads, None, None, None)


class SegmentIou(Function):
    @staticmethod
    def forward(ctx: Any, a: Any, b: Any, kind: int, aligned: bool, eps: float) -> Any:
        ctx.options = kind, aligned, eps
        ctx.save_for_backward(a, b)
        with below_autograd():
            return OPS.segment_iou.default(a, b, kind, aligned, eps)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        with below_autograd():
            grads = OPS.segment_iou_backward.default(
                grad, *ctx.saved_tensors, *ctx.options, True, True
            )
        return (*grads, None, None, None)


class BoundaryMaxPool(Function):
    @staticmethod
    def forward(ctx: Any, features: Any, segments: Any, with_argmax: bool, afsd: bool) -> Any:
        ctx.rows = features.shape[2]
        with below_autograd():
            out, argmax = OPS.boundary_max_pool.default(features, segments, with_argmax, afsd)
        ctx.save_for_backward(argmax)
        ctx.mark_non_differentiable(argmax)
        return out, argmax

    @staticmethod
    def backward(ctx: Any, grad: Any, _: Any) -> Any:
        (argmax,) = ctx.saved_tensors
        with below_autograd():
            grad = OPS.boundary_max_pool_backward.default(grad, argmax, ctx.rows, False)
        return grad, None, None, None


class SegmentRoiAlign(Function):
    @staticmethod
    def forward(ctx: Any, features: Any, rois: Any, *settings: Any) -> Any:
        ctx.batch, _, ctx.rows = features.shape
        ctx.settings = settings[1:]
        ctx.save_for_backward(rois)
        with below_autograd():
            return OPS.segment_roi_align.default(features, rois, *settings)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (rois,) = ctx.saved_tensors
        with below_autograd():
            grad = OPS.segment_roi_align_backward.default(
                grad, rois, ctx.batch, ctx.rows, *ctx.settings
            )
        return grad, None, None, None, None


BY_HAND: dict[str, Any] = {
    "dropout": Dropout,
    "deform_attn": DeformAttn,
    "deform_attn_fused": DeformAttnFused,
    "local_attn": LocalAttn,
    "segment_iou": SegmentIou,
    "boundary_max_pool": BoundaryMaxPool,
    "segment_roi_align": SegmentRoiAlign,
}
