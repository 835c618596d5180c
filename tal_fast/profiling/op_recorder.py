# SPDX-License-Identifier: Apache-2.0
"""The ops of a few steps of a training that really runs: timed by torch's profiler, then counted.

Like :class:`~tal_fast.profiling.recorder.StepRecorder` a sink of ranges, of which the training
knows nothing. It follows the steps that are timed by the clock: a profiler slows its steps down.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity

from tal_fast import ranges
from tal_fast.profiling.cost import Cost, CostCounter
from tal_fast.profiling.kinds import (
    STEP,
    OpRow,
    StepOps,
    counted_name,
    kind_of,
    op_rows,
    products_of,
    step_ops,
)

__all__ = ["OpRecorder", "new_profiler", "profiled_steps"]

_DATA = "tal_fast.data"
_TRACED = 3  # steps of the trace that is kept
_NAMES_A_MACHINE = ("traceName", "host_name", "hostname")


def new_profiler(*, memory: bool = False) -> Any:
    """Returns torch's profiler of this machine's devices, with shapes.

    Args:
        memory: also look at every piece of memory that is taken and given back.
    """
    # Two lines of its own for every trace otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities, record_shapes=True, profile_memory=memory)


def most_taken(profiler: Any) -> float | None:
    """Returns the most bytes that were taken and not given back yet; None where torch hides it.

    Args:
        profiler: stopped, with memory (:func:`new_profiler`).
    """
    try:
        events = profiler.profiler.kineto_results.events()
        taken = [event.nbytes() for event in events if event.name() == "[memory]"]
    except AttributeError:  # none of this is public
        return None
    now = most = 0
    for size in taken:
        now += size
        most = max(most, now)
    return float(most)


def profiled_steps(step: Callable[[], Any], steps: int = 5) -> list[StepOps]:
    """Returns the ops of repeated steps.

    Args:
        step: to run.
        steps: how often.
    """
    profiler = new_profiler()
    with profiler:
        for _ in range(steps):
            with torch.profiler.record_function(STEP):
                step()
    return step_ops(profiler.events())


class OpRecorder:
    """Records the ops of the steps to come, in the thread that starts it.

    Args:
        steps: to profile; one more is counted: FLOPs and bytes.

    Attributes:
        steps: still to profile; may be lowered before it starts.
        done: whether all that was to be recorded is.
        counted: cost of one step by (op, kind).
        missing: why there is nothing, until there is.
    """

    def __init__(self, steps: int = 5) -> None:
        self.steps = steps
        self.done = False
        self.counted: dict[tuple[str, str], Cost] = {}
        self.missing = "the training ended before"
        self._thread = threading.get_ident()
        self._marks = ranges.ProfilerSink()
        self._profiler: Any = None
        self._trace: Any = None
        self._counter: CostCounter | None = None
        self._counting: ExitStack | None = None
        self._open: list[str] = []
        self._worked = False
        self._on = False

    @property
    def started(self) -> bool:
        """Whether it has begun to listen."""
        return self._on or self.done

    def start(self) -> None:
        """Begins to listen, with the next step."""
        self._on = True
        ranges.add_sink(self)
        ranges.add_sink(self._marks)

    def stop(self) -> None:
        """Stops listening; may be called again."""
        if self._on:
            self._on = False
            ranges.remove_sink(self)
            ranges.remove_sink(self._marks)
            self._end_profiler()
            self._end_counting()

    def push(self, name: str) -> None:
        """A range begins (:class:`tal_fast.ranges.Sink`)."""
        if not self._on or threading.get_ident() != self._thread:
            return
        if not self._open:
            if name != STEP:
                return
            self._worked = False
            self._begin()
        elif name != _DATA:
            self._worked = True
        self._open.append(name)
        self._tell_phase()

    def pop(self, name: str) -> None:
        """A range ends (:class:`tal_fast.ranges.Sink`)."""
        if threading.get_ident() != self._thread or self._open[-1:] != [name]:
            return
        self._open.pop()
        self._tell_phase()
        if not self._open:
            self._end()

    def _begin(self) -> None:
        if self.steps:
            if self._profiler is None:
                self._profiler = new_profiler()
                self._profiler.__enter__()
            return
        # No module: parts need hooks, and ops do not.
        self._counter = CostCounter(nn.Module())
        self._counting = ExitStack()
        self._counting.enter_context(self._counter.counting(STEP))

    def _end(self) -> None:
        if not self._worked:  # the end of an epoch: there was no batch
            self._end_counting()
            return
        if self.steps:
            self.steps -= 1
            if not self.steps:
                self._end_profiler()
            return
        counter = self._counter
        self._end_counting()
        if counter is not None:
            for (within, op), cost in counter.by_op.items():
                if within != _DATA:
                    key = counted_name(op), kind_of(op, within)
                    self.counted.setdefault(key, Cost()).add(cost)
        self.done = True
        self.stop()

    def _tell_phase(self) -> None:
        if self._counter is not None and self._open:
            self._counter.phase = self._open[-1]

    def _end_profiler(self) -> None:
        if self._profiler is not None:
            # Read later: that takes longer than a step.
            self._trace, profiler, self._profiler = self._profiler, self._profiler, None
            profiler.__exit__(None, None, None)

    def _end_counting(self) -> None:
        if self._counting is not None:
            self._counting.close()
        self._counting = self._counter = None

    def rows(self) -> tuple[list[OpRow], list[StepOps], list[tuple[int, int, int, int]]]:
        """Returns ops, steps and largest products; empty where there was no whole step."""
        if self._trace is None:
            return [], [], []
        events = self._trace.events()
        steps = step_ops(events)
        if not steps:
            return [], [], []
        return op_rows(steps, self.counted), steps, products_of(events)

    def trace(self) -> bytes | None:
        """Returns the first steps as a trace for Perfetto, compressed; None where there is none."""
        if self._trace is None:
            return None
        with tempfile.TemporaryDirectory(prefix="tal_fast_trace_") as folder:
            file = Path(folder) / "trace.json"
            self._trace.export_chrome_trace(str(file))
            trace: dict[str, Any] = json.loads(file.read_text("utf-8"))
        return gzip.compress(json.dumps(_first_steps(trace)).encode())


def _first_steps(trace: dict[str, Any]) -> dict[str, Any]:
    """Returns a trace without what begins after some steps."""
    events = trace["traceEvents"]
    ends = sorted(e["ts"] + e.get("dur", 0) for e in events if e.get("name") == STEP)
    if len(ends) > _TRACED:
        last = ends[_TRACED - 1]
        events = [e for e in events if e.get("ph") == "M" or e.get("ts", 0) <= last]
    kept = {key: value for key, value in trace.items() if key not in _NAMES_A_MACHINE}
    return {**kept, "traceEvents": events}
