# SPDX-License-Identifier: Apache-2.0
"""Drivers that are killed or interrupted in mid-trial: nothing lost, nothing twice, no orphans."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import fake_experiment as fake
import pytest
from fake_experiment import run_study
from processes import HANG, has_ended, started, wait_for

from tal_fast.data.locks import locked_directory
from tal_fast.errors import TalFastError
from tal_fast.study.execution.local import LocalPool
from tal_fast.study.execution.ray.process import DriverProcess

DRIVE = Path(__file__).with_name("drive.py")
ALL = {f"p{percent}_r{r}" for percent in ("010", "050", "100") for r in (0, 1)}
pytestmark = pytest.mark.usefixtures("no_pictures")


def driving(spec, experiment: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    arguments = ["study", "run", "--data", spec.data, "--out", spec.out, "--jobs", str(spec.jobs)]
    arguments += ["--fractions", "0.1,0.5,1", "--repetitions", "2"]
    return started(
        [sys.executable, DRIVE, f"fake_experiment:{experiment}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def starts(spec) -> list[dict]:
    return [call for call in fake.read_calls(spec.out) if "first" in call]


def pids(spec) -> set[int]:
    return {call["pid"] for call in fake.read_calls(spec.out)}


def alive(spec) -> list[int]:
    return [pid for pid in pids(spec) if not has_ended(pid)]


def finished(spec) -> set[str]:
    trials = spec.out / "trials"
    return {p.name for p in trials.iterdir() if p.name[0] != "."} if trials.exists() else set()


def wait_for_trials(driver: subprocess.Popen[bytes], spec) -> None:
    """Waits until two trials are finished, and as many as there are jobs have a checkpoint."""

    def there() -> bool:
        begun = list((spec.out / "trials").glob(".*.partial/step.txt"))
        return len(finished(spec)) >= 2 and len(begun) == spec.jobs

    wait_for(lambda: driver.poll() is not None or there(), "trials")
    assert driver.poll() is None, driver.communicate()


def check_complete(spec) -> None:
    """Every trial is there, and none was finished twice."""
    assert finished(spec) == ALL
    ends = Counter(call["trial"] for call in fake.read_calls(spec.out) if "finished" in call)
    # A kill between a trial's last step and its rename costs that trial once more, and no other.
    assert set(ends) == ALL
    assert sum(ends.values()) <= len(ALL) + spec.jobs
    assert not list((spec.out / "trials").glob(".*"))


@pytest.mark.parametrize("jobs", [1, 2])
def test_kill_9_loses_at_most_the_trials_in_flight(spec, quiet, jobs):
    spec = replace(spec, jobs=jobs)
    with driving(spec, "learn_two_until_told") as driver:
        wait_for_trials(driver, spec)
        driver.kill()
        driver.wait()
        wait_for(lambda: not alive(spec), "the end of the workers")
    kept = finished(spec)
    fake.tell(spec.out)

    # Each unfinished start left a directory that the next run takes over.
    before = len(starts(spec))
    run_study(spec, experiment="fake_experiment:learn_two_until_told", console=quiet)
    check_complete(spec)
    again = starts(spec)[before:]
    assert not {call["trial"] for call in again} & kept
    assert len(again) == len({call["trial"] for call in again})
    assert any(call["first"] > 0 for call in again)  # went on from a checkpoint


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c(spec, quiet, jobs):
    spec = replace(spec, jobs=jobs)
    with driving(spec, "learn_two_until_told") as driver:
        wait_for_trials(driver, spec)
        os.killpg(driver.pid, signal.SIGINT)  # what a terminal does
        output, _ = driver.communicate(timeout=HANG)
    assert driver.returncode == 130, output.decode()
    said, following = output.decode().rstrip().splitlines()[-2:]
    assert said.startswith("interrupted: finished trials and the saved states of running ones are ")
    assert following.startswith("next: tal-fast study run --data ")
    assert "Traceback" not in output.decode()
    assert not alive(spec)
    assert finished(spec)
    fake.tell(spec.out)
    run_study(spec, experiment="fake_experiment:learn_two_until_told", console=quiet)
    check_complete(spec)


def test_ctrl_c_of_trials_that_do_not_listen(spec, monkeypatch):
    monkeypatch.setenv("TAL_FAST_GRACE_SECONDS", "0.5")
    spec = replace(spec, jobs=2)
    with driving(spec, "stuck") as driver:
        wait_for(lambda: driver.poll() is not None or len(pids(spec)) == 2, "two trials")
        os.killpg(driver.pid, signal.SIGINT)
        driver.communicate(timeout=HANG)
    assert driver.returncode == 130
    assert not alive(spec)


@pytest.mark.parametrize(
    "begin",
    [
        lambda logs: DriverProcess({}, logs),
        lambda logs: next(LocalPool(1, threads=1, logs=logs).run(["a task"], print)),
    ],
    ids=["Ray's driver", "worker"],
)
def test_a_process_without_a_thread_to_read_it_ends(tmp_path, monkeypatch, begin):
    """As where the system has no more threads. What was left of it would warn."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(TalFastError, match="cannot start a thread"):
        begin(tmp_path)
    gc.collect()


def test_lock_outlives_a_rename_and_ends_with_its_holder(tmp_path):
    directory = tmp_path / "a"
    with locked_directory(directory, wait=0, busy="busy"):
        directory.rename(tmp_path / "b")
        with (
            pytest.raises(TalFastError, match="busy"),
            locked_directory(tmp_path / "b", wait=0.1, busy="busy"),
        ):
            pass
    with locked_directory(tmp_path / "b", wait=0, busy="busy"):
        pass
