# SPDX-License-Identifier: Apache-2.0
"""The loop: learning, resuming bit for bit, interrupts, averages, hold-out, errors."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tal_fast.data import open_dataset
from tal_fast.data.clips import VideoSet
from tal_fast.data.row_meaning import row_meaning
from tal_fast.errors import ConfigError, DataError, TrainingError
from tal_fast.models import TadTR
from tal_fast.training import train
from tal_fast.training.checkpoint import load_trained, read_checkpoint
from tal_fast.training.ema import WeightAverage
from tal_fast.training.experiment import _hold_out
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
    model, loaded, classes, meaning = load_trained(summary.checkpoint)
    assert meaning == row_meaning(VideoSet(data, data.splits["test"]))
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


def stop_in_epoch_2(event):
    if event.epoch == 2:
        raise StopAtError


def test_a_refused_training_leaves_the_settings_that_are_there(data, config, out):
    with pytest.raises(StopAtError):
        train(config, data, data.splits["train"], out, progress=stop_in_epoch_2)
    there = (out / "config.yaml").read_bytes()
    with pytest.raises(TrainingError, match="other settings"):
        train(with_training(config, learning_rate=1e-3), data, data.splits["train"], out)
    assert (out / "config.yaml").read_bytes() == there


def test_a_training_begun_anew_leaves_no_weights_of_the_one_before(data, config, out):
    train(config, data, data.splits["train"], out)
    for name in ("checkpoint_off.pt", "checkpoint_plain.pt", "checkpoint_best_so_far.pt"):
        shutil.copy(out / "checkpoint.pt", out / name)

    def at_once(event):
        # Only one's own copy, under a name that no training writes.
        assert [path.name for path in out.glob("checkpoint*.pt")] == ["checkpoint_best_so_far.pt"]
        raise StopAtError

    with pytest.raises(StopAtError):
        train(config, data, data.splits["train"], out, resume=False, progress=at_once)


def test_rated_weights_never_lie_without_the_state_to_go_on_from(data, config, out, tmp_path):
    config = with_training(config, holdout=0.34, check_every=1)
    whole = train(config, data, data.splits["train"], tmp_path / "whole")
    seen = []

    def killed(event):
        seen.append(event.step)
        if event.step == 2:
            assert (out / "checkpoint.pt").exists()
            assert read_checkpoint(out / "resume.pt")["progress"] == [0, 0, 0]
            raise StopAtError

    with pytest.raises(StopAtError):
        train(config, data, data.splits["train"], out, progress=killed)
    assert seen == [1, 2]
    again = train(config, data, data.splits["train"], out)
    assert same(weights(out), weights(tmp_path / "whole"))
    assert again.held_out == whole.held_out


def test_a_kill_while_the_state_is_saved_leaves_nothing_in_the_end(data, config, out):
    out.mkdir()
    (out / ".resume.pt.4711.tmp").write_bytes(b"half of it")
    config = with_training(config, epochs=1)  # which saves no state
    train(config, data, data.splits["train"], out)
    assert not list(out.glob(".*"))


def test_resume_refuses_other_settings(data, config, out):
    with pytest.raises(StopAtError):
        train(config, data, data.splits["train"], out, progress=stop_in_epoch_2)
    other = with_training(config, learning_rate=1e-3)
    said = (
        r"other settings, code or videos: training\.learning_rate is 0\.0002 there and 0\.001 here"
    )
    with pytest.raises(TrainingError, match=said):
        train(other, data, data.splits["train"], out)
    train(other, data, data.splits["train"], out, resume=False)


@pytest.fixture
def folder(data, tmp_path):
    return Path(shutil.copytree(data.path, tmp_path / "data"))


def swap_labels(folder, video):
    path = folder / "annotations.json"
    content = json.loads(path.read_text())
    database = content["database"].values()
    label = {item["label"] for entry in database for item in entry["annotations"]}
    first, second, *_ = sorted(label)
    swapped = {first: second, second: first}
    for entry in database:
        for item in entry["annotations"]:
            item["label"] = swapped.get(item["label"], item["label"])
            item.pop("label_id", None)
    path.write_text(json.dumps(content))


def double_features(folder, video):
    path = folder / "features" / f"{video}.npy"
    np.save(path, 2 * np.load(path))


@pytest.mark.parametrize("holdout", [0.0, 0.34])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_labels, r"resume.pt is of a training on other data: .* --no-resume"),
        (double_features, r"the features of video '{video}' have changed: .*--trust-times"),
    ],
)
def test_resume_refuses_other_data(folder, config, out, change, message, holdout):
    config = with_training(config, holdout=holdout)
    dataset = open_dataset(folder)
    videos = dataset.splits["train"]
    with pytest.raises(StopAtError):
        train(config, dataset, videos, out, progress=stop_in_epoch_2)
    # A held-out video decides as well which weights are kept.
    changed = videos[-1] if not holdout else _hold_out(dataset, videos, holdout, 42)[1][0]
    change(folder, changed)
    dataset = open_dataset(folder)
    with pytest.raises(TrainingError, match=message.format(video=changed)):
        train(config, dataset, videos, out)
    if change is double_features:
        train(config, dataset, videos, out, trust_times=True)
    else:
        with pytest.raises(TrainingError, match="on other data"):
            train(config, dataset, videos, out, trust_times=True)


def test_resume_by_another_version(data, config, out):
    """One that kept nothing of the data goes on; one of another kind says so."""
    with pytest.raises(StopAtError):
        train(config, data, data.splits["train"], out, progress=stop_in_epoch_2)
    path = out / "resume.pt"
    state = read_checkpoint(path)
    del state["data"]
    torch.save(state, path)
    again = []
    train(config, data, data.splits["train"], out, progress=again.append)
    assert len(again) < again[-1].total_steps
    del state["kept"]
    torch.save(state, path)
    with pytest.raises(TrainingError, match=r"it lacks \['kept'\]; use another .* --no-resume"):
        train(config, data, data.splits["train"], out)
    path.write_bytes(path.read_bytes()[:1000])  # as of a copy that was cut short
    message = r"resume.pt .* a truncated archive of 1,000 bytes.*; use another .* --no-resume"
    with pytest.raises(TrainingError, match=message):
        train(config, data, data.splits["train"], out)


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


def without_instances(folder, videos):
    path = folder / "annotations.json"
    content = json.loads(path.read_text())
    for video in videos:
        content["database"][video]["annotations"] = []
    path.write_text(json.dumps(content))
    return open_dataset(folder)


def test_hold_out_can_be_rated_whatever_the_seed(data, folder, config, out):
    videos = data.splits["train"]
    sparse = without_instances(folder, videos[:3])
    draws = {seed: _hold_out(data, videos, 0.34, seed)[1] for seed in range(30)}
    failed = [seed for seed, held in draws.items() if set(held) <= set(videos[:3])]
    assert failed  # by the seed a draw was of empty videos, and the first rating ended the run
    for seed, held in draws.items():
        again = _hold_out(sparse, videos, 0.34, seed)
        assert not set(again[0]) & set(again[1])
        assert set(again[1]) - set(videos[:3])
        assert (again[1] == held) == (seed not in failed)
    sparse_config = with_training(config, holdout=0.34, seed=failed[0], epochs=1)
    train(sparse_config, sparse, videos, out)


def test_hold_out_without_instances(data, folder, config, out):
    sparse = without_instances(folder, data.splits["train"][1:])
    with pytest.raises(DataError, match="one to train on and one to rate by, found them in 1"):
        train(with_training(config, holdout=0.34), sparse, data.splits["train"], out)
    assert not out.exists()


def test_fewer_windows_than_a_batch_still_train(data, config, out):
    config = with_training(config, batch_size=10_000)
    assert train(config, data, data.splits["train"], out).steps == config.training.epochs


@pytest.mark.parametrize("amp", ["float32", "bfloat16"])
@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_training_that_diverges_says_where(data, config, out, rate, amp):
    config = with_training(config, learning_rate=rate, epochs=20, amp=amp)
    message = (
        r"(loss is|outputs are|gradients are) not finite at step \d+ \(epoch \d+, "
        rf"learning rate {re.escape(f'{rate:g}')}\), clips of .*; the first is .*; lower training"
    )
    with pytest.raises(TrainingError, match=message):
        train(config, data, data.splits["train"], out)


def test_features_that_are_too_large_say_so(folder, config, out):
    for path in (folder / "features").iterdir():
        np.save(path, 1e25 * np.load(path))
    dataset = open_dataset(folder)
    message = (
        r"outputs are not finite at step 1 \(epoch 1, learning rate 0.0002\).* the first is the "
        r"output of input_proj.0.1, for features up to \d.*e\+2\d"
    )
    with pytest.raises(TrainingError, match=message):
        train(config, dataset, dataset.splits["train"], out)


@pytest.mark.parametrize("holdout", [0.0, 0.34])
def test_the_last_step_may_not_break_the_weights(data, config, out, holdout):
    config = with_training(
        config, learning_rate=3e38, epochs=1, batch_size=10_000, weight_decay=0.0, holdout=holdout
    )
    with pytest.raises(TrainingError, match=r"not finite.*the first is the parameter '.*values"):
        train(config, data, data.splits["train"], out)
    assert not (out / "checkpoint.pt").exists()


def test_an_error_of_another_kind_stays_what_it_is(data, config, out, monkeypatch):
    def broken(*_arguments):
        raise RuntimeError("something else")

    monkeypatch.setattr(TadTR, "_decode", broken)
    with pytest.raises(RuntimeError, match=r"^something else$"):
        train(config, data, data.splits["train"], out)


def test_float16_needs_cuda(data, config, out):
    with pytest.raises(Exception, match="float16 needs CUDA"):
        train(with_training(config, amp="float16", device="cpu"), data,
              data.splits["train"], out)  # fmt: skip


@pytest.mark.parametrize("device", ["tpu9", "meta", "mps"])
def test_unknown_device(data, config, out, device):
    with pytest.raises(ConfigError, match=f"expected auto, cpu or cuda, got '{device}'"):
        train(with_training(config, device=device), data, data.splits["train"], out)


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


def test_a_module_under_several_names_is_averaged_once_per_name_where_asked():
    layer, alone = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    model = torch.nn.ModuleList([*[layer] * 6, alone])
    average = WeightAverage(model, 0.9, "plain", repeats=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        layer.weight += 1.0
        alone.weight += 1.0
    average.update(model)
    for at, names in ((0, 6), (5, 6), (6, 1)):
        expected = before[f"{at}.weight"] + 1 - 0.9**names
        torch.testing.assert_close(average.weights[f"{at}.weight"], expected)
    with pytest.raises(ValueError, match="repeats: expected False with the mode warmup, got True"):
        WeightAverage(model, 0.9, "warmup", repeats=True)
