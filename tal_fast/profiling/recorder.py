# SPDX-License-Identifier: Apache-2.0
"""Steps of a training that really runs, phase by phase: time, CPU time, waiting for a core.

A recorder is a sink of ranges (:mod:`tal_fast.ranges`); the training knows nothing of it, and
computes the same bits with and without.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tal_fast import ranges
from tal_fast.profiling import procfs
from tal_fast.profiling.sampler import Sampler

__all__ = ["OTHER", "STEP", "PhaseTime", "StepRecord", "StepRecorder"]

STEP = "step"
OTHER = "other"
_PREFIX = "tal_fast."
_STEP_RANGE = f"{_PREFIX}{STEP}"


@dataclass
class PhaseTime:
    """What a phase took, in seconds.

    Attributes:
        wall: by the clock.
        thread_cpu: CPU time of the thread that trains.
        cpu: CPU time of all threads of the process.
        queue_wait: that its threads were ready and waited for a core; None where the system does
            not say.
    """

    wall: float = 0.0
    thread_cpu: float = 0.0
    cpu: float = 0.0
    queue_wait: float | None = None

    def add(self, other: PhaseTime, sign: int = 1) -> None:
        """Adds another time, or takes it away."""
        self.wall += sign * other.wall
        self.thread_cpu += sign * other.thread_cpu
        self.cpu += sign * other.cpu
        if other.queue_wait is not None:
            self.queue_wait = (self.queue_wait or 0.0) + sign * other.queue_wait


@dataclass(frozen=True)
class StepRecord:
    """One step.

    Attributes:
        number: of the step in this run, from 1.
        start: of ``time.perf_counter``.
        whole: the step from its batch on to the next one.
        phases: what its ranges took; they and ``other`` sum to the whole step. Ranges within others
            have both names (``loss/matching``) and are part of the outer one.
    """

    number: int
    start: float
    whole: PhaseTime
    phases: dict[str, PhaseTime]


class _Moment:
    """The clocks of one moment."""

    __slots__ = ("cpu", "queue_wait", "thread_cpu", "wall")

    def __init__(self, queue: procfs.QueueWait) -> None:
        self.wall = time.perf_counter()
        self.thread_cpu = time.thread_time()
        self.cpu = time.process_time()
        self.queue_wait = queue.seconds()

    def until(self, end: _Moment) -> PhaseTime:
        waited = None
        if self.queue_wait is not None and end.queue_wait is not None:
            waited = end.queue_wait - self.queue_wait
        return PhaseTime(
            end.wall - self.wall, end.thread_cpu - self.thread_cpu, end.cpu - self.cpu, waited
        )


class StepRecorder:
    """Records the steps of the thread that starts it.

    Args:
        steps: to record; then it takes itself out of the way.
        warm_up: steps before them.
        done: called then, in the training's thread.
        begins: called when the first of them begins.

    Attributes:
        records: of the steps so far.
        between: what ranges between recorded steps took, such as ``save``, by name.
        seen: whole steps that ran, warm-up included.
        sampler: looks at the machine while steps are recorded.
    """

    def __init__(
        self,
        steps: int = 50,
        warm_up: int = 10,
        done: Callable[[], None] | None = None,
        begins: Callable[[], None] | None = None,
    ) -> None:
        self.records: list[StepRecord] = []
        self.between: dict[str, PhaseTime] = {}
        self.seen = 0
        self.sampler = Sampler()
        self._steps = steps
        self._warm_up = warm_up
        self._done = done
        self._begins = begins
        self._thread = threading.get_ident()
        self._queue = procfs.QueueWait()
        self._open: list[tuple[str, _Moment]] = []
        self._phases: dict[str, PhaseTime] = {}
        self._on = False

    def start(self) -> None:
        """Begins to listen."""
        self._on = True
        ranges.add_sink(self)

    def stop(self) -> None:
        """Stops listening; may be called again."""
        if self._on:
            self._on = False
            ranges.remove_sink(self)
            self.sampler.stop()
            self._queue.close()

    def finish(self) -> None:
        """Takes itself out of the way, now that there are enough steps."""
        if self._on:
            self.stop()
            if self._done is not None:
                self._done()

    def push(self, name: str) -> None:
        """A range begins (:class:`tal_fast.ranges.Sink`)."""
        if not self._on or threading.get_ident() != self._thread:
            return
        if self._open:
            if self._open[0][0] != _STEP_RANGE:
                return
            self._phase(name)  # in the order in which phases begin
        elif name == _STEP_RANGE:
            self._phases = {}
            self._queue.look()
            if self.seen >= self._warm_up and not self.sampler.samples:
                self.sampler.start()
                if self._begins is not None:
                    self._begins()
        elif not self.records:
            return
        self._open.append((name, _Moment(self._queue)))

    def pop(self, name: str) -> None:
        """A range ends (:class:`tal_fast.ranges.Sink`)."""
        if threading.get_ident() != self._thread:
            return
        if not self._open or self._open[-1][0] != name:
            return
        _, began = self._open[-1]
        took = began.until(_Moment(self._queue))
        self._open.pop()
        if self._open:
            phase = self._phase(name)
            if phase is not None:
                phase.add(took)
        elif name == _STEP_RANGE:
            self._end(began, took)
        else:
            self.between.setdefault(name.removeprefix(_PREFIX), PhaseTime()).add(took)

    def _phase(self, name: str) -> PhaseTime | None:
        """Returns the time of a range within those that are open."""
        path = [opened.removeprefix(_PREFIX) for opened, _ in self._open[1:]]
        phase = name.removeprefix(_PREFIX)
        if path[-1:] == [phase]:  # a phase that the layer below calls the same
            return None
        return self._phases.setdefault("/".join([*path, phase]), PhaseTime())

    def _end(self, began: _Moment, whole: PhaseTime) -> None:
        if not self._on or not any(name != "data" for name in self._phases):
            return  # stopped within the step, or the end of an epoch: there was no batch
        self.seen += 1
        if self.seen <= self._warm_up:
            return
        rest = PhaseTime()
        rest.add(whole)
        for name, phase in self._phases.items():
            if "/" not in name:
                rest.add(phase, -1)
        phases = {**self._phases, OTHER: rest}
        self.records.append(StepRecord(self.seen, began.wall, whole, phases))
        if len(self.records) >= self._steps:
            self.finish()
