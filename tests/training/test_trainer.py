# SPDX-License-Identifier: Apache-2.0
"""The loop: learning, resuming bit for bit, interrupts, averages, hold-out, errors."""

from __future__ import annotations

import csv
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from tal_fast.errors import DataError, TrainingError
from tal_fast.models import TadTR
from tal_fast.training import train
from tal_fast.training.checkpoint import load_model, read_checkpoint, save_model
from tal_fast.training.ema import WeightAverage
from tal_fast.training.step import parameter_groups
from tal_fast.training.trainer import Trainer


def with_training(config, **changes):
    return replace(config, training=replace(config.training, **changes))


def weights(folder):
    return read_checkpoint(folder / "checkpoint.pt")["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_learns_and_writes(data, config, out):
    events = []
    config = with_training(config, epochs=4, learning_rate=1e-3)
    summary = train(config, data, data.splits["train"], out, progress=events.append)
    assert {p.name for p in out.iterdir()} == {
        "checkpoint.pt", "config.yaml", "environment.json", "log.csv",
    }  # fmt: skip
    with open(out / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["total"]) < float(rows[0]["total"])
    assert summary.steps == len(events) == events[-1].total_steps
    assert events[-1].losses["total"] > 0
    assert events[-1].seconds_left == pytest.approx(0, abs=1e-6)
    model, loaded, classes = load_model(summary.checkpoint)
    assert loaded == config
    assert classes == data.annotations.classes
    assert not model.training


def test_one_seed_one_result(data, config, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(with_training(config, seed=seed), data, data.splits["train"], tmp_path / name)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


class StopAtError(Exception):
    pass


@pytest.mark.parametrize("ema", [("off",), ("corrected", "plain")])
@pytest.mark.parametrize("when", ["epoch", "step"])
def test_resume_is_bit_exact(data, config, tmp_path, when, ema):
    """Killed after an epoch, or interrupted within one: the end is that of an undisturbed run."""
    config = with_training(config, epochs=3, ema=ema, ema_decay=0.9)
    train(config, data, data.splits["train"], tmp_path / "whole")
    seen = []

    def stop(event):
        seen.append(event)
        if when == "epoch" and event.epoch == 2:
            raise StopAtError  # as a kill: no chance to write anything
        if when == "step" and event.epoch == 2 and len(seen) == event.total_steps // 2 + 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(StopAtError if when == "epoch" else KeyboardInterrupt):
        train(config, data, data.splits["train"], tmp_path / "cut", progress=stop)
    assert (tmp_path / "cut" / "resume.pt").exists()
    again = []
    train(config, data, data.splits["train"], tmp_path / "cut", progress=again.append)
    assert 0 < len(again) < again[-1].total_steps
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert not (tmp_path / "cut" / "resume.pt").exists()
    logs = [
        list(csv.DictReader((tmp_path / name / "log.csv").read_text().splitlines()))
        for name in ("whole", "cut")
    ]
    for column in ("epoch", "step", "learning_rate", "total", "gradient_norm"):
        assert [row[column] for row in logs[0]] == [row[column] for row in logs[1]]


def test_resume_refuses_other_settings(data, config, out):
    def stop(event):
        if event.epoch == 2:
            raise StopAtError

    with pytest.raises(StopAtError):
        train(config, data, data.splits["train"], out, progress=stop)
    other = with_training(config, learning_rate=1e-3)
    with pytest.raises(TrainingError, match="other settings or videos"):
        train(other, data, data.splits["train"], out)
    train(other, data, data.splits["train"], out, resume=False)


def test_hold_out_picks_the_epoch_and_never_trains_on_it(data, config, out):
    config = with_training(config, epochs=3, holdout=0.34)
    summary = train(config, data, data.splits["train"], out)
    with open(out / "log.csv") as file:
        scores = [float(row["holdout_map"]) for row in csv.DictReader(file)]
    assert summary.best_epoch == 1 + scores.index(max(scores))
    full = train(with_training(config, holdout=0.0), data, data.splits["train"], out / "full")
    assert summary.windows < full.windows


def test_hold_out_of_everything(data, config, out):
    with pytest.raises(DataError, match="leaves none of 1 training videos"):
        train(with_training(config, holdout=0.5), data, data.splits["train"][:1], out)


def test_fewer_windows_than_a_batch_still_train(data, config, out):
    config = with_training(config, batch_size=10_000)
    assert train(config, data, data.splits["train"], out).steps == config.training.epochs


def test_loss_that_is_not_finite_stops(data, config, out):
    with pytest.raises(TrainingError, match=r"(the loss is|the outputs are) not finite at step"):
        train(with_training(config, learning_rate=1e30, epochs=20), data,
              data.splits["train"], out)  # fmt: skip


def test_float16_needs_cuda(data, config, out):
    with pytest.raises(Exception, match="float16 needs CUDA"):
        train(with_training(config, amp="float16", device="cpu"), data,
              data.splits["train"], out)  # fmt: skip


def test_unknown_device(data, config, out):
    with pytest.raises(Exception, match="expected auto, cpu or cuda, got 'tpu9'"):
        train(with_training(config, device="tpu9"), data, data.splits["train"], out)


@pytest.mark.parametrize("target", ["/dev/full", "/proc/none"])
def test_output_that_cannot_be_written(data, config, target, tmp_path, monkeypatch):
    if target == "/dev/full":
        monkeypatch.setattr(torch, "save", _disk_full)
        out = tmp_path / "out"
    else:
        from pathlib import Path

        out = Path(target)
    with pytest.raises(TrainingError, match="cannot write"):
        train(config, data, data.splits["train"], out)


def _disk_full(*_args, **_kwargs):
    raise OSError(28, "No space left on device")


def test_nan_features_name_the_video(data, config, tmp_path):
    from tal_fast.data.dataset import open_dataset
    from tal_fast.data.synthetic import make_synthetic

    folder = tmp_path / "data"
    make_synthetic(folder, train_videos=2, test_videos=1, channels=16, seed=3)
    broken = open_dataset(folder)
    video = broken.splits["train"][0]
    path = folder / "features" / f"{video}.npy"
    rows = np.load(path)
    rows[3, 2] = np.nan
    np.save(path, rows)
    with pytest.raises(DataError, match=f"{video}.*row"):
        train(config, broken, [video], tmp_path / "out")


def test_parameter_groups_cover_everything_once(data, config, out):
    trainer = Trainer(config, data, data.splits["train"], out)
    trainer._start()
    groups = parameter_groups(trainer.model, config.training)
    count = sum(len(group["params"]) for group in groups)
    assert count == len(list(trainer.model.parameters()))
    slow = {id(p) for p in groups[1]["params"]}
    assert id(trainer.model.transformer.reference_points.weight) in slow
    assert groups[1]["scale"] == 0.1


def test_corrected_average_is_adams_formula():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    start = model.weight.detach().clone()
    corrected = WeightAverage(model, 0.9, "corrected")
    plain = WeightAverage(model, 0.9, "plain")
    for _ in range(5):
        with torch.no_grad():
            model.weight += torch.randn(2, 3)
        corrected.update(model)
        plain.update(model)
    share = 0.9**5
    expected = (plain.weights["weight"] - share * start) / (1 - share)
    torch.testing.assert_close(corrected.weights["weight"], expected)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_module_under_several_names_is_averaged_once_a_step(resumed):
    """Also where what it goes on from holds one tensor under all names, as ``torch.save`` does."""
    layer = torch.nn.Linear(2, 2)
    model = torch.nn.ModuleList([layer] * 6)
    average = WeightAverage(model, 0.9, "plain")
    start = layer.weight.detach().clone()
    if resumed:
        average.load_state_dict({"steps": 0, "weights": model.state_dict()})
    with torch.no_grad():
        layer.weight += 1.0
    average.update(model)
    torch.testing.assert_close(layer.weight, start + 1.0, rtol=0, atol=1e-6)
    for name in (f"{at}.weight" for at in range(6)):
        torch.testing.assert_close(average.weights[name], start + 0.1)


def test_damaged_checkpoints(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(TrainingError, match="no checkpoint at"):
        read_checkpoint(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(TrainingError, match="not a readable checkpoint"):
        read_checkpoint(path)
    torch.save({"format": 99}, path)
    with pytest.raises(TrainingError, match="expected checkpoint format 1, found 99"):
        read_checkpoint(path)
    torch.save({"format": 1}, path)
    with pytest.raises(TrainingError, match="it lacks"):
        load_model(path)


def test_loading_a_model_draws_no_initial_weights(data, config, tmp_path):
    torch.manual_seed(5)
    model = TadTR(data.channels, data.num_classes, config.detector)
    path = tmp_path / "checkpoint.pt"
    half = {key: value.half() for key, value in model.state_dict().items()}
    save_model(path, half, config, data.annotations.classes, data.channels)
    before = torch.get_rng_state()
    loaded, _, _ = load_model(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    found = loaded.state_dict()
    assert {value.device.type for value in found.values()} == {"cpu"}
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert same(found, {key: value.float() for key, value in half.items()})
