# SPDX-License-Identifier: Apache-2.0
"""Heads over the points of a pyramid, with the same weights on every level."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tal_fast.models.pyramid.layers import ChannelNorm, MaskedConv, Scale, norm_relu
from tal_fast.models.pyramid.points import Joined

__all__ = ["ClassHead", "OffsetHead", "prior_bias"]

_RARE = 1e-6  # probability that training starts from, of classes without an instance


def prior_bias(probability: float) -> float:
    """Returns the logit of a probability (focal loss, Lin et al. 2017, section 3.3)."""
    return -math.log((1 - probability) / probability)


class _Head(nn.Module):
    """Convolutions with normalisation and ReLU before the last one.

    Args:
        width_in: channels of the pyramid.
        width: channels of the head.
        layers: convolutions, the last one included.
        kernel: rows that each sees.
    """

    def __init__(self, width_in: int, width: int, layers: int, kernel: int) -> None:
        super().__init__()
        widths = [width_in] + [width] * (layers - 1)
        self.head = nn.ModuleList(
            MaskedConv(widths[i], width, kernel, bias=False) for i in range(layers - 1)
        )
        self.norm = nn.ModuleList(ChannelNorm(width) for _ in range(layers - 1))
        self._width = widths[-1]

    def hidden(self, joined: Joined) -> Tensor:
        """Returns what the last convolution reads: ``Tensor[B, J, width]``."""
        x, rows = joined.features, joined.rows
        for conv, norm in zip(self.head, self.norm, strict=True):
            x = norm_relu(conv, norm, x, rows)
        return x


class ClassHead(_Head):
    """A logit per point and class.

    Args:
        width_in: channels of the pyramid.
        width: channels of the head.
        num_classes: number of classes.
        layers: convolutions.
        kernel: rows that each sees.
        prior: probability that training starts from.
    """

    def __init__(
        self, width_in: int, width: int, num_classes: int, layers: int, kernel: int, prior: float
    ) -> None:
        super().__init__(width_in, width, layers, kernel)
        self.cls_head = MaskedConv(self._width, num_classes, kernel)
        bias = self.cls_head.conv.bias
        assert bias is not None
        nn.init.constant_(bias, prior_bias(prior))

    def lower_rare(self, instances: Sequence[int]) -> None:
        """Has classes without a training instance start as all but impossible."""
        bias = self.cls_head.conv.bias
        assert bias is not None
        with torch.no_grad():
            for label, count in enumerate(instances):
                if count == 0:
                    bias[label] = prior_bias(_RARE)

    def forward(self, joined: Joined) -> Tensor:
        """Returns ``Tensor[B, P, num_classes]``."""
        return joined.points(self.cls_head(self.hidden(joined), joined.rows))


class OffsetHead(_Head):
    """Distances to both ends per point, not negative, scaled by a learned factor of its level.

    Args:
        width_in: channels of the pyramid.
        width: channels of the head.
        layers: convolutions.
        kernel: rows that each sees.
        levels: number of levels.
        outputs: numbers per point.
        start: what they are before training, beside what the first weights give.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        layers: int,
        kernel: int,
        levels: int,
        outputs: int = 2,
        *,
        start: float = 0.0,
    ) -> None:
        super().__init__(width_in, width, layers, kernel)
        self.scale = nn.ModuleList(Scale() for _ in range(levels))
        self.offset_head = MaskedConv(self._width, outputs, kernel)
        bias = self.offset_head.conv.bias
        assert bias is not None
        nn.init.constant_(bias, start)

    def forward(self, joined: Joined) -> Tensor:
        """Returns ``Tensor[B, P, outputs]``, in rows of the point's level."""
        out = joined.points(self.offset_head(self.hidden(joined), joined.rows))
        parts = out.split(list(joined.sizes), dim=1)
        scaled = [scale(part) for scale, part in zip(self.scale, parts, strict=True)]
        return F.relu(torch.cat(scaled, dim=1))
