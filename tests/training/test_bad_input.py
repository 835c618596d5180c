# SPDX-License-Identifier: Apache-2.0
"""Data that does not go with a model of crops: each error says what was expected and found."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tal_fast.data import open_dataset
from tal_fast.data.clips import VideoSet
from tal_fast.data.row_meaning import row_meaning
from tal_fast.data.synthetic import make_synthetic
from tal_fast.errors import ConfigError, DataError, TrainingError
from tal_fast.models import Targets, Whole, build_model
from tal_fast.training import load_config, predict, train
from tal_fast.training.checkpoint import save_model

MODELS = ("actionformer-small", "tridet-small", "temporalmaxer-small")
POINTS = pytest.mark.parametrize("name", MODELS)


def settings(name):
    sizes = ["model.width=32", "model.head_width=32", "data.max_length=256", "model.levels=3"]
    ranges = "loss.ranges=[[0, 4], [4, 8], [8, 10000]]"
    training = ["training.epochs=1", "training.amp=float32", "training.tensorboard=never"]
    return load_config(preset=name, overrides=[*sizes, ranges, *training])


@pytest.fixture
def checkpoint(data, tmp_path):
    """An untrained model of the data's classes and channels."""
    config = settings("temporalmaxer-small")
    model = type(build_model("temporalmaxer", in_channels=1, num_classes=1))(
        data.channels, data.num_classes, config.detector
    )
    path = tmp_path / "checkpoint.pt"
    rows = row_meaning(model.clips(config.detector, data, data.splits["train"], training=True))
    save_model(path, model.state_dict(), config, data.annotations.classes, data.channels, rows)
    return path


def test_features_of_other_channels(checkpoint, tmp_path):
    make_synthetic(tmp_path / "narrow", train_videos=6, test_videos=2, channels=8, seed=3)
    narrow = open_dataset(tmp_path / "narrow")
    message = r"checkpoint\.pt was trained on features of 16 channels, synthetic has 8$"
    with pytest.raises(DataError, match=message):
        predict(checkpoint, narrow, narrow.splits["test"], tmp_path / "results.json")


def test_other_classes(checkpoint, data, tmp_path):
    annotations = dataclasses.replace(data.annotations, classes=("a", "b"))
    other = dataclasses.replace(data, annotations=annotations)
    with pytest.raises(DataError, match=r"checkpoint\.pt knows the classes .*has \['a', 'b'\]$"):
        predict(checkpoint, other, data.splits["test"], tmp_path / "results.json")


def rows_per_second(data):
    return str(row_meaning(VideoSet(data, data.splits["test"]))).partition(" rows per second")[0]


def test_rows_of_another_rate(checkpoint, data, tmp_path):
    """The weights know nothing of seconds, so nothing but the checkpoint tells."""
    feature = dataclasses.replace(data.spec.feature, stride=data.spec.feature.stride / 2)
    spec = dataclasses.replace(data.spec, feature=feature)
    other = dataclasses.replace(data, spec=spec)
    out = tmp_path / "results.json"
    rate, twice = rows_per_second(data), rows_per_second(other)
    message = (
        rf"checkpoint\.pt was trained on {rate} rows per second, there are {twice} in "
        rf"synthetic \(.*dataset\.yaml: stride {feature.stride:g}, .*\); correct that file where.*"
        r"--other-rows \(other_rows=True\) predicts all the same$"
    )
    with pytest.raises(DataError, match=message):
        predict(checkpoint, other, data.splits["test"], out)
    assert not out.exists()
    notes = []
    predict(checkpoint, other, data.splits["test"], out, other_rows=True, said=notes.append)
    assert f"trained on {rate} rows per second, there are {twice}" in notes[0]
    notes.clear()
    predict(checkpoint, data, data.splits["test"], out, said=notes.append)
    assert notes == []


def test_a_checkpoint_that_does_not_know_its_rate(checkpoint, data, tmp_path):
    content = torch.load(checkpoint)
    del content["rows"]
    torch.save(content, checkpoint)
    notes = []
    predict(checkpoint, data, data.splits["test"], said=notes.append)
    rate = rows_per_second(data)
    assert "does not say how the rows of its training lie in time" in notes[0]
    assert f"must lie alike: {rate} rows per second" in notes[0]
    content["rows"] = {"rate": 3}
    torch.save(content, checkpoint)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: expected what the rows stand for"):
        predict(checkpoint, data, data.splits["test"])


@POINTS
def test_videos_without_an_instance(name, data, out):
    names = list(data.splits["train"])
    videos = {
        key: dataclasses.replace(video, segments=video.segments[:0], labels=video.labels[:0])
        if key in names
        else video
        for key, video in data.annotations.videos.items()
    }
    empty = dataclasses.replace(
        data, annotations=dataclasses.replace(data.annotations, videos=videos)
    )
    message = rf"expected training videos with instances, got {len(names)} without one: {names[0]}"
    with pytest.raises(DataError, match=message):
        train(settings(name), empty, names, out)


@POINTS
def test_chosen_windows_of_a_model_without(name, data, out):
    message = "expected a model that learns from sliding windows, this one learns from a crop of at"
    with pytest.raises(ConfigError, match=message):
        train(settings(name), data, data.splits["train"], out, positions=[0, 1])


@POINTS
@pytest.mark.parametrize("instances", [0, 1])
def test_a_video_of_one_row(name, instances):
    torch.manual_seed(0)
    config = settings(name).detector
    kind = type(build_model(name, in_channels=1, num_classes=1))
    model = kind(6, 3, config)
    length = kind.rows_needed(config, 1)
    mask = torch.arange(length)[None] >= 1
    features = torch.randn(1, length, 6) * ~mask[..., None]
    labels, edges = torch.tensor([2])[:instances], torch.tensor([[0.1, 0.9]])[:instances]
    targets = Targets(labels, edges.double(), [instances], length)
    output = model(features, mask)
    losses = model.loss(output, targets, Whole(targets))
    losses["total"].backward()
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())
    found = model.eval().candidates(output, mask)
    assert np.isfinite(found.segments.detach().numpy()).all()
