# SPDX-License-Identifier: Apache-2.0
"""Cases in a warm process of their own, which is watched: for crashes, hangs, time and memory.

A case is lost if it raises anything but what its subject expects, ends its process, takes more CPU
time than :data:`CPU_SECONDS`, or more memory than ten times its file (and :data:`SPARE_BYTES`,
which any small object may take).
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from endurance.record import Batch, Failure, Kind, Outcome, Part, why
from endurance.subject import Subject

__all__ = ["CPU_SECONDS", "SPARE_BYTES", "begin_peak", "memory_of", "part_of", "watch"]

CPU_SECONDS = 5.0
SPARE_BYTES = 64 << 20
#: No case may take the machine's memory with it: beyond this, allocations fail.
_ROOM = 4 << 30
#: A process that has used so much CPU time in one case will not end by itself.
_HUNG = 60.0
_TIMES = 10
#: Files are written, read once and deleted: on a disk, that is most of a case's time.
_MEMORY = "/dev/shm"


def memory_of(name: str) -> int:
    """Returns a number of bytes of /proc/self/status."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(f"{name}:"))


def begin_peak() -> int:
    """Makes the kernel forget how much memory this process once had; returns what it has."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return memory_of("VmRSS")


def watch(subject: Subject, seed: str) -> bool:
    """Runs a case, and returns whether the library took its file.

    Raises:
        AssertionError: the case was lost.
    """
    path, attempt = subject.case(seed)
    size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
    before, began = begin_peak(), time.process_time()
    taken = attempt()
    used, peak = time.process_time() - began, memory_of("VmHWM") - before
    assert used < CPU_SECONDS, f"{used:.1f} s of CPU time"
    assert peak <= _TIMES * size + SPARE_BYTES, f"{peak:,} bytes of memory for {size:,} of files"
    return taken


def _warm(subject: Subject) -> None:
    """Runs some cases and the commands, unwatched: what they import takes time and memory once."""
    for number in range(5):
        path, attempt = subject.case(f"warm {number}")
        attempt()
        subject.commands(path, random.Random(number))


def _work(kind: type[Subject], folder: str, pipe: Connection, at: Any) -> None:
    """The child: takes batches, gives outcomes."""
    faulthandler.enable()
    os.environ["TMPDIR"] = folder
    tempfile.tempdir = None
    subject = kind(Path(folder))
    _warm(subject)
    resource.setrlimit(resource.RLIMIT_AS, (memory_of("VmSize") + _ROOM, resource.RLIM_INFINITY))
    pipe.send("ready")
    while True:
        try:
            batch: Batch = pipe.recv()
        except EOFError:
            return
        outcome = Outcome()
        for number in batch.numbers:
            at.value = number
            try:
                taken = watch(subject, str(batch.seed_of(number)))
            except Exception as error:
                traceback.print_exc()
                outcome.failures.append(Failure(number, why(error)))
            else:
                outcome.done += taken
                outcome.refused += not taken
        outcome.lost = len(outcome.failures)
        pipe.send(outcome)


def _fast_folder() -> str | None:
    """Returns a folder in memory that has room for files, None where there is none."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(_MEMORY).free >= _ROOM and os.access(_MEMORY, os.W_OK):
            return _MEMORY
    return None


class _Child:
    """A warm process for the cases of one subject."""

    def __init__(self, kind: type[Subject]) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.mkdtemp(prefix="tal-endurance-", dir=_fast_folder())
        self._at = context.Value("q", -1)
        self._pipe, other = context.Pipe()
        arguments = (kind, self._folder, other, self._at)
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        other.close()
        try:
            self._wait()
        except RuntimeError as error:  # no case's fault, but the program's
            raise SystemExit(f"{kind.name}: {error} before its first case") from None

    def run(self, batch: Batch) -> Outcome | Failure:
        """Returns the outcome of a batch, or the case that ended the process."""
        self._pipe.send(batch)
        try:
            found: Outcome = self._wait()
        except RuntimeError as error:
            return Failure(self._at.value, str(error))
        return found

    def _wait(self) -> Any:
        watched, number, began = psutil.Process(self._process.pid), -2, 0.0
        while not self._pipe.poll(1.0):
            try:
                times = watched.cpu_times()
            except psutil.Error:
                continue
            if self._at.value != number:
                number, began = self._at.value, times.user + times.system
            elif number >= 0 and times.user + times.system - began > _HUNG:
                raise RuntimeError(f"no end after {_HUNG:g} s of CPU time")
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"the process ended with {self._process.exitcode}") from None

    def close(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()
        shutil.rmtree(self._folder, ignore_errors=True)


class _Children:
    """The warm processes of a part, made when their first case comes."""

    def __init__(self, subjects: Mapping[str, type[Subject]]) -> None:
        self._subjects = subjects
        self._name, self._child = "", contextlib.ExitStack()
        self._running: _Child | None = None

    def run(self, batch: Batch) -> Outcome:
        total, number, end = Outcome(), batch.first, batch.first + batch.count
        while number < end:
            if self._running is None or self._name != batch.kind:
                self.close()
                self._name, self._running = batch.kind, _Child(self._subjects[batch.kind])
            found = self._running.run(Batch(batch.kind, batch.seed, number, end - number))
            if isinstance(found, Failure):
                # What came before it in this batch is tried again, and counted then.
                self.close()
                before = found.number - number
                if before:
                    total = _sum(total, self.run(Batch(batch.kind, batch.seed, number, before)))
                total = _sum(total, Outcome(failures=[found]))
                number = found.number + 1
            else:
                return _sum(total, found)
        return total

    def close(self) -> None:
        if self._running is not None:
            self._running.close()
        self._running = None


def _sum(one: Outcome, other: Outcome) -> Outcome:
    return Outcome(
        one.done + other.done, one.refused + other.refused, [*one.failures, *other.failures]
    )


def part_of(
    name: str, title: str, subjects: Mapping[type[Subject], int], *, batch: int = 250
) -> Part:
    """Makes a part of subjects and the counts that they are to reach."""

    @contextlib.contextmanager
    def prepare() -> Iterator[_Children]:
        children = _Children({kind.name: kind for kind in subjects})
        with contextlib.closing(children):
            yield children

    def run(place: _Children, some: Batch) -> Outcome:
        sys.stderr.flush()
        return place.run(some)

    kinds = [Kind(kind.name, "cases", goal, run, batch) for kind, goal in subjects.items()]
    return Part(name, title, kinds, prepare)
