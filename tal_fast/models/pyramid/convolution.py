# SPDX-License-Identifier: Apache-2.0
"""Convolutions over rows whose channels lie last, [B, T, C].

In float32 on a CPU a convolution is a matrix product per row of its kernel, each added to the rows
that it belongs to. Nothing is copied, and rows whose output is not used are left out: padding costs
next to nothing. Against one product over shifted copies, one thread, forward and backward together:
16 instead of 20 ms for 2 x 2200 rows of 128 channels, all used, and 3 instead of 6 ms for 12
outputs.

Elsewhere it is one product over shifted copies side by side: there the host would have to wait for
which rows are used, and sums in half precision would lose digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tal_fast.ops.conv_tiles import (
    rows_to_tiles,
    tiles_to_rows,
    tiles_to_weight,
    weight_to_tiles,
)

__all__ = ["conv_macs", "conv_norm_relu", "conv_rows", "depthwise_rows", "linear_rows"]

# First row, row after the last, and the same of their clip, all clips one after the other.
Span = tuple[int, int, int, int]
_NEAR = 64  # rows; used ones that are nearer to each other are computed together
_WIDE, _MANY = 128, 256  # channels on both sides and rows from which on minimal filtering pays


def conv_rows(x: Tensor, weight: Tensor, bias: Tensor | None, used: Tensor | None = None) -> Tensor:
    """Convolves over rows with zeros at both ends: [B, T, C] with [D, C, k] gives [B, T, D].

    Args:
        x: ``Tensor[B, T, C]``.
        weight: ``Tensor[D, C, k]``; k is odd.
        bias: ``Tensor[D]``.
        used: ``Tensor[B, T, 1]``, 0 on rows whose output is not used; it is then anything finite,
            and must be masked. None: all are used.
    """
    kernel = weight.shape[-1]
    if kernel == 1 and used is None:
        return F.linear(x, weight[:, :, 0], bias)
    if _in_products(x, weight):
        out: Tensor = _Products.apply(x, weight, used)
        return out if bias is None else out + bias
    rows = x.shape[1]
    padded = F.pad(x, (0, 0, kernel // 2, kernel // 2))
    x = torch.cat([padded[:, at : at + rows] for at in range(kernel)], dim=-1)
    return F.linear(x, weight.permute(0, 2, 1).flatten(1), bias)


def conv_norm_relu(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, real: Tensor, inside: Tensor
) -> Tensor:
    """Convolves, zeroes what is not real, normalises each row, takes the ReLU, zeroes outside.

    Args:
        x: ``Tensor[B, T, C]``.
        weight: ``Tensor[D, C, k]``; k is odd.
        scale: ``Tensor[D]``, of the normalisation.
        bias: ``Tensor[D]``, of the normalisation.
        real: ``Tensor[B, T, 1]``, 1 or 0.
        inside: ``Tensor[B, T, 1]``, 1 or 0.

    Returns:
        ``Tensor[B, T, D]``; relu(bias) on rows inside that are not real.
    """
    if _in_products(x, weight):
        out: Tensor = _ConvNormReLU.apply(x, weight, scale, bias, real, inside)
        return out
    out = F.layer_norm(conv_rows(x, weight, None) * real, scale.shape, scale, bias)
    return F.relu(out) * inside


def _in_products(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution is a product per row of its kernel."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class _Products(torch.autograd.Function):
    """A convolution without a copy of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, used: Tensor | None) -> Tensor:
        ctx.spans = _spans(x, used)
        ctx.save_for_backward(x, weight)
        return _convolved(x, weight, ctx.spans)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return *_gradients(x, weight, grad, ctx.spans, *ctx.needs_input_grad[:2]), None


class _ConvNormReLU(torch.autograd.Function):
    """All in one, so that what masks and ReLU leave of an array is written into it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor,
        real: Tensor,
        inside: Tensor,
    ) -> Tensor:
        ctx.spans = _spans(x, real)
        hidden = _convolved(x, weight, ctx.spans).mul_(real)
        out, mean, factor = torch.native_layer_norm(hidden, scale.shape, scale, bias, 1e-5)
        out.relu_().mul_(inside)
        ctx.save_for_backward(x, weight, scale, bias, real, hidden, out, mean, factor)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, bias, real, hidden, out, mean, factor = ctx.saved_tensors
        # Outside, where the output is 0, nothing passes the ReLU.
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
        of_hidden, of_scale, of_bias = torch.ops.aten.native_layer_norm_backward(
            grad, hidden, scale.shape, mean, factor, scale, bias, (True, True, True)
        )
        of_hidden.mul_(real)
        both = _gradients(x, weight, of_hidden, ctx.spans, *ctx.needs_input_grad[:2])
        return *both, of_scale, of_bias, None, None


def _spans(x: Tensor, used: Tensor | None) -> list[Span]:
    """Returns what covers the used rows of each clip."""
    clips, rows = x.shape[:2]
    if used is None:
        return [(at * rows, (at + 1) * rows, at * rows, (at + 1) * rows) for at in range(clips)]
    steps = F.pad(used[..., 0], (1, 1)).diff(dim=1)  # 1 at a first row, -1 after a last one
    firsts = steps.eq(1).nonzero().tolist()
    ends = steps.eq(-1).nonzero().tolist()
    spans: list[Span] = []
    for (clip, first), (_, end) in zip(firsts, ends, strict=True):
        low = clip * rows
        near = spans and spans[-1][2] == low and low + first - spans[-1][1] < _NEAR
        start = spans.pop()[0] if near else low + first
        spans.append((start, low + end, low, low + rows))
    return spans


def _sides(kernel: int, spans: list[Span]) -> Iterator[tuple[int, slice, slice]]:
    """Yields rows of the kernel but the middle one, rows of a span, and what they see there."""
    for first, end, low, high in spans:
        for at in range(kernel):
            shift = at - kernel // 2
            start, stop = max(first, low - shift), min(end, high - shift)
            if shift and start < stop:
                yield at, slice(start, stop), slice(start + shift, stop + shift)


def _middle(x: Tensor, tap: Tensor, spans: list[Span]) -> Tensor:
    """Returns ``Tensor[B T, D]``: of each row of the spans its own product, 0 elsewhere."""
    out = x.new_empty(len(x), tap.shape[1])
    done = 0
    for first, end, _, _ in spans:
        out[done:first].zero_()
        torch.mm(x[first:end], tap, out=out[first:end])
        done = end
    out[done:].zero_()
    return out


def _places(x: Tensor, weight: Tensor, spans: list[Span]) -> list[int] | None:
    """Returns the spans as the transforms of minimal filtering take them, None where it is slower."""
    rows = sum(end - first for first, end, _, _ in spans)
    if (
        weight.shape[2] != 3
        or min(weight.shape[:2]) < _WIDE
        or rows < _MANY
        or x.dtype not in (torch.float32, torch.float64)
    ):
        return None
    return [place for span in spans for place in span]


def _convolved(x: Tensor, weight: Tensor, spans: list[Span]) -> Tensor:
    """Returns ``Tensor[B, T, D]``, 0 beyond the spans."""
    flat = x.flatten(0, 1)
    places = _places(x, weight, spans)
    if places is not None:
        tiles = rows_to_tiles(flat, places, inputs=True)
        products = torch.bmm(tiles, weight_to_tiles(weight).transpose(1, 2))
        del tiles
        out = tiles_to_rows(products, places, len(flat), inputs=False)
        return out.view(*x.shape[:2], weight.shape[0])
    kernel = weight.shape[2]
    taps = weight.permute(2, 1, 0).contiguous()
    out = _middle(flat, taps[kernel // 2], spans)
    for at, rows, seen in _sides(kernel, spans):
        out[rows].addmm_(flat[seen], taps[at])
    return out.view(*x.shape[:2], weight.shape[0])


def _gradients(
    x: Tensor, weight: Tensor, grad: Tensor, spans: list[Span], need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the gradients of a convolution, those that are needed."""
    kernel = weight.shape[2]
    flat, grad = x.flatten(0, 1), grad.flatten(0, 1)
    of_x = of_weight = None
    places = _places(x, weight, spans)
    if places is not None:
        of_products = rows_to_tiles(grad, places, inputs=False)
        if need_x:
            of_tiles = torch.bmm(of_products, weight_to_tiles(weight))
            of_x = tiles_to_rows(of_tiles, places, len(flat), inputs=True).view(x.shape)
            del of_tiles
        if need_weight:
            tiles = rows_to_tiles(flat, places, inputs=True)
            of_weight = tiles_to_weight(torch.bmm(of_products.transpose(1, 2), tiles))
        return of_x, of_weight
    if need_x:
        taps = weight.permute(2, 0, 1).contiguous()
        of_x = _middle(grad, taps[kernel // 2], spans)
        for at, rows, seen in _sides(kernel, spans):
            of_x[seen].addmm_(grad[rows], taps[at])
        of_x = of_x.view(x.shape)
    if need_weight:
        sums = weight.new_zeros(kernel, *weight.shape[:2])
        for first, end, _, _ in spans:
            sums[kernel // 2].addmm_(grad[first:end].t(), flat[first:end])
        for at, rows, seen in _sides(kernel, spans):
            sums[at].addmm_(grad[rows].t(), flat[seen])
        of_weight = sums.permute(1, 2, 0)
    return of_x, of_weight


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
