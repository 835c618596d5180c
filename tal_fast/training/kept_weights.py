# SPDX-License-Identifier: Apache-2.0
"""The weights that a training is tested with: those of the last step, or averages over all."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tal_fast.training.ema import WeightAverage

__all__ = ["KeptWeights", "checkpoint_name"]


def checkpoint_name(modes: Sequence[str], mode: str) -> str:
    """Returns the file of a mode's weights; those of the first mode are ``checkpoint.pt``."""
    return "checkpoint.pt" if mode == modes[0] else f"checkpoint_{mode}.pt"


class KeptWeights:
    """Weights under each mode of averaging, the last or those that held-out videos rate best.

    Averages follow a training and do not steer it: one training gives the weights of every mode,
    and they differ in nothing else. Held-out videos rate each mode on its own.

    Args:
        model: the model that is trained.
        modes: ``off`` for the weights themselves, else modes of :class:`WeightAverage`.
        decay: of the averages.
        repeats: of the plain one (:class:`WeightAverage`).
        out: directory of the checkpoints.
        save: writes a file of weights.
        validate: scores a model by held-out videos; None keeps the last weights.
    """

    def __init__(
        self,
        model: nn.Module,
        modes: Sequence[str],
        decay: float,
        repeats: bool,
        out: Path,
        save: Callable[[Path, dict[str, Tensor]], None],
        validate: Callable[[Any], float] | None,
    ) -> None:
        self.modes = tuple(modes)
        self._model = model
        self._averages = {
            mode: WeightAverage(model, decay, mode, repeats=repeats and mode == "plain")
            for mode in modes
            if mode != "off"
        }
        self._out = out
        self._save = save
        self._validate = validate
        # (score, epoch, step) of the best rating.
        self.best: dict[str, tuple[float, int, int]] = dict.fromkeys(modes, (-math.inf, 0, 0))

    @property
    def rates(self) -> bool:
        """Whether held-out videos choose the weights."""
        return self._validate is not None

    @property
    def files(self) -> dict[str, Path]:
        """The checkpoint of each mode."""
        return {mode: self._out / checkpoint_name(self.modes, mode) for mode in self.modes}

    @property
    def held_out(self) -> dict[str, float]:
        """The best score of each mode by the held-out videos; empty where there are none."""
        return {mode: best[0] for mode, best in self.best.items()} if self.rates else {}

    def update(self) -> None:
        """Takes in the weights after an optimiser step."""
        self.begin_step()
        self.take_in()

    def keep_shares_on(self, device: torch.device) -> None:
        """Keeps what changes from step to step in tensors, which a recorded step reads."""
        for average in self._averages.values():
            average.keep_share_on(device)

    def begin_step(self) -> None:
        """Counts a step, on the host."""
        for average in self._averages.values():
            average.begin_step()

    def take_in(self) -> None:
        """Averages, on the device."""
        for average in self._averages.values():
            average.take_in(self._model)

    def _weights(self, mode: str) -> dict[str, Tensor]:
        return self._model.state_dict() if mode == "off" else self._averages[mode].weights

    def rate(self, epoch: int, step: int) -> tuple[dict[str, float], bool]:
        """Rates every mode and keeps its weights if they are its best.

        Returns:
            the score of each mode, and whether any is the best of its mode so far.
        """
        assert self._validate is not None
        scores, improved = {}, False
        # A copy, not a new model: that would draw initial weights, and so move the random numbers
        # of the training.
        rated = copy.deepcopy(self._model)
        for mode in self.modes:
            rated.load_state_dict(self._weights(mode))
            scores[mode] = self._validate(rated)
            if scores[mode] > self.best[mode][0]:
                improved = True
                self.best[mode] = (scores[mode], epoch, step)
                self._save(self.files[mode], self._weights(mode))
        return scores, improved

    def keep_last(self) -> None:
        """Writes the weights as they are."""
        for mode in self.modes:
            self._save(self.files[mode], self._weights(mode))

    def state_dict(self) -> dict[str, Any]:
        """Returns what :meth:`load_state_dict` needs to go on."""
        return {
            "averages": {mode: average.state_dict() for mode, average in self._averages.items()},
            "best": {mode: list(best) for mode, best in self.best.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        for mode, average in self._averages.items():
            average.load_state_dict(state["averages"][mode])
        for mode, (score, epoch, step) in state["best"].items():
            self.best[mode] = (score, epoch, step)
