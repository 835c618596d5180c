# SPDX-License-Identifier: Apache-2.0
"""How trials end, how that travels between processes, and the processes that it comes from."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tal_fast.errors import ConfigError, DataError, TalFastError
from tal_fast.study.trial import TrialRecord, TrialTask
from tal_fast.threads import start_thread

__all__ = [
    "Channel",
    "ChildProcess",
    "Executor",
    "Outcome",
    "Progress",
    "Supply",
    "Throttle",
    "failure",
    "describe_error",
    "is_environment_error",
    "rebuild_error",
    "supply_of",
]

Progress = Callable[[str, dict[str, Any]], None]
"""Receives (trial name, the fields of a progress event)."""

Supply = Callable[[], TrialTask | None]
"""Chooses the next task, None where there is none now. Asked at the beginning, and again once the
outcome of a trial was taken; a run is over when nothing runs and there is none."""


def supply_of(tasks: Sequence[TrialTask] | Supply) -> Supply:
    """Returns a supply of tasks that may have been chosen before."""
    if callable(tasks):
        return tasks
    waiting = iter(tasks)
    return lambda: next(waiting, None)


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        trial: its name.
        record: what it gave, or None when it failed.
        error: why it failed, or None.
        traceback: the traceback of the failure, as text.
    """

    trial: str
    record: TrialRecord | None = None
    error: Exception | None = None
    traceback: str = ""

    @classmethod
    def of_message(cls, message: Mapping[str, Any]) -> Outcome:
        """Returns the outcome that another process tells, under ``done`` or as :func:`failure`."""
        name = message["trial"]
        if "done" in message:
            return cls(name, record=TrialRecord.from_dict(message["done"], f"trial {name}"))
        error = rebuild_error(message["failed"])
        return cls(name, error=error, traceback=message["traceback"])


class Executor(Protocol):
    """Runs tasks somewhere."""

    def run(
        self, tasks: Sequence[TrialTask] | Supply, progress: Progress
    ) -> Generator[Outcome, None, None]:
        """Yields an outcome per task as trials end, in any order.

        Closing the generator, or an exception in it (Ctrl-C), stops the running trials and leaves
        no process behind.
        """
        ...


def is_environment_error(error: BaseException) -> bool:
    """Returns whether every other trial would fail as well: bad settings, full disk, no access."""
    return isinstance(error, (OSError, ConfigError)) or isinstance(error.__cause__, OSError)


def describe_error(error: BaseException) -> dict[str, Any]:
    """Returns an exception as JSON can carry it."""
    described: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    for kind in (ConfigError, DataError, TalFastError):
        if isinstance(error, kind):
            described["kind"] = kind.__name__
            break
    system = error if isinstance(error, OSError) else error.__cause__
    if isinstance(system, OSError) and system.errno is not None:
        name = None if system.filename is None else str(system.filename)
        described["system"] = [system.errno, system.strerror, name]
    return described


def rebuild_error(described: dict[str, Any]) -> Exception:
    """Returns the exception that :func:`describe_error` took apart, or the nearest to it."""
    kinds = {"ConfigError": ConfigError, "DataError": DataError, "TalFastError": TalFastError}
    system = OSError(*described["system"]) if "system" in described else None
    if "kind" in described:
        error = kinds[described["kind"]](described["message"])
        error.__cause__ = system
        return error
    return system or TalFastError(f"{described['type']}: {described['message']}")


def failure(error: BaseException, where: str = "") -> dict[str, Any]:
    """Returns the exception that is being handled as the part of a message that tells it."""
    return {"failed": describe_error(error), "traceback": where + traceback.format_exc()}


class Throttle:
    """Lets the first event of each stage pass, and of the others one per ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = 0.0
        self._stage: Any = None

    def lets_pass(self, event: Mapping[str, Any]) -> bool:
        """Returns whether this event is worth sending."""
        now = time.monotonic()
        if event["stage"] == self._stage and now - self._last < self._seconds:
            return False
        self._stage, self._last = event["stage"], now
        return True


class Channel:
    """What a child process says to :class:`ChildProcess`: one JSON object per line.

    It takes over the standard output that the process was started with. What is printed from then
    on goes to standard error, and so never between the messages.
    """

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, **message: Any) -> None:
        """Sends a message."""
        self._stream.write(json.dumps(message) + "\n")
        self._stream.flush()


class ChildProcess:
    """Runs ``python -m module``; a thread reads what it says.

    It has a session of its own, so that Ctrl-C reaches this process alone.

    Args:
        module: what runs in it.
        log: file for what it prints to standard error; removed at the end if nothing is in it.
        environment: variables that differ from this process's.
        receive: called in the thread with every message, at the end with None.
    """

    def __init__(
        self,
        module: str,
        log: Path,
        environment: Mapping[str, str],
        receive: Callable[[dict[str, Any] | None], None],
    ) -> None:
        self._log = log
        self._receive = receive
        path = os.pathsep.join(path for path in sys.path if path)
        with open(log, "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": path, **environment},
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        try:
            start_thread(self._reader, module)
        except BaseException:  # as where the system has no more threads
            self.kill()
            self.close(0.0)
            raise

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):  # the last line of a killed process may be cut
                self._receive(json.loads(line))
        self._receive(None)

    def write(self, lines: Iterable[str]) -> None:
        """Hands over lines; that the process is gone is told by its output."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            for line in lines:
                self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()

    def last_words(self, most: int = 4000) -> str:
        """Returns the end of what it printed."""
        with contextlib.suppress(OSError):
            return self._log.read_text(errors="replace")[-most:]
        return ""

    def kill(self) -> None:
        """Ends it and what it started, now."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close_input(self) -> None:
        """Says that nothing more comes."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def close(self, seconds: float) -> None:
        """Closes the pipes of a process that has ended; its last messages may take ``seconds``."""
        self.close_input()
        if self.process.stdout is not None:
            self.process.stdout.close()
        if self._reader.ident is not None:
            self._reader.join(timeout=seconds)
        with contextlib.suppress(OSError):
            if self._log.stat().st_size == 0:
                self._log.unlink()
