# SPDX-License-Identifier: Apache-2.0
"""Multi-level 1-D deformable attention straight from the outputs of its projections.

Schema and checks are in ``csrc/ops/deform_attn_fused.cpp`` and ``.h``, the kernels in
``csrc/cpu/deform_attn_fused.cpp`` and those of :func:`tal_fast.ops.deform_attn`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tal_fast.ops.arguments import check_tensors
from tal_fast.ops.registration import (
    Tangents,
    make_dual,
    register_autograd,
    register_flops,
    register_no_second_derivative,
    unpack_dual,
)

__all__ = ["deform_attn_fused"]


def deform_attn_fused(
    value: Tensor,
    level_lengths: Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    padding_mask: Tensor | None = None,
) -> Tensor:
    r"""Deformable attention with its softmax, its sampling locations and its padding mask.

    The attention of TadTR (Liu et al., TIP 2022, section III-B) without its linear layers, in one
    call forward and one backward; :func:`tal_fast.ops.deform_attn` of

    .. math:: loc_{qhlp} = c_{ql} + o_{qhlp} / T_l \quad\text{or}\quad
              loc_{qhlp} = c_{ql} + o_{qhlp} \cdot w_{ql} \cdot 0.5 / P, \qquad
              weights_{qh} = \operatorname{softmax}_{lp}(a_{qh})

    with centre c and width w of the reference, offset o and logit a: offsets are rows for a centre,
    and P-ths of half the width for a segment. The softmax runs over levels and points together.

    Args:
        value: Tensor[B, S, H, D], the rows of all levels one after another; float64, float32,
            float16 or bfloat16.
        level_lengths: rows of each level, positive, summing to S. Host integers: a device tensor
            would have to be waited for.
        reference_points: Tensor[B, Q, L, 1] (centre) or Tensor[B, Q, L, 2] (centre, width) in
            units of the level: 0 is the left edge of its first row, 1 the right edge of its last.
            float32 or float64; 16 bits are refused (bfloat16 misplaces a sample by half a row at
            256 rows); under autocast they are widened to float32.
        sampling_offsets: Tensor[B, Q, H, L, P], any floating-point dtype.
        attention_logits: Tensor[B, Q, H, L, P] or Tensor[B, Q, H, L * P], any floating-point
            dtype. Offsets and logits may be halves of one projection's output: only the dimensions
            after the query must be contiguous to be read without a copy.
        padding_mask: bool Tensor[B, S], True = padding: such rows of ``value`` count as zero
            whatever they hold, and get a gradient of zero.

    Returns:
        Tensor[B, Q, H * D] in the dtype of ``value``. float64 computes in float64, everything else
        in float32, rounded once.

    What is NaN or infinite stays where it belongs, as in :func:`tal_fast.ops.deform_attn`. A
    logit of minus infinity is a weight of zero; any other, or where all of a query and head are
    minus infinity, gives NaN to all their channels.

    Value, reference points (both components), offsets and logits are differentiable. At an integer
    position the gradient is that of :func:`tal_fast.ops.deform_attn`: the slope to the right.
    Forward and backward give the same bits on every run and with any number of threads; the
    instruction set (and the device) may change the last bits. Forward mode (``torch.func.jvp``)
    follows the same rules, composed of ``deform_attn`` and torch's own ops. There is no second
    derivative.

    Raises:
        TypeError: an argument is no tensor.
        RuntimeError: for a wrong shape, dtype or device, or level lengths that do not sum to S.

    Example:
        >>> import torch
        >>> from tal_fast import ops
        >>> value = torch.arange(4.0).view(1, 4, 1, 1)
        >>> centre = torch.tensor([0.375]).view(1, 1, 1, 1)  # the middle of row 1
        >>> offsets = torch.tensor([0.0, 1.0]).view(1, 1, 1, 1, 2)  # rows
        >>> ops.deform_attn_fused(value, (4,), centre, offsets, torch.zeros_like(offsets))
        tensor([[[1.5000]]])
    """
    check_tensors(
        "deform_attn_fused",
        value=value,
        reference_points=reference_points,
        sampling_offsets=sampling_offsets,
        attention_logits=attention_logits,
        padding_mask=padding_mask,
        optional="padding_mask",
    )
    half = reference_points.dtype in (torch.float16, torch.bfloat16)
    if half and torch.is_autocast_enabled(value.device.type):
        reference_points = reference_points.float()
    return _op(
        value, level_lengths, reference_points, sampling_offsets, attention_logits, padding_mask
    )


@torch.library.register_fake("tal_fast::deform_attn_fused")
def _fake(
    value: Tensor,
    level_lengths: Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    padding_mask: Tensor | None,
) -> Tensor:
    batch, _, heads, channels = value.shape
    return value.new_empty((batch, sampling_offsets.shape[1], heads * channels))


@torch.library.register_fake("tal_fast::deform_attn_fused_backward")
def _fake_backward(
    grad: Tensor,
    value: Tensor,
    level_lengths: Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    padding_mask: Tensor | None,
    needs_value: bool,
    needs_reference: bool,
    needs_projection: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def empty(tensor: Tensor, needed: bool) -> Tensor:
        return tensor.new_empty(tensor.shape if needed else (0,))

    return (
        empty(value, needs_value),
        empty(reference_points, needs_reference),
        empty(sampling_offsets, needs_projection),
        empty(attention_logits, needs_projection),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.level_lengths, reference_points, offsets, logits, padding_mask = inputs
    if any(ctx.needs_input_grad):
        ctx.save_for_backward(value, reference_points, offsets, logits, padding_mask)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs_value, _, needs_reference, needs_offsets, needs_logits, _ = ctx.needs_input_grad
    value, reference_points, offsets, logits, padding_mask = ctx.saved_tensors
    grads = _op_backward(
        grad,
        value,
        ctx.level_lengths,
        reference_points,
        offsets,
        logits,
        padding_mask,
        needs_value,
        needs_reference,
        needs_offsets or needs_logits,
    )
    return (
        grads[0] if needs_value else None,
        None,
        grads[1] if needs_reference else None,
        grads[2] if needs_offsets else None,
        grads[3] if needs_logits else None,
        None,
    )


def _jvp(
    output: Tensor,
    tangents: Tangents,
    value: Tensor,
    level_lengths: Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    padding_mask: Tensor | None = None,
) -> Tensor | None:
    # The op is a composition, so its tangent is what comes out of that when tangents go in.
    value, reference = make_dual(value, tangents[0]), make_dual(reference_points, tangents[2])
    offsets = make_dual(sampling_offsets, tangents[3])
    logits = make_dual(attention_logits, tangents[4])
    dtype = torch.promote_types(reference_points.dtype, value.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    if padding_mask is not None:
        value = value.masked_fill(padding_mask[:, :, None, None], 0)
    # [B, Q, 1, L, 1] beside offsets [B, Q, H, L, P]
    center, *width = reference.to(dtype)[:, :, None, :, :, None].unbind(-2)
    points = offsets.shape[-1]
    if width:
        shift = offsets.to(dtype) * width[0] * (0.5 / points)
    else:
        rows = offsets.new_tensor(level_lengths, dtype=dtype).unsqueeze(-1)
        shift = offsets.to(dtype) / rows
    weights = logits.to(dtype).flatten(3).softmax(-1).view(offsets.shape)
    composed = torch.ops.tal_fast.deform_attn.default(value, level_lengths, center + shift, weights)
    return unpack_dual(composed)[1]


_op = register_autograd("deform_attn_fused", _backward, setup_context=_setup_context, jvp=_jvp)
_op_backward = register_no_second_derivative("deform_attn_fused")
# No autocast rule: value keeps its dtype, offsets and logits are widened by the kernel, and
# reference points must never become 16-bit, which a casting rule would do.


@register_flops("deform_attn_fused")
def _flops(
    value: Sequence[int],
    level_lengths: Any,
    reference_points: Any,
    sampling_offsets: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    # A sample is a weighted sum of two rows.
    return 2 * 2 * math.prod(sampling_offsets) * value[3]


@register_flops("deform_attn_fused_backward")
def _flops_backward(
    grad: Any,
    value: Sequence[int],
    level_lengths: Any,
    reference_points: Any,
    sampling_offsets: Sequence[int],
    attention_logits: Any,
    padding_mask: Any,
    needs_value: bool,
    needs_reference: bool,
    needs_projection: bool,
    **__: Any,
) -> int:
    # Gradients of two rows, and products of the gradient with both of them.
    kinds = needs_value + (needs_reference or needs_projection)
    return 2 * 2 * math.prod(sampling_offsets) * value[3] * kinds
