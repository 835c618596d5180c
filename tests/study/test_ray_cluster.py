# SPDX-License-Identifier: Apache-2.0
"""Trials on a Ray cluster of two nodes, which here are two Ray nodes on one machine."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_experiment as fake
import psutil
import pytest
from processes import (
    HANG,
    MARK,
    has_ended,
    kill_marked,
    marked,
    short_directory,
    started,
    wait_for,
)
from two_nodes import Nodes

import tal_fast
from tal_fast.data import open_dataset
from tal_fast.data.fingerprint import data_fingerprint
from tal_fast.data.locks import locked_directory
from tal_fast.errors import ConfigError, MissingExtraError, TalFastError
from tal_fast.study.execution import worker as ray_trial
from tal_fast.study.execution.messages import Outcome, is_environment_error, rebuild_error
from tal_fast.study.execution.ray import cluster as ray_cluster
from tal_fast.study.execution.ray import driver as ray_driver
from tal_fast.study.execution.ray import process as ray_process
from tal_fast.study.execution.ray.cluster import RayCluster
from tal_fast.study.execution.ray.process import make_short_directory, short_directory_if_needed
from tal_fast.study.sampling import Sample
from tal_fast.study.trial import Trial, TrialTask

pytest.importorskip("ray", reason="needs the extra ray")

HERE = Path(__file__).parent
NAMES = [f"p{percent}_r{r}" for r in (0, 1) for percent in ("100", "050", "010")]


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes ask for none, whatever the user's home directory says."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with short_directory() as directory, Nodes(directory) as nodes:
        yield nodes


@pytest.fixture
def make_tasks(tiny_data: Path, tmp_path: Path) -> Callable[..., list[TrialTask]]:
    """Makes the tasks of three fractions and two repetitions, as the runner does."""
    names = sorted(open_dataset(tiny_data).annotations.videos)
    out = tmp_path / "s"
    (out / "trials").mkdir(parents=True)
    (out / "config.yaml").write_text("{}\n")

    def make(experiment: str = "learn", **others: str) -> list[TrialTask]:
        tasks = []
        for name in NAMES:
            percent, repetition = int(name[1:4]), int(name[-1])
            door = f"fake_experiment:{others.get(name, experiment)}"
            tasks.append(
                TrialTask(
                    trial=Trial("tadtr-small", percent / 100, repetition, 1000 + len(tasks)),
                    root=str(out / "trials"),
                    settings="hash",
                    data=str(tiny_data),
                    config=str(out / "config.yaml"),
                    train_videos=tuple(names[: percent * 20 // 100]),
                    test_videos=tuple(names[20:]),
                    sample=Sample(tuple(names[:1]), 1, ("a",), ()),
                    threads=1,
                    experiment=door,
                )
            )
        return tasks

    return make


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return tmp_path / "s"


def cluster(address: str, study: Path, **options: Any) -> RayCluster:
    options = {"connect_seconds": HANG, **options}
    return RayCluster(address, threads=1, logs=study / "logs", **options)


def ignore(name: str, event: dict[str, Any]) -> None:
    pass


def finished(study: Path) -> list[str]:
    return sorted(path.name for path in (study / "trials").iterdir() if path.name[0] != ".")


def starts(study: Path) -> list[dict[str, Any]]:
    return [call for call in fake.read_calls(study) if "first" in call]


def ends(study: Path) -> Counter[str]:
    return Counter(call["trial"] for call in fake.read_calls(study) if "finished" in call)


def step_of(study: Path, trial: str) -> int:
    path = study / "trials" / f".{trial}.partial" / "step.txt"
    return int(path.read_text()) if path.exists() else 0


def nothing_left(study: Path) -> None:
    assert not list((study / "trials").glob(".*"))
    assert not (study / "logs").exists(), (study / "logs" / "ray.log").read_text()


class TestOnTheCluster:
    def test_every_trial_once_and_on_both_nodes(self, nodes, study, make_tasks):
        events = []

        def progress(name: str, event: dict[str, Any]) -> None:
            events.append((name, event))
            if {call["node"] for call in starts(study)} == {"first", "second"}:
                fake.tell(study)

        executor = cluster(nodes.address, study)
        facts = executor.connect()
        assert (facts.machines, facts.slots) == (2, 2)
        assert facts.gpus_per_trial == 0
        outcomes = list(executor.run(make_tasks("learn_until_told"), progress))
        assert sorted(outcome.trial for outcome in outcomes) == sorted(NAMES) == finished(study)
        for outcome in outcomes:
            path = study / "trials" / outcome.trial / "trial.json"
            assert outcome.record.to_dict() == json.loads(path.read_text())
            assert outcome.error is None
        assert set(ends(study).values()) == {1}
        assert {call["node"] for call in starts(study)} == {"first", "second"}
        # In about the given order: Ray has two trials more than it can run at a time.
        assert {call["trial"] for call in starts(study)[:2]} <= set(NAMES[:4])
        assert {name for name, _ in events} == set(NAMES)
        assert {event["stage"] for _, event in events} == {"train"}
        nothing_left(study)

    @pytest.mark.usefixtures("no_pictures")
    @pytest.mark.parametrize("keep", ["metrics", "predictions"])
    def test_a_study_keeps_what_it_is_told(self, nodes, spec, quiet, keep):
        spec = replace(spec, ray=nodes.address, keep=keep)
        fake.run_study(spec, experiment=fake.learn_with_files, console=quiet)
        trials = spec.out / "trials"
        assert sorted(path.name for path in trials.iterdir()) == sorted(NAMES)
        best = [] if keep == "metrics" else ["p010_r0", "p050_r0", "p100_r0"]
        assert sorted(path.parent.name for path in trials.glob("*/checkpoint.pt")) == best
        every = [] if keep == "metrics" else sorted(NAMES)
        assert sorted(path.parent.name for path in trials.glob("*/predictions.json")) == every

    def test_what_goes_wrong_in_trials(self, nodes, study, make_tasks):
        """Every kind of failure at once: each is the outcome of its trial and of no other."""
        tasks = make_tasks(
            p100_r0="fail",
            p050_r0="full_disk",
            p010_r0="die_always",
            p100_r1="chatty",
            p050_r1="die_once",
            p010_r1="no_such_function",
        )
        tasks.append(
            replace(
                tasks[0],
                trial=replace(tasks[0].trial, repetition=2),
                experiment="fake_experiment:leave",
            )
        )
        notices = []
        executor = cluster(nodes.address, study, notify=notices.append, retries=1)
        found = {outcome.trial: outcome for outcome in executor.run(tasks, ignore)}
        assert sorted(found) == sorted([*NAMES, "p100_r2"])

        assert isinstance(found["p100_r0"].error, TalFastError)
        assert str(found["p100_r0"].error) == "RuntimeError: nothing works"
        assert 'raise RuntimeError("nothing works")' in found["p100_r0"].traceback
        assert f"on machine {socket.gethostname()}" in found["p100_r0"].traceback
        assert not is_environment_error(found["p100_r0"].error)

        assert is_environment_error(found["p050_r0"].error)
        assert "No space left on device" in str(found["p050_r0"].error)

        assert str(found["p100_r2"].error) == "SystemExit: 3"
        # On which machine is told only if the process lived long enough to say so.
        assert "its process or machine was lost 2 times, last" in str(found["p010_r0"].error)
        assert not is_environment_error(found["p010_r0"].error)
        assert [call["trial"] for call in starts(study)].count("p010_r0") == 2
        assert isinstance(found["p010_r1"].error, ConfigError)
        assert "no_such_function" in str(found["p010_r1"].error)

        # What a trial prints is not among the messages; a killed process costs nothing.
        assert found["p100_r1"].record is not None
        assert found["p050_r1"].record is not None
        assert finished(study) == ["p050_r1", "p100_r1"]
        for name, notice in zip(("p010_r0", "p050_r1"), sorted(notices), strict=True):
            assert notice.startswith(f"trial {name}: its process or machine was lost")
            assert "(1 of 1 retries)" in notice

    def test_a_node_dies(self, nodes, study, make_tasks):
        """Its trial goes on on the other node; nothing is lost, nothing is there twice."""
        tasks = make_tasks("learn_until_told")[:3]
        names = [task.trial.name for task in tasks]
        notices: list[str] = []
        outcomes: list[Outcome] = []
        executor = cluster(nodes.address, study, notify=notices.append)
        runs = threading.Thread(target=lambda: outcomes.extend(executor.run(tasks, ignore)))
        runs.start()
        try:
            wait_for(lambda: any(c["node"] == "second" for c in starts(study)), "the second node")
            victim = next(call for call in starts(study) if call["node"] == "second")
            wait_for(lambda: step_of(study, victim["trial"]) >= 20, "20 steps")
            nodes.do("kill")
            # The trial's process outlives its node for a moment, in which it could finish.
            wait_for(lambda: has_ended(victim["pid"]), "the end of the trial's process")
        finally:
            fake.tell(study)
            runs.join(HANG)
        assert not runs.is_alive()
        nodes.do("add")

        assert sorted(outcome.trial for outcome in outcomes) == sorted(names) == finished(study)
        assert all(outcome.error is None for outcome in outcomes)
        assert ends(study) == Counter(names)
        tries = [call for call in starts(study) if call["trial"] == victim["trial"]]
        assert [call["node"] for call in tries] == ["second", "first"]
        assert tries[1]["first"] >= 20  # went on from the checkpoint
        (record,) = (o.record for o in outcomes if o.trial == victim["trial"])
        assert record.more["continued"]
        assert len(notices) == 1
        assert f"trial {victim['trial']}" in notices[0]
        assert not list((study / "trials").glob(".*"))

    @contextlib.contextmanager
    def driving(
        self, nodes: Nodes, study: Path, tasks: list[TrialTask]
    ) -> Iterator[subprocess.Popen[str]]:
        path = study.parent / "tasks"
        path.write_text("".join(task.to_json() + "\n" for task in tasks))
        with started(
            [sys.executable, HERE / "ray_drive.py", nodes.address, path, study / "logs", str(HANG)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as driver:
            yield driver

    def test_kill_9_of_the_driver(self, nodes, study, make_tasks):
        others = {"p050_r0": "learn_until_told", "p010_r0": "learn_until_told"}
        tasks = make_tasks("learn_slowly", **others)[:4]
        names = [task.trial.name for task in tasks]
        with self.driving(nodes, study, tasks) as driver:
            wait_for(
                lambda: (
                    driver.poll() is not None
                    or (
                        "p100_r0" in finished(study)
                        and all(step_of(study, name) for name in others)
                    )
                ),
                "trials",
            )
            assert driver.poll() is None, driver.communicate()
            driver.kill()
        kept = finished(study)
        assert not set(kept) & set(others)
        # At once, as who starts it again does: what still runs is waited for.
        before = len(starts(study))
        outcomes = list(cluster(nodes.address, study).run(tasks, ignore))
        assert sorted(outcome.trial for outcome in outcomes) == sorted(names) == finished(study)
        assert all(outcome.error is None for outcome in outcomes)
        again = starts(study)[before:]
        assert not {call["trial"] for call in again} & set(kept)
        assert {call["trial"] for call in again if call["first"] > 0} == set(others)
        # A kill between a trial's last step and its rename costs that trial once more.
        assert set(ends(study)) == set(names)
        assert sum(ends(study).values()) <= len(names) + 2
        nothing_left(study)

    def test_ctrl_c(self, nodes, study, make_tasks, monkeypatch):
        """Who listens keeps its checkpoint, who does not is ended; the driver leaves quietly."""
        monkeypatch.setenv("TAL_FAST_GRACE_SECONDS", "3")
        tasks = make_tasks("learn_until_told", p050_r0="stuck")
        with self.driving(nodes, study, tasks) as driver:
            wait_for(
                lambda: (
                    driver.poll() is not None
                    or (len(starts(study)) == 2 and step_of(study, "p100_r0") >= 10)
                ),
                "two trials",
            )
            assert driver.poll() is None, driver.communicate()
            os.killpg(driver.pid, signal.SIGINT)  # what a terminal does
            output, _ = driver.communicate(timeout=HANG)
        assert driver.returncode == 130, output
        assert "Traceback" not in output
        pids = [call["pid"] for call in starts(study)]
        wait_for(lambda: all(map(has_ended, pids)), "the end of the trials")
        assert sorted(path.name for path in (study / "trials").iterdir()) == [
            ".p050_r0.partial",
            ".p100_r0.partial",
        ]
        assert len(starts(study)) == 2  # what was waiting did not start
        # An interrupted trial keeps its steps and lets its lock go.
        assert step_of(study, "p100_r0") >= 10
        with locked_directory(study / "trials" / ".p100_r0.partial", wait=0, busy="still locked"):
            pass

    def test_too_large_a_trial(self, nodes, study, make_tasks):
        executor = RayCluster(nodes.address, threads=64, logs=study / "logs", gpus=0.25)
        with pytest.raises(ConfigError, match=r"no machine .* has the 64 CPUs and 0.25 GPUs of a"):
            list(executor.run(make_tasks(), ignore))
        nothing_left(study)

    def test_another_version_of_ray(self, nodes, study, monkeypatch):
        nodes.do("version 1.2.3")
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        try:
            with pytest.raises(
                ConfigError, match=r"other versions than this .*Ray: 1\.2\.3"
            ) as caught:
                cluster("auto", study).connect()
        finally:
            nodes.do("version")
        assert nodes.address in str(caught.value)


class TestConnecting:
    @pytest.mark.parametrize(
        "address", ["", "here", "host", "host:", ":6379", "host:many", "http://host:6379"]
    )
    def test_address_of_no_known_form(self, address, study):
        with pytest.raises(ConfigError, match="ray: expected the address 'local', 'auto', 'HOST:"):
            cluster(address, study)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"threads": 0}, "threads: expected at least 1, got 0"),
            ({"retries": -1}, "retries: expected at least 0, got -1"),
            ({"at_most": 0}, "at_most: expected at least 1, got 0"),
            ({"gpus": -0.5}, r"gpus per trial: expected a share .* or a whole number, got -0\.5"),
            ({"gpus": 1.5}, r"gpus per trial: .*, got 1\.5"),
        ],
    )
    def test_options_that_make_no_sense(self, options, message, study):
        with pytest.raises(ConfigError, match=message):
            RayCluster("local", **{"threads": 1, "logs": study / "logs", **options})

    def test_without_ray(self, study, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match="pip install ray"):
            cluster("local", study)

    @pytest.mark.parametrize("scheme", ["", "ray://"])
    def test_nobody_there(self, scheme, study, make_tasks):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))  # and nobody listens
            address = f"{scheme}127.0.0.1:{unused.getsockname()[1]}"
            with pytest.raises(ConfigError, match=f"cannot reach .* {address}: Connection refused"):
                list(cluster(address, study).run(make_tasks(), ignore))
        nothing_left(study)

    def test_somebody_else_there(self, study, make_tasks):
        """Ray itself would wait for most of a minute, then end the process."""
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            executor = cluster(address, study, connect_seconds=2)
            # Given up here: what Ray says is another message.
            with pytest.raises(ConfigError, match=f"reach the cluster at {address}: no answer"):
                list(executor.run(make_tasks(), ignore))
        assert not list((study / "trials").iterdir())

    def test_nothing_to_do(self, study):
        assert list(cluster("local", study).run([], ignore)) == []


class TestStartingRay:
    """Without a trace where it fails, and wherever the home and temporary directories are."""

    @pytest.fixture
    def mark(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
        """Marks what this process starts, in a new home and below a path too long for sockets."""
        mark = str(tmp_path)
        for name, path in (("HOME", tmp_path / "home"), ("TMPDIR", tmp_path / ("long" * 20))):
            path.mkdir()
            monkeypatch.setenv(name, str(path))
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.setenv(MARK, mark)
        yield mark
        kill_marked(mark)

    def test_nodes_that_do_not_start(self):
        """They fail after Ray's first processes run, and fail no other test by what they leave."""
        with short_directory() as directory:
            (directory / "ray" / "ray_current_cluster").mkdir(parents=True)
            with pytest.raises(AssertionError, match="IsADirectoryError"), Nodes(directory):
                pass
            assert (directory / "ray" / "session_latest" / "logs" / "gcs_server.out").exists()
            assert not marked(str(directory))
        gc.collect()

    @pytest.fixture
    def made(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """The directories that this process makes for Ray."""
        made: list[Path] = []

        def make() -> Path:
            made.append(make_short_directory())
            return made[-1]

        monkeypatch.setattr(ray_process, "make_short_directory", make)
        return made

    def check_nothing_left(self, mark: str, made: list[Path]) -> None:
        # What had lost its parent before it could be found needs a few seconds to see that.
        wait_for(lambda: not marked(mark), "the end of Ray")
        assert len(made) == 1
        assert not made[0].exists()
        gc.collect()  # a process or pipe that was forgotten would warn

    def test_a_cluster_that_does_not_start(self, study, mark, made, monkeypatch):
        make = ray_process.make_short_directory

        def make_bad() -> Path:
            directory = make()
            (directory / "ray").touch()
            return directory

        monkeypatch.setattr(ray_process, "make_short_directory", make_bad)
        with pytest.raises(ConfigError, match=r"ray: cannot connect to local: .*File exists"):
            cluster("local", study).connect()
        self.check_nothing_left(mark, made)

    def test_a_driver_that_is_killed(self, study, make_tasks, mark, made):
        executor = cluster("local", study)
        with contextlib.closing(executor):
            executor.connect()
            for process in marked(mark):
                with contextlib.suppress(psutil.Error):
                    if ray_driver.__name__ in process.cmdline():
                        process.kill()
            with pytest.raises(TalFastError, match=r"to the cluster was lost \(status -9"):
                list(executor.run(make_tasks(), ignore))
        self.check_nothing_left(mark, made)

    @pytest.mark.slow
    def test_a_cluster_of_its_own(self, study, make_tasks, monkeypatch, mark, made):
        """It starts, runs, and leaves no process and no file, however it ends."""
        # Too short for Ray to end in order.
        monkeypatch.setattr(ray_cluster, "GRACE_SECONDS", 0.5)
        monkeypatch.setattr(ray_cluster, "_SECONDS_TO_END", 0.0)
        tasks = make_tasks("learn", p050_r0="stuck")
        run = cluster("local", study, at_most=1).run(tasks, ignore)
        assert next(run).trial == "p100_r0"
        wait_for(lambda: len(starts(study)) == 2, "the second trial")
        assert starts(study)[-1]["pid"] in {process.pid for process in marked(mark)}
        run.close()
        self.check_nothing_left(mark, made)
        assert finished(study) == ["p100_r0"]

    def test_a_directory_for_sockets(self, tmp_path):
        """Ray's own choice where it is short enough, else a new one; what was asked for never."""
        long = str(tmp_path / ("long" * 20))
        for good in ({}, {"TMPDIR": "/scratch"}, {"TMPDIR": long, "RAY_TMPDIR": "/scratch"}):
            assert short_directory_if_needed(good) is None
        directory = short_directory_if_needed({"TMPDIR": long})
        assert list(directory.iterdir()) == []
        directory.rmdir()
        with pytest.raises(ConfigError, match=r"RAY_TMPDIR: expected a path of at most \d+ bytes"):
            short_directory_if_needed({"TMPDIR": "/tmp", "RAY_TMPDIR": long})

    def test_no_directory_for_sockets(self, monkeypatch):
        def full(**where: str) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("tempfile.mkdtemp", full)
        with pytest.raises(ConfigError, match=r"tried .*/var/tmp, /dev/shm: set RAY_TMPDIR to one"):
            make_short_directory()


class TestOnOneMachine:
    """What a machine checks before it runs a trial. This needs no Ray."""

    @pytest.fixture
    def order(self, study, make_tasks) -> Callable[..., dict[str, Any]]:
        (study / "trials" / "token").touch()

        def give(task: TrialTask | None = None, **changes: Any) -> dict[str, Any]:
            order = {"task": (task or make_tasks()[0]).to_json(), "gpus": 0.5}
            order |= {"version": tal_fast.__version__, "token": "token", "fingerprint": None}
            return json.loads(ray_trial.run(json.dumps({**order, **changes}), ignore))

        return give

    @pytest.fixture(autouse=True)
    def at_once(self, monkeypatch):
        monkeypatch.setattr(ray_trial, "_SECONDS_FOR_FILES", 0.0)
        monkeypatch.setattr(ray_trial, "_SECONDS_FOR_LOCK", 0.0)
        monkeypatch.setattr(ray_trial, "_datasets", {})

    def failure(self, message: dict[str, Any]) -> str:
        error = rebuild_error(message["failed"])
        assert isinstance(error, ConfigError)
        assert is_environment_error(error)
        assert f"machine {socket.gethostname()}: " in str(error)
        return str(error)

    def test_it_runs(self, order):
        assert order()["done"]["trial"] == "p100_r0"

    def test_another_version(self, order):
        text = self.failure(order(version="7.7"))
        assert "expected tal_fast 7.7 as on the machine that started the study" in text
        assert f"found {tal_fast.__version__}" in text

    @pytest.mark.parametrize("what", ["root", "config", "data"])
    def test_a_path_that_is_not_there(self, order, make_tasks, what):
        text = self.failure(order(replace(make_tasks()[0], **{what: "/not/shared"})))
        assert "at /not/shared, found none" in text
        assert "storage that all of them share" in text

    def test_a_directory_of_the_same_name(self, order):
        assert "is another directory than that of" in self.failure(order(token="other"))

    def test_other_data(self, order, tiny_data):
        assert "holds other data than" in self.failure(order(fingerprint="f"))
        fingerprint = data_fingerprint(open_dataset(tiny_data))
        assert "done" in order(fingerprint=fingerprint)

    def test_busy(self, order, study):
        with locked_directory(study / "trials" / ".p100_r0.partial", wait=0, busy=""):
            assert "another process is running it" in order()["busy"]
        assert "done" in order()
