# SPDX-License-Identifier: Apache-2.0
"""Executors of this machine: one in this process, one in a pool of processes.

A failing trial is an outcome, not an exception: what to do about it is the runner's decision.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import time
import traceback as tracebacks
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tal_fast.errors import ConfigError, TalFastError
from tal_fast.study.execution.messages import (
    ChildProcess,
    Outcome,
    Progress,
    Supply,
    supply_of,
)
from tal_fast.study.execution.run_trial import execute_trial
from tal_fast.study.trial import TrialTask

__all__ = ["GRACE_SECONDS", "InProcess", "LocalPool", "threads_per_job", "visible_gpus"]

# How long Ctrl-C waits for the trials to write their checkpoints.
GRACE_SECONDS = float(os.environ.get("TAL_FAST_GRACE_SECONDS", "20"))


def threads_per_job(jobs: int, cores: int | None = None) -> int:
    """Returns the torch threads of each of ``jobs`` trials that share the machine: cores // jobs.

    Raises:
        ConfigError: ``jobs`` is below 1.
    """
    if jobs < 1:
        raise ConfigError(f"jobs: expected at least 1, got {jobs}")
    if cores is None:
        from tal_fast.training.environment import usable_cores

        cores = usable_cores()
    return max(1, cores // jobs)


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Returns the names of the GPUs that processes in this environment see; none on a CPU.

    Args:
        environment: of the process, for ``CUDA_VISIBLE_DEVICES``.
    """
    import torch

    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]


class InProcess:
    """Runs one trial after the other in this process."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def run(
        self, tasks: Sequence[TrialTask] | Supply, progress: Progress
    ) -> Generator[Outcome, None, None]:
        """Yields the outcome of each task in order."""
        take = supply_of(tasks)
        while (task := take()) is not None:
            try:
                record = execute_trial(task, dataset=self._dataset, progress=progress)
            except Exception as error:
                yield Outcome(task.trial.name, error=error, traceback=tracebacks.format_exc())
            else:
                yield Outcome(task.trial.name, record=record)


class _Worker:
    """One process of the pool, and its task."""

    def __init__(
        self, index: int, threads: int, log: Path, messages: queue.Queue[Any], gpus: Sequence[str]
    ) -> None:
        self.index = index
        self.task: TrialTask | None = None
        # Set before torch is loaded: a pool created with more threads keeps them for the process.
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = dict.fromkeys(names, str(threads))
        if len(gpus) > 1:  # spread over them; all would take the first one
            environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        self.child = ChildProcess(
            "tal_fast.study.execution.worker",
            log,
            environment,
            lambda message: messages.put((self, message)),
        )

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self.child.process

    def give(self, task: TrialTask) -> None:
        self.task = task
        self.child.write([task.to_json()])

    def interrupt(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)

    def end(self, seconds: float) -> None:
        """Waits for the end of the process, then makes it end."""
        try:
            self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            self.child.kill()
        self.child.close(5.0)


class LocalPool:
    """Runs up to ``jobs`` trials at a time, each in a process that lives as long as the pool.

    Processes take turns over the GPUs that this one sees; with more jobs than GPUs they share them.
    """

    def __init__(self, jobs: int, *, threads: int, logs: Path) -> None:
        self._jobs = jobs
        self._threads = threads
        self._logs = logs

    def run(
        self, tasks: Sequence[TrialTask] | Supply, progress: Progress
    ) -> Generator[Outcome, None, None]:
        """Yields outcomes as trials end; a worker that dies fails its trial and is replaced."""
        take = supply_of(tasks)
        messages: queue.Queue[Any] = queue.Queue()
        workers: dict[int, _Worker] = {}
        idle = deque(range(self._jobs))
        gpus = visible_gpus(os.environ)
        self._logs.mkdir(parents=True, exist_ok=True)

        def fill() -> None:
            while idle and (task := take()) is not None:
                index = idle.popleft()
                worker = workers.get(index)
                if worker is None or worker.process.poll() is not None:
                    if worker is not None:
                        worker.end(0.0)
                    log = self._logs / f"worker{index}.log"
                    worker = workers[index] = _Worker(index, self._threads, log, messages, gpus)
                worker.give(task)

        finished = False
        try:
            fill()
            while len(idle) < self._jobs:
                worker, message = messages.get()
                if message is None:
                    outcome = self._died(worker)
                    if outcome is None:
                        continue
                elif "progress" in message:
                    progress(message["trial"], message["progress"])
                    continue
                else:
                    worker.task = None
                    outcome = Outcome.of_message(message)
                idle.append(worker.index)
                # Before the next trial starts: the outcome may decide which one that is.
                yield outcome
                fill()
            finished = True
        finally:
            self._stop(list(workers.values()), finished)

    def _died(self, worker: _Worker) -> Outcome | None:
        status = worker.process.wait()
        if worker.task is None:
            return None
        name, worker.task = worker.task.trial.name, None
        cause = f"status {status}"
        if status < 0:
            cause = f"signal {-status}"
            if -status == signal.SIGKILL:
                cause += ", as when memory runs out"
        error = TalFastError(f"its process ended with {cause}")
        return Outcome(name, error=error, traceback=worker.child.last_words())

    def _stop(self, workers: Sequence[_Worker], finished: bool) -> None:
        end = time.monotonic() + GRACE_SECONDS
        try:
            for worker in workers:
                if finished:
                    worker.child.close_input()
                else:
                    # As Ctrl-C in the trial: it writes its checkpoint, then ends.
                    worker.interrupt()
            for worker in workers:
                worker.end(end - time.monotonic())
            with contextlib.suppress(OSError):  # not empty: somebody printed something
                self._logs.rmdir()
        except KeyboardInterrupt:
            # The second Ctrl-C: now.
            for worker in workers:
                worker.end(0.0)
            raise
