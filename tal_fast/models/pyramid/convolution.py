# SPDX-License-Identifier: Apache-2.0
"""Convolutions over rows whose channels lie last, [B, T, C].

In float32 on a CPU a convolution is products of matrices over the rows whose output is used:
padding costs next to nothing. One of three rows, wide and long enough, takes half of a direct one's
multiply-adds, by minimal filtering (``tal_fast.ops.conv_tiles``). One thread, forward and backward
together: 101 instead of 182 ms for 3300 rows of 512 channels, 16 instead of 23 ms for 1500 rows of
256, 4.8 instead of 6.3 ms for 1500 rows of 128. Outputs and both gradients are 2.2 to 2.5 times as
far from float64 as those of a direct convolution (root mean square; the farthest 2.4 to 3.8 times),
whose own error is 2e-7: both are rounding. The others are a product per row of the kernel, each
added to the rows that it belongs to, and copy nothing. Against one product over shifted copies: 16
instead of 20 ms for 2 x 2200 rows of 128 channels, all used, and 3 instead of 6 ms for 12 outputs.

Elsewhere it is one product over shifted copies side by side: there the host would have to wait for
which rows are used, and sums in half precision would lose digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tal_fast.ops.conv_tiles import (
    rows_to_tiles,
    tiles_to_rows,
    tiles_to_weight,
    weight_to_tiles,
)

__all__ = [
    "HostRows",
    "conv_macs",
    "conv_norm_relu",
    "conv_rows",
    "depthwise_rows",
    "host_rows",
    "linear_rows",
]

# First row, row after the last, and the same of their clip, all clips one after the other.
Span = tuple[int, int, int, int]
# Channels on both sides and rows in all from which on minimal filtering pays.
_WIDE, _MANY = 128, 256
_NEAR = 64  # rows; without it, spans nearer to each other are computed together


class HostRows(NamedTuple):
    """What the host knows of a level's rows, all clips one after the other.

    Attributes:
        used: runs of rows whose output is used.
        outside: first row, and row after the last, of runs that a convolution reads as zeros.
    """

    used: list[Span]
    outside: list[tuple[int, int]]


def host_rows(used: Tensor, inside: Tensor) -> HostRows | None:
    """Looks at the masks of a level.

    Args:
        used: ``Tensor[B, T, 1]``, 0 on rows whose output is not used.
        inside: ``Tensor[B, T, 1]``, 0 on rows that are read as zeros.

    Returns:
        None where rows that are not used are computed as well: on a GPU, where looking would wait
        for the device, under autocast, and while a model is traced.
    """
    if (
        used.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    ):
        return None
    outside = [(first, end) for first, end, _, _ in _runs(inside == 0)]
    return HostRows(_runs(used != 0), outside)


def _runs(mask: Tensor) -> list[Span]:
    """Returns the runs of True of each clip in ``Tensor[B, T, 1]``."""
    clips, rows = mask.shape[:2]
    if not clips:
        return []
    edges = np.flatnonzero(np.diff(mask[..., 0].numpy(), axis=1, prepend=False, append=False))
    clip, row = np.divmod(edges.reshape(-1, 2), rows + 1)
    ends = (clip * rows + row).tolist()
    return [
        (first, end, low, low + rows)
        for (first, end), low in zip(ends, (clip[:, 0] * rows).tolist(), strict=True)
    ]


def conv_rows(
    x: Tensor, weight: Tensor, bias: Tensor | None, used: list[Span] | None = None
) -> Tensor:
    """Convolves over rows with zeros at both ends: [B, T, C] with [D, C, k] gives [B, T, D].

    Args:
        x: ``Tensor[B, T, C]``.
        weight: ``Tensor[D, C, k]``; k is odd.
        bias: ``Tensor[D]``.
        used: runs of rows whose output is used. All others are then anything finite, and must be
            masked; with k = 1 they are 0. None: all are used.
    """
    kernel = weight.shape[-1]
    if kernel == 1 and (used is None or _count(used) == x.shape[0] * x.shape[1]):
        return F.linear(x, weight[:, :, 0], bias)
    if _in_products(x, weight):
        out: Tensor = _Products.apply(x, weight, bias, _all(x) if used is None else used)
        return out
    rows = x.shape[1]
    padded = F.pad(x, (0, 0, kernel // 2, kernel // 2))
    x = torch.cat([padded[:, at : at + rows] for at in range(kernel)], dim=-1)
    return F.linear(x, weight.permute(0, 2, 1).flatten(1), bias)


def conv_norm_relu(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    real: Tensor,
    inside: Tensor,
    host: HostRows | None = None,
) -> Tensor:
    """Convolves, zeroes what is not real, normalises each row, takes the ReLU, zeroes outside.

    Args:
        x: ``Tensor[B, T, C]``.
        weight: ``Tensor[D, C, k]``; k is odd.
        scale: ``Tensor[D]``, of the normalisation.
        bias: ``Tensor[D]``, of the normalisation.
        real: ``Tensor[B, T, 1]``, 1 or 0.
        inside: ``Tensor[B, T, 1]``, 1 or 0.
        host: what :func:`host_rows` says of both, if it has been asked.

    Returns:
        ``Tensor[B, T, D]``; relu(bias) on rows inside that are not real.
    """
    if _in_products(x, weight):
        host = host or host_rows(real, inside)
        out: Tensor = _ConvNormReLU.apply(x, weight, scale, bias, host)
        return out
    out = F.layer_norm(conv_rows(x, weight, None) * real, scale.shape, scale, bias)
    return F.relu(out) * inside


def _in_products(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution is products over used rows."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class _Products(torch.autograd.Function):
    """A convolution over used rows."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, used: list[Span]
    ) -> Tensor:
        ctx.plan = _plan(x, weight, used)
        ctx.save_for_backward(x, weight)
        return _convolved(x, weight, bias, ctx.plan)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = _gradients(x, weight, grad, ctx.plan, *ctx.needs_input_grad[:2])
        of_bias = None
        if ctx.needs_input_grad[2]:
            of_bias = grad.new_zeros(grad.shape[2])
            for first, end, _, _ in ctx.plan.spans:
                of_bias += grad.flatten(0, 1)[first:end].sum(0)
        return of_x, of_weight, of_bias, None


class _ConvNormReLU(torch.autograd.Function):
    """All in one, so that what masks and ReLU leave of an array is written into it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, host: HostRows
    ) -> Tensor:
        ctx.plan = _plan(x, weight, host.used)
        hidden = _convolved(x, weight, None, ctx.plan)
        _zero(hidden, ctx.plan.holes)
        out, mean, factor = torch.native_layer_norm(hidden, scale.shape, scale, bias, 1e-5)
        _zero(out.relu_(), host.outside)
        ctx.save_for_backward(x, weight, scale, bias, hidden, out, mean, factor)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, bias, hidden, out, mean, factor = ctx.saved_tensors
        # Outside, where the output is 0, nothing passes the ReLU.
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
        of_hidden, of_scale, of_bias = torch.ops.aten.native_layer_norm_backward(
            grad, hidden, scale.shape, mean, factor, scale, bias, (True, True, True)
        )
        _zero(of_hidden, ctx.plan.holes)
        both = _gradients(x, weight, of_hidden, ctx.plan, *ctx.needs_input_grad[:2])
        return *both, of_scale, of_bias, None


class _Plan(NamedTuple):
    """How a convolution is computed.

    Attributes:
        spans: of rows that are computed.
        holes: rows among them that are not used.
        tiles: the spans for minimal filtering; None without it.
    """

    spans: list[Span]
    holes: list[tuple[int, int]]
    tiles: list[int] | None


def _plan(x: Tensor, weight: Tensor, used: list[Span]) -> _Plan:
    """Chooses the faster way of a convolution over used rows."""
    width, channels, kernel = weight.shape
    in_tiles = (
        kernel == 3
        and min(width, channels) >= _WIDE
        and _count(used) >= _MANY
        and x.dtype in (torch.float32, torch.float64)
    )
    # Tiles: no row may be read by two spans. One row: spans have nothing to share.
    near = 2 if in_tiles else _NEAR if kernel > 1 else 0
    spans: list[Span] = []
    holes = []
    for first, end, low, high in used:
        if spans and spans[-1][2] == low and first - spans[-1][1] < near:
            holes.append((spans[-1][1], first))
            first = spans.pop()[0]
        spans.append((first, end, low, high))
    return _Plan(spans, holes, [row for span in spans for row in span] if in_tiles else None)


def _all(x: Tensor) -> list[Span]:
    """Returns all rows of each clip."""
    clips, rows = x.shape[:2]
    return [(at, at + rows, at, at + rows) for at in range(0, clips * rows, rows)] if rows else []


def _count(spans: list[Span]) -> int:
    return sum(end - first for first, end, _, _ in spans)


def _zero(x: Tensor, runs: list[tuple[int, int]]) -> None:
    """Zeroes rows of ``Tensor[B, T, C]``, all clips one after the other."""
    flat = x.view(x.shape[0] * x.shape[1], x.shape[2])
    for first, end in runs:
        flat[first:end].zero_()


def _sides(kernel: int, spans: list[Span]) -> Iterator[tuple[int, slice, slice]]:
    """Yields rows of the kernel but the middle one, rows of a span, and what they see there."""
    for first, end, low, high in spans:
        for at in range(kernel):
            shift = at - kernel // 2
            start, stop = max(first, low - shift), min(end, high - shift)
            if shift and start < stop:
                yield at, slice(start, stop), slice(start + shift, stop + shift)


def _middle(x: Tensor, tap: Tensor, bias: Tensor | None, spans: list[Span]) -> Tensor:
    """Returns ``Tensor[B T, D]``: of each row of the spans its own product, 0 elsewhere."""
    out = x.new_empty(len(x), tap.shape[1])
    done = 0
    for first, end, _, _ in spans:
        out[done:first].zero_()
        if bias is None:
            torch.mm(x[first:end], tap, out=out[first:end])
        else:
            torch.addmm(bias, x[first:end], tap, out=out[first:end])
        done = end
    out[done:].zero_()
    return out


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, plan: _Plan) -> Tensor:
    """Returns ``Tensor[B, T, D]``, 0 beyond the spans."""
    flat = x.flatten(0, 1)
    if plan.tiles is not None:
        tiles = rows_to_tiles(flat, plan.tiles, inputs=True)
        products = torch.bmm(tiles, weight_to_tiles(weight).transpose(1, 2))
        del tiles
        out = tiles_to_rows(products, plan.tiles, len(flat), inputs=False)
        if bias is not None:
            for first, end, _, _ in plan.spans:
                out[first:end].add_(bias)
    else:
        taps = weight.permute(2, 0, 1).contiguous()
        kernel = len(taps)
        out = _middle(flat, taps[kernel // 2].t(), bias, plan.spans)
        for at, rows, seen in _sides(kernel, plan.spans):
            out[rows].addmm_(flat[seen], taps[at].t())
    return out.view(*x.shape[:2], weight.shape[0])


def _gradients(
    x: Tensor, weight: Tensor, grad: Tensor, plan: _Plan, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the gradients of a convolution, those that are needed."""
    flat, grad = x.flatten(0, 1), grad.flatten(0, 1)
    of_x = of_weight = None
    if plan.tiles is not None:
        of_products = rows_to_tiles(grad, plan.tiles, inputs=False)
        if need_x:
            of_tiles = torch.bmm(of_products, weight_to_tiles(weight))
            of_x = tiles_to_rows(of_tiles, plan.tiles, len(flat), inputs=True).view(x.shape)
            del of_tiles
        if need_weight:
            tiles = rows_to_tiles(flat, plan.tiles, inputs=True)
            of_weight = tiles_to_weight(torch.bmm(of_products.transpose(1, 2), tiles))
        return of_x, of_weight
    kernel = weight.shape[2]
    if need_x:
        taps = weight.permute(2, 0, 1).contiguous()
        of_x = _middle(grad, taps[kernel // 2], None, plan.spans)
        for at, rows, seen in _sides(kernel, plan.spans):
            of_x[seen].addmm_(grad[rows], taps[at])
        of_x = of_x.view(x.shape)
    if need_weight:
        sums = weight.new_zeros(kernel, *weight.shape[:2])
        for first, end, _, _ in plan.spans:
            sums[kernel // 2].addmm_(grad[first:end].t(), flat[first:end])
        for at, rows, seen in _sides(kernel, plan.spans):
            sums[at].addmm_(grad[rows].t(), flat[seen])
        of_weight = sums.permute(1, 2, 0)
    return of_x, of_weight


def linear_rows(conv: Any, x: Tensor, host: HostRows | None = None) -> Tensor:
    """Applies a convolution of one row to ``Tensor[B, T, C]``.

    Args:
        conv: the convolution.
        x: its input.
        host: which rows are used; the others become 0. None: all are.
    """
    return conv_rows(x, conv.weight, conv.bias, None if host is None else host.used)


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
