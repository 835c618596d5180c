# SPDX-License-Identifier: Apache-2.0
"""Several trainings that want one directory: one has it, the others are told so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tal_fast.data.locks import locked_directory
from tal_fast.errors import ConfigError, TrainingError
from tal_fast.training import experiment, run_experiment, train
from tal_fast.training.plan import TrainingPlan


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for nobody who may be dying."""
    monkeypatch.setattr(experiment, "_SECONDS_FOR_LOCK", 0.0)


@pytest.mark.usefixtures("at_once")
def test_two_at_a_time_are_refused(data, config, out):
    refused = []

    def progress(event):
        if not refused:
            with pytest.raises(TrainingError, match="another process trains in this directory"):
                train(config, data, data.splits["train"], out)
            refused.append(event)

    run_experiment(
        config,
        data,
        train_videos=data.splits["train"],
        test_videos=data.splits["test"],
        out=out,
        progress=progress,
    )
    assert refused
    assert (out / "metrics.json").exists()
    assert not list(out.glob(".*"))


@pytest.mark.usefixtures("at_once")
def test_a_trial_has_a_lock_of_its_own_on_it(data, config, out):
    with locked_directory(out, wait=0, busy=""):
        train(config, data, data.splits["train"], out)


def test_who_was_planned_before_another_ended_does_not_replace_it(data, config, out):
    plan = TrainingPlan(config, data, data.splits["train"], out, True, True, ())
    train(config, data, data.splits["train"], out)
    before = (out / "checkpoint.pt").read_bytes()
    with pytest.raises(ConfigError, match="holds a training that has ended"):
        plan.run(progress=False)
    assert (out / "checkpoint.pt").read_bytes() == before


def test_a_training_that_makes_no_sense_makes_no_directory(data, config, out):
    config = replace(config, training=replace(config.training, holdout=0.5))
    with pytest.raises(ConfigError, match="has none to keep back"):
        train(config, data, data.splits["train"], out, positions=[0])
    assert not out.exists()
