# SPDX-License-Identifier: Apache-2.0
"""Detectors whose work is of one kind, to be told apart by a profile."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tal_fast.models import Candidates, Detector, Targets, Whole


class Output(NamedTuple):
    logits: Tensor  # [B, L, classes]


class _OfOneKind(Detector):
    recipe = {"training": {"batch_size": 2, "amp": "float32"}}  # noqa: RUF012

    def __init__(self, in_channels: int, num_classes: int, config=None) -> None:
        super().__init__(in_channels, num_classes, config)
        self.head = nn.Linear(in_channels, num_classes)

    def work(self) -> Tensor:
        raise NotImplementedError

    def forward(self, features: Tensor, mask: Tensor) -> Output:
        return Output(self.head(features) + self.work())

    def loss(self, output: Output, targets: Targets, whole: Whole) -> dict[str, Tensor]:
        return {"total": output.logits.square().mean()}

    def candidates(self, output: Output, mask: Tensor) -> Candidates:
        scores, labels = output.logits.sigmoid().max(-1)
        rows = torch.arange(mask.shape[1], device=mask.device).float()
        around = torch.stack((rows, rows + 1), dim=-1).expand(len(mask), -1, 2)
        return Candidates(scores, labels, around, valid=~mask)


class TinyOps(_OfOneKind):
    def work(self) -> Tensor:
        x = self.head.bias
        for _ in range(500):
            x = x + 0.0
        return x


class LargeProduct(_OfOneKind):
    def __init__(self, in_channels: int, num_classes: int, config=None) -> None:
        super().__init__(in_channels, num_classes, config)
        self.register_buffer("matrix", torch.zeros(1024, 1024), persistent=False)

    def work(self) -> Tensor:
        return (self.matrix @ self.matrix @ self.matrix)[0, 0]


class LargeCopy(_OfOneKind):
    def __init__(self, in_channels: int, num_classes: int, config=None) -> None:
        super().__init__(in_channels, num_classes, config)
        self.register_buffer("long", torch.zeros(1 << 22), persistent=False)

    def work(self) -> Tensor:
        for _ in range(10):
            copy = self.long.clone()
        return copy[0]


class OnlyLong(_OfOneKind):
    """Refuses short clips, as some models do."""

    def forward(self, features: Tensor, mask: Tensor) -> Output:
        if features.shape[1] < 16:
            raise ValueError("expected 16 rows or more")
        return Output(self.head(features))
