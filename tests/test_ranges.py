# SPDX-License-Identifier: Apache-2.0
"""NVTX ranges: one shared do-nothing context when off, named ranges when on."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from tal_fast import ranges


@pytest.fixture
def seen(monkeypatch):
    """Names of the ranges that were entered."""
    names: list[str] = []

    class Annotate:
        def __init__(self, message, domain):
            assert domain == "tal_fast"
            self.message = message

        def __enter__(self):
            names.append(self.message)

        def __exit__(self, *exception):
            return None

    module = ModuleType("nvtx")
    module.annotate = Annotate
    monkeypatch.setitem(sys.modules, "nvtx", module)
    yield names
    ranges.enable_ranges(False)


def test_off_costs_one_shared_context():
    assert ranges.nvtx_range("a") is ranges.nvtx_range("b")


def test_on_marks_every_phase_of_a_step(seen, tmp_path):
    from tal_fast.data.dataset import open_dataset
    from tal_fast.data.synthetic import make_synthetic
    from tal_fast.training import load_config, train

    ranges.enable_ranges()
    make_synthetic(tmp_path / "data", train_videos=2, test_videos=1, channels=16, seed=3)
    data = open_dataset(tmp_path / "data")
    small = ["model.d_model=32", "model.encoder_layers=1", "model.decoder_layers=1"]
    small += ["training.epochs=1", "training.batch_size=2", "data.window=32"]
    config = load_config(preset="tadtr-small", overrides=small)
    train(config, data, data.splits["train"], tmp_path / "out")
    phases = ("data", "transfer", "forward", "matching", "backward", "optimizer")
    assert {f"tal_fast.{phase}" for phase in phases} <= set(seen)
