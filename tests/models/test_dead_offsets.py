# SPDX-License-Identifier: Apache-2.0
"""Offsets whose ReLU is 0 at every point learn nothing: told after a training, and avoidable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tal_fast.errors import ConfigError
from tal_fast.models import Whole, detector_config, detector_of
from tal_fast.training import load_config
from tal_fast.training.config import config_to_dict, deciding
from tal_fast.training.plan import TrainingPlan
from tal_fast.training.told import TrainingSummary

sys.path.insert(0, str(Path(__file__).parent))

import official

CHANNELS, CLASSES, STEPS = 12, 5, 80
WITH_START = ["actionformer-small", "temporalmaxer-small"]


def fresh(preset, start):
    config = detector_config(preset, {"model": {"offset_start": start}})
    return detector_of(preset)(CHANNELS, CLASSES, config)


def model_of(preset, start=0.0):
    model = fresh(preset, start)
    official.random_weights(model, 0)
    return model.train()


def remarks_after_steps(model):
    items = [official.item(90, CHANNELS, CLASSES, 3, 1), official.item(40, CHANNELS, CLASSES, 2, 2)]
    features, mask, targets = official.padded(model, items)
    with torch.no_grad():
        output = model(features, mask)
        for _ in range(STEPS):
            model.loss(output, targets, Whole(targets))
    return model.remarks()


def kill(model, end):
    """Has an offset be below 0 at every point."""
    head = model.reg_head.offset_head.conv
    with torch.no_grad():
        head.weight[end] = 0
        head.bias[end] = -1


@pytest.mark.parametrize("preset", WITH_START)
@pytest.mark.parametrize(
    ("ends", "said"), [([0], "start"), ([1], "end"), ([0, 1], "start and the end")]
)
def test_a_dead_offset_is_told(preset, ends, said):
    model = model_of(preset)
    for end in ends:
        kill(model, end)
    (remark,) = remarks_after_steps(model)
    assert remark.startswith(f"the distance to the {said} of an instance is 0 at every point")
    assert "--set model.offset_start=1 (settings={'model.offset_start': '1'})" in remark


def test_one_that_died_although_it_started_higher_gets_a_higher_start():
    model = model_of("temporalmaxer-small", 3.0)
    kill(model, 0)
    assert "--set model.offset_start=6" in remarks_after_steps(model)[0]


@pytest.mark.parametrize("preset", [*WITH_START, "tridet-small"])
def test_live_offsets_are_not_spoken_of(preset):
    assert remarks_after_steps(model_of(preset)) == ()


@pytest.mark.parametrize("preset", WITH_START)
def test_where_offsets_start(preset):
    for start in (0.0, 1.5):
        model = fresh(preset, start)
        assert model.reg_head.offset_head.conv.bias.tolist() == [start, start]


def test_means_over_bins_have_no_start():
    with pytest.raises(ConfigError, match="expected offset_start = 0, since offsets are means"):
        detector_config("tridet-small", {"model": {"offset_start": 1.0}})


def test_studies_from_before_go_on():
    """The default is left out of what their trials were run with, anything else is not."""
    plain = deciding(config_to_dict(load_config(preset="actionformer-small")))
    assert "offset_start" not in plain["model"]
    other = load_config(preset="actionformer-small", overrides=["model.offset_start=1"])
    assert deciding(config_to_dict(other))["model"]["offset_start"] == 1.0


def test_remarks_are_among_the_notes_of_a_training(tmp_path):
    config = load_config(preset="temporalmaxer-small")
    plan = TrainingPlan(config, None, [], tmp_path, resume=True, first=True, notes=())
    summary = TrainingSummary(
        tmp_path / "checkpoint.pt", {}, 4, 80, 18, 1.0, 4, {}, 18, "", ("an offset is dead",)
    )
    assert plan.notes_after(summary)[0] == "an offset is dead"
