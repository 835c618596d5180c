# SPDX-License-Identifier: Apache-2.0
"""The process between a study and a Ray cluster: ``python -m tal_fast.study.execution.ray.driver``.

Ray lives in a process of its own because it takes liberties with the one that it is loaded into: it
waits for a minute where nobody answers, ends the process where it loses the cluster, prints, and
replaces signal handlers. Here all of that is harmless, and killing this process undoes the rest:
Ray ends the trials of a driver that is gone.

The first line on standard input is an object with the options, each further line a task (JSON as of
``TrialTask.to_json``) or the word ``stop``: the running trials may then write their checkpoints,
and this process ends. The end of standard input means that the study's process is gone: this one
goes at once. Messages are one JSON object per line on the standard output that it started with.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import queue
import secrets
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from tal_fast.errors import ConfigError, TalFastError
from tal_fast.study.execution.messages import Channel, describe_error
from tal_fast.threads import start_thread

__all__ = ["main"]

_SECONDS_BETWEEN_LOOKS = 5.0
_SECONDS_WITHOUT_MACHINE = 120.0
# Longer than an NFS server keeps the locks of a machine that died (90 s by default), and than Ray
# needs to end the processes of a machine that it has lost sight of (about 60 s).
_SECONDS_BUSY = 300.0
_SECONDS_TO_KILL = 5.0
_STOP = "stop"


def _trial(order: str, mailbox: Any) -> str:
    """Runs on the cluster. Sent by value, so that a machine without tal_fast can say so."""
    import json
    import socket
    import traceback

    try:
        from tal_fast.study.execution import worker
    except ImportError as error:
        message = (
            f"machine {socket.gethostname()}: tal_fast cannot be imported there ({error}): install "
            "the same version on all machines"
        )
        described = {"type": "ConfigError", "kind": "ConfigError", "message": message}
        return json.dumps({"failed": described, "traceback": traceback.format_exc()})
    return worker.run(order, lambda trial, event: mailbox.put.remote(trial, event))


class _Mailbox:
    """An actor: keeps the latest event of each trial until the driver fetches them."""

    def __init__(self) -> None:
        self._events: dict[str, list[dict[str, Any]]] = {}

    def put(self, trial: str, event: dict[str, Any]) -> None:
        events = self._events.setdefault(trial, [])
        if events and events[-1]["stage"] == event["stage"]:
            events.pop()
        events.append(event)

    def fetch(self) -> dict[str, list[dict[str, Any]]]:
        events, self._events = self._events, {}
        return events


@dataclass
class _Flight:
    """A task on its way."""

    task: str
    name: str
    machine: str = ""
    lost: int = 0
    busy_since: float | None = None
    not_before: float = 0.0


class _Input:
    """What the study's process says."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.options: queue.Queue[dict[str, Any]] = queue.Queue()
        self.tasks: deque[str] = deque()
        self.stop = threading.Event()
        start_thread(threading.Thread(target=self._read, daemon=True), "study: driver of Ray")

    def _read(self) -> None:
        self.options.put(json.loads(self._stream.readline() or "{}"))
        for line in self._stream:
            if line.strip() == _STOP:
                self.stop.set()
            else:
                self.tasks.append(line)
        os._exit(1)


class _Driver:
    """Keeps as many trials in flight as the cluster runs at a time, and a few more."""

    def __init__(self, options: Mapping[str, Any], given: _Input, channel: Channel) -> None:
        self._options = options
        self._given = given
        self.send = channel.send
        self._ray: Any = None
        self._gpus: float = 0.0
        self._slots = 0
        self._looked = 0.0
        self._last_machine = time.monotonic()
        self._flying: dict[Any, _Flight] = {}
        self._again: list[_Flight] = []
        self._mailbox: Any = None
        self._mail: Any = None

    # Connecting

    def connect(self) -> None:
        """Connects, and says what the cluster has.

        Raises:
            ConfigError: the cluster cannot be used: other versions, no machine large enough.
        """
        address = self._options["address"]
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        if address == "local":
            os.environ.setdefault("RAY_worker_niceness", "0")  # as other trials; Ray's is 15
            # Only this study may use it, and Ray need not keep a token in the home directory.
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        ray = self._ray = importlib.import_module("ray")
        self.send(imported=ray.__version__)
        options: dict[str, Any] = {"address": address, "logging_level": logging.ERROR}
        if address == "local":
            # Trials use files, not Ray's object store.
            options |= {"num_cpus": self._options["cores"], "include_dashboard": False}
            options |= {"object_store_memory": 100 * 2**20}
        try:
            ray.init(log_to_driver=False, **options)
        except (Exception, SystemExit) as error:
            raise ConfigError(self._why_not(error)) from error
        resources = self._machines()
        gpus = self._options["gpus"]
        if gpus is None:
            gpus = 1.0 if any(machine.get("GPU", 0) >= 1 for machine in resources) else 0.0
        self._gpus = gpus
        self._look()
        if not self._slots:
            largest = max(resources, key=lambda machine: machine.get("CPU", 0), default={})
            raise ConfigError(
                f"ray: no machine of the cluster at {address} has the {self._needs()} of a trial; "
                f"the largest has {largest.get('CPU', 0):g} CPUs and {largest.get('GPU', 0):g} "
                "GPUs: fewer threads or GPUs per trial?"
            )
        # No retries by Ray: this process can count them and say so. With GPUs a process per trial,
        # as Ray has it by default too: a process that has used one GPU keeps it.
        self._remote = ray.remote(
            num_cpus=self._options["threads"],
            num_gpus=self._gpus,
            max_retries=0,
            max_calls=1 if self._gpus else 0,
        )(_trial)
        self._mailbox = ray.remote(num_cpus=0, max_restarts=-1)(_Mailbox).remote()
        self.send(
            ready={
                "machines": len(resources),
                "slots": self._slots,
                "gpus": sum(machine.get("GPU", 0) for machine in resources),
                "gpus_per_trial": self._gpus,
            }
        )

    def _why_not(self, error: BaseException) -> str:
        address, reason = self._options["address"], " ".join(str(error).split())
        if isinstance(error, SystemExit) or not reason:
            reason = "it does not answer"
        if "ersion mismatch" in reason:
            return f"ray: the cluster at {address} has other versions than this machine: {reason}"
        if "Failed to connect to Ray cluster" in reason:
            reason += " (Ray's log tells more; does it ask for a token, see 'ray get-auth-token'?)"
        if "ray[client]" in reason:
            return f"ray: {address} needs Ray's client: pip install 'ray[client]'"
        return f"ray: cannot connect to {address}: {reason}"

    def _needs(self) -> str:
        needs = f"{self._options['threads']} CPUs"
        return f"{needs} and {self._gpus:g} GPUs" if self._gpus else needs

    def _machines(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _look(self) -> None:
        """Counts the trials that the cluster's machines can run at a time."""
        self._looked = time.monotonic()
        self._slots = sum(self._fit(machine) for machine in self._machines())
        if self._slots:
            self._last_machine = self._looked
        self.send(alive=self._slots)

    def _fit(self, machine: Mapping[str, float]) -> int:
        trials = int(machine.get("CPU", 0) / self._options["threads"] + 1e-6)
        if self._gpus:
            gpus = machine.get("GPU", 0)
            # A trial's share lies on one GPU.
            share = int(1 / self._gpus + 1e-6)
            trials = min(trials, int(gpus) * share if self._gpus < 1 else int(gpus / self._gpus))
        return trials

    # Running

    def run(self) -> None:
        """Runs tasks until the word ``stop``.

        Raises:
            TalFastError: the cluster has no machine left that can run a trial.
        """
        while not self._given.stop.is_set():
            if time.monotonic() - self._looked > _SECONDS_BETWEEN_LOOKS:
                self._look()
                if time.monotonic() - self._last_machine > _SECONDS_WITHOUT_MACHINE:
                    raise TalFastError(
                        f"ray: for {_SECONDS_WITHOUT_MACHINE:g} s the cluster at "
                        f"{self._options['address']} has had no machine with {self._needs()}"
                    )
            self._submit()
            self._fetch_mail()
            if not self._flying:
                self._given.stop.wait(0.1)
                continue
            # Wakes up at the first, then takes all that are there.
            self._ray.wait(list(self._flying), num_returns=1, timeout=0.25)
            flying = list(self._flying)
            ready, _ = self._ray.wait(flying, num_returns=len(flying), timeout=0)
            for reference in ready:
                self._settle(self._flying.pop(reference), reference)

    def _submit(self) -> None:
        # A few more than fit, so that no machine waits for this process; not all, so that Ray has
        # little to forget when the study stops.
        window = self._slots + max(2, self._slots // 4)
        if self._options["at_most"] is not None:
            window = min(window, self._options["at_most"])
        while len(self._flying) < window:
            flight = self._next()
            if flight is None:
                return
            order = json.dumps(
                {
                    "task": flight.task,
                    "gpus": self._gpus,
                    **{key: self._options[key] for key in ("version", "token", "fingerprint")},
                }
            )
            self._flying[self._remote.remote(order, self._mailbox)] = flight

    def _next(self) -> _Flight | None:
        now = time.monotonic()
        for flight in self._again:
            if flight.not_before <= now:
                self._again.remove(flight)
                return flight
        if not self._given.tasks:
            return None
        task_line = self._given.tasks.popleft()
        fields = json.loads(task_line)
        return _Flight(fields["task"], fields["name"])

    def _fetch_mail(self) -> None:
        """Passes events on. Without the actor's machine there are none, and that is all."""
        try:
            if self._mail is None:
                self._mail = self._mailbox.fetch.remote()
            ready, _ = self._ray.wait([self._mail], timeout=0)
            if not ready:
                return
            mail, self._mail = self._mail, None
            letters = self._ray.get(mail)
        except self._ray.exceptions.RayError:
            self._mail = None
            return
        flights = {flight.name: flight for flight in self._flying.values()}
        for name, events in letters.items():
            for event in events:
                if name not in flights:
                    continue
                if event["stage"] == "start":
                    flights[name].machine = event["machine"]
                else:
                    self.send(progress=event, trial=name)

    def _settle(self, flight: _Flight, reference: Any) -> None:
        """Takes what came of a trial: a message, or the loss of its process."""
        errors = self._ray.exceptions
        try:
            message = json.loads(self._ray.get(reference))
        except errors.LocalRayletDiedError as error:
            raise TalFastError("ray: Ray's process on this machine (raylet) ended") from error
        except errors.RayTaskError as error:
            message = {"failed": describe_error(error), "traceback": str(error)}
        except errors.RayError as error:
            self._lost(flight, error)
            return
        if "interrupted" in message:  # by somebody else: this process has not stopped
            self._lost(flight, TalFastError("interrupted"))
        elif "busy" in message:
            self._busy(flight, message["busy"])
        else:
            self.send(trial=flight.name, **message)

    def _lost(self, flight: _Flight, error: Exception) -> None:
        flight.lost += 1
        flight.busy_since = None
        where = f" on machine {flight.machine}" if flight.machine else ""
        lines = str(error).strip().splitlines()
        why = f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
        retries = self._options["retries"]
        if flight.lost > retries:
            times = "once" if flight.lost == 1 else f"{flight.lost} times"
            failure = TalFastError(f"its process or machine was lost {times}, last{where}: {why}")
            self.send(trial=flight.name, failed=describe_error(failure), traceback=str(error))
            return
        self.send(
            notice=f"trial {flight.name}: its process or machine was lost{where} "
            f"({type(error).__name__}); it goes on elsewhere ({flight.lost} of {retries} retries)"
        )
        # Not at once: a machine whose processes all die should not use up the retries.
        flight.not_before = time.monotonic() + 2.0 ** (flight.lost - 1)
        self._again.append(flight)

    def _busy(self, flight: _Flight, why: str) -> None:
        now = time.monotonic()
        if flight.busy_since is None:
            flight.busy_since = now
        if now - flight.busy_since > _SECONDS_BUSY:
            self.send(
                trial=flight.name, failed=describe_error(TalFastError(why)), traceback="still busy"
            )
            return
        flight.not_before = now + _SECONDS_BETWEEN_LOOKS
        self._again.append(flight)

    # Ending

    def stop(self) -> None:
        """Interrupts what runs, so that it writes its checkpoint, then ends what does not end."""
        end = time.monotonic() + self._options["grace"]
        for force in (False, True):
            for reference in self._flying:
                with contextlib.suppress(Exception):
                    self._ray.cancel(reference, force=force, recursive=False)
            self._flying = self._wait_for_all(end)
            end = time.monotonic() + _SECONDS_TO_KILL
        self._ray.shutdown()

    def _wait_for_all(self, end: float) -> dict[Any, _Flight]:
        """Waits until all flights ended; returns those that did not."""
        flying = list(self._flying)
        if flying:
            seconds = max(0.0, end - time.monotonic())
            _, flying = self._ray.wait(flying, num_returns=len(flying), timeout=seconds)
        return {reference: self._flying[reference] for reference in flying}


def main() -> int:
    """Connects, runs tasks until told to stop; returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel()
    given = _Input(sys.stdin)
    driver = _Driver(given.options.get(), given, channel)
    try:
        driver.connect()
        driver.run()
        driver.stop()
    except TalFastError as error:
        driver.send(fatal=describe_error(error))
        return 1
    except BrokenPipeError:
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
