# SPDX-License-Identifier: Apache-2.0
"""One training in two processes, started by torchrun, against the same in one."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from several_processes import COMPARED, RESUMED
from small_settings import small

from tal_fast import cli
from tal_fast.errors import ConfigError, TrainingError
from tal_fast.training import predict, run_experiment, train
from tal_fast.training.checkpoint import read_checkpoint
from tal_fast.training.device import resolve_device
from tal_fast.training.distributed import Place, joined, launched

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# Bounds what a mistake here may cost: nobody waits longer for another process.
ENVIRONMENT = {**os.environ, "TAL_FAST_PEER_TIMEOUT": "60"}
PLACE = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1",
    "MASTER_ADDR": "localhost", "MASTER_PORT": "1",
}  # fmt: skip

# A step moves a weight by at most about the learning rate, 2e-4. Sums in another order leave the
# weights of these few steps within 5e-7 of each other (measured; 2e-6 after 80 steps at 1e-3). The
# losses agreed within 4e-7.
WEIGHTS = {"rtol": 1e-4, "atol": 2e-5}
LOSSES = 1e-5


@pytest.fixture(scope="module")
def two(data, tmp_path_factory) -> Path:
    """Where two processes put everything."""
    out = tmp_path_factory.mktemp("two")
    script = Path(__file__).with_name("several_processes.py")
    done = subprocess.run(
        [*TORCHRUN, script, data.path, out],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def seen(two):
    """What each of the processes saw."""
    return [json.loads((two / f"{rank}.json").read_text()) for rank in (0, 1)]


def rows(folder):
    with open(folder / "log.csv") as file:
        return list(csv.DictReader(file))


def weights(path):
    model = read_checkpoint(path)["model"]
    # Two kinds of biases have no gradient, and Adam makes steps of the rounding errors that stand
    # in for it: those that a normalisation takes out again (each channel is a group of its own in
    # a model as small as this), and those of keys, which move all scores of a query alike.
    del model["input_proj.0.0.bias"]
    for name, value in model.items():
        if name.endswith("self_attn.in_proj_bias"):
            value[len(value) // 3 : 2 * len(value) // 3] = 0
    return model


@pytest.mark.parametrize("name", COMPARED)
def test_two_processes_train_as_one_does(data, two, seen, tmp_path, name):
    config = small(COMPARED[name])
    alone = train(config, data, data.splits["train"], tmp_path)
    assert [item[name]["steps"] for item in seen] == [alone.steps] * 2
    for mode, path in alone.checkpoints.items():
        a, b = weights(path), weights(two / name / path.name)
        assert a.keys() == b.keys()
        for key, value in a.items():
            torch.testing.assert_close(b[key], value, **WEIGHTS, msg=lambda m: f"{mode} {key}: {m}")  # noqa: B023
    mine, theirs = rows(tmp_path), rows(two / name)
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        for column in ("epoch", "step", "learning_rate", "holdout_map"):
            assert a[column] == b[column]
        for column in ("total", "classification", "l1", "iou", "actionness", "gradient_norm"):
            assert float(b[column]) == pytest.approx(float(a[column]), rel=LOSSES), column


def test_the_first_process_writes_once(two):
    assert {p.name for p in (two / "plain").iterdir()} == {
        "checkpoint.pt", "config.yaml", "environment.json", "log.csv",
    }  # fmt: skip
    assert json.loads((two / "plain" / "environment.json").read_text())["processes"] == 2


def test_a_clock_for_all(seen):
    assert seen[0]["wall-clock"]["steps"] >= 1
    assert seen[0]["wall-clock"] == seen[1]["wall-clock"]


def test_an_experiment_scores_as_one_process_does(data, two, seen, tmp_path):
    config = small(COMPARED["plain"])
    test = data.splits["test"]
    alone = run_experiment(
        config, data, train_videos=data.splits["train"], test_videos=test, out=tmp_path
    )
    maps = [item["experiment"]["map"] for item in seen]
    assert maps == [pytest.approx(alone.average_map, abs=1e-3)] * 2
    assert seen[0]["experiment"]["stages"] == ["evaluate", "predict", "train"]
    assert seen[1]["experiment"]["stages"] == []
    # A single process takes the checkpoint, and finds what the two have found.
    again = tmp_path / "again.json"
    predict(two / "experiment" / "checkpoint.pt", data, test, again)
    assert again.read_bytes() == (two / "experiment" / "predictions.json").read_bytes()


def test_all_stop_after_the_same_step_and_go_on_from_there(data, two, seen):
    """With dropout, and with a signal to one of them alone."""
    assert [item["interrupted"] for item in seen] == ["KeyboardInterrupt: "] * 2
    assert "resume.pt" in seen[0]["after the cut"]
    assert seen[0]["cut"] == seen[1]["cut"] == seen[0]["whole"]
    for name in ("checkpoint.pt", "checkpoint_off.pt"):
        a, b = (read_checkpoint(two / folder / name)["model"] for folder in ("whole", "cut"))
        assert all(torch.equal(a[key], b[key]) for key in a)
    state = read_checkpoint(two / "left" / "resume.pt")
    assert state["progress"] == [1, 2, 6]
    masks = [random[0] for random in state["random"]]
    assert len(masks) == 2
    assert not torch.equal(*masks)
    with pytest.raises(TrainingError, match="of a training in 2 processes, this one has 1"):
        train(small(RESUMED), data, data.splits["train"], two / "left")


def test_one_that_fails_ends_all(seen):
    assert seen[1]["failing"] == "TrainingError: of the second process"
    assert seen[0]["failing"].startswith(
        "TrainingError: another process of this training has ended"
    )


def test_what_cannot_be_shared(seen):
    for item in seen:
        assert "differ in settings, videos or windows" in item["differing"]
        assert "expected a multiple of 2 (processes), got 5" in item["odd batch"]
        assert "at least one training window per process, got 1 for 2" in item["one window"]


def test_ctrl_c_at_torchrun_saves(tmp_path):
    from tal_fast.data.synthetic import make_synthetic

    data = make_synthetic(tmp_path / "data", size="demo", channels=8)
    out = tmp_path / "out"
    settings = ("training.epochs=1000", "model.d_model=32", "model.num_heads=4",
                "training.tensorboard=never")  # fmt: skip
    command = [*TORCHRUN, "-m", "tal_fast", "train", "--data", data, "--out", out]
    command += [part for item in settings for part in ("--set", item)]
    log = tmp_path / "stderr"
    with open(log, "w") as errors:
        running = subprocess.Popen(command, env=ENVIRONMENT, stdout=errors, stderr=errors)
        try:
            end = time.monotonic() + 120
            while not (out / "log.csv").exists() and running.poll() is None:
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
            (out / "resume.pt").unlink(missing_ok=True)  # of the epoch; the next one is Ctrl-C's
            running.send_signal(signal.SIGINT)
            assert running.wait(60) != 0
        finally:
            running.terminate()
            running.wait()
    state = read_checkpoint(out / "resume.pt")
    assert state["progress"][2] > 0
    assert len(state["random"]) == 2
    assert log.read_text().count("\ninterrupted\n") == 1


# ---- in one process ------------------------------------------------------------------------------


def test_place_of_a_process(monkeypatch):
    assert launched() is None
    for key, value in PLACE.items():
        monkeypatch.setenv(key, value)
    assert launched() == Place(3, 4, 1)
    monkeypatch.setenv("LOCAL_RANK", "one")
    with pytest.raises(ConfigError, match=r"expected whole numbers.*'one'"):
        launched()
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(ConfigError, match="but not LOCAL_RANK, MASTER_PORT; start several"):
        launched()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launched() is None


def test_every_process_has_its_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    for key, value in PLACE.items():
        monkeypatch.setenv(key, value)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 1)
    assert resolve_device("cuda:0") == torch.device("cuda", 0)
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="needs a GPU of its own, torch sees 2: lower"):
        resolve_device("auto")


@pytest.mark.parametrize("text", ["", "soon", "0", "-3", "nan", "1e300"])
def test_bad_timeout(monkeypatch, text):
    for key, value in {**PLACE, "TAL_FAST_PEER_TIMEOUT": text}.items():
        monkeypatch.setenv(key, value)
    with (
        pytest.raises(ConfigError, match="TAL_FAST_PEER_TIMEOUT: expected seconds above 0"),
        joined(torch.device("cpu")),
    ):
        pass


def test_commands_for_one_process(monkeypatch, capsys):
    for key, value in {**PLACE, "TORCHELASTIC_RUN_ID": "none"}.items():
        monkeypatch.setenv(key, value)
    status = cli.main(["predict", "--checkpoint", "c", "--data", "d", "--out", "o"])
    error = capsys.readouterr().err
    assert status == 2
    assert "process 3 of 4: error: predict runs in one process: start it without torchrun" in error
