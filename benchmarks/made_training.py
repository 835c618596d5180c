# SPDX-License-Identifier: Apache-2.0
"""A model, its optimiser and a random batch of HAPT's shape, for benchmarks of one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tal_fast.models import Targets, Whole, build_model

__all__ = ["MadeTraining"]


class MadeTraining:
    """Everything that a step needs, the same for each process that makes it.

    Args:
        preset: of the model.
        threads: of torch.
    """

    def __init__(self, preset: str, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        clips, rows = (16, 128) if preset.startswith("tadtr") else (2, 768)
        self.model = build_model(preset, in_channels=300, num_classes=12)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.features = torch.randn(clips, rows, 300)  # [B, L, C]
        self.mask = torch.zeros(clips, rows, dtype=torch.bool)  # [B, L]
        self.mask[:, 704:] = True  # padding, as the models of a pyramid want it, TriDet the most
        edges = torch.tensor([[10.0, 40.0], [60.0, 100.0]]).repeat(clips, 1).double()
        self.targets = Targets(torch.tensor([1, 2]).repeat(clips), edges, [2] * clips, rows)

    def step(self, forward: Callable[[Tensor, Tensor], Any]) -> None:
        """Makes an optimiser step with ``forward``, the model or what computes the same."""
        output = forward(self.features, self.mask)
        loss = self.model.loss(output, self.targets, Whole(self.targets))["total"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
