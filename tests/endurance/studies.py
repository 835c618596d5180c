# SPDX-License-Identifier: Apache-2.0
"""Studies whose driver, workers, machines and disks fail at random moments.

In the end every trial is there once, metrics, detections and weights are those of an undisturbed
study bit by bit, no file is left that such a study has not, and no process runs.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from endurance import tiny_study
from endurance.faults import CHANGES, STARTS, Faults
from endurance.forks import Command, Ended
from endurance.record import Batch, Failure, Kind, Outcome, Part, one_by_one, why
from endurance.tiny_study import TRIALS, Place, clear
from endurance.watched import Watched, watching

_WORKER = "tal_fast.study.execution.worker"
_RAY = importlib.util.find_spec("ray") is not None
#: Of the moments, those by the clock: they fall into starts, where no file shows how far it is.
_BY_CLOCK = 0.25
_SECONDS_OF_A_START = 10.0


def _left(place: Place, out: Path) -> int:
    """About how many calls on files are left to do."""
    finished = sum((out / "trials" / name).exists() for name in TRIALS)
    return max(10, place.calls * (len(TRIALS) - finished + 1) // (len(TRIALS) + 1))


def _repeated(
    kill: Callable[[Place, Path, random.Random], bool], *more: Any
) -> Callable[[Place, Batch], Outcome]:
    """Makes the ``run`` of a kind: one study that is killed, started again and killed again.

    Args:
        kill: starts the study and kills something of it; returns whether the kill came before the
            end. Where it came too late, the study has to be whole, and another begins.
        more: arguments with which the study is run to its end.
    """

    def run(place: Place, batch: Batch) -> Outcome:
        numbers, killed = batch.random(), 0
        out = place.new()
        try:
            while killed < batch.count:
                if kill(place, out, numbers):
                    killed += 1
                else:
                    place.expected.check(out)
                    place.remove(out)
                    out = place.new()
            place.complete(out, *more)
        except AssertionError as error:
            print(f"{out.name} after {killed} kills: {why(error)}", flush=True)
            return Outcome(
                done=max(0, batch.count - 1), failures=[Failure(batch.first, why(error))]
            )
        finally:
            place.remove(out)
        return Outcome(done=batch.count)

    return run


def _at_a_call(place: Place, out: Path, numbers: random.Random) -> bool:
    """Kills the driver, which trains itself, just before it changes a file."""
    faults = Faults(out, "kill", numbers.randint(1, _left(place, out)))
    ended = place.forks.run(place.arguments(out), faults=faults.text(), environment=place.mark(out))
    return _killed(ended)


def _killed(ended: Ended) -> bool:
    """Whether it was killed; where not, it has to be complete."""
    if not ended.killed:
        assert ended.status == 0, f"status {ended.status}: {ended.output[-600:]}"
        clear(ended)
    return ended.killed


def _moment(
    place: Place, out: Path, numbers: random.Random, command: Command, watched: Watched
) -> bool:
    """Waits for a random moment of a study; returns whether it still runs then."""
    end = float("inf")
    events = numbers.randint(1, _left(place, out))
    if numbers.random() < _BY_CLOCK:
        end, events = time.monotonic() + numbers.uniform(0.0, _SECONDS_OF_A_START), 1 << 30
    while watched.events < events and time.monotonic() < end:
        if command.poll() is not None:
            return False
        watched.wait(0.02)
    time.sleep(numbers.uniform(0.0, 0.02))
    return command.poll() is None


def _workers(command: Command) -> list[psutil.Process]:
    found = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(command.pid).children():
            with contextlib.suppress(psutil.Error):
                if _WORKER in process.cmdline():
                    found.append(process)
    return found


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(signal.SIGKILL)


def _of_two(victims: str) -> Callable[[Place, Path, random.Random], bool]:
    """Returns what kills the driver, one worker, or all of a study of two workers."""

    def kill(place: Place, out: Path, numbers: random.Random) -> bool:
        out.mkdir(exist_ok=True)
        with watching(out) as watched:
            command = place.forks.start(place.arguments(out, jobs=2), environment=place.mark(out))
            in_time = _moment(place, out, numbers, command, watched)
            workers = _workers(command)
            if victims != "driver":
                while in_time and not workers:  # they start after it
                    in_time = command.poll() is None
                    workers = _workers(command)
            if in_time:
                if victims == "worker":
                    _kill(numbers.choice(workers))
                elif victims == "both":
                    for process in workers:
                        _kill(process)
                if victims != "worker":
                    command.kill()
            ended = command.wait()
        if victims == "worker" and in_time:
            clear(ended)
            told = "signal 9" in ended.output or ended.status == 0
            assert told, f"does not say how its worker ended: {ended.output[-300:]}"
            in_time = ended.status != 0 or not _is_whole(place, out)
        if in_time and numbers.random() < 0.5:  # the others start the next one at once
            place.wait_for_processes(out)
        return in_time or _killed(ended)

    return kill


def _is_whole(place: Place, out: Path) -> bool:
    return all((out / "trials" / name).exists() for name in TRIALS)


def _started_as_users_do(place: Place, out: Path, numbers: random.Random) -> bool:
    """Kills a driver that is started from nothing, in its start more often than not."""
    import sys

    with open(place.folder / "user.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tal_fast", *map(str, place.arguments(out))],
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                **place.mark(out),
                **tiny_study.THREADS,
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            start_new_session=True,
        )
    # By the time that it computes: wall-clock time says little on a busy machine.
    limit, clock = numbers.uniform(0.0, 6.0), psutil.Process(process.pid)
    with contextlib.suppress(psutil.Error):
        while process.poll() is None:
            spent = clock.cpu_times()
            if spent.user + spent.system >= limit:
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.01)
    status = process.wait()
    assert status in (0, -signal.SIGKILL), (place.folder / "user.log").read_text()[-600:]
    return status != 0


@contextlib.contextmanager
def _small_disk(folder: Path, kib: int) -> Iterator[Callable[[], None] | None]:
    """Mounts a file system of some KiB; gives what makes it large, None where that is refused."""
    folder.mkdir()

    def mount(*arguments: str) -> int:
        command = ["mount", "-t", "tmpfs", *arguments, "tmpfs", str(folder)]
        return subprocess.run(command, capture_output=True).returncode

    if mount("-o", f"size={kib}k"):
        yield None
        return
    try:
        yield (
            lambda: (
                subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
                and None
            )
        )
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _full_disk(place: Place, numbers: random.Random) -> dict[str, float]:
    """A study on a disk that is too small, until it has room."""
    folder = place.folder / f"disk{place.new().name}"
    with _small_disk(folder, numbers.randint(16, 900)) as enlarge:
        out = place.new(folder)
        jobs = numbers.choice((1, 1, 2))
        # Where nothing can be mounted, a disk that refuses everything from some call on.
        stand_in = Faults(
            out, "from", numbers.randint(1, place.calls), ("open", "write", "make"), errno.ENOSPC
        )
        try:
            ended = place.forks.run(
                place.arguments(out, jobs=jobs),
                faults="" if enlarge else stand_in.text(),
                environment=place.mark(out),
            )
            clear(ended)
            place.wait_for_processes(out)
            if ended.status:
                _says_why(ended, ("No space left on device",))
            else:
                assert _is_whole(place, out), f"status 0, but incomplete: {ended.output[-300:]}"
            if enlarge is not None:
                enlarge()
            place.complete(out)
        finally:
            place.remove(out)
    return {"on a disk of its own": float(enlarge is not None)}


def _says_why(ended: Ended, causes: tuple[str, ...]) -> None:
    text = " ".join(ended.output.split())  # the console may break lines
    assert any(cause in text for cause in causes), f"does not say why: {text[-600:]}"


_ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT)


def _failing_calls(place: Place, numbers: random.Random) -> None:
    """A study some of whose calls that change files fail, until none does."""
    out = place.new()
    some = [*CHANGES, "close"]
    calls = tuple(numbers.sample(some, numbers.randint(1, len(some))))
    mode = numbers.choice(("once", "once", "every", "from"))
    at = max(1, int(place.calls ** numbers.random()))
    faults = Faults(out, mode, at, calls, numbers.choice(_ERRORS))
    try:
        if numbers.random() < 0.3:  # in the workers, not in the driver
            environment = place.mark(out) | faults.environment(place.library)
            arguments = place.arguments(out, jobs=2)
            ended = place.forks.run(arguments, environment=environment)
        else:
            ended = place.forks.run(
                place.arguments(out), faults=faults.text(), environment=place.mark(out)
            )
        told = f"{faults}: "
        try:
            clear(ended)
            if ended.status:
                _says_why(ended, tuple(os.strerror(error) for error in _ERRORS))
            else:
                assert _is_whole(place, out), f"status 0, but incomplete: {ended.output[-300:]}"
            place.wait_for_processes(out)
            place.complete(out)
        except AssertionError as error:
            raise AssertionError(told + str(error)) from error
    finally:
        place.remove(out)


def _without_starts(place: Place, numbers: random.Random) -> None:
    """A study on a machine that has no more threads or processes, until it has."""
    out = place.new()
    calls = tuple(numbers.sample(STARTS, numbers.randint(1, len(STARTS))))
    mode, at = numbers.choice(("once", "once", "every", "from")), numbers.randint(1, 12)
    faults = Faults(out, mode, at, calls, errno.EAGAIN)
    jobs = numbers.choice((1, 2, 2))
    environment = place.mark(out)
    if numbers.random() < 0.3:  # in the workers, not in the driver
        environment |= faults.environment(place.library)
        driver = ""
    else:
        driver = faults.text()
    try:
        ended = place.forks.run(
            place.arguments(out, jobs=jobs), faults=driver, environment=environment
        )
        try:
            clear(ended)
            if ended.status:
                _says_why(ended, (os.strerror(errno.EAGAIN),))
            else:
                assert _is_whole(place, out), f"status 0, but incomplete: {ended.output[-300:]}"
            place.wait_for_processes(out)
            place.complete(out)
        except AssertionError as error:
            raise AssertionError(f"{faults}, {jobs} jobs: {error}") from error
    finally:
        place.remove(out)


def _nodes(place: Place) -> Any:
    """The Ray cluster, which starts with the first case that needs it."""
    if not hasattr(place, "nodes"):
        from processes import short_directory
        from two_nodes import Nodes

        os.environ["RAY_AUTH_MODE"] = "disabled"
        directory = place.stack.enter_context(short_directory())
        place.nodes = place.stack.enter_context(Nodes(directory))
    return place.nodes


def _on_ray(victim: str) -> Callable[[Place, Path, random.Random], bool]:
    """Returns what kills the second machine of a cluster, or the driver of a study on it."""

    def kill(place: Place, out: Path, numbers: random.Random) -> bool:
        nodes = _nodes(place)
        out.mkdir(exist_ok=True)
        environment = {**place.mark(out), "RAY_AUTH_MODE": "disabled"}
        with watching(out) as watched:
            arguments = place.arguments(out, "--ray", nodes.address, jobs=None)
            command = place.forks.start(arguments, environment=environment)
            in_time = _moment(place, out, numbers, command, watched)
            if victim == "driver":
                command.kill()
                ended = command.wait()
                return in_time or _killed(ended)
            if in_time:
                nodes.do("kill")
            ended = command.wait()
            if in_time:
                nodes.do("add")
        # The machine that is left goes on by itself.
        assert ended.status == 0, f"status {ended.status}: {ended.output[-600:]}"
        clear(ended)
        place.expected.check(out)
        if in_time:
            place.remove(out)
        return in_time

    return kill


@contextlib.contextmanager
def _prepare() -> Iterator[Place]:
    with tiny_study.place() as place, contextlib.ExitStack() as stack:
        place.stack = stack
        yield place


_KILLS = [
    Kind("driver at a call", "SIGKILLs of studies", 60, _repeated(_at_a_call), batch=5),
    Kind("driver in its start", "SIGKILLs of studies", 15, _repeated(_started_as_users_do)),
    Kind("driver of two workers", "SIGKILLs of studies", 25, _repeated(_of_two("driver"))),
    Kind("worker", "SIGKILLs of studies", 25, _repeated(_of_two("worker"))),
    Kind("driver and workers", "SIGKILLs of studies", 25, _repeated(_of_two("both"))),
]
_ON_RAY = [
    Kind("machine of a Ray cluster", "SIGKILLs of studies", 25, _repeated(_on_ray("node"))),
    Kind("driver on a Ray cluster", "SIGKILLs of studies", 25, _repeated(_on_ray("driver"))),
]

PART = Part(
    "studies",
    "Studies that are killed, or whose disk fails",
    [
        *_KILLS,
        *(_ON_RAY if _RAY else ()),
        Kind("disk that fills up", "studies", 25, one_by_one(_full_disk)),
        Kind("calls that fail", "studies", 25, one_by_one(_failing_calls)),
        Kind("threads or processes that do not start", "studies", 25, one_by_one(_without_starts)),
    ],
    _prepare,
)
