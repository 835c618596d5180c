# SPDX-License-Identifier: Apache-2.0
"""One optimiser step of a training, the same in one process and in several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tal_fast.data.batches import Batch
from tal_fast.data.windows import Window
from tal_fast.errors import TrainingError
from tal_fast.models import TadTR
from tal_fast.ranges import nvtx_range
from tal_fast.training import distributed
from tal_fast.training.config import ExperimentConfig, TrainingConfig
from tal_fast.training.device import autocast
from tal_fast.training.finite import first_not_finite, windows_of
from tal_fast.training.losses import WholeBatch, tadtr_loss

__all__ = ["Stepper", "diverged", "parameter_groups"]


def parameter_groups(model: torch.nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """Splits parameters into the two learning rates of TadTR's recipe.

    Reference points and sampling offsets steer where attention looks; they learn
    ``sampling_lr_scale`` times as fast as the rest.
    """
    slow_names = ("reference_points", "sampling_offsets")
    slow: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (slow if any(key in name for key in slow_names) else rest).append(parameter)
    return [
        {"params": rest, "scale": 1.0},
        {"params": slow, "scale": config.sampling_lr_scale},
    ]


class Stepper:
    """Makes optimiser steps: forward, loss, backward, update.

    Args:
        model: on its device.
        config: all settings.
    """

    def __init__(self, model: TadTR, config: ExperimentConfig) -> None:
        self.model = model
        self.config = config
        distributed.same_weights(model)
        self.device = next(model.parameters()).device
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, config.training),
            lr=config.training.learning_rate,
            weight_decay=config.training.weight_decay,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=config.training.amp == "float16"
        )

    def set_learning_rate(self, rate: float) -> None:
        """Sets the rate of the next steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]

    def run(self, batch: Batch, when: str) -> dict[str, Tensor]:
        """Makes a step, without waiting for it to end on a GPU.

        Args:
            batch: this process's part of the windows.
            when: names the step in messages.

        Returns:
            This process's parts of the losses, which add up to those of the whole batch, and
            ``gradient_norm``, that of the whole batch.

        Raises:
            TrainingError: the outputs are not finite.
        """
        with nvtx_range("tal_fast.transfer"):
            features = batch.features.to(self.device, non_blocking=True)
            mask = batch.mask.to(self.device, non_blocking=True)
        sizes = distributed.total_later([len(batch.windows), sum(map(len, batch.labels))])
        try:
            with nvtx_range("tal_fast.forward"), autocast(self.device, self.config.training.amp):
                output = self.model(features, mask)
            windows, instances = map(int, sizes())
            whole = WholeBatch(windows, instances, self._all_segments(batch))
            with nvtx_range("tal_fast.loss"):
                losses = tadtr_loss(output, batch.labels, batch.segments, self.config.loss, whole)
        except (RuntimeError, ValueError) as error:
            # Ops and matching refuse values that are not finite; the cause is the training.
            with autocast(self.device, self.config.training.amp):
                first = first_not_finite(self.model, features, mask)
            if first is None:
                raise
            raise diverged("the outputs are", when, first, batch.windows) from error
        with nvtx_range("tal_fast.backward"):
            self.scaler.scale(losses["total"]).backward()
            distributed.add_up_gradients(self.model)
        with nvtx_range("tal_fast.optimizer"):
            norm = self._update()
        return {**{key: value.detach() for key, value in losses.items()}, "gradient_norm": norm}

    def _all_segments(self, batch: Batch) -> list[Tensor] | None:
        if self.config.loss.actionness_targets == "video" or distributed.world_size() == 1:
            return None
        return [item for part in distributed.gathered(batch.segments) for item in part]

    def _update(self) -> Tensor:
        self.scaler.unscale_(self.optimizer)
        limit = self.config.training.clip_norm
        parameters = self.model.parameters()
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Returns what :meth:`load_state_dict` needs to go on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def diverged(what: str, when: str, first: str, windows: Sequence[Window] = ()) -> TrainingError:
    """Returns the error of a training whose numbers are not finite.

    Args:
        what: and its verb, as in ``"the loss is"``.
        when: step, epoch and learning rate.
        first: what was not finite first.
        windows: of the batch.
    """
    where = f", {windows_of(windows)}" if windows else ""
    return TrainingError(
        f"{what} not finite at {when}{where}; the first is {first}; lower training.learning_rate "
        "or check the features"
    )
