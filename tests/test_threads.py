# SPDX-License-Identifier: Apache-2.0
"""A system that has no more threads is told as one, wherever a thread is started."""

from __future__ import annotations

import io
import threading
from types import SimpleNamespace

import pytest

from tal_fast.errors import TalFastError
from tal_fast.profiling.sampler import Sampler
from tal_fast.study.execution import worker
from tal_fast.study.execution.messages import Outcome, is_environment_error
from tal_fast.threads import start_thread
from tal_fast.training.energy import EnergyMeter


@pytest.fixture
def no_threads(monkeypatch):
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


def test_a_thread_that_starts():
    thread = threading.Thread(target=lambda: None)
    start_thread(thread, "test")
    thread.join()
    with pytest.raises(RuntimeError, match="once"):
        start_thread(thread, "test")


def test_a_thread_that_does_not(no_threads):
    with pytest.raises(TalFastError, match=r"^test: cannot start a thread: Resource .*ulimit -u"):
        start_thread(threading.Thread(), "test")


def test_it_stops_a_study(no_threads):
    with pytest.raises(TalFastError) as told:
        start_thread(threading.Thread(), "test")
    assert is_environment_error(told.value)


def test_a_sampler_tells_it_and_can_be_stopped(no_threads):
    sampler = Sampler()
    with pytest.raises(TalFastError, match="sampler: cannot start a thread"):
        sampler.start()
    sampler.stop()


def test_energy_is_not_known_then(no_threads, tmp_path):
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    for name, text in {"name": "package-0", "energy_uj": "5", "max_energy_range_uj": "9"}.items():
        (zone / name).write_text(text)
    with EnergyMeter(tmp_path) as meter:
        assert meter.joules is None
    assert meter.joules is None


def test_a_worker_answers_every_task_with_it(no_threads, monkeypatch):
    told = []
    monkeypatch.setattr(worker, "Channel", lambda: SimpleNamespace(send=lambda **m: told.append(m)))
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n"))
    task = SimpleNamespace(
        from_json=lambda line: SimpleNamespace(trial=SimpleNamespace(name=line.strip()))
    )
    monkeypatch.setattr(worker, "TrialTask", task)
    assert worker.main() == 1
    outcomes = [Outcome.of_message(message) for message in told]
    assert [outcome.trial for outcome in outcomes] == ["a", "b"]
    for outcome in outcomes:
        assert is_environment_error(outcome.error)
        assert "worker: cannot start a thread" in str(outcome.error)
