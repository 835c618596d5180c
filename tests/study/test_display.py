# SPDX-License-Identifier: Apache-2.0
"""What a running study shows without a terminal, by a clock that the test moves."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from tal_fast.study import display
from tal_fast.study.display import StudyDisplay
from tal_fast.study.execution.messages import Outcome
from tal_fast.study.trial import Trial


class Shown:
    """A display of two trials at p = 100 %, its output and its clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(display, "time", SimpleNamespace(monotonic=lambda: self.now))
        self._file = io.StringIO()
        tasks = [SimpleNamespace(trial=Trial("m", 1.0, number, 0)) for number in (0, 1)]
        console = Console(file=self._file, width=100)
        self.display = StudyDisplay(tasks, already=0, console=console)  # type: ignore[arg-type]

    def step(self, step: int, at: float, name: str = "p100_r0", total: int = 90) -> None:
        self.now = at
        self.display.progress(name, {"stage": "train", "step": step, "total_steps": total})

    @property
    def lines(self) -> list[str]:
        return self._file.getvalue().splitlines()


@pytest.fixture
def shown(monkeypatch) -> Shown:
    return Shown(monkeypatch)


def test_an_estimate_comes_with_the_first_steps_and_once(shown):
    shown.step(1, at=130.0)  # processes have started for half a minute
    shown.step(2, at=130.5)
    assert shown.lines == []
    # 9 steps in 9 s: a trial is 90 of them and a tenth more, so 2 x 100 - 10 s are left.
    shown.step(10, at=139.0)
    assert shown.lines == ["about 3 min 10 s left, by the first 10 steps of p100_r0"]
    shown.step(80, at=209.0)
    assert len(shown.lines) == 1


def test_what_an_earlier_call_did_is_not_counted_as_speed(shown):
    shown.step(45, at=110.0)
    shown.step(54, at=119.0)
    assert shown.lines == ["about 2 min 26 s left, by the first 54 steps of p100_r0"]


def test_a_trial_that_has_ended_tells_by_its_line(shown):
    shown.now = 160.0
    shown.display.finished(Outcome("p100_r0", error=RuntimeError("x")))
    shown.step(1, at=161.0, name="p100_r1")
    shown.step(9, at=170.0, name="p100_r1")
    assert shown.lines == ["1/2  p100_r0  failed: x  (1 min 00 s left)"]
