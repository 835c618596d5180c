# SPDX-License-Identifier: Apache-2.0
"""A training that can be run without its parts: the same step on other batches and settings.

Nothing of it is kept. Batches, weights and optimiser are those that the training would start from.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tal_fast.data.batches import Batch
from tal_fast.data.dataset import TALDataset
from tal_fast.models.base import Targets, Whole
from tal_fast.profiling.cost import CostCounter
from tal_fast.training.config import ExperimentConfig
from tal_fast.training.device import autocast, resolve_device
from tal_fast.training.start import fresh_model, instances_of, training_loader
from tal_fast.training.step import Stepper

__all__ = ["Rig", "Took", "Variant", "first_clips", "in_turn", "short_batch"]

_CACHED = 4  # batches that are kept


@dataclass
class Took:
    """What steps took, in seconds.

    Attributes:
        wall: by the clock.
        cpu: of all threads of the process.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Variant:
    """A way to make a step.

    Attributes:
        step: makes one, and waits for it to end.
        threads: torch threads; as they are when None.
        warm_up: steps of each turn that are not timed.
        timed: steps of each turn that are.
    """

    step: Callable[[], None]
    threads: int | None = None
    warm_up: int = 1
    timed: int = 3


def in_turn(
    variants: Mapping[str, Variant], turns: int, seconds: float = math.inf
) -> tuple[dict[str, Took], dict[str, str]]:
    """Runs variants one after the other, several times, so that what drifts hits all alike.

    Args:
        variants: by name.
        turns: how often each has its turn.
        seconds: after which no turn begins.

    Returns:
        What they took by name; and why those could not be run that could not.
    """
    took = {name: Took() for name in variants}
    failed: dict[str, str] = {}
    threads_before = torch.get_num_threads()
    end = time.perf_counter() + seconds
    for _ in range(turns):
        for name, variant in variants.items():
            if name in failed or time.perf_counter() > end:
                continue
            torch.set_num_threads(variant.threads or threads_before)
            try:
                for step in range(variant.warm_up + variant.timed):
                    began = time.perf_counter(), time.process_time()
                    variant.step()
                    ended = time.perf_counter(), time.process_time()
                    if step >= variant.warm_up:
                        took[name].wall.append(ended[0] - began[0])
                        took[name].cpu.append(ended[1] - began[1])
            except (RuntimeError, ValueError) as error:
                reason = str(error).strip().partition("\n")[0]
                failed[name] = f"it failed: {reason or type(error).__name__}"
            finally:
                torch.set_num_threads(threads_before)
    for name, found in took.items():
        if not found.wall:
            failed.setdefault(name, "there was no time")
    return {name: found for name, found in took.items() if name not in failed}, failed


class Rig:
    """A training, ready for single steps.

    Args:
        config: all settings.
        data: the data set.
        videos: names of the training videos.

    Attributes:
        model: on its device, in training.
        cached: some batches of it, in memory.
    """

    def __init__(self, config: ExperimentConfig, data: TALDataset, videos: Sequence[str]) -> None:
        self.config = config
        self.model = fresh_model(config, data, instances_of(data, videos))
        self.device = resolve_device(config.training.device)
        self.model.to(self.device)
        clips = type(self.model).clips(config.detector, data, videos, training=True)
        self.loader = training_loader(config, clips, self.device)
        self._steppers: dict[str, Stepper] = {}
        self._endless: Iterator[Batch] | None = None
        first = itertools.islice(self.batches(), _CACHED)
        self.cached = [batch.moved(Tensor.clone) for batch in first]
        self._turn = itertools.cycle(range(len(self.cached)))

    def close(self) -> None:
        """Ends the reader."""
        self.loader.close()

    def batches(self) -> Iterator[Batch]:
        """Yields the batches of one epoch after the other."""
        for epoch in itertools.count():
            self.loader.set_epoch(epoch)
            yield from self.loader

    def train(self, batch: Batch, amp: str | None = None) -> None:
        """Makes a step and waits for it to end.

        Args:
            batch: to learn from.
            amp: precision; that of the settings when None.
        """
        amp = self.config.training.amp if amp is None else amp
        if amp not in self._steppers:
            changes: dict[str, Any] = {"amp": amp}
            training = replace(self.config.training, **changes)
            self._steppers[amp] = Stepper(self.model, replace(self.config, training=training))
        self._steppers[amp].run(batch, "a step of a profile")
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def as_it_is(self) -> None:
        """Makes a step on the loader's next batch."""
        if self._endless is None:
            self._endless = self.batches()
        self.train(next(self._endless))

    def from_memory(self, clips: int | None = None, amp: str | None = None) -> None:
        """Makes a step on a batch that is in memory.

        Args:
            clips: of it; all when None.
            amp: precision; that of the settings when None.
        """
        batch = self.cached[next(self._turn)]
        self.train(batch if clips is None else first_clips(batch, clips), amp)

    def saved_bytes(self) -> int:
        """Counts what a step keeps for its backward, parameters and buffers aside."""
        batch = self.cached[0].moved(lambda tensor: tensor.to(self.device))
        targets = Targets(batch.labels, batch.edges, batch.counts, batch.padded)
        counter = CostCounter(self.model)
        with counter.counting("forward"):
            with autocast(self.device, self.config.training.amp):
                output = self.model(batch.features, batch.mask)
            self.model.loss(output, targets, Whole(targets))
        return counter.total("forward").saved

    def held_bytes(self) -> dict[str, int]:
        """Returns the bytes of parameters, of their gradients, and of the optimiser's state."""
        parameters = list(self.model.parameters())
        of_weights = sum(p.numel() * p.element_size() for p in parameters)
        learned = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
        states: list[Any] = [s.optimizer.state for s in self._steppers.values()][:1]
        kept = sum(
            value.numel() * value.element_size()
            for state in states
            for values in state.values()
            for value in values.values()
            if isinstance(value, Tensor)
        )
        return {"parameters": of_weights, "gradients": learned, "optimizer": kept}


def first_clips(batch: Batch, clips: int) -> Batch:
    """Returns the first clips of a batch."""
    instances = sum(batch.counts[:clips])
    return replace(
        batch,
        features=batch.features[:clips],
        mask=batch.mask[:clips],
        labels=batch.labels[:instances],
        edges=batch.edges[:instances],
        **{
            name: getattr(batch, name)[:clips]
            for name in ("counts", "lengths", "indices", "starts", "rows", "videos")
        },
    )


def short_batch(batch: Batch, rows: int, padded: int) -> Batch:
    """Returns one clip of few rows with one instance: work that takes next to no arithmetic.

    Args:
        batch: to cut it from.
        rows: real rows.
        padded: rows with padding.
    """
    features = batch.features.new_zeros(1, padded, batch.features.shape[2])
    real = min(rows, batch.features.shape[1])
    features[0, :real] = batch.features[0, :real]
    return replace(
        first_clips(batch, 1),
        features=features,
        mask=torch.arange(padded)[None] >= rows,
        labels=batch.labels.new_zeros(1),
        edges=batch.edges.new_tensor([[0.25 * rows, 0.75 * rows]]),
        counts=[1],
        lengths=[rows],
    )
