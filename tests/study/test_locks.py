# SPDX-License-Identifier: Apache-2.0
"""Locks that several processes want at once, on file systems that lock and others."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from pathlib import Path

import pytest
from processes import HANG

from tal_fast.data.locks import LOCK_FILE, BusyError, locked_directory
from tal_fast.study.execution.run_trial import execute_trial
from tal_fast.study.sampling import Sample
from tal_fast.study.trial import Trial, TrialTask


def task(tmp_path: Path) -> TrialTask:
    config = tmp_path / "config.yaml"
    config.write_text("{}\n")
    return TrialTask(
        trial=Trial("tadtr-small", 0.1, 0, 7),
        root=str(tmp_path / "trials"),
        settings="hash",
        data="",
        config=str(config),
        train_videos=("a", "b"),
        test_videos=("c",),
        sample=Sample(("a", "b"), 2, ("run",), ()),
        threads=1,
    )


def stands_in(monkeypatch: pytest.MonkeyPatch, experiment: object) -> None:
    name = "tal_fast.study.execution.run_trial.load_experiment"
    monkeypatch.setattr(name, lambda _: experiment)


class Result:
    def to_dict(self) -> dict:
        return {"average_map": 0.5, "map_per_threshold": {"0.5": 0.5}}


def test_nothing_stays(tmp_path):
    with locked_directory(tmp_path / "a", wait=0, busy="busy"):
        assert os.listdir(tmp_path / "a") == [LOCK_FILE]
    assert os.listdir(tmp_path / "a") == []


def test_what_a_killed_holder_left_is_no_obstacle(tmp_path):
    (tmp_path / LOCK_FILE).touch()
    with locked_directory(tmp_path, wait=0, busy="busy"):
        pass
    assert os.listdir(tmp_path) == []


def test_one_at_a_time(tmp_path):
    """Many threads, and a directory that each of them renames away."""
    inside, most, names = 0, 0, []

    def work(index: int) -> None:
        nonlocal inside, most
        with locked_directory(tmp_path / "a", wait=HANG, busy="busy"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.001)  # lets another in, if the lock would
            inside -= 1
            (tmp_path / "a").rename(tmp_path / f"b{index}")  # the next may make its own from here
        names.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert sorted(names) == list(range(20))
    assert sorted(os.listdir(tmp_path)) == sorted(f"b{index}" for index in range(20))


def test_a_directory_that_is_renamed_while_it_is_made(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    looks = []

    def is_dir(path: Path) -> bool:
        looks.append(path)
        if len(looks) == 1:  # mkdir has found it there, and looks again
            path.rename(tmp_path / "b")
        return os.path.isdir(path)

    monkeypatch.setattr(Path, "is_dir", is_dir)
    with locked_directory(tmp_path / "a", wait=HANG, busy="busy"):
        assert os.listdir(tmp_path / "a") == [LOCK_FILE]
    assert looks


def test_a_file_in_place_of_the_directory(tmp_path):
    (tmp_path / "a").touch()
    with (
        pytest.raises(FileExistsError),
        locked_directory(tmp_path / "a", wait=HANG, busy="busy"),
    ):
        pass


def test_a_lock_file_that_cannot_be_made_is_named_in_full(tmp_path):
    (tmp_path / "a" / LOCK_FILE).mkdir(parents=True)
    with (
        pytest.raises(OSError, match=rf"'{tmp_path}/a/\{LOCK_FILE}'"),
        locked_directory(tmp_path / "a", wait=HANG, busy="busy"),
    ):
        pass


def test_who_waits_takes_the_finished_trial(tmp_path, monkeypatch):
    calls, inside, go_on = [], threading.Event(), threading.Event()

    def experiment(*args, **kwargs) -> Result:
        calls.append(kwargs["out"])
        inside.set()
        assert go_on.wait(HANG)
        return Result()

    stands_in(monkeypatch, experiment)
    records = []

    def run() -> None:
        records.append(execute_trial(task(tmp_path), dataset=None, wait=HANG))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert inside.wait(HANG)
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert records[0] == records[1] == records[2]
    assert os.listdir(tmp_path / "trials") == ["p010_r0"]
    assert os.listdir(tmp_path / "trials" / "p010_r0") == ["trial.json"]


def test_busy_while_another_runs_it(tmp_path):
    partial = tmp_path / "trials" / ".p010_r0.partial"
    with (
        locked_directory(partial, wait=0, busy=""),
        pytest.raises(BusyError, match="trial p010_r0: another process is running it in"),
    ):
        execute_trial(task(tmp_path), dataset=None, wait=0.1)


def test_without_locks_the_first_to_finish_counts(tmp_path, monkeypatch):
    def no_locks(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    values = []

    def experiment(*args, **kwargs) -> Result:
        if not values:
            values.append("outer")
            other = execute_trial(task(tmp_path), dataset=None)
            values.append(other)
            # What the other took away from under this one.
            kwargs["out"].mkdir()
        return Result()

    stands_in(monkeypatch, experiment)
    record = execute_trial(task(tmp_path), dataset=None)
    assert record == values[1]
    assert os.listdir(tmp_path / "trials") == ["p010_r0"]
