# SPDX-License-Identifier: Apache-2.0
"""Multi-level 1-D deformable attention.

Schema and checks are in ``csrc/ops/deform_attn.cpp`` and ``.h``, the kernels in
``csrc/cpu/deform_attn.cpp`` and ``csrc/cuda/deform_attn_forward.cuh``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tal_fast.ops.arguments import check_tensors
from tal_fast.ops.registration import (
    Tangents,
    register_autograd,
    register_flops,
    register_no_second_derivative,
)

__all__ = ["deform_attn"]


def deform_attn(
    value: Tensor,
    level_lengths: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    r"""Attention to a few sampled positions per query (Zhu et al., ICLR 2021; TadTR's 1-D form).

    For query q and head h, with :math:`x = loc \cdot T_l - 0.5` the position in level l of
    :math:`T_l` rows, :math:`i = \lfloor x \rfloor` and :math:`f = x - i`:

    .. math:: out_{qh} = \sum_{l,p} w_{qhlp} \, \bigl((1 - f) \, v_{l,i,h} + f \, v_{l,i+1,h}\bigr)

    Rows outside the level count as zero, so a sample contributes iff :math:`-1 < x < T_l`.

    Args:
        value: Tensor[B, S, H, D], the rows of all levels one after another; float64, float32,
            float16 or bfloat16.
        level_lengths: rows of each level, positive, summing to S. Host integers: a device tensor
            would have to be waited for.
        sampling_locations: Tensor[B, Q, H, L, P], float32 or float64; 0 is the left edge of the
            level's first row, 1 the right edge of its last. Values outside [0, 1] are allowed.
            16 bits are refused (bfloat16 misplaces a sample by half a row at 256 rows); under
            autocast they are widened to float32.
        attention_weights: Tensor[B, Q, H, L, P], any floating-point dtype, usually with sum 1 over
            the last two dimensions.

    Returns:
        Tensor[B, Q, H * D] in the dtype of ``value``. float64 computes in float64, everything else
        in float32, rounded once.

    What is NaN or infinite stays where it belongs. In a location it gives NaN, and in a weight NaN
    or infinity, to all channels of its query and head, wherever the sample lies. In ``value`` it
    gives what the formula gives, to the samples between its row and the next one on either side.

    The gradient for a location is the slope to its right (at an integer x, the slope towards the
    next row) and zero for samples that do not contribute. Forward and backward give the same bits
    on every run and with any number of threads; the instruction set (and the device) may change the
    last bits. Forward mode (``torch.func.jvp``) follows the same rules, composed of this op and
    torch's own. There is no second derivative.

    Raises:
        TypeError: an argument is no tensor.
        RuntimeError: for a wrong shape, dtype or device, or level lengths that do not sum to S.

    Example:
        >>> import torch
        >>> from tal_fast import ops
        >>> value = torch.arange(4.0).view(1, 4, 1, 1)
        >>> location = torch.tensor([0.5]).view(1, 1, 1, 1, 1)
        >>> ops.deform_attn(value, (4,), location, torch.ones(1, 1, 1, 1, 1))
        tensor([[[1.5000]]])
    """
    check_tensors(
        "deform_attn",
        value=value,
        sampling_locations=sampling_locations,
        attention_weights=attention_weights,
    )
    half = sampling_locations.dtype in (torch.float16, torch.bfloat16)
    if half and torch.is_autocast_enabled(value.device.type):
        sampling_locations = sampling_locations.float()
    return _op(value, level_lengths, sampling_locations, attention_weights)


@torch.library.register_fake("tal_fast::deform_attn")
def _fake(
    value: Tensor,
    level_lengths: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    batch, _, heads, channels = value.shape
    return value.new_empty((batch, sampling_locations.shape[1], heads * channels))


@torch.library.register_fake("tal_fast::deform_attn_backward")
def _fake_backward(
    grad: Tensor,
    value: Tensor,
    level_lengths: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    needs_value: bool,
    needs_samples: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    samples = sampling_locations.shape if needs_samples else (0,)
    return (
        value.new_empty(value.shape if needs_value else (0,)),
        sampling_locations.new_empty(samples),
        attention_weights.new_empty(samples),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.level_lengths, sampling_locations, attention_weights = inputs
    if any(ctx.needs_input_grad):
        ctx.save_for_backward(value, sampling_locations, attention_weights)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None]:
    needs_value, _, needs_locations, needs_weights = ctx.needs_input_grad
    value, sampling_locations, attention_weights = ctx.saved_tensors
    grads = _op_backward(
        grad,
        value,
        ctx.level_lengths,
        sampling_locations,
        attention_weights,
        needs_value,
        needs_locations or needs_weights,
    )
    return (
        grads[0] if needs_value else None,
        None,
        grads[1] if needs_locations else None,
        grads[2] if needs_weights else None,
    )


def _jvp(
    output: Tensor,
    tangents: Tangents,
    value: Tensor,
    level_lengths: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    # Linear in the values and in the weights, so their tangents take their places.
    op = torch.ops.tal_fast.deform_attn.default
    of_value, _, of_locations, of_weights = tangents
    total = torch.zeros_like(output)
    if of_value is not None:
        total = total + op(of_value, level_lengths, sampling_locations, attention_weights)
    if of_weights is not None:
        total = total + op(value, level_lengths, sampling_locations, of_weights)
    if of_locations is not None:
        total = total + _slopes(
            value, level_lengths, sampling_locations, attention_weights * of_locations
        )
    return total


def _slopes(
    value: Tensor, level_lengths: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    """Samples the slopes to the right instead of the values; [B, Q, H * D].

    The slopes of a level of T rows are a level of T + 1 rows: from the zero before it to its first
    row, between its rows, and from its last row to the zero after it. Each is read where it stands.
    """
    slopes = [
        F.pad(level, (0, 0, 0, 0, 1, 1)).diff(dim=1)
        for level in value.split(list(level_lengths), dim=1)
    ]
    # [L, 1]: lengths beside the points of each level
    rows = locations.new_tensor(level_lengths).unsqueeze(-1)
    at = locations * rows - 0.5
    inside = (at > -1) & (at < rows)
    return _op(
        torch.cat(slopes, dim=1),
        [length + 1 for length in level_lengths],
        (at.floor() + 1.5) / (rows + 1),
        torch.where(inside, weights * rows, torch.zeros_like(weights)),
    )


_op = register_autograd("deform_attn", _backward, setup_context=_setup_context, jvp=_jvp)
_op_backward = register_no_second_derivative("deform_attn")
# No autocast rule: value keeps its dtype, the kernel accumulates in float32 and accepts weights of
# another dtype, and locations must never become 16-bit, which a casting rule would do.


@register_flops("deform_attn")
def _flops(
    value: Sequence[int], level_lengths: Any, sampling_locations: Sequence[int], *_: Any, **__: Any
) -> int:
    # A sample is a weighted sum of two rows.
    return 2 * 2 * math.prod(sampling_locations) * value[3]


@register_flops("deform_attn_backward")
def _flops_backward(
    grad: Any,
    value: Sequence[int],
    level_lengths: Any,
    sampling_locations: Sequence[int],
    attention_weights: Any,
    needs_value: bool,
    needs_samples: bool,
    **__: Any,
) -> int:
    # Gradients of two rows, and products of the gradient with both of them.
    return 2 * 2 * math.prod(sampling_locations) * value[3] * (needs_value + needs_samples)
