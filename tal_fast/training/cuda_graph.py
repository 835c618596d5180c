# SPDX-License-Identifier: Apache-2.0
"""Whole training steps as CUDA graphs: recorded once for a shape of batches, then replayed.

A small model's step is some thousand launches, and the host needs longer for them than the GPU.
A replay is one. What is replayed is the device's part alone, so all that changes from step to step
lies in tensors that do not move: the batch (:class:`~tal_fast.training.static_batch.StaticBatch`),
the learning rates, the share of new weights in averages, the seeds of dropout.

:class:`GraphedSteps` is plain Python, tested with a recorder of the calls of a step.
:class:`CudaRecorder`, the two dozen lines that touch CUDA, **has not run on a GPU yet**.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from tal_fast.data.batches import Batch
from tal_fast.models.base import Detector
from tal_fast.training import distributed
from tal_fast.training.config import TrainingConfig
from tal_fast.training.static_batch import BatchShape, StaticBatch, shape_of

__all__ = ["CudaRecorder", "GraphedSteps", "Recorder", "why_not"]

Numbers = dict[str, Tensor]
# Steps of a shape that run as they are before one is recorded. They are steps of the training like
# all others; the first ones of a shape choose algorithms, fill caches and create state.
_WARM_UP = 3
# Shapes that are recorded; each takes the memory of a step's results.
_MOST_SHAPES = 16


class Recorder(Protocol):
    """Records what a function runs on a device."""

    def warm_up(self, function: Callable[[], Numbers]) -> Numbers:
        """Runs a function as it is, where it will be recorded."""

    def record(self, function: Callable[[], Numbers]) -> tuple[Callable[[], Any], Numbers]:
        """Records a function without running it.

        Returns:
            what runs it, and its results, which every run writes anew.
        """


class CudaRecorder:
    """Records CUDA graphs, which share their memory: they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = None

    def warm_up(self, function: Callable[[], Numbers]) -> Numbers:
        """Runs a function on a stream beside the current one, as it is recorded on one."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            found = function()
        current.wait_stream(self._stream)
        for tensor in found.values():
            tensor.record_stream(current)
        return found

    def record(self, function: Callable[[], Numbers]) -> tuple[Callable[[], Any], Numbers]:
        """Records a graph."""
        graph = torch.cuda.CUDAGraph()
        # Other threads read ahead and copy meanwhile; what they do is no part of the graph.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            found = function()
        self._pool = graph.pool() if self._pool is None else self._pool
        return graph.replay, found


def why_not(model: Detector, config: TrainingConfig, device: torch.device) -> str | None:
    """Says why steps are not recorded; None if they may be.

    Args:
        model: that is trained.
        config: with ``cuda_graph=auto``.
        device: of the model.
    """
    if device.type != "cuda":
        return f"the device is {device}, and graphs are of CUDA"
    if distributed.world_size() > 1:
        return "several processes add up numbers of every step on their hosts"
    if config.amp == "float16":
        return "the gradient scaler of training.amp=float16 is not recorded"
    sizes = model.static_sizes(1 << 10, 1)
    return sizes if isinstance(sizes, str) else None


class _Recorded:
    """The steps of one shape."""

    def __init__(self, static: StaticBatch) -> None:
        self.static = static
        self.made = 0
        self.replay: Callable[[], Any] | None = None
        self.numbers: Numbers = {}


class GraphedSteps:
    """Makes steps of a shape as they are, then records one, then replays it.

    Args:
        model: that is trained.
        learn: the device's part of a step on a static batch: it reads no tensor on the host, and
            what it changes it changes in place.
        recorder: records it.
    """

    def __init__(
        self, model: Detector, learn: Callable[[StaticBatch], Numbers], recorder: Recorder
    ) -> None:
        self._model = model
        self._learn = learn
        self._recorder = recorder
        self._device = next(model.parameters()).device
        self._shapes: dict[BatchShape, _Recorded] = {}
        self._failed = False

    def run(self, batch: Batch) -> Numbers | None:
        """Makes a step.

        Returns:
            Its numbers, to be read before the next step; None if this batch's step is not for a
            graph, and the caller has to make it.
        """
        if self._failed:
            return None
        shape = shape_of(self._model, batch)
        if isinstance(shape, str):
            say_once(f"for some batches: {shape}")
            return None
        recorded = self._shapes.get(shape)
        if recorded is None:
            if len(self._shapes) >= _MOST_SHAPES:
                say_once(f"for some batches: there are more than {_MOST_SHAPES} shapes of them")
                return None
            recorded = _Recorded(StaticBatch(shape, batch, self._device))
            self._shapes[shape] = recorded
        recorded.static.fill(batch)
        return self._run(recorded)

    def _run(self, recorded: _Recorded) -> Numbers | None:
        def step() -> Numbers:
            return self._learn(recorded.static)

        if recorded.made < _WARM_UP:
            recorded.made += 1
            return self._recorder.warm_up(step)
        if recorded.replay is None:
            try:
                recorded.replay, recorded.numbers = self._recorder.record(step)
            except RuntimeError as error:
                # Nothing of the step has run. What the graph would have held is let go.
                self._failed = True
                self._shapes.clear()
                self._model.zero_grad(set_to_none=True)
                say_once(f"recording failed: {str(error).strip().partition(chr(10))[0]}")
                return None
        recorded.replay()
        return recorded.numbers


def say_once(reason: str) -> None:
    """Warns that steps are not graphs; Python shows a warning once."""
    warnings.warn(
        f"training.cuda_graph=auto: steps run without a graph, {reason}", RuntimeWarning, 2
    )
