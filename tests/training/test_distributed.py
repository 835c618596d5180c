# SPDX-License-Identifier: Apache-2.0
"""One training in two processes, started by torchrun, against the same in one."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from processes import HANG, MARK, kill_marked, started, wait_for
from several_processes import COMPARED, RESUMED
from small_settings import small

from tal_fast import cli
from tal_fast.data.synthetic import make_synthetic
from tal_fast.errors import ConfigError, TrainingError
from tal_fast.training import predict, run_experiment, train
from tal_fast.training.checkpoint import read_checkpoint
from tal_fast.training.device import resolve_device
from tal_fast.training.distributed import Place, joined, launched

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# Bounds what a mistake here may cost: nobody waits longer for another process.
ENVIRONMENT = {**os.environ, "TAL_FAST_PEER_TIMEOUT": str(HANG)}
PLACE = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1",
    "MASTER_ADDR": "localhost", "MASTER_PORT": "1",
}  # fmt: skip

# A step moves a weight by at most about the learning rate, 2e-4. Sums in another order leave the
# weights of these few steps within 5e-7 of each other (measured; 2e-6 after 80 steps at 1e-3). The
# losses agreed within 4e-7.
WEIGHTS = {"rtol": 1e-4, "atol": 2e-5}
LOSSES = 1e-5


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    # More would wait for each other where the cores are taken.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def two(data, tmp_path_factory) -> Path:
    """Where two processes put everything; at the end torchrun has got a Ctrl-C."""
    folder = tmp_path_factory.mktemp("two")
    every_class = make_synthetic(folder / "data", size="demo", test_videos=1, channels=8)
    out = folder / "out"
    out.mkdir()
    script = Path(__file__).with_name("several_processes.py")
    saved = out / "command" / "resume.pt"  # of the first epoch
    command = [*TORCHRUN, script, data.path, every_class, out]
    environment = {**ENVIRONMENT, MARK: str(folder)}  # torchrun's processes have their own groups
    try:
        with (
            open(folder / "errors", "w") as errors,
            started(command, env=environment, stdout=errors, stderr=errors) as running,
        ):
            wait_for(lambda: saved.exists() or running.poll() is not None, "the first epoch")
            saved.unlink(missing_ok=True)
            running.send_signal(signal.SIGINT)
            running.wait(HANG)
    finally:
        kill_marked(str(folder))
    (out / "errors").write_text((folder / "errors").read_text())
    assert {"0.json", "1.json"} <= {p.name for p in out.iterdir()}, (out / "errors").read_text()
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


def assert_same_training(alone, two):
    for path in alone.glob("checkpoint*.pt"):
        a, b = weights(path), weights(two / path.name)
        assert a.keys() == b.keys()
        for key, value in a.items():
            torch.testing.assert_close(b[key], value, **WEIGHTS)
    mine, theirs = rows(alone), rows(two)
    assert len(mine) == len(theirs) == 2
    for a, b in zip(mine, theirs, strict=True):
        for column in ("epoch", "step", "learning_rate", "holdout_map"):
            assert a.get(column) == b.get(column)
        for column in ("total", "classification", "l1", "iou", "actionness", "gradient_norm"):
            assert float(b[column]) == pytest.approx(float(a[column]), rel=LOSSES), column


@pytest.mark.parametrize("name", [name for name in COMPARED if name != "experiment"])
def test_two_processes_train_as_one_does(data, two, seen, tmp_path, name):
    alone = train(small(COMPARED[name]), data, data.splits["train"], tmp_path)
    assert [item[name]["steps"] for item in seen] == [alone.steps] * 2
    assert {p.name for p in (two / name).iterdir()} == {p.name for p in tmp_path.iterdir()}
    assert_same_training(tmp_path, two / name)


def test_an_experiment_scores_as_one_process_does(data, two, seen, tmp_path):
    test = data.splits["test"]
    alone = run_experiment(
        small(COMPARED["experiment"]),
        data,
        train_videos=data.splits["train"],
        test_videos=test,
        out=tmp_path,
    )
    assert_same_training(tmp_path, two / "experiment")
    assert json.loads((two / "experiment" / "environment.json").read_text())["processes"] == 2
    maps = [item["experiment"]["map"] for item in seen]
    assert maps == [pytest.approx(alone.average_map, abs=1e-3)] * 2
    assert seen[0]["stages"] == ["evaluate", "predict", "train"]
    assert seen[1]["stages"] == []
    # A single process takes the checkpoint, and finds what the two have found.
    again = tmp_path / "again.json"
    predict(two / "experiment" / "checkpoint.pt", data, test, again)
    assert again.read_bytes() == (two / "experiment" / "predictions.json").read_bytes()


def test_a_clock_for_all(seen):
    assert seen[0]["wall-clock"]["steps"] >= 1
    assert seen[0]["wall-clock"] == seen[1]["wall-clock"]


def test_all_stop_after_the_same_step_and_go_on_from_there(data, two, seen):
    """With dropout, and with a signal to one of them alone."""
    ends = [item["interrupted"] for item in seen]
    assert ends == ["KeyboardInterrupt: ", "TerminatedError: SIGTERM"]
    assert seen[0]["cut"] == seen[1]["cut"] == seen[0]["whole"]
    for name in ("checkpoint.pt", "checkpoint_off.pt"):
        a, b = (read_checkpoint(two / folder / name)["model"] for folder in ("whole", "cut"))
        assert all(torch.equal(a[key], b[key]) for key in a)
    state = read_checkpoint(two / "left" / "resume.pt")
    assert state["progress"] == [1, 2, 6]
    masks = [random for random, _ in state["random"]]
    assert len(masks) == 2
    assert not torch.equal(*masks)
    with pytest.raises(TrainingError, match="of a training in 2 processes, this one has 1"):
        train(small(RESUMED), data, data.splits["train"], two / "left")


def test_one_that_fails_ends_all(seen):
    assert seen[1]["failing"] == "TrainingError: of the second process"
    message = "TrainingError: another process of this training has ended"
    assert seen[0]["failing"].startswith(message)
    assert "Timed out" not in seen[0]["failing"]


def test_what_cannot_be_shared(seen):
    for item in seen:
        assert "differ in settings, videos or clips" in item["differing"]
        assert "expected a multiple of 2 (processes), got 5" in item["odd batch"]
        assert "at least one training window per process, got 1 for 2" in item["one window"]


def test_ctrl_c_at_torchrun_saves(two):
    state = read_checkpoint(two / "command" / "resume.pt")
    assert state["progress"][2] > 0
    assert len(state["random"]) == 2
    errors = (two / "errors").read_text()
    assert errors.count("\ninterrupted: the training is saved in ") == 1
    assert errors.count("\nnext: the same torchrun command, ending in train --data ") == 1
    assert "FutureWarning" not in errors


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
