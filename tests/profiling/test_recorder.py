# SPDX-License-Identifier: Apache-2.0
"""Steps recorded from ranges, inside made loops and inside a training that really runs."""

from __future__ import annotations

import csv
import json
import threading

import pytest
import torch

from tal_fast import cli, ranges
from tal_fast.profiling import procfs, recording
from tal_fast.profiling.profile import phase_table, profile_of, summary
from tal_fast.profiling.recorder import PhaseTime, StepRecord, StepRecorder
from tal_fast.profiling.recording import Setting, recorded
from tal_fast.profiling.sampler import Sample, Sampler
from tal_fast.profiling.verdict import verdict_of
from tal_fast.training.checkpoint import read_checkpoint


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """Ceilings that are there already: measuring them takes longer than these trainings."""
    made = {
        "ceilings": [
            {"name": "copy, memory", "threads": 1, "best": 10.0, "median": 9.0, "unit": "GB/s"},
            {"name": "call of add", "threads": 1, "best": 1.0, "median": 1.0, "unit": "us"},
        ]
    }
    monkeypatch.setattr(recording, "machine_ceilings", lambda: made)
    monkeypatch.setattr(recording, "kept_ceilings", lambda: None)


@pytest.fixture(autouse=True)
def nothing_stays():
    yield
    assert ranges.range("a") is ranges.range("b")


def burn(seconds):
    """Uses so much CPU time of this thread."""
    import time

    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def a_step(with_batch=True):
    with ranges.range("tal_fast.step"):
        # Twice: the loader calls it the same.
        with ranges.range("tal_fast.data"), ranges.range("tal_fast.data"):
            burn(0.002)
        if with_batch:
            with ranges.range("tal_fast.forward"):
                burn(0.004)
            with ranges.range("tal_fast.loss"), ranges.range("tal_fast.matching"):
                burn(0.002)
            burn(0.003)


class TestRecorder:
    def test_phases_and_the_rest_sum_to_the_step(self):
        recorder = StepRecorder(steps=3, warm_up=2)
        recorder.start()
        for _ in range(9):
            a_step()
        recorder.stop()
        assert [record.number for record in recorder.records] == [3, 4, 5]
        for record in recorder.records:
            own = [p for name, p in record.phases.items() if "/" not in name]
            for clock in ("wall", "thread_cpu", "cpu"):
                total = sum(getattr(phase, clock) for phase in own)
                assert total == pytest.approx(getattr(record.whole, clock), rel=1e-6)
            assert set(record.phases) == {"data", "forward", "loss", "loss/matching", "other"}
            assert record.phases["loss/matching"].wall <= record.phases["loss"].wall
            assert record.phases["forward"].thread_cpu >= 0.004
            assert record.phases["data"].thread_cpu >= 0.002
            assert record.phases["other"].thread_cpu >= 0.003

    def test_it_takes_itself_out_of_the_way(self):
        ended = []
        recorder = StepRecorder(steps=1, warm_up=0, done=lambda: ended.append(True))
        recorder.start()
        a_step()
        assert ended == [True]
        assert ranges.range("a") is ranges.range("b")
        samples = len(recorder.sampler.samples)
        a_step()
        recorder.stop()
        assert len(recorder.records) == 1
        assert len(recorder.sampler.samples) == samples >= 2

    def test_the_end_of_an_epoch_is_no_step(self):
        recorder = StepRecorder(steps=5, warm_up=1)
        recorder.start()
        for with_batch in (False, True, False, True, False):
            a_step(with_batch)
        recorder.stop()
        assert recorder.seen == 2
        assert [record.number for record in recorder.records] == [2]

    def test_what_is_between_steps_is_apart(self):
        recorder = StepRecorder(steps=5, warm_up=0)
        recorder.start()
        with ranges.range("tal_fast.save"):  # before the first
            pass
        assert recorder.between == {}
        for _ in range(2):
            a_step()
            with ranges.range("tal_fast.rate"), ranges.range("tal_fast.forward"):
                burn(0.002)
        recorder.stop()
        assert set(recorder.between) == {"rate"}
        assert recorder.between["rate"].thread_cpu >= 0.004
        assert len(recorder.records) == 2

    def test_other_threads_are_left_out(self):
        recorder = StepRecorder(steps=5, warm_up=0)
        recorder.start()
        with ranges.range("tal_fast.step"), ranges.range("tal_fast.forward"):
            thread = threading.Thread(target=a_step)
            thread.start()
            thread.join()
        recorder.stop()
        (record,) = recorder.records
        assert set(record.phases) == {"forward", "other"}

    def test_stopping_within_a_step(self):
        recorder = StepRecorder(steps=5, warm_up=0)
        recorder.start()
        with ranges.range("tal_fast.step"), ranges.range("tal_fast.forward"):
            recorder.stop()
            recorder.stop()
        a_step()
        assert len(recorder.records) <= 1


class TestKernel:
    def test_this_process(self):
        queue = procfs.QueueWait()
        ended = threading.Event()
        thread = threading.Thread(target=ended.wait)
        thread.start()
        queue.look()
        before = queue.seconds()
        ended.set()
        thread.join()
        after = queue.seconds()
        # What the thread waited counts on when it has ended.
        assert (before is None and after is None) or after >= before >= 0
        queue.close()
        queue.close()
        machine = procfs.machine_cpu()
        assert machine is None or machine.busy > 0

    def test_samples(self):
        sampler = Sampler(interval=0.01)
        sampler.start()
        burn(0.05)
        sampler.stop()
        sampler.stop()
        first, last = sampler.samples[0], sampler.samples[-1]
        assert last.time > first.time
        assert last.cpu - first.cpu >= 0.05
        assert last.resident > 0

    def test_what_the_system_does_not_say_is_none(self, monkeypatch, tmp_path):
        monkeypatch.setattr(procfs, "_PROC", tmp_path)
        assert procfs.machine_cpu() is None
        (tmp_path / "stat").write_text("cpu 1 2\n")
        assert procfs.machine_cpu() is None


def sample(time, *, busy=0.0, cpu=0.0, steal=0.0, read=0):
    return Sample(time, cpu, 0.0, busy, steal, 0.0, 1000, read, 0, 0)


def record(number, start, wall, wait=0.0, **phases):
    times = {name: PhaseTime(took, took, took, 0.0) for name, took in phases.items()}
    return StepRecord(number, start, PhaseTime(wall, wall, wall, wait), times)


class TestProfile:
    def made(self, others, wait=0.0, steal=0.0):
        """Twenty steps of a second on a core, beside which others use some."""
        records = [record(i, float(i), 1.0, wait, data=0.25, other=0.75) for i in range(20)]
        samples = [
            sample(t / 5, busy=t / 5 * (1 + others), cpu=t / 5, steal=steal * t / 5, read=100 * t)
            for t in range(101)
        ]
        return profile_of(records, samples, between={}, warm_up=3, environment={})

    def test_a_calm_machine(self):
        found = self.made(others=0.05)
        assert found["steps"] == {"warm_up": 3, "recorded": 20, "calm": 20, "used": 20}
        assert not found["disturbed"]
        assert found["phases"]["data"]["wall"] == {"value": 250.0, "unit": "ms", "origin": "clock"}
        assert found["phases"]["data"]["share"]["value"] == 0.25
        assert found["disturbance"]["others"]["value"] == pytest.approx(0.05)
        assert found["reading"]["read"]["value"] == 500.0
        assert "20 of them calm" in summary(found)

    @pytest.mark.parametrize("taken", [{"others": 0.5}, {"others": 0.0, "wait": 0.05},
                                       {"others": 0.0, "steal": 0.1}])  # fmt: skip
    def test_a_busy_machine(self, taken):
        found = self.made(**taken)
        assert (found["steps"]["calm"], found["steps"]["used"]) == (0, 20)
        assert found["disturbed"]

    def test_medians_are_of_calm_steps_where_there_are_enough(self):
        records = [record(i, float(i), 1.0, other=1.0) for i in range(10)]
        records += [record(10 + i, 10.0 + i, 3.0, wait=2.0, other=3.0) for i in range(30)]
        samples = [sample(t / 5, busy=t / 5, cpu=t / 5) for t in range(400)]
        found = profile_of(records, samples, between={}, warm_up=0, environment={})
        assert found["steps"]["calm"] == found["steps"]["used"] == 10
        assert found["step"]["wall"]["value"] == 1000.0

    def test_the_share_of_a_phase_of_some_steps(self):
        records = [record(i, float(i), 1.0, other=1.0) for i in range(9)]
        records.append(record(9, 9.0, 11.0, other=1.0, rate=10.0))
        samples = [sample(t / 5, busy=t / 5, cpu=t / 5) for t in range(110)]
        between = {"save": PhaseTime(5.0, 1.0, 1.0, 0.0)}
        found = profile_of(records, samples, between=between, warm_up=0, environment={})
        assert found["phases"]["rate"]["wall"]["value"] == 0.0
        assert found["phases"]["rate"]["share"]["value"] == 0.5
        assert found["between_steps"]["save"]["share"]["value"] == 0.2
        assert verdict_of(found).kind == "rate"

    def test_what_cannot_be_had_is_null_with_a_reason(self):
        samples = [
            Sample(float(t), float(t), None, None, None, None, 1, None, None, None)
            for t in range(3)
        ]
        records = [StepRecord(1, 0.0, PhaseTime(1.0, 1.0, 1.0, None), {"other": PhaseTime(1.0)})]
        found = profile_of(records, samples, between={}, warm_up=0, environment={})
        assert found["steps"]["calm"] is None
        assert found["disturbed"] is None
        for figure in (*found["disturbance"].values(), *found["reading"].values(),
                       found["step"]["queue_wait"]):  # fmt: skip
            assert figure["value"] is None
            assert figure["reason"]
        assert summary(found) == "1 step after 0 of warm-up."
        assert phase_table(found).row_count == 2

    def test_nothing_is_written_without_a_step(self, tmp_path):
        setting = Setting("a model", torch.device("cpu"), "float32", 2)
        with recorded(tmp_path / "profile", setting, steps=5):
            pass
        assert not (tmp_path / "profile").exists()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from tal_fast.data.synthetic import make_synthetic

    out = tmp_path_factory.mktemp("recorder") / "data"
    make_synthetic(out, size="demo", train_videos=40, test_videos=2, channels=8)
    return out


def train(capsys, data, out, *options, after=()):
    small = ["model.d_model=32", "model.encoder_layers=1", "model.decoder_layers=1"]
    small += ["training.budget=steps", "training.steps=22", "training.batch_size=2"]
    small += ["training.tensorboard=never"]
    sets = [word for setting in small for word in ("--set", setting)]
    arguments = ["train", "--data", str(data), "--out", str(out), *options, *sets, *after]
    assert cli.main(arguments) == 0
    return capsys.readouterr()


class TestTraining:
    def test_weights_are_the_same_bits_and_files_are_there(self, capsys, data, tmp_path):
        train(capsys, data, tmp_path / "plain")
        shown = train(capsys, data, tmp_path / "profiled", "--profile", "4")
        plain, profiled = (
            read_checkpoint(tmp_path / name / "checkpoint.pt")["model"]
            for name in ("plain", "profiled")
        )
        assert plain.keys() == profiled.keys()
        assert all(torch.equal(plain[key], profiled[key]) for key in plain)
        assert not (tmp_path / "plain" / "profile").exists()

        folder = tmp_path / "profiled" / "profile"
        profile = json.loads((folder / "profile.json").read_text())
        assert profile["format"] == 2
        assert profile["steps"]["recorded"] == 4
        phases = {"data", "transfer", "forward", "loss", "backward", "optimizer", "other"}
        assert phases <= set(profile["phases"])
        assert "loss/matching" in profile["phases"]
        with open(folder / "steps.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        steps = [row for row in rows if row["phase"] == "step"]
        assert [row["step"] for row in steps] == ["11", "12", "13", "14"]
        for step in steps:
            own = [r for r in rows if r["step"] == step["step"] and "/" not in r["phase"]]
            total = sum(float(row["wall"]) for row in own if row["phase"] != "step")
            assert total == pytest.approx(float(step["wall"]), rel=0.02)
        with open(folder / "timeline.csv", newline="") as file:
            assert len(list(csv.DictReader(file))) >= 2
        assert "4 steps after 10 of warm-up" in shown.out
        with open(folder / "ops.csv", newline="") as file:
            ops = list(csv.DictReader(file))
        assert sum(float(row["share"]) for row in ops) == pytest.approx(1.0)
        products = [row for row in ops if row["kind"] == "products"]
        assert sum(int(row["flops"]) for row in products) > 0
        work = profile["work"]
        assert work["steps"] == 5
        assert {"products", "dispatch", "dropout", "deformable attention"} <= set(work["kinds"])
        assert {row["kind"] for row in ops} == set(work["kinds"])
        assert work["flops"]["value"] == sum(int(row["flops"]) for row in ops)
        assert "kind of work" in shown.out
        assert profile["training"]["model"] == "tadtr-small"
        assert (folder / "trace.json.gz").stat().st_size > 1000
        assert profile["limits"]["bytes"]["value"] == 10.0
        assert len(profile["limits"]["products"]) == 6
        assert "backward" in shown.out

    def test_a_training_that_ends_before_its_ops_are_seen(self, capsys, data, tmp_path):
        train(capsys, data, tmp_path, "--profile", "4", after=["--set", "training.steps=12"])
        folder = tmp_path / "profile"
        profile = json.loads((folder / "profile.json").read_text())
        assert profile["steps"]["recorded"] == 2
        assert profile["work"] == {"kinds": None, "reason": "the training ended before"}
        assert not (folder / "ops.csv").exists()

    def test_an_interrupted_training_measures_nothing(self, data, tmp_path, monkeypatch):
        def measure():
            raise AssertionError

        monkeypatch.setattr(recording, "machine_ceilings", measure)
        setting = Setting("a model", torch.device("cpu"), "float32", 2)
        out = tmp_path / "profile"

        def interrupted():
            with recorded(out, setting, steps=5, warm_up=0):
                a_step()
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        profile = json.loads((out / "profile.json").read_text())
        assert profile["steps"]["recorded"] == 1
        assert profile["limits"]["bytes"]["reason"]

    def test_a_training_that_ends_within_the_warm_up_says_so(self, capsys, data, tmp_path):
        short = ["--set", "training.steps=3"]
        shown = train(capsys, data, tmp_path, "--profile", after=short)
        assert "note: no profile: the training ended within its warm-up, after 3" in shown.err
        assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["train", "--profile"], ["train", "--profile", "50"]),
        (["train", "--profile", "--seed", "1"], ["train", "--profile", "50", "--seed", "1"]),
        (["train", "--profile", "7", "--seed", "1"], ["train", "--profile", "7", "--seed", "1"]),
        (["train", "--profile=7"], ["train", "--profile=7"]),
        (["profile", "model"], ["profile", "model"]),
        ([], []),
    ],
)
def test_profile_may_go_without_a_number(given, expected):
    from tal_fast.cli.app import _with_steps

    assert _with_steps(given) == expected
