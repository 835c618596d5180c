# SPDX-License-Identifier: Apache-2.0
"""Processes and threads that tests start: what to wait for, and that none outlives its test."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from tal_fast.study.execution.ray.process import make_short_directory

#: Seconds that only a hang takes, however busy the machine is.
HANG = 600.0
#: The variable by which processes are known whose parents may be gone; their children inherit it.
MARK = "TAL_FAST_TEST_MARK"


def wait_for(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end, f"waited too long for {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def started(command: list[Any], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process in a session of its own, which ends with the block, whatever happens there."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[Any]) -> None:
    """Ends a process and its group, and leaves nothing of it that could warn later."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def has_ended(pid: int) -> bool:
    """Whether a process runs no more; its parent may not have asked for its status yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def marked(mark: str) -> list[psutil.Process]:
    """The processes that were started with this mark in their environment, and run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill_marked(mark: str) -> None:
    while left := marked(mark):
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1.0)


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory with room for sockets below it, wherever the temporary directory is."""
    directory = make_short_directory()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def thread_ids() -> set[str]:
    """The threads of this process. A joined one is among them until the kernel has let it go."""
    return set(os.listdir("/proc/self/task"))


def wait_for_threads(before: set[str]) -> None:
    """Waits for the end of all threads that were not there before."""
    wait_for(lambda: thread_ids() <= before, "the end of threads")
