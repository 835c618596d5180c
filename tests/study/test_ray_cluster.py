# SPDX-License-Identifier: Apache-2.0
"""Trials on a Ray cluster of two nodes, which here are two Ray nodes on one machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_experiment as fake
import psutil
import pytest

import tal_fast
from tal_fast.data import open_dataset
from tal_fast.data.fingerprint import data_fingerprint
from tal_fast.errors import ConfigError, MissingExtraError, TalFastError
from tal_fast.study.execution import ray_cluster, ray_trial
from tal_fast.study.execution.executors import Outcome
from tal_fast.study.execution.failures import is_environment_error, rebuild_error
from tal_fast.study.execution.locks import locked_directory
from tal_fast.study.execution.ray_cluster import RayCluster
from tal_fast.study.execution.trials import Trial, TrialTask

pytest.importorskip("ray", reason="needs the extra ray")

HERE = Path(__file__).parent
NAMES = [f"p{percent}_r{r}" for r in (0, 1) for percent in ("100", "050", "010")]


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited too long for {what}"
        time.sleep(0.02)


def descendants(pid: int) -> set[psutil.Process]:
    """What this process has started, and what that has."""
    return set(psutil.Process(pid).children(recursive=True))


def check_gone(processes: set[psutil.Process]) -> None:
    """Ray's agents need a few seconds to see that the rest is gone."""
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


class Nodes:
    """The cluster of ray_nodes.py."""

    def __init__(self, directory: str) -> None:
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        environment["RAY_AUTH_MODE"] = "disabled"
        environment["RAY_worker_niceness"] = "0"  # the tests wait for the workers
        self.log = Path(directory) / "nodes.log"
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, HERE / "ray_nodes.py", directory],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
                start_new_session=True,
            )
        self.address = self._answer()
        self._seen: set[psutil.Process] = set()

    def _answer(self) -> str:
        # Ray prints a few lines of its own.
        for line in self._process.stdout:
            if line.startswith("done") or line[0].isdigit():
                return line.strip()
        raise AssertionError(self.log.read_text())

    def do(self, command: str) -> None:
        self._seen |= descendants(self._process.pid)  # of a node that is killed now
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        self._answer()

    def stop(self) -> None:
        self._seen |= descendants(self._process.pid)
        self._process.communicate(timeout=60)
        check_gone(self._seen)


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes ask for none, whatever the user's home directory says."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    # A short path: those of Ray's sockets may not have more than 107 characters.
    directory = tempfile.mkdtemp(prefix="tf", dir="/tmp")
    nodes = Nodes(directory)
    try:
        yield nodes
        nodes.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


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
                    coverage={"instances": 1, "classes": ["a"], "missing_classes": []},
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
    return RayCluster(address, threads=1, logs=study / "logs", **options)


def ignore(name: str, event: dict[str, Any]) -> None:
    pass


def finished(study: Path) -> list[str]:
    return sorted(path.name for path in (study / "trials").iterdir() if path.name[0] != ".")


def starts(study: Path) -> list[dict[str, Any]]:
    return [call for call in fake.read_calls(study) if "first" in call]


def ends(study: Path) -> Counter[str]:
    return Counter(call["trial"] for call in fake.read_calls(study) if "finished" in call)


def nothing_left(study: Path) -> None:
    assert not list((study / "trials").glob(".*"))
    assert not (study / "logs").exists(), (study / "logs" / "ray.log").read_text()


class TestOnTheCluster:
    def test_every_trial_once_and_on_both_nodes(self, nodes, study, make_tasks):
        events = []
        executor = cluster(nodes.address, study)
        facts = executor.connect()
        assert (facts.machines, facts.slots) == (2, 2)
        assert facts.gpus_per_trial == 0
        tasks = make_tasks("learn_slowly")
        outcomes = list(executor.run(tasks, lambda name, event: events.append((name, event))))
        assert sorted(outcome.trial for outcome in outcomes) == sorted(NAMES) == finished(study)
        for outcome in outcomes:
            path = study / "trials" / outcome.trial / "trial.json"
            assert outcome.record == json.loads(path.read_text())
            assert outcome.error is None
        assert set(ends(study).values()) == {1}
        assert {call["node"] for call in starts(study)} == {"first", "second"}
        # In about the given order: Ray has two trials more than it can run at a time.
        assert {call["trial"] for call in starts(study)[:2]} <= set(NAMES[:4])
        assert {name for name, _ in events} == set(NAMES)
        assert {event["stage"] for _, event in events} == {"train"}
        nothing_left(study)

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
        tasks = make_tasks("learn_for_long")[:3]
        names = [task.trial.name for task in tasks]
        notices: list[str] = []
        outcomes: list[Outcome] = []
        executor = cluster(nodes.address, study, notify=notices.append)
        runs = threading.Thread(target=lambda: outcomes.extend(executor.run(tasks, ignore)))
        runs.start()
        wait_for(lambda: any(c["node"] == "second" for c in starts(study)), "the second node")
        victim = next(call for call in starts(study) if call["node"] == "second")
        steps = study / "trials" / f".{victim['trial']}.partial" / "step.txt"
        wait_for(lambda: steps.exists() and int(steps.read_text()) >= 20, "20 steps")
        nodes.do("kill")
        runs.join(90)
        assert not runs.is_alive()
        nodes.do("add")

        assert sorted(outcome.trial for outcome in outcomes) == sorted(names) == finished(study)
        assert all(outcome.error is None for outcome in outcomes)
        assert ends(study) == Counter(names)
        tries = [call for call in starts(study) if call["trial"] == victim["trial"]]
        assert [call["node"] for call in tries] == ["second", "first"]
        assert tries[1]["first"] >= 20  # went on from the checkpoint
        (record,) = (o.record for o in outcomes if o.trial == victim["trial"])
        assert record["continued"]
        assert len(notices) == 1
        assert f"trial {victim['trial']}" in notices[0]
        assert not list((study / "trials").glob(".*"))

    def drive(self, nodes: Nodes, study: Path, tasks: list[TrialTask]) -> subprocess.Popen[str]:
        path = study.parent / "tasks"
        path.write_text("".join(task.to_json() + "\n" for task in tasks))
        return subprocess.Popen(
            [sys.executable, HERE / "ray_drive.py", nodes.address, path, study / "logs"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def test_kill_9_of_the_driver(self, nodes, study, make_tasks):
        tasks = make_tasks("learn_for_long")[:4]
        names = [task.trial.name for task in tasks]
        driver = self.drive(nodes, study, tasks)
        wait_for(
            lambda: driver.poll() is not None or (finished(study) and len(starts(study)) >= 3),
            "trials",
        )
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.3)
        driver.kill()
        driver.communicate()
        kept = finished(study)
        assert len(kept) < 4
        # At once, as who starts it again does: what still runs is waited for.
        before = len(starts(study))
        outcomes = list(cluster(nodes.address, study).run(tasks, ignore))
        assert sorted(outcome.trial for outcome in outcomes) == sorted(names) == finished(study)
        assert all(outcome.error is None for outcome in outcomes)
        again = starts(study)[before:]
        assert not {call["trial"] for call in again} & set(kept)
        assert any(call["first"] > 0 for call in again)
        # A kill between a trial's last step and its rename costs that trial once more.
        assert set(ends(study)) == set(names)
        assert sum(ends(study).values()) <= len(names) + 2
        nothing_left(study)

    def test_ctrl_c(self, nodes, study, make_tasks, monkeypatch):
        """Who listens keeps its checkpoint, who does not is ended; the driver leaves quietly."""
        monkeypatch.setenv("TAL_FAST_GRACE_SECONDS", "3")
        tasks = make_tasks("learn_for_long", p050_r0="stuck")
        driver = self.drive(nodes, study, tasks)
        wait_for(lambda: driver.poll() is not None or len(starts(study)) == 2, "two trials")
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.5)
        os.killpg(driver.pid, signal.SIGINT)  # what a terminal does
        output, _ = driver.communicate(timeout=60)
        assert driver.returncode == 130, output
        assert "Traceback" not in output
        pids = [call["pid"] for call in starts(study)]
        wait_for(lambda: not any(map(psutil.pid_exists, pids)), "the end of the trials", seconds=2)
        assert sorted(path.name for path in (study / "trials").iterdir()) == [
            ".p050_r0.partial",
            ".p100_r0.partial",
        ]
        assert len(starts(study)) == 2  # what was waiting did not start
        # An interrupted trial keeps its steps and lets its lock go.
        assert int((study / "trials" / ".p100_r0.partial" / "step.txt").read_text()) >= 10
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
        with pytest.raises(MissingExtraError, match=r"pip install 'tal_fast\[ray\]'"):
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
            start = time.monotonic()
            with pytest.raises(ConfigError, match=f"cannot reach the cluster at {address}"):
                list(executor.run(make_tasks(), ignore))
            assert time.monotonic() - start < 40
        assert not list((study / "trials").iterdir())

    def test_nothing_to_do(self, study):
        assert list(cluster("local", study).run([], ignore)) == []

    @pytest.mark.slow
    def test_a_cluster_of_its_own(self, study, make_tasks, monkeypatch, tmp_path):
        """It starts, runs, and leaves no process, however it ends."""
        directory = tempfile.mkdtemp(prefix="tf", dir="/tmp")
        monkeypatch.setenv("RAY_TMPDIR", directory)
        others = descendants(os.getpid())
        # Too short for Ray to end in order.
        monkeypatch.setattr(ray_cluster, "GRACE_SECONDS", 0.5)
        monkeypatch.setattr(ray_cluster, "_SECONDS_TO_END", 0.0)
        try:
            tasks = make_tasks("learn", p050_r0="stuck")
            run = cluster("local", study, at_most=1).run(tasks, ignore)
            assert next(run).trial == "p100_r0"
            wait_for(lambda: len(starts(study)) == 2, "the second trial")
            left = descendants(os.getpid()) - others
            assert starts(study)[-1]["pid"] in {process.pid for process in left}
            run.close()
            check_gone(left)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        assert finished(study) == ["p100_r0"]


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
