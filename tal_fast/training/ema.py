# SPDX-License-Identifier: Apache-2.0
"""Exponential moving averages of weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """Averages a model's weights over its training.

    A ``plain`` average still holds the share decay^t of the *initial* weights after t steps: 70 %
    after 350 steps at 0.999. Two remedies: ``corrected`` takes that share out, as Adam does for its
    moments, (average - decay^t · initial) / (1 - decay^t), written as a recursion so that it costs
    the same; ``warmup`` starts with a shorter memory, of decay min(decay, (1 + t) / (10 + t)).

    Args:
        model: whose weights are averaged.
        decay: in (0, 1).
        mode: ``plain``, ``corrected`` or ``warmup``.
        repeats: take a weight in once per name that the model holds it under, and not once a step,
            as official codes do; ``plain`` alone.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float,
        mode: str = "corrected",
        *,
        repeats: bool = False,
    ) -> None:
        if mode not in ("plain", "corrected", "warmup"):
            raise ValueError(f"mode: expected plain, corrected or warmup, got {mode!r}")
        if repeats and mode != "plain":
            raise ValueError(f"repeats: expected False with the mode {mode}, got True")
        self.decay = decay
        self.mode = mode
        self.steps = 0
        self.weights = _copies(model.state_dict())
        self._share: float | Tensor = 0.0  # of the new weights, in this step
        self._times = _names(model) if repeats else dict.fromkeys(self.weights, 1)

    def keep_share_on(self, device: torch.device) -> None:
        """Keeps what changes from step to step in a tensor, which a recorded step reads."""
        self._share = torch.zeros((), dtype=torch.float32, device=device)

    def update(self, model: nn.Module) -> None:
        """Takes in the weights after an optimiser step."""
        self.begin_step()
        self.take_in(model)

    def begin_step(self) -> None:
        """Counts a step: the host's part of :meth:`update`, in no step's record."""
        self.steps += 1
        new = 1.0 - self.decay
        if self.mode == "corrected":
            new /= 1.0 - self.decay**self.steps
        elif self.mode == "warmup":
            new = 1.0 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        if isinstance(self._share, Tensor):
            self._share.fill_(new)
        else:
            self._share = new

    @torch.no_grad()
    def take_in(self, model: nn.Module) -> None:
        """Averages: the device's part of :meth:`update`."""
        share = self._share
        for key, value in model.state_dict().items():
            average = self.weights[key]
            if average.is_floating_point():
                for _ in range(self._times[key]):
                    if isinstance(share, Tensor):
                        average.lerp_(value.to(average), share.to(average.dtype))
                    else:
                        average.lerp_(value.to(average), share)
            else:
                average.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Returns what :meth:`load_state_dict` needs to go on."""
        return {"steps": self.steps, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.steps = int(state["steps"])
        self.weights = _copies(state["weights"])


def _names(model: nn.Module) -> dict[str, int]:
    """Returns for every name how many there are of the same tensor."""
    state = model.state_dict(keep_vars=True)
    count = Counter(map(id, state.values()))
    return {name: count[id(value)] for name, value in state.items()}


def _copies(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns a tensor of its own for every name.

    A module that a model holds under several names is one tensor there; an average that its names
    shared would be taken in once per name, so several times a step.
    """
    return {name: value.detach().clone() for name, value in state.items()}
