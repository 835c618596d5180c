# SPDX-License-Identifier: Apache-2.0
"""HDF5 files are touched by another process first: HDF5's own library crashes on some damaged ones.

A file is touched once for as long as its size and time stay. That takes about as long as finding
its datasets does (0.5 ms a file, 65 µs a dataset), and 0.15 s once for the start of the process.
``TAL_FAST_HDF5_PROBE=0`` does without.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tal_fast.errors import ConfigError, DataError

__all__ = ["require_whole"]

_VARIABLE = "TAL_FAST_HDF5_PROBE"
_PROGRAM = Path(__file__).with_name("hdf5_probe.py")

_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL}

_State = tuple[int, int, int, int]  # device, inode, size, time of change in ns


class _Probe:
    """The process of :mod:`tal_fast.data.formats.hdf5_probe`, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[str] | None = None
        self._parents: list[subprocess.Popen[str]] = []
        self._whole: set[_State] = set()

    def check(self, path: str, state: _State) -> None:
        with self._lock:
            if state not in self._whole:
                self._touch(path)
                self._whole.add(state)

    def _touch(self, path: str) -> None:
        running = self._process()
        assert running.stdin is not None
        assert running.stdout is not None
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            running.stdin.write(json.dumps(path) + "\n")
            running.stdin.flush()
            answer = running.stdout.readline()
        if answer:
            return
        status = running.wait()
        self.close()
        if -status in _CRASHES:
            raise DataError(
                f"{path}: HDF5's own library crashes on it ({signal.Signals(-status).name}): the "
                "file is damaged"
            )
        raise DataError(
            f"{path}: the process that looks at HDF5 files first ended with status {status} "
            f"before it was through; {_VARIABLE}=0 does without it"
        )

    def _process(self) -> subprocess.Popen[str]:
        if self._running is None:
            self._running = subprocess.Popen(
                [sys.executable, str(_PROGRAM), *map(str, sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                # A Ctrl-C is for the one that asks; this one ends with it.
                start_new_session=True,
            )
        return self._running

    def close(self) -> None:
        """Ends the process."""
        running, self._running = self._running, None
        if running is not None:
            _close_pipes(running)
            running.wait()

    def leave_to_parent(self) -> None:
        """After a fork: the process is the parent's, and ends when that closes its pipes."""
        self._lock = threading.Lock()  # a thread that is no more may have held it
        if self._running is not None:
            _close_pipes(self._running)
            self._parents.append(self._running)
            self._running = None


def _close_pipes(running: subprocess.Popen[str]) -> None:
    for pipe in (running.stdin, running.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):
            pipe.close()


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
    if setting == "1" and sys.executable:
        _probe.check(path, (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns))
