# SPDX-License-Identifier: Apache-2.0
"""How trials end, how that travels between processes, and what an executor of trials is."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tal_fast.errors import ConfigError, DataError, TalFastError
from tal_fast.study.trial import TrialRecord, TrialTask

__all__ = [
    "Executor",
    "Outcome",
    "Progress",
    "Throttle",
    "describe_error",
    "failure",
    "is_environment_error",
    "rebuild_error",
]

Progress = Callable[[str, dict[str, Any]], None]
"""Receives (trial name, the fields of a progress event)."""


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

    def run(self, tasks: Sequence[TrialTask], progress: Progress) -> Generator[Outcome, None, None]:
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
