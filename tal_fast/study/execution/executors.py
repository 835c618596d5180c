# SPDX-License-Identifier: Apache-2.0
"""Where trials run. An executor takes tasks and yields outcomes; the runner knows nothing else.

Both executors here run on this machine: one in this process, one in a pool of processes. A failing
trial is an outcome, not an exception: what to do about it is the runner's decision.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback as tracebacks
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from tal_fast.errors import ConfigError, TalFastError
from tal_fast.study.execution.failures import rebuild_error
from tal_fast.study.execution.trials import Progress, TrialTask, execute_trial, load_experiment

__all__ = [
    "GRACE_SECONDS",
    "Executor",
    "InProcess",
    "LocalPool",
    "Outcome",
    "threads_per_job",
    "visible_gpus",
]

# How long Ctrl-C waits for the trials to write their checkpoints.
GRACE_SECONDS = float(os.environ.get("TAL_FAST_GRACE_SECONDS", "20"))


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        trial: its name.
        record: the record of ``trial.json``, or None when it failed.
        error: why it failed, or None.
        traceback: the traceback of the failure, as text.
    """

    trial: str
    record: dict[str, Any] | None = None
    error: Exception | None = None
    traceback: str = ""


class Executor(Protocol):
    """Runs tasks somewhere."""

    def run(self, tasks: Sequence[TrialTask], progress: Progress) -> Generator[Outcome, None, None]:
        """Yields an outcome per task as trials end, in any order.

        Closing the generator, or an exception in it (Ctrl-C), stops the running trials and leaves
        no process behind.
        """
        ...


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

    def __init__(self, dataset: Any, experiment: Any = None) -> None:
        self._dataset = dataset
        self._experiment = experiment

    def run(self, tasks: Sequence[TrialTask], progress: Progress) -> Generator[Outcome, None, None]:
        """Yields the outcome of each task in order."""
        for task in tasks:
            try:
                record = execute_trial(
                    task,
                    dataset=self._dataset,
                    experiment=self._experiment or load_experiment(task.experiment),
                    progress=progress,
                )
            except Exception as error:
                yield Outcome(task.trial.name, error=error, traceback=tracebacks.format_exc())
            else:
                yield Outcome(task.trial.name, record=record)


class _Worker:
    """One process of the pool, and the thread that reads what it says."""

    def __init__(
        self, index: int, threads: int, log: Path, messages: queue.Queue[Any], gpus: Sequence[str]
    ) -> None:
        self.index = index
        self.task: TrialTask | None = None
        self.log = log
        environment = dict(os.environ)
        # Set before torch is loaded: a pool created with more threads keeps them for the process.
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[name] = str(threads)
        if len(gpus) > 1:  # spread over them; all would take the first one
            environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        with open(log, "wb") as errors:
            # Its own session: Ctrl-C reaches the driver alone, which then stops the workers.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tal_fast.study.execution.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, args=(messages,), daemon=True)
        try:
            self._reader.start()
        except BaseException:  # as where the system has no more threads
            self.end(0.0)
            raise

    def _read(self, messages: queue.Queue[Any]) -> None:
        output: IO[bytes] | None = self.process.stdout
        assert output is not None
        for line in output:
            with contextlib.suppress(ValueError):  # the last line of a killed worker may be cut
                messages.put((self, json.loads(line)))
        messages.put((self, None))

    def give(self, task: TrialTask) -> None:
        self.task = task
        assert self.process.stdin is not None
        # A worker that died meanwhile is reported by its reader; the task is then failed there.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(task.to_json().encode() + b"\n")
            self.process.stdin.flush()

    def interrupt(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)

    def end(self, seconds: float) -> None:
        """Waits for the end of the process, then makes it end."""
        try:
            self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            # Its whole group: a trial may have started processes of its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if self._reader.ident is not None:
            self._reader.join(timeout=5.0)
        with contextlib.suppress(OSError):
            if self.log.stat().st_size == 0:
                self.log.unlink()

    def close_input(self) -> None:
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def last_words(self) -> str:
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-4000:]
        return ""


class LocalPool:
    """Runs up to ``jobs`` trials at a time, each in a process that lives as long as the pool.

    Processes take turns over the GPUs that this one sees; with more jobs than GPUs they share them.
    """

    def __init__(self, jobs: int, *, threads: int, logs: Path) -> None:
        self._jobs = jobs
        self._threads = threads
        self._logs = logs

    def run(self, tasks: Sequence[TrialTask], progress: Progress) -> Generator[Outcome, None, None]:
        """Yields outcomes as trials end; a worker that dies fails its trial and is replaced."""
        waiting = deque(tasks)
        messages: queue.Queue[Any] = queue.Queue()
        workers: list[_Worker] = []
        gpus = visible_gpus(os.environ)
        self._logs.mkdir(parents=True, exist_ok=True)

        def start(index: int) -> _Worker:
            log = self._logs / f"worker{index}.log"
            worker = _Worker(index, self._threads, log, messages, gpus)
            worker.give(waiting.popleft())
            return worker

        finished = False
        try:
            for index in range(min(self._jobs, len(waiting))):
                workers.append(start(index))
            running = len(workers)
            while running:
                worker, message = messages.get()
                if message is None:
                    outcome = self._died(worker)
                    if outcome is None:
                        continue
                elif "progress" in message:
                    progress(message["trial"], message["progress"])
                    continue
                elif "done" in message:
                    worker.task = None
                    outcome = Outcome(message["trial"], record=message["done"])
                else:
                    worker.task = None
                    error = rebuild_error(message["failed"])
                    outcome = Outcome(message["trial"], error=error, traceback=message["traceback"])
                # The next trial starts before the outcome is looked at: no core waits for it.
                if not waiting:
                    running -= 1
                elif worker.process.poll() is None and message is not None:
                    worker.give(waiting.popleft())
                else:
                    worker.end(0.0)
                    workers[worker.index] = start(worker.index)
                yield outcome
            finished = True
        finally:
            self._stop(workers, finished)

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
        return Outcome(name, error=error, traceback=worker.last_words())

    def _stop(self, workers: Sequence[_Worker], finished: bool) -> None:
        end = time.monotonic() + GRACE_SECONDS
        try:
            for worker in workers:
                if finished:
                    worker.close_input()
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
