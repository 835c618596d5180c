# SPDX-License-Identifier: Apache-2.0
"""Convolutions over rows whose channels lie last, [B, T, C]."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["conv_macs", "conv_rows", "depthwise_rows", "linear_rows"]


def conv_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolves over rows with zeros at both ends: [B, T, C] with [D, C, k] gives [B, T, D].

    As matrix products, which is what a convolution of few rows and many channels costs at best: in
    float32 on a CPU one per row of the kernel, each added to the rows that it belongs to; else one
    over k shifted copies side by side, which a half-precision sum would lose digits without.
    """
    kernel = weight.shape[-1]
    if kernel == 1:
        return F.linear(x, weight[:, :, 0], bias)
    if x.device.type == "cpu" and x.dtype == weight.dtype and not torch.is_autocast_enabled("cpu"):
        out: Tensor = _ShiftedProducts.apply(x, weight)
        return out if bias is None else out + bias
    rows = x.shape[1]
    padded = F.pad(x, (0, 0, kernel // 2, kernel // 2))
    x = torch.cat([padded[:, at : at + rows] for at in range(kernel)], dim=-1)
    return F.linear(x, weight.permute(0, 2, 1).flatten(1), bias)


class _ShiftedProducts(torch.autograd.Function):
    """A convolution without a copy of its input.

    Against one product over shifted copies, float32, one thread, forward and backward together: 16
    instead of 20 ms for 2 x 2200 rows of 128 channels, 3 instead of 6 ms for 12 outputs.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        """Adds up x[t + j - k // 2] @ weight[:, :, j]^T over j."""
        return _add_shifted(x, weight.permute(2, 1, 0).contiguous(), 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _add_shifted(grad, weight.permute(2, 0, 1).contiguous(), -1)
        if ctx.needs_input_grad[1]:
            sums = weight.new_zeros(weight.shape[2], *weight.shape[:2])
            for at, to, source in _shifts(weight.shape[2], x.shape[1]):
                for clip in range(len(x)):
                    sums[at].addmm_(grad[clip, to].t(), x[clip, source])
            of_weight = sums.permute(1, 2, 0)
        return of_x, of_weight


def _add_shifted(x: Tensor, taps: Tensor, direction: int) -> Tensor:
    """Maps ``Tensor[B, T, C]`` by ``taps [k, C, D]``; direction -1 looks the other way."""
    kernel, _, width = taps.shape
    out = x.new_empty(*x.shape[:2], width)
    torch.matmul(x, taps[kernel // 2], out=out)
    for at, to, source in _shifts(kernel, x.shape[1]):
        if at != kernel // 2:
            to, source = (to, source) if direction > 0 else (source, to)
            out[:, to].baddbmm_(x[:, source], taps[at].expand(len(x), -1, -1))
    return out


def _shifts(kernel: int, rows: int) -> Iterator[tuple[int, slice, slice]]:
    """Yields what row of the kernel carries which rows of the input to which of the output."""
    for at in range(kernel):
        shift = at - kernel // 2
        if abs(shift) < rows:
            before, after = max(0, -shift), max(0, shift)
            yield at, slice(before, rows - after), slice(after, rows - before)


def linear_rows(conv: Any, x: Tensor) -> Tensor:
    """Applies a convolution of one row to ``Tensor[B, T, C]``."""
    return conv_rows(x, conv.weight, conv.bias)


def depthwise_rows(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """Convolves each channel by itself: [B, T, C] with [C, 1, k] gives [B, T / stride, C]."""
    # As an image of height 1 whose channels lie last, so that nothing is transposed.
    image = F.conv2d(
        x.transpose(1, 2).unsqueeze(2),
        weight.unsqueeze(2),
        bias,
        (1, stride),
        (0, weight.shape[-1] // 2),
        groups=weight.shape[0],
    )
    return image.squeeze(2).transpose(1, 2)


def conv_macs(part: nn.Module, rows: int) -> int:
    """Returns the multiply-adds of all convolutions of a part for so many rows of output."""
    return rows * sum(conv.weight.numel() for conv in part.modules() if isinstance(conv, nn.Conv1d))
