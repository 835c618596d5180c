# SPDX-License-Identifier: Apache-2.0
"""Threads of a training that other programs leave too few cores for."""

from __future__ import annotations

import pytest

from tal_fast import cli
from tal_fast.data.synthetic import make_synthetic
from tal_fast.profiling.crowding import Crowding, Load


def loads(*steps: tuple[float, float, float]):
    """Loads 20 s apart: cores that others use, cores that we do, threads of ours that wait."""
    load = Load(100.0, 500.0, 7.0, 3.0)
    yield load
    for others, ours, waiting in steps:
        load = Load(
            load.wall + 20.0,
            load.busy + 20.0 * (others + ours),
            load.ours + 20.0 * ours,
            load.waited + 20.0 * waiting,
        )
        yield load


def notes(threads: int, cores: int, *steps: tuple[float, float, float]) -> list[str]:
    """What is said in so many spans of 20 s, with a step every 5 s."""
    read = loads(*steps)
    crowding = Crowding(threads, cores, lambda: next(read))
    said = [crowding.after_step(float(now)) for now in range(0, 20 * len(steps) + 1, 5)]
    return [note for note in said if note is not None]


def test_crowded_threads_are_told_once():
    assert notes(2, 2, (1.6, 0.4, 1.0), (1.6, 0.4, 1.0)) == [
        "other programs use 1.6 of 2 cores, and the 2 threads of this training waited for a core "
        "50% of the time: --threads 1 (OMP_NUM_THREADS=1) makes them fit, which is faster where "
        "threads wait for each other"
    ]
    (note,) = notes(16, 16, (9.5, 6.5, 8.0))
    assert "--threads 6 (OMP_NUM_THREADS=6)" in note


def test_it_may_become_crowded_later():
    assert notes(2, 2, (0.0, 2.0, 0.0)) == []
    assert len(notes(2, 2, (0.0, 2.0, 0.0), (1.6, 0.4, 1.0))) == 1


@pytest.mark.parametrize(
    ("threads", "cores", "load"),
    [
        pytest.param(2, 2, (0.0, 2.0, 0.1), id="alone"),
        pytest.param(1, 2, (2.0, 0.3, 0.7), id="one thread"),
        pytest.param(2, 2, (1.6, 0.4, 0.1), id="busy, but nobody waits"),
        pytest.param(2, 2, (0.1, 1.0, 1.0), id="they wait, but not for others"),
        pytest.param(2, 8, (5.0, 2.0, 1.0), id="there is room"),
        pytest.param(2, 2, (0.3, 1.5, 1.0), id="too little to be sure"),
    ],
)
def test_what_is_not_certain_is_not_said(threads, cores, load):
    assert notes(threads, cores, load, load) == []


def test_a_system_that_does_not_say():
    calls = []
    crowding = Crowding(2, 2, lambda: calls.append(1))
    assert [crowding.after_step(now) for now in (0.0, 30.0, 60.0)] == [None] * 3
    assert len(calls) == 1


def test_the_systems_counters():
    crowding = Crowding(2, 2)
    crowding.after_step(0.0)
    crowding.after_step(30.0)  # whatever this machine does: it may be said or not
    crowding.close()
    crowding.close()
    assert crowding.after_step(90.0) is None


def test_the_command_says_it(tmp_path, monkeypatch, capsys):
    make_synthetic(tmp_path / "data", size="demo", train_videos=20, test_videos=2, channels=8)
    monkeypatch.setattr(
        Crowding, "after_step", lambda self: "too many" if self._threads == 2 else None
    )
    words = ["train", "--data", tmp_path / "data", "--model", "tadtr-small", "--threads", "2"]
    words += ["--set", "training.steps=1", "--set", "training.budget=steps"]
    words += ["--set", "training.batch_size=2", "--out", tmp_path / "out"]
    assert cli.main(list(map(str, words))) == 0
    assert "note: too many\n" in capsys.readouterr().err
