# SPDX-License-Identifier: Apache-2.0
"""Adaptive studies with a stand-in for the training: executors, kills, files, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import fake_experiment as fake
import pytest
import yaml
from fake_experiment import run_study
from processes import started, wait_for

from tal_fast import cli
from tal_fast.data.synthetic import make_synthetic
from tal_fast.errors import ConfigError, DataError, TalFastError
from tal_fast.study.adaptive.steering import DECISIONS, append_line
from tal_fast.study.adaptive.targets import AdaptiveRequest

DRIVE = Path(__file__).with_name("drive.py")
TARGET = "±2 at 100 %"
pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def asked(spec):
    """Scores at 100 % vary by 1.4 points."""
    return replace(spec, repetitions=12, adaptive=AdaptiveRequest(TARGET))


def trials(spec) -> list[str]:
    return sorted(path.name for path in (spec.out / "trials").iterdir() if path.name[0] != ".")


def decisions(spec) -> list[dict]:
    return [json.loads(line) for line in (spec.out / DECISIONS).read_text().splitlines()]


def all_of(count: int) -> list[str]:
    return [f"p100_r{repetition}" for repetition in range(count)]


class TestRun:
    def test_runs_what_it_needs_and_says_what_it_found(self, asked, quiet):
        result = run_study(asked, experiment=fake.learn, console=quiet)
        ran = len(trials(asked))
        assert (result.ran, result.reused) == (ran, 0)
        assert trials(asked) == sorted(all_of(ran))
        assert 3 <= ran < 12
        assert result.answer[0].startswith("mAP at 100 %: ")
        assert "the target is met (±2 at 100 %)" in result.answer[1]
        assert f"{ran} trials" in result.answer[2]
        assert "all 36 of the grid take about" in result.answer[2]
        assert "next would be: for ±1 at 100 %" in result.answer[3]
        study = yaml.safe_load((asked.out / "study.yaml").read_text())
        assert study["request"]["target"] == TARGET
        assert f"--adaptive --target '{TARGET}'" in study["command"]

        again = run_study(asked, experiment=fake.fail, console=quiet)
        assert (again.ran, again.reused) == (0, ran)
        assert again.answer == result.answer

    def test_every_decision_is_written_with_its_reason(self, asked, quiet):
        run_study(asked, experiment=fake.learn, console=quiet)
        lines = decisions(asked)
        chosen = [line["trial"] for line in lines[:-1]]
        assert chosen == all_of(len(chosen))
        assert sorted(chosen) == trials(asked)
        assert {line["decision"] for line in lines[:-1]} == {"train"}
        assert all(line["why"] for line in lines)
        assert lines[0]["known"] == []
        assert lines[2]["known"][0]["trials"] == 2
        assert lines[-1]["decision"] == "known"
        assert lines[-1]["answer"]["interval"][0] < lines[-1]["answer"]["value"]
        assert lines[-2]["seconds"] > 0
        # Nothing new to say: nothing is written.
        run_study(asked, experiment=fake.learn, console=quiet)
        assert decisions(asked) == lines

    def test_a_finer_target_goes_on(self, asked, quiet):
        first = run_study(asked, experiment=fake.learn, console=quiet)
        finer = replace(asked, adaptive=AdaptiveRequest("±1.5 at 100 %"))
        second = run_study(finer, experiment=fake.learn, console=quiet)
        assert second.ran > 0
        assert second.reused == first.ran
        calls = Counter(call["trial"] for call in fake.read_calls(asked.out))
        assert set(calls.values()) == {1}

    def test_goes_on_from_a_grid_and_the_grid_from_it(self, asked, quiet):
        run_study(
            replace(asked, adaptive=None, repetitions=2), experiment=fake.learn, console=quiet
        )
        run_study(asked, experiment=fake.learn, console=quiet)
        assert len(trials(asked)) > 6
        whole = run_study(
            replace(asked, adaptive=None, repetitions=3), experiment=fake.learn, console=quiet
        )
        assert whole.ran <= 3

    def test_pool_runs_the_same_trials_and_perhaps_one_more(self, asked, quiet):
        run_study(asked, experiment=fake.learn, console=quiet)
        pool = replace(asked, out=asked.out.parent / "pool", jobs=2)
        run_study(pool, experiment="fake_experiment:learn", console=quiet)
        assert set(trials(asked)) <= set(trials(pool))
        assert len(trials(pool)) <= len(trials(asked)) + 1
        assert len({call["pid"] for call in fake.read_calls(pool.out)}) == 2

    def test_budget(self, asked, quiet):
        short = replace(asked, adaptive=AdaptiveRequest(TARGET, seconds=1e-4))
        result = run_study(short, experiment=fake.learn, console=quiet)
        # The first trial tells what trials cost.
        assert trials(short) == ["p010_r0"]
        assert "the budget is spent" in result.answer[0]
        assert "the target is not met" in result.answer[0]

    def test_unreachable(self, asked, quiet):
        few = replace(asked, repetitions=3, adaptive=AdaptiveRequest("±0.1 at 100 %"))
        result = run_study(few, experiment=fake.learn, console=quiet)
        assert trials(few) == all_of(3)
        assert "every allowed training at 100 % is done" in result.answer[1]
        assert "give more --repetitions" in result.answer[1]

    def test_what_no_trial_reaches_leaves_no_study(self, asked, quiet):
        few = replace(asked, fractions=(0.5,), adaptive=AdaptiveRequest("gain at 3x ±3"))
        with pytest.raises(ConfigError, match=r"no trial was run: .* give more --fractions"):
            run_study(few, experiment=fake.learn, console=quiet)
        assert not few.out.exists()

    @pytest.mark.parametrize(("keep", "left"), [("metrics", 0), ("predictions", 1), ("all", 99)])
    def test_keep(self, asked, quiet, keep, left):
        run_study(replace(asked, keep=keep), experiment=fake.learn_with_files, console=quiet)
        weights = list((asked.out / "trials").glob("*/checkpoint.pt"))
        assert len(weights) == min(left, len(trials(asked)))

    def test_a_failed_trial_is_not_tried_again(self, asked, quiet):
        half = replace(asked, adaptive=AdaptiveRequest("±2 at 50 %"))
        with pytest.raises(TalFastError, match="p050_r0 failed"):
            run_study(half, experiment=fake.fail_at_half, console=quiet)
        assert Counter(call["trial"] for call in fake.read_calls(half.out)) == {}


class TestOrder:
    def test_of_two_studies(self, asked, quiet):
        first = replace(asked, out=asked.out.parent / "a")
        run_study(first, experiment=fake.learn, console=quiet)
        other = replace(
            asked,
            out=asked.out.parent / "b",
            seed=7,
            adaptive=AdaptiveRequest("rank ±1", compare_with=(first.out,)),
        )
        result = run_study(other, experiment=fake.learn, console=quiet)
        assert f"{other.out}" in result.answer[0] or f"{first.out}" in result.answer[0]
        assert decisions(other)[-1]["decision"] in ("known", "elsewhere", "exhausted")
        # The other study is as it was.
        assert trials(first)
        assert all(call["trial"] for call in fake.read_calls(first.out))

    def test_of_a_study_without_trials(self, asked, quiet):
        spec = replace(asked, adaptive=AdaptiveRequest("rank", compare_with=(asked.out / "no",)))
        with pytest.raises(DataError, match="no such file or study"):
            run_study(spec, experiment=fake.learn, console=quiet)
        assert not asked.out.exists()  # what is mended may be other settings

    def test_a_study_is_compared_with_others_each_once(self, asked, quiet):
        first = replace(asked, out=asked.out.parent / "a")
        run_study(first, experiment=fake.learn, console=quiet)
        table = first.out / "trials.csv"
        for others, message in (
            ((asked.out,), "which is --out"),
            ((first.out, first.out.parent / "b/../a"), "again"),
            ((first.out, table), "trials.csv again"),
        ):
            request = AdaptiveRequest("rank", compare_with=others)
            with pytest.raises(ConfigError, match=message):
                run_study(replace(asked, adaptive=request), experiment=fake.learn, console=quiet)
        assert not asked.out.exists()

    def test_of_other_data(self, asked, quiet):
        first = replace(asked, out=asked.out.parent / "a")
        run_study(first, experiment=fake.learn, console=quiet)
        data = make_synthetic(
            asked.out.parent / "other", train_videos=20, test_videos=6, channels=8, seed=5
        )
        request = AdaptiveRequest("rank", compare_with=(first.out,))
        other = replace(asked, data=data, adaptive=request)
        with pytest.raises(ConfigError, match=r"on the same data, got another: data.fingerprint"):
            run_study(other, experiment=fake.learn, console=quiet)
        assert not asked.out.exists()
        split = replace(asked, split="random", adaptive=request, out=asked.out.parent / "split")
        with pytest.raises(ConfigError, match="split is 'data' there and 'random' here"):
            run_study(split, experiment=fake.learn, console=quiet)
        # Who knows better says so.
        table = AdaptiveRequest("rank", compare_with=(first.out / "trials.csv",))
        assert run_study(replace(other, adaptive=table), experiment=fake.learn, console=quiet).ran


class TestKilled:
    @pytest.mark.parametrize("jobs", [1, 2])
    def test_kill_9_loses_nothing_and_runs_nothing_twice(self, asked, quiet, jobs):
        undisturbed = replace(asked, out=asked.out.parent / "undisturbed")
        run_study(undisturbed, experiment=fake.learn, console=quiet)
        spec = replace(asked, jobs=jobs)
        arguments = ["study", "run", "--data", spec.data, "--out", spec.out, "--jobs", str(jobs)]
        arguments += ["--fractions", "0.1,0.5,1", "--repetitions", "12"]
        arguments += ["--adaptive", "--target", TARGET]
        command = [sys.executable, DRIVE, "fake_experiment:learn_two_until_told", *arguments]
        with started(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as driver:

            def there() -> bool:
                begun = list((spec.out / "trials").glob(".*.partial/step.txt"))
                done = trials(spec) if (spec.out / "trials").exists() else []
                return len(done) >= 2 and len(begun) >= 1

            wait_for(lambda: driver.poll() is not None or there(), "trials")
            assert driver.poll() is None, driver.communicate()
            driver.kill()
            driver.wait()
        kept = trials(spec)
        # Of the file for people, what was being written may be torn.
        with open(spec.out / DECISIONS, "ab") as file:
            file.write(b'{"time": "20')
        fake.tell(spec.out)
        before = len(fake.read_calls(spec.out))
        run_study(spec, experiment="fake_experiment:learn_two_until_told", console=quiet)
        assert set(trials(undisturbed)) <= set(trials(spec))
        assert len(trials(spec)) <= len(trials(undisturbed)) + jobs - 1
        again = [call["trial"] for call in fake.read_calls(spec.out)[before:] if "first" in call]
        assert not set(again) & set(kept)
        assert len(set(again)) == len(again)
        text = (spec.out / DECISIONS).read_text().splitlines()
        assert sum(line == '{"time": "20' for line in text) == 1
        assert json.loads(text[-1])["decision"] == "known"

    def test_without_its_file_of_decisions(self, asked, quiet):
        run_study(asked, experiment=fake.learn, console=quiet)
        (asked.out / DECISIONS).unlink()
        assert run_study(asked, experiment=fake.fail, console=quiet).ran == 0
        assert [line["decision"] for line in decisions(asked)] == ["known"]


@pytest.mark.slow
def test_on_a_cluster_of_this_machine(asked, quiet):
    pytest.importorskip("ray")
    run_study(asked, experiment=fake.learn, console=quiet)
    cluster = replace(asked, out=asked.out.parent / "cluster", ray="local", jobs=2)
    run_study(cluster, experiment="fake_experiment:learn", console=quiet)
    assert set(trials(asked)) <= set(trials(cluster))
    assert len(trials(cluster)) <= len(trials(asked)) + 1


def test_lines_are_whole(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_line(path, {"a": 1})
    with open(path, "a") as file:
        file.write('{"torn')
    append_line(path, {"a": 2})
    assert path.read_text() == '{"a": 1}\n{"torn\n{"a": 2}\n'
    with pytest.raises(DataError, match="cannot be written"):
        append_line(tmp_path, {"a": 1})


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"samplings": ("video", "window")}, "expected one sampling, got video, window"),
            ({"budgets": ("epochs", "steps")}, "expected one budget, got epochs, steps"),
            ({"adaptive": AdaptiveRequest("±2")}, '--target: expected "±1.5'),
        ],
    )
    def test_requests(self, asked, quiet, changes, message):
        with pytest.raises(ConfigError, match=message):
            run_study(replace(asked, **changes), experiment=fake.learn, console=quiet)
        assert not (asked.out / "trials").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--adaptive"], "--adaptive: expected --target"),
            (["--target", TARGET], "--target: only a study with --adaptive"),
            (["--hours", "1"], "--hours: only a study with --adaptive"),
            (["--adaptive", "--target", TARGET, "--confidence", "2"], "between 0.5 and 1, got 2"),
            (["--adaptive", "--target", "±x"], "got '±x'"),
        ],
    )
    def test_commands(self, asked, capsys, options, message):
        status = cli.main(
            ["study", "run", "--data", str(asked.data), "--out", str(asked.out), *options]
        )
        assert status == 2
        assert message in capsys.readouterr().err
