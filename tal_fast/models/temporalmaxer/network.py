# SPDX-License-Identifier: Apache-2.0
"""TemporalMaxer: a pyramid of maxima, without a parameter between its levels.

Tang, Kim, Sohn: "TemporalMaxer: Maximize Temporal Context with only Max Pooling for Temporal Action
Localization", 2023 (arXiv 2303.09055). Parameter names are those of the official model, so that its
checkpoints load.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tal_fast.models.base import Targets
from tal_fast.models.pyramid.backbone import Backbone
from tal_fast.models.pyramid.config import RECIPE, epochs
from tal_fast.models.pyramid.convolution import conv_macs
from tal_fast.models.pyramid.detector import PyramidDetector, PyramidOutput
from tal_fast.models.pyramid.layers import LevelNorms, Rows, group_norm_rows, max_pool_rows
from tal_fast.models.pyramid.points import Points
from tal_fast.models.pyramid.targets import PointTargets
from tal_fast.models.temporalmaxer.assignment import cheapest_offsets
from tal_fast.models.temporalmaxer.config import (
    GROUPS,
    PRESETS,
    TIMING,
    TemporalMaxerConfig,
    TemporalMaxerSizes,
)

__all__ = ["TemporalMaxer"]


class _Pool(nn.Module):
    """The maximum of three rows around every second one; 0 on all but real rows."""

    def forward(self, x: Tensor, rows: Rows) -> tuple[Tensor, Rows]:
        rows = rows.halved()
        return max_pool_rows(x) * rows.real, rows


class _GroupNorms(nn.Module):
    """Groups of channels of each level, over all rows of a clip that the recipe computes.

    The padded rows of a level are alike, so those that the batch leaves out count as copies of its
    last one: relu(bias) of the embedding's last normalisation on the finest level, else 0.
    """

    def forward(self, levels: list[Tensor], rows: list[Rows]) -> list[Tensor]:
        return [
            item.zero_outside(group_norm_rows(level, item.counts(), GROUPS))
            for level, item in zip(levels, rows, strict=True)
        ]


class _SharedNorms(LevelNorms):
    """One normalisation for all levels, which a checkpoint holds once per level."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__(width, levels)
        self.fpn_norms = nn.ModuleList([self.fpn_norms[0]] * levels)
        self.register_load_state_dict_pre_hook(_check_equal)


def _check_equal(norms: Any, state: dict[str, Tensor], prefix: str, *others: Any) -> None:
    """Refuses weights of one normalisation that differ from level to level."""
    errors: list[str] = others[-1]
    names = [f"{prefix}fpn_norms.{level}" for level in range(len(norms.fpn_norms))]
    for kind in ("weight", "bias"):
        found = [state[key] for name in names if (key := f"{name}.{kind}") in state]
        if not all(torch.equal(found[0], other) for other in found):
            errors.append(
                f"expected one {kind} under all names from {names[0]} to {names[-1]}, got several"
            )


class TemporalMaxer(PyramidDetector):
    """TemporalMaxer over whole videos or crops of them.

    Args:
        in_channels: channels of a feature row.
        num_classes: number of action classes.
        config: all its settings; those of the recipe for THUMOS14 when omitted.
    """

    Config = TemporalMaxerConfig
    presets = PRESETS
    timing = TIMING
    recipe: ClassVar[dict[str, Any]] = {"training": {**RECIPE["training"], **epochs(5, 60)}}

    def __init__(
        self, in_channels: int, num_classes: int, config: TemporalMaxerConfig | None = None
    ) -> None:
        super().__init__(in_channels, num_classes, config)
        sizes: TemporalMaxerSizes = self.config.model
        self.backbone = Backbone(
            in_channels,
            sizes,
            self.config.data.max_length,
            stem=(),
            branch=[_Pool() for _ in range(1, sizes.levels)],
        )
        self.neck: nn.Module = (
            _GroupNorms() if sizes.neck == "groupnorm" else _SharedNorms(sizes.width, sizes.levels)
        )
        self.add_heads()

    def assign(self, output: PyramidOutput, targets: Targets, points: Points) -> PointTargets:
        """Returns what the points learn: classes of the shortest, ends of the cheapest instance.

        Args:
            output: of :meth:`forward`.
            targets: of the same clips.
            points: of every clip.
        """
        wanted = super().assign(output, targets, points)
        offsets = cheapest_offsets(output, targets, points, self.config.loss)
        return wanted._replace(offsets=offsets)

    def flops(self, rows: int) -> dict[str, int]:
        """Returns the multiply-adds of convolutions over one clip, by part.

        Args:
            rows: rows of the clip, padding included.
        """
        points = sum(rows >> level for level in range(self.config.model.levels))
        return {
            "embedding": self.backbone.embedding_macs(rows),
            "class head": conv_macs(self.cls_head, points),
            "offset head": conv_macs(self.reg_head, points),
        }
