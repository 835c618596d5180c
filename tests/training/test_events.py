# SPDX-License-Identifier: Apache-2.0
"""TensorBoard events: written where it is installed, not missed where it is not."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from tal_fast.training.events import EventWriter

ROW = {"epoch": 1, "step": 5, "total": 2.5, "learning_rate": 1e-4}


def test_writes_scalars(monkeypatch, tmp_path):
    calls = []

    class SummaryWriter:
        def __init__(self, folder):
            calls.append(folder)

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def close(self):
            calls.append("closed")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with EventWriter(tmp_path, "auto") as events:
        events.write(5, ROW)
    assert calls == [
        str(tmp_path), ("train/total", 2.5, 5), ("train/learning_rate", 1e-4, 5), "closed",
    ]  # fmt: skip


def test_without_tensorboard_or_when_told_not_to(monkeypatch, tmp_path):
    for mode in ("auto", "never"):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with EventWriter(tmp_path, mode) as events:
            events.write(5, ROW)
    assert list(tmp_path.iterdir()) == []
