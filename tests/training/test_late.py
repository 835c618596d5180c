# SPDX-License-Identifier: Apache-2.0
"""Numbers of steps that are read later: in order, of their step, and not before they are asked."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tal_fast.errors import TrainingError
from tal_fast.training import late, trainer
from tal_fast.training.late import LateNumbers
from tal_fast.training.trainer import Trainer

CPU = torch.device("cpu")


class Clock:
    """A device behind the host: a copy of what is read, and when it was read."""

    def __init__(self):
        self.started = 0
        self.finished = []

    def start(self, values):
        self.started += 1
        return self.started, values.clone()

    def finish(self, token):
        number, values = token
        self.finished.append((number, self.started))
        return values.tolist()


def scalars(**numbers):
    return {key: torch.tensor(float(value)) for key, value in numbers.items()}


def test_on_a_cpu_numbers_are_there_at_once():
    numbers = LateNumbers(CPU)
    numbers.put(scalars(a=1, b=2), "first")
    assert numbers.ready() == [({"a": 1.0, "b": 2.0}, "first")]
    assert numbers.ready() == numbers.drain() == []


def test_numbers_are_of_their_step_however_late_they_are():
    clock = Clock()
    numbers = LateNumbers(CPU, reads=clock, behind=2)
    value = torch.zeros(())  # one tensor, as the static result of a graph
    found = []
    for step in range(5):
        value.fill_(step)
        numbers.put({"a": value}, step)
        found += numbers.ready()
    assert found == [({"a": float(step)}, step) for step in range(3)]
    # Asked for two steps after they were handed over, and never earlier.
    assert clock.finished == [(1, 3), (2, 4), (3, 5)]
    assert [note for _, note in numbers.drain()] == [3, 4]
    assert numbers.drain() == []


@pytest.fixture
def behind(monkeypatch):
    """Trains as on a GPU that is two steps behind."""
    clock = Clock()
    monkeypatch.setattr(
        trainer, "LateNumbers", lambda device: late.LateNumbers(device, reads=clock, behind=2)
    )
    return clock


def trained(config, data, out, **more):
    events = []
    summary = Trainer(config, data, data.splits["train"], out, progress=events.append, **more).run()
    return summary, [(event.step, event.epoch, event.losses) for event in events]


@pytest.mark.parametrize("check", [None, 1])
def test_late_numbers_change_nothing_but_when_they_are_told(config, data, tmp_path, behind, check):
    training = dataclasses.replace(config.training, check_every=check, holdout=0.3)
    config = dataclasses.replace(config, training=training)
    rated = {"validate": lambda model: 0.5} if check else {}
    late_summary, late_events = trained(config, data, tmp_path / "late", **rated)
    assert behind.started == len(late_events) > 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "LateNumbers", late.LateNumbers)
        summary, events = trained(config, data, tmp_path / "now", **rated)
    assert late_events == events
    assert late_summary.steps == summary.steps
    columns = ("epoch", "step", "total", "gradient_norm", "learning_rate")
    logs = [
        [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
        for name in ("late", "now")
        for lines in [(tmp_path / name / "log.csv").read_text().splitlines()]
    ]
    assert [[row[key] for key in columns] for row in logs[0]] == [
        [row[key] for key in columns] for row in logs[1]
    ]
    files = [torch.load(tmp_path / n / "checkpoint.pt")["model"] for n in ("late", "now")]
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[1])


def test_what_is_not_finite_is_told_of_its_own_step(config, data, out, behind, monkeypatch):
    from tal_fast.models.tadtr import TadTR

    calls = []
    true_loss = TadTR.loss

    def loss(self, *arguments):
        calls.append(None)
        found = true_loss(self, *arguments)
        return {**found, "l1": found["l1"] * torch.nan} if len(calls) == 2 else found

    monkeypatch.setattr(TadTR, "loss", loss)
    with pytest.raises(TrainingError, match=r"the loss is not finite at step 2 .*first is l1"):
        trained(config, data, out)
    assert not (out / "checkpoint.pt").exists()


def test_an_interrupted_training_goes_on_with_all_its_numbers(config, data, tmp_path, behind):
    class Stop:
        def __init__(self, after):
            self.left = after

        def __call__(self):
            self.left -= 1
            return self.left < 0

    def run(out, stop=None):
        events = []
        with pytest.MonkeyPatch.context() as patch:
            if stop is not None:
                import contextlib

                patch.setattr(
                    trainer, "deferred_interrupt", lambda *_: contextlib.nullcontext(stop)
                )
            Trainer(config, data, data.splits["train"], out, progress=events.append).run()
        return events

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", Stop(1))
    run(tmp_path / "parts")
    rows = [
        [line.split(",")[:4] for line in (tmp_path / name / "log.csv").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert rows[0] == rows[1]
    assert len(whole) > 3
