# SPDX-License-Identifier: Apache-2.0
"""What a process does with trials: one of the local pool, or one on a machine of a Ray cluster.

The pool's, ``python -m tal_fast.study.execution.worker``, reads one task per line from standard
input and writes one JSON message per line to the standard output that it was started with. When its
standard input ends, the driver is gone or has no more work; the worker then ends at once, in
mid-trial too, so no process outlives its driver. What a trial prints goes to standard error, which
the driver sends to a log file.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tal_fast
from tal_fast.data.fingerprint import data_fingerprint
from tal_fast.data.locks import BusyError
from tal_fast.errors import ConfigError, TalFastError
from tal_fast.study.execution.messages import Channel, Throttle, failure
from tal_fast.study.execution.run_trial import execute_trial
from tal_fast.study.trial import TrialTask
from tal_fast.threads import start_thread

__all__ = ["main", "run"]

_SECONDS_BETWEEN_EVENTS = 0.2
_SECONDS_BETWEEN_MAILS = 0.5  # of a machine of a cluster
# A former holder that is dying needs a second; for one that the cluster has lost sight of, the
# driver tries the trial again later, and others use the machine meanwhile.
_SECONDS_FOR_LOCK = 10.0
# A file made on one machine is there on the others at once, but not on every file system.
_SECONDS_FOR_FILES = 5.0

_datasets: dict[str, Any] = {}


def _wait_for(path: Path, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() >= end:
            return False
        time.sleep(0.2)
    return True


def _check_machine(order: Mapping[str, Any], task: TrialTask, machine: str) -> None:
    """Checks that this machine has the software and sees the files of the study.

    Raises:
        ConfigError: it does not.
    """
    if tal_fast.__version__ != order["version"]:
        raise ConfigError(
            f"machine {machine}: expected tal_fast {order['version']} as on the machine that "
            f"started the study, found {tal_fast.__version__}: install the same on all machines"
        )
    shared = "a study over several machines needs storage that all of them share"
    paths = {"directory of trials": task.root, "configuration": task.config, "data": task.data}
    for what, path in paths.items():
        if not _wait_for(Path(path), _SECONDS_FOR_FILES):
            raise ConfigError(
                f"machine {machine}: expected the {what} at {path}, found none; {shared}"
            )
    if not _wait_for(Path(task.root) / order["token"], _SECONDS_FOR_FILES):
        raise ConfigError(
            f"machine {machine}: {task.root} is there, but is another directory than that of the "
            f"machine that started the study; {shared}"
        )


def _open(task: TrialTask, fingerprint: str | None = None, machine: str = "") -> Any:
    """Opens the data set, once per process.

    Args:
        task: names it.
        fingerprint: what it must have on a machine of a cluster.
        machine: name of that.

    Raises:
        ConfigError: it is another one than the study's.
    """
    if task.data not in _datasets:
        from tal_fast.data import open_dataset

        dataset = open_dataset(task.data)
        if fingerprint is not None and data_fingerprint(dataset) != fingerprint:
            raise ConfigError(
                f"machine {machine}: {task.data} holds other data than on the machine that started "
                "the study"
            )
        _datasets[task.data] = dataset
    return _datasets[task.data]


def run(order_text: str, report: Callable[[str, dict[str, Any]], None]) -> str:
    """Runs a trial on a machine of a Ray cluster, if that can run it.

    Nothing here knows Ray. Whatever happens in a trial is in what this returns; only the loss of
    the process or of the machine is Ray's to tell.

    Args:
        order_text: JSON with the keys task (as of ``TrialTask.to_json``), version, token,
            fingerprint and gpus.
        report: receives (trial name, event). What it raises is ignored.

    Returns:
        JSON with one of the keys ``done`` (the record), ``failed`` (the described error, and a
        ``traceback``), ``busy`` (why the trial cannot run yet) and ``interrupted``.
    """
    machine = socket.gethostname()
    order = json.loads(order_text)
    task = TrialTask.from_json(order["task"])
    throttle = Throttle(_SECONDS_BETWEEN_MAILS)

    def progress(name: str, event: dict[str, Any]) -> None:
        if throttle.lets_pass(event):
            with contextlib.suppress(Exception):
                report(name, event)

    try:
        if not order["gpus"]:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # those are for whom Ray gives them to
        progress(task.trial.name, {"stage": "start", "machine": machine})
        _check_machine(order, task, machine)
        record = execute_trial(
            task,
            dataset=_open(task, order["fingerprint"], machine),
            progress=progress,
            wait=_SECONDS_FOR_LOCK,
        )
        message: dict[str, Any] = {"done": record.to_dict()}
    except BusyError as error:
        message = {"busy": str(error)}
    except KeyboardInterrupt:
        message = {"interrupted": True}
    except (Exception, SystemExit) as error:
        message = failure(error, f"on machine {machine}:\n")
    return json.dumps(message)


def _read_tasks(tasks: queue.Queue[str]) -> None:
    for line in sys.stdin:
        tasks.put(line)
    os._exit(0)


def main() -> int:
    """Runs tasks until standard input ends; returns the exit status."""
    channel, throttle = Channel(), Throttle(_SECONDS_BETWEEN_EVENTS)

    def progress(trial: str, event: dict[str, Any]) -> None:
        if throttle.lets_pass(event):
            channel.send(progress=event, trial=trial)

    tasks: queue.Queue[str] = queue.Queue()
    try:
        try:
            reader = threading.Thread(target=_read_tasks, args=(tasks,), daemon=True)
            start_thread(reader, "study: worker")
        except TalFastError as error:
            for line in sys.stdin:
                channel.send(trial=TrialTask.from_json(line).trial.name, **failure(error))
            return 1
        while True:
            task = TrialTask.from_json(tasks.get())
            try:
                record = execute_trial(task, dataset=_open(task), progress=progress)
                channel.send(done=record.to_dict(), trial=task.trial.name)
            except Exception as error:
                channel.send(trial=task.trial.name, **failure(error))
    except (KeyboardInterrupt, BrokenPipeError):
        return 130


if __name__ == "__main__":
    sys.exit(main())
