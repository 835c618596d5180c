# SPDX-License-Identifier: Apache-2.0
"""Trainings that are run for their profile: what limits them is known, and must be found.

Others may use this machine meanwhile; what a profile says of them is taken out where something else
is to be found.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import started

from tal_fast import cli, ranges
from tal_fast.data import open_dataset
from tal_fast.data.loader import FeatureLoader
from tal_fast.errors import DataError
from tal_fast.profiling import interventions, recording, training_profile
from tal_fast.profiling.figures import value_of
from tal_fast.profiling.rig import Rig, Variant, first_clips, in_turn, short_batch
from tal_fast.profiling.training_profile import profile_training
from tal_fast.profiling.verdict import verdict_of
from tal_fast.training import load_config

MODELS = Path(__file__).with_name("work_models.py")
CEILINGS = {
    "ceilings": [
        {"name": "copy, memory", "threads": 1, "best": 10.0, "median": 9.0, "unit": "GB/s"},
        # Many times what it is: others who take the core make single calls as slow.
        {"name": "call of add", "threads": 1, "best": 100.0, "median": 100.0, "unit": "us"},
    ]
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from tal_fast.data.synthetic import make_synthetic

    out = tmp_path_factory.mktemp("profile") / "data"
    make_synthetic(out, size="demo", train_videos=40, test_videos=2, channels=8)
    return open_dataset(out)


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    monkeypatch.setattr(training_profile, "machine_ceilings", lambda: CEILINGS)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    assert ranges.range("a") is ranges.range("b")


def profiled(data, out, model, *settings, **options):
    name = model if ":" in model or "-" in model else f"{MODELS}:{model}"
    config = load_config(preset=name, overrides=[*settings, "training.tensorboard=never"])
    options = {"steps": 4, "threads": 1, **options}
    return profile_training(config, data, data.splits["train"], out, **options)


def alone(profile, *suspects):
    """The profile as it would be without others, who also make readers and disks late."""
    for name in ("others", "stolen", "throttled", "queue_wait"):
        profile["disturbance"][name]["value"] = 0.0
    for part in ("phases", "between_steps"):
        for name in {"data", "save", "rate"} & set(profile[part]) - set(suspects):
            profile[part][name]["share"]["value"] = 0.0
    return {**profile, "disturbed": False}


def profiled_as(data, tmp_path, model, kind):
    """A profile with this verdict: of three, for others may slow down the wrong half of a step."""
    kinds = []
    for number in range(3):
        profile = alone(profiled(data, tmp_path / str(number), model))
        kinds.append(verdict_of(profile).kind)
        if kinds[-1] == kind:
            return profile
    pytest.fail(f"expected {kind}, got {kinds}")


class TestLive:
    def test_many_tiny_ops_are_the_host(self, data, tmp_path):
        found = verdict_of(alone(profiled(data, tmp_path, "TinyOps")))
        assert found.kind == "host"
        assert found.sentence.startswith("Host: calling ops takes ")

    def test_a_large_product_is_compute(self, data, tmp_path):
        profile = profiled_as(data, tmp_path, "LargeProduct", "compute")
        assert value_of(profile, "work", "kinds", "products", "share") > 0.5

    def test_a_large_copy_is_memory(self, data, tmp_path):
        profile = profiled_as(data, tmp_path, "LargeCopy", "memory")
        assert profile["work"]["kinds"]["copies"]["limit"] == "memory"

    def test_a_loader_that_sleeps_is_data(self, data, tmp_path, monkeypatch):
        class Sleepy(FeatureLoader):
            def __iter__(self):
                for batch in super().__iter__():
                    time.sleep(0.2)
                    yield batch

        monkeypatch.setattr("tal_fast.training.start.FeatureLoader", Sleepy)
        profile = alone(profiled(data, tmp_path, "OnlyLong"), "data")
        found = verdict_of(profile)
        assert found.kind == "data"
        assert value_of(profile, "tried", "runs", "cached", "gain") > 1
        assert "x as fast (measured)" in found.sentence

    def test_others_come_first(self, data, tmp_path):
        # Not a child, whose time is this process's own: its shell ends, the group is left.
        busy = f"{shlex.quote(sys.executable)} -c 'while True: pass' &"
        with started(["sh", "-c", busy], stdout=subprocess.DEVNULL) as shell:
            shell.wait()
            profile = profiled(data, tmp_path, "LargeProduct", steps=30, quick=True)
        if value_of(profile, "disturbance", "others") is None:
            pytest.skip("the system does not say what others use")
        assert verdict_of(profile).kind == "machine"
        assert profile["disturbed"]


class TestProfile:
    def test_what_a_whole_profile_holds(self, data, tmp_path):
        profile = profiled(data, tmp_path, "tadtr-small", "model.d_model=32",
                           "training.batch_size=4")  # fmt: skip
        assert profile == json.loads((tmp_path / "profile.json").read_text())
        assert profile["command"] == "profile train"
        names = {path.name for path in tmp_path.iterdir()}
        assert {"profile.json", "steps.csv", "ops.csv", "timeline.csv"} <= names
        runs = profile["tried"]["runs"]
        assert {"as it is", "cached", "floor", "batch 1", "batch 2", "passive"} <= set(runs)
        assert runs["as it is"]["gain"]["value"] == 1.0
        assert runs["passive"]["wall"]["reason"] == "one thread waits for no other"
        assert profile["tried"]["marginal"]["unit"] == "ms per clip"
        for name in ("parameters", "gradients", "optimizer", "saved", "resident", "peak"):
            assert profile["memory"][name]["value"] > 0
        # AdamW keeps two averages of every parameter, and the step of each tensor.
        parameters = profile["memory"]["parameters"]["value"]
        assert 2 * parameters < profile["memory"]["optimizer"]["value"] < 2.1 * parameters
        assert profile["memory"]["device_peak"]["reason"] == "not on a GPU"
        assert profile["loader"]["needed"]["value"] > 0
        assert profile["training"]["reader_threads"] == 1

    def test_what_takes_too_long_is_left_out_and_told(self, data, tmp_path, monkeypatch):
        monkeypatch.setattr(training_profile, "_ALTERED", 0.0)
        runs = profiled(data, tmp_path, "TinyOps")["tried"]["runs"]
        assert runs["as it is"]["wall"]["value"] is None
        assert runs["cached"]["wall"] == {
            "value": None, "unit": "ms", "reason": "there was no time",
        }  # fmt: skip

    def test_recording_that_takes_too_long_ends(self, data, tmp_path, monkeypatch):
        monkeypatch.setattr(training_profile, "_RECORDED", 0.0)
        profile = profiled(data, tmp_path, "TinyOps", steps=10_000, quick=True)
        assert 1 <= profile["steps"]["recorded"] <= 4
        assert profile["work"]["steps"] == 1
        assert "tried" not in profile

    def test_a_variant_that_fails_says_why(self, data, tmp_path):
        runs = profiled(data, tmp_path, "OnlyLong")["tried"]["runs"]
        reason = runs["floor"]["wall"]["reason"]
        assert reason.startswith("it failed: OnlyLong.forward, given features [1, 8, 8]")
        assert "ValueError: expected 16 rows or more" in reason
        assert runs["cached"]["wall"]["value"] > 0

    def test_a_process_of_its_own(self, data):
        config = load_config(preset=f"{MODELS}:OnlyLong")
        found = interventions._passive(config, data, list(data.splits["train"]), 600.0)
        assert len(found.wall) == len(found.cpu) == 6
        broken = load_config(preset=f"{MODELS}:OnlyLong")
        found = interventions._passive(broken, data, ["nobody"], 600.0)
        assert found.startswith("it failed: ")

    def test_where_nothing_can_be_written_nothing_is_measured(self, data, tmp_path):
        said: list[str] = []
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="file: cannot be written: expected a directory"):
            profiled(data, tmp_path / "file", "TinyOps", said=said.append)
        assert not said

    def test_command(self, data, tmp_path, capsys, monkeypatch):
        out = tmp_path / "profile"
        arguments = ["profile", "train", "--data", data.path, "--out", out, "--steps", "3",
                     "--model", f"{MODELS}:LargeProduct", "--quick", "--threads", "1"]  # fmt: skip
        assert cli.main([str(word) for word in arguments]) == 0
        shown = capsys.readouterr()
        assert "recording 3 steps" in shown.err
        assert "kind of work" in shown.out
        assert str(out / "index.html") in shown.out
        for name in ("roofline", "breakdown"):  # three steps may be too short for a timeline
            assert (out / f"{name}.png").is_file()
            assert (out / f"{name}.svg").is_file()


def test_slow_steps_are_made_once_before_any_is_left_out():
    variants = {name: Variant(print, warm_up=3, timed=2) for name in "abc"}
    turns, chosen = interventions._that_fit(variants, 100.0, 1.0)
    assert (turns, chosen) == (2, variants)
    turns, chosen = interventions._that_fit(variants, 8.0, 1.0)
    assert (turns, list(chosen)) == (1, ["a", "b", "c"])
    assert {(v.warm_up, v.timed) for v in chosen.values()} == {(1, 1)}
    turns, chosen = interventions._that_fit(variants, 4.0, 1.0)
    assert (turns, list(chosen)) == (1, ["a", "b"])
    assert list(interventions._that_fit(variants, 0.0, 1.0)[1]) == ["a"]


class TestRig:
    @pytest.fixture
    def rig(self, data):
        made = Rig(load_config(preset=f"{MODELS}:TinyOps"), data, data.splits["train"])
        yield made
        made.close()

    def test_parts_of_a_batch(self, rig):
        batch = rig.cached[0]
        one = first_clips(batch, 1)
        assert len(one) == len(one.counts) == one.features.shape[0] == 1
        assert len(one.labels) == len(one.edges) == batch.counts[0]
        short = short_batch(batch, 8, 12)
        assert short.features.shape == (1, 12, 8)
        assert short.mask.tolist() == [[False] * 8 + [True] * 4]
        assert torch.equal(short.features[0, :8], batch.features[0, :8])
        assert (short.counts, short.edges.tolist()) == ([1], [[2.0, 6.0]])

    def test_cached_batches_are_those_of_the_training(self, rig):
        for own, batch in zip(rig.cached, rig.batches(), strict=False):
            assert torch.equal(own.features, batch.features)

    def test_turns(self):
        order, before = [], torch.get_num_threads()

        def step(name):
            order.append((name, torch.get_num_threads()))

        def fails():
            raise ValueError("no such thing")

        variants = {
            "a": Variant(lambda: step("a"), warm_up=1, timed=2),
            "b": Variant(lambda: step("b"), threads=3, warm_up=0, timed=1),
            "c": Variant(fails),
        }
        took, failed = in_turn(variants, 2)
        turn = [("a", before)] * 3 + [("b", 3)]
        assert order == turn * 2
        assert torch.get_num_threads() == before
        assert {name: len(one.wall) for name, one in took.items()} == {"a": 4, "b": 2}
        assert failed == {"c": "it failed: no such thing"}
        assert in_turn({"a": Variant(fails)}, 1, seconds=-1.0)[1] == {"a": "there was no time"}


def test_recording_is_not_left_on_when_a_training_fails(data, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("stop")

    monkeypatch.setattr(training_profile, "train", fail)
    with pytest.raises(RuntimeError, match="stop"):
        profiled(data, tmp_path, "TinyOps")
    assert not list(tmp_path.iterdir())
    assert recording.OpRecorder().rows() == ([], [], [])
