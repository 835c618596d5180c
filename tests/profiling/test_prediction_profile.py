# SPDX-License-Identifier: Apache-2.0
"""Prediction by length: what is run, with what padding, and what is said of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from tal_fast import cli
from tal_fast.cli import profiles
from tal_fast.data import open_dataset
from tal_fast.errors import ConfigError, DataError
from tal_fast.profiling import prediction_profile
from tal_fast.profiling.model_cost import model_cost, prediction_macs
from tal_fast.profiling.prediction_profile import (
    clips_of_data,
    made_clips,
    profile_prediction,
    ready_model,
)
from tal_fast.profiling.step_profile import STEP_COLUMNS, step_of_clip
from tal_fast.training.checkpoint import save_model

SMALL = {
    "tadtr-small": ["model.d_model=32"],
    "actionformer": ["model.width=32"],
    "tridet": ["model.width=32"],
    "temporalmaxer": ["model.width=32"],
}
OWN = f"{Path(__file__).parents[2] / 'examples' / 'own_model.py'}:RowDetector"
CEILINGS = {
    "ceilings": [
        {"name": "copy, memory", "threads": 1, "best": 10.0, "median": 9.0, "unit": "GB/s"}
    ]
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from tal_fast.data.synthetic import make_synthetic

    out = tmp_path_factory.mktemp("prediction") / "data"
    make_synthetic(out, size="demo", train_videos=8, test_videos=6, channels=8)
    return open_dataset(out)


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    monkeypatch.setattr(prediction_profile, "machine_ceilings", lambda: CEILINGS)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_where_nothing_can_be_written_nothing_is_measured(tmp_path):
    model, config = ready_model("tadtr-small", None, (8, 3), SMALL["tadtr-small"])
    file, said = tmp_path / "file", []
    file.touch()
    with pytest.raises(DataError, match="file: cannot be written: expected a directory"):
        profile_prediction(
            model, config, made_clips(model, [40]), file, weights="fresh", said=said.append
        )
    assert not said


@pytest.mark.parametrize("name", [*SMALL, OWN], ids=[*SMALL, "own"])
def test_every_model_by_length(name, tmp_path):
    settings = [*SMALL.get(name, []), "training.amp=float32"]
    model, config = ready_model(name, None, (8, 3), settings)
    clips = made_clips(model, [40, 130])
    found = profile_prediction(
        model, config, clips, tmp_path, weights="fresh", timing=(30.0, 4.0), quick=True, threads=1
    )
    assert found == json.loads((tmp_path / "profile.json").read_text())
    assert found["prediction"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert [entry["rows"] for entry in found["lengths"]] == [40, 130]
    for entry in found["lengths"]:
        assert entry["padded"] == model.rows_needed(config.detector, entry["rows"])
        assert entry["repeats"] == 5
        low, high = entry["network_quartiles"]
        assert 0 < low <= entry["network"]["value"] <= high
        assert entry["macs"]["value"] == prediction_macs(config, 8, 3, entry["padded"])[0]
        # The input to the first layer at least.
        assert entry["memory"]["value"] > 0
        whole = sum(entry[part]["value"] for part in prediction_profile.PARTS)
        by = {"clock": "network", "CPU time": "network_cpu"}[found["prediction"]["rates_by"]]
        rate = entry["macs"]["value"] / entry[by]["value"] / 1e6
        assert entry["macs_rate"]["value"] == pytest.approx(rate)
        assert entry["minute"]["value"] >= whole
    first, last = found["lengths"]
    assert first["macs"]["value"] <= last["macs"]["value"]
    with open(tmp_path / "lengths.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["network"]) for row in rows] == [
        entry["network"]["value"] for entry in found["lengths"]
    ]


@pytest.mark.parametrize("name", [*SMALL, OWN], ids=[*SMALL, "own"])
def test_a_training_step_on_a_clip(name):
    settings = [*SMALL.get(name, []), "training.amp=float32"]
    model, config = ready_model(name, None, (8, 3), settings)
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    (clip,) = made_clips(model, [60])
    found = step_of_clip(model, config, clip.features, 60, repeats=1)
    assert set(found) <= set(STEP_COLUMNS)
    assert found["step"]["value"] > 0
    # At least the gradients are held at once; forward and backward are about three forwards.
    learned = sum(p.numel() for p in model.parameters())
    assert found["step_memory"]["value"] > 4 * learned
    counted = model_cost(
        name, channels=8, classes=3, lengths=[60], batch=1, settings=settings
    ).lengths[0]
    assert found["step_macs"]["value"] == pytest.approx(counted.whole_step.macs, rel=1e-6)
    assert not model.training
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_steps_stand_beside_predictions_where_they_are_asked_for(tmp_path, capsys, monkeypatch):
    model, config = ready_model("tadtr-small", None, (8, 3), SMALL["tadtr-small"])
    clips = made_clips(model, [20, 40])
    found = profile_prediction(
        model, config, clips, tmp_path, weights="fresh", training=True, quick=True, threads=1
    )
    with open(tmp_path / "lengths.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for entry, row in zip(found["lengths"], rows, strict=True):
        for key in STEP_COLUMNS:
            assert float(row[key]) == entry[key]["value"]
        took = entry["step" if found["prediction"]["rates_by"] == "clock" else "step_cpu"]["value"]
        rate = entry["step_macs"]["value"] / took / 1e6
        assert entry["step_rate"]["value"] == pytest.approx(rate)
    monkeypatch.setattr(profiles, "draw_page", lambda folder: None)
    profiles.print_profile(tmp_path)
    shown = capsys.readouterr().out
    assert "step MB" in shown
    assert "…" not in shown  # no number is cut
    without = profile_prediction(
        model, config, clips[:1], tmp_path, weights="fresh", quick=True, threads=1
    )
    for key in STEP_COLUMNS:
        assert without["lengths"][0][key]["value"] is None
        assert "--training" in without["lengths"][0][key]["reason"]


def test_rates_on_a_busy_machine_are_by_cpu_time(tmp_path, monkeypatch):
    model, config = ready_model(OWN, None, (8, 3), [])
    for others, by in ((0.0, "clock"), (99.0, "CPU time"), (None, "clock")):
        monkeypatch.setattr(prediction_profile.procfs, "others_since", lambda *_, o=others: o)
        found = profile_prediction(
            model, config, made_clips(model, [20]), tmp_path, weights="fresh", quick=True, threads=1
        )
        assert found["prediction"]["rates_by"] == by


def test_macs_are_those_of_the_cost_of_the_model():
    _, config = ready_model("tadtr-small", None, (300, 12), [])
    (cost,) = model_cost("tadtr-small", channels=300, classes=12, lengths=[128]).lengths
    assert prediction_macs(config, 300, 12, 128) == (cost.macs, "formula")


def test_clips_are_padded_as_in_prediction():
    model, config = ready_model("actionformer", None, (8, 3), [])
    (clip,) = made_clips(model, [100])
    padded = model.rows_needed(config.detector, 100)
    assert padded > 100
    assert clip.features.shape == (1, padded, 8)
    assert clip.mask[0].tolist() == [False] * 100 + [True] * (padded - 100)
    assert not clip.features[0, 100:].any()
    assert clip.features[0, :100].std() == pytest.approx(1.0, abs=0.1)
    with pytest.raises(ConfigError, match="lengths: expected at least 1 row, got 0"):
        made_clips(model, [0])


def test_clips_of_data_are_shortest_to_longest(data):
    model, _ = ready_model(OWN, None, (8, data.num_classes), [])
    videos = data.splits["test"]
    found = clips_of_data(model, data, videos)
    rows = sorted(data.features[video].rows for video in videos)
    assert (found[0].rows, found[-1].rows) == (rows[0], rows[-1])
    assert 2 <= len(found) <= 5
    assert all(int((~clip.mask).sum()) == clip.rows for clip in found)
    other, _ = ready_model(OWN, None, (9, 3), [])
    with pytest.raises(DataError, match="takes features of 9 channels"):
        clips_of_data(other, data, videos)


def test_nobody_says_how_far_rows_are_apart(tmp_path):
    model, config = ready_model(OWN, None, (8, 3), [])
    found = profile_prediction(
        model, config, made_clips(model, [20]), tmp_path, weights="fresh", quick=True
    )
    assert found["lengths"][0]["minute"]["value"] is None
    assert "--fps" in found["lengths"][0]["minute"]["reason"]


def test_command_with_a_checkpoint(data, tmp_path, capsys):
    model, config = ready_model(OWN, None, (8, data.num_classes), [])
    file = tmp_path / "checkpoint.pt"
    save_model(file, model.state_dict(), config, data.annotations.classes, 8)
    out = tmp_path / "profile"
    arguments = ["profile", "predict", "--checkpoint", file, "--data", data.path, "--out", out,
                 "--quick", "--threads", "1"]  # fmt: skip
    assert cli.main([str(word) for word in arguments]) == 0
    shown = capsys.readouterr()
    assert "suppression" in shown.out
    assert "trained weights" in shown.out
    assert json.loads((out / "profile.json").read_text())["prediction"]["weights"] == "trained"
    assert cli.main([str(word) for word in [*arguments, "--set", "training.seed=1"]]) == 2
    assert "a checkpoint comes with its settings" in capsys.readouterr().err
    assert cli.main([str(word) for word in [*arguments, "--channels", "9"]]) == 2
    assert "--channels: --checkpoint already tells" in capsys.readouterr().err


def test_nothing_of_an_earlier_profile_stays(tmp_path):
    for name in ("ops.csv", "roofline.png", "index.html", "mine.txt"):
        (tmp_path / name).touch()
    model, config = ready_model(OWN, None, (8, 3), [])
    profile_prediction(
        model, config, made_clips(model, [20]), tmp_path, weights="fresh", quick=True, threads=1
    )
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"mine.txt", "profile.json", "lengths.csv"}
