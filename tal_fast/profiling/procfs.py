# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of this process and of the machine; None where it does not say."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import NamedTuple

import psutil

__all__ = [
    "Machine",
    "QueueWait",
    "bytes_read",
    "children_cpu",
    "machine_cpu",
    "others_since",
    "throttled",
]

_PROC = Path("/proc")
_TASKS = "/proc/self/task"


class QueueWait:
    """The time that threads of this process were ready and waited for a core.

    The second number of ``/proc/self/task/*/schedstat``. Files stay open: to read one again takes a
    tenth of opening it. Of a thread that has ended what was seen last counts on.
    """

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._nanoseconds: dict[str, int] = {}

    def look(self) -> None:
        """Looks for threads that are new."""
        try:
            threads = os.listdir(_TASKS)
        except OSError:
            return
        for thread in threads:
            if thread not in self._files:
                with contextlib.suppress(OSError):
                    self._files[thread] = os.open(f"{_TASKS}/{thread}/schedstat", os.O_RDONLY)

    def seconds(self) -> float | None:
        """Returns the sum over the threads; None where the system does not say."""
        for thread, file in list(self._files.items()):
            try:
                self._nanoseconds[thread] = int(os.pread(file, 96, 0).split()[1])
            except (OSError, IndexError, ValueError):  # it has ended
                os.close(self._files.pop(thread))
        return sum(self._nanoseconds.values()) / 1e9 if self._nanoseconds else None

    def close(self) -> None:
        """Closes the files; may be called again."""
        while self._files:
            os.close(self._files.popitem()[1])


class Machine(NamedTuple):
    """Time of all cores since the machine was started, in seconds.

    Attributes:
        busy: spent on programs and the system.
        steal: taken by the host of a virtual machine.
    """

    busy: float
    steal: float


def machine_cpu() -> Machine | None:
    """Returns what all cores together have done; None where the system does not say."""
    try:
        with open(_PROC / "stat", encoding="ascii") as file:
            words = file.readline().split()
        ticks = [int(word) for word in words[1:9]]
    except (OSError, ValueError):
        return None
    if words[0] != "cpu" or len(ticks) < 8:
        return None
    user, nice, system, _, _, interrupts, soft, steal = ticks
    per_second = os.sysconf("SC_CLK_TCK")
    return Machine((user + nice + system + interrupts + soft) / per_second, steal / per_second)


def others_since(wall: float, cpu: float, machine: Machine | None) -> float | None:
    """Returns the cores that others have used since; None where the system does not say.

    Args:
        wall: of ``time.perf_counter`` then.
        cpu: of ``time.process_time`` then.
        machine: of :func:`machine_cpu` then.
    """
    now = machine_cpu()
    if machine is None or now is None:
        return None
    busy, this_process = now.busy - machine.busy, time.process_time() - cpu
    return max(0.0, busy - this_process) / (time.perf_counter() - wall)


def children_cpu(process: psutil.Process) -> float:
    """Returns the CPU seconds of the processes that a process has started and that still run."""
    total = 0.0
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def bytes_read(process: psutil.Process) -> tuple[int, int] | None:
    """Returns the bytes that a process has asked for, and those that came from storage."""
    try:
        counters = (_PROC / str(process.pid) / "io").read_text("ascii")
        values = dict(line.split(": ") for line in counters.splitlines())
        return int(values["rchar"]), int(values["read_bytes"])
    except (OSError, KeyError, ValueError):
        return None


def throttled() -> int | None:
    """Returns how often the limit of this process's control group held it back."""
    for place in ("/sys/fs/cgroup/cpu.stat", "/sys/fs/cgroup/cpu/cpu.stat"):
        try:
            statistics = Path(place).read_text("ascii")
            return int(dict(line.split() for line in statistics.splitlines())["nr_throttled"])
        except (OSError, KeyError, ValueError):
            continue
    return None
