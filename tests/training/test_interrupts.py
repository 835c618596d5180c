# SPDX-License-Identifier: Apache-2.0
"""Signals to end that wait for the end of a step."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys

import pytest
from processes import HANG
from small_settings import SMALL

from tal_fast.interrupts import TerminatedError, deferred_interrupt, passed_on

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", BOTH)
def test_the_first_signal_waits_and_the_second_does_not(number):
    before = [signal.getsignal(item) for item in BOTH]
    with deferred_interrupt() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), number)
        assert interrupted()
        assert [signal.getsignal(item) for item in BOTH] == before
    assert [signal.getsignal(item) for item in BOTH] == before


def interrupted_by(number: int) -> None:
    """Is interrupted where a training would be: its state is saved first."""
    with passed_on(), deferred_interrupt() as interrupted:
        signal.raise_signal(number)
        assert interrupted()
        raise KeyboardInterrupt


def test_a_handler_of_the_programs_own_is_asked_when_all_is_closed():
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append("passed on"))
    try:
        with pytest.raises(TerminatedError) as caught:
            interrupted_by(signal.SIGTERM)
        assert caught.value.signum == signal.SIGTERM
        assert came == ["passed on"]
        with pytest.raises(KeyboardInterrupt) as interrupt:
            interrupted_by(signal.SIGINT)
        assert type(interrupt.value) is KeyboardInterrupt
        assert came == ["passed on"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_lies_between_is_closed_before_the_signal_is_passed_on():
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append("passed on"))
    try:
        with contextlib.suppress(TerminatedError), passed_on(), contextlib.ExitStack() as bar:
            bar.callback(came.append, "closed")
            interrupted_by(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == ["closed", "passed on"]


@pytest.mark.parametrize("number", BOTH)
def test_a_process_that_ignores_a_signal_goes_on(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with deferred_interrupt() as interrupted:
            signal.raise_signal(number)
            assert not interrupted()
    finally:
        signal.signal(number, before)


def test_a_handler_that_python_did_not_set_is_left_alone(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    with deferred_interrupt() as interrupted:
        assert not interrupted()


def test_the_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(TerminatedError(signal.SIGTERM)))
    assert (error.signum, str(error)) == (signal.SIGTERM, "SIGTERM")


TRAINING = """
import os, signal, sys
from tal_fast.data import open_dataset
from tal_fast.training import load_config, train

data, out, signals = sys.argv[1], sys.argv[2], int(sys.argv[3])
dataset = open_dataset(data)
config = load_config(preset="tadtr-small", overrides=sys.argv[4:])

def progress(event):
    if event.stage == "train":
        print(event.step, flush=True)
        if event.step == 3:
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGTERM)

train(config, dataset, dataset.splits["train"], out, progress=progress)
print("done")
"""


def trained(data, out, signals: int) -> tuple[int, list[str]]:
    """Trains in a process that gets SIGTERM so many times after its third step."""
    words = [sys.executable, "-c", TRAINING, str(data.path), str(out), str(signals), *SMALL]
    done = subprocess.run(words, capture_output=True, text=True, timeout=HANG)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.split()


def test_sigterm_saves_after_the_running_step_and_ends_the_process(data, tmp_path):
    status, steps = trained(data, tmp_path / "out", 1)
    assert status == -signal.SIGTERM, "143 in a shell"
    assert steps == ["1", "2", "3", "4"], "it came after the third"
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".pt") == [
        "resume.pt"
    ]
    assert not list((tmp_path / "out").glob(".*lock"))
    status, steps = trained(data, tmp_path / "out", 0)
    assert status == 0
    assert steps[0] == "5", "it goes on after the step that was saved"
    assert steps[-1] == "done"


def test_a_second_sigterm_ends_it_at_once(data, tmp_path):
    status, steps = trained(data, tmp_path / "out", 2)
    assert status == -signal.SIGTERM
    assert steps == ["1", "2", "3"]
    assert not (tmp_path / "out" / "resume.pt").exists()
