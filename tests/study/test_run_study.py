# SPDX-License-Identifier: Apache-2.0
"""Whole studies with a stand-in for the training."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import fake_experiment as fake
import numpy as np
import pytest
import yaml
from fake_experiment import run_study

from tal_fast.data import open_dataset
from tal_fast.data.locks import locked_directory
from tal_fast.errors import ConfigError, DataError, MissingExtraError, TalFastError
from tal_fast.study import report_study
from tal_fast.study.execution.local import threads_per_job, visible_gpus
from tal_fast.study.execution.store import load_trial
from tal_fast.study.trial import Trial

ALL = [f"p{percent}_r{r}" for percent in ("010", "050", "100") for r in (0, 1)]


def ran(spec) -> list[str]:
    return sorted(call["trial"] for call in fake.read_calls(spec.out) if "first" in call)


def names(spec) -> list[str]:
    return sorted(path.name for path in (spec.out / "trials").iterdir())


def record(spec, name) -> dict:
    return json.loads((spec.out / "trials" / name / "trial.json").read_text())


def comparable(spec) -> dict:
    drop = ("started", "seconds", "threads")
    return {name: {k: v for k, v in record(spec, name).items() if k not in drop} for name in ALL}


class TestRun:
    def test_says_at_the_start_what_is_left_out(self, spec, quiet, no_pictures, tmp_path):
        data = shutil.copytree(spec.data, tmp_path / "copy")
        first = open_dataset(data).splits["test"][0]
        with open(data / "dataset.yaml", "a") as file:
            file.write(f"exclude: {{lost at sea: [{first}]}}\n")
        (data / "features" / f"{first}.npy").unlink()
        spec = replace(spec, data=data, repetitions=1, fractions=(1.0,))
        run_study(spec, experiment=fake.learn, console=quiet)
        said = quiet.file.getvalue().splitlines()
        assert said[0] == (
            f"note: 1 of the 26 videos of {data} left out of training and prediction, lost at sea "
            f"(exclude): {first}"
        )

    def test_every_trial_once_and_nothing_anew(self, spec, quiet):
        result = run_study(spec, experiment=fake.learn, console=quiet)
        assert (result.ran, result.reused) == (6, 0)
        assert ran(spec) == names(spec) == ALL
        files = {"config.yaml", "curve.csv", "curve.png", "curve.svg", "report.html", "study.yaml"}
        files |= {"data.json", "fits.json", "fits.png", "fits.svg", "tiou.png", "tiou.svg"}
        assert files | {"trials", "trials.csv"} == {path.name for path in spec.out.iterdir()}

        before = {path: path.read_bytes() for path in sorted(spec.out.rglob("*")) if path.is_file()}
        again = run_study(spec, experiment=fake.fail, console=quiet)
        assert (again.ran, again.reused) == (0, 6)
        assert ran(spec) == ALL
        after = {path: path.read_bytes() for path in sorted(spec.out.rglob("*")) if path.is_file()}
        assert before == after

    @pytest.mark.usefixtures("no_pictures")
    def test_trial_record(self, spec, quiet):
        run_study(spec, experiment=fake.learn, console=quiet)
        found = record(spec, "p050_r1")
        assert found["fraction"] == 0.5
        assert found["repetition"] == 1
        assert len(found["sample"]["videos"]) == 10
        assert found["test_videos"] == 6
        assert len(found["sample"]["classes"]) + len(found["sample"]["missing_classes"]) == 20
        assert found["result"]["average_map"] == fake.score(found["seed"], 10)
        assert (spec.out / "trials" / "p050_r1" / "metrics.json").exists()
        call = next(c for c in fake.read_calls(spec.out) if c["trial"] == "p050_r1")
        assert call["seed"] == found["seed"]
        assert call["pid"] == os.getpid()

    @pytest.mark.usefixtures("no_pictures")
    def test_full_samples_differ_by_seed_only(self, spec, quiet):
        run_study(spec, experiment=fake.learn, console=quiet)
        first, second = record(spec, "p100_r0"), record(spec, "p100_r1")
        assert first["sample"] == second["sample"]
        assert first["seed"] != second["seed"]
        assert record(spec, "p050_r0")["sample"] != record(spec, "p050_r1")["sample"]

    @pytest.mark.usefixtures("no_pictures")
    def test_pool_gives_the_same_trials(self, spec, quiet):
        run_study(spec, experiment=fake.learn, console=quiet)
        pool = replace(spec, out=spec.out.parent / "pool", jobs=2)
        run_study(pool, experiment="fake_experiment:learn", console=quiet)
        assert comparable(pool) == comparable(spec)
        for name in ("trials.csv", "curve.csv"):
            one, two = ((s.out / name).read_text() for s in (spec, pool))
            if name == "curve.csv":
                assert one == two
        calls = fake.read_calls(pool.out)
        assert len({call["pid"] for call in calls}) == 2
        assert os.getpid() not in {call["pid"] for call in calls}
        assert {call["threads"] for call in calls} == {threads_per_job(2)}
        assert sorted(call["trial"] for call in calls) == ALL

    @pytest.mark.usefixtures("no_pictures")
    def test_pool_spreads_over_gpus(self, spec, quiet, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5a")
        assert visible_gpus(os.environ) == ["3", "GPU-5a"]
        pool = replace(spec, jobs=2)
        run_study(pool, experiment="fake_experiment:learn_where", console=quiet)
        assert {call["gpu"] for call in fake.read_calls(pool.out)} == {"3", "GPU-5a"}
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
        assert visible_gpus(os.environ) == ["0", "1", "2"]

    @pytest.mark.usefixtures("no_pictures")
    def test_extending_runs_only_what_is_new(self, spec, quiet):
        run_study(spec, experiment=fake.learn, console=quiet)
        more = replace(spec, fractions=(0.1, 0.125, 1.0), repetitions=3)
        result = run_study(more, experiment=fake.learn, console=quiet)
        assert result.ran == 5
        assert set(ran(spec)) == set(names(spec))
        assert len(ran(spec)) == 11
        # The curve is over all finished trials of these settings.
        assert [(p.share, p.n) for p in result.curves[0].points] == [
            (10, 3),
            (12.5, 3),
            (50, 2),
            (100, 3),
        ]

    @pytest.mark.usefixtures("no_pictures")
    def test_random_split(self, spec, quiet):
        run_study(replace(spec, split="random"), experiment=fake.learn, console=quiet)
        found = record(spec, "p100_r0")
        assert (len(found["sample"]["videos"]), found["test_videos"]) == (21, 5)

    @pytest.mark.usefixtures("no_pictures")
    def test_lines_without_a_terminal(self, spec, quiet):
        run_study(spec, experiment=fake.learn, console=quiet)
        lines = quiet.file.getvalue().splitlines()
        assert lines[0].startswith("6 of 6 trials to run, 1 at a time")
        assert lines[1].startswith("1/6  p100_r0  20 videos  mAP ")
        assert lines[-1].startswith("6/6  p010_r1  2 videos  mAP ")

    def test_names(self):
        assert Trial("m", 0.1, 0, 0).name == "p010_r0"
        assert Trial("m", 1.0, 12, 0).name == "p100_r12"
        assert Trial("m", 0.125, 0, 0).name == "p012.5_r0"
        assert Trial("m", 0.005, 0, 0).name == "p000.5_r0"
        assert Trial("m", 0.000001, 0, 0).name == "p000.0001_r0"

    def test_threads_are_shared(self):
        assert [threads_per_job(jobs, cores=8) for jobs in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
        with pytest.raises(ConfigError, match="jobs: expected at least 1, got 0"):
            threads_per_job(0)


@pytest.mark.usefixtures("no_pictures")
class TestFailures:
    def test_one_bad_trial_does_not_stop_the_others(self, spec, quiet):
        with pytest.raises(TalFastError, match=r"trial p050_r0 failed: .*no windows \(1 more fail"):
            run_study(spec, experiment=fake.fail_at_half, console=quiet)
        assert [name for name in names(spec) if name[0] != "."] == [n for n in ALL if "50" not in n]
        assert "ZeroDivisionError" in (spec.out / "logs" / "p050_r0.txt").read_text()
        assert len((spec.out / "curve.csv").read_text().splitlines()) == 3  # without p = 50 %
        # The next call runs the missing ones.
        run_study(spec, experiment=fake.learn, console=quiet)
        assert names(spec) == ALL
        assert len(ran(spec)) == 6

    def test_in_the_pool_too(self, spec, quiet):
        spec = replace(spec, jobs=2)
        with pytest.raises(TalFastError, match=r"trial p050_r. failed: ZeroDivisionError: no wind"):
            run_study(spec, experiment="fake_experiment:fail_at_half", console=quiet)
        assert "line" in (spec.out / "logs" / "p050_r0.txt").read_text()

    def test_a_failing_first_trial_stops(self, spec, quiet):
        with pytest.raises(TalFastError, match="trial p100_r0 failed: nothing works; details in"):
            run_study(spec, experiment=fake.fail, console=quiet)
        assert ran(spec) == ["p100_r0"]

    @pytest.mark.parametrize("jobs", [1, 2])
    def test_full_disk_stops_and_keeps_what_is_done(self, spec, quiet, jobs):
        spec = replace(spec, jobs=jobs, repetitions=1, fractions=(0.5, 0.6, 0.7, 0.8, 1.0))
        with pytest.raises(TalFastError, match=r"p050_r0 failed: .*No space left on device"):
            run_study(spec, experiment="fake_experiment:full_disk", console=quiet)
        # With two processes the other trials may be at any point when the disk is found full.
        done = {call["trial"] for call in fake.read_calls(spec.out)} if jobs == 1 else set()
        assert done <= set(names(spec)) - {"p050_r0"}
        result = run_study(spec, experiment="fake_experiment:learn", console=quiet)
        assert result.ran + result.reused == 5

    def test_a_killed_worker_fails_its_trial_alone(self, spec, quiet):
        spec = replace(spec, jobs=2)
        with pytest.raises(TalFastError, match=r"p050_r\d failed: its process ended with sig.* 9"):
            run_study(spec, experiment="fake_experiment:die_once", console=quiet)
        assert len([name for name in ALL if name not in names(spec)]) == 1
        run_study(spec, experiment="fake_experiment:die_once", console=quiet)
        assert names(spec) == ALL

    def test_output_of_trials_stays_out_of_the_messages(self, spec, quiet):
        spec = replace(spec, jobs=2, repetitions=1)
        assert run_study(spec, experiment="fake_experiment:chatty", console=quiet).ran == 3
        assert "not a message" in (spec.out / "logs" / "worker0.log").read_text()

    def test_leftovers_that_do_not_continue_are_run_from_nothing(self, spec, quiet):
        spec = replace(spec, repetitions=1)
        with pytest.raises(TalFastError):
            run_study(spec, experiment=fake.fail, console=quiet)
        partial = spec.out / "trials" / ".p100_r0.partial"
        (partial / "step.txt").write_text("7")
        run_study(spec, experiment=fake.poisoned, console=quiet)
        assert not partial.exists()
        assert not (spec.out / "trials" / "p100_r0" / "step.txt").exists()

    def test_leftovers_of_another_trial_are_thrown_away(self, spec, quiet):
        spec = replace(spec, repetitions=1)
        partial = spec.out / "trials" / ".p100_r0.partial"
        partial.mkdir(parents=True)
        (partial / "step.txt").write_text("7")
        (partial / "started.json").write_text('{"model": "other"}')
        (partial / "sub").mkdir()
        run_study(spec, experiment=fake.learn_slowly, console=quiet)
        call = next(c for c in fake.read_calls(spec.out) if c["trial"] == "p100_r0")
        assert call["first"] == 0

    def test_what_killed_runs_left_of_finished_trials_goes(self, spec, quiet):
        """As after a kill between the last steps of a trial, of a worker, or of a write."""
        spec = replace(spec, repetitions=1)
        run_study(spec, experiment=fake.learn, console=quiet)
        trials = spec.out / "trials"
        whole = sorted(path.name for path in (trials / "p010_r0").iterdir())
        (trials / "p010_r0" / ".lock").touch()
        (trials / ".p050_r0.partial").mkdir()
        (trials / ".p050_r0.partial" / "step.txt").write_text("7")
        (spec.out / ".curve.csv.4711.tmp").touch()
        (trials / ".shared-4711").touch()
        (trials / "..shared-4711.12ab.tmp").touch()
        (spec.out / "logs").mkdir(exist_ok=True)
        (spec.out / "logs" / "worker0.log").touch()
        (trials / ".p100_r0.partial").mkdir()
        with locked_directory(trials / ".p100_r0.partial", wait=0, busy=""):
            assert run_study(spec, experiment=fake.learn, console=quiet).ran == 0
            # Another machine is at it.
            assert [path.name for path in trials.glob(".*")] == [".p100_r0.partial"]
        assert sorted(path.name for path in (trials / "p010_r0").iterdir()) == whole
        assert not (spec.out / "logs").exists()
        assert not list(spec.out.glob(".*"))
        run_study(spec, experiment=fake.learn, console=quiet)
        assert not list(trials.glob(".*"))

    def test_second_driver_is_refused(self, spec, quiet):
        with (
            locked_directory(spec.out, wait=0, busy=""),
            pytest.raises(TalFastError, match="s: another process runs this study"),
        ):
            run_study(spec, experiment=fake.learn, console=quiet)


@pytest.mark.usefixtures("no_pictures")
class TestSettings:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"seed": 1}, "seed is 0 there and 1 here"),
            ({"overrides": {"training.epochs": 3}}, r"config.training.epochs is \d+ there and 3"),
            ({"split": "random"}, "split is 'data' there and 'random' here"),
            ({"model": "tadtr"}, "model is 'tadtr-small' there and 'tadtr' here"),
        ],
    )
    def test_other_settings_are_refused(self, spec, quiet, change, message):
        run_study(spec, experiment=fake.learn, console=quiet)
        with pytest.raises(ConfigError, match=message + r".*results are never mixed"):
            run_study(replace(spec, **change), experiment=fake.learn, console=quiet)
        assert len(ran(spec)) == 6

    def test_other_data_is_refused(self, spec, quiet, tmp_path):
        run_study(spec, experiment=fake.learn, console=quiet)
        other = tmp_path / "other"
        shutil.copytree(spec.data, other)
        run_study(replace(spec, data=other), experiment=fake.fail, console=quiet)  # a moved copy
        annotations = json.loads((other / "annotations.json").read_text())
        name, video = next(v for v in annotations["database"].items() if v[1]["annotations"])
        video["annotations"][0]["segment"][0] += 0.01
        (other / "annotations.json").write_text(json.dumps(annotations))
        with pytest.raises(
            ConfigError, match=f"video '{name}' has other annotations .*never mixed"
        ):
            run_study(replace(spec, data=other), experiment=fake.learn, console=quiet)
        (spec.out / "data.json").unlink()  # of an earlier version
        with pytest.raises(ConfigError, match=r"data\.fingerprint is"):
            run_study(replace(spec, data=other), experiment=fake.learn, console=quiet)

    @pytest.mark.usefixtures("no_pictures")
    def test_other_features_are_refused(self, spec, quiet, tmp_path):
        spec = replace(spec, data=Path(shutil.copytree(spec.data, tmp_path / "data")))
        run_study(spec, experiment=fake.learn, console=quiet)
        file = sorted((spec.data / "features").iterdir())[0]
        np.save(file, np.load(file) * 2)
        message = f"features of video '{file.stem}' have changed: .*--trust-times"
        with pytest.raises(ConfigError, match=message):
            run_study(spec, experiment=fake.learn, console=quiet)
        trusting = replace(spec, trust_times=True)
        assert run_study(trusting, experiment=fake.fail, console=quiet).ran == 0
        assert run_study(spec, experiment=fake.fail, console=quiet).ran == 0  # as they are now

    @pytest.mark.usefixtures("no_pictures")
    def test_a_study_of_an_earlier_version_goes_on(self, spec, quiet):
        run_study(spec, experiment=fake.learn, console=quiet)
        (spec.out / "data.json").unlink()
        assert run_study(spec, experiment=fake.fail, console=quiet).ran == 0
        assert "kept nothing of its feature files" in quiet.file.getvalue().replace("\n", " ")
        assert (spec.out / "data.json").exists()

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"classes": []}'])
    @pytest.mark.usefixtures("no_pictures")
    def test_damaged_data_file(self, spec, quiet, content):
        run_study(spec, experiment=fake.learn, console=quiet)
        (spec.out / "data.json").write_text(content)
        with pytest.raises(DataError, match=r"data\.json: (not valid JSON|expected the keys)"):
            run_study(spec, experiment=fake.learn, console=quiet)

    def test_a_foreign_trial_is_refused(self, spec, quiet, tmp_path):
        run_study(spec, experiment=fake.learn, console=quiet)
        other = replace(spec, seed=1, out=tmp_path / "other")
        run_study(other, experiment=fake.learn, console=quiet)
        shutil.rmtree(spec.out / "trials" / "p050_r0")
        shutil.copytree(other.out / "trials" / "p050_r0", spec.out / "trials" / "p050_r0")
        for call in (
            lambda: run_study(spec, experiment=fake.learn),
            lambda: report_study(spec.out),
        ):
            with pytest.raises(
                ConfigError, match="p050_r0: this trial was run with other settings"
            ):
                call()

    def test_threads_and_jobs_are_no_settings(self, spec, quiet):
        run_study(spec, experiment=fake.learn, console=quiet)
        changed = replace(spec, jobs=2, threads=1, overrides={"data.threads": 2})
        assert run_study(changed, experiment="fake_experiment:fail", console=quiet).ran == 0

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"fractions": ()}, ConfigError, "fractions: expected at least one"),
            ({"fractions": (1.5,)}, ConfigError, r"fractions: expected values in \(0, 1\]"),
            ({"repetitions": 0}, ConfigError, "repetitions: expected at least 1, got 0"),
            ({"seed": -1}, ConfigError, "seed: expected 0 or more, got -1"),
            ({"split": "both"}, ConfigError, "split: expected 'data' or 'random', got 'both'"),
            ({"threads": 0}, ConfigError, "threads: expected at least 1, got 0"),
            ({"jobs": 0}, ConfigError, "jobs: expected at least 1, got 0"),
            ({"model": "tadtr-smal"}, ConfigError, "tadtr-small"),
            ({"overrides": {"training.epoch": 3}}, ConfigError, "did you mean 'training.epochs'"),
            (
                {"overrides": {"training.seed": 3}},
                ConfigError,
                "training.seed: a study gives every",
            ),
            ({"data": Path("nowhere")}, DataError, "nowhere"),
        ],
    )
    def test_bad_requests_write_nothing(self, spec, change, error, message):
        with pytest.raises(error, match=message):
            run_study(replace(spec, **change), experiment=fake.learn)
        assert not spec.out.exists()

    def test_unwritable_output(self, spec, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match="cannot be written: expected a directory"):
            run_study(replace(spec, out=tmp_path / "file" / "s"), experiment=fake.learn)

    def test_full_disk_is_seen_before_training(self, spec, monkeypatch):
        import errno

        def full(self, *args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device", str(self))

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(DataError, match="cannot be written: No space left on device"):
            run_study(spec, experiment=fake.learn)
        assert ran(spec) == []


class TestSumUp:
    def test_report_again(self, spec, quiet):
        first = run_study(spec, experiment=fake.learn, console=quiet)
        before = {name: path.read_bytes() for name, path in first.files.items()}
        for path in first.files.values():
            path.unlink()
        again = report_study(spec.out)
        assert {name: path.read_bytes() for name, path in again.files.items()} == before
        assert again.ran == 0

    def test_nothing_to_do_draws_nothing(self, spec, quiet, monkeypatch):
        first = run_study(spec, experiment=fake.learn, console=quiet)
        before = {name: path.stat().st_mtime_ns for name, path in first.files.items()}
        again = run_study(spec, experiment=fake.fail, console=quiet)
        assert again.files == first.files
        pictures = {name for name in before if name not in ("trials", "curve")}
        assert pictures == {"page", "fits", *(f"{n}.{k}" for n in ("curve", "tiou", "fits")
                                              for k in ("png", "svg"))}  # fmt: skip
        for name in pictures:
            assert again.files[name].stat().st_mtime_ns == before[name], name

    @pytest.mark.parametrize("how", ["picture", "page", "fraction", "command"])
    def test_what_changed_is_drawn_again(self, spec, quiet, how):
        first = run_study(replace(spec, fractions=(0.1, 0.5)), experiment=fake.learn, console=quiet)
        if how == "picture":
            first.files["tiou.svg"].unlink()
        elif how == "page":
            first.files["page"].write_text("<html>")
        fractions = (0.1, 0.5, 1.0) if how == "fraction" else (0.1, 0.5)
        jobs = 2 if how == "command" else 1
        changed = replace(spec, fractions=fractions, jobs=jobs)
        again = run_study(changed, experiment="fake_experiment:learn", console=quiet)
        assert again.files["tiou.svg"].is_file()
        page = again.files["page"].read_text()
        assert page.count("</html>") == 1
        assert f"--fractions {','.join(f'{f:g}' for f in fractions)}" in page
        assert ("--jobs 2" in page) == (how == "command")

    def test_finished_trials_are_read_once(self, spec, quiet, monkeypatch):
        run_study(spec, experiment=fake.learn, console=quiet)
        read = []

        def load(directory):
            read.append(directory.name)
            return load_trial(directory)

        monkeypatch.setattr("tal_fast.study.execution.store.load_trial", load)
        run_study(replace(spec, repetitions=3), experiment=fake.learn, console=quiet)
        assert len(read) == len(set(read)) == 9

    def test_nothing_to_report(self, spec, tmp_path, quiet):
        with pytest.raises(DataError, match=r"no study here \(study.yaml is missing\)"):
            report_study(tmp_path)
        with pytest.raises(TalFastError):
            run_study(spec, experiment=fake.fail, console=quiet)
        with pytest.raises(DataError, match="no trial is complete yet"):
            report_study(spec.out)

    def test_a_score_that_is_no_number_is_read(self, spec, quiet):
        run_study(spec, experiment=fake.learn, console=quiet)
        path = spec.out / "trials" / "p010_r0" / "trial.json"
        path.write_text(path.read_text().replace('"steps": 8', '"steps": NaN'))
        assert math.isnan(load_trial(path.parent).result["steps"])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "not valid JSON at line 1.*to run the trial again"),
            ("[" * 100_000, "not valid JSON: nested too deeply"),
            ('{"seed": 1, "seed": 2}', "key 'seed' is there more than once"),
            ('{"sample": {}, "sample": {}}', "key 'sample' is there more than once"),
            ('{"sample": {"a": 1, "a": 2}}', "'sample': key 'a' is there more than once"),
            ("[]", "'trial' is missing"),
            ("{}", "'trial' is missing"),
            (None, "expected a finished trial with trial.json, found none"),
        ],
    )
    def test_damaged_trial(self, spec, quiet, content, message):
        run_study(spec, experiment=fake.learn, console=quiet)
        path = spec.out / "trials" / "p010_r0" / "trial.json"
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises(DataError, match=message):
            run_study(spec, experiment=fake.learn, console=quiet)

    def test_renamed_trial(self, spec, quiet):
        run_study(spec, experiment=fake.learn, console=quiet)
        trials = spec.out / "trials"
        (trials / "p010_r0").rename(trials / "p020_r0")
        with pytest.raises(DataError, match="expected trial p020_r0, it is p010_r0"):
            report_study(spec.out)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("a: [", "not valid YAML"),
            (
                "format: 2\nformat: 2\n",
                "expected each key once, got 'format' in line 1",
            ),
            ("a: 1", "expected a study's settings"),
            ("{format: 9, settings: {}, hash: x, request: {}, runs: []}", "expected format 2"),
            ("{format: 2, settings: {}, hash: x, request: {}, runs: []}", "edited by hand"),
            ("{format: 2, settings: [], hash: x, request: {}, runs: []}", "settings as an object"),
            ("{format: 2, settings: {a: 2024-01-01}, hash: x, request: {}, runs: []}", "by hand"),
        ],
    )
    def test_damaged_study_file(self, spec, quiet, content, message):
        spec.out.mkdir()
        (spec.out / "study.yaml").write_text(content)
        with pytest.raises(DataError, match=message):
            run_study(spec, experiment=fake.learn, console=quiet)

    def test_study_file(self, spec, quiet):
        run_study(spec, experiment=fake.learn, console=quiet)
        study = yaml.safe_load((spec.out / "study.yaml").read_text())
        assert study["request"] == {
            "fractions": [0.1, 0.5, 1.0],
            "repetitions": 2,
            "seeds": 1,
            "samplings": ["video"],
            "budgets": ["epochs"],
            "trials": 6,
        }
        assert study["settings"]["data"]["train_videos"] == 20
        assert study["command"].startswith("tal-fast study run --data ")
        (run,) = study["runs"]
        assert (run["trials"], run["jobs"]) == (6, 1)
        assert run["machine"]["cores"] >= 1

    def test_curve_of_a_real_study(self, spec, quiet):
        run_study(spec, experiment=fake.learn, console=quiet)
        with open(spec.out / "curve.csv") as file:
            rows = list(csv.DictReader(file))
        values = [record(spec, f"p050_r{r}")["result"]["average_map"] for r in (0, 1)]
        assert float(rows[1]["mean"]) == pytest.approx(sum(values) / 2, abs=1e-6)
        deviation = abs(values[0] - values[1]) / 2**0.5  # sample deviation of two values
        assert float(rows[1]["sd"]) == pytest.approx(deviation, abs=1e-6)
        assert [row["videos"] for row in rows] == ["2", "10", "20"]

    def test_tables_without_matplotlib(self, spec, quiet, monkeypatch):
        import sys

        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        result = run_study(spec, experiment=fake.learn, console=quiet)
        assert set(result.files) == {"trials", "curve"}
        assert result.notes == [
            "the curve picture needs matplotlib, which is not installed: "
            "pip install matplotlib jinja2"
        ]
        with pytest.raises(MissingExtraError, match="the curve picture needs matplotlib"):
            report_study(spec.out)

    def test_page_without_jinja2(self, spec, quiet, monkeypatch):
        import sys

        run_study(spec, experiment=fake.learn, console=quiet)
        monkeypatch.setitem(sys.modules, "jinja2", None)
        with pytest.raises(MissingExtraError, match="the HTML page needs jinja2"):
            report_study(spec.out)
