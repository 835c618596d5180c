# SPDX-License-Identifier: Apache-2.0
"""Whether a running training has more threads than other programs leave cores for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import psutil

from tal_fast.errors import counted
from tal_fast.profiling.procfs import QueueWait, children_cpu, machine_cpu

__all__ = ["Crowding", "Load"]

# Steps are looked at together for so long, so that a moment's load says nothing.
_SECONDS = 20.0
# Cores' worth of threads that are too many, and what of their time all threads wait for a core, at
# least. On quiet cores they wait for less than 3 % of it (tal_fast/profiling/profile.py).
_TOO_MANY = 0.5
_WAITED = 0.2


class Load(NamedTuple):
    """What has been used by now, in seconds since any one time.

    Attributes:
        wall: of the clock.
        busy: of all cores, by all programs.
        ours: of this process and of those that it has started.
        waited: that this process's threads were ready and had no core.
    """

    wall: float
    busy: float
    ours: float
    waited: float


class _Counters:
    """The system's counters."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._wait = QueueWait()

    def __call__(self) -> Load | None:
        self._wait.look()
        machine, waited = machine_cpu(), self._wait.seconds()
        if machine is None or waited is None:
            return None
        ours = time.process_time() + children_cpu(self._process)
        return Load(time.perf_counter(), machine.busy, ours, waited)

    def close(self) -> None:
        self._wait.close()


class Crowding:
    """Looks at a training's steps until its threads turn out to be too many.

    It says so once, and only if both sides agree: other programs leave fewer cores than there are
    threads, and these threads waited for cores. Where the system does not say, nothing is said.

    Args:
        threads: that compute.
        cores: that this process may use.
        read: gives the load so far, None where the system does not say; by default the system's.
    """

    def __init__(
        self, threads: int, cores: int, read: Callable[[], Load | None] | None = None
    ) -> None:
        self._threads, self._cores = threads, cores
        self._counters = _Counters() if read is None else None
        self._read = read or self._counters
        self._next = 0.0
        self._since: Load | None = None

    def after_step(self, now: float | None = None) -> str | None:
        """Returns a note if the steps of the last seconds were crowded; then, and only once.

        Args:
            now: of ``time.perf_counter``, which is asked when None.
        """
        now = time.perf_counter() if now is None else now
        if self._read is None or self._threads < 2 or now < self._next:
            return None
        load, self._next = self._read(), now + _SECONDS
        before, self._since = self._since, load
        if load is None:
            self.close()
            return None
        if before is None:
            return None
        note = self._note(before, load)
        if note is not None:
            self.close()
        return note

    def close(self) -> None:
        """Looks no more; may be called again."""
        self._read = None
        if self._counters is not None:
            self._counters.close()

    def _note(self, before: Load, now: Load) -> str | None:
        wall = now.wall - before.wall
        if wall <= 0.0:
            return None
        others = max(0.0, now.busy - before.busy - (now.ours - before.ours)) / wall
        waited = (now.waited - before.waited) / wall
        fitting = max(1, int(self._cores - others))
        too_many = self._threads + others - self._cores
        if fitting >= self._threads or too_many < _TOO_MANY or waited < _WAITED * self._threads:
            return None
        return (
            f"other programs use {others:.1f} of {counted(self._cores, 'core')}, and the "
            f"{counted(self._threads, 'thread')} of this training waited for a core "
            f"{min(1.0, waited / self._threads):.0%} of the time: --threads {fitting} "
            f"(OMP_NUM_THREADS={fitting}) makes them fit, which is faster where threads wait for "
            "each other"
        )
