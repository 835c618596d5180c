# SPDX-License-Identifier: Apache-2.0
"""Runs trials on the machines of a Ray cluster.

All machines need the same tal_fast, Ray and Python, and storage that they share: a trial writes
into the study's directory, wherever it runs. The machines may come and go. A trial that is lost
with its machine goes on elsewhere from its last checkpoint, and a study that is started again after
its own machine died goes on as any other.

Ray itself is in a process of its own, see :mod:`tal_fast.study.execution.ray.driver`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import tal_fast
from tal_fast.data.files import write_text_atomically
from tal_fast.errors import ConfigError, DataError, MissingExtraError, TalFastError, os_reason
from tal_fast.study.execution.local import GRACE_SECONDS
from tal_fast.study.execution.messages import Outcome, Progress, Supply, supply_of
from tal_fast.study.execution.ray.process import DriverProcess, short_directory_if_needed
from tal_fast.study.execution.store import TOKEN
from tal_fast.study.trial import TrialTask
from tal_fast.threads import start_thread

__all__ = ["ClusterFacts", "RayCluster"]

_SECONDS_TO_REACH = 5.0
# Both only end what hangs: a busy machine with cold caches needs long for either.
_SECONDS_TO_IMPORT = 300.0
_SECONDS_TO_START = 300.0  # of a cluster of this machine's own
_SECONDS_OF_SILENCE = 180.0
_SECONDS_TO_END = 20.0
_SECONDS_TO_APPEAR = 60.0


@dataclass(frozen=True)
class ClusterFacts:
    """What a cluster has.

    Attributes:
        machines: its machines.
        slots: trials that they can run at a time.
        gpus: their GPUs.
        gpus_per_trial: the share that each trial gets.
    """

    machines: int
    slots: int
    gpus: float
    gpus_per_trial: float


def _check_address(address: str) -> tuple[str, int] | None:
    """Returns the host and port to reach, None for a cluster that Ray finds or starts itself.

    Raises:
        ConfigError: the address has no form that Ray knows.
    """
    if address in ("auto", "local"):
        return None
    scheme, separator, rest = address.rpartition("://")
    with contextlib.suppress(ValueError):
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port
        if scheme in ("", "ray") and (separator == "" or scheme) and host and port:
            return host, port
    raise ConfigError(
        f"ray: expected the address 'local', 'auto', 'HOST:PORT' or 'ray://HOST:PORT', "
        f"got {address!r}"
    )


def _check_reachable(address: str, host: str, port: int) -> None:
    """Opens a connection and closes it again.

    Raises:
        ConfigError: nobody is there.
    """
    causes: list[str] = ["no answer"]

    def try_it() -> None:
        try:
            socket.create_connection((host, port), timeout=_SECONDS_TO_REACH).close()
            causes.clear()
        except OSError as error:
            causes[:] = [os_reason(error)]

    # In a thread, because looking up a name knows no timeout.
    thread = threading.Thread(target=try_it, daemon=True)
    start_thread(thread, "ray")
    thread.join(2 * _SECONDS_TO_REACH)
    if causes:
        raise ConfigError(_unreachable(address, causes[0]))


def _unreachable(address: str, cause: str) -> str:
    if address.startswith("ray://"):
        hint = "is its head running, with Ray's client server at this port?"
    elif address == "local":
        hint = "Ray did not start on this machine"
    else:
        hint = (
            "is its head running ('ray start --head' there), and is this machine part of it ('ray "
            "start --address=HOST:PORT' here)?"
        )
    return f"ray: cannot reach the cluster at {address}: {cause}; {hint}"


class RayCluster:
    """Runs trials as tasks of a Ray cluster.

    Args:
        address: ``"local"`` starts a cluster on this machine, for as long as the study runs;
            ``"auto"`` is the one that this machine belongs to (or ``RAY_ADDRESS``); otherwise
            ``"HOST:PORT"`` of the head of a cluster that this machine belongs to, or
            ``"ray://HOST:PORT"`` from outside.
        threads: torch threads and Ray CPUs of each trial.
        logs: directory for what Ray has to say.
        gpus: GPUs of each trial; below 1 that many trials share one. None is 1 if the cluster has
            GPUs, and 0 otherwise; with 0 trials see no GPU.
        at_most: trials at a time; None is as many as the machines hold.
        retries: how often a trial is tried again whose process or machine was lost. A trial that
            fails by itself is not tried again.
        fingerprint: hash of the data (``data_fingerprint``), which every machine then checks.
        notify: receives a line when something worth knowing happens, as the loss of a machine.
        connect_seconds: how long Ray may take to connect to a cluster. That nobody is there at all
            is found out at once.

    Raises:
        ConfigError: an argument makes no sense.
        MissingExtraError: Ray is not installed.
    """

    def __init__(
        self,
        address: str,
        *,
        threads: int,
        logs: Path,
        gpus: float | None = None,
        at_most: int | None = None,
        retries: int = 3,
        fingerprint: str | None = None,
        notify: Callable[[str], None] | None = None,
        connect_seconds: float = 25.0,
    ) -> None:
        if address == "auto":
            address = os.environ.get("RAY_ADDRESS") or "auto"
        self._address = address
        self._host = _check_address(address)
        for name, value, least in (("threads", threads, 1), ("retries", retries, 0)):
            if value < least:
                raise ConfigError(f"{name}: expected at least {least}, got {value}")
        if at_most is not None and at_most < 1:
            raise ConfigError(f"at_most: expected at least 1, got {at_most}")
        if gpus is not None and not (0 <= gpus <= 1 or (gpus > 1 and gpus == int(gpus))):
            raise ConfigError(
                f"gpus per trial: expected a share from 0 to 1 or a whole number, got {gpus:g}"
            )
        spec = importlib.util.find_spec("ray")
        if spec is None or spec.origin is None:  # a directory of that name is not the package
            raise MissingExtraError("ray", "ray", "a study over several machines")
        self._logs = logs
        self._notify = notify
        self._at_most = at_most
        self._connect_seconds = connect_seconds
        self._token = f"{TOKEN}{uuid.uuid4().hex}"
        self._options = {
            "address": address,
            "threads": threads,
            "gpus": gpus,
            "at_most": at_most,
            "retries": retries,
            "fingerprint": fingerprint,
            "token": self._token,
        }
        self._driver: DriverProcess | None = None
        self._facts: ClusterFacts | None = None

    def connect(self) -> ClusterFacts:
        """Connects to the cluster, if that was not done yet; :meth:`run` does so too.

        Raises:
            ConfigError: nobody answers, the cluster has other versions of Ray or Python, or none of
                its machines is large enough for a trial.
        """
        if self._facts is not None:
            return self._facts
        if self._host is not None:
            _check_reachable(self._address, *self._host)
        options = {**self._options, "version": tal_fast.__version__, "grace": GRACE_SECONDS}
        files: Path | None = None
        if self._address == "local":
            from tal_fast.training.environment import usable_cores

            options["cores"] = usable_cores()
            files = short_directory_if_needed(os.environ)
        self._driver = DriverProcess(options, self._logs, files)
        try:
            self._driver.expect("imported", _SECONDS_TO_IMPORT)
            local = self._address == "local"
            seconds = _SECONDS_TO_START if local else self._connect_seconds
            self._facts = ClusterFacts(**self._driver.expect("ready", seconds))
        except BaseException as error:
            cause = str(error)
            if isinstance(error, queue.Empty):
                cause = f"no answer {self._driver.last_words()}".rstrip()
            self.close(seconds=0.0)
            if isinstance(error, ConfigError) or not isinstance(error, (queue.Empty, TalFastError)):
                raise
            raise ConfigError(_unreachable(self._address, cause)) from error
        return self._facts

    def close(self, *, seconds: float | None = None) -> None:
        """Interrupts the trials that run and disconnects; what does not end is killed.

        Args:
            seconds: how long to wait before killing; None is as long as Ctrl-C waits for trials,
                and what Ray needs to end.
        """
        if seconds is None:
            seconds = GRACE_SECONDS + _SECONDS_TO_END
        driver, self._driver, self._facts = self._driver, None, None
        if driver is not None:
            driver.end(seconds)

    def run(
        self, tasks: Sequence[TrialTask] | Supply, progress: Progress
    ) -> Generator[Outcome, None, None]:
        """Yields outcomes as trials end; a trial whose machine is lost goes on elsewhere.

        Raises:
            ConfigError: as :meth:`connect`.
            DataError: a finished trial does not appear here.
            TalFastError: the connection to the cluster was lost, or all its machines.
        """
        if not tasks:
            return
        take = supply_of(tasks)
        roots: set[Path] = set()
        finished: list[Path] = []
        by_name: dict[str, Path] = {}
        missing: set[str] = set()

        def feed(slots: float) -> None:
            new = []
            while len(missing) < slots and (task := take()) is not None:
                new.append(_absolute(task))
                by_name[task.trial.name] = Path(task.root)
                missing.add(task.trial.name)
            if not new:
                return
            assert self._driver is not None
            unseen = {Path(task.root) for task in new} - roots
            self._show_tokens(sorted(unseen))
            roots.update(unseen)
            self._driver.feed(new)

        try:
            facts = self.connect()
            # What was chosen before goes at once, so that the cluster has the next trial ready.
            slots = math.inf
            if callable(tasks):
                slots = facts.slots if self._at_most is None else min(facts.slots, self._at_most)
            feed(slots)
            while missing:
                assert self._driver is not None
                message = self._driver.receive(_SECONDS_OF_SILENCE)
                if "progress" in message:
                    progress(message["trial"], message["progress"])
                elif "notice" in message:
                    if self._notify is not None:
                        self._notify(message["notice"])
                elif "trial" in message:
                    name = message["trial"]
                    missing.remove(name)
                    if "done" in message:
                        finished.append(by_name[name] / name)
                    yield Outcome.of_message(message)
                    feed(slots)
            _wait_for(finished)
        except queue.Empty:
            self.close(seconds=0.0)
            raise TalFastError(
                f"ray: the connection to {self._address} has been silent for "
                f"{_SECONDS_OF_SILENCE:g} s; finished trials are kept"
            ) from None
        finally:
            try:
                self.close()
            finally:
                for root in roots:
                    (root / self._token).unlink(missing_ok=True)

    def _show_tokens(self, roots: Sequence[Path]) -> None:
        """Leaves a file by which other machines recognise this very directory."""
        for root in roots:
            root.mkdir(parents=True, exist_ok=True)
            for left in root.glob(f"{TOKEN}*"):  # by a run that was killed
                left.unlink(missing_ok=True)
            write_text_atomically(root / self._token, "")


def _absolute(task: TrialTask) -> TrialTask:
    """The task with paths that mean the same in other working directories."""
    paths = {name: os.path.abspath(getattr(task, name)) for name in ("root", "data", "config")}
    return replace(task, **paths)


def _wait_for(trials: Sequence[Path]) -> None:
    """Waits until trials that other machines finished are seen here.

    Raises:
        DataError: one is not.
    """
    end = time.monotonic() + _SECONDS_TO_APPEAR
    for trial in trials:
        while not trial.exists():
            if time.monotonic() > end:
                raise DataError(f"{trial}: another machine finished this trial, here is none")
            time.sleep(0.2)
