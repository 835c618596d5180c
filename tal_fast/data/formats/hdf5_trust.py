# SPDX-License-Identifier: Apache-2.0
"""HDF5 files are touched by another process first: HDF5's own library crashes on some damaged ones.

A file is touched once for as long as its size and time stay, and each time if it leads to others.
That takes about as long as finding its datasets does (0.5 ms a file, 65 µs a dataset), and 0.15 s
once for the start of the process. ``TAL_FAST_HDF5_PROBE=0`` does without.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing.spawn
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from tal_fast.errors import ConfigError, DataError, os_reason

__all__ = ["require_whole"]

_VARIABLE = "TAL_FAST_HDF5_PROBE"
_PROGRAM = Path(__file__).with_name("hdf5_probe.py")

_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL}
_TRIES = 2  # it may have been killed for reasons of its own
_SECONDS_TO_END = 1.0  # of a process that may be in the middle of a file

_IS_FROZEN = getattr(sys, "frozen", False)  # a program that would be started once more

_State = tuple[int, int, int, int]  # device, inode, size, time of change in ns


class _Probe:
    """The process of :mod:`tal_fast.data.formats.hdf5_probe`, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._parents: list[subprocess.Popen[bytes]] = []
        self._requests = 0
        self._whole: set[_State] = set()

    @property
    def pid(self) -> int | None:
        """Of the process; None where none runs."""
        return None if self._running is None else self._running[0].pid

    def check(self, path: str, state: _State) -> None:
        with self._lock:
            if state not in self._whole and not self._touch(path):
                self._whole.add(state)

    def _touch(self, path: str) -> bool:
        """Returns whether the file leads to others."""
        status = 0
        for _ in range(_TRIES):
            try:
                answer = self._ask(path)
            except BaseException:  # an answer that is still to come would be taken for the next
                self.close()
                raise
            if answer is not None:
                return answer
            status = self.close()
        if -status in _CRASHES:
            raise DataError(
                f"{path}: HDF5's own library crashes on it ({signal.Signals(-status).name}): the "
                "file is damaged"
            )
        raise DataError(
            f"{path}: the process that looks at HDF5 files first ended with status {status} "
            f"before it was through; {_VARIABLE}=0 does without it"
        )

    def _ask(self, path: str) -> bool | None:
        """Returns the answer; None if the process has ended."""
        try:
            channel = self._channel()
        except OSError as error:
            raise DataError(
                f"{path}: cannot start the process that looks at HDF5 files first: "
                f"{os_reason(error)}; {_VARIABLE}=0 does without it"
            ) from error
        self._requests += 1
        received = b""
        try:
            channel.sendall(json.dumps([self._requests, path]).encode() + b"\n")
            while not received.endswith(b"\n"):
                part = channel.recv(4096)
                if not part:
                    return None
                received += part
        except (BrokenPipeError, ConnectionResetError):
            return None
        number, depends = json.loads(received)
        assert number == self._requests
        return bool(depends)

    def _channel(self) -> socket.socket:
        if self._running is None:
            ours, theirs = socket.socketpair()
            with contextlib.ExitStack() as unless_started, theirs:
                unless_started.enter_context(ours)
                # What multiprocessing starts: a program that embeds Python names it there.
                command = [multiprocessing.spawn.get_executable(), str(_PROGRAM)]
                process = subprocess.Popen(
                    [*map(os.fsdecode, command), str(theirs.fileno()), *map(str, sys.path)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    # A Ctrl-C is for the one that asks; this one ends with it.
                    start_new_session=True,
                )
                unless_started.pop_all()
            self._running = process, ours
        return self._running[1]

    def close(self) -> int:
        """Ends the process, in whatever it is. Returns its status; 0 where none ran."""
        running, self._running = self._running, None
        if running is None:
            return 0
        process, channel = running
        channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_SECONDS_TO_END)
        process.kill()
        return process.wait()

    def leave_to_parent(self) -> None:
        """After a fork: the process is the parent's, and ends when that closes the channel."""
        self._lock = threading.Lock()  # a thread that is no more may have held it
        if self._running is not None:
            process, channel = self._running
            channel.close()
            self._parents.append(process)
            self._running = None


_probe = _Probe()
atexit.register(_probe.close)
os.register_at_fork(after_in_child=_probe.leave_to_parent)


def require_whole(path: str, about: os.stat_result) -> None:
    """Checks that HDF5 can walk over a file and live.

    Args:
        path: an absolute path.
        about: of the file.

    Raises:
        ConfigError: the environment variable is neither 0 nor 1.
        DataError: it cannot.
    """
    setting = os.environ.get(_VARIABLE, "1")
    if setting not in ("0", "1"):
        raise ConfigError(f"{_VARIABLE}: expected 0 or 1, got {setting!r}")
    if setting == "1" and multiprocessing.spawn.get_executable() and not _IS_FROZEN:
        _probe.check(path, (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns))
