# SPDX-License-Identifier: Apache-2.0
"""TriDet: a pyramid of gated convolutions, and boundaries as expectations over bins.

Shi, Zhong, Cao, Ma, Li, Tao: "TriDet: Temporal Action Detection with Relative Boundary Modeling",
CVPR 2023 (arXiv 2303.07347). Parameter names are those of the official model, so that its
checkpoints load.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tal_fast.models.losses import focal_loss
from tal_fast.models.pyramid.backbone import Backbone
from tal_fast.models.pyramid.config import RECIPE, epochs
from tal_fast.models.pyramid.convolution import conv_macs, depthwise_rows, linear_rows
from tal_fast.models.pyramid.detector import PyramidDetector
from tal_fast.models.pyramid.heads import ClassHead, OffsetHead
from tal_fast.models.pyramid.layers import (
    ChannelNorm,
    DropPath,
    LevelNorms,
    Rows,
    group_norm_rows,
    max_pool_rows,
)
from tal_fast.models.pyramid.losses import offset_diou, offset_iou
from tal_fast.models.pyramid.points import join_levels
from tal_fast.models.pyramid.targets import PointTargets
from tal_fast.models.tridet.config import GROUPS, PRESETS, TIMING, TriDetConfig, TriDetSizes
from tal_fast.models.tridet.trident import expected_distances

__all__ = ["TriDet", "TriDetOutput"]


class TriDetOutput(NamedTuple):
    """What a forward pass gives for the P points of each clip, levels side by side.

    Attributes:
        logits: ``Tensor[B, P, classes]``; 0 on points that are no rows of the clip.
        offsets: ``Tensor[B, P, 2 (bins + 1)]``, logits of the distance to the start, from the
            greatest to 0, and of the distance to the end, from 0 to the greatest.
        starts: ``Tensor[B, P, classes]``, logits of a start at the point; 0 like ``logits``.
        ends: ``Tensor[B, P, classes]``, logits of an end.
        valid: ``BoolTensor[B, P]``, False where a point is no row of the clip.
    """

    logits: Tensor
    offsets: Tensor
    starts: Tensor
    ends: Tensor
    valid: Tensor


class _Depthwise(nn.Conv1d):
    """A convolution of each channel by itself."""

    def __init__(self, width: int, kernel: int, start: float) -> None:
        super().__init__(width, width, kernel, groups=width)
        nn.init.normal_(self.weight, 0.0, start)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]


class _Block(nn.Module):
    """Scalable-granularity perception: gated convolutions of two widths, and feed-forward."""

    def __init__(self, sizes: TriDetSizes, stride: int, window: int, drop_path: float) -> None:
        super().__init__()
        width = sizes.width
        self.stride = stride
        self.ln = ChannelNorm(width)
        self.gn = nn.GroupNorm(GROUPS, width)
        self.psi = _Depthwise(width, window, sizes.gate_start)
        self.fc = _Depthwise(width, 1, sizes.gate_start)
        self.convw = _Depthwise(width, window, sizes.gate_start)
        self.convkw = _Depthwise(width, sizes.wide(window), sizes.gate_start)
        self.global_fc = _Depthwise(width, 1, sizes.gate_start)
        # Of these indices in the official checkpoints: 1 is the activation.
        first, second = nn.Conv1d(width, sizes.hidden, 1), nn.Conv1d(sizes.hidden, width, 1)
        self.mlp = nn.ModuleDict({"0": first, "2": second})
        for linear in self.mlp.values():
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
        if drop_path > 0.0:
            self.drop_path_out: nn.Module = DropPath(width, drop_path)
            self.drop_path_mlp: nn.Module = DropPath(width, drop_path)
        else:
            self.drop_path_out = self.drop_path_mlp = nn.Identity()
        self.still = sizes.gate_start == 0.0
        self.register_load_state_dict_post_hook(_look_at_gates)

    def forward(self, x: Tensor, rows: Rows) -> tuple[Tensor, Rows]:
        """Maps ``Tensor[B, T, width]`` to ``Tensor[B, T / stride, width]``.

        What comes out on rows outside is finite and means nothing.
        """
        if self.stride > 1:
            rows = rows.halved()
            x = max_pool_rows(x)
        counts = rows.counts()
        y = self.ln(x)
        if not self.still:
            y = self._gated(rows.zero_outside(y), counts)
        x = x * rows.real + self.drop_path_out(y)
        y = group_norm_rows(x, counts, GROUPS, self.gn.weight, self.gn.bias, self.gn.eps)
        y = linear_rows(self.mlp["2"], F.gelu(linear_rows(self.mlp["0"], y)))
        return x + self.drop_path_mlp(y), rows

    def _gated(self, y: Tensor, counts: Tensor) -> Tensor:
        """Adds what the gates let through of ``Tensor[B, T, width]``, which is zero outside."""
        mean = (counts / counts.sum(1, keepdim=True)).transpose(1, 2) @ y  # [B, 1, width]
        phi = F.relu(_of_row(self.global_fc, mean))
        # Two widths over the same rows: one convolution with the sum of their kernels.
        short, long = sorted((self.convw.weight, self.convkw.weight), key=lambda w: w.shape[2])
        margin = (long.shape[2] - short.shape[2]) // 2
        kernel = long + F.pad(short, (margin, margin))
        windows = depthwise_rows(y, kernel, self.convw.bias + self.convkw.bias)  # type: ignore[operator]
        psi = depthwise_rows(y, self.psi.weight, self.psi.bias)
        return _of_row(self.fc, y) * phi + windows * psi + y

    def macs(self, rows: int) -> int:
        """Returns the multiply-adds of the convolutions for so many rows of output."""
        of_mean = self.global_fc  # which is one row
        return conv_macs(self, rows) - conv_macs(of_mean, rows) + conv_macs(of_mean, 1)


def _of_row(conv: Any, x: Tensor) -> Tensor:
    """Applies a depthwise convolution of one row to ``Tensor[B, T, C]``."""
    return torch.addcmul(conv.bias, x, conv.weight.view(-1))


def _look_at_gates(block: Any, _: Any) -> None:
    """Sees whether loaded weights let anything through the gates of a block."""
    gates = (part for part in block.children() if isinstance(part, _Depthwise))
    block.still = not any(bool(p.detach().any()) for gate in gates for p in gate.parameters())


class TriDet(PyramidDetector):
    """TriDet over whole videos or crops of them.

    Its normalisation over all rows, and the gates of its blocks, read what a clip is padded with,
    to the very length that the recipe pads it to. While all gates are zero, as they are for ever
    where they start so (``gate_start``), padded rows are alike but for the first ones, and
    :meth:`forward` counts those that are left out. Otherwise it computes them all, whatever it is
    given. Gates are looked at when they are made and when weights are loaded; weights that are
    written in another way need ``load_state_dict(state_dict())`` to be seen.

    Args:
        in_channels: channels of a feature row.
        num_classes: number of action classes.
        config: all its settings; those of the recipe for THUMOS14 when omitted.
    """

    Config = TriDetConfig
    presets = PRESETS
    timing = TIMING
    recipe: ClassVar[dict[str, Any]] = {
        "training": {**RECIPE["training"], **epochs(20, 20), "weight_decay": 0.025}
    }

    def __init__(
        self, in_channels: int, num_classes: int, config: TriDetConfig | None = None
    ) -> None:
        super().__init__(in_channels, num_classes, config)
        sizes: TriDetSizes = self.config.model
        self.backbone = Backbone(
            in_channels,
            sizes,
            self.config.data.max_length,
            stem=[_Block(sizes, 1, 1, 0.0) for _ in range(sizes.stem_layers)],
            branch=[
                _Block(sizes, 2, sizes.window, sizes.drop_path) for _ in range(1, sizes.levels)
            ],
        )
        self.neck = LevelNorms(sizes.width, sizes.levels)
        widths, layers = (sizes.width, sizes.head_width), sizes.head_layers
        kernel, boundary = sizes.head_kernel, sizes.boundary_kernel
        self.cls_head = ClassHead(*widths, num_classes, layers, kernel, sizes.class_prior)
        self.start_head = ClassHead(*widths, num_classes, layers, boundary, sizes.class_prior)
        self.end_head = ClassHead(*widths, num_classes, layers, boundary, sizes.class_prior)
        outputs = 2 * (sizes.bins + 1)
        self.reg_head = OffsetHead(*widths, layers, kernel, sizes.levels, outputs)

    @classmethod
    def multiple(cls, config: TriDetConfig) -> int:
        """Returns the rows of the coarsest level times the window."""
        return super().multiple(config) * config.model.window

    @classmethod
    def rows_needed(cls, config: TriDetConfig, rows: int) -> int:
        """Returns the least rows in which a clip comes out as in the recipe's own padding.

        Where the gates are zero, two padded rows must follow the last real one on every level: the
        first may hold what a pool took from a real row, the next stands for all that are left out.
        """
        full = cls.rows_of_recipe(config, rows)
        if config.model.gate_start > 0.0:
            return full
        coarsest = 1 << (config.model.levels - 1)
        return min(coarsest * (-(-rows // coarsest) + max(2, config.model.head_kernel // 2)), full)

    def class_heads(self) -> list[ClassHead]:
        """Returns the heads of classes and of their boundaries."""
        return [self.cls_head, self.start_head, self.end_head]

    def forward(self, features: Tensor, mask: Tensor) -> TriDetOutput:
        """Rates the points of a batch of clips.

        Args:
            features: ``Tensor[B, L, in_channels]``, zero on padded rows.
            mask: ``BoolTensor[B, L]``, True where the row is padding.

        Raises:
            ValueError: the features do not have ``in_channels`` channels, or L is no multiple of
                the coarsest level's stride.
        """
        self.check_input(features)
        sizes, length = self.config.model, mask.shape[1]
        self.check_length(length)
        if not all(block.still for block in (*self.backbone.stem, *self.backbone.branch)):
            extra = self.rows_of_recipe(self.config, length) - length
            features, mask = F.pad(features, (0, 0, 0, extra)), F.pad(mask, (0, extra), value=True)
        first = self.rows(mask)
        if self.training and sizes.input_noise > 0.0:
            # On padded rows, too: the one after the last reaches the loss.
            noise = torch.randn_like(features) * sizes.input_noise
            features = features + first.zero_outside(noise)
        levels, rows = self.backbone(features, first)
        levels = self.neck(levels, rows)
        levels = [level[:, : length >> at] for at, level in enumerate(levels)]
        rows = [item.cut(length >> at) for at, item in enumerate(rows)]
        joined = join_levels(levels, rows, max(sizes.head_kernel, sizes.boundary_kernel) // 2)
        # What the boundary heads learn, they keep to themselves.
        apart = joined._replace(features=joined.features.detach())
        return TriDetOutput(
            self.cls_head(joined),
            self.reg_head(joined),
            self.start_head(apart),
            self.end_head(apart),
            torch.cat([item.real[..., 0] for item in rows], dim=1) > 0,
        )

    def sums(
        self, output: TriDetOutput, wanted: PointTargets, classes: Tensor, positive: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the sums of both losses over a batch, before they are divided.

        The regression loss has a term per positive and class; the classification loss of these is
        multiplied by a power of their IoU.
        """
        config = self.config.loss
        focal = focal_loss(output.logits, classes, config.focal_alpha, config.focal_gamma)
        pairs = (wanted.classes > 0) & positive[..., None]
        # To a size that the host knows: nothing waits for their number.
        found = torch.nonzero_static(pairs, size=wanted.most, fill_value=-1)
        there = found[:, 0] >= 0
        clip, point, label = found.clamp(min=0).unbind(1)
        distances = self._distances(output, clip, point, label)
        # What is no pair is a segment that is right.
        distances = torch.where(there[:, None], distances, 1.0)
        goals = torch.where(there[:, None], wanted.offsets[clip, point], 1.0)
        iou, _ = offset_iou(distances, goals)
        # The power's slope at 0 is infinite, and 0 to any power stays 0.
        apart = iou == 0
        factor = iou.masked_fill(apart, 1.0) ** config.iou_power
        if config.iou_power > 0.0:
            factor = factor.masked_fill(apart, 0.0)
        reduced = focal[clip, point, label] * (factor - 1.0)
        classification = (focal * output.valid[..., None]).sum() + reduced.sum()
        return classification, offset_diou(distances, goals).sum()

    def offsets_of(self, output: TriDetOutput, point: Tensor, label: Tensor) -> Tensor:
        """Returns ``Tensor[B, n, 2]``: the distances of chosen points for a class of each.

        Args:
            output: of :meth:`forward`.
            point: ``LongTensor[B, n]``.
            label: ``LongTensor[B, n]``.
        """
        clip = torch.arange(len(point), device=point.device)[:, None].expand_as(point)
        chosen = (clip.flatten(), point.flatten(), label.flatten())
        return self._distances(output, *chosen).view(*point.shape, 2)

    def _distances(
        self, output: TriDetOutput, clip: Tensor, point: Tensor, label: Tensor
    ) -> Tensor:
        """Returns ``Tensor[N, 2]``, in rows of a point's level."""
        # A clip of L rows has L (2 - 1 / coarsest) points.
        coarsest = 1 << (self.config.model.levels - 1)
        length = output.logits.shape[1] * coarsest // (2 * coarsest - 1)
        strides = self.points(length, point.device).stride
        return expected_distances(
            output.starts, output.ends, output.offsets, strides, clip, point, label
        )

    def flops(self, rows: int) -> dict[str, int]:
        """Returns the multiply-adds of convolutions over one clip, by part.

        Those of gates count even where they are zero, which are not computed.

        Args:
            rows: rows of the clip, padding included.
        """
        points = sum(rows >> level for level in range(self.config.model.levels))
        return {
            **self.backbone.macs(rows),
            "class head": conv_macs(self.cls_head, points),
            "offset head": conv_macs(self.reg_head, points),
            "boundary heads": conv_macs(self.start_head, points) + conv_macs(self.end_head, points),
        }
