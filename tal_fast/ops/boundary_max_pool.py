# SPDX-License-Identifier: Apache-2.0
"""Boundary max pooling: the strongest response around either end of a segment (AFSD).

The schema is in ``csrc/ops/boundary_max_pool.cpp``, the kernels are in
``csrc/cpu/boundary_max_pool.cpp`` and ``csrc/cuda/boundary_max_pool.cuh``.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from tal_fast.ops.arguments import check_tensors, position
from tal_fast.ops.registration import Tangents, register_autograd, register_no_flops

__all__ = ["boundary_max_pool"]


def boundary_max_pool(
    features: Tensor, segments: Tensor, compat: Literal["afsd"] | None = None
) -> Tensor:
    r"""Maxima over two ranges of rows per segment, one for either half of the channels.

    Lin et al., Learning Salient Boundary Feature for Anchor-free Temporal Action Localization
    (AFSD), CVPR 2021. A segment is four positions, the ranges :math:`[s_0, s_1]` around its start
    and :math:`[s_2, s_3]` around its end. With :math:`\hat s` = ``s`` truncated toward zero and
    then clamped to [0, T - 1]:

    .. math:: out_{bck} = \max_{\hat s_0 \le t \le \hat s_1} x_{bct} \;\; (c < C/2), \qquad
              out_{bck} = \max_{\hat s_2 \le t \le \hat s_3} x_{bct} \;\; (c \ge C/2)

    Both ends of a range are included; one that ends before it starts is its first row alone.

    Args:
        features: Tensor[B, C, T] with an even C; float64, float32, float16 or bfloat16, of any
            strides.
        segments: Tensor[B, K, 4] in rows; float32, float64, int32 or int64, whatever the dtype of
            the features. 16-bit floats are refused (bfloat16 misplaces a row from 256 on); under
            autocast they are widened to float32. Infinite positions are clamped like others.
        compat: None, or "afsd" for the gradient that AFSD's published code computes, which is wrong
            unless K = T: it takes the number of segments for the number of rows, so it looks for
            the maxima of the contiguous features in their first B * C * K values, read as
            [B, C, K], and adds the gradient there. For reproducing trainings made with it. K must
            be at most T (beyond that the original reads and writes outside its memory). The
            result itself is the same.

    Returns:
        Tensor[B, C, K], contiguous, in the dtype of ``features``, exact in every dtype. A NaN in a
        range gives NaN, as ``torch.max`` has it.

    The gradient goes to the row of the maximum: to the first of equal maxima, or to the first NaN.
    It is summed in float32 (float64 for float64) in the order of the segments, the same bit for bit
    in every run, for any number of threads and on a GPU. Differentiable for ``features`` any number
    of times; no gradient goes to ``segments``. Forward mode (``torch.func.jvp``) takes the tangent
    from the same row; with ``compat`` it is refused, as no function has that gradient.

    Raises:
        ValueError: for an unknown ``compat``.
        TypeError: ``features`` or ``segments`` is no tensor.
        RuntimeError: for a wrong shape, dtype or device, an odd C, a NaN in ``segments`` (which is
            named), or more segments than rows with ``compat="afsd"``. A GPU cannot report a NaN in
            ``segments`` without waiting for it: there the maxima of that range are NaN.

    Example:
        >>> import torch
        >>> from tal_fast import ops
        >>> features = torch.tensor([[[1.0, 5.0, 2.0, 0.0], [4.0, 0.0, 3.0, 7.0]]])
        >>> segments = torch.tensor([[[0.0, 1.9, 1.0, 2.0], [2.0, 9.0, 3.0, 0.0]]])
        >>> ops.boundary_max_pool(features, segments)
        tensor([[[5., 2.],
                 [3., 7.]]])
    """
    check_tensors("boundary_max_pool", features=features, segments=segments)
    afsd = position("boundary_max_pool", "compat", compat, (None, "afsd")) == 1
    half = segments.dtype in (torch.float16, torch.bfloat16)
    if half and torch.is_autocast_enabled(features.device.type):
        segments = segments.float()
    # Only a gradient needs to know where the maxima are.
    with_argmax = features.requires_grad and torch.is_grad_enabled()
    out: Tensor = _op(features, segments, with_argmax, afsd)[0]
    return out


@torch.library.register_fake("tal_fast::boundary_max_pool")
def _fake(
    features: Tensor, segments: Tensor, with_argmax: bool = False, afsd: bool = False
) -> tuple[Tensor, Tensor]:
    shape = (features.shape[0], features.shape[1], segments.shape[1])
    argmax = features.new_empty(shape if with_argmax else (0,), dtype=torch.int32)
    return features.new_empty(shape), argmax


@torch.library.register_fake("tal_fast::boundary_max_pool_backward")
def _fake_backward(grad: Tensor, argmax: Tensor, rows: int, afsd: bool = False) -> Tensor:
    return grad.new_empty((grad.shape[0], grad.shape[1], rows))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, _, ctx.with_argmax, ctx.afsd = inputs
    ctx.rows = features.shape[2]
    ctx.mark_non_differentiable(output[1])
    if ctx.needs_input_grad[0]:
        ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_features = None
    if ctx.needs_input_grad[0]:
        if not ctx.with_argmax:
            raise RuntimeError("boundary_max_pool: expected with_argmax=True for a gradient")
        (argmax,) = ctx.saved_tensors
        grad_features = _op_backward(grad, argmax, ctx.rows, ctx.afsd)
    return grad_features, None, None, None


def _setup_second_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, argmax, _, ctx.afsd = inputs
    if ctx.needs_input_grad[0]:
        ctx.save_for_backward(argmax)


def _second_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # For given rows the gradient is linear: its transpose takes from there what it would add.
    grad_grad = None
    if ctx.needs_input_grad[0]:
        (argmax,) = ctx.saved_tensors
        if ctx.afsd:
            grad = grad.reshape(-1)[: argmax.numel()].view(argmax.shape)
        grad_grad = grad.gather(2, argmax.long())
    return grad_grad, None, None, None


def _jvp(
    output: tuple[Tensor, Tensor],
    tangents: Tangents,
    features: Tensor,
    segments: Tensor,
    with_argmax: bool = False,
    afsd: bool = False,
) -> tuple[Tensor | None, None]:
    if tangents[0] is None:  # positions are truncated: the derivative for them is 0
        return None, None
    if afsd:
        raise NotImplementedError(
            "boundary_max_pool: compat='afsd' does not support forward AD: its gradient is that of "
            "no function"
        )
    argmax = output[1]
    if not with_argmax:
        argmax = _op(features, segments, True, False)[1]
    return tangents[0].gather(2, argmax.long()), None


def _backward_jvp(
    output: Tensor, tangents: Tangents, grad: Tensor, argmax: Tensor, rows: int, afsd: bool = False
) -> Tensor:
    return _op_backward(tangents[0], argmax, rows, afsd)


_op = register_autograd("boundary_max_pool", _backward, setup_context=_setup_context, jvp=_jvp)
_op_backward = register_autograd(
    "boundary_max_pool_backward",
    _second_backward,
    setup_context=_setup_second_context,
    jvp=_backward_jvp,
)
# No autocast rule: a maximum is exact in every dtype, so features keep theirs.
register_no_flops("boundary_max_pool", "boundary_max_pool_backward")
