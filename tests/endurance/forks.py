# SPDX-License-Identifier: Apache-2.0
"""``tal-fast`` in a process that has imported everything already: a start costs a fork.

``python forks.py`` is the process that forks, with the library of :mod:`endurance.faults` loaded.
It obeys lines of JSON on standard input, and answers each with one. Every command that it starts
has a session of its own, and ends with it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_PACKAGES = ("cli", "curves", "data", "evaluation", "models", "study", "training")
_OTHERS = (
    "jinja2",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "scipy.optimize",
    "scipy.stats",
    "torch._dynamo",
)
#: One thread each: what forks has none of its own, and the bits are the same whoever computes them.
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: exit status, negative for a signal.
        output: what it printed, both streams together.
        calls: calls that its faults counted; 0 where it was killed.
    """

    status: int
    output: str
    calls: int

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.status == -signal.SIGKILL


class Command:
    """A command that runs."""

    def __init__(self, forks: Forks, pid: int, log: Path) -> None:
        self._forks = forks
        self._log = log
        self._ended: Ended | None = None
        self.pid = pid

    def poll(self) -> Ended | None:
        """Returns how it ended, None while it runs."""
        if self._ended is None:
            status = self._forks.ask({"poll": self.pid})
            if status is not None:
                calls = self._log.with_suffix(".calls")
                self._ended = Ended(
                    os.waitstatus_to_exitcode(status),
                    self._log.read_text(encoding="utf-8", errors="replace"),
                    int(calls.read_text()) if calls.exists() else 0,
                )
        return self._ended

    def wait(self) -> Ended:
        """Waits for its end."""
        while (ended := self.poll()) is None:
            time.sleep(0.02)
        return ended

    def kill(self) -> None:
        """Kills it and waits for its end; what it started is another matter."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def interrupt(self, number: int) -> None:
        """Sends it a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Forks:
    """The process that forks, as seen from outside.

    Args:
        folder: for what commands print.
        environment: more variables of it and of all that it starts.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._number = 0
        self._process = subprocess.Popen(
            [sys.executable, HERE / "forks.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **THREADS, **environment},
            text=True,
        )
        assert self._read() == "ready"

    def close(self) -> None:
        """Ends it."""
        self._process.communicate()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the forking process is gone: {self._process.wait()}")
        return json.loads(line)

    def ask(self, message: Mapping[str, Any]) -> Any:
        """Sends a line, returns the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        return self._read()

    def start(
        self,
        arguments: Sequence[str | Path],
        *,
        faults: str = "",
        environment: Mapping[str, str] | None = None,
        kind: str = "tal-fast",
    ) -> Command:
        """Starts ``tal-fast ARGUMENTS``.

        Args:
            arguments: of the command.
            faults: text of :class:`endurance.faults.Faults` for this process; none when empty.
            environment: more variables, for it and what it starts.
            kind: ``tal-fast``, or ``module:function`` that is called with the arguments as
                texts and returns the exit status.
        """
        self._number += 1
        log = self._folder / f"{self._number:06}.log"
        pid = self.ask(
            {
                "start": [str(argument) for argument in arguments],
                "kind": kind,
                "faults": faults,
                "environment": dict(environment or {}),
                "log": str(log),
            }
        )
        return Command(self, pid, log)

    def run(self, arguments: Sequence[str | Path], **options: Any) -> Ended:
        """Starts a command and waits for its end."""
        return self.start(arguments, **options).wait()


@contextlib.contextmanager
def forking(folder: Path, library: Path, environment: Mapping[str, str]) -> Iterator[Forks]:
    """Gives a process that forks, and ends it with what it has started."""
    folder.mkdir(parents=True, exist_ok=True)
    forks = Forks(folder, {**environment, "LD_PRELOAD": str(library)})
    try:
        yield forks
    finally:
        forks.close()


def _import_everything() -> None:
    import tal_fast

    for package in _PACKAGES:
        found = importlib.import_module(f"tal_fast.{package}")
        for module in pkgutil.walk_packages(found.__path__, f"tal_fast.{package}."):
            # Ray is loaded where it is used, in a process of its own.
            if ".ray" not in module.name and not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    assert tal_fast.__version__
    for name in _OTHERS:
        importlib.import_module(name)


def _command(message: Mapping[str, Any]) -> int:
    """Runs in the forked process."""
    from endurance import faults

    if message["kind"] == "tal-fast":
        from tal_fast.cli import main

        def call() -> Any:
            return main(message["start"])
    else:
        module, _, function = message["kind"].partition(":")
        work = getattr(importlib.import_module(module), function)

        def call() -> Any:
            return work(*message["start"])

    os.environ.pop("LD_PRELOAD")  # what the command starts has it only where it is told so
    os.environ.update(message["environment"])
    if message["faults"] and not _armed(faults, message["faults"]):
        return 70
    try:
        return int(call() or 0)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        return 130


def _armed(faults: Any, text: str) -> bool:
    import ctypes

    return bool(ctypes.CDLL(None).endurance_faults_arm(text.encode()))


def _fork(message: Mapping[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log = os.open(message["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDONLY)
        for descriptor, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, target)
        os.closerange(3, 256)
        sys.stdout.reconfigure(line_buffering=True)
        sys.argv[:] = ["tal-fast", *message["start"]]
        status = _command(message)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        from endurance import faults

        if message["faults"]:
            Path(message["log"]).with_suffix(".calls").write_text(str(faults.count()))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Forks as it is told."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    _import_everything()
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"expected one thread before a fork, found {len(threads)}"
    answer("ready")
    running: set[int] = set()
    for line in sys.stdin:
        message = json.loads(line)
        if "start" in message:
            pid = _fork(message)
            running.add(pid)
            answer(pid)
        else:
            pid, status = os.waitpid(message["poll"], os.WNOHANG)
            running.discard(pid)
            answer(status if pid else None)
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE.parent / "study")]
    sys.path.remove(str(HERE))
    main()
