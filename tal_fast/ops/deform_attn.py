# SPDX-License-Identifier: Apache-2.0
"""Multi-level 1-D deformable attention.

Schema and checks are in ``csrc/ops/deform_attn.cpp`` and ``.h``, the kernels in
``csrc/cpu/deform_attn.cpp`` and ``csrc/cuda/deform_attn_forward.cuh``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

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
        in float32, rounded once. A NaN or infinite location gives NaN.

    The gradient for a location is the slope to its right (at an integer x, the slope towards the
    next row) and zero for samples that do not contribute. Forward and backward give the same bits
    on every run and with any number of threads; the instruction set (and the device) may change the
    last bits. There is no second derivative.

    Raises:
        RuntimeError: for a wrong shape or dtype, or level lengths that do not sum to S.

    Example:
        >>> import torch
        >>> from tal_fast import ops
        >>> value = torch.arange(4.0).view(1, 4, 1, 1)
        >>> location = torch.tensor([0.5]).view(1, 1, 1, 1, 1)
        >>> ops.deform_attn(value, (4,), location, torch.ones(1, 1, 1, 1, 1))
        tensor([[[1.5000]]])
    """
    half = sampling_locations.dtype in (torch.float16, torch.bfloat16)
    if half and torch.is_autocast_enabled(value.device.type):
        sampling_locations = sampling_locations.float()
    return torch.ops.tal_fast.deform_attn.default(
        value, level_lengths, sampling_locations, attention_weights
    )


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
    grads = torch.ops.tal_fast.deform_attn_backward.default(
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


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("deform_attn: second derivatives are not implemented")


torch.library.register_autograd("tal_fast::deform_attn", _backward, setup_context=_setup_context)
torch.library.register_autograd("tal_fast::deform_attn_backward", _no_second_derivative)
# No autocast rule: value keeps its dtype, the kernel accumulates in float32 and accepts weights of
# another dtype, and locations must never become 16-bit, which a casting rule would do.
