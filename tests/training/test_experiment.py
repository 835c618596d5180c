# SPDX-License-Identifier: Apache-2.0
"""Train, detect, score; and prediction from a checkpoint alone."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_settings import small

from tal_fast.errors import DataError, TrainingError
from tal_fast.evaluation import Detections, evaluate, read_results
from tal_fast.models import Detector
from tal_fast.models.tadtr import TadTR, TadTROutput
from tal_fast.training import detect, predict, run_experiment
from tal_fast.training.checkpoint import load_model


def test_whole_experiment(data, config, out):
    stages = []
    result = run_experiment(
        config,
        data,
        train_videos=data.splits["train"],
        test_videos=data.splits["test"],
        out=out,
        progress=lambda event: stages.append(event.stage),
    )
    assert sorted(set(stages)) == ["evaluate", "predict", "train"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["average_map"] == result.average_map
    assert list(result.map_per_threshold) == ["0.3", "0.4", "0.5", "0.6", "0.7"]
    assert result.average_map == pytest.approx(np.mean(list(result.map_per_threshold.values())))
    truth = data.annotations.select(data.splits["test"])
    assert evaluate(truth, out / "predictions.json").average_map == result.average_map
    assert data.truth is data.annotations  # nothing was cut
    assert result.peak_memory_mib > 10
    # the checkpoint alone gives the same file
    before = (out / "predictions.json").read_bytes()
    predict(out / "checkpoint.pt", data, data.splits["test"], out / "again.json")
    assert (out / "again.json").read_bytes() == before


def test_scores_are_against_the_uncut_truth(data, config, out, monkeypatch):
    """Detections that are the annotations, some beyond their videos' end, score 1."""
    test = data.splits["test"]
    far = {
        name: replace(video, segments=video.segments + np.array([0.0, 50.0]))
        for name, video in data.annotations.videos.items()
    }
    cut = {name: replace(v, segments=v.segments[:, :1] + [[0.0, 0.1]]) for name, v in far.items()}
    found = Detections.from_videos(
        {
            name: (far[name].segments, far[name].labels, np.ones(len(far[name].labels)))
            for name in test
        },
        data.classes,
    )
    monkeypatch.setattr("tal_fast.training.experiment.predict", lambda *a, **k: found)
    known = replace(
        data,
        annotations=replace(data.annotations, videos=cut),
        truth=replace(data.truth, videos=far),
    )
    result = run_experiment(
        config, known, train_videos=data.splits["train"], test_videos=test, out=out
    )
    assert result.average_map == 1.0


def test_videos_in_both_lists(data, config, out):
    train = data.splits["train"]
    with pytest.raises(DataError, match=f"1 video is both .* the first is '{train[0]}'"):
        run_experiment(config, data, train_videos=train, test_videos=train[:1], out=out)


def test_test_videos_without_an_instance(data, config, out):
    videos, none_left = dict(data.annotations.videos), data.splits["test"]
    for name in none_left:
        none = {"segments": videos[name].segments[:0], "labels": videos[name].labels[:0]}
        videos[name] = replace(videos[name], **none)
    bare = replace(data, annotations=replace(data.annotations, videos=videos))
    with pytest.raises(DataError, match="expected an instance in the 4 test videos"):
        run_experiment(
            config,
            bare,
            train_videos=data.splits["train"],
            test_videos=data.splits["test"],
            out=out,
        )
    assert not out.exists()


class Oracle(TadTR):
    """Answers with segments that the test chooses, wherever the window lies."""

    def __init__(self, data, segments, **postprocess):
        config = small().detector
        config = replace(config, postprocess=replace(config.postprocess, **postprocess))
        Detector.__init__(self, data.channels, data.num_classes, config)
        self.parameter = torch.nn.Parameter(torch.zeros(1))
        self.segments = segments

    def forward(self, features, mask):
        batch, queries = len(features), len(self.segments)
        logits = torch.full((1, batch, queries, self.num_classes), -20.0)
        logits[..., 1] = torch.linspace(3, 1, queries)
        segments = torch.tensor(self.segments).expand(1, batch, queries, 2)
        return TadTROutput(logits, segments, None)


def test_detections_are_in_seconds_of_the_video(data, config):
    video = data.splits["test"][0]
    found = detect(Oracle(data, [[0.5, 0.25]], top_k=1), data, [video], config.training)
    rows = data.features[video].rows
    grid = data.grid(video)
    # every window gives its middle quarter (of 32 rows, padded or not)
    starts = grid.to_grid(found.start) - 12
    assert len(found) >= 1
    np.testing.assert_allclose(starts, np.round(starts), atol=1e-6)
    assert (starts >= 0).all()
    assert (starts <= max(rows - 32, 0)).all()
    np.testing.assert_allclose(grid.to_grid(found.end) - grid.to_grid(found.start), 8, atol=1e-6)
    assert set(found.label.tolist()) == {1}


@pytest.mark.parametrize("large", [0.0, 1e30])
def test_outputs_that_are_not_finite_are_refused(data, config, large):
    model = TadTR(data.channels, data.num_classes, config.detector)
    with torch.no_grad():
        model.segment_embed[0].layers[0].weight.fill_(large or torch.nan)
        model.segment_embed[0].layers[1].weight.fill_(large)
    first = "output of segment_embed.0" if large else "parameter 'segment_embed.0.layers.0.weight'"
    video = data.splits["test"][0]
    with pytest.raises(TrainingError, match=f"not finite for clips of {video}.*{first}"):
        detect(model, data, [video], config.training)
    oracle = Oracle(data, [[0.5, float("nan")]])  # as a GPU, which cannot raise
    with pytest.raises(TrainingError, match=r"not finite .*the first is the outputs themselves"):
        detect(oracle, data, [video], config.training)


def test_overlapping_windows_and_queries_are_merged(data, config):
    video = data.splits["test"][0]
    twice = Oracle(data, [[0.5, 0.25], [0.5, 0.24]], top_k=2)
    once = detect(twice, data, [video], config.training)
    score = 1 / (1 + np.exp(-3.0))
    np.testing.assert_allclose(once.score, score, rtol=1e-6)  # the weaker twin is gone


def test_only_overlaps_of_windows_are_merged_when_asked(data, config):
    video = max(data.splits["test"], key=lambda name: data.features[name].rows)
    # In the middle quarter of a window, which no other window sees at an overlap of a quarter.
    middle = [[0.5, 0.25], [0.5, 0.24]]
    all_kept, merged = (
        detect(Oracle(data, middle, top_k=2, nms_scope=scope), data, [video], config.training)
        for scope in ("overlaps", "all")
    )
    assert len(all_kept) > len(merged)
    assert set(merged.score.tolist()) < set(all_kept.score.tolist())


@pytest.mark.parametrize(("weight", "iou"), [("score", 1.0), ("score_iou", 0.8)])
def test_votes_weigh_what_is_set(data, config, weight, iou):
    video = data.splits["test"][0]
    post = {"top_k": 2, "voting": 0.75, "voting_weight": weight}
    found = detect(Oracle(data, [[0.5, 0.25], [0.5, 0.2]], **post), data, [video], config.training)
    first, second = (1 / (1 + np.exp(-logit)) for logit in (3.0, 1.0))  # 8 and 6.4 of 32 rows
    mean = (first * 8 + second * iou * 6.4) / (first + second * iou)
    grid = data.grid(video)
    np.testing.assert_allclose(grid.to_grid(found.end) - grid.to_grid(found.start), mean, rtol=1e-5)


def test_detections_stay_inside_the_video(data, config):
    video = data.splits["test"][0]
    found = detect(Oracle(data, [[0.0, 1.0], [1.0, 1.0]]), data, [video], config.training)
    duration = data.annotations.videos[video].duration
    assert found.start.min() >= 0
    assert found.end.max() <= duration


def test_no_window_no_detection(data, config):
    with pytest.raises(DataError, match="expected at least one video"):
        detect(Oracle(data, [[0.5, 0.5]]), data, [], config.training)


def test_checkpoint_of_other_data(data, config, out, tmp_path):
    from tal_fast.data.dataset import open_dataset
    from tal_fast.data.synthetic import make_synthetic

    result = run_experiment(
        config, data, train_videos=data.splits["train"], test_videos=data.splits["test"], out=out
    )
    assert result.epochs == 2
    make_synthetic(tmp_path / "wide", train_videos=2, test_videos=1, channels=24, seed=0)
    other = open_dataset(tmp_path / "wide")
    with pytest.raises(DataError, match=r"trained on features of 16 channels, .* has 24"):
        predict(out / "checkpoint.pt", other, other.splits["test"], out / "x.json")
    relabelled = replace(data, annotations=replace(data.annotations, classes=("a", "b")))
    with pytest.raises(DataError, match="knows the classes"):
        predict(out / "checkpoint.pt", relabelled, data.splits["test"], out / "x.json")


def test_results_file_names_every_video(data, config, out):
    run_experiment(
        config, data, train_videos=data.splits["train"], test_videos=data.splits["test"], out=out
    )
    assert set(read_results(out / "predictions.json").videos) == set(data.splits["test"])
    model, _, _ = load_model(out / "checkpoint.pt")
    assert model.in_channels == 16


def test_scoring_keeps_to_the_threads_of_its_trial(data, config, out, monkeypatch):
    from tal_fast.training import experiment

    used = []

    def spy(*arguments, num_threads, **options):
        used.append(num_threads)
        return evaluate(*arguments, num_threads=num_threads, **options)

    monkeypatch.setattr(experiment, "evaluate", spy)
    before = torch.get_num_threads()
    try:
        result = run_experiment(
            replace(config, training=replace(config.training, holdout=0.3)),
            data,
            train_videos=data.splits["train"],
            test_videos=data.splits["test"],
            out=out,
            threads=3,
        )
    finally:
        torch.set_num_threads(before)
    assert used == [3, 3, 3]  # two epochs by held-out videos, then the test videos
    # What chose the weights is told beside what they score: the best rating of the log.
    with open(out / "log.csv", newline="") as file:
        rated = [float(row["holdout_map"]) for row in csv.DictReader(file) if row["holdout_map"]]
    assert result.ema["off"].held_out == pytest.approx(max(rated), abs=1e-6)
