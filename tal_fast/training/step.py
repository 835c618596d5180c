# SPDX-License-Identifier: Apache-2.0
"""One optimiser step of a training, the same in one process and in several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from tal_fast import ranges
from tal_fast.data.batches import Batch, to_device
from tal_fast.errors import TrainingError
from tal_fast.models.base import Detector, Targets, Whole
from tal_fast.models.called import groups_of, losses_of, output_of
from tal_fast.training import distributed
from tal_fast.training.config import ExperimentConfig, TrainingConfig
from tal_fast.training.cuda_graph import CudaRecorder, GraphedSteps, Recorder, say_once, why_not
from tal_fast.training.device import autocast
from tal_fast.training.finite import clips_of, first_not_finite
from tal_fast.training.static_batch import StaticBatch

__all__ = ["Stepper", "diverged", "parameter_groups"]


def parameter_groups(model: Detector, config: TrainingConfig) -> list[dict[str, Any]]:
    """Returns the model's groups of parameters as an optimiser takes them.

    ``scale`` is a group's factor on the learning rate.
    """
    return [
        {
            "params": group.parameters,
            "scale": config.sampling_lr_scale if group.slow else 1.0,
            "weight_decay": config.weight_decay if group.decay else 0.0,
        }
        for group in groups_of(model)
    ]


class Averages(Protocol):
    """What follows the weights, step by step (:class:`~tal_fast.training.kept_weights`)."""

    def keep_shares_on(self, device: torch.device) -> None:
        """Keeps what changes from step to step in tensors."""

    def begin_step(self) -> None:
        """Counts a step, on the host."""

    def take_in(self) -> None:
        """Takes in the weights, on the device."""


class Stepper:
    """Makes optimiser steps: forward, loss, backward, update, averages.

    A step has a part of the host (the batch, the rates, counts of steps) and a part of the device,
    which can be recorded as a CUDA graph: it reads no tensor on the host, and what changes from
    step to step it finds in tensors.

    Args:
        model: on its device.
        config: all settings.
        recorder: of whole steps; None takes that of CUDA if ``training.cuda_graph=auto`` and
            nothing speaks against it.
    """

    def __init__(
        self, model: Detector, config: ExperimentConfig, recorder: Recorder | None = None
    ) -> None:
        self.model = model
        self.config = config
        distributed.same_weights(model)
        self.device = next(model.parameters()).device
        if recorder is None and config.training.cuda_graph == "auto":
            reason = why_not(model, config.training, self.device)
            if reason is None:
                recorder = CudaRecorder(self.device)
            else:
                say_once(reason)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, config.training),
            lr=config.training.learning_rate,
            fused=True,
            capturable=recorder is not None,
        )
        #: Learning rate of the first group, for messages.
        self.rate = config.training.learning_rate
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=config.training.amp == "float16"
        )
        self._averages: Averages | None = None
        self._rates: list[Tensor] = []  # of the groups, where a recorded step reads them
        self._graphs: GraphedSteps | None = None
        if recorder is not None:
            self._rates = [
                torch.zeros((), dtype=torch.float32, device=self.device)
                for _ in self.optimizer.param_groups
            ]
            self._graphs = GraphedSteps(model, self._learn, recorder)
            self.set_learning_rate(config.training.learning_rate)

    def follow(self, averages: Averages) -> None:
        """Has averages take in the weights after every step."""
        self._averages = averages
        if self._graphs is not None:
            averages.keep_shares_on(self.device)

    def set_learning_rate(self, rate: float) -> None:
        """Sets the rate of the next steps."""
        groups = self.optimizer.param_groups
        self.rate = rate * groups[0]["scale"]
        for number, group in enumerate(groups):
            group_rate = rate * group["scale"]
            group["lr"] = self._rates[number].fill_(group_rate) if self._rates else group_rate

    def run(self, batch: Batch, when: str) -> dict[str, Tensor]:
        """Makes a step, without waiting for it to end on a GPU.

        Args:
            batch: this process's part of the clips.
            when: names the step in messages.

        Returns:
            This process's parts of the losses, which add up to those of the whole batch, and
            ``gradient_norm``, that of the whole batch; to be read before the next step.

        Raises:
            TrainingError: the outputs are not finite.
        """
        if self._averages is not None:
            self._averages.begin_step()
        if self._graphs is not None:
            with ranges.range("tal_fast.graph"):
                found = self._graphs.run(batch)
            if found is not None:
                return found
        with ranges.range("tal_fast.transfer"):
            features = to_device(batch.features, self.device)
            mask = to_device(batch.mask, self.device)
        targets = Targets(batch.labels, batch.edges, batch.counts, batch.padded)
        whole = distributed.WholeBatch(targets)
        try:
            losses = self._losses(features, mask, targets, whole)
        except (RuntimeError, ValueError) as error:
            # Ops and matching refuse values that are not finite; the cause is the training.
            with autocast(self.device, self.config.training.amp):
                first = first_not_finite(self.model, features, mask)
            if first is None:
                raise
            raise diverged("the outputs are", when, first, batch.videos) from error
        return self._descend(losses)

    # The device's part of a step.

    def _learn(self, batch: StaticBatch) -> dict[str, Tensor]:
        whole = Whole(batch.targets)
        return self._descend(self._losses(batch.features, batch.mask, batch.targets, whole))

    def _losses(
        self, features: Tensor, mask: Tensor, targets: Targets, whole: Whole
    ) -> dict[str, Tensor]:
        with ranges.range("tal_fast.forward"), autocast(self.device, self.config.training.amp):
            output = output_of(self.model, features, mask)
        if isinstance(whole, distributed.WholeBatch):
            whole.wait()
        with ranges.range("tal_fast.loss"):
            return losses_of(self.model, output, targets, whole)

    def _descend(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        with ranges.range("tal_fast.backward"):
            self.scaler.scale(losses["total"]).backward()
            distributed.add_up_gradients(self.model)
        with ranges.range("tal_fast.optimizer"):
            norm = self.update()
        if self._averages is not None:
            self._averages.take_in()
        parts = {key: value.detach() for key, value in losses.items()}
        return {"total": parts["total"], **parts, "gradient_norm": norm}

    def update(self) -> Tensor:
        """Clips the gradients, steps, clears them, and returns their norm."""
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
        optimizer = self.optimizer.state_dict()
        # Rates are set before every step; a file holds no tensor that a recorded step reads.
        groups = [{**group, "lr": float(group["lr"])} for group in optimizer["param_groups"]]
        return {
            "model": self.model.state_dict(),
            "optimizer": {**optimizer, "param_groups": groups},
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def diverged(what: str, when: str, first: str, videos: Sequence[str] = ()) -> TrainingError:
    """Returns the error of a training whose numbers are not finite.

    Args:
        what: and its verb, as in ``"the loss is"``.
        when: step, epoch and learning rate.
        first: what was not finite first.
        videos: of the batch's clips.
    """
    where = f", {clips_of(videos)}" if videos else ""
    return TrainingError(
        f"{what} not finite at {when}{where}; the first is {first}; lower training.learning_rate "
        "or check the features"
    )
