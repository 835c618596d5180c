# SPDX-License-Identifier: Apache-2.0
"""A training step on one clip: time, memory, arithmetic.

Forward, loss, backward, clipping and update, as the trainer makes them, on a copy of the model.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tal_fast.data.batches import Batch
from tal_fast.models.base import Detector
from tal_fast.profiling.figures import figure
from tal_fast.profiling.model_cost import made_targets, step_macs
from tal_fast.profiling.op_recorder import most_taken, new_profiler
from tal_fast.training.config import ExperimentConfig
from tal_fast.training.step import Stepper

__all__ = ["STEP_COLUMNS", "batch_of_clip", "no_step", "step_of_clip"]

STEP_COLUMNS = ("step", "step_cpu", "step_memory", "step_macs", "step_rate", "step_share")
_WARM_UP = 2
_PATIENCE = 20.0  # seconds for a clip, or about; at least three steps
_UNITS = {"step": "ms", "step_cpu": "ms", "step_memory": "bytes", "step_macs": "MAC"}


def no_step(reason: str) -> dict[str, Any]:
    """Returns the figures of a step that was not made.

    Args:
        reason: why not.
    """
    return {name: figure(None, unit, "clock", reason) for name, unit in _UNITS.items()}


def batch_of_clip(model: Detector, features: Tensor, rows: int) -> Batch:
    """Returns a clip with made instances as a batch to train on.

    Args:
        model: gives the number of classes.
        features: ``Tensor[1, L, C]``.
        rows: real rows of it.
    """
    padded = features.shape[1]
    targets = made_targets(model.num_classes, 1, rows, padded)
    return Batch(
        features=features,
        mask=torch.arange(padded, device=features.device)[None] >= rows,
        labels=targets.labels,
        edges=targets.edges,
        counts=list(targets.counts),
        lengths=[rows],
        indices=[0],
        starts=[0],
        rows=[rows],
        videos=["clip"],
    )


def step_of_clip(
    model: Detector, config: ExperimentConfig, features: Tensor, rows: int, *, repeats: int
) -> dict[str, Any]:
    """Times a training step on one clip.

    Args:
        model: on its device; a copy of it is trained.
        config: all settings.
        features: ``Tensor[1, L, C]`` on the host, zero on padded rows.
        rows: real rows of it.
        repeats: steps to time; fewer where they take long.

    Returns:
        Figures: ``step`` and ``step_cpu`` in ms (medians), ``step_memory``, the most bytes that a
        step takes beside weights and the optimiser's state, and ``step_macs``.
    """
    trained = copy.deepcopy(model).train()
    stepper = Stepper(trained, config)
    batch = batch_of_clip(model, features, rows)
    on_gpu = stepper.device.type == "cuda"

    def step() -> None:
        stepper.run(batch, "a step of a profile")
        if on_gpu:
            torch.cuda.synchronize(stepper.device)

    wall: list[float] = []
    cpu: list[float] = []
    end = time.perf_counter() + _PATIENCE
    for repeat in range(_WARM_UP + repeats):
        if len(wall) >= 3 and time.perf_counter() > end:
            break
        began = time.perf_counter(), time.process_time()
        step()
        if repeat >= _WARM_UP:
            wall.append(time.perf_counter() - began[0])
            cpu.append(time.process_time() - began[1])
    channels, classes = model.in_channels, model.num_classes
    macs = step_macs(config, channels, classes, rows, features.shape[1])
    return {
        "step": figure(1e3 * statistics.median(wall), "ms", "clock"),
        "step_cpu": figure(1e3 * statistics.median(cpu), "ms", "clock"),
        "step_memory": figure(_peak(step, stepper), "bytes", "counter", "this torch does not tell"),
        "step_macs": figure(macs, "MAC", "counter"),
    }


def _peak(step: Callable[[], None], stepper: Stepper) -> float | None:
    if stepper.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(stepper.device)
        before = torch.cuda.memory_allocated(stepper.device)
        step()
        return float(torch.cuda.max_memory_allocated(stepper.device) - before)
    profiler = new_profiler(memory=True)
    with profiler:
        step()
    return most_taken(profiler)
