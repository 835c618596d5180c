# SPDX-License-Identifier: Apache-2.0
"""The process that knows Ray, seen from the study's process: its start, its messages, its end.

What runs in it is :mod:`tal_fast.study.execution.ray.driver`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tal_fast.errors import ConfigError, TalFastError
from tal_fast.study.execution.messages import ChildProcess, rebuild_error
from tal_fast.study.trial import TrialTask

__all__ = ["DriverProcess", "make_short_directory", "short_directory_if_needed"]

# Ray's sockets lie this far below the directory it is given, and Linux knows no longer paths.
_SOCKET = "/ray/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store.1"
_LONGEST = 107 - len(_SOCKET)
_SECONDS_TO_DIE = 30.0


def make_short_directory() -> Path:
    """Makes a directory whose path leaves room for those of Ray's sockets.

    It is in the temporary directory, or in one of the system's where that has a long path.

    Raises:
        ConfigError: none of them has a short path and can be written.
    """
    parents = dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"])
    for parent in parents:
        with contextlib.suppress(OSError):
            path = Path(tempfile.mkdtemp(prefix="tf", dir=parent))
            if len(os.fsencode(path)) <= _LONGEST:
                return path
            path.rmdir()
    raise ConfigError(
        f"ray: expected to write in a temporary directory whose path has less than {_LONGEST} "
        f"bytes, tried {', '.join(parents)}: set RAY_TMPDIR to one"
    )


def short_directory_if_needed(environment: Mapping[str, str]) -> Path | None:
    """Makes a directory for a cluster of this machine's own if the one that Ray takes is no use.

    Ray takes ``RAY_TMPDIR``, else ``TMPDIR``, else ``/tmp``. Batch systems like a ``TMPDIR`` with a
    path that is too long for sockets.

    Args:
        environment: in which Ray will run.

    Returns:
        The new directory, for ``RAY_TMPDIR``; None where Ray's own choice is good.

    Raises:
        ConfigError: ``RAY_TMPDIR`` is too long, or as :func:`make_short_directory`.
    """
    asked = environment.get("RAY_TMPDIR")
    path = environment.get("TMPDIR", "/tmp") if asked is None else asked
    length = len(os.fsencode(os.path.abspath(path)))
    if length <= _LONGEST:
        return None
    if asked is not None:
        raise ConfigError(
            f"RAY_TMPDIR: expected a path of at most {_LONGEST} bytes, because Ray's sockets are "
            f"below it, got {length}: {asked}"
        )
    return make_short_directory()


class DriverProcess:
    """The process that knows Ray, and the threads that talk with it.

    Args:
        options: first line of what it is told.
        logs: directory for what Ray prints.
        files: directory for Ray's files instead of the one that Ray would choose; it is removed at
            the end.
    """

    def __init__(self, options: dict[str, Any], logs: Path, files: Path | None = None) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._files = files
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._writer: threading.Thread | None = None
        environment = {} if files is None else {"RAY_TMPDIR": str(files)}
        self._child = ChildProcess(
            "tal_fast.study.execution.ray.driver",
            logs / "ray.log",
            environment,
            self._messages.put,
        )
        self._child.write([json.dumps(options)])

    def feed(self, tasks: Sequence[TrialTask]) -> None:
        """Hands over the tasks, while this process goes on."""
        lines = [json.dumps({"name": task.trial.name, "task": task.to_json()}) for task in tasks]
        self._writer = threading.Thread(target=self._child.write, args=(lines,), daemon=True)
        self._writer.start()

    def receive(self, seconds: float) -> dict[str, Any]:
        """Returns the next message.

        Raises:
            queue.Empty: there was none for so long.
            TalFastError: what the process gave as the reason of its end, or that it ended.
        """
        message = self._messages.get(timeout=seconds)
        if message is None:
            status = self._child.process.wait()
            raise TalFastError(
                f"ray: the connection to the cluster was lost (status {status}); finished trials "
                f"are kept, and the same command goes on. {self.last_words()}".rstrip()
            )
        if "fatal" in message:
            raise rebuild_error(message["fatal"])
        return message

    def expect(self, key: str, seconds: float) -> Any:
        """Returns what the message with this key says; others before it are dropped.

        Raises:
            As :meth:`receive`.
        """
        end = time.monotonic() + seconds
        while True:
            message = self.receive(max(0.01, end - time.monotonic()))
            if key in message:
                return message[key]

    def last_words(self) -> str:
        """Returns the end of what Ray printed."""
        return self._child.last_words(2000)

    def end(self, seconds: float) -> None:
        """Makes the process end: by a word, and by force when it needs longer than ``seconds``."""
        try:
            if seconds > 0:
                if self._writer is not None:
                    self._writer.join(seconds)
                self._child.write(["stop"])
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._child.process.wait(seconds)
        finally:  # also at a second Ctrl-C
            self._kill()

    def _kill(self) -> None:
        # A cluster of this machine's own consists of children of this process.
        left: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            left = psutil.Process(self._child.process.pid).children(recursive=True)
        self._child.kill()
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=_SECONDS_TO_DIE)
        self._child.close(_SECONDS_TO_DIE)
        if self._files is not None:
            shutil.rmtree(self._files, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._logs.rmdir()  # fails if there is more
