# SPDX-License-Identifier: Apache-2.0
"""Progress without a terminal, by a clock that the test moves."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import pytest
from rich.console import Console

from tal_fast import progress
from tal_fast.study.display import StudyDisplay


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    moved = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: moved.now))
    return moved


def test_a_line_now_and_then(clock, capsys):
    with progress.bar("training") as update:
        for step in range(101):
            update(step, 100, f"epoch {step // 10 + 1}")
            clock.now += 4.0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training: 8 of 100, epoch 1, 6 min 08 s left"
    assert len(lines) == 12
    assert lines[-1] == "training: 96 of 100, epoch 10, 16 s left"


def test_short_work_is_quiet(clock, capsys):
    with progress.bar("packing") as update:
        update(1, 3)
        clock.now = 29.0
        update(2, 3)
        clock.now = 40.0
        update(3, 3)
    assert capsys.readouterr().err == ""


def test_work_that_goes_on_is_judged_by_what_is_new(clock, capsys):
    with progress.bar("training") as update:
        update(50, 100)
        clock.now = 40.0
        update(60, 100)
    assert capsys.readouterr().err == "training: 60 of 100, 2 min 40 s left\n"


def test_nothing_is_shown_unasked(clock, capsys):
    with progress.bar("training", shown=False) as update:
        update(1, 9)
        clock.now = 99.0
        update(2, 9)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["bar", "study"])
def test_without_a_thread_to_draw_it_the_work_goes_on(monkeypatch, capfd, command):
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal
    streams = sys.stdout, sys.stderr
    if command == "bar":
        with progress.bar("training") as update:
            update(1, 2)
    else:
        with StudyDisplay([], already=1, console=Console(force_terminal=True)):
            print("on the way")
    assert (sys.stdout, sys.stderr) == streams
    shown = "".join(capfd.readouterr())
    assert shown.count("\x1b[?25h") == shown.count("\x1b[?25l") == 1  # the cursor is there again
