# SPDX-License-Identifier: Apache-2.0
"""Layers over rows of channels, [B, T, C], whose rows are real, padded, or outside.

A clip of n real rows lies in a batch of T >= n rows. The recipes pad every clip to a length of
their own before they run it, and what stands in these *padded* rows decides the last real ones: a
convolution is masked, but the normalisation and the ReLU after it write relu(bias) into padded
rows, which the next convolution reads. Rows beyond the recipe's length are *outside*: nothing is
there, and a convolution must read zeros. So each layer takes two masks: ``real`` and ``inside``,
float [B, T, 1], 1 where a row is real, or real or padded.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tal_fast.models.pyramid.convolution import (
    HostRows,
    conv_macs,
    conv_norm_relu,
    conv_rows,
    depthwise_rows,
    host_rows,
    linear_rows,
)

__all__ = [
    "ChannelNorm",
    "DropPath",
    "Embedding",
    "LevelNorms",
    "MaskedConv",
    "Rows",
    "Scale",
    "group_norm_rows",
    "max_pool_rows",
    "norm_relu",
    "position_code",
]


class Rows(NamedTuple):
    """Which rows of a level are what.

    Attributes:
        real: ``Tensor[B, T, 1]``, 1 on rows of the clip.
        inside: ``Tensor[B, T, 1]``, 1 on rows that the recipe computes, padding included.
        padded: ``LongTensor[B]``, how many these are in the recipe; more than T where the batch
            leaves out padded rows.
        host: what the host knows of them; None where it does not look, and all rows are computed.
    """

    real: Tensor
    inside: Tensor
    padded: Tensor
    host: HostRows | None = None

    @classmethod
    def of(cls, real: Tensor, inside: Tensor, padded: Tensor) -> Rows:
        """Returns rows that the host has looked at, where it may."""
        return cls(real, inside, padded, host_rows(real, inside))

    def halved(self) -> Rows:
        """Returns the rows of the next level: every second one."""
        halves = torch.div(self.padded, 2, rounding_mode="floor")
        return Rows.of(self.real[:, ::2], self.inside[:, ::2], halves)

    def cut(self, rows: int) -> Rows:
        """Returns the first rows."""
        return Rows.of(self.real[:, :rows], self.inside[:, :rows], self.padded)

    def zero_outside(self, x: Tensor) -> Tensor:
        """Zeroes the rows outside of ``Tensor[B, T, C]``, if there are any."""
        return x if self.host is not None and not self.host.outside else x * self.inside

    def masked_linear(self, conv: Any, x: Tensor) -> Tensor:
        """Applies a convolution of one row to ``Tensor[B, T, C]``; 0 on all but real rows."""
        out = linear_rows(conv, x, self.host)
        return out if self.host is not None else out * self.real

    def counts(self) -> Tensor:
        """Returns ``Tensor[B, T, 1]``: how often each row counts in what the recipe averages.

        Padded rows that the batch leaves out count as copies of its last one.
        """
        missing = (self.padded - self.inside.shape[1]).clamp(min=0)
        return torch.cat((self.inside[:, :-1], self.inside[:, -1:] + missing.view(-1, 1, 1)), dim=1)


def max_pool_rows(x: Tensor) -> Tensor:
    """Takes the maximum of three rows around every second one: [B, T, C] gives [B, T / 2, C]."""
    # As an image of height 1 whose channels lie last, so that nothing is transposed.
    image = x.transpose(1, 2).unsqueeze(2)
    pooled = F.max_pool2d(image, (1, 3), stride=(1, 2), padding=(0, 1))
    return pooled.squeeze(2).transpose(1, 2)


class MaskedConv(nn.Module):
    """A convolution over rows whose outputs are zero on all but real rows.

    Args:
        width_in: channels of its input.
        width_out: channels of its output.
        kernel: rows that it sees; odd.
        bias: whether it has one; 0 at the start.
        depthwise: each channel by itself.
        stride: 1, or 2 for every second row.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        kernel: int,
        *,
        bias: bool = True,
        depthwise: bool = False,
        stride: int = 1,
    ) -> None:
        super().__init__()
        groups = width_in if depthwise else 1
        self.conv = nn.Conv1d(
            width_in,
            width_out,
            kernel,
            stride,
            kernel // 2,
            groups=groups,
            bias=bias,
            dtype=torch.float32,
        )
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        """Maps ``Tensor[B, T, width_in]`` to ``Tensor[B, T / stride, width_out]``.

        Args:
            x: zero on rows outside.
            rows: of the output.
        """
        conv = self.conv
        if conv.groups > 1:
            out = depthwise_rows(x, conv.weight, conv.bias, conv.stride[0])
        else:
            used = None if rows.host is None else rows.host.used
            out = conv_rows(x, conv.weight, conv.bias, used)
        return out * rows.real


class ChannelNorm(nn.Module):
    """Layer normalisation of each row over its channels.

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        # Of this shape in the official checkpoints, whose channels come before rows.
        self.weight = nn.Parameter(torch.ones(1, width, 1, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(1, width, 1, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``Tensor[B, T, C]``."""
        width = self.weight.shape[1]
        return F.layer_norm(x, (width,), self.weight.view(width), self.bias.view(width))


def norm_relu(conv: Any, norm: Any, x: Tensor, rows: Rows) -> Tensor:
    """Applies a :class:`MaskedConv` without bias, a :class:`ChannelNorm` and a ReLU.

    Padded rows hold relu(bias) of the normalisation from here on; rows outside hold nothing.
    """
    scale, bias = norm.weight.view(-1), norm.bias.view(-1)
    return conv_norm_relu(x, conv.conv.weight, scale, bias, rows.real, rows.inside, rows.host)


class LevelNorms(nn.Module):
    """A normalisation per level.

    Args:
        width: channels.
        levels: number of levels.
    """

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.fpn_norms = nn.ModuleList(ChannelNorm(width) for _ in range(levels))

    def forward(self, levels: list[Tensor], rows: list[Rows]) -> list[Tensor]:
        """Normalises ``Tensor[B, T / 2^l, C]`` of each level l; rows outside become zero."""
        return [
            item.zero_outside(norm(level))
            for norm, level, item in zip(self.fpn_norms, levels, rows, strict=True)
        ]


def group_norm_rows(
    x: Tensor,
    counts: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises groups of channels over all rows of a clip (Wu and He, ECCV 2018).

    Args:
        x: ``Tensor[B, T, C]``, finite everywhere.
        counts: ``Tensor[B, T, 1]``, how often each row counts.
        groups: number of groups G; consecutive channels form one.
        weight: ``Tensor[C]``; None for 1.
        bias: ``Tensor[C]``; None for 0.
        eps: what the variance is widened by.
    """
    share = counts / (counts.sum(1, keepdim=True) * (x.shape[2] // groups))
    out: Tensor = _GroupNorm.apply(x.float(), share, groups, eps)
    if weight is not None:
        out = out * weight
    return out if bias is None else out + bias


class _GroupNorm(torch.autograd.Function):
    """What share of its group's sums each value of a row has is given: ``Tensor[B, T, 1]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Tensor, groups: int, eps: float) -> Tensor:
        # Sums, not products of matrices, which autocast would round to half precision.
        out = x - _of_groups((x * share).sum(1, keepdim=True), groups)
        variance = _of_groups(out.square().mul_(share).sum(1, keepdim=True), groups)
        factor = torch.rsqrt(variance + eps)
        out.mul_(factor)
        ctx.groups = groups
        ctx.save_for_backward(out, share, factor)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out, share, factor = ctx.saved_tensors
        shift = _of_groups(grad.sum(1, keepdim=True), ctx.groups)
        slope = _of_groups((grad * out).sum(1, keepdim=True), ctx.groups)
        of_x = torch.addcmul(shift, out, slope).mul_(share)
        torch.sub(grad, of_x, out=of_x)
        return of_x.mul_(factor), None, None, None


def _of_groups(values: Tensor, groups: int) -> Tensor:
    """Returns ``Tensor[B, 1, C]``: for each channel the sum of its group."""
    parts = values.unflatten(2, (groups, -1))
    return parts.sum(3, keepdim=True).expand_as(parts).flatten(2)


class Scale(nn.Module):
    """A learned factor, one number.

    Args:
        start: what it starts from.
    """

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(start, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies."""
        return x * self.scale


class DropPath(nn.Module):
    """Layer scale, and in training now and then the whole branch of a clip left out.

    Args:
        width: channels.
        probability: of leaving it out.
        start: what the scales start from.
    """

    def __init__(self, width: int, probability: float, start: float = 1e-4) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, width, 1), start, dtype=torch.float32))
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Scales ``Tensor[B, T, C]``."""
        scale = self.scale.view(1, 1, -1)
        if self.training and self.probability > 0.0:
            kept = 1.0 - self.probability
            mask = torch.empty(len(x), 1, 1, device=x.device, dtype=x.dtype).bernoulli_(kept)
            scale = scale * (mask / kept)
        return x * scale


class Embedding(nn.Module):
    """Projections of several kinds of features, and the convolutions that follow.

    Its members are put into the backbone under the official names.

    Args:
        in_channels: channels of the features.
        width: channels of the output.
        layers: convolutions.
        kernel: rows that each sees.
        inputs: channels of each kind of features; empty for one kind.
        projected: channels that each is projected to.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        layers: int,
        kernel: int,
        inputs: tuple[int, ...] = (),
        projected: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        if inputs and sum(inputs) != in_channels:
            raise ValueError(
                f"expected features of model.inputs = {list(inputs)} channels, "
                f"{sum(inputs)} in all, got {in_channels}"
            )
        self.inputs = inputs
        if inputs:
            self.proj = nn.ModuleList(
                MaskedConv(n_in, n_out, 1) for n_in, n_out in zip(inputs, projected, strict=True)
            )
            in_channels = sum(projected)
        widths = [in_channels] + [width] * layers
        self.embd = nn.ModuleList(
            MaskedConv(widths[i], width, kernel, bias=False) for i in range(layers)
        )
        self.embd_norm = nn.ModuleList(ChannelNorm(width) for _ in range(layers))

    def embed(self, x: Tensor, rows: Rows) -> Tensor:
        """Maps features to ``Tensor[B, T, width]``."""
        if self.inputs:
            parts = x.split(list(self.inputs), dim=-1)
            x = torch.cat([p(part, rows) for p, part in zip(self.proj, parts, strict=True)], -1)
        for conv, norm in zip(self.embd, self.embd_norm, strict=True):
            x = norm_relu(conv, norm, x, rows)
        return x

    def embedding_macs(self, rows: int) -> int:
        """Returns the multiply-adds of the embedding."""
        return conv_macs(self.embd, rows) + (conv_macs(self.proj, rows) if self.inputs else 0)


def position_code(padded: Tensor, rows: int, width: int, longest: int) -> Tensor:
    """Returns ``Tensor[B, rows, width]``, sines and cosines of the row number over sqrt(width).

    Vaswani et al., NeurIPS 2017, section 3.5. In a clip that is padded to more than ``longest``
    rows, the code of ``longest`` rows is stretched over it.

    Args:
        padded: ``Tensor[B]``, rows that the recipe pads each clip to.
        rows: rows of the batch.
        width: channels; even.
        longest: rows of the code.
    """
    device = padded.device
    row = torch.arange(longest, dtype=torch.float64, device=device)[:, None]
    exponent = torch.arange(0, width, 2, dtype=torch.float64, device=device) / width
    phase = row / 10_000.0**exponent
    code = torch.stack((phase.sin(), phase.cos()), dim=-1).flatten(1).float() / math.sqrt(width)
    stretch = longest / padded.clamp(min=longest).double()  # [B]
    place = (torch.arange(rows, device=device) + 0.5) * stretch[:, None] - 0.5  # [B, rows]
    place = place.clamp(0, longest - 1)
    before = place.floor().long()
    share = (place - before).float()[..., None]
    return torch.lerp(code[before], code[(before + 1).clamp(max=longest - 1)], share)
