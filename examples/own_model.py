# SPDX-License-Identifier: Apache-2.0
"""A detector of one's own: a few convolutions that say of every row what happens and how far.

tal-fast train --data data/demo --model examples/own_model.py:RowDetector --out runs/own
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tal_fast.models import Candidates, Detector, DetectorConfig, Section, Targets, Whole


@dataclass(frozen=True)
class Sizes(Section):
    """Settings of one's own, as in ``--set model.width=128``."""

    width: int = 64
    layers: int = 3


@dataclass(frozen=True)
class Config(DetectorConfig):
    """The sections of a settings file; those that are not named here are the library's."""

    model: Sizes = Sizes()


class Output(NamedTuple):
    logits: Tensor  # [B, L, classes]
    reach: Tensor  # [B, L, 2], rows to start and end


class RowDetector(Detector):
    """Looks at whole videos (the default), row by row."""

    Config = Config
    recipe = {"training": {"batch_size": 4, "learning_rate": 1e-3, "clip_norm": 1.0}}

    def __init__(self, in_channels: int, num_classes: int, config: Config | None = None) -> None:
        super().__init__(in_channels, num_classes, config)
        width, layers = self.config.model.width, self.config.model.layers
        self.convs = nn.ModuleList(
            nn.Conv1d(width if i else in_channels, width, 3, padding=2**i, dilation=2**i)
            for i in range(layers)
        )
        self.head = nn.Linear(width, num_classes + 2)

    def forward(self, features: Tensor, mask: Tensor) -> Output:
        x, real = features.transpose(1, 2), (~mask)[:, None].float()
        for conv in self.convs:
            x = F.relu(conv(x)) * real
        logits, reach = self.head(x.transpose(1, 2)).float().split((self.num_classes, 2), dim=-1)
        logits = logits.masked_fill(mask[..., None], -20.0)  # nothing happens on padded rows
        return Output(logits, 8.0 * F.softplus(reach))

    def loss(self, output: Output, targets: Targets, whole: Whole) -> dict[str, Tensor]:
        rows = torch.arange(targets.length) + 0.5
        classes, wanted = torch.zeros_like(output.logits), torch.zeros_like(output.reach)
        clips = [clip for clip, count in enumerate(targets.counts) for _ in range(count)]
        for b, label, (start, end) in zip(clips, targets.labels, targets.edges, strict=True):
            inside = (rows >= start) & (rows < end)
            classes[b, inside, label] = 1.0
            wanted[b, inside] = torch.stack((rows - start, end - rows), dim=-1)[inside]
        number = whole.sum(classes.sum()).clamp(min=1)  # of the whole batch, so that parts add up
        wrong = F.binary_cross_entropy_with_logits(output.logits, classes, reduction="sum")
        has = classes.amax(-1) > 0
        distance = F.smooth_l1_loss(output.reach[has].log1p(), wanted[has].log1p(), reduction="sum")
        return {"total": (wrong + distance) / number}

    def candidates(self, output: Output, mask: Tensor) -> Candidates:
        scores, labels = output.logits.sigmoid().max(-1)  # [B, L]
        rows = torch.arange(mask.shape[1], device=mask.device) + 0.5
        around = torch.stack((rows - output.reach[..., 0], rows + output.reach[..., 1]), dim=-1)
        return Candidates(scores, labels, around, valid=~mask)
