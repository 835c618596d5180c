# SPDX-License-Identifier: Apache-2.0
"""The Ray cluster of two nodes that ray_nodes.py runs, as seen from a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from processes import HANG, MARK, kill, kill_marked, marked, wait_for

HERE = Path(__file__).parent


class Nodes:
    """The cluster of ray_nodes.py; a ``with`` block starts it and leaves nothing of it."""

    def __init__(self, directory: Path) -> None:
        self._mark = str(directory)
        self.log = directory / "nodes.log"

    def __enter__(self) -> Nodes:
        environment = {**os.environ, MARK: self._mark, "RAY_USAGE_STATS_ENABLED": "0"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        environment["RAY_AUTH_MODE"] = "disabled"
        environment["RAY_worker_niceness"] = "0"  # the tests wait for the workers
        environment["RAY_memory_monitor_refresh_ms"] = "0"  # whatever else fills the memory
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, HERE / "ray_nodes.py", self._mark],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
                start_new_session=True,
            )
        try:
            self.address = self._answer()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._process.communicate(timeout=HANG)
            # Ray's agents need a few seconds to see that the rest is gone.
            wait_for(lambda: not marked(self._mark), "the end of Ray")
        finally:
            self._kill()

    def _kill(self) -> None:
        kill(self._process)
        kill_marked(self._mark)

    def _answer(self) -> str:
        # Ray prints a few lines of its own.
        for line in self._process.stdout:
            if line.startswith("done") or line[0].isdigit():
                return line.strip()
        raise AssertionError(self.log.read_text())

    def do(self, command: str) -> None:
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        self._answer()
