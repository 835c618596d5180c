# SPDX-License-Identifier: Apache-2.0
"""A whole training step, its optimiser and averages included, asks a GPU for nothing.

The ``meta`` device stands in for the GPU, as in the tests of the models' losses.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from host_copies import DEVICE, from_host
from small_settings import small

from tal_fast.data.batches import Batch
from tal_fast.models import detector_of
from tal_fast.training import load_config
from tal_fast.training.kept_weights import KeptWeights
from tal_fast.training.late import LateNumbers
from tal_fast.training.step import Stepper

PYRAMID = ("model.width=32", "model.head_width=32", "data.max_length=96", "training.amp=float32")


@pytest.fixture(autouse=True)
def _fused_on_meta(monkeypatch):
    """Has the fused optimiser take tensors of ``meta``, as it takes those of a GPU."""
    for name in ("torch.optim.optimizer", "torch.utils._foreach_utils"):
        module = importlib.import_module(name)
        if hasattr(module, "_get_fused_kernels_supported_devices"):
            monkeypatch.setattr(
                module, "_get_fused_kernels_supported_devices", lambda: ["cuda", "cpu", "meta"]
            )


def batch_of(rows, counts=(2, 0, 3)):
    def empty(*size, dtype=torch.float32):
        return torch.empty(*size, dtype=dtype, device=DEVICE)

    clips, instances = len(counts), sum(counts)
    return Batch(
        features=empty(clips, rows, 16),
        mask=empty(clips, rows, dtype=torch.bool),
        labels=empty(instances, dtype=torch.int64),
        edges=empty(instances, 2, dtype=torch.float64),
        counts=list(counts),
        lengths=[rows] * clips,
        indices=[0] * clips,
        starts=[0] * clips,
        rows=[rows] * clips,
        videos=["video"] * clips,
    )


class _Device:
    """Reads of a GPU: a copy is started and no value looked at."""

    def __init__(self):
        self.started = []

    def start(self, values):
        self.started.append(values.shape)

    def finish(self, token):
        raise AssertionError("a step has looked at its own numbers")


@pytest.mark.parametrize(
    "name", ["tadtr-small", "actionformer", "tridet", "temporalmaxer", "temporalmaxer-epic-verb"]
)
def test_a_whole_step_waits_for_nothing(name, tmp_path):
    config = small() if name == "tadtr-small" else load_config(preset=name, overrides=PYRAMID)
    model = detector_of(config.name)(16, 5, config.detector).to(DEVICE).train()
    stepper = Stepper(model, config)
    modes = ("off", "plain", "corrected", "warmup")
    stepper.follow(KeptWeights(model, modes, 0.9, False, tmp_path, lambda *_: None, None))
    reads = _Device()
    numbers = LateNumbers(DEVICE, reads=reads, behind=2)
    batch = batch_of(32 if name == "tadtr-small" else 96)

    def step():
        stepper.set_learning_rate(1e-3)
        numbers.put(stepper.run(batch, "a step"), None)

    step()  # creates the optimiser's state
    assert from_host(step) == []
    assert len(reads.started) == 2


def test_the_guard_sees_a_step_that_looks():
    config = small()
    model = detector_of(config.name)(16, 5, config.detector).to(DEVICE).train()
    found = Stepper(model, config).run(batch_of(32), "a step")
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        LateNumbers(torch.device("cpu")).put(found, None)
