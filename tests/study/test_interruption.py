# SPDX-License-Identifier: Apache-2.0
"""Drivers that are killed or interrupted in mid-trial: nothing lost, nothing twice, no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fake_experiment as fake
import psutil
import pytest

from tal_fast.errors import TalFastError
from tal_fast.study import run_study
from tal_fast.study.execution.locks import locked_directory

DRIVE = Path(__file__).with_name("drive.py")
ALL = {f"p{percent}_r{r}" for percent in ("010", "050", "100") for r in (0, 1)}
pytestmark = pytest.mark.usefixtures("no_pictures")


def start(spec, experiment: str) -> subprocess.Popen[bytes]:
    arguments = ["study", "run", "--data", spec.data, "--out", spec.out, "--jobs", str(spec.jobs)]
    arguments += ["--fractions", "0.1,0.5,1", "--repetitions", "2"]
    return subprocess.Popen(
        [sys.executable, DRIVE, f"fake_experiment:{experiment}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"waited too long for {what}"
        time.sleep(0.02)


def started(spec) -> list[dict]:
    return [call for call in fake.read_calls(spec.out) if "first" in call]


def pids(spec) -> set[int]:
    return {call["pid"] for call in fake.read_calls(spec.out)}


def alive(spec) -> list[int]:
    def runs(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return [pid for pid in pids(spec) if runs(pid)]


def finished(spec) -> set[str]:
    trials = spec.out / "trials"
    return {p.name for p in trials.iterdir() if p.name[0] != "."} if trials.exists() else set()


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
    driver = start(spec, "learn_slowly")
    wait_for(lambda: len(finished(spec)) >= 2 and len(started(spec)) >= 2 + jobs, "trials")
    time.sleep(0.2)
    kept = finished(spec)
    driver.kill()
    driver.wait()
    driver.stdout.close()
    wait_for(lambda: not alive(spec), "the end of the workers")

    # Each unfinished start left a directory that the next run takes over.
    before = len(started(spec))
    run_study(spec, experiment="fake_experiment:learn_slowly", console=quiet)
    check_complete(spec)
    again = started(spec)[before:]
    assert not {call["trial"] for call in again} & kept
    assert len(again) == len({call["trial"] for call in again})
    assert any(call["first"] > 0 for call in again)  # went on from a checkpoint


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c(spec, quiet, jobs):
    spec = replace(spec, jobs=jobs)
    driver = start(spec, "learn_slowly")
    wait_for(lambda: len(finished(spec)) >= 1 and len(started(spec)) >= 1 + jobs, "trials")
    os.killpg(driver.pid, signal.SIGINT)  # what a terminal does
    output, _ = driver.communicate(timeout=30)
    assert driver.returncode == 130, output.decode()
    assert output.decode().rstrip().endswith("interrupted")
    assert "Traceback" not in output.decode()
    assert not alive(spec)
    assert finished(spec)
    run_study(spec, experiment="fake_experiment:learn_slowly", console=quiet)
    check_complete(spec)


def test_ctrl_c_of_trials_that_do_not_listen(spec, monkeypatch):
    monkeypatch.setenv("TAL_FAST_GRACE_SECONDS", "0.5")
    spec = replace(spec, jobs=2)
    driver = start(spec, "stuck")
    wait_for(lambda: len(pids(spec)) == 2, "two trials")
    os.killpg(driver.pid, signal.SIGINT)
    driver.communicate(timeout=30)
    assert driver.returncode == 130
    assert not alive(spec)


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
