# SPDX-License-Identifier: Apache-2.0
"""A process of the local pool: ``python -m tal_fast.study.execution.worker``.

It reads one task per line from standard input and writes one JSON message per line to the standard
output that it was started with. When its standard input ends, the driver is gone or has no more
work; the worker then ends at once, in mid-trial too, so no process outlives its driver. What a
trial prints goes to standard error, which the driver sends to a log file.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import Any, TextIO

from tal_fast.study.execution.messages import Throttle, failure
from tal_fast.study.execution.run_trial import execute_trial
from tal_fast.study.trial import TrialTask

__all__ = ["main"]

_SECONDS_BETWEEN_EVENTS = 0.2


class _Channel:
    """Writes messages, and progress not more often than it is of use."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._throttle = Throttle(_SECONDS_BETWEEN_EVENTS)

    def send(self, **message: Any) -> None:
        self._stream.write(json.dumps(message) + "\n")
        self._stream.flush()

    def progress(self, trial: str, event: dict[str, Any]) -> None:
        if self._throttle.lets_pass(event):
            self.send(progress=event, trial=trial)


def _read_tasks(tasks: queue.Queue[str]) -> None:
    for line in sys.stdin:
        tasks.put(line)
    os._exit(0)


def main() -> int:
    """Runs tasks until standard input ends; returns the exit status."""
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a trial prints must not end up between the messages
    channel = _Channel(protocol)
    tasks: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_tasks, args=(tasks,), daemon=True).start()
    datasets: dict[str, Any] = {}
    try:
        while True:
            task = TrialTask.from_json(tasks.get())
            try:
                if task.data not in datasets:
                    from tal_fast.data import open_dataset

                    datasets[task.data] = open_dataset(task.data)
                record = execute_trial(
                    task,
                    dataset=datasets[task.data],
                    progress=channel.progress,
                )
                channel.send(done=record.to_dict(), trial=task.trial.name)
            except Exception as error:
                channel.send(trial=task.trial.name, **failure(error))
    except (KeyboardInterrupt, BrokenPipeError):
        return 130


if __name__ == "__main__":
    sys.exit(main())
