# SPDX-License-Identifier: Apache-2.0
"""A process of ours that reads lines and answers with JSON, seen from the one that starts it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["ChildProcess"]


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
            self._reader.start()
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
