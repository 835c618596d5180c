# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """Averages a model's weights over its training.

    A plain average still holds the share decay^t of the *initial* weights after t steps: 70 % after
    350 steps at 0.999. The corrected one takes that share out, as Adam does for its moments,
    (average - decay^t · initial) / (1 - decay^t), written as a recursion so that it costs the same.

    Args:
        model: whose weights are averaged.
        decay: in (0, 1).
        corrected: whether to take the initial weights out.
    """

    def __init__(self, model: nn.Module, decay: float, corrected: bool = True) -> None:
        self.decay = decay
        self.corrected = corrected
        self.steps = 0
        self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes in the weights after an optimiser step."""
        self.steps += 1
        new = 1.0 - self.decay
        if self.corrected:
            new /= 1.0 - self.decay**self.steps
        for key, value in model.state_dict().items():
            average = self.weights[key]
            if average.is_floating_point():
                average.lerp_(value.to(average), new)
            else:
                average.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Returns what :meth:`load_state_dict` needs to go on."""
        return {"steps": self.steps, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.steps = int(state["steps"])
        self.weights = state["weights"]
