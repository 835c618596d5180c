# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of this process and of the machine; None where it does not say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import psutil

__all__ = ["Machine", "bytes_read", "children_cpu", "machine_cpu", "queue_wait", "throttled"]

_PROC = Path("/proc")


def queue_wait() -> float | None:
    """Returns the seconds that all threads of this process were ready and waited for a core.

    The second number of ``/proc/self/task/*/schedstat``; threads that have ended are not in it.
    """
    total = 0
    try:
        threads = os.listdir("/proc/self/task")
    except OSError:
        return None
    for thread in threads:
        try:
            with open(f"/proc/self/task/{thread}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[1])
        except (OSError, IndexError, ValueError):
            continue
    return total / 1e9


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
        text = (_PROC / str(process.pid) / "io").read_text("ascii")
        values = dict(line.split(": ") for line in text.splitlines())
        return int(values["rchar"]), int(values["read_bytes"])
    except (OSError, KeyError, ValueError):
        return None


def throttled() -> int | None:
    """Returns how often the limit of this process's control group held it back."""
    for place in ("/sys/fs/cgroup/cpu.stat", "/sys/fs/cgroup/cpu/cpu.stat"):
        try:
            text = Path(place).read_text("ascii")
            return int(dict(line.split() for line in text.splitlines())["nr_throttled"])
        except (OSError, KeyError, ValueError):
            continue
    return None
