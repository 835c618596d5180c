# SPDX-License-Identifier: Apache-2.0
"""A thread that looks at this process and the machine five times a second."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, fields

import psutil

from tal_fast.profiling import procfs
from tal_fast.threads import start_thread

__all__ = ["Sample", "Sampler"]

_INTERVAL = 0.2  # seconds; a sample takes less than a millisecond
_CHILDREN = 1.0  # seconds; finding processes and threads takes longer, the more there are


@dataclass(frozen=True)
class Sample:
    """What was seen at one moment; None is what the system does not say.

    Attributes:
        time: of ``time.perf_counter``.
        cpu: CPU seconds of this process so far.
        children_cpu: CPU seconds of the processes below it, those that have ended aside.
        machine_busy: CPU seconds of everything on all cores.
        machine_steal: of all cores, what the host of a virtual machine took.
        queue_wait: seconds that threads of this process waited for a core.
        resident: bytes of memory of this process.
        read: bytes that it asked files for.
        read_storage: bytes of these that came from storage.
        throttled: how often its control group was held back.
    """

    time: float
    cpu: float
    children_cpu: float | None
    machine_busy: float | None
    machine_steal: float | None
    queue_wait: float | None
    resident: int
    read: int | None
    read_storage: int | None
    throttled: int | None

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Returns the names of all figures, in their order."""
        return tuple(field.name for field in fields(cls))


class Sampler:
    """Takes samples while it runs.

    Args:
        interval: seconds between two samples.

    Attributes:
        samples: taken so far; the last one when it is stopped.
    """

    def __init__(self, interval: float = _INTERVAL) -> None:
        self.samples: list[Sample] = []
        self._interval = interval
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._queue = procfs.QueueWait()
        self._children: float | None = None
        self._looked = -_CHILDREN

    def start(self) -> None:
        """Begins, with a sample.

        Raises:
            TalFastError: the system has no more threads.
        """
        self.samples.append(self._sample())
        thread = threading.Thread(target=self._run, name="tal_fast sampler", daemon=True)
        start_thread(thread, "profile: sampler")
        self._thread = thread

    def stop(self) -> None:
        """Ends, with a sample; may be called again."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        self.samples.append(self._sample())
        self._queue.close()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self.samples.append(self._sample())

    def _sample(self) -> Sample:
        now = time.perf_counter()
        if now - self._looked >= _CHILDREN:
            self._children, self._looked = self._children_cpu(), now
            self._queue.look()
        machine = procfs.machine_cpu()
        read = procfs.bytes_read(self._process)
        return Sample(
            time=now,
            cpu=time.process_time(),
            children_cpu=self._children,
            machine_busy=None if machine is None else machine.busy,
            machine_steal=None if machine is None else machine.steal,
            queue_wait=self._queue.seconds(),
            resident=self._process.memory_info().rss,
            read=None if read is None else read[0],
            read_storage=None if read is None else read[1],
            throttled=procfs.throttled(),
        )

    def _children_cpu(self) -> float | None:
        try:
            return procfs.children_cpu(self._process)
        except psutil.Error:
            return None
