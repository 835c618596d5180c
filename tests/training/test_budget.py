# SPDX-License-Identifier: Apache-2.0
"""What ends a training, and where on the schedule it stands meanwhile."""

from __future__ import annotations

import csv
import itertools
import os
import signal
from dataclasses import replace

import pytest
import torch

from tal_fast.errors import ConfigError
from tal_fast.training import load_config, train
from tal_fast.training.budget import Convergence, WallClock, make_budget
from tal_fast.training.checkpoint import read_checkpoint
from tal_fast.training.config import TrainingConfig


def with_training(config, **changes):
    return replace(config, training=replace(config.training, **changes))


def falls(budget, steps):
    return [budget.falls(step, 0.0) for step in range(steps)]


def rows(folder):
    with open(folder / "log.csv") as file:
        return list(csv.DictReader(file))


def test_epochs_fall_at_whole_epochs():
    budget = make_budget(TrainingConfig(epochs=16), 10)
    assert falls(budget, 160) == [0] * 140 + [1] * 20
    assert not budget.done(159, 0.0)
    assert budget.done(160, 0.0)
    assert make_budget(TrainingConfig(epochs=30), 1).falls(25, 0.0) == 0
    assert make_budget(TrainingConfig(epochs=30), 1).falls(26, 0.0) == 1


@pytest.mark.parametrize("steps_per_epoch", [1, 7, 1000])
def test_steps_are_the_same_however_long_an_epoch_is(steps_per_epoch):
    budget = make_budget(TrainingConfig(budget="steps", steps=80), steps_per_epoch)
    assert falls(budget, 80) == [0] * 70 + [1] * 10
    assert budget.done(80, 0.0)
    assert budget.expected_steps(3, 1.0) == 80


def test_wall_clock():
    budget = make_budget(TrainingConfig(budget="wall-clock", seconds=8.0, lr_drops=(0.5, 0.75)), 5)
    assert isinstance(budget, WallClock)
    assert [budget.falls(1, seconds) for seconds in (0.0, 3.9, 4.0, 6.5)] == [0, 0, 1, 2]
    assert not budget.done(0, 9.0), "one step is made in any case"
    assert not budget.done(5, 7.9)
    assert budget.done(5, 8.0)
    assert budget.expected_steps(10, 2.0) == 40


def test_convergence_falls_then_ends():
    budget = Convergence(patience=2, falls=1, max_steps=100, check_every=5)
    seen = []
    for improved in (True, False, True, False, False, False, True, False, False):
        budget.rated(improved)
        seen.append((budget.falls(0, 0.0), budget.done(0, 0.0)))
    assert seen == [(0, False)] * 4 + [(1, False)] * 4 + [(1, True)]
    assert Convergence(2, 1, 100, 5).done(100, 0.0)


def test_convergence_goes_on_from_a_state():
    whole, cut = (Convergence(3, 2, 100, 5) for _ in range(2))
    for turn in range(8):
        whole.rated(False)
        cut.rated(False)
        again = Convergence(3, 2, 100, 5)
        again.load_state_dict(cut.state_dict())
        cut = again
        assert (whole.falls(0, 0), whole.done(0, 0)) == (cut.falls(0, 0), cut.done(0, 0)), turn


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": "steps"}, "training.budget=steps: expected training.steps"),
        ({"budget": "wall-clock"}, "training.budget=wall-clock: expected training.seconds"),
        ({"budget": "convergence"}, "expected training.holdout above 0"),
    ],
)
def test_missing_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_budget(TrainingConfig(**settings), 4)


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_a_training_of_fixed_steps(data, config, out, part):
    """Half the videos, the same steps and the same schedule over them."""
    videos = data.splits["train"][: round(part * len(data.splits["train"]))]
    config = with_training(config, budget="steps", steps=23, learning_rate=1e-3)
    events = []
    summary = train(config, data, videos, out, progress=events.append)
    assert summary.steps == len(events) == 23
    assert {event.total_steps for event in events} == {23}
    assert float(rows(out)[-1]["learning_rate"]) == pytest.approx(1e-4)
    assert int(rows(out)[-1]["step"]) == 23
    assert summary.epochs == len(rows(out))


def test_a_training_of_fixed_time(data, config, out):
    config = with_training(config, budget="wall-clock", seconds=1.0)
    summary = train(config, data, data.splits["train"], out)
    assert summary.seconds >= 1.0
    assert summary.steps >= 1


def test_a_training_until_convergence(data, config, out):
    config = with_training(
        config, budget="convergence", holdout=0.34, check_every=3, patience=2, max_steps=60,
        learning_rate=1e-20,
    )  # fmt: skip
    summary = train(config, data, data.splits["train"], out)
    # At such a rate nothing changes: one rating counts as a gain, two are stale, and two again.
    assert summary.steps == 15
    assert float(rows(out)[-1]["learning_rate"]) == pytest.approx(1e-21)


def test_convergence_is_resumed_bit_for_bit(data, config, tmp_path):
    config = with_training(
        config, budget="convergence", holdout=0.34, check_every=2, patience=2, max_steps=24,
        learning_rate=1e-3, ema=("off", "corrected"), ema_decay=0.8,
    )  # fmt: skip
    whole = train(config, data, data.splits["train"], tmp_path / "whole")

    def stop(event):
        if event.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config, data, data.splits["train"], tmp_path / "cut", progress=stop)
    cut = train(config, data, data.splits["train"], tmp_path / "cut")
    assert (whole.steps, whole.best_epoch) == (cut.steps, cut.best_epoch)
    for mode in ("off", "corrected"):
        a, b = (read_checkpoint(summary.checkpoints[mode])["model"] for summary in (whole, cut))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_averages_do_not_steer_the_training(data, config, tmp_path):
    """One training with three modes gives what three trainings with one mode each give."""
    config = with_training(config, ema_decay=0.9, epochs=2)
    every = ("off", "plain", "warmup", "corrected")
    several = train(
        with_training(config, ema=every), data, data.splits["train"], tmp_path / "several"
    )
    assert list(several.checkpoints) == list(every)
    models = []
    for mode in every:
        alone = train(
            with_training(config, ema=(mode,)), data, data.splits["train"], tmp_path / mode
        )
        a = read_checkpoint(alone.checkpoint)["model"]
        b = read_checkpoint(several.checkpoints[mode])["model"]
        assert all(torch.equal(a[key], b[key]) for key in a)
        models.append(a)
    for a, b in itertools.pairwise(models):
        assert not all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("text", "modes"),
    [
        ("training.ema=off", ("off",)),
        ("training.ema=plain", ("plain",)),
        ("training.ema=off,plain, corrected", ("off", "plain", "corrected")),
        ("training.ema=[off, plain]", ("off", "plain")),
    ],
)
def test_modes_as_people_write_them(text, modes):
    assert load_config(preset="tadtr-small", overrides=[text]).training.ema == modes


@pytest.mark.parametrize("text", ["training.ema=on", "training.ema=plane", "training.ema=off,off",
                                  "training.ema=[]", "training.ema=3"])  # fmt: skip
def test_modes_that_do_not_exist(text):
    with pytest.raises(ConfigError, match=r"training\.ema"):
        load_config(preset="tadtr-small", overrides=[text])


def test_chosen_windows(data, config, out):
    videos = data.splits["train"]
    summary = train(config, data, videos, out, positions=[0, 5, 7])
    assert summary.windows == 3
    with pytest.raises(ConfigError, match="a sample of windows has none to keep back"):
        train(with_training(config, holdout=0.2), data, videos, out / "b", positions=[0, 5])
